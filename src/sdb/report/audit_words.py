"""An audit's verdict in words, for somebody who has not read the paper. They follow `judge` and decide nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from sdb.report.audit_verdict import (
    BREAKS,
    COMPARED,
    UNKNOWN,
    AuditVerdict,
    CellVerdict,
    Outcome,
    Promise,
    ThreatVerdict,
)
from sdb.report.claim import Claim
from sdb.report.intervals import FEWEST_SEEDS, Difference, percent, points_and_half
from sdb.report.judgement import ACCURACY_BUDGET, COARSEST, NOTABLE, Judged, Judgement
from sdb.report.template import TONES, Tone

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
    judged: Judged
    sentence: str
    declared: bool = True

    @property
    def tone(self) -> Tone:
        """The colour of its card."""
        return TONES[self.judged.judgement]


def among(cells: tuple[CellVerdict, ...]) -> str:
    """The names of some attacks, a few of them."""
    names = [cell.attack.name for cell in cells]
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def against(gap: Difference) -> str:
    """A difference to the bar in words."""
    return f"{points_and_half(gap.value, gap.half)} points against the bar"


def _attacks(count: int) -> str:
    return f"{count} attack{'' if count == 1 else 's'}"


def threat_finding(threat: ThreatVerdict, declared: bool) -> Finding:
    """What the attacks of one threat model showed."""
    title, count, judged = THREATS[threat.threat], len(threat.cells), threat.judged
    best, span = threat.strongest, resolution(threat)
    bar = f" The best copy: {best.attack.name}, {against(best.gap)}." if best and best.gap else ""
    seen = f" The smallest gain that could have been seen: {span}." if span else ""
    if judged.judgement is Judgement.NOTHING_AT_STAKE:
        sentence = (
            "The unprotected teacher's soft answers are worth nothing here over what its classes give, so no attack "
            f"could show a gain.{bar}{seen}"
        )
        return Finding(title, "Nothing at stake", judged, sentence, declared)
    if judged.judgement is Judgement.BROKEN:
        breaks = threat.having(BREAKS)
        sentence = f"{len(breaks)} of {_attacks(count)} got through: {_breaks(breaks)}.{seen}"
        return Finding(title, "Can copy it", judged, sentence, declared)
    if judged.judgement is Judgement.NOT_SETTLED:
        sentence = f"{_unknown(threat)}{bar}{seen}".strip()
        return Finding(title, "Not settled", judged, sentence, declared)
    stopped = len(threat.having({Outcome.STOPPED}))
    sentence = (
        f"None of {_attacks(count)} made a copy clearly better than top-1 answers give; {stopped} did clearly "
        f"worse.{bar}{seen}"
    )
    return Finding(title, "Gains nothing", judged, sentence, declared)


def _because(reasons: Iterable[str]) -> str:
    """Why something is not settled, as the beginning of a sentence."""
    text = "; ".join(reasons)
    return text[:1].upper() + text[1:]


def _unknown(threat: ThreatVerdict) -> str:
    """What keeps a threat model open, which attacks do so, and what the others gained."""
    unknown, count = threat.having(UNKNOWN), len(threat.cells)
    nearer = tuple(cell for cell in unknown if cell.outcome is Outcome.NEARER)
    others = tuple(cell for cell in unknown if cell.outcome is not Outcome.NEARER)
    told = [reason for reason in threat.judged.reasons if reason not in UNKNOWN.values()]
    parts = [f"{_because(told)}."] if told else []
    if nearer:
        most = max(cell.gap_closed or 0.0 for cell in nearer)
        parts.append(
            f"{_attacks(len(nearer))} ({among(nearer)}) came nearer the teacher than a thief gets alone, by up to "
            f"{percent(most, 0)} of the way."
        )
    if others:
        parts.append(f"{len(others)} of {_attacks(count)} failed or cannot be trusted ({among(others)}).")
    if unknown:
        parts.append(f"The other {count - len(unknown)} gained nothing clear.")
    return " ".join(parts)


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


def _held(promise: Promise, title: str, kept: str, lost: str) -> Finding:
    judged, gap = promise.judged, promise.gap
    if promise.ours is None or gap is None:
        return Finding(title, "Not tested", judged, f"{_because(judged.reasons)}.")
    measured = points_and_half(gap.value, gap.half)
    pair = f"{percent(promise.ours[0])} against {percent(promise.theirs[0])}, {measured} points"
    seen = f" The smallest loss that could have been seen: {100 * (judged.smallest or 0):.1f} points."
    if promise.calibration is not None:
        box, teacher = (f"{100 * error:.1f}" for error in promise.calibration)
        seen = f" Its confidence is {box} points off on average, the teacher's {teacher}.{seen}"
    if promise.lies:
        return Finding(title, "Not honest", judged, f"Its confidence is not what it says ({pair}).{seen}")
    if judged.judgement is Judgement.BROKEN:
        return Finding(title, "Clearly worse", judged, f"{lost} ({pair}).{seen}")
    if judged.judgement is Judgement.NOT_SETTLED:
        return Finding(title, "Not settled", judged, f"{_because(judged.reasons)}: {pair}.{seen}")
    return Finding(title, "Better" if gap.above else "As good", judged, f"{kept} ({pair}).{seen}")


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
    if verdict.partner is not None:
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


def summary(claim: Claim, verdict: AuditVerdict) -> str:
    """The verdict in a line, with the smallest gain that its test could have seen."""
    model = {"api": "behind an API", "shipped": "as shipped files"}[claim.threat]
    name, span = subject(claim).lower(), resolution(verdict.declared)
    text = {
        Judgement.ESTABLISHED: f"Established: {name} holds {model}",
        Judgement.BROKEN: f"Broken: {name} does not keep its promises {model}",
        Judgement.NOTHING_AT_STAKE: f"Nothing at stake here: no attack could show what {name} keeps back {model}",
        Judgement.NOT_SETTLED: f"Not settled: this audit cannot say whether {name} keeps its promises {model}: "
        f"{'; '.join(verdict.judged.reasons)}",
    }[verdict.judged.judgement]
    return f"{text} (smallest gain that could have been seen: {span})" if span else text


def headline(claim: Claim, verdict: AuditVerdict) -> str:
    """What the declared threat model came to, as one or two sentences."""
    broken, established = Judgement.BROKEN, Judgement.ESTABLISHED
    copied = verdict.declared.judged.judgement
    who = {"api": "by asking it", "shipped": "by asking it or from its files"}[claim.threat]
    if copied is broken:
        who = "by asking it" if verdict.api.judged.judgement is broken else "from its files"
    name = subject(claim)
    lead = {
        broken: f"{name} can be copied {who}.",
        established: f"Nobody who tried to copy {name.lower()} {who} gained anything beyond its classes.",
        Judgement.NOTHING_AT_STAKE: "Here a thief gains nothing from the unprotected teacher either.",
    }.get(copied, f"Whether {name.lower()} can be copied {who} is not settled.")
    lead = f"{story(claim, verdict)}{lead}"
    cost = {
        broken: "Its confidence is not what it says."
        if verdict.everyone.lies
        else "Its users pay: it answers clearly worse than the teacher.",
        established: "Everyone can use it as before.",
    }.get(verdict.everyone.judged.judgement, "Whether its users pay for that is not settled.")
    partner = verdict.partner is not None and verdict.partner.judged.judgement is broken
    return f"{lead} {cost}{' Its partners are not served either.' if partner else ''}"


def story(claim: Claim, verdict: AuditVerdict) -> str:
    """What thieves and partners gain, as a sentence and a space; empty where pairs did not measure it."""
    found = verdict.measured
    if found is None or not found.stake.above or not found.attacks:
        return ""

    def gained(gap: Difference) -> str:
        if gap.above:
            return f"{100 * gap.value:.1f} points"
        return f"nothing that chance does not explain ({points_and_half(gap.value, gap.half)} points)"

    # The first was chosen as the best, on validation images.
    thief = found.attack(next(iter(found.attacks)))
    partner = f"; a partner gains {gained(found.partner.difference())}" if found.partner else ""
    return (
        f"With {claim.regime.labelled:,} labelled images, a thief gains {gained(found.stake.difference())} from the "
        f"bare model and {gained(thief) if thief else 'nothing'} from {subject(claim).lower()}{partner}. "
    )


def caveats(claim: Claim, verdict: AuditVerdict) -> list[tuple[str, str]]:
    """What a reader must know before trusting the verdict: a few words and a sentence each."""
    found = []
    if not verdict.teaches.above:
        gain = points_and_half(verdict.teaches.value, verdict.teaches.half)
        found.append(
            (
                "Little to steal.",
                "On this data even the unprotected teacher’s student is no better than the bar "
                f"({gain} points), as far as this test can tell. So this audit shows thieves "
                "being harmed, not thieves being denied a gain. The share of the teacher’s soft answers "
                "that an attack recovers says more here than accuracy.",
            )
        )
    if (count := len(verdict.declared.cells)) < FEW_ATTACKS:
        found.append(
            (
                "Few attacks.",
                f"This audit has only {_attacks(count)} of the declared threat model. What was not tried is not "
                "shown.",
            )
        )
    if claim.pairs is None and len(claim.seeds) == 1:
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
    shipped = verdict.shipped
    if shipped is not None and claim.threat == "api" and shipped.judged.judgement is Judgement.BROKEN:
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


def resolution(threat: ThreatVerdict) -> str:
    """The smallest gains that could have been seen, from the sharpest comparison to the bluntest; empty without any."""
    halves = [cell.judged.smallest for cell in threat.cells if cell.judged and cell.judged.smallest is not None]
    if not halves:
        return ""
    least, most = (f"{100 * value:.1f}" for value in (min(halves), max(halves)))
    return f"{least} points" if least == most else f"{least} to {most} points, by attack"


def rule(verdict: AuditVerdict) -> str:
    """How the verdict is decided, and how often it errs by chance."""
    count, found = len(verdict.declared.having(COMPARED)), verdict.measured
    start = f"How this is decided: the bar is {bar_words(verdict.bar)}. "
    end = (
        f"Users may lose {100 * ACCURACY_BUDGET:.1f} points, and confidence must be what it says. A promise is "
        f"established where less than {100 * NOTABLE:.0f} point was lost to chance and {100 * COARSEST:.0f} points can "
        "be ruled out; otherwise, unless it is broken, it is not settled. Where the unprotected teacher's soft answers "
        "are worth nothing over the bar, nothing is at stake."
    )
    if found is None:
        return (
            f"{start}A copy counts as better when its accuracy is above that by the 95 % interval of the difference, "
            f"over at least {FEWEST_SEEDS} seeds. {end}"
        )
    worst = 100 * max(each.error for each in (found.stake, *found.attacks.values()))
    return (
        f"{start}Of {_attacks(count)} the best on the thieves' own validation images ({', '.join(found.attacks)}) "
        f"were measured again on {found.pairs} fresh students each, with other images and seeds, beside the bar "
        f"and beside themselves on the box's classes alone: what is no better than either gained nothing else "
        f"(standard error {worst:.2f} points at most). These decide. Another attack counts where it is above the bar "
        f"by more than the best of so many equal ones would be. {end}"
    )


def bar_words(bar: str) -> str:
    """The bar, as what a thief has without any soft answer."""
    ways = {
        "alone": "the same small network trained alone",
        "label smoothing": "the same small network trained alone on smoothed labels",
        "self-training": "the same small network, trained on the thief's labels and its own guesses",
        "top-1 answers": "the same small network, trained on top-1 answers",
        "top-1 answers, smoothed": "the same small network, trained on smoothed top-1 answers",
    }
    return f"{ways.get(bar, bar)}, the best of what needs no soft answer"
