"""Wrapping: from a trained network to a box.

box = wrap(net, data, key=key)
box = wrap(teacher, data, WrapSettings(epochs=40), key=[owner.partner("a"), owner.partner("b")], owner=owner)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from sdb.box.box import Box, BoxInfo
from sdb.config import WrapSettings
from sdb.data import Batches, Data, LoaderBatches
from sdb.keys import Key, Owner
from sdb.models import Classifier
from sdb.models.checkpoint import check_finite, check_fits
from sdb.runtime import join, world
from sdb.training.evaluation import class_mean_outputs, evaluate, evaluation_batches, measured
from sdb.training.loop import Kept, Record, check_batches, fit, train_batches
from sdb.training.progress import Listener, as_progress
from sdb.training.repeated_views import answers, repeated
from sdb.wrapping.accuracy import shortfall
from sdb.wrapping.door import METHODS, check_keys, classifier_and_data
from sdb.wrapping.method import Material, Method
from sdb.wrapping.networks import frozen, start_network
from sdb.wrapping.teachers import warn_of_teacher

log = logging.getLogger(__name__)


def wrap(
    network: nn.Module,
    data: Data,
    settings: WrapSettings | None = None,
    *,
    key: Key | Sequence[Key] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    owner: Owner | None = None,
    more_teachers: Sequence[Classifier] = (),
    run: Kept | None = None,
    progress: Listener | None = True,
    history: list[Record] | None = None,
) -> Box:
    """Train a box around a trained network, the teacher.

    Logs a warning where a teacher is no better than chance on the validation images, or would be far better with
    another normalisation of its pixels; and at the end, where the box falls below it by more than `allowed_loss`.

    Args:
        network: the trained network, any module from images to logits; it is copied and not changed.
        data: `Splits`, loaders, datasets, arrays or a folder, see `sdb.data.as_data`; selection sees its validation
            images only.
        settings: method and training; see `WrapSettings`.
        key: what the box opens for: one key, several of one kind, or None for method "nasty", which has no key.
        mean: per channel, of pixels in [0, 1], where the network takes normalised pixels; none where it normalises
            them itself, or is a `Classifier`, which has it.
        std: per channel, the deviation.
        owner: whose box it is; follows from the key where there is only one.
        more_teachers: method "decoy": partners get the mean of these and the teacher.
        run: folder to checkpoint to and resume from.
        progress: True: a bar on a terminal and in a notebook; False: nothing; or a function that is called with each
            epoch's record.
        history: gets one record per epoch.

    Raises:
        ConfigError: keys do not fit the method.
        ModelError: the teacher does not fit the data, or its architecture cannot be built again.
        CheckpointError: the teacher's weights are not finite.
    """
    settings = settings or WrapSettings()
    keys = [key] if isinstance(key, Key) else list(key or ())
    check_keys(keys, owner, settings)
    owner = owner or (Owner.of(keys[0]) if keys else None)
    data, teacher = classifier_and_data(network, data, mean, std)
    for each in (teacher, *more_teachers):
        check_fits(
            each, "teacher", data.num_classes, data.image_shape, data.class_names, settings.other_class_names
        )
        check_finite(each, "teacher")
    check_batches(teacher, data, settings)
    device = join(settings.device)
    teachers = tuple(frozen(each, device) for each in (teacher, *more_teachers))
    accuracies = [
        warn_of_teacher(each, data, f"teacher {number + 1} of {len(teachers)}" if more_teachers else "the teacher")
        for number, each in enumerate(teachers)
    ]
    public = start_network(teachers[0], settings).to(device)
    public.learns_from(data.class_names, data.pictures)
    batches = repeated(train_batches(data, settings, device), None)
    material = Material(
        teachers,
        public,
        tuple(keys),
        owner,
        settings,
        data.class_names,
        data.augment,
        ask=lambda module: answers(module, batches, data.num_classes),
        confusion=lambda: class_mean_outputs(
            teachers[0], evaluation_batches(data.train, device), data.num_classes
        ),
    )
    validation = evaluation_batches(data.validation, device)
    method = METHODS[settings.method, keys[0].kind if keys else ""](material)
    records = fit(
        method.network,
        method.step,
        batches,
        settings,
        evaluate=box_metrics(method, validation, accuracies[0]),
        monitor="accuracy" if method.keyed is None else "worse_accuracy",
        forward=method.forward,
        beside=method.beside,
        run=run,
        progress=as_progress(progress, "wrap"),
    )
    if history is not None:
        history.extend(records)
    # Every process looks at all of them: all are to come to the same levels.
    whole = evaluation_batches(data.validation, device, shared=False)
    box = method.finish(whole)
    box.info = with_measurements(box, teachers[0], method.keyed, whole)
    if world().is_main and (said := shortfall(box.info.measured, settings)):
        log.warning("%s", said)
    return box


def with_measurements(
    box: Box, teacher: nn.Module, keyed: nn.Module | None, validation: Batches | LoaderBatches
) -> BoxInfo:
    """What the box says of itself with how it does on validation images; what its making measured stands."""
    found = measured({"teacher": teacher, "keyless": box, "keyed": keyed}, validation)
    return replace(box.info, measured=found | box.info.measured)


def box_metrics(method: Method, validation: Any, teacher: float) -> Callable[[], dict[str, float]]:
    """Validation metrics of a box, keyless and keyed, the worse of both accuracies, and beside them the teacher's."""

    def metrics() -> dict[str, float]:
        keyless = evaluate(method.network, validation)
        if method.keyed is None:
            return {"teacher_accuracy": teacher} | keyless
        with_key = evaluate(method.keyed, validation)
        result = {"teacher_accuracy": teacher}
        result |= {f"keyless_{name}": value for name, value in keyless.items()}
        result |= {f"keyed_{name}": value for name, value in with_key.items()}
        return result | {"worse_accuracy": min(keyless["accuracy"], with_key["accuracy"])}

    return metrics
