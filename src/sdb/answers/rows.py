"""Fixed rows: one answer per class, the same whatever the image, so that an answer says no more than the class."""

from __future__ import annotations

import torch
from torch import Tensor

from sdb.errors import ModelError

# By how much a row names its class, in logits, where the margin does not.
LEAD = 1e-3


def decoy_logits(decoys: list[list[int]], height: float, margin: float) -> Tensor:
    """The decoy answers as logits (C, C): row c has `height + margin` at c, `height` at its decoys, 0 elsewhere."""
    table = torch.zeros(len(decoys), len(decoys), dtype=torch.float32)  # whatever the default type is
    for label, chosen in enumerate(decoys):
        table[label, chosen] = height
        table[label, label] = height + margin
    return table


def named(answers: Tensor) -> Tensor:
    """Decoy answers (C, C) as rows: a class stands above its decoys even where the margin is 0."""
    return answers + LEAD * torch.eye(len(answers), device=answers.device, dtype=answers.dtype)


def answer(rows: Tensor, logits: Tensor) -> Tensor:
    """The row (N, C) of each image's top-1 class; logits (N, C) are the network's own, rows (C, C)."""
    return rows[logits.argmax(dim=1)]


def check_rows(rows: Tensor, classes: int) -> None:
    """Refuse rows that would not name their class.

    Raises:
        ModelError: they are not finite float32 logits (classes, classes), or row c is not highest at c.
    """
    if (
        rows.dtype != torch.float32
        or rows.shape != (classes, classes)
        or not torch.equal(rows.argmax(dim=1).cpu(), torch.arange(classes))
        or not bool(rows.isfinite().all())
    ):
        raise ModelError(
            f"answers are not finite float32 logits ({classes}, {classes}) whose row c is highest at c"
        )
