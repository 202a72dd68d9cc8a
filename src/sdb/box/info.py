"""What a box says of itself, as its manifest holds it; all of it is public."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdb.answers.levels import Level
from sdb.config import MANIFEST
from sdb.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class BoxInfo:
    """What a box says of itself; all of it is public.

    Attributes:
        method: how it was made.
        parameters: of the method, for the record.
        class_names: in label order.
        key_ids: one-way ids of the keys it opens for; empty for a method without keys.
        key_kind: "image", "weight", or "" without keys.
        slots: of a weight-key box, by key id, hexadecimal: the content secret under the partner's key.
        owner_id: one-way id of the owner; "" without keys.
        measured: on validation images when it was made, fractions: teacher_, keyless_ and keyed_ accuracy,
            calibration_error, brier and auroc, the number of images, and bits: what an answer says beyond its class;
            empty in boxes of an earlier sdb.
        levels: of confidence in keyless answers, from the least sure; empty where confidence is not honest.
        id: random name of this box.
    """

    method: str
    parameters: dict[str, Any]
    class_names: tuple[str, ...]
    key_ids: tuple[str, ...] = ()
    key_kind: str = ""
    slots: dict[str, str] = field(default_factory=dict)
    owner_id: str = ""
    measured: dict[str, float] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()
    id: str = field(default_factory=lambda: os.urandom(16).hex())


def measurements(value: Any, path: Path) -> dict[str, float]:
    """The numbers that a manifest holds of how its box did.

    Raises:
        CheckpointError: they are something else.
    """
    whole = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if not whole or not all(type(number) in (int, float) and math.isfinite(number) for number in value.values()):
        raise CheckpointError(
            f"{path}: {MANIFEST}: measured must be finite numbers by name; restore it from a copy"
        )
    return {name: float(number) for name, number in value.items()}


def levels_of(value: Any, path: Path) -> tuple[Level, ...]:
    """The levels of confidence that a manifest holds.

    Raises:
        CheckpointError: they are something else.
    """
    try:
        levels = tuple(Level(**each) for each in value)
        whole = all(
            type(level.images) is int
            and level.images >= 0
            and all(
                type(each) in (int, float) and 0 <= each <= 1 for each in (level.accuracy, level.low, level.high)
            )
            for level in levels
        )
    except TypeError:
        whole, levels = False, ()
    if not whole:
        raise CheckpointError(
            f"{path}: {MANIFEST}: levels must be a list of images, accuracy, low and high; restore it from a copy"
        )
    return levels
