"""A reproduction's table as one self-contained HTML page, in the look of the other reports."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sdb.report.page import pairs
from sdb.report.verdict import Tone
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sdb", "reproduction"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = "".join(
        files("sdb.report").joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "audit.css")
    )
    return environment.get_template("table.html.j2").render(
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
        style=Markup(style),  # noqa: S704 - our own files; everything else on the page is escaped
    )


def write_page(table: dict[str, Any], path: Path) -> None:
    """Write the page in one step.

    Raises:
        StorageError: the page could not be written.
    """
    write_atomic(path, render(table).encode("utf-8"))
