"""The one training loop: epochs, schedule, precision, checkpoints, guards; and evaluation.

What differs between a teacher, a box and a student is the step, a function from a batch to a dictionary of named loss
terms that already carry weight and sign. Everything random in an epoch follows from (seed, epoch), so a run that was
killed and resumed ends with the same weights as one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdb.config import FitSettings, TrainSettings
from sdb.data import Batch, Batches, Data, LoaderBatches, as_data
from sdb.errors import TrainingError
from sdb.models import Classifier
from sdb.models.checkpoint import load_weights
from sdb.models.weights import not_finite
from sdb.runtime import derive_seed, join, world
from sdb.training.activation_checkpointing import checkpoint_activations
from sdb.training.batches import check_batches, train_batches
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.graphs import GraphedStep
from sdb.training.optimizers import (
    flatten_optimizer,
    learning_rate_at,
    make_optimizer,
    resolved,
    restore_optimizer,
    set_rate,
)
from sdb.training.progress import Listener, Progress, Record, as_progress

Step = Callable[[nn.Module, Batch], dict[str, Tensor]]
# A step that asks of its first argument only logits.
StudentStep = Callable[[Callable[[Tensor], Tensor], Batch], dict[str, Tensor]]
# Steps between looks at the loss: a look waits for the device, so not every step.
CHECK_EVERY = 50


class Kept(Protocol):
    """Where `fit` keeps epochs: a run folder, see sdb.runs.folder."""

    folder: Path

    def resume_state(self, model: Any) -> tuple[dict[str, Tensor], list[Record]] | None: ...  # noqa: D102
    def save_epoch(  # noqa: D102
        self, model: Any, optimizer: dict[str, Tensor], history: list[Record], improved: bool
    ) -> None: ...


def fit(
    model: nn.Module,
    step: Step,
    train: Batches | LoaderBatches,
    settings: FitSettings,
    *,
    evaluate: Callable[[], dict[str, float]],
    monitor: str,
    forward: nn.Module | None = None,
    beside: nn.Module | None = None,
    same_each_step: bool = False,
    run: Kept | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Train `model` in place and return one record per epoch.

    Args:
        model: what is trained and checkpointed; on its device already.
        step: loss terms of a batch; called with the module to use for the forward.
        train: batches of training images.
        settings: epochs, optimizer, schedule, precision, seed.
        evaluate: validation metrics, called after each epoch.
        monitor: the metric that chooses the best epoch, higher is better. The model ends at the *last* epoch.
        forward: module that contains `model` and is called by `step`; the model itself by default.
        beside: trained and checkpointed with the model but not part of it (a box's private part).
        same_each_step: the step does the same on every batch: nothing in it is drawn, counted or decided in Python. On
            a GPU it is then recorded once and replayed, see `GraphedStep`.
        run: folder to checkpoint to and resume from; none keeps nothing.
        progress: is told of every step and epoch.

    Raises:
        TrainingError: a loss, a weight or a validation metric is no longer finite; such an epoch is not kept, the one
            before it is.
    """
    settings = resolved(settings, model)
    forward = compiled(model if forward is None else forward, settings)
    device = next(model.parameters()).device
    trained = [module for module in (model, beside) if module is not None]
    optimizer = make_optimizer(trained, settings)
    history: list[Record] = []
    if run is not None and (saved := run.resume_state(model)) is not None:
        tensors, history = saved
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        load_weights(model, weights, run.folder)
        if beside is not None:
            held = {n.removeprefix("private."): t for n, t in tensors.items() if n.startswith("private.")}
            load_weights(beside, held, run.folder)
        restore_optimizer(optimizer, tensors)
    if world().size > 1:
        # Running statistics are averaged after each epoch instead of being sent from rank 0 before every forward.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the new name is not in every torch that we support
            forward = nn.parallel.DistributedDataParallel(forward, broadcast_buffers=False)
    best = max((record["validation"][monitor] for record in history), default=-math.inf)
    learn = _learner(trained, forward, step, optimizer, settings)
    if same_each_step and _can_be_graphed(settings, device):
        learn = GraphedStep(learn, optimizer, device)
    if progress:
        progress.start(settings.epochs, len(history), len(train))
    sparing = checkpoint_activations(model) if settings.activation_checkpointing else contextlib.nullcontext()
    closing = contextlib.closing(progress) if progress else contextlib.nullcontext()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), sparing, closing:
        for epoch in range(len(history), settings.epochs):
            started = time.perf_counter()
            _seed(device, derive_seed(settings.seed, "epoch", epoch, world().rank))
            rate = learning_rate_at(settings, epoch)
            set_rate(optimizer, rate)
            terms = _train_epoch(trained, learn, train, optimizer, settings, epoch, progress)
            for module in trained:
                _average_buffers(module)
                module.eval()
            record: Record = {"epoch": epoch + 1, "learning_rate": rate, "terms": terms}
            record |= {"loss": sum(terms.values()), "validation": evaluate()}
            record["seconds"] = round(time.perf_counter() - started, 3)
            _check_epoch(trained, record, settings)
            history.append(record)
            improved = record["validation"][monitor] > best
            best = max(best, record["validation"][monitor])
            if run is not None and world().is_main:
                private = {f"private.{n}": t for n, t in beside.state_dict().items()} if beside is not None else {}
                run.save_epoch(model, private | flatten_optimizer(optimizer), history, improved)
            if progress:
                progress.epoch(record)
    for module in trained:  # also where a resumed run had nothing left to do
        module.eval()
    return history


