"""Students in pairs: how much better one way to learn is than another, pair by pair. Pure functions.

The students of a pair have the same images and begin alike, so the luck of draw and seed cancels in their difference.
Among equal ways the best of many is chosen on the thief's own validation images; test images only measure.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from sdb.report.intervals import FEWEST_SEEDS, Difference, t_half


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracies of one way over the pairs, fractions.

    Attributes:
        test: on test images, pair by pair.
        validation: on the thief's own.
    """

    test: tuple[float, ...]
    validation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better one way is than another, pair by pair; fractions.

    Attributes:
        value: mean of the differences.
        half: half of its 95 % interval over pairs; infinite for fewer than three.
        pairs: their number.
        error: the standard error of the mean.
        lowest, highest: the smallest and the largest difference of a pair.
    """

    value: float
    half: float
    pairs: int
    error: float
    lowest: float
    highest: float

    @property
    def above(self) -> bool:
        """Whether it is above 0 beyond chance."""
        return self.pairs >= FEWEST_SEEDS and self.value > self.half

    def difference(self, wider: float = 1.0) -> Difference:
        """The same as a promise is judged by: all pairs are tested on the same images, so the pairs alone count.

        Args:
            wider: the half-width counts so many times, where several gains are looked at and each could be luck.
        """
        half = wider * self.half
        return Difference(self.value, half, half, self.lowest, self.pairs)


def best(scores: Mapping[str, Scores], names: Sequence[str]) -> str:
    """The way that is best on the thieves' own validation images; the first of equal ones."""
    return max(names, key=lambda name: (round(fmean(scores[name].validation), 12), -list(names).index(name)))


def gain(ours: Scores, theirs: Scores) -> Gain:
    """How much better `ours` is on test images."""
    gaps = [a - b for a, b in zip(ours.test, theirs.test, strict=True)]
    known = len(gaps) >= FEWEST_SEEDS
    error = stdev(gaps) / math.sqrt(len(gaps)) if known else math.inf
    return Gain(
        round(fmean(gaps), 12), t_half(gaps) if known else math.inf, len(gaps), error, min(gaps), max(gaps)
    )
