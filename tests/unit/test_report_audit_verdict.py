"""The audit's verdict: the rule, what breaks it, what keeps it open, and that a better attack never helps a box."""

from __future__ import annotations

import copy
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.report import audit_words as words
from sdb.report.audit_verdict import Outcome, judge
from sdb.report.claim import read_claim
from sdb.report.intervals import difference, half_width, points, t_half, t_quantile

make_claim = runpy.run_path(str(Path(__file__).with_name("audit_claims.py")))["make_claim"]
# From worst to best.
RANK = {False: 0, None: 1, True: 2}


def verdict_of(**changes):
    claim = read_claim(make_claim(**changes))
    return claim, judge(claim)


def cell_of(verdict, attack, defence="box"):
    return next(c for c in verdict.cells if (c.defence, c.attack.name) == (defence, attack))


def cell_in(claim, attack, defence="box"):
    return next(c for c in claim["cells"] if (c["defence"], c["attack"]) == (defence, attack))


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 16, 25, 60])
def test_the_quantiles_are_those_of_students_t(freedom):
    x = np.linspace(0, t_quantile(freedom), 200_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    inside = 2 * np.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    assert inside == pytest.approx(0.95, abs=1e-4)


def test_the_half_width_is_the_larger_of_images_and_seeds():
    one = difference([0.9], [0.95], 500)
    assert one.half == pytest.approx(1.96 * math.sqrt((0.09 + 0.0475) / 500), rel=1e-4)
    equal = difference([0.9] * 4, [0.95] * 4, 500)
    assert equal.half == pytest.approx(one.half), "four seeds are tested on the same images"
    spread = difference([0.80, 0.90, 1.00], [0.95] * 3, 500)
    assert spread.half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)
    assert t_half([0.1, 0.9]) == 0
    assert half_width([1.0], 500) > 0


def test_the_seeds_are_compared_one_by_one():
    paired = difference([0.80, 0.85, 0.90], [0.81, 0.86, 0.91], 10_000)
    assert paired.value == pytest.approx(-0.01)
    assert paired.half == pytest.approx(paired.clear)


@pytest.mark.parametrize(
    ("ours", "above", "below"),
    [
        ([0.95], False, False),
        ([0.972], False, False),
        ([0.974], True, False),
        ([0.918], False, True),
        ([0.920], False, False),
        # Every seed gains, but one so much more that the spread alone would hide it.
        ([0.976, 0.976, 0.999], True, False),
        ([0.940, 0.950, 0.990], False, False),
    ],
)
def test_gains_and_losses_are_told_from_chance(ours, above, below):
    found = difference(ours, [0.95] * len(ours), 500)
    assert (found.above, found.below) == (above, below)


def test_two_perfect_scores_are_the_same():
    found = difference([1.0], [1.0], 360)
    assert not found.above
    assert not found.below


@settings(max_examples=300, deadline=None)
@given(
    images=st.integers(50, 2000),
    bars=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    data=st.data(),
)
def test_raising_a_student_never_lowers_its_outcome(images, bars, data):
    bar = [round(b * images) for b in bars]
    ours = [data.draw(st.integers(0, images)) for _ in bar]
    more = data.draw(st.integers(0, images - max(ours)))

    def rank(counts):
        found = difference([c / images for c in counts], [b / images for b in bar], images)
        return found.above - found.below

    assert rank([count + more for count in ours]) >= rank(ours)


def test_a_box_that_holds_passes():
    claim, verdict = verdict_of()
    assert verdict.passed is True
    assert verdict.api.passed is True
    assert words.summary(claim, verdict) == "Passed: the box holds behind an API"
    assert {c.outcome for c in verdict.api.cells} == {Outcome.STOPPED, Outcome.NO_GAIN}
    assert words.headline(claim, verdict).startswith(
        "Nobody who tried to copy the box by asking it gained anything."
    )


def test_one_gain_breaks_it():
    claim, verdict = verdict_of(broken="tuned_distil")
    assert verdict.passed is False
    assert [c.attack.name for c in verdict.api.having(frozenset({Outcome.GAIN}))] == ["tuned_distil"]
    assert words.headline(claim, verdict).startswith("The box can be copied by asking it.")
    assert "tuned_distil" in words.findings(claim, verdict)[0].sentence


def test_a_recovered_teacher_breaks_shipped_files_and_not_an_api():
    _, behind = verdict_of(threat="api")
    assert (behind.passed, behind.api.passed, behind.shipped.passed) == (True, True, False)
    claim, shipped = verdict_of(threat="shipped")
    assert shipped.passed is False
    cell = cell_of(shipped, "retrain_public")
    assert cell.outcome is Outcome.RECOVERED
    assert not cell.gap.above
    assert words.headline(claim, shipped).startswith("The box can be copied from its files.")
    assert verdict_of(threat="shipped", recovered=None)[1].passed is True


