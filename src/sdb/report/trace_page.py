"""The page of a trace by ties: who agrees with whose coins, and what that is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sdb.report.charts import COLOURS, chart_style, drawn, plain_axes
from sdb.report.template import Tone, pages_of, style
from sdb.runtime import write_atomic

# Accounts that a chart shows; the table has all of them.
SHOWN = 25


@dataclass(frozen=True)
class Row:
    """An account of a trace, see `sdb.tracing.ties.AccountTies`.

    Attributes:
        name: for people.
        told, asked, usable, hits: numbers of ties.
        log10_p, corrected_log10_p: of so many hits.
        named: whether the suspect learned from its answers.
    """

    name: str
    told: int
    asked: int
    usable: int
    hits: int
    log10_p: float
    corrected_log10_p: float
    named: bool


def write_trace_page(values: dict[str, Any], sentence: str, suspect: str, path: Path) -> None:
    """Write the page.

    Args:
        values: what `TieTrace.to_json` gives.
        sentence: the result for people.
        suspect: what was asked, as its finder calls it.
        path: the HTML file.
    """
    rows = [Row(**{name: each[name] for name in Row.__dataclass_fields__}) for each in values["accounts"]]
    tested = [row for row in rows if row.usable][:SHOWN]
    neither = sum(row.asked - row.usable for row in rows)
    page = (
        pages_of("report")
        .get_template("trace.html.j2")
        .render(
            style=style("style.css"),
            suspect=suspect,
            sentence=sentence,
            tone=Tone.BROKEN if any(row.named for row in rows) else Tone.OPEN,
            verdict="An account is named" if any(row.named for row in rows) else "No account is named",
            rows=rows,
            shown=len(tested),
            chart=Markup(agreement_chart(tested, values["threshold_log10_p"])) if tested else "",  # noqa: S704 - ours
            neither=neither,
            questions=values["questions"],
            commitment=values["commitment"],
            lodged=values["lodged"],
            threshold=f"{values['threshold_log10_p']:g}",
        )
    )
    write_atomic(path, page.encode())


def agreement_chart(rows: Sequence[Row], threshold: float) -> str:
    """The share of each account's coins that a suspect agrees with.

    In the band lies a model that is independent of the secret in 95 of 100 cases; at the tick an account is named.
    """
    shown, height = list(reversed(rows)), 0.42 * len(rows) + 0.75
    with chart_style("trace"):
        figure = Figure(figsize=(7.2, height))
        axes = figure.add_axes((0.22, 0.58 / height, 0.75, 1 - 0.68 / height))
        for place, row in enumerate(shown):
            half = 98 / math.sqrt(row.usable)
            low, high = max(0.0, 50 - half), min(100.0, 50 + half)
            axes.plot([low, high], [place, place], color=COLOURS["--line"], linewidth=11, solid_capstyle="butt")
            share = 100 * row.hits / row.usable
            axes.plot(share, place, "o", color=COLOURS["--open" if row.named else "--alone"], markersize=7)
            if (least := _least(row, threshold)) is not None:
                axes.plot(100 * least / row.usable, place, "|", color=COLOURS["--ink-2"], markersize=12)
        axes.axvline(50, color=COLOURS["--ink-2"], linewidth=1)
        axes.set_xlim(0, 103)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_yticks(
            range(len(shown)), [row.name if len(row.name) <= 18 else row.name[:17] + "…" for row in shown]
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %" if value <= 100 else ""))
        axes.set_xlabel("coins that the suspect agrees with", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "")
        words = "; ".join(f"{row.name}: {row.hits} of {row.usable}" for row in rows)
        return drawn(figure, "trace", f"Agreement with each account's coins. {words}.")


def _least(row: Row, threshold: float) -> int | None:
    """The fewest hits by which an account would be named, as corrected as it was here; None where none suffice."""
    correction = row.corrected_log10_p - row.log10_p if row.corrected_log10_p < 0 else 0.0
    total, ways = row.usable * math.log10(2), 0
    for hits in range(row.usable, -1, -1):
        ways += math.comb(row.usable, hits)
        if math.log10(ways) - total + correction >= threshold:
            return hits + 1 if hits < row.usable else None
    return 0
