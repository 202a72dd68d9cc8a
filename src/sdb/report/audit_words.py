"""An audit's verdict in words, for somebody who has not read the paper. The wording follows the numbers."""

from dataclasses import dataclass

from sdb.report.audit_verdict import (
    BREAKS,
    COMPARED,
    FALSE_ALARM,
    UNKNOWN,
    AuditVerdict,
    CellVerdict,
    Outcome,
    Promise,
    ThreatVerdict,
)
from sdb.report.claim import Claim
from sdb.report.intervals import Difference, points_and_half
from sdb.report.verdict import NOTABLE_LOSS, Tone, percent

THREATS = {
    "api": "Somebody who can only ask it",
    "shipped": "Somebody who holds its files",
    "leak": "Somebody who knows what a thief should not",
}
INTERFACES = {
    "labels": "only the most likely class",
    "top_k": "the most likely classes with their probabilities",
    "probabilities": "the probability of every class",
    "logits": "the raw score of every class",
}
# An audit of fewer attacks is no full audit.
FEW_ATTACKS = 8
# More names than this make a sentence hard to read.
MOST_NAMES = 4


@dataclass(frozen=True)
class Finding:
    """One question that the audit asks, and its answer."""

    title: str
    status: str
    tone: Tone
    sentence: str
    declared: bool = True


def among(cells: tuple[CellVerdict, ...]) -> str:
    """The names of some attacks, a few of them."""
    names = [cell.attack.name for cell in cells]
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def against(gap: Difference) -> str:
    """A difference to the bar in words."""
    return f"{points_and_half(gap.value, gap.half)} points against training alone"


def _attacks(count: int) -> str:
    return f"{count} attack{'' if count == 1 else 's'}"


def threat_finding(threat: ThreatVerdict, declared: bool) -> Finding:
    """What the attacks of one threat model showed."""
    title = THREATS[threat.threat]
    breaks, unknown = threat.having(BREAKS), threat.having(UNKNOWN)
    count = len(threat.cells)
    if threat.passed is False:
        sentence = f"{len(breaks)} of {_attacks(count)} got through: {_breaks(breaks)}."
        return Finding(title, "Can copy it", Tone.BROKEN, sentence, declared)
    best = threat.strongest
    bar = f" The best copy: {best.attack.name}, {against(best.gap)}." if best and best.gap else ""
    if threat.passed is None:
        if not count:
            return Finding(title, "Not established", Tone.OPEN, "No attack of this kind applied.", declared)
        nearer = tuple(cell for cell in unknown if cell.outcome is Outcome.NEARER)
        others = tuple(cell for cell in unknown if cell.outcome is not Outcome.NEARER)
        parts = []
        if nearer:
            most = max(cell.gap_closed or 0.0 for cell in nearer)
            parts.append(
                f"{_attacks(len(nearer))} ({among(nearer)}) came nearer the teacher than a thief gets alone, by up to "
                f"{percent(most, 0)} of the way."
            )
        if others:
            parts.append(f"{len(others)} of {_attacks(count)} failed or cannot be trusted ({among(others)}).")
        sentence = f"{' '.join(parts)} The other {count - len(unknown)} gained nothing clear.{bar}"
        return Finding(title, "Not established", Tone.OPEN, sentence, declared)
    if best and best.gap and best.gap.value >= NOTABLE_LOSS:
        sentence = (
            f"Perhaps not: the best copy, {best.attack.name}, is at {against(best.gap)}; the test is too small."
        )
        return Finding(title, "Not settled", Tone.OPEN, sentence, declared)
    stopped = len(threat.having(frozenset({Outcome.STOPPED})))
    sentence = (
        f"None of {_attacks(count)} made a copy clearly better than the same small network trained alone; "
        f"{stopped} did clearly worse.{bar}"
    )
    return Finding(title, "Gains nothing", Tone.KEPT, sentence, declared)


def _breaks(breaks: tuple[CellVerdict, ...]) -> str:
    parts = []
    gains = [cell for cell in breaks if cell.gap is not None and cell.gap.above]
    if gains:
        best = max(gains, key=lambda cell: cell.gap.value if cell.gap else 0.0)
        parts.append(f"the copy of {best.attack.name} is at {against(best.gap)}" if best.gap else "")
    rebuilt = [cell for cell in breaks if cell.outcome is Outcome.RECOVERED]
    if rebuilt:
        best = max(rebuilt, key=lambda cell: cell.gap_closed or 0.0)
        share = percent(best.gap_closed or 0.0, 0)
        parts.append(
            f"{best.attack.name} rebuilt the teacher, closing {share} of the distance to it from a network of the "
            "thief's own"
        )
    return "; ".join(parts)


def _pair(promise: Promise) -> str:
    if promise.ours is None or promise.gap is None:
        return ""
    gap = points_and_half(promise.gap.value, promise.gap.half)
    return f"{percent(promise.ours[0])} against {percent(promise.theirs[0])}, {gap} points"


def unsettled(promise: Promise) -> bool:
    """Whether a loss of a point or more stays within chance: too small a test is no proof that there is none."""
    return promise.passed is True and promise.gap is not None and promise.gap.value <= -NOTABLE_LOSS


def _held(promise: Promise, title: str, kept: str, lost: str) -> Finding:
    if promise.passed is None or promise.gap is None:
        return Finding(title, "Not tested", Tone.OPEN, "No key was given to the audit, or there is none.")
    if not promise.passed:
        return Finding(title, "Clearly worse", Tone.BROKEN, f"{lost} ({_pair(promise)}).")
    if unsettled(promise):
        return Finding(title, "Not settled", Tone.OPEN, f"Perhaps not: {_pair(promise)}; the test is too small.")
    status = "Better" if promise.gap.above else "As good"
    return Finding(title, status, Tone.KEPT, f"{kept} ({_pair(promise)}).")


