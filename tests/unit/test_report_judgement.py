"""The one rule of promises: each edge of it, where it must not be fooled, and that an excess never helps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.report.intervals import (
    Difference,
    difference,
    half_width,
    percent,
    points,
    points_and_half,
    t_half,
    t_quantile,
    wilson,
)
from sdb.report.judgement import NOT_MEASURED, TOO_SMALL, Judged, Judgement, judge_excess, not_settled, together

BROKEN, OPEN, ESTABLISHED = Judgement.BROKEN, Judgement.NOT_SETTLED, Judgement.ESTABLISHED
RANK = {BROKEN: 0, OPEN: 1, ESTABLISHED: 2}
FEW = "too few seeds ({}; 3 are needed)".format


def excess(value, half, *, lowest=-1.0, clear=0.01, seeds=3):
    return Difference(value, half, clear, lowest, seeds)


@pytest.mark.parametrize(
    ("found", "allowed", "judgement", "reasons"),
    [
        # Beyond chance: at its half-width, not before.
        (excess(0.02, 0.02), 0.0, BROKEN, ()),
        (excess(0.0199, 0.02), 0.0, OPEN, (TOO_SMALL,)),
        (excess(-0.02, 0.02), 0.0, ESTABLISHED, ()),
        # What is allowed moves the edge.
        (excess(0.0245, 0.02), 0.005, OPEN, (TOO_SMALL,)),
        (excess(0.0251, 0.02), 0.005, BROKEN, ()),
        # Every seed above by the images' half-width, though their spread hides it.
        (excess(0.03, 0.06, lowest=0.01), 0.0, BROKEN, ()),
        (excess(0.03, 0.06, lowest=0.0099), 0.0, OPEN, (TOO_SMALL,)),
        (excess(0.03, 0.06, lowest=0.0149), 0.005, OPEN, (TOO_SMALL,)),
        (excess(0.03, 0.06, lowest=0.0151), 0.005, BROKEN, ()),
        (excess(0.03, 0.06, lowest=0.02, seeds=2), 0.0, OPEN, (FEW(2),)),
        # Few seeds can break, not establish.
        (excess(-0.5, 0.02, seeds=1), 0.0, OPEN, (FEW(1),)),
        (excess(-0.5, 0.02, seeds=2), 0.0, OPEN, (FEW(2),)),
        (excess(0.05, 0.02, seeds=1), 0.0, BROKEN, ()),
        # A point within chance is no proof; nor is a test that cannot rule out five.
        (excess(0.01, 0.02), 0.0, OPEN, (TOO_SMALL,)),
        (excess(0.0099, 0.02), 0.0, ESTABLISHED, ()),
        (excess(0.0, 0.05), 0.0, OPEN, (TOO_SMALL,)),
        (excess(0.0, 0.0499), 0.0, ESTABLISHED, ()),
        (excess(-0.4, 0.19), 0.0, ESTABLISHED, ()),
        (excess(-0.1, 0.16), 0.0, OPEN, (TOO_SMALL,)),
        (None, 0.0, OPEN, (NOT_MEASURED,)),
    ],
)
def test_the_rule_at_its_edges(found, allowed, judgement, reasons):
    judged = judge_excess(found, allowed)
    assert (judged.judgement, judged.reasons) == (judgement, reasons)
    assert judged.smallest == (None if found is None else pytest.approx(allowed + found.half))


def test_together_one_break_breaks_and_one_open_keeps_open():
    kept, broken, small = Judged(ESTABLISHED, (), 0.02), Judged(BROKEN, (), 0.04), not_settled(TOO_SMALL, 0.03)
    assert together([kept, kept]) == kept
    assert together([kept, broken, small]) == Judged(BROKEN, (), 0.04)
    assert together([kept, small]) == not_settled(TOO_SMALL, 0.03)
    both = together([small, not_settled("a"), small, kept])
    assert both == Judged(OPEN, (TOO_SMALL, "a"), 0.03), "each reason once, in order"
    assert together([]) == not_settled(NOT_MEASURED)


@settings(max_examples=300, deadline=None)
@given(
    images=st.integers(1, 2000),
    bars=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    allowed=st.sampled_from([0.0, 0.005]),
    data=st.data(),
)
def test_raising_a_student_never_helps_a_box(images, bars, allowed, data):
    bar = [round(b * images) for b in bars]
    ours = [data.draw(st.integers(0, images)) for _ in bar]
    more = data.draw(st.integers(0, images - max(ours)))

    def found(counts):
        return difference([c / images for c in counts], [b / images for b in bar], images)

    before, after = found(ours), found([count + more for count in ours])
    assert after.above - after.below >= before.above - before.below
    assert RANK[judge_excess(after, allowed).judgement] <= RANK[judge_excess(before, allowed).judgement]


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [*range(1, 31), 60, 200])
def test_the_quantiles_are_those_of_students_t(freedom):
    x = np.linspace(0, t_quantile(freedom), 200_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    inside = 2 * np.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_the_half_width_is_the_larger_of_images_and_seeds():
    one = difference([0.9], [0.95], 500)
    p, q = 451 / 502, 476 / 502
    assert one.half == one.clear == pytest.approx(1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / 502), rel=1e-4)
    equal = difference([0.9] * 4, [0.95] * 4, 500)
    assert equal.half == pytest.approx(one.half), "four seeds are tested on the same images"
    spread = difference([0.80, 0.90, 1.00], [0.95] * 3, 500)
    assert spread.half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert spread.clear == pytest.approx(one.clear)
    assert (spread.value, spread.lowest, spread.seeds) == (pytest.approx(-0.05), pytest.approx(-0.15), 3)
    assert difference([0.3] * 3, [0.1 + 0.2] * 3, 500).value == 0, "not by rounding"
    assert t_half([0.1, 0.9]) == 0
    assert t_half([0.1, 0.9, 0.5]) == pytest.approx(4.303 * 0.4 / math.sqrt(3))
    assert half_width([0.80, 0.90, 1.00], 500) == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    low, high = wilson(0.9, 500)
    assert half_width([0.9], 500) == half_width([0.85, 0.95], 500) == pytest.approx((high - low) / 2)


def test_the_seeds_are_compared_one_by_one():
    paired = difference([0.80, 0.85, 0.90], [0.81, 0.86, 0.91], 10_000)
    assert paired.value == pytest.approx(-0.01)
    assert paired.half == pytest.approx(paired.clear)
    with pytest.raises(ValueError, match="zip"):
        difference([0.9, 0.9], [0.9], 10)


@pytest.mark.parametrize(
    ("ours", "above", "below"),
    [
        ([0.95], False, False),
        ([0.972], False, False),
        ([0.975], True, False),
        ([0.917], False, True),
        ([0.920], False, False),
        # Every seed gains, but one so much more that the spread alone would hide it.
        ([0.976, 0.976, 0.999], True, False),
        ([0.940, 0.950, 0.990], False, False),
        ([0.976, 0.999], True, False),
    ],
)
def test_gains_and_losses_are_told_from_chance(ours, above, below):
    found = difference(ours, [0.95] * len(ours), 500)
    assert (found.above, found.below) == (above, below)


@pytest.mark.parametrize("accuracies", [[1.0], [0.0], [0.7, 0.8, 0.9]])
def test_what_is_the_same_is_neither_above_nor_below(accuracies):
    found = difference(accuracies, accuracies, 360)
    assert (found.value, found.above, found.below) == (0, False, False)


def test_few_images_that_are_all_right_show_nothing():
    assert judge_excess(difference([1.0] * 3, [1.0] * 3, 10)).judgement is OPEN
    assert judge_excess(difference([1.0] * 3, [1.0] * 3, 360)).judgement is ESTABLISHED


def test_below_begins_at_the_half_width():
    assert [excess(value, 0.02).below for value in (-0.0201, -0.02, -0.0199, 0.0, 0.02)] == [
        True,
        True,
        *[False] * 3,
    ]


def test_wilson():
    for images in range(1, 300):
        (low, _), (_, high) = wilson(0.0, images), wilson(1.0, images)
        assert low >= 0
        assert high <= 1
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 360) == pytest.approx((0.98944, 1.0), abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)


def test_numbers_as_text():
    assert percent(0.98765) == "98.8\u00a0%"
    assert percent(1.0, 0) == "100\u00a0%"
    assert [points(v) for v in (0.0123, -0.0123, 0.0, -0.0002)] == ["+1.2", "−1.2", "0.0", "0.0"]
    assert points(0.01234, 2) == "+1.23"
    assert points_and_half(-0.0123, 0.5) == "−1.2\u00a0±\u00a050.0"


def test_two_that_are_the_same_are_neither_above_nor_below():
    """Students of equal answers agree in every pair, so their difference has no spread."""
    same = Difference(0.0, 0.0, 0.0, 0.0, 24)
    assert not same.above and not same.below
    assert judge_excess(same).judgement is Judgement.ESTABLISHED
