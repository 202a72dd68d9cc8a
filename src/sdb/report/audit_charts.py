"""An audit's charts: protection against cost, thief against partner, and what a nearly right key opens."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sdb.report.charts import COLOURS as COLOURS
from sdb.report.charts import chart_style, drawn, plain_axes
from sdb.report.claim import Unlock
from sdb.report.intervals import Difference, points, points_and_half

# Where a point's number may stand, in points of the page around it: the first place that is free.
_PLACES = ((0, 9), (0, -17), (9, -4), (-9, -4), (8, 7), (-8, 7), (8, -14), (-8, -14), (0, 20), (17, -4), (-17, -4))
_WIDTH = 4.7


@dataclass(frozen=True)
class Standing:
    """How one defence does: what a chart and the table behind it show.

    Attributes:
        number: Its mark in the chart; 1 is the audited one.
        name: Its name in the claim.
        title: Its name for people.
        cost: Keyless accuracy against the teacher's.
        thief: The strongest attack's student against the bar; None where no attack counts.
        attack: That attack's name.
        partner: The partner's student against the bar; None without a key.
        attacks: How many attacks count.
        fewer: Whether it met fewer attacks than the audited box.
        recovered: Attacks that recovered the teacher.
        frontier: Whether no other defence both costs less and protects more.
    """

    number: int
    name: str
    title: str
    cost: Difference
    thief: Difference | None
    attack: str
    partner: Difference | None
    attacks: int
    fewer: bool
    recovered: tuple[str, ...]
    frontier: bool = False


def frontier(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of some (kept accuracy, protection) pairs no other one beats in both."""
    return [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in pairs) for a, b in pairs]


def _signed(value: float, _: int) -> str:
    return f"{value:+g}".replace("-", "\u2212") if value else "0"


def pareto_chart(standings: Sequence[Standing]) -> str:
    """What each defence costs its users against what it denies the best thief; up and right is better.

    Args:
        standings: Defences; those that no attack counts for are left out. At least one has a thief.

    Returns:
        The chart as SVG for the page.
    """
    shown = [(row, 100 * row.cost.value, -100 * row.thief.value) for row in standings if row.thief]
    with chart_style("pareto", 9.5):
        figure = Figure(figsize=(_WIDTH, 4.0))
        axes = figure.add_axes((0.115, 0.135, 0.865, 0.835))
        axes.axhline(0, color=COLOURS["--ink-2"], linewidth=1.0, dashes=(2, 2))
        edge = sorted((x, y) for row, x, y in shown if row.frontier)
        axes.step(*zip(*edge, strict=True), where="pre", color=COLOURS["--teacher"], linewidth=1.2, alpha=0.7)
        # The audited box last, on top, and only it with its intervals: twelve crosses hide each other.
        for row, x, y in reversed(shown):
            audited = row.number == 1
            colour = COLOURS["--open" if audited else "--alone"]
            if audited and row.thief:
                across, up = 100 * row.cost.half, 100 * row.thief.half
                axes.errorbar(x, y, up, across, color=colour, elinewidth=1.2, alpha=0.45)
            fill = "none" if row.fewer else "full"
            axes.plot(x, y, "o", markersize=7, markeredgewidth=1.6, color=colour, fillstyle=fill)
        axes.margins(0.09, 0.12)
        axes.autoscale_view()
        _number(axes, shown)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed))
        axes.yaxis.set_major_formatter(FuncFormatter(_signed))
        axes.set_xlabel("users: points against the teacher", color=COLOURS["--ink-2"])
        axes.set_ylabel("best thief: points below the bar", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "both")
        ends = "; ".join(
            f"{row.title}: users {points(row.cost.value)}, best thief {points(row.thief.value)}"
            for row, _, _ in shown
            if row.thief
        )
        return drawn(figure, "pareto", f"Scatter chart of cost against protection, in points. {ends}.")


