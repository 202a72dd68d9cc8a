"""Choose images by a seed: for validation, for a test set where there is none, or to train on fewer."""

import numpy as np


def stratified(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Part a set in two so that each class is parted alike.

    The second part has round(fraction * N) images. Each class gives its share rounded down, and the classes
    with the largest remainders one more (ties: the lower label).

    Args:
        labels: int64 (N,).
        fraction: of the images that go to the second part, in [0, 1].
        seed: of numpy's default_rng.

    Returns:
        Positions of the first and of the second part, int64, each ascending.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * fraction
    takes = np.floor(shares).astype(np.int64)
    missing = round(len(labels) * fraction) - int(takes.sum())
    takes[np.argsort(-(shares - takes), kind="stable")[: max(missing, 0)]] += 1
    chosen = np.zeros(len(labels), bool)
    for label, take in zip(classes, takes, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:take]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def subset(size: int, fraction: float, *, seed: int) -> np.ndarray:
    """Choose round(fraction * size) positions, at least one, without regard to class.

    Args:
        size: number of images.
        fraction: in (0, 1].
        seed: of numpy's default_rng.

    Returns:
        int64 positions, ascending.

    Source: Nasty Teacher's `subset_percent`, which takes the first floor(fraction * N) of a shuffle by
    np.random.seed(230); same idea, other generator.
    """
    count = max(1, round(size * fraction))
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])