def _train_epoch(
    trained: list[nn.Module],
    learn: Callable[[Batch], dict[str, Tensor]],
    train: Batches | LoaderBatches,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
    epoch: int,
    progress: Progress | None,
) -> dict[str, float]:
    """One pass over the training images; mean of each loss term over the steps."""
    for module in trained:
        module.train()
    sums: dict[str, Tensor] = {}
    steps = 0
    for batch in train.epoch(epoch):
        if settings.schedule == "one_cycle":
            set_rate(optimizer, learning_rate_at(settings, epoch + steps / len(train)))
        for name, term in learn(batch).items():  # of a recorded step the next one overwrites them
            sums[name] = sums[name] + term if name in sums else term.clone()
        steps += 1
        if steps % CHECK_EVERY == 0:
            _check_finite(sums, epoch, steps, settings)
        if progress:
            progress.step()
    if world().size > 1:
        for total in sums.values():
            dist.all_reduce(total)
    _check_finite(sums, epoch, steps, settings)
    return {name: float(total) / steps / world().size for name, total in sums.items()}


def _learner(
    trained: list[nn.Module],
    forward: nn.Module,
    step: Step,
    optimizer: torch.optim.Optimizer,
    settings: FitSettings,
) -> Callable[[Batch], dict[str, Tensor]]:
    """A batch to its loss terms, after which the weights have moved."""
    parameters = [parameter for module in trained for parameter in module.parameters()]
    device_type, autocast = parameters[0].device.type, settings.precision == "bfloat16"

    def learn(batch: Batch) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        optimizer.zero_grad(set_to_none=True)
        parts = cut(batch, settings.accumulation_steps)
        for number, part in enumerate(parts, 1):
            with _kept_apart(forward) if number < len(parts) else contextlib.nullcontext():
                with torch.autocast(device_type, torch.bfloat16, enabled=autocast):
                    terms = step(forward, part)
                total = torch.stack([term.float() for term in terms.values()]).sum() / len(parts)
                total.backward()
            for name, term in terms.items():
                share = term.detach() / len(parts)
                found[name] = found[name] + share if name in found else share
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        return found

    return learn


def _can_be_graphed(settings: FitSettings, device: torch.device) -> bool:
    """Whether a step is nothing but kernels on one GPU."""
    plain = settings.compile == "off" and not settings.activation_checkpointing and settings.clip_norm is None
    return device.type == "cuda" and plain and world().size == 1