def _number(axes: Axes, shown: Sequence[tuple[Standing, float, float]]) -> None:
    """Write each point's number beside it, where no other point or number is."""
    spots = [tuple(axes.transData.transform((x, y))) for _, x, y in shown]
    taken = list(spots)
    scale = axes.figure.dpi / 72
    for (row, x, y), (across, up) in zip(shown, spots, strict=True):
        free = [
            (dx, dy)
            for dx, dy in _PLACES
            if all(
                abs(across + dx * scale - a) > 11 * scale or abs(up + (dy + 4) * scale - b) > 10 * scale
                for a, b in taken
            )
        ]
        dx, dy = (free or _PLACES)[0]
        taken.append((across + dx * scale, up + (dy + 4) * scale))
        colour = COLOURS["--open" if row.number == 1 else "--ink-2"]
        axes.annotate(
            str(row.number), (x, y), (dx, dy), textcoords="offset points", ha="center", color=colour, fontsize=9
        )


def partner_chart(standings: Sequence[Standing], teaches: Difference) -> str:
    """Each defence's best thief and its partner, against the bar.

    Args:
        standings: The defences; at least one.
        teaches: What the unprotected teacher's student gains over the bar.
    """
    with chart_style("partner", 9.5):
        height = 0.85 + 0.31 * len(standings)
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((0.36, 0.55 / height, 0.62, 1 - 0.65 / height))
        axes.axvline(0, color=COLOURS["--ink-2"], linewidth=1.0, dashes=(2, 2))
        axes.axvline(100 * teaches.value, color=COLOURS["--teacher"], linewidth=1.2, dashes=(5, 2))
        for place, row in enumerate(standings):
            for gap, variable, mark, lift in (
                (row.thief, "--open", "o", 0.13),
                (row.partner, "--key", "s", -0.13),
            ):
                if gap is None:
                    continue
                colour = COLOURS[variable]
                hollow = "none" if row.fewer and mark == "o" else "full"
                axes.errorbar(
                    100 * gap.value, place - lift, xerr=100 * gap.half, color=colour, elinewidth=2.2, alpha=0.35
                )
                axes.plot(100 * gap.value, place - lift, mark, markersize=5.5, color=colour, fillstyle=hollow)
        axes.set_yticks(range(len(standings)), [_short(row) for row in standings])
        axes.set_ylim(len(standings) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_signed))
        axes.set_xlabel("student against one trained alone, points", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "x")
        ends = "; ".join(
            f"{row.title}: thief {_told(row.thief)}, partner {_told(row.partner)}" for row in standings
        )
        return drawn(
            figure, "partner", f"Chart of best thief and partner per defence, in points against the bar. {ends}."
        )


def _short(row: Standing) -> str:
    name = row.title[:1].upper() + row.title[1:]
    title = name if len(name) <= 23 else name[:22].rstrip() + "…"
    return f"{row.number}  {title}"


def _told(gap: Difference | None) -> str:
    return "none" if gap is None else points_and_half(gap.value, gap.half)


def unlock_chart(rows: Sequence[Unlock]) -> str:
    """Distance from the teacher's soft outputs against a key's similarity to the true one.

    Args:
        rows: Keys; those without a similarity are drawn as level lines. At least one has one.
    """
    with chart_style("unlock", 9.5):
        figure = Figure(figsize=(_WIDTH, 2.9))
        axes = figure.add_axes((0.1, 0.165, 0.88, 0.8))
        for row in rows:
            if row.similarity is None:
                axes.axhline(row.distance, color=COLOURS["--open"], linewidth=1.4, dashes=(5, 2))
        known = [(row.similarity, row.distance) for row in rows if row.similarity is not None]
        axes.plot(
            *zip(*known, strict=True),
            "o",
            markersize=5.5,
            color=COLOURS["--key"],
            alpha=0.75,
            markeredgewidth=0,
            clip_on=False,
        )
        axes.set_ylim(bottom=min(0.0, *(row.distance for row in rows)))
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.set_xlabel("similarity to the true key (1 is the key itself)", color=COLOURS["--ink-2"])
        axes.set_ylabel("nats", color=COLOURS["--ink-2"])
        plain_axes(axes, figure, "y")
        ends = "; ".join(f"{row.label}: {row.distance:.2f}" for row in rows[:12])
        return drawn(figure, "unlock", f"Scatter chart of distance from the teacher, in nats. {ends}.")
