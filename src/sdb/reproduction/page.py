"""A reproduction's table as one self-contained HTML page, in the look of the other reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdb.report.page import pairs
from sdb.report.template import Tone, pages_of, style
from sdb.reproduction.text import title
from sdb.reproduction.view import MARKS, blocks, machines, notes, sources, times, warnings
from sdb.runtime import write_atomic


def tone(finding: dict[str, Any]) -> Tone:
    """How good news a finding is: no thief above the bar, no partner below it."""
    if finding["row"] == "from_teacher":
        return Tone.OPEN
    if finding["row"].endswith(".keyed"):
        return Tone.KEPT if finding["below"] == 0 else Tone.BROKEN
    return Tone.KEPT if finding["above"] == 0 else Tone.BROKEN


def render(table: dict[str, Any]) -> str:
    """The page for a table, as HTML."""
    return (
        pages_of("reproduction")
        .get_template("table.html.j2")
        .render(
            table=table,
            title=title(table),
            blocks=blocks(table),
            findings=[(each, tone(each)) for each in table["findings"]],
            marks=MARKS,
            warnings=warnings(table),
            notes=notes(table),
            sources=list(enumerate(sources(table), start=1)),
            machines=machines(table),
            times=times(table),
            changed=pairs(table["changed"]),
            style=style("style.css", "audit.css"),
        )
    )


def write_page(table: dict[str, Any], path: Path) -> None:
    """Write the page in one step.

    Raises:
        StorageError: the page could not be written.
    """
    write_atomic(path, render(table).encode("utf-8"))
