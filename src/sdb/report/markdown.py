"""An audit as a Markdown table for a paper: attacks as rows, defences as columns."""

from sdb.report.audit_page import GROUPS, accuracy, columns_of, groups_of
from sdb.report.audit_verdict import CellVerdict, Outcome, judge
from sdb.report.audit_words import bar_words
from sdb.report.claim import Claim

_EMPTY = {
    Outcome.FAILED: "failed",
    Outcome.NOT_APPLICABLE: "n/a",
    Outcome.NOT_RUN: "",
}


def escaped(text: str) -> str:
    """Text that stays inside one cell and is read as nothing but text."""
    line = " ".join(text.split())
    for sign in "\\`*_[]|<>~$":
        line = line.replace(sign, f"\\{sign}")
    return line


def row_of(cells: list[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def _cell(cell: CellVerdict) -> str:
    if cell.accuracy is None:
        return _EMPTY[cell.outcome]
    text = f"{100 * cell.accuracy[0]:.1f} ± {100 * cell.accuracy[1]:.1f}"
    if cell.gap is not None and cell.gap.above:
        text = f"**{text}**"
    marks = ("‡" if cell.outcome is Outcome.RECOVERED else "") + ("" if cell.trusted else "†")
    return text + marks


def markdown_table(claim: Claim) -> str:
    """The table, its caption and the notes to its marks.

    Args:
        claim: A claim that `read_claim` has checked.

    Returns:
        Markdown, ending with a line break. Accuracies in per cent, mean and 95 % half-width.
    """
    verdict, columns, images = judge(claim), columns_of(claim), claim.data.test
    lines = [
        row_of(["", *(escaped(row.title) for row in columns)]),
        row_of(["---", *("---:" for _ in columns)]),
    ]

    def line(title: str, values: list[list[float | None]]) -> str:
        return row_of([title, *(accuracy(value, images).replace("\u00a0", " ") for value in values)])

    def each(name: str) -> list[list[float | None]]:
        return [list(getattr(row, name)) for row in columns]

    lines += [line("model, no key", each("keyless")), line("model, key", each("keyed"))]
    lines.append(line("partner", each("partner")))
    for group in groups_of(claim, verdict):
        lines.append(row_of([f"*{_SHORT[group.threat]}*", *("" for _ in columns)]))
        lines += [row_of([escaped(attack.name), *map(_cell, cells)]) for attack, cells in group.rows]
    return "\n".join([*lines, "", _caption(claim), ""])


_SHORT = {threat: title.partition(". ")[0] for threat, title in GROUPS}


def _caption(claim: Claim) -> str:
    references, images, verdict = claim.references, claim.data.test, judge(claim)
    seeds = f"{len(claim.seeds)} seed{'' if len(claim.seeds) == 1 else 's'}"
    bar = accuracy(list(verdict.bars), images).replace("\u00a0", " ")
    teacher = accuracy(list(references.teacher), images).replace("\u00a0", " ")
    taught = accuracy(list(references.from_teacher), images).replace("\u00a0", " ")
    budget = "no query limit" if claim.query_budget is None else f"{claim.query_budget:,} queries"
    text = (
        f"Test accuracy of each attack's student in per cent, mean ± 95 % half-width; {escaped(claim.data.name)}, "
        f"{images:,} test images, {seeds}. Student: {escaped(claim.student.model)}, "
        f"{claim.student.parameters:,} parameters. Answers: {claim.interface.replace('_', '-')}, {budget}; the thief "
        f"learns from {claim.data.train:,} images. The bar, {bar_words(verdict.bar)}: "
        f"{bar}. Teacher {teacher}; its student {taught}. Bold: above the bar beyond chance. †: one of the attack's "
        "controls failed or was not run. ‡: a recovered network closes more than half of the distance from the "
        "thief's own to the teacher."
    )
    return text