def findings(claim: Claim, verdict: AuditVerdict) -> list[Finding]:
    """The questions in the order of the page: thieves, users, partners."""
    declared = {"api": ("api",), "shipped": ("api", "shipped")}[claim.threat]
    result = [threat_finding(threat, threat.threat in declared) for threat in verdict.threats]
    result.append(
        _held(
            verdict.everyone,
            "Everyone who uses it",
            "It answers as well as the teacher",
            "It answers clearly worse than the teacher: users pay for the protection",
        )
    )
    result.append(
        _held(
            verdict.partner,
            "A partner with the key",
            "A student with the key is as good as one taught by the unprotected teacher",
            "A student with the key is clearly worse than one taught by the unprotected teacher",
        )
    )
    return result


def subject(claim: Claim) -> str:
    """What was audited, as the subject of a sentence."""
    return "The box" if claim.target == "box" else "The decoy box"


def tone_of(verdict: AuditVerdict) -> Tone:
    """The verdict's tone."""
    return {True: Tone.KEPT, False: Tone.BROKEN, None: Tone.OPEN}[verdict.passed]


def summary(claim: Claim, verdict: AuditVerdict) -> str:
    """The verdict in a line."""
    model = {"api": "behind an API", "shipped": "as shipped files"}[claim.threat]
    return {
        True: f"Passed: {subject(claim).lower()} holds {model}",
        False: f"Failed: {subject(claim).lower()} does not keep its promises {model}",
        None: f"Not established: this audit cannot say whether {subject(claim).lower()} holds {model}",
    }[verdict.passed]


def headline(claim: Claim, verdict: AuditVerdict) -> str:
    """What the declared threat model came to, as one or two sentences."""
    threat = verdict.declared
    who = {"api": "by asking it", "shipped": "by asking it or from its files"}[claim.threat]
    if verdict.api.passed is not False and threat.passed is False:
        who = "from its files"
    elif threat.passed is False:
        who = "by asking it"
    name = subject(claim)
    if threat.passed is False:
        lead = f"{name} can be copied {who}."
    elif threat.passed is None:
        lead = f"Whether {name.lower()} can be copied {who} is not established."
    else:
        lead = f"Nobody who tried to copy {name.lower()} {who} gained anything."
    if not verdict.everyone.passed:
        cost = "Its users pay: it answers clearly worse than the teacher."
    elif unsettled(verdict.everyone):
        cost = "Whether its users pay for that, this test is too small to say."
    else:
        cost = "Everyone can use it as before."
    partner = "" if verdict.partner.passed is not False else " Its partners are not served either."
    return f"{lead} {cost}{partner}"


def caveats(claim: Claim, verdict: AuditVerdict) -> list[tuple[str, str]]:
    """What a reader must know before trusting the verdict: a few words and a sentence each."""
    found = []
    if not verdict.teaches.above:
        gain = points_and_half(verdict.teaches.value, verdict.teaches.half)
        found.append(
            (
                "Little to steal.",
                "On this data even the unprotected teacher’s student is no better than one trained alone "
                f"({gain} points), as far as {claim.data.test:,} test images can tell. So this audit shows thieves "
                "being harmed, not thieves being denied a gain. The share of the teacher’s soft answers "
                "that an attack recovers says more here than accuracy.",
            )
        )
    if (count := len(verdict.declared.cells)) < FEW_ATTACKS:
        found.append(
            (
                "Few attacks.",
                f"Only {_attacks(count)} of the declared threat model belong to this audit. What was not tried is not "
                "shown.",
            )
        )
    if len(claim.seeds) == 1:
        found.append(
            (
                "One seed.",
                "Everything was trained once. The intervals cover the choice of test images, not the luck of "
                "training.",
            )
        )
    shuffled = [name for name, control in claim.controls.items() if control.negative.passed is False]
    if shuffled:
        found.append(
            (
                "Learning without answers.",
                f"{', '.join(shuffled)}: this did too well on shuffled answers, so part of what it gains does not "
                "come from the box. Its gains are counted all the same.",
            )
        )
    if (shipped := verdict.shipped) is not None and claim.threat == "api" and shipped.passed is False:
        more = len(shipped.having(BREAKS)) - len(verdict.api.having(BREAKS))
        if more:
            found.append(
                (
                    "Not for shipped files.",
                    f"{_attacks(more)} that start{'s' if more == 1 else ''} from the files got through. "
                    "This verdict is about a box behind an API.",
                )
            )
    return found


def resolution(threat: ThreatVerdict) -> tuple[float, float] | None:
    """The smallest gains that could have been seen: of the sharpest and of the bluntest comparison."""
    halves = [cell.gap.half for cell in threat.having(COMPARED) if cell.gap]
    return (min(halves), max(halves)) if halves else None


def rule(verdict: AuditVerdict) -> str:
    """How the verdict is decided, what it could have seen and how often it errs by chance."""
    text = (
        "How this is decided: “trained alone” is the same small network trained on smoothed labels, without any "
        "teacher, on the same images and seeds. A copy counts as better when its accuracy is above that by the 95 % "
        "interval of the difference."
    )
    seen = resolution(verdict.declared)
    if seen:
        least, most = (f"{100 * value:.1f}" for value in seen)
        span = f"{least} points" if least == most else f"{least} to {most} points, by attack"
        text += f" The smallest gain that could have been seen: {span}."
    count = len(verdict.declared.having(COMPARED))
    alarms = f"{FALSE_ALARM * count:.1f}"
    return text + (
        f" With {count} comparisons, about {alarms} would look like a gain by chance if every copy were exactly as "
        "good as one trained alone; they share one bar, so such errors come together."
    )
