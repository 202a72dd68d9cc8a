"""Fixed rows: one answer per class and level of confidence, the same whatever the image.

An answer says the class and the level, and nothing more. The level is which of a few bins the network's own top-1
confidence falls in; `sdb.answers.levels` finds the bins and what is true at each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdb.errors import ModelError

# By how much a row names its class, in logits, where nothing else does.
LEAD = 1e-3
# Decoys keep at least a hundredth of the mass: students that copy answers inherit them.
HIGHEST = 0.99
# Share of what is not the class's that the classes beside the decoys get.
REST = 1e-3


def decoy_logits(decoys: list[list[int]], height: float, margin: float) -> Tensor:
    """The decoy answers as logits (C, C): row c has `height + margin` at c, `height` at its decoys, 0 elsewhere."""
    table = torch.zeros(len(decoys), len(decoys), dtype=torch.float32)  # whatever the default type is
    for label, chosen in enumerate(decoys):
        table[label, chosen] = height
        table[label, label] = height + margin
    return table


def honest_logits(labels: Tensor, accuracy: Tensor, decoys: Tensor) -> Tensor:
    """Answers (N, C) whose top value says how often they are right; nearly all of the rest is on the class's decoys.

    The class stands first whatever its accuracy, and its decoys keep at least 1 % of the mass: where that and the
    accuracy contradict each other, the accuracy gives way.

    Args:
        labels: the classes that stand first, int64 (N,).
        accuracy: fractions (N,).
        decoys: bool (C, C), whether a class is a decoy of the row's.
    """
    classes, lead = len(decoys), math.exp(LEAD)
    accuracy = accuracy.to(torch.promote_types(accuracy.dtype, torch.float32))  # not in half precision
    near = decoys[labels].to(accuracy.dtype)
    count = near.sum(dim=1)
    others = classes - 1 - count
    first = accuracy.clamp(lead / (classes - 1 + lead), HIGHEST)
    rest = 1 - first
    # Below the class, and above the other classes where there is room.
    decoy = torch.minimum(rest * (1 - REST * (others > 0)) / count, first / lead)
    other = (rest - decoy * count) / others.clamp(min=1)
    shares = torch.where(decoys[labels], decoy.unsqueeze(1), other.unsqueeze(1))
    return shares.scatter(1, labels.unsqueeze(1), first.unsqueeze(1)).log()


def as_mask(decoys: Sequence[Sequence[int]]) -> Tensor:
    """A decoy map, a list per class, as bool (C, C)."""
    mask = torch.zeros(len(decoys), len(decoys), dtype=torch.bool)
    for label, chosen in enumerate(decoys):
        mask[label, list(chosen)] = True
    return mask


class Rows(nn.Module):
    """Answers (N, C) to a network's logits (N, C): the row of the class and level.

    Args:
        rows: float32 logits (C, L, C); row (c, l) is highest at c.
        edges: float32 (C, L - 1), increasing along a class: the confidences above which its next level begins.

    Raises:
        ModelError: `rows` or `edges` is not of this form.
    """

    def __init__(self, rows: Tensor, edges: Tensor | None = None) -> None:
        super().__init__()
        if edges is None:  # of one level
            edges = torch.zeros(len(rows), 0, device=rows.device)
        _check_rows(rows)
        _check_edges(edges, rows)
        self.rows: Tensor
        self.edges: Tensor
        self.register_buffer("rows", rows)
        self.register_buffer("edges", edges)

    @classmethod
    def misleading(cls, answers: Tensor) -> Self:
        """One level: decoy answers (C, C) as they are trained, 58 % sure of everything with a margin of 1.

        A class stands above its decoys even where the margin is 0.
        """
        named = answers + LEAD * torch.eye(len(answers), device=answers.device, dtype=answers.dtype)
        return cls(named.unsqueeze(1))

    @property
    def classes(self) -> int:
        """Their number C."""
        return len(self.rows)

    @property
    def levels(self) -> int:
        """Their number L."""
        return self.rows.shape[1]

    def level(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Class and level of each answer, int64 (N,) both; of a network's logits (N, C)."""
        confidence, label = logits.float().softmax(dim=1).max(dim=1)
        return label, (confidence.unsqueeze(1) > self.edges[label]).sum(dim=1)

    def forward(self, logits: Tensor) -> Tensor:
        """The answers."""
        label, level = self.level(logits)
        return self.rows[label, level]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        """Also take rows of another number of levels; a state without edges is of one level, of an earlier sdb.

        Raises:
            ModelError: they are not of this form, or for another number of classes.
        """
        rows, edges = state_dict.get(prefix + "rows"), state_dict.get(prefix + "edges")
        if rows is not None and edges is not None:
            _check_rows(rows, len(self.rows))
            _check_edges(edges, rows)
            self.rows = torch.empty_like(rows, device=self.rows.device)
            self.edges = torch.empty_like(edges, device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)


def _check_rows(rows: Tensor, classes: int | None = None) -> None:
    """Refuse rows that would not name their class."""
    whole = rows.dtype == torch.float32 and rows.dim() == 3 and 0 not in rows.shape
    if whole and classes is None:
        classes = len(rows)
    if (
        not whole
        or (len(rows), rows.shape[2]) != (classes, classes)
        or not bool(rows.isfinite().all())
        or not bool((rows.argmax(dim=2).cpu() == torch.arange(len(rows)).unsqueeze(1)).all())
    ):
        shape = f"({classes or 'classes'}, levels, {classes or 'classes'})"
        raise ModelError(
            f"rows: {rows.dtype} {tuple(rows.shape)}: expected finite float32 logits {shape} whose row (c, level) is "
            "highest at c; make the box again, or restore it from a copy"
        )


def _check_edges(edges: Tensor, rows: Tensor) -> None:
    """Refuse edges that do not divide confidences into the levels of the rows."""
    wanted = (len(rows), rows.shape[1] - 1)
    if (
        edges.dtype != torch.float32
        or tuple(edges.shape) != wanted
        or not bool(edges.isfinite().all())
        or not bool((edges.diff(dim=1) > 0).all())
    ):
        raise ModelError(
            f"edges: {edges.dtype} {tuple(edges.shape)}: expected finite float32 {wanted}, increasing along each "
            "class; make the box again, or restore it from a copy"
        )
