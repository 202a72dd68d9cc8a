"""How sure a mean over seeds is, and a difference of two. Pure functions.

Two things make an accuracy uncertain: which test images there were, and the luck of training. The first gives a
binomial half-width, the second one from the spread over seeds (Student's t, from three seeds on). The larger counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

# The two-sided 95 % quantile of the normal distribution.
Z = 1.959964
# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# Fewer seeds than this say nothing usable about their spread.
FEWEST_SEEDS = 3


@dataclass(frozen=True)
class Difference:
    """How far one accuracy lies above another, in fractions.

    Attributes:
        value: Mean over seeds.
        half: 95 % half-width; at least `clear`.
        clear: Half-width that is due to the test images alone, above zero.
        lowest: The smallest difference of a single seed.
        seeds: How many.
    """

    value: float
    half: float
    clear: float
    lowest: float
    seeds: int

    def beyond(self, allowed: float) -> bool:
        """Whether it is above a fraction beyond chance.

        Also where every one of three or more seeds is above it by the half-width of the images: seeds that all
        gain, but unequally, must not hide each other's gain.
        """
        every = self.seeds >= FEWEST_SEEDS and self.lowest - allowed >= self.clear
        # Two that are the same have no spread, and none is above the other.
        return self.value > allowed and (self.value - allowed >= self.half or every)

    @property
    def above(self) -> bool:
        """Whether it is above zero beyond chance."""
        return self.beyond(0.0)

    @property
    def below(self) -> bool:
        """Whether it is below zero beyond chance."""
        return self.value < 0 and self.value <= -self.half


def wilson(accuracy: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion."""
    spread = Z * Z / count
    centre = (accuracy + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(accuracy * (1 - accuracy) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def t_quantile(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t; above 15 degrees of freedom by expansion, right to 0.001."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def t_half(values: Sequence[float]) -> float:
    """Half-width of a mean from the spread of its values; 0 for fewer than three."""
    if len(values) < FEWEST_SEEDS:
        return 0.0
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def half_width(accuracies: Sequence[float], images: int) -> float:
    """95 % half-width of a mean accuracy over seeds, each measured on so many images."""
    # All seeds are tested on the same images: more seeds do not make these more.
    low, high = wilson(fmean(accuracies), images)
    return max(t_half(accuracies), (high - low) / 2)


def difference(
    ours: Sequence[float], theirs: Sequence[float], images: int, *, luck: float = 0.0, wider: float = 1.0
) -> Difference:
    """Compare accuracies, seed by seed, each measured on so many images.

    Args:
        ours: fractions.
        theirs: fractions, of the same seeds.
        images: how many there were.
        luck: standard deviation of a difference that training alone makes, where it is known from elsewhere.
        wider: half-widths count so many times, where several differences are looked at and each could be luck.
    """
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    # One image right and one wrong are added to each side (Agresti and Caffo 2000): few images that are all answered
    # rightly do not show that nothing differs. All seeds are tested on the same images: more do not make these more.
    p, q = ((fmean(each) * images + 1) / (images + 2) for each in (ours, theirs))
    clear = wider * Z * math.sqrt((p * (1 - p) + q * (1 - q)) / (images + 2) + luck**2 / len(gaps))
    # Where all seeds agree the sum of their gaps must not differ from zero by rounding.
    return Difference(round(fmean(gaps), 12), max(wider * t_half(gaps), clear), clear, min(gaps), len(gaps))


def same_examples(only_ours: int, only_theirs: int, count: int) -> Difference:
    """How far one accuracy lies above another where both answered the same examples, once.

    Args:
        only_ours: examples that ours alone got right.
        only_theirs: examples that theirs alone got right.
        count: of all.

    Source: Agresti and Min, Statistics in Medicine 24 (2005): half an example is added to each of the four cells, so
    that few examples without a difference do not show that there is none.
    """
    total, gap = count + 2, only_ours - only_theirs
    half = Z * math.sqrt(only_ours + only_theirs + 1 - gap * gap / total) / total
    return Difference(gap / count, half, half, gap / count, 1)


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as text in per cent, with a space that does not break."""
    return f"{100 * fraction:.{digits}f}\u00a0%"


def points(value: float, digits: int = 1) -> str:
    """A signed difference of fractions in percentage points: `+1.2`, `−0.4`, `0.0`."""
    text = f"{abs(100 * value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\u2212") + text


def points_and_half(value: float, half: float) -> str:
    """A signed difference with its half-width, in points: `+1.2 ± 0.8`."""
    return f"{points(value)}\u00a0±\u00a0{100 * half:.1f}"
