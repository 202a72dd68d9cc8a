"""What ordinary queries look like, as numbers fitted from the owner's validation images; no image is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdb.errors import ConfigError, DataError
from sdb.runtime import JSON_LIMIT, json_text, parse_json, read_bytes, write_atomic
from sdb.service.watch.statistics import Traits

VERSION = 1
# Fewer images describe nothing, and their principal components would show them.
MIN_IMAGES = 200
COMPONENTS = 16
# Images beyond these shares of the owner's are odd.
ODD_SHARE = 0.01
# Two images nearer than this share of the usual distance of nearest neighbours are near-duplicates.
NEAR_SHARE = 0.5
# Distinct images, spread over the classes, with which a thief has a student: about one for each training image.
COVERAGE_IMAGES = 1_000


@dataclass(frozen=True, slots=True)
class Profile:
    """Statistics of ordinary images and of a box's answers to them.

    Attributes:
        mean: (D,) of thumbnails.
        components: (P, D) principal components of thumbnails.
        variances: (P,) along them.
        residual: mean squared length of what they leave.
        score: least and largest distance from the mean that are not odd; a faint image is as odd as a far one.
        texture: lowest and highest that are not odd.
        near: distance below which two images are near-duplicates.
        confidence: (101,) percentiles of the top-1 probability.
        coverage_images: distinct images that cover the box.
        thresholds: statistic beyond which an alert is raised, by name.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    residual: float
    score: tuple[float, float]
    texture: tuple[float, float]
    near: float
    confidence: np.ndarray
    coverage_images: int = COVERAGE_IMAGES
    thresholds: dict[str, float] = field(default_factory=dict)

    def odd(self, queries: Traits) -> np.ndarray:
        """Which queries are unlike the owner's images; bool (N,)."""
        scores, texture = self.scores(queries.small), queries.texture
        inside = (scores >= self.score[0]) & (scores <= self.score[1])
        return ~(inside & (texture >= self.texture[0]) & (texture <= self.texture[1]))

    def scores(self, small: np.ndarray) -> np.ndarray:
        """Squared distances (N,) of thumbnails from the mean, each direction by its variance."""
        centred = small - self.mean
        along = centred @ self.components.T
        rest = (centred**2).sum(axis=1) - (along**2).sum(axis=1)
        return (along**2 / self.variances).sum(axis=1) + np.maximum(rest, 0.0) / self.residual

    def save(self, path: Path | str) -> None:
        """Write the profile as JSON.

        Raises:
            StorageError: it cannot be written.
        """
        values: dict[str, Any] = {"version": VERSION}
        for name, value in asdict(self).items():
            values[name] = np.round(value.astype(float), 6).tolist() if isinstance(value, np.ndarray) else value
        write_atomic(Path(path), (json_text(values, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a profile.

        Raises:
            ConfigError: it is missing, damaged, or of another version.
        """
        try:
            values = parse_json(read_bytes(Path(path), JSON_LIMIT))
            if values.pop("version") != VERSION:
                raise ValueError(f"version is not {VERSION}")
            for name in ("mean", "components", "variances", "confidence"):
                values[name] = np.asarray(values[name], dtype=np.float32)
                if not np.isfinite(values[name]).all():
                    raise ValueError(f"{name} is not finite")
            for name in ("texture", "score"):
                low, high = values[name]
                values[name] = float(low), float(high)
            for name in ("residual", "near"):
                values[name] = float(values[name])
            values["coverage_images"] = int(values["coverage_images"])
            values["thresholds"] = {str(kind): float(value) for kind, value in values["thresholds"].items()}
            profile = cls(**values)
            profile.scores(profile.mean[None])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: no usable profile ({error}); make one: sdb token profile BOX") from None
        return profile


def describe(queries: Traits, coverage_images: int = COVERAGE_IMAGES) -> Profile:
    """A profile without thresholds: half of the images give the components, the other half what is odd.

    Raises:
        DataError: too few images.
    """
    if len(queries) < MIN_IMAGES:
        raise DataError(f"a profile needs at least {MIN_IMAGES} images, not {len(queries)}: give more")
    first, second = queries.small[::2].astype(np.float64), queries.small[1::2]
    mean = first.mean(axis=0)
    _, lengths, directions = np.linalg.svd(first - mean, full_matrices=False)
    # What is constant in the data has variance 0: a floor keeps the rounding of 8-bit pixels from being odd.
    variances = np.maximum(lengths**2 / len(first), 1e-4)
    kept = min(COMPONENTS, len(variances))
    rest = max(float((lengths[kept:] ** 2).sum() / len(first)), 1e-3)
    profile = Profile(
        mean.astype(np.float32),
        directions[:kept].astype(np.float32),
        variances[:kept].astype(np.float32),
        rest,
        (0.0, float("inf")),
        _middle(queries.texture),
        NEAR_SHARE * _nearest(second),
        np.quantile(queries.confidence, np.linspace(0, 1, 101)).astype(np.float32),
        coverage_images,
    )
    return replace(profile, score=_middle(profile.scores(second)))


def _middle(values: np.ndarray) -> tuple[float, float]:
    """What is left of values (N,) when the odd ones are cut off, half at each end."""
    low, high = np.quantile(values, [ODD_SHARE / 2, 1 - ODD_SHARE / 2])
    return float(low), float(high)


def _nearest(small: np.ndarray) -> float:
    """Median distance of thumbnails (N, D) to the nearest other one; of the first thousand."""
    rows = small[:1000].astype(np.float64)
    squares = (rows**2).sum(axis=1)[:, None] + (rows**2).sum(axis=1) - 2 * rows @ rows.T
    np.fill_diagonal(squares, np.inf)
    return float(np.median(np.sqrt(np.maximum(squares.min(axis=1), 0.0))))
