"""From a demo's accuracies to words. Pure functions; the wording follows the numbers, whichever way they fall.

The rule is that of `judgement`, as in an audit. A demo has one seed, so it can break a promise and establish none: what
its numbers look like so far is said beside that.
"""

from dataclasses import dataclass, replace

from sdb.report.intervals import Difference, difference, half_width, percent, points_and_half
from sdb.report.judgement import (
    ACCURACY_BUDGET,
    NOTABLE,
    Judged,
    Judgement,
    at_stake,
    judge_excess,
    judge_honesty,
    together,
)
from sdb.report.record import Confidence, Excess, GainRow, Record, Regime, RowId
from sdb.report.template import TONES, Tone


@dataclass(frozen=True)
class Promise:
    """One thing a box promises, and what this run showed."""

    title: str
    status: str
    judged: Judged
    ours: float
    ours_label: str
    theirs: float
    theirs_label: str
    sentence: str

    @property
    def tone(self) -> Tone:
        """The colour of its card."""
        return TONES[self.judged.judgement]


@dataclass(frozen=True)
class Verdict:
    """What the top of the page says."""

    judged: Judged
    promises: tuple[Promise, ...]
    caveat: str | None
    story: str = ""

    @property
    def tone(self) -> Tone:
        """The colour of the verdict."""
        return TONES[self.judged.judgement]

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        count = {each: sum(p.judged.judgement is each for p in self.promises) for each in Judgement}
        parts = [f"{number} {judgement}" for judgement, number in count.items() if number]
        why = f": {'; '.join(self.judged.reasons)}" if self.judged.reasons else ""
        return f"{len(self.promises)} promises: {', '.join(parts)}{why}"

    @property
    def headline(self) -> str:
        """What happened, as one statement: the story where students were trained in pairs, else the first promises."""
        return self.story or " ".join(promise.sentence for promise in self.promises[:2])

    @property
    def rest(self) -> str:
        """The sentences of the other promises."""
        return " ".join(promise.sentence for promise in self.promises[0 if self.story else 2 :])


def _pair(ours: float, theirs: float, gap: Difference) -> str:
    return f"({percent(ours)} against {percent(theirs)}, {points_and_half(gap.value, gap.half)} points)"


def _so_far(judged: Judged, status: str) -> str:
    return f"{status} so far" if judged.judgement is Judgement.NOT_SETTLED else status


def _held(judged: Judged, gap: Difference) -> str:
    """How something stands that must not be worse than something else."""
    if judged.judgement is Judgement.BROKEN:
        return "Clearly worse"
    if gap.value <= -NOTABLE:
        return "Perhaps worse"
    return "Better" if gap.above else "As good"


def _everyone(box: float, teacher: float, count: int) -> Promise:
    judged, gap = (
        judge_excess(difference([teacher], [box], count), ACCURACY_BUDGET),
        difference([box], [teacher], count),
    )
    status, pair = _held(judged, gap), _pair(box, teacher, gap)
    sentence = {
        "As good": f"The box answers as well as the teacher {pair}.",
        "Better": f"The box answers better than the teacher {pair}.",
        "Perhaps worse": f"The box may answer worse than the teacher {pair}.",
        "Clearly worse": f"The box answers clearly worse than the teacher {pair}: users pay for the protection.",
    }[status]
    title = "Everyone can use it"
    return Promise(title, _so_far(judged, status), judged, box, "box, no key", teacher, "teacher", sentence)


def _copier(who: str, short: str, title: str, student: float, alone: float, count: int) -> Promise:
    """A student that should gain nothing: the thief, or one with a wrong key."""
    gap = difference([student], [alone], count)
    judged = judge_excess(gap)
    status = "Theft works" if judged.judgement is Judgement.BROKEN else "Stopped" if gap.below else "No gain"
    end = {
        "Theft works": "better than training alone: theft works",
        "Stopped": "clearly worse than training alone: this box stops this thief",
        "No gain": "neither clearly better nor worse than training alone: no clear gain, and no harm to the thief",
    }[status]
    sentence = f"{who} gets a student {end} {_pair(student, alone, gap)}."
    return Promise(title, _so_far(judged, status), judged, student, short, alone, "trained alone", sentence)


def _partner(student: float, taught: float, count: int) -> Promise:
    gap = difference([student], [taught], count)
    judged = judge_excess(difference([taught], [student], count))
    status, pair = _held(judged, gap), _pair(student, taught, gap)
    other = f"one taught by the unprotected teacher {pair}"
    start = "A partner with the key gets a student"
    sentence = {
        "As good": f"{start} as good as {other}.",
        "Better": f"{start} better than {other}.",
        "Perhaps worse": f"{start} that may be worse than {other}.",
        "Clearly worse": f"{start} clearly worse than {other}: the key does not give back what the box withholds.",
    }[status]
    title = "A partner can copy it"
    return Promise(
        title, _so_far(judged, status), judged, student, "partner", taught, "taught by teacher", sentence
    )


def _caveat(taught: float, alone: float, count: int) -> str | None:
    """Say when the data cannot show a theft paying off, whatever the box does."""
    if difference([taught], [alone], count).above:
        return None
    return (
        f"On this data even the unprotected teacher gives a student ({percent(taught)}) no better "
        f"than training alone ({percent(alone)}), within what {count:,} test images can tell. So this run "
        "can show a thief being harmed, but not a thief being denied a gain."
    )


def _difference(excess: Excess) -> Difference:
    """A difference over pairs: its half-width is of the pairs, all of which are tested on the same images."""
    return Difference(excess.value, excess.half, excess.half, excess.lowest, excess.pairs)


def _points(excess: Excess) -> str:
    return points_and_half(excess.value, excess.half)