def _seed(device: torch.device, seed: int) -> None:
    """Seed what training draws from; on a CPU only its generator, since a call to each kind of device costs a step."""
    seeded = torch.default_generator if device.type == "cpu" else torch
    seeded.manual_seed(seed)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch in parts of equal size, or whole."""
    if parts == 1:
        return [batch]
    return [Batch(*fields) for fields in zip(*(field.chunk(parts) for field in batch), strict=True)]


def _kept_apart(forward: nn.Module) -> contextlib.AbstractContextManager:
    """Gradients of a part stay in their process until the batch's last part."""
    return (
        forward.no_sync() if isinstance(forward, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()
    )


def _check_finite(sums: dict[str, Tensor], epoch: int, steps: int, settings: FitSettings) -> None:
    bad = [name for name, total in sums.items() if not torch.isfinite(total)]
    if bad:
        raise _diverged(epoch + 1, f"within step {steps}: loss term {', '.join(bad)}", settings)


def _check_epoch(trained: list[nn.Module], record: Record, settings: FitSettings) -> None:
    """Refuse to keep an epoch whose last step spoilt the weights: its losses came before that."""
    bad = [f"validation {name}" for name, value in record["validation"].items() if not math.isfinite(value)]
    bad += [name for module in trained if (name := not_finite(module)) is not None]
    if bad:
        raise _diverged(record["epoch"], f"at its end: {', '.join(bad)}", settings)


def _diverged(epoch: int, what: str, settings: FitSettings) -> TrainingError:
    kept = "no epoch is kept" if epoch == 1 else f"epoch {epoch - 1}, the last finite one, is kept"
    return TrainingError(
        f"epoch {epoch}, {what} is not finite; {kept}. Try a lower learning_rate (now {settings.highest_rate:g}), "
        "clip_norm=1, a lower disturbance_weight or precision=float32"
    )


def _average_buffers(model: nn.Module) -> None:
    """Make the running statistics of all processes the same: their mean."""
    if world().size == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= world().size


def compiled(forward: nn.Module, settings: FitSettings) -> nn.Module:
    """The forward as torch.compile makes it, where the settings ask for it; parameters stay the module's own."""
    if settings.compile == "off":
        return forward
    made = torch.compile(forward, mode=settings.compile)
    return cast(nn.Module, made)


def train(
    model: Classifier,
    data: Data,
    settings: TrainSettings | None = None,
    *,
    run: Kept | None = None,
    progress: Listener | None = True,
) -> list[Record]:
    """Train a classifier with cross-entropy: a teacher, or a student without a teacher.

    Args:
        model: trained in place; ends in eval mode, on the settings' device, with the data's class names.
        data: `Splits`, loaders, datasets, arrays or a folder, see `sdb.data.as_data`; selection sees its validation
            images only.
        settings: `label_smoothing` makes it the label-smoothing student.
        run: folder to checkpoint to and resume from.
        progress: True: a bar on a terminal and in a notebook; False: nothing; or a function that is called with each
            epoch's record.

    Raises:
        ConfigError, DataError: the data are not what was expected, or batches are too small for the network.
        TrainingError: the loss is no longer finite.
    """
    settings = settings or TrainSettings()
    data = as_data(data, model.spec.num_classes)
    check_batches(model, data, settings)
    device = join(settings.device)
    model.learns_from(data.class_names, data.pictures)
    model.to(device)
    validation = evaluation_batches(data.validation, device)
    return fit(
        model,
        cross_entropy_step(settings),
        train_batches(data, settings, device),
        settings,
        evaluate=lambda: evaluate(model, validation),
        monitor="accuracy",
        same_each_step=True,
        run=run,
        progress=as_progress(progress, "train"),
    )


def cross_entropy_step(settings: TrainSettings) -> StudentStep:
    """Loss terms of a classifier that learns from labels."""
    from sdb.losses import cross_entropy

    def step(forward: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": cross_entropy(forward(batch.images), batch.labels, settings.label_smoothing)}

    return step


def best_epoch(history: Sequence[Record], monitor: str) -> Record:
    """The record with the highest validation metric, the earliest of equals."""
    return max(history, key=lambda record: (record["validation"][monitor], -record["epoch"]))
