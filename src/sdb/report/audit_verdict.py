"""From an audit's claim to a verdict. Pure functions; the rule is in `judgement`, the wording in `audit_words`.

The bar is what top-1 gives: no attack makes a student without the key better than the best of those that never saw a
soft answer (alone, label smoothing, top-1 answers, self-training). Attacks on the audited box are promises, and so is
what users and partners keep; all of those that the declared threat model covers together are the verdict.

The best of many equal attacks looks better than it is. So the grid of attacks and defences only chooses the strongest,
on the thieves' validation images, and pairs of fresh students measure these; they decide. Any other attack counts where
it is above the bar by more than the best of so many equal ones would be. In claims without pairs the seeds of the grid
decide, and the bar is label smoothing. Where the unprotected teacher's soft answers are worth nothing over the bar, no
attack could show a gain, and nothing is at stake.

An attack whose controls failed, or were not run, is not trusted: what it does not achieve shows nothing. What it
does achieve counts. An attack that returns a module which closes more than half of the distance between a network of
the thief's own, trained on its labels, and the teacher has recovered the teacher, whatever its student's accuracy: on
easy data a student gains nothing from any teacher, and elsewhere it would. One that closes more than a tenth of it is
nearer the teacher than the thief could get alone: no break, but no box is said to hold against it.
"""

from collections.abc import Container
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import fmean

from sdb.report.audit_pairs import ATTACK, BARE, PARTNER, Measured, wider
from sdb.report.claim import AttackRow, Cell, Claim, Threat
from sdb.report.intervals import Difference, difference, half_width
from sdb.report.judgement import (
    ACCURACY_BUDGET,
    Judged,
    Judgement,
    at_stake,
    judge_excess,
    judge_honesty,
    not_settled,
    together,
)

# Share of the distance from a network of one's own to the teacher's soft outputs that counts as having the teacher.
RECOVERED_SHARE = 0.5
# A share of it above which a box is not said to hold, though the teacher was not recovered.
NEARER_SHARE = 0.1


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
        judged: Whether the defence holds against it; None where the attack was not run, does not apply, or is not one
            of those that decide and did not break it.
        confirmed: Whether pairs measured it.
        trusted: Whether the attack's controls passed.
        accuracy: The student's mean test accuracy and half-width, a fraction; None where nothing was measured.
        gap: Against the bar, of the same seeds or pairs.
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
    confirmed: bool = False
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
        calibration: Calibration errors of both; None where they were not measured.
        honest: Whether confidence is what it says.
    """

    ours: tuple[float, float] | None
    theirs: tuple[float, float]
    gap: Difference | None
    judged: Judged
    calibration: tuple[float, float] | None = None
    honest: Judged | None = None

    @property
    def lies(self) -> bool:
        """Whether confidence is not what it says, beyond chance."""
        return self.honest is not None and self.honest.judgement is Judgement.BROKEN


@dataclass(frozen=True)
class AuditVerdict:
    """An audit's verdict on its box.

    Attributes:
        judged: Every promise under the declared threat model together.
        declared: The threat model that the claim declares.
        api: Against who can only ask.
        shipped: Against who has the weights too; None where no such attack belongs to the audit.
        leak: Attacks that know what a thief should not; they count for nothing.
        everyone: Keyless accuracy and confidence against the teacher's.
        partner: The partner's student against one taught by the teacher; None where the box opens for no key.
        teaches: What the unprotected teacher's student gains over the bar: what is at stake.
        bar: The way to learn that makes the bar.
        bars: Its accuracy per seed.
        measured: What pairs measured; None in older claims.
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
    bar: str
    bars: tuple[float, ...]
    measured: Measured | None
    cells: tuple[CellVerdict, ...]

    @property
    def threats(self) -> tuple[ThreatVerdict, ...]:
        """The verdicts per threat model."""
        return (self.api,) if self.shipped is None else (self.api, self.shipped)

    def of(self, defence: str) -> tuple[CellVerdict, ...]:
        """The cells of one defence, in the order of the attacks."""
        return tuple(cell for cell in self.cells if cell.defence == defence)


def strongest(cells: tuple[CellVerdict, ...]) -> CellVerdict | None:
    """Of the cells that count, the one whose student is farthest above the bar, or least below.

    Where pairs measured some, these, and what broke the defence: the best of the others looks better than it is.
    """
    counted = [cell for cell in cells if cell.outcome in COMPARED and cell.gap]
    if any(cell.confirmed for cell in counted):
        counted = [cell for cell in counted if cell.confirmed or cell.outcome in BREAKS]
    return max(counted, key=lambda cell: (cell.gap.value if cell.gap else 0.0, cell.attack.name), default=None)


def judge_cell(claim: Claim, defence: str, attack: AttackRow, found: Measured | None) -> CellVerdict:
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
    gap = difference(accuracies, bars_of(claim, found), claim.data.test, **_doubt(claim, defence, found))
    paired = found.attack(attack.name) if found is not None and defence == claim.target else None
    if paired is not None and claim.pairs is not None:
        gap, accuracies = paired, claim.pairs.ways[ATTACK + attack.name].test
    closed = [trial.gap_closed for trial in trials if trial.gap_closed is not None]
    # As in `difference`: seeds that agree must not differ from a bound by rounding.
    share = round(fmean(closed), 12) if closed else None
    outcome = _outcome(gap, share, trusted)
    decides = found is None or paired is not None
    return CellVerdict(
        attack,
        defence,
        outcome,
        _judged(outcome, gap) if decides or outcome in {*BREAKS, *UNKNOWN} else None,
        trusted,
        confirmed=paired is not None,
        accuracy=(fmean(accuracies), half_width(accuracies, claim.data.test)),
        gap=gap,
        gap_closed=share,
        agreement=fmean(trial.agreement for trial in trials),
        queries=fmean(trial.queries for trial in trials),
        seconds=fmean(trial.seconds for trial in trials),
        reason=_distrust(cell, claim) if not trusted else cell.reason,
    )


