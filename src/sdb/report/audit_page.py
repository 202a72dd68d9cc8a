"""From an audit's claim to a page: gather what the template shows, render it, put it in place in one step."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sdb.report import audit_words as words
from sdb.report.audit_charts import Standing, frontier, pareto_chart, partner_chart, unlock_chart
from sdb.report.audit_pairs import Measured
from sdb.report.audit_verdict import COMPARED, AuditVerdict, CellVerdict, Outcome, judge, strongest
from sdb.report.claim import AttackRow, Claim, DefenceRow, read_claim
from sdb.report.gain_charts import Bar, gains_chart
from sdb.report.intervals import difference, half_width, percent, points, points_and_half
from sdb.report.page import chance, duration, pairs
from sdb.report.template import TONES, pages_of, style
from sdb.runtime import write_atomic

# A cell this far from the bar has the full colour.
FULL_COLOUR = 0.06
# Fewer keys than this make no curve.
FEWEST_KEYS = 3
# A table longer than this is folded away.
LONG = 12
MARKS = {
    Outcome.STOPPED: "▼",
    Outcome.NO_GAIN: "=",
    Outcome.GAIN: "✕",
    Outcome.RECOVERED: "◆",
    Outcome.NEARER: "◇",
    Outcome.NOT_TRUSTED: "?",
    Outcome.FAILED: "!",
    Outcome.NOT_APPLICABLE: "–",
    Outcome.NOT_RUN: "·",
}
GROUPS = (
    ("api", "Attacks through the API"),
    ("shipped", "Attacks that start from the files"),
    ("leak", "For comparison: attacks that know what a thief should not. They count for nothing"),
)


@dataclass(frozen=True)
class Group:
    """The attacks of one threat model: each with its cells, in the order of the columns."""

    threat: str
    title: str
    rows: list[tuple[AttackRow, list[CellVerdict]]]


def columns_of(claim: Claim) -> list[DefenceRow]:
    """The defences in the page's order: the audited one, the plain teacher, the rest as in the claim."""
    rank = {claim.target: 0, "none": 1}
    return sorted(claim.defences, key=lambda row: rank.get(row.name, 2))


def groups_of(claim: Claim, verdict: AuditVerdict) -> list[Group]:
    """The heat map's rows."""
    by_pair = {(cell.defence, cell.attack.name): cell for cell in verdict.cells}
    columns = columns_of(claim)
    found = []
    for threat, title in GROUPS:
        attacks = [attack for attack in claim.attacks if attack.threat == threat]
        rows = [(attack, [by_pair[row.name, attack.name] for row in columns]) for attack in attacks]
        if rows:
            found.append(Group(threat, title, rows))
    return found


def shade(cell: CellVerdict) -> float:
    """How strong a cell's colour is, in per cent."""
    if cell.gap is None:
        return 0.0
    return round(100 * min(1.0, abs(cell.gap.value) / FULL_COLOUR), 1)


