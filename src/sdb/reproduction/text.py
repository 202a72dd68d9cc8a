"""A reproduction's table as Markdown, for a terminal and for a paper."""

from __future__ import annotations

from typing import Any

from sdb.report.markdown import escaped, row_of
from sdb.reproduction.view import MARKS, Line, Shown, blocks, machines, notes, sources, times, warnings


def markdown(table: dict[str, Any]) -> str:
    """The table, its notes and its sources, ending with a line break."""
    lines = [f"# {title(table)}", "", *(f"- {escaped(each)}" for each in warnings(table)), ""]
    for block in blocks(table):
        lines += [f"## {block.title}", ""]
        lines.append(row_of(["", *map(escaped, block.columns), "in print"]))
        lines.append(row_of(["---", *("---:" for _ in block.columns), "---"]))
        lines += [_line(line) for line in block.lines]
        lines.append("")
    lines += [
        f"- {each['title']}: {each['above']} of {each['students']} {each['noun']} above the bar, "
        f"{each['below']} below it."
        for each in table["findings"]
    ]
    lines += ["", *(f"- {escaped(note)}" for note in notes(table)), ""]
    if found := sources(table):
        lines += [*(f"{number}. {escaped(source)}" for number, source in enumerate(found, start=1)), ""]
    lines += [f"    {table['command']}", "", *map(escaped, machines(table)), "", times(table)]
    return "\n".join(lines) + "\n"


def title(table: dict[str, Any]) -> str:
    """What the table is of."""
    return f"The papers' table on {table['data']['name']}, preset {table['preset']}"


def _line(line: Line) -> str:
    label = f"*{escaped(line.label)}*" if line.is_bar else escaped(line.label)
    return row_of([label, *map(_cell, line.cells), escaped(line.note)])


def _cell(cell: Shown) -> str:
    mark = MARKS.get(cell.place, "")
    printed = "".join(f" ({text} [{number}])" for text, number in cell.printed)
    return f"{cell.text}{' ' if mark else ''}{mark}{printed}"
