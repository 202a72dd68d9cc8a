"""The figures of README and documents, from docs/results/*.json; written by `python benchmarks/protection.py --write`.

Each is an SVG for light and one for dark pages. Their text is drawn as paths, so it looks alike everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from evidence_page import bars_of
from levels import trade
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sdb.report.pairs import Gain, Scores, best, gain

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
COLOURS = {
    "light": {"ink": "#1f2933", "line": "#d5dbe1", "bare": "#3d5a80", "thief": "#b3441e", "partner": "#0a7c6c"},
    "dark": {"ink": "#d8dee6", "line": "#3a434d", "bare": "#8fb1dd", "thief": "#e8906a", "partner": "#4fc4ad"},
}
GAINS = {
    "bare": ("the bare model's student", "bare"),
    "thief": ("a thief of the box", "thief"),
    "partner": ("a partner, with the key", "partner"),
}
# Labelled images of a thief, by colour.
SIZES = {"300": "thief", "1000": "partner"}
TITLES = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def scores_of(content: Mapping[str, Any]) -> dict[str, Scores]:
    """All pairs of a few-images file, by way."""
    pairs = [pair for seed in content["seeds"].values() for pair in seed["pairs"].values()]
    return {
        way: Scores(tuple(pair[way][0] for pair in pairs), tuple(pair[way][1] for pair in pairs))
        for way in pairs[0]
    }


def gains_of(content: Mapping[str, Any]) -> dict[str, Gain]:
    """What each group's best way, on validation images, gains over the bar."""
    scores = scores_of(content)
    chosen = {
        group: best(scores, [way for way in scores if way.startswith(f"{group}/")]) for group in ("bar", *GAINS)
    }
    return {group: gain(scores[chosen[group]], scores[chosen["bar"]]) for group in GAINS}


def gains_figure(files: Mapping[str, Mapping[str, Any]]) -> None:
    """README's: what a thief gains from the bare model and from the box, what a partner gains."""

    def drawn(colours: Mapping[str, str]) -> Figure:
        figure = Figure(figsize=(7.6, 2.6))
        axes = figure.subplots(1, len(files), sharex=True, sharey=True)
        for place, (ax, (name, content)) in enumerate(zip(axes, files.items(), strict=True)):
            for row, (group, found) in enumerate(reversed(gains_of(content).items())):
                _bar(ax, row, found, colours[GAINS[group][1]], colours["ink"])
            ax.axvline(0, color=colours["ink"], linewidth=1.2)
            ax.set_title(TITLES[name], color=colours["ink"], fontsize=11, loc="left", fontweight="bold")
            _plain(ax, colours)
            ax.tick_params(labelleft=place == 0)
            ax.set_yticks(range(len(GAINS)), [GAINS[group][0] for group in reversed(GAINS)])
        axes[0].set_xlim(-1, 5.6)
        figure.supxlabel(
            "points of accuracy over what top-1 answers give, with 95 % intervals",
            color=colours["ink"],
            fontsize=10,
        )
        figure.tight_layout(w_pad=2)
        return figure

    _write("gains", drawn)


def evidence_figure(content: Mapping[str, Any]) -> None:
    """One data set's: students of the bare model, thieves of the defences, partners, over the bar."""
    bars = bars_of(dict(content))
    if not bars:
        return

    def drawn(colours: Mapping[str, str]) -> Figure:
        figure = Figure(figsize=(7.6, 0.7 + 0.34 * len(bars)))
        ax = figure.subplots()
        for row, (found, colour) in enumerate(reversed(bars.values())):
            _bar(ax, row, found, colours[colour], colours["ink"])
        ax.axvline(0, color=colours["ink"], linewidth=1.2)
        ax.set_yticks(range(len(bars)), list(reversed(bars)))
        ax.margins(x=0.12)
        _plain(ax, colours)
        ax.set_xlabel("points over what top-1 answers give, with 95 % intervals", color=colours["ink"])
        figure.tight_layout()
        return figure

    _write(f"evidence-{content['data']}", drawn)


def _bar(ax: Axes, row: int, found: Gain, colour: str, ink: str) -> None:
    ax.barh(row, 100 * found.value, color=colour, height=0.6)
    low, high = 100 * (found.value - found.half), 100 * (found.value + found.half)
    ax.plot([low, high], [row, row], color=ink, linewidth=1.6, solid_capstyle="butt")
    ax.text(max(high, 0) + 0.15, row, f"{100 * found.value:+.1f}", va="center", color=ink)


def levels_figure(files: Mapping[str, Mapping[str, Any]]) -> None:
    """The trade of levels: how honest confidence is, and what a thief that uses levels gains over the bar."""

    def drawn(colours: Mapping[str, str]) -> Figure:
        figure = Figure(figsize=(7.6, 3.2))
        axes = figure.subplots(1, len(files), sharey=True)
        for ax, (name, content) in zip(axes, files.items(), strict=True):
            answers = content["answers"]
            for labelled, gains in trade(content).items():
                colour = SIZES[labelled]
                x = [100 * answers[str(levels)]["brier"] for levels in gains]
                y, half = ([100 * getattr(each, part) for each in gains.values()] for part in ("value", "half"))
                ax.errorbar(
                    x, y, yerr=half, color=colours[colour], marker="o", capsize=3, label=f"{labelled} images"
                )
                for levels, at in zip(gains, x, strict=True):
                    # Two and four lie close together.
                    side = {1: "center", 2: "left", 4: "right"}[levels]
                    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": side}
                    ax.annotate(f"{levels}", (at, 1), xytext=(0, -10), color=colours["ink"], fontsize=9, **place)
            ax.axvline(100 * answers["exact"]["brier"], color=colours["ink"], linewidth=1, linestyle=(0, (2, 3)))
            ax.axhline(0, color=colours["ink"], linewidth=1.2)
            ax.set_title(TITLES[name], color=colours["ink"], fontsize=11, loc="left", fontweight="bold")
            ax.set_xlabel("Brier score, % (dotted: exact confidence)", color=colours["ink"], fontsize=9)
            ax.set_ylim(top=1.4)
            _plain(ax, colours)
            ax.legend(frameon=False, labelcolor=colours["ink"], fontsize=9, loc="lower left")
        axes[0].set_ylabel("thief over the bar, points", color=colours["ink"])
        figure.tight_layout(w_pad=2)
        return figure

    _write("levels", drawn)


def _plain(axes: Axes, colours: Mapping[str, str]) -> None:
    axes.grid(axis="both" if axes.get_xlabel() else "x", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=colours["ink"])
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _write(name: str, drawn: Callable[[Mapping[str, str]], Figure]) -> None:
    FIGURES.mkdir(exist_ok=True)
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    for theme, colours in COLOURS.items():
        with mpl.rc_context({"svg.hashsalt": f"sdb-{name}", "svg.fonttype": "path", "font.size": 10}):
            buffer = io.BytesIO()
            FigureCanvasSVG(drawn(colours)).print_figure(buffer, format="svg", metadata=nothing, facecolor="none")
        text = "\n".join(line.rstrip() for line in buffer.getvalue().decode().splitlines())
        (FIGURES / f"{name}-{theme}.svg").write_text(f"{text}\n", encoding="utf-8")
