"""Wrapping: from a trained teacher to a box.

    box = wrap(teacher, key, data, WrapSettings(method="sdb", epochs=40, learning_rate=0.01))

`PASSES` says how plain and keyed images go through the network; `wrap` picks the loss by method.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sdb import losses
from sdb.box import Box, BoxInfo, Embed
from sdb.checkpoint import check_fits
from sdb.config import TrainSettings, WrapSettings
from sdb.data import Batch, Splits
from sdb.errors import ConfigError, ModelError
from sdb.keys import Key
from sdb.models import Classifier
from sdb.runs import RunFolder
from sdb.runtime import choose_device, derive_seed, process_group, world
from sdb.training import Progress, Record, Step, evaluate, evaluation_batches, fit, train_batches

# Parameters of a method that go on the box's public record.
RECORDED = {
    "nasty": ("temperature", "disturbance_weight", "start"),
    "sdb": (
        "temperature",
        "disturbance_weight",
        "preservation_weight",
        "augmentation_weight",
        "start",
        "forward",
    ),
}


class TwoPasses(nn.Module):
    """Plain and keyed images through one network: images (N, C, H, W) to two logits (N, classes).

    Args:
        classifier: the box's network.
        embed: puts the key into images.
        joint: one forward of the concatenated batch, so that batch norm normalises both by the same statistics
            and its running statistics fit both; else two forwards, plain first, as the reference.
    """

    def __init__(self, classifier: Classifier, embed: Embed, joint: bool) -> None:
        super().__init__()
        self.classifier, self.embed, self.joint = classifier, embed, joint

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keyless and keyed logits."""
        keyed = self.embed(images)
        if not self.joint:
            return self.classifier(images), self.classifier(keyed)
        keyless_logits, keyed_logits = self.classifier(torch.cat([images, keyed])).chunk(2)
        return keyless_logits, keyed_logits


def wrap(
    teacher: Classifier,
    key: Key | None,
    data: Splits,
    settings: WrapSettings | None = None,
    *,
    run: RunFolder | None = None,
    progress: Progress | None = None,
    history: list[Record] | None = None,
) -> Box:
    """Train a box around a teacher.

    Args:
        teacher: trained classifier; not changed.
        key: what the box opens for; None for method "nasty", which has no key.
        data: selection sees its validation images only.
        settings: method and training; see `WrapSettings`.
        run: folder to checkpoint to and resume from.
        progress: is told of every step and epoch.
        history: gets one record an epoch.

    Raises:
        ConfigError: a key is missing, or given to a method without keys.
        ModelError: the teacher does not fit the data, or its architecture cannot be built again.
    """
    settings = settings or WrapSettings()
    if (key is None) != (settings.method == "nasty"):
        raise ConfigError(
            "method 'nasty' has no key: leave key out"
            if key is not None
            else f"method {settings.method!r} needs a key: make one with Key.generate() or sdb key new"
        )
    check_fits(teacher, "teacher", data.num_classes, data.image_shape)
    device = choose_device(settings.device)
    with process_group(device):
        teacher = frozen(teacher, device)
        network = start_network(teacher, settings).to(device)
        validation = evaluation_batches(data.validation, device)
        if key is None:
            forward, step = network, nasty_step(teacher, settings)
            monitor = "accuracy"

            def metrics() -> dict[str, float]:
                return evaluate(network, validation)
        else:
            embed = Embed(key, data.image_shape).to(device)
            forward = TwoPasses(network, embed, settings.forward == "joint")
            step = sdb_step(teacher, random_network(teacher, settings), settings)
            monitor = "worse_accuracy"
            keyed_network = nn.Sequential(embed, network)

            def metrics() -> dict[str, float]:
                keyless, keyed = evaluate(network, validation), evaluate(keyed_network, validation)
                result = {f"keyless_{name}": value for name, value in keyless.items()}
                result |= {f"keyed_{name}": value for name, value in keyed.items()}
                return result | {"worse_accuracy": min(keyless["accuracy"], keyed["accuracy"])}

        records = fit(
            network,
            step,
            train_batches(data, settings, device),
            settings,
            evaluate=metrics,
            monitor=monitor,
            forward=forward,
            run=run,
            progress=progress,
        )
    if history is not None:
        history.extend(records)
    parameters = {name: getattr(settings, name) for name in RECORDED[settings.method]}
    if key is not None:
        parameters["key_blend"] = key.blend
    return Box(network.eval(), BoxInfo(settings.method, parameters, data.class_names, (key.id,) if key else ()))


def nasty_step(teacher: Classifier, settings: WrapSettings) -> Step:
    """Loss terms of Nasty Teacher."""

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(batch.images)
        return losses.nasty_terms(
            forward(batch.images),
            batch.labels,
            target,
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
        )

    return step


def sdb_step(teacher: Classifier, random: Classifier | None, settings: WrapSettings) -> Step:
    """Loss terms of the paper's box."""

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher(batch.images)
            noise = random(batch.images) if random is not None else None
        keyless, keyed = forward(batch.images)
        return losses.sdb_terms(
            keyless,
            keyed,
            batch.labels,
            target,
            noise,
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
            preservation_weight=settings.preservation_weight,
            augmentation_weight=settings.augmentation_weight,
            sum_scale=world().size,
        )

    return step


def start_network(teacher: Classifier, settings: WrapSettings) -> Classifier:
    """The network that becomes the box: the teacher's copy, or the same architecture freshly initialised."""
    if settings.start == "teacher":
        network = copy.deepcopy(teacher)
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return network
    return fresh_copy(teacher, settings, "start")


def random_network(teacher: Classifier, settings: WrapSettings) -> Classifier | None:
    """The frozen random network of the augmentation term, or None where the term is off."""
    if settings.augmentation_weight == 0:
        return None
    device = next(teacher.parameters()).device
    return frozen(fresh_copy(teacher, settings, "random"), device)


def fresh_copy(teacher: Classifier, settings: TrainSettings, purpose: str) -> Classifier:
    """The teacher's architecture with new weights, from the run's seed."""
    if teacher.spec is None:
        raise ModelError(
            "this needs a second network of the teacher's architecture, and the teacher is a module object: "
            "use start='teacher' and augmentation_weight=0, or build it from a ModelSpec"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, purpose))
        return teacher.spec.build()


def frozen(module: Classifier, device: torch.device) -> Classifier:
    """A copy on the device, in eval mode, without gradients; the caller's module is left alone."""
    copied = copy.deepcopy(module).to(device).eval()
    return copied.requires_grad_(False)