def bars_of(claim: Claim, found: Measured | None) -> list[float]:
    """The bar, per seed of the grid."""
    bar = claim.references.bar
    return bar[found.bar] if found is not None else next(iter(bar.values()))


def _doubt(claim: Claim, defence: str, found: Measured | None) -> dict[str, float]:
    """How wide a grid's difference is: one draw has its luck, and of many equal attacks the best looks better."""
    if found is None:
        return {}
    compared = sum(cell.defence == defence and cell.status == "done" for cell in claim.cells)
    return {"luck": found.spread, "wider": wider(compared)}


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


def judge_threat(threat: Threat, cells: tuple[CellVerdict, ...], stake: Difference) -> ThreatVerdict:
    """Judge one threat model by the cells of the audited box; attacks through the API count for both."""
    kinds = ("api",) if threat == "api" else ("api", "shipped")
    apart = (Outcome.NOT_RUN, Outcome.NOT_APPLICABLE)
    ours = tuple(cell for cell in cells if cell.attack.threat in kinds and cell.outcome not in apart)
    known = [cell.judged for cell in ours if cell.judged is not None]
    return ThreatVerdict(threat, at_stake(together(known), stake) if known else not_settled(NO_ATTACK), ours)


def _promise(
    ours: list[float | None], theirs: list[float], images: int, budget: float, *, trained: bool = True
) -> Promise:
    """Whether `theirs` is above `ours` by no more than a budget; seeds without a value are left out."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    reference = (fmean(theirs), half_width(theirs, images))
    if not pairs:
        return Promise(None, reference, None, not_settled(NO_KEY))
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]
    judged = judge_excess(difference(other, mine, images), budget, trained=trained)
    return Promise((fmean(mine), half_width(mine, images)), reference, difference(mine, other, images), judged)


def _everyone(claim: Claim) -> Promise:
    """Accuracy within the budget, and a confidence that is true."""
    box, references = claim.defence(claim.target), claim.references
    promise = _promise(
        list(box.keyless), references.teacher, claim.data.test, ACCURACY_BUDGET, trained=not claim.given
    )
    if box.calibration_error is None or references.calibration_error is None:
        return promise
    errors = fmean(box.calibration_error), fmean(references.calibration_error)
    honest = judge_honesty(*errors, half_width(box.keyless, claim.data.test))
    judged = together([promise.judged, honest])
    return replace(promise, calibration=errors, honest=honest, judged=judged)


def _partner(claim: Claim, found: Measured | None) -> Promise | None:
    """A partner's student against the teacher's; in pairs where there are some."""
    # A box that no key opens promises its partners nothing.
    if claim.box is not None and not claim.box.key_kind:
        return None
    if found is None or claim.pairs is None:
        box = claim.defence(claim.target)
        return _promise(box.partner, claim.references.from_teacher, claim.data.test, 0.0)
    taught = claim.pairs.ways[BARE + found.taught].test
    reference = (fmean(taught), half_width(taught, claim.data.test))
    if found.short is None or found.given is None:
        return Promise(None, reference, None, not_settled(NO_KEY))
    ours = claim.pairs.ways[PARTNER + found.given].test
    judged, short = judge_excess(found.short.difference()), found.short
    gap = Difference(-short.value, short.half, short.half, -short.highest, short.pairs)
    return Promise((fmean(ours), half_width(ours, claim.data.test)), reference, gap, judged)


def judge(claim: Claim) -> AuditVerdict:
    """Judge an audited box.

    Args:
        claim: A claim that `read_claim` has checked.

    Returns:
        The verdict; `judged` is about the threat model that the claim declares.
    """
    found = None if claim.pairs is None else claim.pairs.measured()
    bars = bars_of(claim, found)
    stake = (
        difference(claim.references.from_teacher, bars, claim.data.test)
        if found is None
        else found.stake.difference()
    )
    cells = tuple(judge_cell(claim, row.name, attack, found) for row in claim.defences for attack in claim.attacks)
    ours = tuple(cell for cell in cells if cell.defence == claim.target)
    api = judge_threat("api", ours, stake)
    both = judge_threat("shipped", ours, stake)
    declared = api if claim.threat == "api" else both
    everyone, partner = _everyone(claim), _partner(claim, found)
    has_shipped = claim.threat == "shipped" or any(cell.attack.threat == "shipped" for cell in both.cells)
    return AuditVerdict(
        judged=together([declared.judged, everyone.judged, *([partner.judged] if partner else [])]),
        declared=declared,
        api=api,
        shipped=both if has_shipped else None,
        leak=tuple(cell for cell in ours if cell.attack.threat == "leak"),
        everyone=everyone,
        partner=partner,
        teaches=stake,
        bar=next(iter(claim.references.bar)) if found is None else found.bar,
        bars=tuple(bars),
        measured=found,
        cells=cells,
    )
