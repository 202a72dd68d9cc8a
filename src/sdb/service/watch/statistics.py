"""What is measured of queries and answers: small, of fixed size, without a library for statistics."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# Distances are taken between pictures of at most this many pixels a side, all channels averaged.
THUMBNAIL_SIDE = 8


@dataclass(frozen=True, slots=True)
class Traits:
    """What is used of queries and their answers.

    Attributes:
        small: thumbnails, float32 (N, D), D at most 64.
        texture: mean absolute difference of neighbouring pixels, float32 (N,): noise has much of it.
        predicted: class (N,).
        confidence: its probability (N,).
    """

    small: np.ndarray
    texture: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, rows: slice | np.ndarray) -> Traits:
        return Traits(self.small[rows], self.texture[rows], self.predicted[rows], self.confidence[rows])


def traits(images: np.ndarray, logits: np.ndarray) -> Traits:
    """Traits of images (N, C, H, W) in [0, 1] and logits (N, K)."""
    grey = images.astype(np.float32, copy=False).mean(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return Traits(thumbnails(grey), textures(grey), logits.argmax(axis=1), 1.0 / np.exp(shifted).sum(axis=1))


def thumbnails(grey: np.ndarray) -> np.ndarray:
    """Grey images (N, H, W) averaged over blocks, (N, D). Linear: what two images share, their thumbnails share."""
    for axis in (1, 2):
        size = grey.shape[axis]
        if size > THUMBNAIL_SIDE:
            edges = np.arange(THUMBNAIL_SIDE) * size // THUMBNAIL_SIDE
            counts = np.diff(np.append(edges, size)).astype(np.float32)
            shape = [1, 1, 1]
            shape[axis] = THUMBNAIL_SIDE
            grey = np.add.reduceat(grey, edges, axis=axis) / counts.reshape(shape)
    return np.ascontiguousarray(grey.reshape(len(grey), -1))


def textures(grey: np.ndarray) -> np.ndarray:
    """Mean absolute difference of neighbouring pixels of grey images (N, H, W), float32 (N,)."""
    parts = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2) if grey.shape[axis] > 1]
    return (sum(parts, start=np.zeros(len(grey))) / max(1, len(parts))).astype(np.float32)


def shapiro_francia(values: np.ndarray) -> float:
    """How straight the normal plot of values (N,) is: W' in (0, 1], 1 for a normal sample, 0 where all are equal.

    The squared correlation of the ordered values with the expected ones of a normal sample (Blom's approximation).
    Source: Shapiro and Francia, JASA 67 (1972) 215-216. PRADA (Juuti et al., arXiv 1805.02628) has Shapiro-Wilk's W,
    which weighs the same order statistics by their covariances and behaves alike.
    """
    count = len(values)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    expected = _normal_scores(count)
    centred = ordered - ordered.mean()
    spread = float(centred @ centred)
    if spread <= 1e-18 * max(1.0, float(ordered @ ordered)):
        return 0.0
    return float((centred @ expected) ** 2 / (spread * float(expected @ expected)))


def without_outliers(values: np.ndarray, deviations: float = 3.0) -> np.ndarray:
    """Values within some standard deviations of their mean, as PRADA drops the others before its test."""
    spread = values.std()
    return values[np.abs(values - values.mean()) <= deviations * spread] if spread > 0 else values


def largest_gap(values: np.ndarray, quantiles: np.ndarray) -> float:
    """Largest distance of two distribution functions: of values (N,) and of what the quantiles (Q,) describe.

    The Kolmogorov-Smirnov statistic, with the reference known at Q evenly spaced probabilities, ends included.
    """
    ordered = np.sort(values)
    reference = np.interp(ordered, quantiles, np.linspace(0.0, 1.0, len(quantiles)))
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - reference).max(), (reference - steps[:-1]).max()))


_SCORES: dict[int, np.ndarray] = {}


def _normal_scores(count: int) -> np.ndarray:
    if count not in _SCORES:
        if len(_SCORES) > 256:
            _SCORES.clear()
        normal = NormalDist()
        _SCORES[count] = np.array([normal.inv_cdf((i - 0.375) / (count + 0.25)) for i in range(1, count + 1)])
    return _SCORES[count]
