"""From an audit's claim to a verdict. Pure functions; the rule is in `judgement`, the wording in `audit_words`.

The bar is CMIM's: no attack makes a student without the key better than the same student trained alone with label
smoothing, of the same seed, on the same images. Each attack on the audited box is a promise of its own, and so is what
users and partners keep; all of those that the declared threat model covers together are the verdict.

An attack whose controls failed, or were not run, is not trusted: what it does not achieve shows nothing. What it
does achieve counts. An attack that returns a module which closes more than half of the distance between a network of
the thief's own, trained on its labels, and the teacher has recovered the teacher, whatever its student's accuracy: on
easy data a student gains nothing from any teacher, and elsewhere it would. One that closes more than a tenth of it is
nearer the teacher than the thief could get alone: no break, but no box is said to hold against it.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from sdb.report.claim import AttackRow, Cell, Claim, Threat
from sdb.report.intervals import Difference, difference, half_width
from sdb.report.judgement import ACCURACY_BUDGET, Judged, Judgement, judge_excess, not_settled, together

# Share of the distance from a network of one's own to the teacher's soft outputs that counts as having the teacher.
RECOVERED_SHARE = 0.5
# A share of it above which a box is not said to hold, though the teacher was not recovered.
NEARER_SHARE = 0.1
# How often a comparison of two equals looks like a gain.
FALSE_ALARM = 0.025


class Outcome(StrEnum):
    """How one attack on one defence came out."""

    STOPPED = "stopped"
    NO_GAIN = "no gain"
    GAIN = "gain"
    RECOVERED = "teacher recovered"
    NEARER = "nearer the teacher"
    NOT_TRUSTED = "not trusted"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_RUN = "not run"


BREAKS = frozenset({Outcome.GAIN, Outcome.RECOVERED})
# What keeps an audit from saying that a box holds, whatever the numbers.
UNKNOWN = {
    Outcome.NOT_TRUSTED: "an attack cannot be trusted",
    Outcome.FAILED: "an attack failed",
    Outcome.NEARER: "an attack came nearer the teacher than a thief gets alone",
}
# Why a threat model or a partner's side is open where nothing was measured.
NO_ATTACK = "no attack of this kind applied"
NO_KEY = "no key was given, so no partner was trained"
COMPARED = frozenset({Outcome.STOPPED, Outcome.NO_GAIN, Outcome.GAIN, Outcome.RECOVERED, Outcome.NEARER})


@dataclass(frozen=True)
class CellVerdict:
    """One attack on one defence, judged.

    Attributes:
        attack: The attack.
        defence: Name of the defence.
        outcome: How it came out.
        judged: Whether the defence holds against it; None where the attack was not run or does not apply.
        trusted: Whether the attack's controls passed.
        accuracy: The student's mean test accuracy and half-width, a fraction; None where nothing was measured.
        gap: Against the label-smoothing student of the same seeds.
        gap_closed: Mean share of the distance from the thief's own network to the teacher that a recovered module
            closes; below 0 it is farther from the teacher than that.
        agreement: Mean share of test images on which student and victim name the same class.
        queries: Mean number of images asked.
        seconds: Mean time.
        reason: Why there is no number.
    """

    attack: AttackRow
    defence: str
    outcome: Outcome
    judged: Judged | None
    trusted: bool
    accuracy: tuple[float, float] | None = None
    gap: Difference | None = None
    gap_closed: float | None = None
    agreement: float | None = None
    queries: float | None = None
    seconds: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class ThreatVerdict:
    """What the attacks of one threat model show together."""

    threat: Threat
    judged: Judged
    cells: tuple[CellVerdict, ...]

    def having(self, outcomes: Container[Outcome]) -> tuple[CellVerdict, ...]:
        """The cells with one of some outcomes."""
        return tuple(cell for cell in self.cells if cell.outcome in outcomes)

    @property
    def strongest(self) -> CellVerdict | None:
        """The attack that counts and whose student is best."""
        return strongest(self.cells)


@dataclass(frozen=True)
class Promise:
    """Something that must not be worse than something else.

    Attributes:
        ours: Mean and half-width of what the box gives; None where it was not measured.
        theirs: The same of what it is held against.
        gap: Ours less theirs.
        judged: How it came out.
    """

    ours: tuple[float, float] | None
    theirs: tuple[float, float]
    gap: Difference | None
    judged: Judged


@dataclass(frozen=True)
class AuditVerdict:
    """An audit's verdict on its box.

    Attributes:
        judged: Every promise under the declared threat model together.
        declared: The threat model that the claim declares.
        api: Against who can only ask.
        shipped: Against who has the weights too; None where no such attack belongs to the audit.
        leak: Attacks that know what a thief should not; they count for nothing.
        everyone: Keyless accuracy against the teacher's.
        partner: The partner's student against one taught by the teacher; None where the box opens for no key.
        teaches: What the unprotected teacher's student gains over the bar.
        cells: Every attack on every defence.
    """

    judged: Judged
    declared: ThreatVerdict
    api: ThreatVerdict
    shipped: ThreatVerdict | None
    leak: tuple[CellVerdict, ...]
    everyone: Promise
    partner: Promise | None
    teaches: Difference
    cells: tuple[CellVerdict, ...]

    @property
    def threats(self) -> tuple[ThreatVerdict, ...]:
        """The verdicts per threat model."""
        return (self.api,) if self.shipped is None else (self.api, self.shipped)

    def of(self, defence: str) -> tuple[CellVerdict, ...]:
        """The cells of one defence, in the order of the attacks."""
        return tuple(cell for cell in self.cells if cell.defence == defence)


def strongest(cells: tuple[CellVerdict, ...]) -> CellVerdict | None:
    """Of the cells that count, the one whose student is farthest above the bar, or least below."""
    counted = {(cell.gap.value, cell.attack.name): cell for cell in cells if cell.outcome in COMPARED and cell.gap}
    return counted[max(counted)] if counted else None


def judge_cell(claim: Claim, defence: str, attack: AttackRow) -> CellVerdict:
    """Apply the rule of this module to one attack on one defence."""
    control = claim.controls.get(attack.name)
    # An attack that is right where nothing can be learned has cheated: it shows no more than one that never learns.
    trusted = control is not None and control.positive.passed is True and control.negative.passed is True
    cell = claim.cell(defence, attack.name)
    if cell is None:
        return CellVerdict(attack, defence, Outcome.NOT_RUN, None, trusted)
    if cell.status == "not_applicable":
        return CellVerdict(attack, defence, Outcome.NOT_APPLICABLE, None, trusted, reason=cell.reason)
    if cell.status == "failed":
        judged = not_settled(UNKNOWN[Outcome.FAILED])
        return CellVerdict(attack, defence, Outcome.FAILED, judged, trusted, reason=cell.reason)
    trials = sorted(cell.seeds, key=lambda trial: claim.seeds.index(trial.seed))
    accuracies = [trial.accuracy for trial in trials]
    gap = difference(accuracies, claim.references.label_smoothing, claim.data.test)
    closed = [trial.gap_closed for trial in trials if trial.gap_closed is not None]
    # As in `difference`: seeds that agree must not differ from a bound by rounding.
    share = round(fmean(closed), 12) if closed else None
    outcome = _outcome(gap, share, trusted)
    return CellVerdict(
        attack,
        defence,
        outcome,
        _judged(outcome, gap),
        trusted,
        accuracy=(fmean(accuracies), half_width(accuracies, claim.data.test)),
        gap=gap,
        gap_closed=share,
        agreement=fmean(trial.agreement for trial in trials),
        queries=fmean(trial.queries for trial in trials),
        seconds=fmean(trial.seconds for trial in trials),
        reason=_distrust(cell, claim) if not trusted else cell.reason,
    )


def _outcome(gap: Difference, share: float | None, trusted: bool) -> Outcome:
    if share is not None and share > RECOVERED_SHARE:
        return Outcome.RECOVERED
    if gap.above:
        return Outcome.GAIN
    if not trusted:
        return Outcome.NOT_TRUSTED
    if share is not None and share > NEARER_SHARE:
        return Outcome.NEARER
    return Outcome.STOPPED if gap.below else Outcome.NO_GAIN


def _judged(outcome: Outcome, gap: Difference) -> Judged:
    """An attack that was run, as a promise: what the accuracies say, unless the outcome says more."""
    judged = judge_excess(gap)
    if outcome in BREAKS:
        return Judged(Judgement.BROKEN, (), judged.smallest)
    return not_settled(UNKNOWN[outcome], judged.smallest) if outcome in UNKNOWN else judged


def _distrust(cell: Cell, claim: Claim) -> str:
    control = claim.controls.get(cell.attack)
    if control is None or control.positive.passed is None:
        why, where = "its positive control was not run", control.positive.reason if control else ""
    elif control.positive.passed is False:
        why, where = "its positive control failed", control.positive.reason
    else:
        failed = "failed" if control.negative.passed is False else "was not run"
        why, where = f"its negative control {failed}", control.negative.reason
    return f"{why}: {where}" if where else why


def judge_threat(threat: Threat, cells: tuple[CellVerdict, ...]) -> ThreatVerdict:
    """Judge one threat model by the cells of the audited box; attacks through the API count for both."""
    kinds = ("api",) if threat == "api" else ("api", "shipped")
    ours = tuple(cell for cell in cells if cell.attack.threat in kinds and cell.judged is not None)
    judged = together(cell.judged for cell in ours if cell.judged is not None)
    return ThreatVerdict(threat, judged if ours else not_settled(NO_ATTACK), ours)


def _promise(ours: list[float | None], theirs: list[float], images: int, budget: float) -> Promise:
    """Whether `theirs` is above `ours` by no more than a budget; seeds without a value are left out."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    reference = (fmean(theirs), half_width(theirs, images))
    if not pairs:
        return Promise(None, reference, None, not_settled(NO_KEY))
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]
    judged = judge_excess(difference(other, mine, images), budget)
    return Promise((fmean(mine), half_width(mine, images)), reference, difference(mine, other, images), judged)