def accuracy(values: list[float | None], images: int) -> str:
    """A mean over seeds with its half-width, in per cent; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{100 * sum(known) / len(known):.1f}\u00a0±\u00a0{100 * half_width(known, images):.1f}"


def opened(text: str) -> str:
    """A title with a capital first letter."""
    return text[:1].upper() + text[1:]


def closed(text: str) -> str:
    """A sentence with its full stop; nothing stays nothing."""
    return text if not text or text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."


def mean(values: list[float]) -> float:
    """The mean of some numbers, at least one."""
    return sum(values) / len(values)


def standings_of(claim: Claim, verdict: AuditVerdict) -> list[Standing]:
    """How each defence does under the declared threat model, in the order of the columns."""
    kinds = ("api",) if claim.threat == "api" else ("api", "shipped")
    images, references = claim.data.test, claim.references
    rows: list[Standing] = []
    for number, row in enumerate(columns_of(claim), start=1):
        cells = tuple(
            cell for cell in verdict.of(row.name) if cell.attack.threat in kinds and cell.outcome in COMPARED
        )
        best = strongest(cells)
        known = [(a, b) for a, b in zip(row.partner, verdict.bars, strict=True) if a is not None]
        partner = difference([a for a, _ in known], [b for _, b in known], images) if known else None
        if number == 1 and verdict.measured is not None and verdict.measured.partner is not None:
            partner = verdict.measured.partner.difference()
        rows.append(
            Standing(
                number=number,
                name=row.name,
                title=row.title,
                cost=difference(row.keyless, references.teacher, images),
                thief=best.gap if best else None,
                attack=best.attack.name if best else "",
                partner=partner,
                attacks=len(cells),
                fewer=bool(rows) and len(cells) < rows[0].attacks,
                recovered=tuple(cell.attack.name for cell in cells if cell.outcome is Outcome.RECOVERED),
            )
        )
    shown = [row for row in rows if row.thief]
    edge = frontier([(row.cost.value, -row.thief.value) for row in shown if row.thief])
    ahead = {row.name for row, first in zip(shown, edge, strict=True) if first}
    return [replace(row, frontier=row.name in ahead) for row in rows]


def gains_of(found: Measured) -> list[Bar]:
    """What pairs measured, as bars: the unprotected teacher, the attacks, the partner."""
    attacks = [
        Bar(f"thief: {name.replace('_', ' ')}", "--open", each.value, each.half)
        for name, each in found.attacks.items()
    ]
    rows = [Bar("the bare model", "--teacher", found.stake.value, found.stake.half), *attacks]
    if found.partner is not None:
        rows.append(Bar("a partner, with the key", "--key", found.partner.value, found.partner.half))
    return rows


def told(claim: Claim) -> float | None:
    """What the audited box's answers were found to say beyond their class, in bits; None where it states no levels."""
    found = claim.defence(claim.target).bits
    if claim.box is None or claim.box.levels is None or found is None:
        return None
    known = [value for value in found if value is not None]
    return mean(known) if known else None


def render(claim: Claim) -> str:
    """The page for a claim claim, as HTML."""
    verdict = judge(claim)
    environment = pages_of("report")
    environment.filters |= {
        "accuracy": lambda values: accuracy(values, claim.data.test),
        "chance": chance,
        "closed": closed,
        "duration": duration,
        "mean": mean,
        "opened": opened,
        "pairs": pairs,
        "percent": percent,
        "points": points,
        "shade": shade,
    }
    standings = standings_of(claim, verdict)
    seen = any(row.thief for row in standings)
    keys = sum(row.similarity is not None for row in claim.unlock)
    # Matplotlib's own output; everything else on the page is escaped.
    charts = {
        "pareto": Markup(pareto_chart(standings)) if seen else None,  # noqa: S704
        "gains": Markup(gains_chart(gains_of(verdict.measured))) if verdict.measured else None,  # noqa: S704
        "partner": Markup(partner_chart(standings, verdict.teaches)),  # noqa: S704
        "unlock": Markup(unlock_chart(claim.unlock)) if keys >= FEWEST_KEYS else None,  # noqa: S704
    }
    return environment.get_template("audit.html.j2").render(
        claim=claim,
        verdict=verdict,
        tone=TONES[verdict.judged.judgement],
        summary=words.summary(claim, verdict),
        headline=words.headline(claim, verdict),
        findings=words.findings(claim, verdict),
        caveats=words.caveats(claim, verdict),
        rule=words.rule(verdict),
        interfaces=words.INTERFACES,
        subject=words.subject(claim),
        bar=words.bar_words(verdict.bar),
        told=told(claim),
        columns=columns_of(claim),
        groups=groups_of(claim, verdict),
        standings=standings,
        marks={str(outcome): mark for outcome, mark in MARKS.items()},
        measured=points_and_half,
        long=LONG,
        style=style("style.css", "audit.css"),
        charts=charts,
    )


def write_audit_report(claim: dict[str, Any] | Claim, path: Path | str) -> None:
    """Write the report of an audit as one HTML file that needs nothing else, in one step.

    Args:
        claim: The audit's claim, as read from its JSON file, or checked already.
        path: Where the page goes. What was there stays until the new page is complete.

    Raises:
        ConfigError: The claim is not one that can be reported.
        StorageError: The page could not be written.
    """
    checked = claim if isinstance(claim, Claim) else read_claim(claim)
    write_atomic(Path(path), render(checked).encode("utf-8"))
