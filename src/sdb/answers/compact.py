"""Fixed rows for many classes: a row is computed from its level's accuracy and the class's decoys when it is given.

The same answers as `sdb.answers.rows.Rows`, which holds each row and is part of a network. Ten thousand classes take
half a megabyte here, and eight hundred there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sdb.answers.rows import HIGHEST, LEAD, REST
from sdb.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class CompactRows:
    """What is answered for a class and a level of confidence.

    Attributes:
        edges: float32 (C, L - 1), increasing along a class: the confidences above which its next level begins.
        told: float32 (C, L), the accuracy that is told, in (0, 1].
        decoys: int64 (C, K), of each class, none of them the class itself.

    Raises:
        ModelError: one of them is not of this form.
    """

    edges: np.ndarray
    told: np.ndarray
    decoys: np.ndarray

    def __post_init__(self) -> None:
        classes, levels = self.told.shape if self.told.ndim == 2 else (0, 0)
        whole = self.told.dtype == np.float32 and classes > 1 and levels > 0
        if not whole or not ((self.told > 0) & (self.told <= 1)).all():
            raise ModelError(f"told: {self.told.dtype} {self.told.shape}: expected float32 (C, L) in (0, 1]")
        if self.edges.dtype != np.float32 or self.edges.shape != (classes, levels - 1):
            raise ModelError(
                f"edges: {self.edges.dtype} {self.edges.shape}: expected float32 {(classes, levels - 1)}"
            )
        if not np.isfinite(self.edges).all() or not (np.diff(self.edges, axis=1) > 0).all():
            raise ModelError("edges: expected finite numbers, increasing along each class")
        own, ordered = np.arange(classes)[:, None], np.sort(self.decoys, axis=1)
        whole = self.decoys.dtype == np.int64 and self.decoys.ndim == 2 and len(self.decoys) == classes
        if not whole or not 1 <= self.decoys.shape[1] < classes or ordered.min() < 0 or ordered.max() >= classes:
            raise ModelError(f"decoys: {self.decoys.dtype} {self.decoys.shape}: expected int64 (C, K) of classes")
        if (self.decoys == own).any() or not (np.diff(ordered, axis=1) > 0).all():
            raise ModelError("decoys: a class is its own decoy, or has one twice")

    @property
    def classes(self) -> int:
        """Their number C."""
        return len(self.told)

    @property
    def levels(self) -> int:
        """Their number L."""
        return self.told.shape[1]

    def level(self, named: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """The level of each answer, int64 (N,), from its class and the confidence in it."""
        return (sure.astype(np.float32)[:, None] > self.edges[named]).sum(axis=1)

    def answers(self, named: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """Log-probabilities float64 (N, C) of the classes that are named, at the level of a confidence (N,)."""
        return self._filled(named, *(np.log(each) for each in self._shares(named, sure)))

    def shares(self, named: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """The same as probabilities."""
        return self._filled(named, *self._shares(named, sure))

    def _filled(self, named: np.ndarray, first: np.ndarray, decoy: np.ndarray, other: np.ndarray) -> np.ndarray:
        answers = np.empty((len(named), self.classes))
        answers[:] = other[:, None]
        np.put_along_axis(answers, self.decoys[named], decoy[:, None], axis=1)
        answers[np.arange(len(named)), named] = first
        return answers

    def _shares(self, named: np.ndarray, sure: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the class, of each of its decoys and of every other class; see `sdb.answers.rows.honest_logits`."""
        lead, count = math.exp(LEAD), self.decoys.shape[1]
        others = self.classes - 1 - count
        accuracy = self.told[named, self.level(named, sure)]
        first = accuracy.astype(np.float64).clip(lead / (self.classes - 1 + lead), HIGHEST)
        rest = 1 - first
        decoy = np.minimum(rest * (1 - REST * (others > 0)) / count, first / lead)
        return first, decoy, (rest - decoy * count) / others if others else decoy
