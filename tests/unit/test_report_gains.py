"""The demo's verdict where students were trained in pairs: what is at stake, who gains, whose confidence is true."""

import copy
import re
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sdb.errors import ConfigError
from sdb.report.intervals import Difference
from sdb.report.judgement import Judged, Judgement, at_stake, judge_honesty, together
from sdb.report.page import render
from sdb.report.record import read_record
from sdb.report.verdict import judge

E = Judgement
make_record = runpy.run_path(str(Path(__file__).with_name("test_report.py")))["make_record"]


def excess(value, half=0.01, pairs=8):
    return {"value": value, "half": half, "lowest": value - half, "pairs": pairs}


def paired(stake=0.03, thief=0.002, partner=0.03, short=0.0, half=0.01, error=0.01):
    """A record of schema 2 with such gains and such a calibration error."""
    record = make_record()
    gains = {
        "students.from_teacher": stake,
        "students.thief": thief,
        "students.wrong_key": thief,
        "students.partner": partner,
        "nasty.student": -0.1,
    }
    bins = [
        {"confidence": 0.6, "accuracy": 0.5, "images": 20},
        {"confidence": 0.98, "accuracy": 0.99, "images": 340},
    ]
    honesty = {"confidence": 0.95, "brier": 0.02, "bins": bins}
    return record | {
        "schema": 2,
        "regime": {
            "labelled": 150,
            "unlabelled": 0,
            "pairs": 8,
            "bar": {"way": "label smoothing", "accuracy": 0.9},
            "gains": [{"id": i, "label": i, "way": "soft"} | excess(value, half) for i, value in gains.items()],
            "partner_short": excess(short, half),
        },
        "confidence": {
            "bits": 0.4,
            "levels": 2,
            "models": [
                {"id": "teacher", "label": "teacher", "calibration_error": 0.01} | honesty,
                {"id": "keyless", "label": "box", "calibration_error": error} | honesty,
            ],
        },
    }


def verdict_of(**changes):
    return judge(read_record(paired(**changes)))


def statuses(verdict):
    return {promise.title: promise.judged.judgement for promise in verdict.promises}


def test_the_story_says_who_gains():
    said = verdict_of().headline
    assert said.startswith(
        "With 150 labelled images, a thief gains 3.0 points from the bare model and nothing that"
    )
    assert "(+0.2\u00a0±\u00a01.0 points) from the box; a partner gains 3.0 points." in said


def test_a_thief_that_gains_is_said_and_breaks_the_promise():
    verdict = verdict_of(thief=0.02)
    assert "and 2.0 points from the box" in verdict.headline
    assert statuses(verdict)["A thief cannot copy it"] is E.BROKEN
    assert verdict.judged.judgement is E.BROKEN


@pytest.mark.parametrize("stake", [0.0, 0.009, -0.05])
def test_where_soft_answers_are_worth_nothing_there_is_nothing_at_stake(stake):
    verdict = verdict_of(stake=stake)
    assert verdict.headline.startswith("Nothing at stake here: with 150 labelled images")
    assert statuses(verdict)["A thief cannot copy it"] is E.NOTHING_AT_STAKE
    assert verdict.judged.judgement is E.NOTHING_AT_STAKE
    assert "established" not in verdict.summary.split("nothing at stake here")[1]


def test_a_broken_box_stays_broken_where_nothing_is_at_stake():
    assert verdict_of(stake=0.0, thief=0.02).judged.judgement is E.BROKEN


@pytest.mark.parametrize(("short", "judgement"), [(0.0, E.ESTABLISHED), (0.02, E.BROKEN), (-0.02, E.ESTABLISHED)])
def test_a_partner_is_held_against_a_student_of_the_teacher(short, judgement):
    assert statuses(verdict_of(short=short))["A partner can copy it"] is judgement


@pytest.mark.parametrize(
    ("box", "teacher", "found"),
    [
        (0.032, 0.01, E.BROKEN),
        (0.03, 0.025, E.ESTABLISHED),
        (0.019, 0.0, E.ESTABLISHED),
        (0.4, 0.01, E.BROKEN),
        (0.024, 0.01, E.NOT_SETTLED),
    ],
)
def test_a_confidence_that_is_not_true_breaks_a_promise_unless_it_may_be_chance(box, teacher, found):
    assert judge_honesty(box, teacher, 0.01).judgement is found


def test_users_are_not_served_by_a_confidence_that_is_not_true():
    verdict = verdict_of(error=0.4)
    promise = verdict.promises[0]
    assert (promise.judged.judgement, promise.status) == (E.BROKEN, "Not honest")
    assert "40.0 points off on average, the teacher's 1.0" in promise.sentence


def test_a_confidence_that_chance_can_explain_is_not_called_a_lie():
    """On 500 images 2.4 points is what an honest box shows now and then."""
    promise = verdict_of(error=0.024).promises[0]
    assert (promise.judged.judgement, promise.status) == (E.NOT_SETTLED, "Perhaps not honest")
    assert "may be chance" in promise.sentence


def test_nothing_at_stake_comes_before_established_and_after_broken():
    kept, nothing, broken = (Judged(each) for each in (E.ESTABLISHED, E.NOTHING_AT_STAKE, E.BROKEN))
    assert together([kept, nothing]).judgement is E.NOTHING_AT_STAKE
    assert together([kept, nothing, broken]).judgement is E.BROKEN
    clear = Difference(0.03, 0.01, 0.01, 0.02, 5)
    assert at_stake(kept, clear) is kept
    assert at_stake(kept, None).judgement is E.NOTHING_AT_STAKE
    assert at_stake(broken, None) is broken


def test_the_page_opens_with_the_gains_and_the_confidences():
    page = render(read_record(paired()))
    assert (
        page.index("What there is to steal")
        < page.index("Whether a confidence is true")
        < page.index("The promises, one by one")
    )
    for words in ("Bar chart of what students gain over the bar", "Accuracy against confidence"):
        (drawn,) = re.findall(rf'<svg class="chart" role="img" aria-label="{words}.*?</svg>', page, re.DOTALL)
        ElementTree.fromstring(drawn)
        assert "var(--" in drawn and "#01" not in drawn
    assert page == render(read_record(paired()))


def test_an_older_record_has_neither():
    page = render(read_record(make_record()))
    assert "What there is to steal" not in page


@pytest.mark.parametrize("gone", ["regime", "confidence"])
def test_a_record_that_lacks_a_part_is_refused(gone):
    record = paired()
    del record[gone]
    with pytest.raises(ConfigError, match="schema 2 needs regime and confidence"):
        read_record(record)


def test_gains_and_models_that_are_needed_are_named():
    record = copy.deepcopy(paired())
    record["regime"]["gains"] = record["regime"]["gains"][1:]
    with pytest.raises(ConfigError, match=r"gains lack students\.from_teacher"):
        read_record(record)
    record = copy.deepcopy(paired())
    record["confidence"]["models"] = record["confidence"]["models"][:1]
    with pytest.raises(ConfigError, match="models lack keyless"):
        read_record(record)
