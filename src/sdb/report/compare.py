"""What changed between two audits: cells beyond their intervals, settings, verdict."""

from dataclasses import dataclass
from math import hypot
from typing import Any

from sdb.report.audit_verdict import CellVerdict, judge
from sdb.report.audit_words import summary
from sdb.report.claim import Claim
from sdb.report.intervals import points_and_half
from sdb.report.markdown import escaped, row_of
from sdb.report.page import plain

# Where these differ, a difference between two cells says nothing about a defence or an attack.
_MUST_AGREE = ("data", "student", "settings", "interface", "top_k", "query_budget", "views", "regime")
_MAY_DIFFER = ("box", "victim", "threat", "preset", "seeds", "environment")
# Parts of the settings that say where and with which luck, not what.
_LUCK = ("settings.seed", "settings.device")
# More cells than this are counted, not named.
MOST_CELLS = 6


@dataclass(frozen=True)
class Change:
    """A setting that differs: where, and its two values as text."""

    path: str
    first: str
    second: str


@dataclass(frozen=True)
class Moved:
    """A cell in both claims whose outcome or whose number changed."""

    first: CellVerdict
    second: CellVerdict
    beyond: bool


@dataclass(frozen=True)
class Comparison:
    """Two claims, side by side.

    Attributes:
        apart: What differs of data, student, budgets and interface: then the cells are of different things, and are not
            compared.
        settings: What differs, that included.
        moved: Cells that differ beyond their intervals; of the audited box, also those with another outcome.
        within: How many other cells have numbers in both claims.
        only_first: Cells, as `attack on defence`, with a number only in the first.
        only_second: The same for the second.
        verdicts: The two verdicts, a line each.
        changed: Whether they differ.
    """

    apart: tuple[str, ...]
    settings: tuple[Change, ...]
    moved: tuple[Moved, ...]
    within: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    verdicts: tuple[str, str]
    changed: bool


def differences(first: Any, second: Any, path: str) -> list[Change]:
    """Where two JSON values differ; objects are compared member by member."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = [*first, *(name for name in second if name not in first)]
        found = [differences(first.get(name), second.get(name), f"{path}.{name}") for name in names]
        return [change for part in found for change in part]
    return [] if first == second else [Change(path, plain(first), plain(second))]


def _fields(claim: Claim, names: tuple[str, ...]) -> dict[str, Any]:
    return claim.model_dump(include=set(names))


def _settings(first: Claim, second: Claim, names: tuple[str, ...]) -> list[Change]:
    ours, theirs = _fields(first, names), _fields(second, names)
    return [change for name in names for change in differences(ours[name], theirs[name], name)]


def _parameters(first: Claim, second: Claim) -> list[Change]:
    found = []
    for kind in ("attacks", "defences"):
        other = {row.name: row for row in getattr(second, kind)}
        for row in getattr(first, kind):
            if row.name in other:
                path = f"{kind}.{row.name}"
                found += differences(row.parameters, other[row.name].parameters, path)
    return found


def compare(first: Claim, second: Claim) -> Comparison:
    """Compare two audits.

    Args:
        first: A claim that `read_claim` has checked.
        second: Another one.
    """
    found = _settings(first, second, _MUST_AGREE)
    apart = tuple(change.path for change in found if change.path not in _LUCK)
    ours, theirs = judge(first), judge(second)
    before = {_pair(cell, first): cell for cell in ours.cells if cell.gap is not None}
    after = {_pair(cell, second): cell for cell in theirs.cells if cell.gap is not None}
    if apart:
        before, after = {}, {}
    judged = [
        Moved(cell, after[pair], _beyond(cell, after[pair])) for pair, cell in before.items() if pair in after
    ]
    moved = tuple(item for item in judged if item.beyond or _told(item, first))
    return Comparison(
        apart=apart,
        settings=(*found, *_settings(first, second, _MAY_DIFFER), *_parameters(first, second)),
        moved=moved,
        within=len(judged) - len(moved),
        only_first=tuple(f"{attack} on {defence}" for defence, attack in before if (defence, attack) not in after),
        only_second=tuple(
            f"{attack} on {defence}" for defence, attack in after if (defence, attack) not in before
        ),
        verdicts=(summary(first, ours), summary(second, theirs)),
        changed=ours.judged.judgement is not theirs.judged.judgement,
    )


def _pair(cell: CellVerdict, claim: Claim) -> tuple[str, str]:
    """What a cell is compared under: the audited box is itself, whatever the claim calls it."""
    return ("the audited box" if cell.defence == claim.target else cell.defence, cell.attack.name)


def _told(item: Moved, claim: Claim) -> bool:
    return item.first.defence == claim.target and item.first.outcome is not item.second.outcome


def _beyond(first: CellVerdict, second: CellVerdict) -> bool:
    if first.gap is None or second.gap is None:
        return False
    change = abs(second.gap.value - first.gap.value)
    return change > 0 and change >= hypot(first.gap.half, second.gap.half)


def _gap(cell: CellVerdict) -> str:
    return points_and_half(cell.gap.value, cell.gap.half).replace("\u00a0", " ") if cell.gap else ""


def comparison_text(result: Comparison, names: tuple[str, str]) -> str:
    """A comparison as Markdown, ending with a line break.

    Args:
        result: What `compare` found.
        names: What the two claims are called, such as their files.
    """
    first, second = (escaped(name) for name in names)
    lines = [
        f"{'Verdict changed' if result.changed else 'Same verdict'}:",
        f"- {first}: {escaped(result.verdicts[0])}",
        f"- {second}: {escaped(result.verdicts[1])}",
        "",
    ]
    if result.settings:
        lines += ["Settings that differ:", "", row_of(["setting", first, second]), row_of(["---"] * 3)]
        lines += [row_of([escaped(c.path), escaped(c.first), escaped(c.second)]) for c in result.settings]
    else:
        lines.append("No setting differs.")
    lines.append("")
    if result.moved:
        lines += [
            "Cells that moved; points against the bar:",
            "",
            row_of(["attack", "defence", first, second, "beyond the intervals"]),
            row_of(["---", "---", "---:", "---:", "---"]),
        ]
        lines += [
            row_of(
                [
                    escaped(item.first.attack.name),
                    escaped(item.first.defence),
                    f"{_gap(item.first)}, {item.first.outcome}",
                    f"{_gap(item.second)}, {item.second.outcome}",
                    "yes" if item.beyond else "no, only the outcome differs",
                ]
            )
            for item in result.moved
        ]
        lines.append("")
    if result.apart:
        lines.append(
            f"Cells are not compared: these audits differ in {', '.join(map(escaped, result.apart))}, so their numbers "
            "are of different things. Audit both boxes with the same settings to compare them."
        )
    else:
        lines.append(f"{result.within} cell(s) stayed within their intervals.")
    for name, cells in ((first, result.only_first), (second, result.only_second)):
        if cells:
            more = f" and {len(cells) - MOST_CELLS} more cells" if len(cells) > MOST_CELLS else ""
            lines.append(f"Only in {name}: {', '.join(map(escaped, cells[:MOST_CELLS]))}{more}.")
    return "\n".join([*lines, ""])