def judge(claim: Claim) -> AuditVerdict:
    """Judge an audited box.

    Args:
        claim: A claim that `read_claim` has checked.

    Returns:
        The verdict; `judged` is about the threat model that the claim declares.
    """
    cells = tuple(judge_cell(claim, row.name, attack) for row in claim.defences for attack in claim.attacks)
    ours = tuple(cell for cell in cells if cell.defence == claim.target)
    api = judge_threat("api", ours)
    both = judge_threat("shipped", ours)
    declared = api if claim.threat == "api" else both
    box, references, images = claim.defence(claim.target), claim.references, claim.data.test
    everyone = _promise(list(box.keyless), references.teacher, images, ACCURACY_BUDGET)
    # A box that no key opens promises its partners nothing.
    keyless = claim.box is not None and not claim.box.key_kind
    partner = None if keyless else _promise(box.partner, references.from_teacher, images, 0.0)
    has_shipped = claim.threat == "shipped" or any(cell.attack.threat == "shipped" for cell in both.cells)
    return AuditVerdict(
        judged=together([declared.judged, everyone.judged, *([partner.judged] if partner else [])]),
        declared=declared,
        api=api,
        shipped=both if has_shipped else None,
        leak=tuple(cell for cell in ours if cell.attack.threat == "leak"),
        everyone=everyone,
        partner=partner,
        teaches=difference(references.from_teacher, references.label_smoothing, images),
        cells=cells,
    )
