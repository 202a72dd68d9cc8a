"""The audit's verdict: the rule, what breaks it, what keeps it open, and that a better attack never helps a box."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.report import audit_words as words
from sdb.report.audit_verdict import Outcome, judge
from sdb.report.claim import read_claim
from sdb.report.intervals import half_width
from sdb.report.judgement import Judgement, together
from sdb.report.template import Tone

make_claim = runpy.run_path(str(Path(__file__).with_name("audit_claims.py")))["make_claim"]
BROKEN, OPEN, ESTABLISHED = Judgement.BROKEN, Judgement.NOT_SETTLED, Judgement.ESTABLISHED
# From worst to best.
RANK = {BROKEN: 0, OPEN: 1, ESTABLISHED: 2}


def verdict_of(**changes):
    claim = read_claim(make_claim(**changes))
    return claim, judge(claim)


def cell_of(verdict, attack, defence="box"):
    return next(c for c in verdict.cells if (c.defence, c.attack.name) == (defence, attack))


def cell_in(claim, attack, defence="box"):
    return next(c for c in claim["cells"] if (c["defence"], c["attack"]) == (defence, attack))


def test_a_box_that_holds_passes():
    claim, verdict = verdict_of()
    assert verdict.judged.judgement is ESTABLISHED
    assert verdict.api.judged.judgement is ESTABLISHED
    assert words.summary(claim, verdict).startswith("Established: the box holds behind an API (smallest gain")
    assert {c.outcome for c in verdict.api.cells} == {Outcome.STOPPED, Outcome.NO_GAIN}
    assert words.headline(claim, verdict).startswith(
        "Nobody who tried to copy the box by asking it gained anything beyond its classes."
    )


def test_a_small_loss_within_chance_is_not_a_pass():
    """Text, page and exit code say what `judge` found; once they disagreed here."""
    claim, verdict = verdict_of(lost=1.1)
    assert verdict.judged.judgement is OPEN
    assert words.summary(claim, verdict).startswith(
        "Not settled: this audit cannot say whether the box keeps its promises behind an API: the test is too small"
    )
    assert words.headline(claim, verdict).endswith("Whether its users pay for that is not settled.")
    found = words.findings(claim, verdict)[2]
    assert found.tone is Tone.OPEN
    assert found.sentence.startswith("The test is too small: 97.6")


def test_the_verdict_is_that_of_its_findings():
    """No page may show a verdict that its cards do not add up to, whatever is wrong with a box."""
    changes = [
        {},
        {"lost": 1.1},
        {"lost": 4.0},
        {"broken": "distil"},
        {"failed": ("distil",)},
        {"seeds": 1},
        {"threat": "shipped"},
        {"threat": "shipped", "recovered": None},
        {"key": False},
        {"failed_controls": ("averager",), "lost": 4.0},
    ]
    for change in changes:
        claim, verdict = verdict_of(**change)
        cards = [found for found in words.findings(claim, verdict) if found.declared]
        assert together(found.judged for found in cards).judgement is verdict.judged.judgement, change
        assert all(found.judged.smallest is not None for found in cards), change
        assert all("could have been seen: " in found.sentence for found in cards), change


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_settle_nothing_and_may_break(seeds):
    claim, verdict = verdict_of(seeds=seeds)
    assert verdict.judged.judgement is OPEN
    assert verdict.judged.reasons == (f"too few seeds ({seeds}; 3 are needed)",)
    assert f"too few seeds ({seeds}; 3 are needed)" in words.summary(claim, verdict)
    assert words.findings(claim, verdict)[0].sentence.startswith(
        f"Too few seeds ({seeds}; 3 are needed). The best"
    )
    assert verdict_of(seeds=seeds, broken="distil")[1].judged.judgement is BROKEN
    assert verdict_of(seeds=seeds, lost=8.0)[1].judged.judgement is BROKEN


def test_an_audit_without_attacks_settles_nothing():
    raw = make_claim()
    raw["attacks"], raw["cells"], raw["controls"] = [], [], {}
    claim = read_claim(raw)
    verdict = judge(claim)
    assert verdict.judged.judgement is OPEN
    assert verdict.judged.reasons == ("no attack of this kind applied",)
    assert words.findings(claim, verdict)[0].sentence == "No attack of this kind applied."
    assert (verdict.shipped, verdict.declared.strongest) == (None, None)


def test_a_box_with_a_key_that_was_not_tried_is_not_settled():
    raw = make_claim()
    raw["defences"][-1] |= {"partner": [None] * 3, "keyed": [None] * 3}
    claim = read_claim(raw)
    verdict = judge(claim)
    assert verdict.judged.reasons == ("no key was given, so no partner was trained",)
    found = words.findings(claim, verdict)[3]
    assert (found.status, found.judged.judgement) == ("Not tested", OPEN)
    # A box that no key opens has no partners, however the claim writes it; boxes made by the audit have one.
    for kind in (None, ""):
        raw["box"]["key_kind"] = kind
        assert judge(read_claim(raw)).judged.judgement is ESTABLISHED
    raw["box"] = None
    raw["defences"][-1]["name"] = "decoy"
    for cell in raw["cells"]:
        cell["defence"] = "decoy" if cell["defence"] == "box" else cell["defence"]
    assert judge(read_claim(raw)).judged.judgement is OPEN


def test_a_partner_of_some_seeds_is_held_against_those_seeds():
    raw = make_claim()
    taught = raw["references"]["from_teacher"]
    raw["defences"][-1]["partner"] = [None, taught[1] - 0.2, None]
    verdict = judge(read_claim(raw))
    assert verdict.partner.gap.value == pytest.approx(-0.2)
    assert verdict.partner.ours == (pytest.approx(taught[1] - 0.2), half_width([taught[1] - 0.2], 500))
    assert verdict.partner.theirs == (pytest.approx(sum(taught) / 3), half_width(taught, 500))
    assert verdict.partner.judged.judgement is BROKEN


def shares(raw, attack, value):
    for trial in cell_in(raw, attack)["seeds"]:
        trial["gap_closed"] = value


@pytest.mark.parametrize(
    ("share", "outcome", "judgement"),
    [
        (0.51, Outcome.RECOVERED, BROKEN),
        (0.5, Outcome.NEARER, OPEN),
        (0.11, Outcome.NEARER, OPEN),
        (0.1, Outcome.NO_GAIN, ESTABLISHED),
        (-3.0, Outcome.NO_GAIN, ESTABLISHED),
        (None, Outcome.NO_GAIN, ESTABLISHED),
    ],
)
def test_how_near_an_attack_may_come_to_the_teacher(share, outcome, judgement):
    raw = make_claim(threat="shipped", recovered=None)
    shares(raw, "retrain_public", share)
    claim = read_claim(raw)
    verdict = judge(claim)
    assert cell_of(verdict, "retrain_public").outcome is outcome
    assert verdict.judged.judgement is judgement
    if judgement is OPEN:
        assert verdict.judged.reasons == ("an attack came nearer the teacher than a thief gets alone",)
        sentence = words.findings(claim, verdict)[1].sentence.replace("\u00a0", " ")
        assert "(retrain_public) came nearer the teacher than a thief gets alone, by up to " in sentence
        assert f"by up to {100 * share:.0f} % of the way. The other " in sentence


def test_a_share_is_a_mean_over_the_seeds_that_have_one():
    raw = make_claim(threat="shipped", recovered=None)
    for trial, share in zip(cell_in(raw, "pruning")["seeds"], (0.9, None, 0.2), strict=True):
        trial["gap_closed"] = share
    assert cell_of(judge(read_claim(raw)), "pruning").gap_closed == pytest.approx(0.55)


def test_a_gain_counts_before_distrust_and_nearness():
    raw = make_claim(broken="distil", failed_controls=("distil",))
    shares(raw, "distil", 0.2)
    assert cell_of(judge(read_claim(raw)), "distil").outcome is Outcome.GAIN


@pytest.mark.parametrize(
    ("control", "passed", "reason"),
    [
        ("positive", False, "its positive control failed: there"),
        ("positive", None, "its positive control was not run: there"),
        ("negative", False, "its negative control failed: there"),
        ("negative", None, "its negative control was not run: there"),
    ],
)
def test_who_fails_a_control_is_not_trusted_and_why_is_said(control, passed, reason):
    raw = make_claim()
    raw["controls"]["averager"][control] |= {"passed": passed, "reason": "there"}
    claim = read_claim(raw)
    verdict = judge(claim)
    cell = cell_of(verdict, "averager")
    assert (cell.outcome, cell.trusted, cell.reason) == (Outcome.NOT_TRUSTED, False, reason)
    assert verdict.judged.reasons == ("an attack cannot be trusted",)
    text = words.findings(claim, verdict)[0].sentence
    assert "1 of 12 attacks failed or cannot be trusted (averager). The other 11 gained nothing clear." in text


def test_a_cell_says_what_its_trials_say():
    raw = make_claim()
    for number, trial in enumerate(cell_in(raw, "distil")["seeds"]):
        trial |= {"queries": 10 * number, "seconds": 1.0 + number, "agreement": 0.5 + 0.1 * number}
    cell = cell_of(judge(read_claim(raw)), "distil")
    assert (cell.queries, cell.seconds, cell.agreement) == (10, 2.0, pytest.approx(0.6))
    accuracies = [trial["accuracy"] for trial in cell_in(raw, "distil")["seeds"]]
    assert cell.accuracy == (pytest.approx(sum(accuracies) / 3), half_width(accuracies, 500))


def test_what_was_not_run_elsewhere_has_a_cell_that_says_so():
    _, verdict = verdict_of(everywhere=False)
    cell = cell_of(verdict, "pruning", "nasty")
    assert (cell.attack.name, cell.defence, cell.outcome, cell.judged) == (
        "pruning",
        "nasty",
        Outcome.NOT_RUN,
        None,
    )
    assert [each.attack.name for each in verdict.of("nasty")] == [each.attack.name for each in verdict.of("box")]
    assert {each.defence for each in verdict.of("nasty")} == {"nasty"}
    assert cell_of(verdict, "distil").reason == ""


def test_trials_in_another_order_are_held_against_their_own_seeds():
    raw = make_claim()
    for attack in ("distil", "averager"):
        cell_in(raw, attack)["seeds"].reverse()
    assert judge(read_claim(raw)) == judge(read_claim(make_claim()))


def test_the_strongest_is_the_one_farthest_above_the_bar():
    _, verdict = verdict_of()
    gaps = [cell.gap.value for cell in verdict.api.cells]
    assert verdict.api.strongest.gap.value == max(gaps)
    raw = make_claim(failed_controls=(verdict.api.strongest.attack.name,))
    assert judge(read_claim(raw)).api.strongest.attack.name != verdict.api.strongest.attack.name


def test_what_the_teacher_teaches_is_held_against_the_bar():
    raw = make_claim()
    raw["references"] |= {"from_teacher": [0.98] * 3, "bar": {"label smoothing": [0.94] * 3}}
    assert judge(read_claim(raw)).teaches.value == pytest.approx(0.04)


def test_an_audit_of_shipped_files_without_such_attacks_says_so():
    raw = make_claim(threat="shipped")
    kept = [row["name"] for row in raw["attacks"] if row["threat"] == "api"]
    raw["attacks"] = [row for row in raw["attacks"] if row["name"] in kept]
    raw["cells"] = [cell for cell in raw["cells"] if cell["attack"] in kept]
    raw["controls"] = {name: raw["controls"][name] for name in kept}
    assert judge(read_claim(raw)).shipped is not None
    raw["threat"] = "api"
    assert judge(read_claim(raw)).shipped is None


def test_one_gain_breaks_it():
    claim, verdict = verdict_of(broken="tuned_distil")
    assert verdict.judged.judgement is BROKEN
    assert [c.attack.name for c in verdict.api.having(frozenset({Outcome.GAIN}))] == ["tuned_distil"]
    assert words.headline(claim, verdict).startswith("The box can be copied by asking it.")
    assert "tuned_distil" in words.findings(claim, verdict)[0].sentence


def test_a_recovered_teacher_breaks_shipped_files_and_not_an_api():
    _, behind = verdict_of(threat="api")
    assert [each.judged.judgement for each in (behind, behind.api, behind.shipped)] == [
        ESTABLISHED,
        ESTABLISHED,
        BROKEN,
    ]
    claim, shipped = verdict_of(threat="shipped")
    assert shipped.judged.judgement is BROKEN
    cell = cell_of(shipped, "retrain_public")
    assert cell.outcome is Outcome.RECOVERED
    assert not cell.gap.above
    assert words.headline(claim, shipped).startswith("The box can be copied from its files.")
    assert verdict_of(threat="shipped", recovered=None)[1].judged.judgement is ESTABLISHED


def test_an_attack_whose_control_failed_or_is_missing_shows_nothing():
    claim, verdict = verdict_of(failed_controls=("averager",))
    assert verdict.judged.judgement is OPEN
    assert cell_of(verdict, "averager").outcome is Outcome.NOT_TRUSTED
    assert cell_of(verdict, "averager").reason == "its positive control failed", "no place was given"
    assert "averager" in words.findings(claim, verdict)[0].sentence
    for control in (None, "not run"):
        raw = make_claim()
        if control is None:
            del raw["controls"]["averager"]
        else:
            raw["controls"]["averager"]["positive"]["passed"] = None
        assert judge(read_claim(raw)).judged.judgement is OPEN


def test_a_gain_counts_even_where_the_control_failed():
    _, verdict = verdict_of(broken="averager", failed_controls=("averager",))
    assert cell_of(verdict, "averager").outcome is Outcome.GAIN
    assert verdict.judged.judgement is BROKEN


def test_an_attack_that_failed_leaves_it_open_and_one_that_does_not_apply_does_not():
    assert verdict_of(failed=("distil",))[1].judged.judgement is OPEN
    assert verdict_of(not_applicable=("random_keys", "labels"))[1].judged.judgement is ESTABLISHED


def test_attacks_on_files_do_not_keep_an_api_open():
    assert verdict_of(failed=("pruning",), threat="api")[1].judged.judgement is ESTABLISHED
    assert verdict_of(failed=("pruning",), threat="shipped", recovered=None)[1].judged.judgement is OPEN


def test_what_a_thief_should_not_know_never_counts():
    _, verdict = verdict_of(broken="partial_key", threat="shipped", recovered=None)
    assert verdict.judged.judgement is ESTABLISHED
    assert [c.outcome for c in verdict.leak] == [Outcome.GAIN]


def test_nothing_that_applies_is_nothing_shown():
    raw = make_claim()
    for cell in raw["cells"]:
        if cell["defence"] == "box":
            cell.update(status="not_applicable", seeds=[])
    claim = read_claim(raw)
    assert judge(claim).judged.judgement is OPEN
    assert words.resolution(judge(claim).declared) == ""


@pytest.mark.parametrize(
    ("lost", "judgement", "status"),
    [(0.0, ESTABLISHED, "As good"), (1.1, OPEN, "Not settled"), (4.0, BROKEN, "Clearly worse")],
)
def test_users_must_not_pay(lost, judgement, status):
    claim, verdict = verdict_of(lost=lost)
    assert verdict.judged.judgement is judgement
    everyone = words.findings(claim, verdict)[2]
    assert (everyone.title, everyone.status) == ("Everyone who uses it", status)


def test_a_partner_must_get_what_the_teacher_gives():
    raw = make_claim()
    raw["defences"][-1]["partner"] = [0.90] * 3
    assert judge(read_claim(raw)).judged.judgement is BROKEN
    claim, verdict = verdict_of(key=False)
    assert verdict.judged.judgement is ESTABLISHED
    assert len(words.findings(claim, verdict)) == 3, "a box that no key opens promises its partners nothing"


def test_one_seed_and_dull_data_are_said():
    claim, verdict = verdict_of(seeds=1)
    assert "One seed." in [lead for lead, _ in words.caveats(claim, verdict)]
    dull = make_claim(seeds=3)
    dull["references"]["from_teacher"] = dull["references"]["bar"]["label smoothing"]
    found = read_claim(dull)
    assert judge(found).judged.judgement is Judgement.NOTHING_AT_STAKE
    assert words.summary(found, judge(found)).startswith("Nothing at stake here: ")
    assert words.findings(found, judge(found))[0].status == "Nothing at stake"
    assert "Little to steal." in [lead for lead, _ in words.caveats(found, judge(found))]
    claim, verdict = verdict_of(seeds=3)
    assert [lead for lead, _ in words.caveats(claim, verdict)] == ["Not for shipped files."]


def test_an_attack_that_learns_from_shuffled_answers_is_said():
    raw = make_claim()
    raw["controls"]["skeptical"]["negative"]["passed"] = False
    claim = read_claim(raw)
    assert any("skeptical" in text for _, text in words.caveats(claim, judge(claim)))


def test_the_rule_states_resolution_and_the_bar():
    _, verdict = verdict_of()
    halves = [cell.gap.half for cell in verdict.declared.cells]
    assert (
        words.resolution(verdict.declared)
        == f"{100 * min(halves):.1f} to {100 * max(halves):.1f} points, by attack"
    )
    assert "the bar is the same small network trained alone on smoothed labels" in words.rule(verdict)


# --- pairs -----------------------------------------------------------------------------------------------------------


def with_pairs(gains, **changes):
    return verdict_of(seeds=1, pairs=gains, **changes)


def test_pairs_decide_where_there_are_some_and_one_seed_of_the_grid_is_enough():
    _, verdict = with_pairs({"labels": 0.1, "tuned_distil": -0.4})
    assert verdict.declared.judged.judgement is ESTABLISHED
    assert verdict.partner.judged.judgement is ESTABLISHED
    assert verdict.teaches.value == pytest.approx(0.024)
    assert {cell.attack.name for cell in verdict.api.cells if cell.judged is not None} == {
        "labels",
        "tuned_distil",
    }
    assert cell_of(verdict, "labels").gap.value == pytest.approx(0.001)
    assert verdict.declared.strongest.attack.name == "labels"
    # What was trained once leaves the users' side open, unless box and teacher are what they are.
    assert verdict.everyone.judged.judgement is OPEN
    raw = make_claim(seeds=1, pairs={"labels": 0.1}) | {"given": True}
    given = read_claim(raw)
    assert judge(given).judged.judgement is ESTABLISHED
    assert words.headline(given, judge(given)).startswith(
        "With 150 labelled images, a thief gains 2.4 points from the bare model and nothing that chance does not"
    )
    assert "; a partner gains 2.5 points. " in words.headline(given, judge(given))
    assert "measured again on 24 fresh students each" in words.rule(judge(given))


def test_an_attack_above_the_bar_on_fresh_students_breaks_the_box():
    claim, verdict = with_pairs({"labels": 1.5, "distil": -3.0})
    assert verdict.judged.judgement is BROKEN
    assert cell_of(verdict, "labels").outcome is Outcome.GAIN
    assert "a thief gains 2.4 points from the bare model and 1.5 points from the box" in words.headline(
        claim, verdict
    )


def test_an_attack_is_held_against_itself_on_classes_alone_where_that_beats_the_bar():
    """A better way to learn from top-1 answers is no leak."""
    raw = make_claim(seeds=1, pairs={"labels": 1.5})
    assert judge(read_claim(raw)).judged.judgement is BROKEN
    ways = raw["pairs"]["ways"]
    ways["top1/labels"] = {
        **ways["attack/labels"],
        "test": [each + 0.001 for each in ways["attack/labels"]["test"]],
    }
    verdict = judge(read_claim(raw))
    assert cell_of(verdict, "labels").gap.value == pytest.approx(-0.001)
    assert verdict.declared.judged.judgement is ESTABLISHED
    ways["top1/labels"]["test"] = [each - 0.2 for each in ways["attack/labels"]["test"]]
    assert cell_of(judge(read_claim(raw)), "labels").gap.value == pytest.approx(0.015)


def test_several_measured_attacks_need_more_than_one():
    """The best of five equal ones is often above; what is clear for one alone need not be clear for it."""
    halves = [with_pairs(dict.fromkeys(names, 0.4))[1] for names in (["labels"], ["labels", "distil", "clip"])]
    one, three = (cell_of(verdict, "labels").gap for verdict in halves)
    assert three.half / three.clear == one.half / one.clear == 1
    assert three.half > 1.15 * one.half


def test_where_the_bare_model_gives_nothing_no_attack_decides_and_a_gain_still_breaks():
    claim, verdict = with_pairs({"labels": -0.2, "bare": 0.1})
    assert verdict.declared.judged.judgement is Judgement.NOTHING_AT_STAKE
    assert words.story(claim, verdict) == ""
    assert with_pairs({"labels": 2.0, "bare": 0.1})[1].declared.judged.judgement is BROKEN


def test_one_cell_of_the_grid_that_is_above_by_luck_breaks_nothing():
    """An attack that was not measured again counts only beyond what the best of many equal ones would be."""
    quiet, loud = with_pairs({"labels": 0.0}, broken="averager")[1], with_pairs({"labels": 0.0})[1]
    assert cell_of(quiet, "averager").gap.value == pytest.approx(0.03, abs=0.006)
    assert cell_of(quiet, "averager").judged is None
    assert cell_of(loud, "averager").gap.half > verdict_of(seeds=1)[1].api.cells[0].gap.half
    raw = make_claim(seeds=1, pairs={"labels": 0.0}, teacher=80.0)
    for trial in cell_in(raw, "averager")["seeds"]:
        trial["accuracy"] = 0.99
    assert judge(read_claim(raw)).api.judged.judgement is BROKEN


def test_a_partner_clearly_below_the_teachers_student_breaks_a_promise():
    assert with_pairs({"labels": 0.0, "partner": 0.4})[1].partner.judged.judgement is BROKEN
    none = with_pairs({"labels": 0.0, "partner": None})[1].partner
    assert (none.gap, none.judged.reasons) == (None, ("no key was given, so no partner was trained",))


@pytest.mark.parametrize(
    ("box", "teacher", "lies"), [(0.015, 0.001, False), (0.4, 0.012, True), (0.05, 0.045, False)]
)
def test_confidence_that_is_not_what_it_says_breaks_the_users_promise(box, teacher, lies):
    raw = make_claim()
    raw["defences"][-1]["calibration_error"] = [box] * 3
    raw["references"]["calibration_error"] = [teacher] * 3
    claim = read_claim(raw)
    verdict = judge(claim)
    assert (verdict.everyone.judged.judgement is BROKEN) is lies
    found = words.findings(claim, verdict)[2]
    assert (found.status == "Not honest") is lies
    assert f"{100 * box:.1f} points off on average, the teacher's {100 * teacher:.1f}" in found.sentence
    assert ("Its confidence is not what it says." in words.headline(claim, verdict)) is lies


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
    assert RANK[after.judged.judgement] <= RANK[before.judged.judgement]
    for first, second in zip(before.threats, after.threats, strict=True):
        assert RANK[second.judged.judgement] <= RANK[first.judged.judgement]
