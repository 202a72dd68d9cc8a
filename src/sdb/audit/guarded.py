"""The audit of a guard: what a thief gains from it, beside what the bare model gives; any inputs, any students.

    found = sdb.audit_guard(guard, (inputs, labels))     # examples that neither model nor guard has seen
    print(found.summary())

Students come in pairs: the same few examples, the same start, one for each way to learn. The best of several ways is
chosen on the students' own validation examples over all pairs; test examples only measure. How it is judged and worded
is in `sdb.report.guarded`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sdb.answers.guard import Guard, as_outputs, logits_of
from sdb.answers.ties import log_probabilities
from sdb.audit.cells import told
from sdb.audit.guard_learners import Learner, learner_of
from sdb.audit.guard_networks import size_of, take
from sdb.audit.guard_students import NewStudent, fitted, named_by
from sdb.audit.guard_ways import ways_of
from sdb.audit.regime import FEW_PER_CLASS, VALIDATION_SHARE
from sdb.errors import ConfigError, DataError
from sdb.report.guarded import GuardAudit
from sdb.report.intervals import FEWEST_SEEDS
from sdb.report.pairs import Scores
from sdb.runtime import derive_seed
from sdb.wrapping.guarded import as_labels, asked, honesty_by

PAIRS = 12


def audit_guard(
    guard: Guard,
    examples: tuple[Any, Any],
    *,
    outputs: Any = None,
    student: str | NewStudent | None = None,
    pairs: int = PAIRS,
    few: int = FEW_PER_CLASS,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> GuardAudit:
    """Measure what a thief gains from a guard, with one kind of student.

    The thief has a few labelled examples of each class and asks about these. Half of the examples of each class are for
    testing; from the others each pair draws its few, of which a fifth chooses among ways to learn.

    Args:
        guard: with its model, or without where `outputs` are given.
        examples: inputs that neither the model nor the guard's calibration has learned from, as `sdb.guard` takes them,
            and their labels int (N,).
        outputs: the model's for these inputs, float (N, C), where it is not to be asked.
        student: ngrams (texts), mlp or trees (tables), or a function from a seed to a fresh student: an object with
            fit(inputs, targets, weights) and predict(inputs), an estimator of scikit-learn's kind, or an `nn.Module`
            (`sdb.audit.guard_students` says more). By default ngrams for texts and mlp for tables.
        pairs: draws of the few examples, with a student seed each; at least 3.
        few: examples per class that a student has; at least 2.
        seed: of the draws and the students.
        on_progress: called with the number of pairs done, of all, and a name.

    Raises:
        ConfigError: a number is out of range; no model and no outputs; no built-in student takes such inputs.
        DataError: labels and inputs do not fit each other, or a class has too few examples.
        ModelError: the outputs are not what the guard was calibrated with; the student fails.
        MissingExtraError: scikit-learn is not installed.
    """
    started = time.perf_counter()
    if pairs < FEWEST_SEEDS or few < 2:
        raise ConfigError(
            f"pairs: {pairs}, few: {few}; give at least {FEWEST_SEEDS} pairs, and at least 2 examples per class"
        )
    inputs, given = examples
    classes = len(guard.info.class_names)
    labels = as_labels(given, size_of(inputs), classes)
    pool, test = halves(labels, few, seed)
    learner = learner_of(student, inputs, classes)
    if outputs is None:
        if guard.model is None:
            raise ConfigError("this guard has no model: Guard.load(path, model=...), or give outputs=")
        outputs = asked(guard.model, inputs, guard.info.class_names)
    bare = as_outputs(outputs, guard.info.class_names)
    if len(bare) != len(labels):
        raise DataError(f"outputs: {bare.shape} for {len(labels)} examples; give one row per example")
    answers = guard.answer(bare)
    logs = [log_probabilities(logits_of(each, guard.info.gives)) for each in (bare, answers)]
    scores: dict[str, list[tuple[float, float]]] = {}
    for pair in range(pairs):
        learned, choosing = draw(labels, pool, few, derive_seed(seed, "pair", pair))
        rows = (learned, test, choosing)
        for name, found in _pair(learner, rows, labels, *logs, derive_seed(seed, "student", pair)).items():
            scores.setdefault(name, []).append(found)
        if on_progress is not None:
            on_progress(pair + 1, pairs, "pairs")
    right = [each[test].argmax(axis=1) == labels[test] for each in logs]
    return GuardAudit(
        guard=guard.info.id,
        student=learner.name,
        classes=classes,
        few=few,
        learned=len(learned),
        choosing=len(choosing),
        test=len(test),
        seed=seed,
        levels=guard.rows.levels,
        stated_bits=guard.info.measured["bits"],
        bits=told(torch.from_numpy(answers[test])),
        users={
            f"{who}_{name}": value
            for who, shares, hits in zip(("teacher", "keyless"), logs, right, strict=True)
            for name, value in honesty_by(np.exp(shares[test].max(axis=1)), hits).items()
        },
        only_right=(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())),
        scores={name: Scores(*zip(*found, strict=True)) for name, found in scores.items()},
        seconds=time.perf_counter() - started,
    )


def _pair(
    learner: Learner,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: np.ndarray,
    bare: np.ndarray,
    answers: np.ndarray,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Accuracies of a pair's students on test and on validation examples, by way."""
    learned, *measured = rows
    inputs = take(learner.features, learned)
    asked_about = [(take(learner.features, each), labels[each]) for each in measured]
    found = {}
    for name, (targets, weights) in ways_of(labels[learned], bare[learned], answers[learned]).items():
        student = fitted(learner.new, inputs, targets, weights, seed)
        test, validation = (
            float((named_by(student, features, len(truth), bare.shape[1]) == truth).mean())
            for features, truth in asked_about
        )
        found[name] = (test, validation)
    return found


def turns(labels: np.ndarray) -> np.ndarray:
    """Of each example, how many of its class come before it, int64 (N,)."""
    place = np.argsort(np.argsort(labels, kind="stable"), kind="stable")
    return place - np.searchsorted(np.sort(labels), labels)


def halves(labels: np.ndarray, few: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples that students draw from, and those for testing: half of each class, at random.

    Raises:
        DataError: a class has fewer than twice as many as students draw, or there is one class alone.
    """
    counts = np.bincount(labels)
    there = np.flatnonzero(counts)
    scarce = there[counts[there] < 2 * few]
    if len(there) < 2 or len(scarce):
        which = f"{counts[scarce[0]]} of class {scarce[0]}" if len(scarce) else "no two classes"
        raise DataError(
            f"labels: {which}; {few} examples of a class for students need {2 * few} of it, half of them for testing: "
            "give more, lower few, or leave that class out"
        )
    mixed = np.random.default_rng(derive_seed(seed, "test")).permutation(len(labels))
    drawn = turns(labels[mixed]) < counts[labels[mixed]] // 2
    return np.sort(mixed[drawn]), np.sort(mixed[~drawn])


def draw(labels: np.ndarray, pool: np.ndarray, few: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A student's few examples of each class of a pool: those that it learns from, and a fifth that choose."""
    mixed = np.random.default_rng(seed).permutation(pool)
    turn, held = turns(labels[mixed]), max(1, round(VALIDATION_SHARE * few))
    return mixed[(turn >= held) & (turn < few)], mixed[turn < held]
