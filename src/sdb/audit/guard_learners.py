"""Kinds of students: those that are built in, by name, and anybody's; and what inputs each takes.

ngrams is a bag of words, pairs of words and parts of words, for texts and bytes. mlp, two hidden layers, and trees, a
random forest of scikit-learn's, are for tables of numbers.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sdb.audit.guard_networks import NgramNetwork, dense, hashed
from sdb.audit.guard_students import NewStudent, TableStudent, module_student
from sdb.errors import ConfigError, DataError, MissingExtraError

BUILT_IN = ("ngrams", "mlp", "trees")
# Width and epochs of the networks, number of trees.
NGRAMS, MLP, TREES = (48, 30), (64, 120), 200


@dataclass(frozen=True, slots=True)
class Learner:
    """A kind of student.

    Attributes:
        name: of it.
        features: of all examples, what its students take.
        new: a fresh one by a seed.
    """

    name: str
    features: Any
    new: NewStudent


def learner_of(student: str | NewStudent | None, inputs: Any, classes: int) -> Learner:
    """The kind of student that is asked for; ngrams for texts and mlp for tables where none is.

    Args:
        student: a name of `BUILT_IN`, a function from a seed to a student, or None.
        inputs: of all examples.
        classes: C.

    Raises:
        ConfigError: no such student is built in, or none fits the inputs.
        DataError: the built-in student does not take such inputs.
        MissingExtraError: scikit-learn is not installed.
    """
    if isinstance(student, nn.Module) or (hasattr(student, "fit") and not isinstance(student, type)):
        raise ConfigError(
            f"student: one {type(student).__name__}; many are trained: give a function from a seed to a fresh one"
        )
    if callable(student):
        name = getattr(student, "__name__", type(student).__name__)
        return Learner("the given student" if name == "<lambda>" else name, inputs, student)
    texts = _texts(inputs)
    if student is None:
        if texts is None and not _is_table(inputs):
            raise ConfigError(
                f"student: none of {', '.join(BUILT_IN)} takes {_described(inputs)}: give a function from a seed to an "
                "object with fit(inputs, targets, weights) and predict(inputs), or to an nn.Module"
            )
        student = "mlp" if texts is None else "ngrams"
    if student == "ngrams":
        if texts is None:
            raise DataError(
                f"inputs: {_described(inputs)}; ngrams reads texts: take mlp or trees, or give a student"
            )
        width, epochs = NGRAMS
        return Learner(
            student, hashed(texts), module_student(lambda _: NgramNetwork(width, classes), epochs=epochs)
        )
    if student == "mlp":
        table = _table(inputs, student)
        if not np.isfinite(table).all():
            raise DataError("inputs: NaN or infinity, which mlp does not take: fill them in, or take trees")
        network = lambda _: dense(table.shape[1], MLP[0], classes)  # noqa: E731
        return Learner(student, table, lambda seed: TableStudent(network(seed), seed, MLP[1]))
    if student == "trees":
        return Learner(student, _table(inputs, student), _trees())
    raise ConfigError(
        f"student: {student!r} is none of {', '.join(BUILT_IN)}; or give a function from a seed to one"
    )


def _trees() -> NewStudent:
    try:
        forest = importlib.import_module("sklearn.ensemble").RandomForestClassifier
    except ImportError:
        raise MissingExtraError("scikit-learn", "trees", "the student 'trees'") from None
    return lambda seed: forest(TREES, random_state=seed % 2**32)


def _texts(inputs: Any) -> list[Any] | None:
    """Texts or bytes as a list; None for other inputs."""
    if isinstance(inputs, Mapping) or getattr(inputs, "ndim", 1) != 1:
        return None
    found = list(inputs)
    return found if found and all(isinstance(each, str | bytes) for each in found) else None


def _is_table(inputs: Any) -> bool:
    return len(getattr(inputs, "shape", ())) == 2 and not isinstance(inputs, Mapping)


def _table(inputs: Any, student: str) -> np.ndarray:
    """Numbers float64 (N, columns)."""
    try:
        found = np.asarray(inputs, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.ndim != 2:
        raise DataError(
            f"inputs: {_described(inputs)}; {student} reads tables of numbers (N, columns): give a student"
        )
    return found


def _described(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return f"inputs by name ({', '.join(map(str, inputs))})"
    shape, kind = getattr(inputs, "shape", None), getattr(inputs, "dtype", None)
    return f"a {type(inputs).__name__}" if shape is None else f"{kind or 'numbers'} {tuple(shape)}"