def _by_pairs(record: Record, regime: Regime, confidence: Confidence) -> Verdict:
    """The verdict where students were trained in pairs, with few images, and the bar is what top-1 gives."""
    gains = {row.id: row for row in regime.gains}
    # `read_record` has refused records without these.
    stake, thief, partner = gains["students.from_teacher"], gains["students.thief"], gains["students.partner"]
    worth = _difference(stake)
    promises = [
        _served(record, confidence),
        _denied("A thief cannot copy it", "thief", thief, worth, record, regime),
        _given(partner, regime.partner_short, record),
    ]
    if wrong := gains.get("students.wrong_key"):
        promises.append(_denied("A wrong key fails", "wrong-key thief", wrong, worth, record, regime))
    judged = together(promise.judged for promise in promises)
    told = story(
        f"With {regime.labelled} labelled images", "box", *(_difference(each) for each in (stake, thief, partner))
    )
    return Verdict(judged, tuple(promises), None, told)


def story(few: str, protected: str, stake: Difference, thief: Difference, partner: Difference) -> str:
    """The sentence: what a thief gains from the bare model and from what protects it, and what a partner gains.

    Args:
        few: what students have, such as "With 90 labelled images".
        protected: what a thief asks, "box" or "guard".
        stake: how far a student of the bare model's soft answers is above the bar.
        thief: the same of the best thief.
        partner: the same of a partner.
    """

    def gained(each: Difference) -> str:
        if each.above:
            return f"{100 * each.value:.1f} points"
        return f"nothing that chance does not explain ({points_and_half(each.value, each.half)} points)"

    if not stake.above:
        return (
            f"Nothing at stake here: {few.lower()}, a student of the bare model gains {gained(stake)} over what its "
            f"class answers give, so no {protected} can show what it keeps back."
        )
    return (
        f"{few}, a thief gains {gained(stake)} from the bare model and {gained(thief)} from the {protected}; a partner "
        f"gains {gained(partner)}."
    )


def _served(record: Record, confidence: Confidence) -> Promise:
    """Everyone gets the right class, and a confidence that is true."""
    box, teacher = confidence.of("keyless"), confidence.of("teacher")
    promise = _everyone(_accuracy(record, "box.keyless"), _accuracy(record, "teacher"), record.data.test)
    said = (
        f"{promise.sentence} Its confidence is {100 * box.calibration_error:.1f} points off on average, the teacher's "
        f"{100 * teacher.calibration_error:.1f}."
    )
    half = half_width([promise.ours], record.data.test)
    honest = judge_honesty(box.calibration_error, teacher.calibration_error, half)
    judged = together([promise.judged, honest])
    if honest.judgement is Judgement.ESTABLISHED:
        return replace(promise, sentence=said)
    if honest.judgement is Judgement.BROKEN:
        return replace(promise, judged=judged, status="Not honest", sentence=f"{said} So it is not what it says.")
    said += " On so few images that may be chance."
    return replace(promise, judged=judged, status="Perhaps not honest", sentence=said)


def _denied(title: str, who: str, row: GainRow, worth: Difference, record: Record, regime: Regime) -> Promise:
    gap = _difference(row)
    judged = at_stake(judge_excess(gap), worth)
    status = "Theft works" if judged.judgement is Judgement.BROKEN else "Stopped" if gap.below else "No gain"
    if judged.judgement is Judgement.NOTHING_AT_STAKE:
        status = "Nothing at stake"
    sentence = f"The {who}'s student is at {_points(row)} points against {regime.bar.way}, the bar."
    bar = f"the bar: {regime.bar.way}"
    ours = _accuracy(record, row.id)
    return Promise(title, _so_far(judged, status), judged, ours, who, regime.bar.accuracy, bar, sentence)


def _given(row: GainRow, short: Excess, record: Record) -> Promise:
    """The partner against a student of the teacher; `short` is how far it falls short of that."""
    gap = _difference(short)
    judged = judge_excess(gap)
    status = "Clearly worse" if judged.judgement is Judgement.BROKEN else "Better" if gap.below else "As good"
    if judged.judgement is not Judgement.BROKEN and gap.value >= NOTABLE:
        status = "Perhaps worse"
    sentence = (
        f"A partner's student is at {points_and_half(-gap.value, gap.half)} points against the bare model's."
    )
    ours, theirs = _accuracy(record, row.id), _accuracy(record, "students.from_teacher")
    title, taught = "A partner can copy it", "taught by teacher"
    return Promise(title, _so_far(judged, status), judged, ours, "partner", theirs, taught, sentence)


def _accuracy(record: Record, row_id: RowId) -> float:
    # `read_record` has refused records without the rows that are asked for.
    return next(row.accuracy for row in record.rows if row.id == row_id)


def judge(record: Record) -> Verdict:
    """Put a record's accuracies into words."""
    if record.regime is not None and record.confidence is not None:
        return _by_pairs(record, record.regime, record.confidence)
    count = record.data.test

    def needed(row_id: RowId) -> float:
        # `read_record` has refused records without these rows.
        return next(row.accuracy for row in record.rows if row.id == row_id)

    alone, taught = needed("students.label_smoothing"), needed("students.from_teacher")
    title = "A thief cannot copy it"
    promises = [
        _everyone(needed("box.keyless"), needed("teacher"), count),
        _copier("A thief without the key", "thief", title, needed("students.thief"), alone, count),
        _partner(needed("students.partner"), taught, count),
    ]
    if (wrong := record.row("students.wrong_key")) is not None:
        title, who = "A wrong key fails", "A thief with a wrong key"
        promises.append(_copier(who, "wrong-key thief", title, wrong.accuracy, alone, count))
    judged = together(promise.judged for promise in promises)
    return Verdict(judged, tuple(promises), _caveat(taught, alone, count))