def test_an_attack_whose_control_failed_or_is_missing_shows_nothing():
    claim, verdict = verdict_of(failed_controls=("averager",))
    assert verdict.passed is None
    assert cell_of(verdict, "averager").outcome is Outcome.NOT_TRUSTED
    assert "averager" in words.findings(claim, verdict)[0].sentence
    for control in (None, "not run"):
        raw = make_claim()
        if control is None:
            del raw["controls"]["averager"]
        else:
            raw["controls"]["averager"]["positive"]["passed"] = None
        assert judge(read_claim(raw)).passed is None


def test_a_gain_counts_even_where_the_control_failed():
    _, verdict = verdict_of(broken="averager", failed_controls=("averager",))
    assert cell_of(verdict, "averager").outcome is Outcome.GAIN
    assert verdict.passed is False


def test_an_attack_that_failed_leaves_it_open_and_one_that_does_not_apply_does_not():
    assert verdict_of(failed=("distil",))[1].passed is None
    assert verdict_of(not_applicable=("random_keys", "labels"))[1].passed is True


def test_attacks_on_files_do_not_keep_an_api_open():
    assert verdict_of(failed=("pruning",), threat="api")[1].passed is True
    assert verdict_of(failed=("pruning",), threat="shipped", recovered=None)[1].passed is None


def test_what_a_thief_should_not_know_never_counts():
    _, verdict = verdict_of(broken="partial_key", threat="shipped", recovered=None)
    assert verdict.passed is True
    assert [c.outcome for c in verdict.leak] == [Outcome.GAIN]


def test_nothing_that_applies_is_nothing_shown():
    raw = make_claim()
    for cell in raw["cells"]:
        if cell["defence"] == "box":
            cell.update(status="not_applicable", seeds=[])
    claim = read_claim(raw)
    assert judge(claim).passed is None
    assert words.resolution(judge(claim).declared) is None


@pytest.mark.parametrize(
    ("lost", "passed", "status"),
    [(0.0, True, "As good"), (1.1, True, "Not settled"), (4.0, False, "Clearly worse")],
)
def test_users_must_not_pay(lost, passed, status):
    claim, verdict = verdict_of(lost=lost)
    assert verdict.passed is passed
    everyone = words.findings(claim, verdict)[2]
    assert (everyone.title, everyone.status) == ("Everyone who uses it", status)


def test_a_partner_must_get_what_the_teacher_gives():
    raw = make_claim()
    raw["defences"][-1]["partner"] = [0.90] * 3
    assert judge(read_claim(raw)).passed is False
    claim, verdict = verdict_of(key=False)
    assert verdict.passed is True
    assert words.findings(claim, verdict)[3].status == "Not tested"


def test_one_seed_and_dull_data_are_said():
    claim, verdict = verdict_of(seeds=1)
    assert "One seed." in [lead for lead, _ in words.caveats(claim, verdict)]
    dull = make_claim(seeds=3)
    dull["references"]["from_teacher"] = dull["references"]["label_smoothing"]
    found = read_claim(dull)
    assert "Little to steal." in [lead for lead, _ in words.caveats(found, judge(found))]
    claim, verdict = verdict_of(seeds=3)
    assert [lead for lead, _ in words.caveats(claim, verdict)] == ["Not for shipped files."]


def test_an_attack_that_learns_from_shuffled_answers_is_said():
    raw = make_claim()
    raw["controls"]["skeptical"]["negative"]["passed"] = False
    claim = read_claim(raw)
    assert any("skeptical" in text for _, text in words.caveats(claim, judge(claim)))


def test_the_rule_states_resolution_and_false_alarms():
    _, verdict = verdict_of()
    least, most = words.resolution(verdict.declared)
    text = words.rule(verdict)
    assert f"{100 * least:.1f} to {100 * most:.1f} points" in text
    assert "With 12 comparisons, about 0.3" in text


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_better_attack_never_helps_the_verdict(data):
    raw = make_claim(
        seeds=data.draw(st.sampled_from([1, 3])),
        threat=data.draw(st.sampled_from(["api", "shipped"])),
        recovered=None,
        failed_controls=data.draw(st.sampled_from([(), ("averager",), ("pruning", "distil")])),
    )
    attack = data.draw(st.sampled_from([a["name"] for a in raw["attacks"] if a["name"] != "random_keys"]))
    better = copy.deepcopy(raw)
    trials = cell_in(better, attack)["seeds"]
    room = 500 - max(round(500 * trial["accuracy"]) for trial in trials)
    more = data.draw(st.integers(0, room))
    closed = data.draw(st.sampled_from([None, 0.2, 0.9]))
    for trial in trials:
        trial["accuracy"] = (round(500 * trial["accuracy"]) + more) / 500
        trial["gap_closed"] = max((v for v in (trial["gap_closed"], closed) if v is not None), default=None)
    before, after = judge(read_claim(raw)), judge(read_claim(better))
    assert RANK[after.passed] <= RANK[before.passed]
    for first, second in zip(before.threats, after.threats, strict=True):
        assert RANK[second.passed] <= RANK[first.passed]


def test_points_have_a_sign_unless_they_round_to_nothing():
    assert [points(v) for v in (0.0123, -0.0123, 0.0, -0.0002)] == ["+1.2", "−1.2", "0.0", "0.0"]
