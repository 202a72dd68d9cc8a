"""What a command does with a run folder: load data and models, run, keep the result. The CLI only parses and prints."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdb import config
from sdb import data as datasets
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.config import (
    BOX,
    DistillParams,
    DistillSettings,
    FitSettings,
    TrainParams,
    WrapParams,
    WrapSettings,
)
from sdb.data import Splits
from sdb.distillation import check_loss, distill
from sdb.errors import CheckpointError, ConfigError
from sdb.keys import Key, Owner
from sdb.models import Classifier, ModelSpec
from sdb.models.checkpoint import check_fits, load_classifier
from sdb.remote import RemoteTeacher
from sdb.remote.job import remote_teacher
from sdb.runs.folder import RunFolder, open_run
from sdb.runs.resolve import (
    described_data,
    lacks_key,
    like_teacher,
    load_data,
    load_teacher,
    make_keys,
    new_model,
    opened,
    partner_key,
    trusted,
    wrapping_keys,
)
from sdb.runtime import choose_device, join, keep_freed_memory, meet, world
from sdb.tracing.decoys import TraceResult, trace
from sdb.training import loop as training
from sdb.training.activation_checkpointing import checkpoint_activations
from sdb.training.evaluation import answers_to, honesty
from sdb.training.loop import Record, check_batches
from sdb.training.optimizers import resolved
from sdb.training.progress import Progress
from sdb.wrapping.accuracy import shortfall
from sdb.wrapping.door import check_keys
from sdb.wrapping.tuning import Choice, Search, wrap_within_budget
from sdb.wrapping.wrap import wrap

Result = dict[str, Any]

log = logging.getLogger(__name__)


def train_job(
    folder: Path, params: TrainParams, *, resume: bool, overwrite: bool, progress: Progress | None
) -> Result:
    """Train a classifier into DIR."""
    data = load_data(params, params.seed)
    model = new_model(params, data, params.seed)  # a bad model is refused before anything is written or discarded
    params = resolved(params, model)
    check_blocks(model, params)
    check_batches(model, data, params)
    with _running(folder, params, params.device, resume, overwrite, progress) as run:
        history = training.train(model, data, params, run=run, progress=progress)
        result = {
            "accuracy": test_accuracy(model, data),
            "best_epoch": training.best_epoch(history, "accuracy")["epoch"],
        }
        run.write_result(result)
    return result


def wrap_job(
    folder: Path, params: WrapParams, *, resume: bool, overwrite: bool, progress: Progress | None
) -> Result:
    """Wrap a teacher into DIR/box; makes DIR/key.json where no key is named."""
    data = load_data(params, params.seed)
    teacher = load_teacher(params, data)
    if isinstance(teacher, Box):
        raise ConfigError(f"teacher: {params.teacher} is a box already; name an unprotected teacher")
    like_teacher(params, teacher)
    params = resolved(params, teacher)
    check_blocks(teacher, params)
    check_batches(teacher, data, params)
    # Bad keys are refused before anything is written or discarded.
    if not lacks_key(folder, params):
        check_keys(*wrapping_keys(folder, params), params)
    elif params.owner is not None:
        Owner.load(params.owner)
    names, other = data.class_names, params.other_class_names
    more = [
        load_classifier(
            path,
            network=trusted(params),
            num_classes=data.num_classes,
            class_names=names,
            other_class_names=other,
        )
        for path in params.more_teachers
    ]
    with _running(folder, params, params.device, resume, overwrite, progress) as run:
        if world().is_main:
            make_keys(folder, params)
        meet()
        keys, owner = wrapping_keys(folder, params)
        result: Result = {}
        if params.budget is None:
            box = wrap(
                teacher, data, params, key=keys, owner=owner, more_teachers=more, run=run, progress=progress
            )
        else:
            choice = budgeted_box(folder, params, teacher, keys, owner, data, more, resume, progress)
            box = choice.box
            if not choice.met:
                log.warning("%s", choice.sentence())
            result["budget"] = {
                "met": choice.met,
                "says": choice.sentence(),
                "chosen": choice.trial.changes,
                "trials": [trial.to_json() for trial in choice.trials],
            }
        if world().is_main:
            box.save(folder / BOX, overwrite=resume or overwrite)
        teacher.to(choose_device(params.device))
        result |= {"teacher": test_accuracy(teacher, data), "keyless": test_accuracy(box, data)}
        if keys:
            result["keyed"] = test_accuracy(box.unlock(keys[0]), data)
            wrong = Key.generate(keys[0].kind, blend=keys[0].blend)
            result["wrong_key"] = test_accuracy(box.attempt(wrong), data)
        result["validation"] = box.info.measured
        if warning := warning_of(result, params):
            result["warning"] = warning
        run.write_result(result)
    return result


def warning_of(result: Result, params: WrapParams) -> str:
    """The warning for a box whose accuracy is below what was asked for; empty where it is not."""
    if "budget" in result:
        return "" if result["budget"]["met"] else result["budget"]["says"]
    return shortfall(result["validation"], params)


def budgeted_box(
    folder: Path,
    params: WrapParams,
    teacher: Classifier,
    keys: list[Key],
    owner: Owner | None,
    data: Splits,
    more: list[Classifier],
    resume: bool,
    progress: Progress | None,
) -> Choice:
    """The box that keeps the accuracy budget and fails a validation thief most; each candidate in DIR/trials/N."""
    if params.method != "decoy":
        raise ConfigError(f"budget: method {params.method!r} has no strengths to choose among; use method=decoy")

    numbers = itertools.count()
    budget = params.budget or 0.0

    def make_box(settings: WrapSettings) -> Box:
        place = folder / "trials" / str(next(numbers))
        values = settings.model_dump(mode="json")
        goes_on = resume and (place / "params.resolved.json").exists()
        with open_run(place, values, choose_device(params.device), resume=goes_on, overwrite=not goes_on) as run:
            # A candidate that falls short is no news: the choice is judged.
            quiet = settings.model_copy(update={"allowed_loss": 1.0})
            return wrap(
                teacher, data, quiet, key=keys, owner=owner, more_teachers=more, run=run, progress=progress
            )

    search = None
    if params.search_trials:
        search = Search(params.search_trials, params.seed, budget, misleading=params.confidence_levels == 0)
    # The thief has the teacher's own architecture and length: a strong one.
    lengths = {name: getattr(params, name) for name in FitSettings.model_fields}
    return wrap_within_budget(
        make_box,
        teacher,
        keys[0],
        data,
        params,
        lambda: new_model(like_teacher(params, teacher), data, params.seed, "student"),
        DistillSettings(**lengths),
        budget=budget,
        ladder=search,
    )


def distill_job(
    folder: Path, params: DistillParams, *, resume: bool, overwrite: bool, progress: Progress | None
) -> Result:
    """Distil a student into DIR, keyed where the parameters name a key."""
    data = load_data(params, params.seed)
    # A loss without content is refused before anything is written.
    check_loss(params.resolved(), data.num_classes)
    if params.teacher_url is not None:
        teacher = remote_teacher(folder, params, data, partner_key(folder, params))
    else:  # the teacher first: where its box is missing, so is the key beside it
        loaded = load_teacher(params, data)
        teacher = opened(loaded, partner_key(folder, params), params)
    # A student that began as its teacher began would have more from it than its answers.
    student = new_model(params, data, params.seed, "student")
    params = resolved(params, student)
    check_blocks(student, params)
    check_batches(student, data, params)
    with _running(folder, params, params.device, resume, overwrite, progress) as run:
        history: list[Record] = []
        distill(teacher, student, data, params, run=run, progress=progress, history=history)
        result: Result = {"accuracy": test_accuracy(student, data)}
        if isinstance(teacher, RemoteTeacher):
            result["queries"] = teacher.counts  # its own accuracy would cost the test images on top
        else:
            result["teacher"] = test_accuracy(teacher, data)
        result["best_epoch"] = training.best_epoch(history, "accuracy")["epoch"]
        run.write_result(result)
    return result


JOBS: dict[str, Callable[..., Result]] = {"train": train_job, "wrap": wrap_job, "distill": distill_job}


def evaluate_job(
    path: Path,
    *,
    key_file: Path | None,
    dataset: str | None,
    data_root: Path | None,
    device: str,
    other_class_names: bool = False,
    model_name: str | None = None,
    model_args: dict[str, Any] | None = None,
    network: str | None = None,
) -> Result:
    """What test images show of a run folder, a checkpoint or a box, keyless and, with a key, keyed: accuracy, honesty.

    Of a box also what it states: the levels of confidence in keyless answers, and what these tell beyond the class.
    """
    key = (
        None if key_file is None else Key.load(key_file)
    )  # what is no key is refused as that, whatever the model is
    bare: dict[str, Any] = {}
    data = None
    if model_name is not None:  # bare weights do not say what they are for: the data does
        data = described_data(path, dataset, data_root, None)
        shape = {"num_classes": data.num_classes, "image_shape": data.image_shape}
        bare = {"model_name": model_name, "model_args": model_args, "dataset": data.name, **shape}
    model = load_model(path, network, **bare)
    classifier = model.classifier if isinstance(model, Box) else model
    data = data or described_data(path, dataset, data_root, model)
    check_fits(classifier, path, data.num_classes, data.image_shape, data.class_names, other_class_names)
    model = model.to(choose_device(device))
    if not isinstance(model, Box):
        if key is not None:
            raise ConfigError(f"--key: {path} is not a box, it needs no key")
        accuracy, confidence = test_scores(model, data)
        return {"accuracy": accuracy} | confidence
    opened = {"keyless": model} | ({} if key is None else {"keyed": model.unlock(key)})
    scores = {name: test_scores(module, data) for name, module in opened.items()}
    stated = {"levels": len(model.info.levels), "bits": model.info.measured["bits"]} if model.info.levels else {}
    accuracies = {name: accuracy for name, (accuracy, _) in scores.items()}
    return accuracies | {"calibration": {name: confidence for name, (_, confidence) in scores.items()}} | stated


def trace_job(
    suspect_path: Path,
    *,
    box_path: Path,
    owner_file: Path,
    reference_path: Path | None,
    dataset: str | None,
    data_root: Path | None,
    device: str,
    reveal: bool,
    other_class_names: bool = False,
    network: str | None = None,
) -> TraceResult:
    """Look for a box's mark in a run folder, checkpoint or box, on the test images of the box's data."""
    box = load_model(box_path, network)
    if not isinstance(box, Box):
        raise CheckpointError(f"--box: {box_path} is not a box; the suspect comes first, the box after --box")
    owner = Owner.load(owner_file)
    box.owner_record(owner)  # a wrong owner is refused before any data is looked for
    suspect = load_model(suspect_path, network)
    reference = load_model(reference_path, network) if reference_path is not None else None
    if isinstance(reference, Box):
        raise ConfigError(f"--reference: {reference_path} is a box; name the teacher, which never saw the decoys")
    data = described_data(box_path, dataset, data_root, box)
    place = choose_device(device)
    return trace(
        suspect.to(place),
        box,
        owner,
        data,
        reference=reference.to(place) if reference is not None else None,
        reveal=reveal,
        other_class_names=other_class_names,
    )


def check_job(folder: Path, command: str | None, overrides: list[str]) -> str:
    """Validate DIR/params.json without running it; the command it is for, guessed where none is named."""
    command = command or config.guess_command(folder)
    if command not in config.COMMANDS:
        raise ConfigError(f"command: {command!r} is none of {', '.join(config.COMMANDS)}")
    params = config.load(folder, command, overrides)
    if params.dataset not in datasets.DATASETS and not params.dataset.startswith("hub:"):
        datasets.load(params.dataset)  # its error names the choices
    if ":" not in params.model_name:
        with torch.device("meta"):
            ModelSpec(params.model_name, params.model_args, 10, (3, 32, 32), (0.0,) * 3, (1.0,) * 3).build()
    return command


def missing_paths(folder: Path, command: str, overrides: list[str]) -> list[str]:
    """A line per parameter that names a file or folder which is not there yet; an earlier run may still make it."""
    given = config.load(folder, command, overrides).model_dump()
    return [
        f"{name}: {value} is not there yet; it must be before sdb {command} runs"
        for name, value in given.items()
        if isinstance(value, Path) and name != "save_path" and not value.exists()
    ]


def check_blocks(model: nn.Module, params: FitSettings) -> None:
    """Refuse activation checkpointing of a network that has nothing to recompute.

    Raises:
        ModelError: saying so.
    """
    if params.activation_checkpointing:
        with checkpoint_activations(model):
            pass


def test_accuracy(model: nn.Module, data: Splits) -> float:
    """Accuracy over all test images, a fraction."""
    device = next(model.parameters()).device
    return training.evaluate(model, training.evaluation_batches(data.test, device))["accuracy"]


def test_scores(model: nn.Module, data: Splits) -> tuple[float, dict[str, float]]:
    """Accuracy over all test images, and calibration error and Brier score of the top-1 confidence, fractions."""
    batches = training.evaluation_batches(data.test, next(model.parameters()).device)
    honest = honesty(*answers_to(model, batches))
    confidence = {name: honest[name] for name in ("calibration_error", "brier")}
    return training.evaluate(model, batches)["accuracy"], confidence


@contextlib.contextmanager
def _running(
    folder: Path, params: Any, device_name: str, resume: bool, overwrite: bool, progress: Progress | None
) -> Generator[RunFolder]:
    device = join(device_name)
    keep_freed_memory()
    parameters = params.model_dump(mode="json")
    try:
        with open_run(folder, parameters, device, resume=resume, overwrite=overwrite) as run:
            yield run
    finally:
        if progress:
            progress.close()
