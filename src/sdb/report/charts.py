"""The charts, as SVG to be inlined: no fixed colour or font, no repeated id, the same bytes every time."""

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sdb.report.record import Curve

# (CSS colour variable, dash pattern in points). Lines in one panel differ in both where colours are close.
STYLES: dict[str, tuple[str, tuple[float, ...]]] = {
    "teacher": ("--teacher", ()),
    "box": ("--open", ()),
    "box.keyless": ("--open", ()),
    "box.keyed": ("--key", (5, 2)),
    "box.wrong_key": ("--wrong", (2, 2)),
    "students.alone": ("--alone", (2, 2)),
    "students.label_smoothing": ("--alone", ()),
    "students.from_teacher": ("--teacher", (5, 2)),
    "students.thief": ("--open", ()),
    "students.partner": ("--key", ()),
    "students.wrong_key": ("--wrong", (5, 2)),
    "nasty.teacher": ("--nasty", (5, 2)),
    "nasty.student": ("--nasty", (5, 2)),
    "students.top1": ("--alone", (5, 2)),
    "paper.box": ("--nasty", (2, 2)),
    "paper.student": ("--nasty", (2, 2)),
    "paper.partner": ("--key", (2, 2)),
}
FALLBACK: tuple[str, tuple[float, ...]] = ("--alone", (1, 2))
# Stand-ins that matplotlib accepts; each becomes a CSS variable, so that dark mode and print apply.
_VARIABLES = {
    "#010201": "--ink-2",
    "#010202": "--line",
    "#010203": "--teacher",
    "#010204": "--open",
    "#010205": "--key",
    "#010206": "--wrong",
    "#010207": "--alone",
    "#010208": "--nasty",
}
COLOURS = {variable: colour for colour, variable in _VARIABLES.items()}


@dataclass(frozen=True)
class LegendEntry:
    """One line of a chart, for a legend in HTML, which wraps on a narrow screen."""

    label: str
    colour: str
    dashes: str
    last: float | None


@dataclass(frozen=True)
class CurveChart:
    """One panel of accuracy curves, and the numbers behind it."""

    name: str
    title: str
    svg: str
    floor: float
    cut: bool
    legend: list[LegendEntry]
    table: list[tuple[int, list[float | None]]]


def is_student(curve: Curve) -> bool:
    """Whether a curve belongs to the students' panel."""
    return curve.id.startswith("students.") or curve.id.endswith(".student")


def floor_of(curves: Sequence[Curve]) -> float:
    """Where the accuracy axis starts.

    The first epochs are far below the rest, and an axis that shows them hides what differs at the end. So it
    starts under the second half of every run, at a multiple of five per cent, and spans at least ten points.
    """
    late = [value for curve in curves for value in curve.accuracy[len(curve.accuracy) // 2 :]]
    lowest = min(late, default=0.0)
    return max(0.0, min(0.9, int((lowest - 0.01) * 20) / 20))


def curve_chart(name: str, title: str, curves: Sequence[Curve]) -> CurveChart:
    """Draw one panel of validation accuracy per epoch.

    Args:
        name: Prefix of every id in the SVG, unique on the page.
        title: What the panel shows.
        curves: The runs to draw; at least one.
    """
    floor = floor_of(curves)
    legend: list[LegendEntry] = []
    with chart_style(name):
        figure = Figure(figsize=(5.2, 2.9))
        axes = figure.add_axes((0.1, 0.165, 0.885, 0.8))
        for curve in curves:
            variable, dashes = STYLES.get(curve.id, FALLBACK)
            style = (0, dashes) if dashes else "solid"
            marker = "o" if len(curve.epochs) == 1 else None
            axes.plot(
                curve.epochs,
                [100 * value for value in curve.accuracy],
                color=COLOURS[variable],
                linestyle=style,
                linewidth=1.8,
                marker=marker,
                solid_capstyle="round",
            )
            last = curve.accuracy[-1] if curve.accuracy else None
            pattern = " ".join(f"{1.6 * dash:g}" for dash in dashes)
            legend.append(LegendEntry(curve.label, variable, pattern, last))
        axes.set_ylim(100 * floor, 100 + (1 - floor) * 2)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %" if value <= 100 else ""))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
        axes.set_xlabel("epoch", color=COLOURS["--ink-2"])
        axes.tick_params(length=0, labelcolor=COLOURS["--ink-2"], pad=5)
        axes.grid(axis="y", color=COLOURS["--line"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(COLOURS["--line"])
        drawing = drawn(figure, name, describe(title, legend))
    epochs = sorted({epoch for curve in curves for epoch in curve.epochs})
    columns = [dict(zip(curve.epochs, curve.accuracy, strict=True)) for curve in curves]
    table = [(epoch, [column.get(epoch) for column in columns]) for epoch in epochs]
    cut = any(value < floor for curve in curves for value in curve.accuracy)
    return CurveChart(name, title, drawing, floor, cut, legend, table)


def chart_style(name: str, size: float = 10) -> AbstractContextManager[None]:
    """Text stays text, of so many points, and the same chart gets the same ids every time."""
    return mpl.rc_context({"svg.hashsalt": f"sdb-{name}", "svg.fonttype": "none", "font.size": size})


def plain_axes(axes: Axes, figure: Figure, grid: Literal["both", "x", "y", ""]) -> None:
    """No frame, labels in the second ink, pale lines along the axes that are named."""
    axes.tick_params(length=0, labelcolor=COLOURS["--ink-2"], pad=5)
    if grid:
        axes.grid(axis=grid, color=COLOURS["--line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def drawn(figure: Figure, name: str, words: str) -> str:
    """The figure as SVG to be inlined, with what it shows in words; see `chart_style` for what must be around it."""
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata=nothing, facecolor="none")
    return inline_svg(buffer.getvalue().decode(), name, words)


def describe(title: str, legend: Sequence[LegendEntry]) -> str:
    """The chart in words, for those who do not see it."""
    ends = "; ".join(f"{line.label} ends at {100 * line.last:.1f} %" for line in legend if line.last is not None)
    return f"Line chart of validation accuracy per epoch. {title}: {ends}."


def inline_svg(svg: str, name: str, words: str) -> str:
    """Make matplotlib's SVG fit to stand inside a page.

    What would name an outside address, style the rest of the page or clash with another chart's ids goes.
    Fixed colours become CSS variables, the size follows the page, the words become the accessible name.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    # This sheet addresses every element of the page; style.css says the same for charts only.
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"\sid=\"([^\"]+)\"", rf' id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r"xlink:href=\"#([^\"]+)\"", rf'href="#{name}-\1"', body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    view = re.search(r'viewBox="[^"]+"', body)
    box = view.group(0) if view else ""
    opening = f'<svg class="chart" role="img" aria-label="{html.escape(words)}" {box}>'
    return re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1)
