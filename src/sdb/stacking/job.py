"""Runs of train and distill as one stack: many students in one loop, each into its own run folder as if alone.

A run folder does not tell that its student was in a stack: it can be gone on with alone (`sdb distill DIR --resume`),
and one that was begun alone can be gone on with in a stack, by students that are at the same epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdb.config import DistillParams, FitSettings, RunParams, TrainParams
from sdb.data import Batches, Splits
from sdb.distillation import distillation_step
from sdb.errors import ConfigError
from sdb.inputs import KEY, load_data, load_teacher, new_model, opened, partner_key
from sdb.jobs import JOBS, Result, test_accuracy
from sdb.models import Classifier
from sdb.runs import RESOLVED, epochs_done
from sdb.runtime import choose_device, keep_freed_memory, world
from sdb.stacking.folders import StackedRuns, open_runs
from sdb.stacking.stack import Stack, evaluate_stack, shared, stacked_step
from sdb.training import (
    Progress,
    StudentStep,
    best_epoch,
    cross_entropy_step,
    evaluation_batches,
    fit,
    train_batches,
)
from sdb.views import Ask, answers, repeated

# The command, the run folder and the parameters of one student.
Member = tuple[str, Path, Any]
COMMANDS = ("train", "distill")
# One loop has one network, one data set, one schedule; the losses and the teachers may differ.
AGREED = (*RunParams.model_fields, *FitSettings.model_fields)


def stack_job(
    members: Sequence[Member], *, resume: bool, overwrite: bool, progress: Progress | None
) -> list[Result]:
    """Train or distil students together; each has what its own job would have left in its folder.

    Args:
        members: what would be given to `train_job` or `distill_job`, for each.
        resume: go on with those that were begun, begin the others.
        overwrite: discard what is in the folders.
        progress: is told of every step and epoch of all.

    Returns:
        What each job would have returned, in order.

    Raises:
        ConfigError: the members cannot be trained together; the message names the field.
        TrainingError: a loss of one of them is no longer finite; all keep their last finished epoch.
    """
    check_members(members)
    groups: dict[int, list[int]] = {}
    for place, (_, folder, _) in enumerate(members):
        groups.setdefault(epochs_done(folder) if resume else 0, []).append(place)
    results: dict[int, Result] = {}
    for group in groups.values():
        if len(group) > 1:
            found = _stacked([members[place] for place in group], resume, overwrite, progress)
            results |= dict(zip(group, found, strict=True))
            continue
        command, folder, params = members[group[0]]
        begun = resume and (folder / RESOLVED).exists()
        results[group[0]] = JOBS[command](folder, params, resume=begun, overwrite=overwrite, progress=progress)
    return [results[place] for place in range(len(members))]


def check_members(members: Sequence[Member]) -> None:
    """Refuse what cannot be one stack.

    Raises:
        ConfigError: with the field that is at fault.
    """
    if len(members) < 2:
        raise ConfigError(f"a stack has two students or more, not {len(members)}: train a single one alone")
    if world().size > 1:
        raise ConfigError("a stack trains in one process, not under torchrun: its students are small")
    folders = [folder.resolve() for _, folder, _ in members]
    if len(set(folders)) < len(folders):
        raise ConfigError("two students of a stack have one folder: give each its own")
    first = agreed(members[0][2])
    for command, folder, params in members:
        if reason := refused(command, params):
            raise ConfigError(f"{folder}: {reason}; train it alone")
        for name, value in agreed(params).items():
            if value != first[name]:
                raise ConfigError(
                    f"{folder}: {name} is {value!r}, and {first[name]!r} in {members[0][1]}: students of a stack have "
                    "it in common"
                )


def refused(command: str, params: Any) -> str | None:
    """Why a run cannot be in any stack, field first; None where it can."""
    if command not in COMMANDS:
        return f"command: {command}; only {' and '.join(COMMANDS)} make students"
    if getattr(params, "teacher_url", None) is not None:
        return "teacher_url: a remote teacher is asked by one run at a time, which counts its queries"
    if params.clip_norm is not None:
        return (
            f"clip_norm: {params.clip_norm:g}; it would cut the gradient of all students together, so none would get "
            "the steps that it gets alone"
        )
    return None


def agreed(params: TrainParams | DistillParams) -> dict[str, Any]:
    """What the students of a stack have in common, as JSON values."""
    values = params.model_dump(mode="json", include=set(AGREED))
    # Without augmentation there is one view of an image, whatever is asked for.
    return values | {"views": getattr(params, "views", None) if params.augment else 1}


def _stacked(members: Sequence[Member], resume: bool, overwrite: bool, progress: Progress | None) -> list[Result]:
    """Train the students of one stack, which are all at one epoch."""
    every = [params for _, _, params in members]
    first = every[0]
    data = load_data(first, first.seed)
    device = choose_device(first.device)
    keep_freed_memory()
    views = next((params.views for params in every if isinstance(params, DistillParams)), None)
    batches = repeated(train_batches(data, first, device), views)
    # All that can be refused is refused before anything is written.
    learners = _learners(members, data, batches, device)
    stack = Stack([learner.student for learner in learners])
    validation = evaluation_batches(data.validation, device)
    wanted = [(folder, params.model_dump(mode="json")) for _, folder, params in members]
    try:
        with open_runs(wanted, device, resume=resume, overwrite=overwrite) as runs:
            stack.to(device)
            kept = StackedRuns(stack, runs)
            fit(
                stack,
                stacked_step([learner.step for learner in learners]),
                batches,
                first,
                evaluate=lambda: evaluate_stack(stack, validation),
                monitor="accuracy",
                run=kept,
                progress=progress,
            )
            results = []
            for student, learner, history in zip(stack.unstack(), learners, kept.histories, strict=True):
                result: Result = {"accuracy": test_accuracy(student, data)}
                if learner.teacher is not None:
                    result["teacher"] = learner.teacher
                results.append(result | {"best_epoch": best_epoch(history, "accuracy")["epoch"]})
            for run, result in zip(runs, results, strict=True):
                run.write_result(result)
    finally:
        if progress:
            progress.close()
    return results


@dataclass(frozen=True, slots=True)
class _Learner:
    """A student before training, its step, and its teacher's test accuracy."""

    student: Classifier
    step: StudentStep
    teacher: float | None


def _learners(members: Sequence[Member], data: Splits, batches: Batches, device: torch.device) -> list[_Learner]:
    """Students as their own jobs would begin them; those of one teacher ask it together."""
    teachers: dict[str, tuple[Ask, float]] = {}
    learners = []
    for command, folder, params in members:
        if command == "train":
            student = new_model(params, data, params.seed)
            learners.append(_Learner(student, cross_entropy_step(params), None))
            continue
        name = _teacher_of(folder, params)
        if name not in teachers:
            teacher = opened(load_teacher(params, data), partner_key(folder, params), params)
            frozen = teacher.to(device).eval().requires_grad_(False)
            teachers[name] = shared(answers(frozen, batches, data.num_classes)), test_accuracy(frozen, data)
        asked, accuracy = teachers[name]
        student = new_model(params, data, params.seed, "student")
        learners.append(_Learner(student, distillation_step(asked, params.resolved()), accuracy))
    return learners


def _teacher_of(folder: Path, params: DistillParams) -> str:
    """Students for which this is the same have the same teacher, asked in the same way."""
    names = {"teacher", "teacher_model", "teacher_args", "key", "key_blend", "foreign_key"}
    own_key = params.key is None and params.key_blend is not None  # it lies in the student's folder
    return params.model_dump_json(include=names) + (str(folder / KEY) if own_key else "")
