"""Distilling: from any module from images to logits to a student. Asking a server is in remote.

distill(box, student, data)               a thief: what the box tells anyone
distill(box, student, data, key=key)      a partner
distill(teacher, student, data)           from an unprotected teacher
distill(RemoteTeacher(url), ...)          from a box behind a server, see sdb.remote
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdb import losses
from sdb.box.box import Box
from sdb.config import DistillSettings
from sdb.data import Batch, Data, as_data
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.models import Classifier, check, compare_class_names
from sdb.models.checkpoint import check_finite
from sdb.models.own import classifier_of
from sdb.remote import RemoteTeacher
from sdb.runtime import join
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import Kept, Record, StudentStep, check_batches, fit, train_batches
from sdb.training.progress import Listener, as_progress
from sdb.training.repeated_views import Ask, answers, asked, repeated


def distill(
    teacher: nn.Module,
    student: nn.Module,
    data: Data,
    settings: DistillSettings | None = None,
    *,
    key: Key | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    run: Kept | None = None,
    progress: Listener | None = True,
    history: list[Record] | None = None,
) -> nn.Module:
    """Train a student on a teacher's soft outputs and return it; it sees plain images whoever asks.

    Args:
        teacher: a box, a classifier, or any module from images in [0, 1] to logits (N, classes).
        student: a classifier, or any module from images to logits; trained in place, ends in eval mode, on the
            settings' device.
        data: `Splits`, loaders, datasets, arrays or a folder, see `sdb.data.as_data`; selection sees its validation
            images only.
        settings: loss, weights, temperature, training.
        key: opens a box; with it the student is a partner's.
        mean: per channel, of pixels in [0, 1], where a module takes normalised pixels; see `sdb.wrap`.
        std: per channel, the deviation.
        run: folder to checkpoint to and resume from.
        progress: True: a bar on a terminal and in a notebook; False: nothing; or a function that is called with each
            epoch's record.
        history: gets one record per epoch.

    Raises:
        ConfigError, DataError: a key was given for something that is not a box, the loss teaches nothing with so few
            classes, the data are not what was expected, or batches are too small for the student.
        KeyFileError: the key is of another box.
        ModelError: the teacher's classes are not the data's, or it does not give logits for such images.
        CheckpointError: the teacher's weights are not finite.
    """
    if isinstance(run, str | Path):
        raise ConfigError(
            f"run: {str(run)!r} is a path; what sdb.runs.folder.open_run gives is expected, or nothing: leave it out"
        )
    settings = (settings or DistillSettings()).resolved()
    known = student.num_classes if isinstance(student, Classifier) else None
    data = as_data(data, known, mean=mean, std=std)
    learner = classifier_of(student, data.num_classes, data.image_shape, mean, std, copied=False)
    check_loss(settings, data.num_classes)
    asked_of = teacher.classifier if isinstance(teacher, Box) else teacher
    if isinstance(asked_of, Classifier):
        other = settings.other_class_names
        compare_class_names(asked_of.class_names, data.class_names, "teacher", other_class_names=other)
    if key is not None:
        if not isinstance(teacher, Box):
            raise ConfigError("a key opens a box, and this teacher is not one: leave the key out")
        teacher = ask(teacher, key, settings)
    check_batches(learner, data, settings)
    learner.learns_from(data.class_names, data.pictures)
    device = join(settings.device)
    batches = repeated(train_batches(data, settings, device), settings.views)
    teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    learner.to(device)
    # A remote teacher keeps its answers itself, on disk.
    remote = isinstance(teacher, RemoteTeacher)
    if not remote:
        check_finite(teacher, "teacher")
    if not isinstance(teacher, (RemoteTeacher, Box, Classifier)):
        check(teacher, data.image_shape, data.num_classes, device)
    target = asked(teacher) if remote else answers(teacher, batches, data.num_classes)
    validation = evaluation_batches(data.validation, device)
    records = fit(
        learner,
        distillation_step(target, settings),
        batches,
        settings,
        evaluate=lambda: evaluate(learner, validation),
        monitor="accuracy",
        run=run,
        progress=as_progress(progress, "distill"),
    )
    if history is not None:
        history.extend(records)
    # A caller's module gets its weights back in the usual layout, as files of weights want them.
    if student is not learner:
        student.to(memory_format=torch.contiguous_format)  # ty: ignore[no-matching-overload]
    return student


def ask(box: Box, key: Key, settings: DistillSettings) -> nn.Module:
    """What a key makes of a box: the partner's module, or an attacker's try with a foreign key."""
    return box.attempt(key) if settings.foreign_key else box.unlock(key)


def check_loss(settings: DistillSettings, num_classes: int) -> None:
    """Refuse a distillation term that teaches nothing, whatever the teacher answers.

    Raises:
        ConfigError: naming the field, why, and what to use.
    """
    weights = settings.dkd_target_weight, settings.dkd_rest_weight
    why = losses.no_content(settings.loss, num_classes, *weights)
    if settings.kd_weight and why:
        raise ConfigError(f"loss: {settings.loss!r} teaches nothing here: {why}")


def distillation_step(teacher: Ask, settings: DistillSettings) -> StudentStep:
    """Loss terms of a student: kd_weight * distillation + ce_weight * cross-entropy."""
    terms: dict[str, Callable[..., Tensor]] = {
        "kd": losses.kd_term,
        "dkd": losses.dkd_term,
        "dist": losses.dist_term,
        "standardised_kd": losses.standardised_kd_term,
    }
    term = terms[settings.loss]
    arguments: dict[str, Any] = {"temperature": settings.kd_temperature}
    if settings.loss == "dkd":
        arguments |= {"target_weight": settings.dkd_target_weight, "rest_weight": settings.dkd_rest_weight}

    def step(forward: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        target = teacher(batch)
        logits = forward(batch.images)
        # A thief without labels takes the teacher's answer for the label where a loss asks for one.
        labels = batch.labels if settings.labels else target.argmax(dim=1)
        result = {}
        if settings.kd_weight:
            result["distillation"] = settings.kd_weight * term(logits, target, labels, **arguments)
        if settings.ce_weight:
            result["cross_entropy"] = settings.ce_weight * losses.cross_entropy(
                logits, labels, settings.label_smoothing
            )
        return result

    return step
