"""What is remembered of one principal's queries: rings of fixed size, and the statistics that follow from them."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from sdb.service.watch.profile import Profile
from sdb.service.watch.statistics import Traits, largest_gap, shapiro_francia, without_outliers

# Distinct images that a new one is compared with; a search that asks more images a round is not seen by distance.
REMEMBERED = 1_024
# Distinct images that input, answers and distances are judged by; near-duplicates that offsets are judged by; queries
# that their share is judged by.
WINDOW, OFFSETS, QUERIES = 128, 256, 1_024
CHUNK = 64
# Thumbnails nearer than this are of the same image.
SAME = 1e-4
# Differences of two pairs of images are the same offset from this cosine on.
PARALLEL = 0.95
# Near-duplicates below which nothing is said of their offsets.
FEWEST = 64
# Bits of the sketch that counts distinct images; a few thousand are told apart.
BITS = 1 << 15
_SALT = os.urandom(16)


class Ring:
    """The last `size` rows of values."""

    def __init__(self, size: int, *shape: int, dtype: type = np.float32) -> None:
        self._rows = np.zeros((size, *shape), dtype)
        self.seen = 0

    def push(self, rows: np.ndarray) -> None:
        """Append rows (N, ...), forgetting the oldest."""
        rows = rows[-len(self._rows) :]
        self._rows[(self.seen + np.arange(len(rows))) % len(self._rows)] = rows
        self.seen += len(rows)

    @property
    def rows(self) -> np.ndarray:
        """What is remembered, in no particular order."""
        return self._rows[: min(self.seen, len(self._rows))]

    @property
    def full(self) -> bool:
        """Whether rows were forgotten, or the next one will be."""
        return self.seen >= len(self._rows)


class Sketch:
    """One principal's queries, about 450 kB whatever was asked.

    Args:
        profile: what ordinary data look like, or None.
        size: of a thumbnail.
        classes: of the box.
    """

    def __init__(self, profile: Profile | None, size: int, classes: int) -> None:
        self._profile = profile
        self._known = Ring(REMEMBERED, size)
        self._known_class = Ring(REMEMBERED, dtype=np.int32)
        self._odd = Ring(WINDOW)
        self._confidence = Ring(WINDOW)
        self._distance = Ring(WINDOW)
        self._kind = Ring(QUERIES, dtype=np.int8)  # 0 new, 1 near another one, 2 the same again
        self._offset = Ring(OFFSETS, size)
        self._base = Ring(OFFSETS, size)
        self._bits = np.zeros(BITS, bool)
        self._per_class = np.zeros(classes, np.int64)
        self.queries = 0

    def add(self, queries: Traits) -> None:
        """Remember queries and their answers."""
        for start in range(0, len(queries), CHUNK):
            self._add_chunk(queries[start : start + CHUNK])
        self.queries += len(queries)

    def _add_chunk(self, queries: Traits) -> None:
        """Compare each query with the remembered ones and with the new ones before it in the chunk."""
        small, predicted, before = queries.small, queries.predicted, len(self._known.rows)
        everything = np.concatenate([self._known.rows, small])
        squares = _squares(small, everything)
        squares[:, before:][np.triu_indices(len(small))] = np.inf  # itself and what comes later
        near = self._near_radius(everything)
        kinds = np.zeros(len(small), np.int8)
        for row in range(len(small)):
            # What is near an earlier one is no image to compare with.
            nearest = int(squares[row].argmin())
            offset = small[row] - everything[nearest]
            length = float(np.linalg.norm(offset)) if np.isfinite(squares[row, nearest]) else np.inf
            if length < near:
                kinds[row] = 2 if length < SAME else 1
                squares[:, before + row] = np.inf
            if kinds[row] == 1:
                # A flat offset is a change of brightness, which ordinary users make too.
                self._offset.push((offset - offset.mean())[None])
                self._base.push(everything[nearest][None])
        squares[predicted[:, None] != np.concatenate([self._known_class.rows, predicted])] = np.inf
        in_class = np.sqrt(squares.min(axis=1))
        new = kinds == 0
        self._kind.push(kinds)
        self._distance.push(in_class[np.isfinite(in_class) & new])
        fresh = queries[new]
        self._known.push(fresh.small)
        self._known_class.push(fresh.predicted)
        self._confidence.push(fresh.confidence)
        if self._profile is not None:
            self._odd.push(self._profile.odd(fresh))
        self._count(fresh.small, fresh.predicted)

    def _near_radius(self, everything: np.ndarray) -> float:
        if self._profile is not None:
            return self._profile.near
        # Without a profile: a fraction of how far this principal's own images lie apart, as a root mean square.
        return 0.2 * float(np.sqrt(2.0 * everything.var(axis=0).sum()))

    def _count(self, small: np.ndarray, predicted: np.ndarray) -> None:
        for row, label in zip(np.round(small, 3), predicted, strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=_SALT).digest()
            bit = int.from_bytes(digest, "big") % BITS
            if not self._bits[bit]:
                self._bits[bit] = True
                self._per_class[label] += 1

    def statistics(self, coverage_images: int) -> dict[str, float]:
        """What the rings say, by name; a statistic that needs more queries first is left out.

        Args:
            coverage_images: distinct images, spread evenly over the classes, that are full coverage.
        """
        cap = max(1, coverage_images // len(self._per_class))
        found = {"coverage": float(np.minimum(self._per_class, cap).sum() / (cap * len(self._per_class)))}
        if len(self._offset.rows) >= FEWEST:
            found["offset"] = self._offset_share()
        if self._kind.full:
            found["near_duplicates"] = float((self._kind.rows == 1).mean())
        if self._odd.full and self._profile is not None:
            found["input"] = float(self._odd.rows.mean())
            found["answers"] = largest_gap(self._confidence.rows, self._profile.confidence)
        if self._distance.full:
            found["distances"] = 1.0 - shapiro_francia(without_outliers(self._distance.rows))
        return found

    def _offset_share(self) -> float:
        """Share of the last near-duplicates that differ from their image as one of another image does."""
        offsets, bases = self._offset.rows, self._base.rows
        lengths = np.linalg.norm(offsets, axis=1)
        unit = offsets / np.maximum(lengths, 1e-12)[:, None]
        alike = (unit @ unit.T > PARALLEL) & (lengths > SAME) & (lengths > SAME)[:, None]
        others = _squares(bases, bases) > SAME**2
        return float((alike & others).any(axis=1).mean())


def _squares(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared distances (N, M); in double precision, because near-duplicates differ by very little."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0.0)
