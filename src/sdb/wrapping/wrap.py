"""Wrapping: from a trained teacher to a box.

box = wrap(teacher, key, data, WrapSettings(epochs=40, learning_rate=0.01))
box = wrap(teacher, [owner.partner("a"), owner.partner("b")], data, owner=owner)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdb.box.box import Box, BoxInfo, Embed
from sdb.box.private_part import PrivatePart
from sdb.config import FitSettings, WrapSettings
from sdb.data import Splits
from sdb.errors import ConfigError, ModelError
from sdb.keys import Key, Owner, derive
from sdb.models import Classifier
from sdb.models.checkpoint import check_finite, check_fits
from sdb.runtime import choose_device, derive_seed, process_group
from sdb.training.evaluation import class_mean_outputs, evaluate, evaluation_batches
from sdb.training.loop import Kept, Progress, Record, Step, check_batches, fit, train_batches
from sdb.training.repeated_views import answers, repeated
from sdb.wrapping.decoys import candidates, decoy_logits, decoy_map
from sdb.wrapping.methods import ImageKeyPasses, TwoPasses, WeightKeyPasses, decoy_step, nasty_step, sdb_step

# By how much a fixed answer names its class, in logits, where the margin does not.
LEAD = 1e-3
# Settings of a method that go on the box's public record; the decoy map itself never does.
RECORDED = {
    "nasty": ("start", "temperature", "disturbance_weight"),
    "sdb": (
        "start",
        "forward",
        "temperature",
        "disturbance_weight",
        "preservation_weight",
        "augmentation_weight",
    ),
    "decoy": (
        "start",
        "forward",
        "temperature",
        "num_decoys",
        "margin",
        "ce_weight",
        "wrong_key_rejection",
        "fixed_answers",
    ),
}


def wrap(
    teacher: Classifier,
    key: Key | Sequence[Key] | None,
    data: Splits,
    settings: WrapSettings | None = None,
    *,
    owner: Owner | None = None,
    more_teachers: Sequence[Classifier] = (),
    run: Kept | None = None,
    progress: Progress | None = None,
    history: list[Record] | None = None,
) -> Box:
    """Train a box around a teacher.

    Args:
        teacher: trained classifier; not changed.
        key: what the box opens for: one key, several of one kind, or None for method "nasty", which has no key.
        data: selection sees its validation images only.
        settings: method and training; see `WrapSettings`.
        owner: whose box it is; follows from the key where there is only one.
        more_teachers: method "decoy": partners get the mean of these and the teacher.
        run: folder to checkpoint to and resume from.
        progress: is told of every step and epoch.
        history: gets one record an epoch.

    Raises:
        ConfigError: keys do not fit the method.
        ModelError: the teacher does not fit the data, or its architecture cannot be built again.
        CheckpointError: the teacher's weights are not finite.
    """
    settings = settings or WrapSettings()
    keys = [key] if isinstance(key, Key) else list(key or ())
    check_keys(keys, owner, settings)
    owner = owner or (Owner.of(keys[0]) if keys else None)
    for each in (teacher, *more_teachers):
        check_fits(
            each, "teacher", data.num_classes, data.image_shape, data.class_names, settings.other_class_names
        )
        check_finite(each, "teacher")
    check_batches(teacher, data, settings)
    device = choose_device(settings.device)
    with process_group(device):
        teachers = [frozen(each, device) for each in (teacher, *more_teachers)]
        network = start_network(teachers[0], settings).to(device)
        network.class_names = data.class_names
        validation = evaluation_batches(data.validation, device)
        batches = repeated(train_batches(data, settings, device), None)
        private, keyless, secret_record = None, None, {}
        keyed: nn.Module | None
        forward: nn.Module = network
        if settings.method == "nasty":
            step, keyed = nasty_step(answers(teachers[0], batches, data.num_classes), settings), None
        elif settings.method == "sdb":
            embed = Embed(keys[0], data.image_shape).to(device)
            forward = TwoPasses(network, embed, settings.forward == "joint")
            random = random_network(teachers[0], settings)
            noise = None if random is None else answers(random, batches, data.num_classes)
            step = sdb_step(answers(teachers[0], batches, data.num_classes), noise, settings)
            keyed = nn.Sequential(embed, network)
        else:
            step, keyless, secret_record = decoy_method(teachers, data, owner, settings, device)
            if keys[0].kind == "weight":
                whole = settings.private_part == "whole"
                with torch.random.fork_rng(devices=[]):  # adapters begin at random, the same in every process
                    torch.manual_seed(derive_seed(settings.seed, "private"))
                    private = PrivatePart(teachers[0] if whole else network, whole).to(device)
                forward = WeightKeyPasses(network, private)
                keyed = _Keyed(network, private)
            else:
                joint, rejection = settings.forward == "joint", settings.wrong_key_rejection
                forward = ImageKeyPasses(network, keys, joint, rejection).to(device)
                embed = Embed(keys[0], data.image_shape).to(device)
                keyed = nn.Sequential(embed, network)
        records = fit(
            network,
            step,
            batches,
            settings,
            evaluate=box_metrics(network, keyed, validation),
            monitor="accuracy" if keyed is None else "worse_accuracy",
            forward=forward,
            beside=private,
            run=run,
            progress=progress,
        )
    if history is not None:
        history.extend(records)
    info = box_info(keys, owner, data, settings)
    # A key of the image kind needs the network's own logits: it shows in the image, and so only in them.
    fixed = keyless is not None and private is not None and settings.fixed_answers
    box = Box(network.eval(), info, answers=named(keyless) if fixed else None)
    if owner is None or settings.method != "decoy":
        return box
    return box.lock(private.export() if private is not None else None, secret_record, keys, owner)


def named(answers: Tensor) -> Tensor:
    """Decoy answers (C, C) as a box gives them: a class stands above its decoys even where the margin is 0."""
    return answers + LEAD * torch.eye(len(answers), device=answers.device, dtype=answers.dtype)


def check_keys(keys: Sequence[Key], owner: Owner | None, settings: WrapSettings) -> None:
    """Refuse keys that the method cannot use.

    Raises:
        ConfigError: saying which and why.
    """
    method = settings.method
    if method == "nasty":
        if keys:
            raise ConfigError("method 'nasty' has no key: leave key out")
        return
    if not keys:
        raise ConfigError(f"method {method!r} needs a key: make one with Key.generate() or sdb key new")
    if len({(key.kind, key.blend if key.kind == "image" else None) for key in keys}) > 1:
        raise ConfigError("the keys of one box are of one kind and one blend")
    if method == "sdb" and (len(keys) > 1 or keys[0].kind != "image"):
        raise ConfigError(
            "method 'sdb' takes one image key; use method='decoy' for weight keys and for many partners"
        )
    if settings.private_part == "whole" and (method != "decoy" or keys[0].kind != "weight"):
        raise ConfigError(
            "private_part 'whole' is for method 'decoy' with weight keys: leave it out, or take those"
        )
    if len(keys) > 1 and owner is None:
        raise ConfigError("a box for several partners needs its owner: Owner.generate(), then owner.partner(name)")


def decoy_method(
    teachers: Sequence[Classifier], data: Splits, owner: Owner | None, settings: WrapSettings, device: torch.device
) -> tuple[Step, Tensor, dict[str, Any]]:
    """The decoy step, the answers it aims at, and what the owner must remember: the map and what it was chosen from."""
    if owner is None:
        raise ConfigError("method 'decoy' needs an owner or a key: its decoys are the owner's secret")
    classes = data.num_classes
    num_decoys = max(
        1, min(settings.num_decoys, classes - 2)
    )  # one class at least is neither; with two, the other
    if settings.decoy_choice == "any":
        choices = [[other for other in range(classes) if other != label] for label in range(classes)]
    else:
        confusion = class_mean_outputs(teachers[0], evaluation_batches(data.train, device), classes)
        # A class without training images has no mean: any class may be its decoy.
        choices = candidates(confusion.nan_to_num().cpu().numpy(), num_decoys)
    decoys = decoy_map(derive(owner.secret, "decoys"), choices, num_decoys)
    answers = decoy_logits(decoys, settings.decoy_height, settings.margin).to(device)
    step = decoy_step(teachers, answers, data.augment, settings)
    return step, answers, {"decoys": decoys, "candidates": choices}


def box_metrics(network: Classifier, keyed: nn.Module | None, validation: Any) -> Callable[[], dict[str, float]]:
    """Validation metrics of a box, keyless and keyed, and the worse of the two accuracies."""

    def metrics() -> dict[str, float]:
        keyless = evaluate(network, validation)
        if keyed is None:
            return keyless
        with_key = evaluate(keyed, validation)
        result = {f"keyless_{name}": value for name, value in keyless.items()}
        result |= {f"keyed_{name}": value for name, value in with_key.items()}
        return result | {"worse_accuracy": min(keyless["accuracy"], with_key["accuracy"])}

    return metrics


class _Keyed(nn.Module):
    """The network with its private part in place, while both are still being trained."""

    def __init__(self, network: Classifier, private: PrivatePart) -> None:
        super().__init__()
        self.network, self.private = network, private

    def forward(self, images: Tensor) -> Tensor:
        return self.private(self.network, images)


def box_info(keys: Sequence[Key], owner: Owner | None, data: Splits, settings: WrapSettings) -> BoxInfo:
    """What the box will say of itself."""
    parameters = {name: getattr(settings, name) for name in RECORDED[settings.method]}
    if keys and keys[0].kind == "image":
        parameters["key_blend"] = keys[0].blend
        parameters.pop("fixed_answers", None)
    if settings.private_part == "whole":
        parameters["private_part"] = settings.private_part
    return BoxInfo(
        settings.method,
        parameters,
        data.class_names,
        # A weight key's id is listed when its slot is made.
        key_ids=tuple(key.id for key in keys if key.kind == "image"),
        key_kind=keys[0].kind if keys else "",
        owner_id=owner.id if owner else "",
    )


def start_network(teacher: Classifier, settings: WrapSettings) -> Classifier:
    """The network that becomes the box: the teacher's copy, or the same architecture freshly initialised."""
    # With everything private, nothing of the teacher's weights may be in the public network.
    if settings.start == "teacher" and settings.private_part == "thin":
        return copy.deepcopy(teacher).requires_grad_(True)
    return fresh_copy(teacher, settings, "start")


def random_network(teacher: Classifier, settings: WrapSettings) -> Classifier | None:
    """The frozen random network of the augmentation term, or None where the term is off."""
    if settings.augmentation_weight == 0:
        return None
    device = next(teacher.parameters()).device
    return frozen(fresh_copy(teacher, settings, "random"), device)


def fresh_copy(teacher: Classifier, settings: FitSettings, purpose: str) -> Classifier:
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
