"""The words at the top of the demo's report follow the numbers, and the judgement is that of an audit."""

from typing import Any

import pytest

from sdb.errors import ConfigError
from sdb.report.judgement import Judgement
from sdb.report.record import Record, read_record
from sdb.report.template import Tone
from sdb.report.verdict import Verdict, judge

PAIRS = {
    "teacher": 0.99,
    "box.keyless": 0.988,
    "box.keyed": 0.99,
    "students.label_smoothing": 0.98,
    "students.from_teacher": 0.985,
    "students.thief": 0.90,
    "students.partner": 0.986,
    "students.wrong_key": 0.90,
}
OPEN, BROKEN = Judgement.NOT_SETTLED, Judgement.BROKEN


def make(test: int = 1000, **changes: float | None) -> Record:
    accuracies: dict[str, float | None] = dict(PAIRS)
    accuracies |= {name.replace("__", "."): value for name, value in changes.items()}
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "demo",
        "title": "t",
        "seed": 0,
        "seconds": 1.0,
        "method": "sdb",
        "data": {
            "name": "d",
            "train": 1,
            "validation": 1,
            "test": test,
            "classes": ["a", "b"],
            "image_shape": [1, 1, 1],
            "note": "",
        },
        "rows": [
            {"id": name, "label": name, "accuracy": value, "parameters": None, "reads": ""}
            for name, value in accuracies.items()
            if value is not None
        ],
        "curves": [],
        "examples": {"temperature": 4.0, "items": []},
        "stages": [],
        "parameters": {},
        "command": "",
        "environment": {},
    }
    return read_record(record)


def words(verdict: Verdict) -> str:
    return f"{verdict.headline} {verdict.rest}".replace("\u00a0", " ")


def test_one_seed_breaks_nothing_and_establishes_nothing() -> None:
    verdict = judge(make())
    assert verdict.summary == "4 promises: 4 not settled: too few seeds (1; 3 are needed)"
    assert (verdict.judged.judgement, verdict.tone) == (OPEN, Tone.OPEN)
    assert [promise.status for promise in verdict.promises] == [
        "As good so far",
        "Stopped so far",
        "As good so far",
        "Stopped so far",
    ]
    assert words(verdict) == (
        "The box answers as well as the teacher (98.8 % against 99.0 %, −0.2 ± 1.0 points). "
        "A thief without the key gets a student clearly worse than training alone: this box stops this thief "
        "(90.0 % against 98.0 %, −8.0 ± 2.1 points). "
        "A partner with the key gets a student as good as one taught by the unprotected teacher "
        "(98.6 % against 98.5 %, +0.1 ± 1.1 points). "
        "A thief with a wrong key gets a student clearly worse than training alone: this box stops this thief "
        "(90.0 % against 98.0 %, −8.0 ± 2.1 points)."
    )


def test_the_smallest_effect_is_that_of_the_bluntest_comparison() -> None:
    verdict = judge(make())
    assert verdict.judged.smallest == max(promise.judged.smallest for promise in verdict.promises)
    assert verdict.judged.smallest == pytest.approx(0.0206, abs=1e-4)


CASES = [
    # which promise, what changes, judgement, status, words
    (1, {"students__thief": 0.90}, OPEN, "Stopped so far", "clearly worse than training alone: this box stops"),
    (
        1,
        {"students__thief": 0.982},
        OPEN,
        "No gain so far",
        "neither clearly better nor worse than training alone",
    ),
    (1, {"students__thief": 0.998}, BROKEN, "Theft works", "better than training alone: theft works"),
    (0, {"box__keyless": 0.99}, OPEN, "As good so far", "answers as well as the teacher"),
    (0, {"box__keyless": 0.979}, OPEN, "Perhaps worse so far", "may answer worse than the teacher (97.9 %"),
    (0, {"box__keyless": 0.95}, BROKEN, "Clearly worse", "answers clearly worse than the teacher (95.0 %"),
    (0, {"box__keyless": 1.0}, OPEN, "Better so far", "answers better than the teacher"),
    (2, {"students__partner": 0.986}, OPEN, "As good so far", "as good as one taught by the unprotected teacher"),
    (2, {"students__partner": 0.995}, OPEN, "Better so far", "better than one taught by"),
    (2, {"students__partner": 0.975}, OPEN, "Perhaps worse so far", "that may be worse than one taught by"),
    (2, {"students__partner": 0.95}, BROKEN, "Clearly worse", "the key does not give back what the box withholds"),
    (3, {"students__wrong_key": 0.999}, BROKEN, "Theft works", "A thief with a wrong key gets a student better"),
]


@pytest.mark.parametrize(("place", "changes", "judgement", "status", "said"), CASES)
def test_each_promise(place: int, changes: dict[str, float], judgement: Judgement, status: str, said: str) -> None:
    verdict = judge(make(**changes))
    promise = verdict.promises[place]
    assert (promise.judged.judgement, promise.status.replace("\u00a0", " ")) == (judgement, status)
    assert said in words(verdict)
    assert verdict.judged.judgement is judgement
    assert verdict.tone is promise.tone is (Tone.BROKEN if judgement is BROKEN else Tone.OPEN)
    if judgement is BROKEN:
        assert verdict.summary == "4 promises: 1 broken, 3 not settled"


def test_users_have_the_same_budget_as_in_an_audit() -> None:
    # Half a point may be lost, beyond chance; of a billion images little is chance.
    for lost, judgement in ((0.0049, OPEN), (0.0051, BROKEN)):
        assert judge(make(test=10**9, box__keyless=0.99 - lost)).promises[0].judged.judgement is judgement
        assert judge(make(test=10**9, students__partner=0.985 - lost)).promises[2].judged.judgement is BROKEN


def test_a_wrong_key_is_judged_when_tried() -> None:
    assert len(judge(make(students__wrong_key=None)).promises) == 3


def test_a_record_without_a_student_of_the_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rows lack students\.from_teacher"):
        make(students__from_teacher=None)


def test_the_caveat_says_when_theft_could_not_pay_anyway() -> None:
    caveat = judge(make(students__from_teacher=0.981)).caveat
    assert caveat is not None
    assert "within what 1,000 test images can tell" in caveat
    assert judge(make(students__from_teacher=0.998)).caveat is None
