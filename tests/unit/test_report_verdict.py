"""The words at the top of the report follow the numbers, whichever way they fall."""

from typing import Any

import pytest

from sdb.report.record import Record, read_record
from sdb.report.verdict import Gap, Tone, Verdict, compare, judge, margin, percent, wilson

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


def make(**changes: float | None) -> Record:
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
            "test": 1000,
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


def test_all_promises_kept() -> None:
    verdict = judge(make())
    assert verdict.summary == "4 of 4 promises kept in this run"
    assert verdict.tone is Tone.KEPT
    assert words(verdict) == (
        "The box answers as well as the teacher (98.8 % against 99.0 %). "
        "A thief without the key gets a 90.0 % student, clearly worse than training alone (98.0 %): "
        "this box stops this thief. "
        "A partner with the key gets a 98.6 % student, as good as one taught by the unprotected teacher "
        "(98.5 %). "
        "A thief with a wrong key gets a 90.0 % student, clearly worse than training alone (98.0 %): "
        "this box stops this thief."
    )


@pytest.mark.parametrize(
    ("thief", "tone", "said"),
    [
        (0.90, Tone.KEPT, "clearly worse than training alone (98.0 %): this box stops this thief."),
        (
            0.982,
            Tone.OPEN,
            "no better and no worse than training alone (98.0 %): copying gained nothing",
        ),
        (0.998, Tone.BROKEN, "better than training alone (98.0 %): theft works, and this box does NOT stop"),
    ],
)
def test_thief(thief: float, tone: Tone, said: str) -> None:
    verdict = judge(make(students__thief=thief))
    assert verdict.promises[1].tone is tone
    assert verdict.tone is tone
    assert said in words(verdict)
    assert ("stops this thief" in verdict.promises[1].sentence) is (tone is Tone.KEPT)


@pytest.mark.parametrize(
    ("box", "tone", "said"),
    [
        (0.99, Tone.KEPT, "answers as well as the teacher"),
        (
            0.979,
            Tone.OPEN,
            "may answer worse than the teacher (97.9 % against 99.0 %); 1,000 images cannot tell",
        ),
        (0.95, Tone.BROKEN, "answers clearly worse than the teacher (95.0 % against 99.0 %)"),
        (1.0, Tone.KEPT, "answers better than the teacher"),
    ],
)
def test_everyone(box: float, tone: Tone, said: str) -> None:
    verdict = judge(make(box__keyless=box))
    assert verdict.promises[0].tone is tone
    assert said in words(verdict)


@pytest.mark.parametrize(
    ("partner", "from_teacher", "tone", "said"),
    [
        (0.986, 0.985, Tone.KEPT, "as good as one taught by the unprotected teacher (98.5 %)"),
        (0.995, 0.985, Tone.KEPT, "better than one taught by"),
        (0.975, 0.985, Tone.OPEN, "perhaps worse than one taught by"),
        (0.95, 0.985, Tone.BROKEN, "clearly worse than one taught by"),
        (0.981, None, Tone.OPEN, "no better than training alone (98.0 %): the key gained nothing measurable"),
        (0.997, None, Tone.KEPT, "better than training alone"),
        (0.90, None, Tone.BROKEN, "the key does not work"),
    ],
)
def test_partner(partner: float, from_teacher: float | None, tone: Tone, said: str) -> None:
    verdict = judge(make(students__partner=partner, students__from_teacher=from_teacher))
    assert verdict.promises[2].tone is tone
    assert said in words(verdict)


def test_wrong_key_is_judged_when_tried() -> None:
    assert len(judge(make(students__wrong_key=None)).promises) == 3
    verdict = judge(make(students__wrong_key=0.999))
    assert verdict.promises[3].tone is Tone.BROKEN
    assert verdict.summary == "3 of 4 promises kept in this run"


def test_the_caveat_says_when_theft_could_not_pay_anyway() -> None:
    caveat = judge(make(students__from_teacher=0.981)).caveat
    assert caveat is not None
    assert "within what 1,000 test images can tell" in caveat
    assert judge(make(students__from_teacher=0.998)).caveat is None
    assert judge(make(students__from_teacher=None)).caveat is None


def test_the_rule_at_its_edge() -> None:
    edge = margin(0.90, 0.95, 1000)
    assert edge == pytest.approx(2 * (0.09 / 1000 + 0.0475 / 1000) ** 0.5)
    assert compare(0.95 - 0.021, 0.95, 1000) is Gap.SAME
    assert compare(0.95 - 0.025, 0.95, 1000) is Gap.WORSE
    assert compare(0.95 + 0.025, 0.95, 1000) is Gap.BETTER
    assert compare(1.0, 1.0, 10) is Gap.SAME
    assert compare(0.0, 1.0, 10) is Gap.WORSE


def test_fewer_images_tell_less() -> None:
    assert compare(0.93, 0.95, 10_000) is Gap.WORSE
    assert compare(0.93, 0.95, 100) is Gap.SAME


def test_wilson() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 360) == pytest.approx((0.98944, 1.0), abs=1e-5)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)


def test_percent() -> None:
    assert percent(0.98765) == "98.8\u00a0%"
    assert percent(1.0, 0) == "100\u00a0%"
