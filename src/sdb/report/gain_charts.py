"""The demo's first figures, as SVG to be inlined: gains over the bar, and how honest confidences are."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sdb.report.charts import COLOURS, STYLES, chart_style, drawn, plain_axes
from sdb.report.intervals import points_and_half
from sdb.report.record import Confidence, Regime

MODELS = {"teacher": "--teacher", "keyless": "--open", "keyed": "--key"}


@dataclass(frozen=True)
class Bar:
    """What one way to learn gains over the bar, with half of its 95 % interval; fractions."""

    label: str
    colour: str
    value: float
    half: float


def gain_chart(regime: Regime) -> str:
    """A bar per way to learn of a demo."""
    return gains_chart([Bar(row.label, STYLES[row.id][0], row.value, row.half) for row in regime.gains])


def gains_chart(shown: Sequence[Bar]) -> str:
    """Points over the bar, with the 95 % interval over pairs; a bar for each way to learn."""
    rows = list(reversed(shown))
    with chart_style("gains"):
        figure = Figure(figsize=(7.2, 0.42 * len(rows) + 0.7))
        axes = figure.add_axes(
            (0.29, 0.55 / (0.42 * len(rows) + 0.7), 0.69, 0.92 - 0.5 / (0.42 * len(rows) + 0.7))
        )
        for place, row in enumerate(rows):
            axes.barh(place, 100 * row.value, height=0.55, color=COLOURS[row.colour])
            low, high = 100 * (row.value - row.half), 100 * (row.value + row.half)
            axes.plot([low, high], [place, place], color=COLOURS["--ink-2"], linewidth=1.4, solid_capstyle="butt")
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.axvline(0, color=COLOURS["--ink-2"], linewidth=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("points over the bar", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "x")
        words = "; ".join(f"{row.label}: {points_and_half(row.value, row.half)} points" for row in shown)
        return drawn(figure, "gains", f"Bar chart of what students gain over the bar. {words}.")


def reliability_chart(confidence: Confidence) -> str:
    """Accuracy against confidence, a point per bin, larger where more answers are; honest ones lie on the diagonal."""
    with chart_style("reliability"):
        figure = Figure(figsize=(5.2, 3.2))
        axes = figure.add_axes((0.14, 0.15, 0.83, 0.82))
        axes.plot([0, 100], [0, 100], color=COLOURS["--line"], linewidth=1.2)
        for model in confidence.models:
            colour, count = COLOURS[MODELS.get(model.id, "--alone")], sum(each.images for each in model.bins)
            x = [100 * each.confidence for each in model.bins]
            y = [100 * each.accuracy for each in model.bins]
            sizes = [8 + 240 * each.images / count for each in model.bins]
            axes.scatter(x, y, s=sizes, color=colour, alpha=0.85, linewidths=0)
        axes.set_xlim(0, 104)
        axes.set_ylim(0, 104)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("confidence", color=COLOURS["--ink-2"])
        axes.set_ylabel("right", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "both")
        words = "; ".join(
            f"{model.label}: {100 * model.calibration_error:.1f} points off on average"
            for model in confidence.models
        )
        return drawn(figure, "reliability", f"Accuracy against confidence. {words}.")
