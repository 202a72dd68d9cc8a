"""Decoys: what a keyless box says instead of what it knows.

A secret map gives each class a few decoy classes. The keyless box is taught one soft answer a class: the class a little
above its decoys, all others far below. The answer depends on the class alone, so it carries nothing that labels do not,
it misleads who copies it (near-ties with wrong classes), and it marks the copy: the pairs are the owner's secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from sdb.errors import ConfigError

# Share of the other classes that may be decoys: those the teacher confuses least with the class.
CANDIDATE_SHARE = 2 / 3


def candidates(confusion: np.ndarray, num_decoys: int) -> list[list[int]]:
    """For each class the classes that may be its decoys, the least confused of the others.

    Args:
        confusion: (C, C), row c the teacher's mean soft output for images of class c.
        num_decoys: decoys per class; at least one candidate more than that is kept where there are enough classes, so
            that the choice stays secret.
    """
    return [unlike(row, label, num_decoys) for label, row in enumerate(confusion)]


def unlike(means: np.ndarray, label: int, num_decoys: int) -> list[int]:
    """The classes that may be decoys of one class, in their order, see `candidates`.

    Args:
        means: (C,), the teacher's mean soft output for images of the class.
        label: the class.
        num_decoys: as in `candidates`.
    """
    others = len(means) - 1
    size = max(min(num_decoys + 1, others), int(CANDIDATE_SHARE * others))
    order = np.argsort(means, kind="stable")
    return sorted(order[order != label][:size].tolist())


def decoy_map(secret: bytes, choices: Iterable[list[int]], num_decoys: int) -> list[list[int]]:
    """The secret choice of `num_decoys` among each class's candidates, the same for the same secret.

    Raises:
        ConfigError: there are not enough classes.
    """
    result = []
    for label, options in enumerate(choices):
        if not 1 <= num_decoys <= len(options):
            raise ConfigError(
                f"num_decoys: {num_decoys} is not in 1..{len(options)}, the classes that can be decoys"
            )
        stream = _integers(secret + f"/{label}".encode())
        pool = list(options)
        # Fisher-Yates, with unbiased draws from the secret's stream.
        for position in range(num_decoys):
            span = len(pool) - position
            draw = next(value for value in stream if value < 2**32 // span * span) % span
            pool[position], pool[position + draw] = pool[position + draw], pool[position]
        result.append(sorted(pool[:num_decoys]))
    return result


def _integers(seed: bytes) -> Iterator[int]:
    """Unbounded uniform 32-bit integers from a secret."""
    counter = 0
    while True:
        block = hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
        yield from (int.from_bytes(block[i : i + 4], "big") for i in range(0, 32, 4))
        counter += 1
