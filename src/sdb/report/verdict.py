"""From accuracies to words. Pure functions; the wording follows the numbers, whichever way they fall.

The rule, used for every comparison on the page. Two accuracies measured on n test images differ when their
gap is at least two standard errors of the difference, sqrt(p(1-p)/n + q(1-q)/n): binomial, the two taken as
independent, which is cautious for networks tested on the same images. For the thief (a student distilled
without the key), against the same student trained alone with label smoothing:

    thief <= alone - 2 standard errors    clearly worse: this box stops this thief
    within 2 standard errors              no better than without the box: nothing gained, nothing stopped
    thief >= alone + 2 standard errors    better than without the box: theft works

Where something must not be worse than something else, a loss of a point or more that stays within two
standard errors is called unsettled, not kept: a test too small to show a loss is no proof that there is none.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

from sdb.report.record import Record, RowId

STANDARD_ERRORS = 2.0
NOTABLE_LOSS = 0.01


class Gap(StrEnum):
    """How one accuracy stands to another, once chance is allowed for."""

    WORSE = "worse"
    UNSETTLED = "unsettled"
    SAME = "same"
    BETTER = "better"


class Tone(StrEnum):
    """How a promise came out."""

    KEPT = "kept"
    OPEN = "open"
    BROKEN = "broken"


@dataclass(frozen=True)
class Promise:
    """One thing a box promises, and what this run showed."""

    title: str
    status: str
    tone: Tone
    ours: float
    ours_label: str
    theirs: float
    theirs_label: str
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What the top of the page says."""

    summary: str
    tone: Tone
    promises: tuple[Promise, ...]
    caveat: str | None
    resolution: float

    @property
    def headline(self) -> str:
        """The first two promises as one statement: who is served, who is stopped."""
        return " ".join(promise.sentence for promise in self.promises[:2])

    @property
    def rest(self) -> str:
        """The sentences of the other promises."""
        return " ".join(promise.sentence for promise in self.promises[2:])


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as text in per cent, with a space that does not break."""
    return f"{100 * fraction:.{digits}f}\u00a0%"


def wilson(accuracy: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (95 % unless told otherwise)."""
    spread = z * z / count
    centre = (accuracy + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(accuracy * (1 - accuracy) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def margin(ours: float, theirs: float, count: int) -> float:
    """The smallest gap that counts: two standard errors of the difference of two proportions."""
    variance = (ours * (1 - ours) + theirs * (1 - theirs)) / count
    return STANDARD_ERRORS * math.sqrt(variance)


def compare(ours: float, theirs: float, count: int) -> Gap:
    """Apply the rule of this module to two accuracies measured on `count` images."""
    gap = ours - theirs
    # Two perfect scores have no spread and no gap; they are the same.
    if gap == 0 or abs(gap) < margin(ours, theirs, count):
        return Gap.SAME
    return Gap.BETTER if gap > 0 else Gap.WORSE


def hold(ours: float, theirs: float, count: int) -> Gap:
    """Whether one accuracy holds up against another: `compare`, with a notable loss by chance set apart."""
    gap = compare(ours, theirs, count)
    return Gap.UNSETTLED if gap is Gap.SAME and theirs - ours >= NOTABLE_LOSS else gap


_HOLDS = {
    Gap.BETTER: ("Better", Tone.KEPT),
    Gap.SAME: ("As good", Tone.KEPT),
    Gap.UNSETTLED: ("Not settled", Tone.OPEN),
    Gap.WORSE: ("Clearly worse", Tone.BROKEN),
}


def _everyone(box: float, teacher: float, count: int) -> Promise:
    gap = hold(box, teacher, count)
    pair = f"({percent(box)} against {percent(teacher)})"
    sentence = {
        Gap.SAME: f"The box answers as well as the teacher {pair}.",
        Gap.BETTER: f"The box answers better than the teacher {pair}.",
        Gap.UNSETTLED: f"The box may answer worse than the teacher {pair}; {count:,} images cannot tell.",
        Gap.WORSE: f"The box answers clearly worse than the teacher {pair}: users pay for the protection.",
    }[gap]
    status, tone = _HOLDS[gap]
    title = "Everyone can use it"
    return Promise(title, status, tone, box, "box, no key", teacher, "teacher", sentence)


def _copier(who: str, short: str, title: str, student: float, alone: float, count: int) -> Promise:
    """A student that should get nothing: the thief, or one with a wrong key."""
    gap = compare(student, alone, count)
    bar = f"training alone ({percent(alone)})"
    start = f"{who} gets a {percent(student)} student"
    sentence = {
        Gap.WORSE: f"{start}, clearly worse than {bar}: this box stops this thief.",
        Gap.SAME: f"{start}, no better and no worse than {bar}: "
        f"copying gained nothing, but this box does NOT stop this thief.",
        Gap.BETTER: f"{start}, better than {bar}: theft works, and this box does NOT stop this thief.",
    }[gap]
    status = {Gap.WORSE: "Stopped", Gap.SAME: "Not stopped", Gap.BETTER: "Theft works"}[gap]
    tone = {Gap.WORSE: Tone.KEPT, Gap.SAME: Tone.OPEN, Gap.BETTER: Tone.BROKEN}[gap]
    return Promise(title, status, tone, student, short, alone, "trained alone", sentence)


def _partner(student: float, teacher_student: float | None, alone: float, count: int) -> Promise:
    start = f"A partner with the key gets a {percent(student)} student"
    title = "A partner can copy it"
    if teacher_student is None:
        bar = f"training alone ({percent(alone)})"
        gap = compare(student, alone, count)
        sentence = {
            Gap.BETTER: f"{start}, better than {bar}.",
            Gap.SAME: f"{start}, no better than {bar}: the key gained nothing measurable.",
            Gap.WORSE: f"{start}, clearly worse than {bar}: the key does not work.",
        }[gap]
        status = {Gap.BETTER: "Better", Gap.SAME: "No gain", Gap.WORSE: "Clearly worse"}[gap]
        tone = {Gap.BETTER: Tone.KEPT, Gap.SAME: Tone.OPEN, Gap.WORSE: Tone.BROKEN}[gap]
        return Promise(title, status, tone, student, "partner", alone, "trained alone", sentence)
    gap = hold(student, teacher_student, count)
    other = f"one taught by the unprotected teacher ({percent(teacher_student)})"
    sentence = {
        Gap.BETTER: f"{start}, better than {other}.",
        Gap.SAME: f"{start}, as good as {other}.",
        Gap.UNSETTLED: f"{start}, perhaps worse than {other}; {count:,} images cannot tell.",
        Gap.WORSE: f"{start}, clearly worse than {other}: the key does not give back what the box withholds.",
    }[gap]
    status, tone = _HOLDS[gap]
    theirs = "taught by teacher"
    return Promise(title, status, tone, student, "partner", teacher_student, theirs, sentence)


def _caveat(teacher_student: float | None, alone: float, count: int) -> str | None:
    """Say when the data cannot show a theft paying off, whatever the box does."""
    if teacher_student is None or compare(teacher_student, alone, count) is Gap.BETTER:
        return None
    return (
        f"On this data even the unprotected teacher gives a student ({percent(teacher_student)}) no better "
        f"than training alone ({percent(alone)}), within what {count:,} test images can tell. So this run "
        "can show a thief being harmed, but not a thief being denied a gain."
    )


def judge(record: Record) -> Verdict:
    """Put a record's accuracies into words."""
    count = record.data.test

    def accuracy(row_id: RowId) -> float | None:
        row = record.row(row_id)
        return None if row is None else row.accuracy

    def needed(row_id: RowId) -> float:
        # `read_record` has refused records without these rows.
        return next(row.accuracy for row in record.rows if row.id == row_id)

    alone, thief = needed("students.label_smoothing"), needed("students.thief")
    from_teacher = accuracy("students.from_teacher")
    promises = [
        _everyone(needed("box.keyless"), needed("teacher"), count),
        _copier("A thief without the key", "thief", "A thief cannot copy it", thief, alone, count),
        _partner(needed("students.partner"), from_teacher, alone, count),
    ]
    if (wrong := accuracy("students.wrong_key")) is not None:
        title = "A wrong key fails"
        promises.append(_copier("A thief with a wrong key", "wrong-key thief", title, wrong, alone, count))
    kept = sum(promise.tone is Tone.KEPT for promise in promises)
    if kept == len(promises):
        tone = Tone.KEPT
    else:
        tone = Tone.BROKEN if any(promise.tone is Tone.BROKEN for promise in promises) else Tone.OPEN
    return Verdict(
        summary=f"{kept} of {len(promises)} promises kept in this run",
        tone=tone,
        promises=tuple(promises),
        caveat=_caveat(from_teacher, alone, count),
        resolution=margin(alone, thief, count),
    )
