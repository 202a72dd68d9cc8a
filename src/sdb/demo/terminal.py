"""What a demo prints: the sentence, a picture of the gains, the table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdb.report.record import read_record
from sdb.report.verdict import judge

# Columns of the bars, and a colour per row: loss, gain of somebody who should have none, gain of a partner.
WIDTH = 40
COLOURS = {"students.from_teacher": "yellow", "students.partner": "green", "paper.partner": "green"}


def show(record: dict[str, Any], out: Path) -> None:
    """Print it on stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
    verdict = judge(read_record(record))
    console.print(verdict.headline, highlight=False, style="bold")
    console.print()
    gains = record["regime"]["gains"]
    console.print(
        f"Gain over what {record['regime']['bar']['way']} gives ({record['regime']['labelled']} labelled images, "
        f"{record['regime']['pairs']} students each), points:",
        highlight=False,
    )
    reach = max([0.01, *(abs(each["value"]) for each in gains)])
    for each in gains:
        console.print(_bar(each, reach))
    console.print()
    table = Table(title=f"{record['data']['name']}, {record['data']['test']} test images, seed {record['seed']}")
    for heading in ("", "accuracy", "what it means"):
        table.add_column(heading, justify="right" if heading == "accuracy" else "left")
    for row in record["rows"]:
        table.add_row(row["label"], f"{100 * row['accuracy']:.1f} %", row["reads"])
    console.print(table)
    for row in record["traces"]:
        mark = "carries the owner's mark" if row["marked"] else "carries no mark"
        console.print(
            f"trace: {row['label']} {mark} ({row['found']} of {row['total']} decoys, p = 10^{row['log10_p']:.1f})",
            highlight=False,
        )
    console.print(verdict.summary, highlight=False)
    console.print(f"{record['seconds']:.0f} s; report: {out / 'report.html'}", highlight=False)


def _bar(row: dict[str, Any], reach: float) -> Text:
    """One line: who learns from what, its gain with the half-width, and a bar that is drawn left for losses."""
    length = round(WIDTH / 2 * abs(row["value"]) / reach)
    left = "█" * length if row["value"] < 0 else ""
    right = "█" * length if row["value"] > 0 else ""
    colour = COLOURS.get(row["id"], "red" if row["value"] > 0 else "blue")
    text = Text(f"{row['label']:>28}  {100 * row['value']:+5.1f} ± {100 * row['half']:3.1f}  ")
    text.append(f"{left:>{WIDTH // 2}}", style=colour)
    text.append("│")
    text.append(right, style=colour)
    return text
