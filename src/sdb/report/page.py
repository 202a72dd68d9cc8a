"""From a record to a page: gather what the template shows, render it, put it in place in one step."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from sdb.report.charts import STYLES, CurveChart, curve_chart, is_student
from sdb.report.gain_charts import gain_chart, reliability_chart
from sdb.report.intervals import percent, points_and_half, wilson
from sdb.report.record import Example, Record, Row, RowId, read_record
from sdb.report.template import pages_of, style
from sdb.report.verdict import judge
from sdb.runtime import json_text, write_atomic

GROUPS: tuple[tuple[str, tuple[RowId, ...]], ...] = (
    ("The networks", ("teacher", "box.keyless", "box.keyed", "box.wrong_key")),
    (
        "The students: one small network, taught in different ways",
        (
            "students.alone",
            "students.label_smoothing",
            "students.top1",
            "students.from_teacher",
            "students.thief",
            "students.partner",
            "students.wrong_key",
        ),
    ),
    (
        "For comparison: earlier defences, the Nasty Teacher and the paper's box",
        ("nasty.teacher", "nasty.student", "paper.box", "paper.student", "paper.partner"),
    ),
)
# More classes than this, and an example shows only those that matter for it.
MOST_CLASSES = 12
IMAGE_SIDE = 120


@dataclass(frozen=True)
class RowView:
    """A row with its interval, placed on the table's axis (positions in per cent of the axis)."""

    row: Row
    low: float
    high: float
    colour: str
    at: float
    start: float
    width: float


@dataclass(frozen=True)
class ExampleView:
    """One image and its soft outputs: (class, is the label, four probabilities) per line."""

    image: str
    alt: str
    label: str
    lines: list[tuple[str, bool, list[float]]]
    others: tuple[int, list[float]] | None
    tops: list[float]
    distances: list[float | None]


def axis_of(lows: list[float]) -> tuple[float, list[float]]:
    """Start and ticks of the accuracy axis, which ends at one: as tight as round numbers allow."""
    lowest = min(lows)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        start = math.floor(lowest / step - 1e-9) * step
        if (1 - start) / step <= 5.5:
            break
    start = max(0.0, start)
    return start, [min(1.0, start + step * number) for number in range(round((1 - start) / step) + 1)]


def _groups(record: Record) -> tuple[list[tuple[str, list[RowView]]], list[tuple[float, float]]]:
    intervals = {row.id: wilson(row.accuracy, record.data.test) for row in record.rows}
    start, ticks = axis_of([low for low, _ in intervals.values()])

    def place(value: float) -> float:
        return round(100 * (value - start) / (1 - start), 3)

    def view(row: Row) -> RowView:
        low, high = intervals[row.id]
        at, left, right = place(row.accuracy), place(low), place(high)
        return RowView(row, low, high, STYLES[row.id][0], at, left, round(right - left, 3))

    groups = [(title, [view(row) for name in names if (row := record.row(name))]) for title, names in GROUPS]
    return [(title, rows) for title, rows in groups if rows], [(place(tick), tick) for tick in ticks]


def _charts(record: Record) -> list[CurveChart]:
    drawn = [curve for curve in record.curves if curve.epochs]
    panels = (
        ("models", "Teacher and boxes", [curve for curve in drawn if not is_student(curve)]),
        ("students", "Students", [curve for curve in drawn if is_student(curve)]),
    )
    return [curve_chart(name, title, curves) for name, title, curves in panels if curves]


def picture(pixels: list[list[list[int]]]) -> str:
    """An image as a PNG data address, its pixels enlarged by a whole number so that they stay sharp."""
    array = np.asarray(pixels, dtype=np.uint8)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    factor = max(1, IMAGE_SIDE // max(image.size))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def example_view(number: int, item: Example, classes: list[str]) -> ExampleView:
    """Choose the lines to show, and measure how far each output is from the teacher's.

    The distance is total variation: the share of probability that would have to move.
    """
    outputs = [item.teacher, item.keyless, item.keyed, item.wrong_key]
    shown = list(range(len(classes)))
    others = None
    if len(classes) > MOST_CLASSES:
        ranked = sorted(shown, key=lambda index: (-max(output[index] for output in outputs), index))
        shown = sorted({item.label, *ranked[: MOST_CLASSES - 2]})
        rest = [sum(output) - sum(output[index] for index in shown) for output in outputs]
        others = (len(classes) - len(shown), [max(0.0, value) for value in rest])
    label = classes[item.label]
    height, width = len(item.image), len(item.image[0])
    return ExampleView(
        image=picture(item.image),
        alt=f"Test image {number}, labelled {label}, {width} by {height} pixels",
        label=label,
        lines=[(classes[i], i == item.label, [output[i] for output in outputs]) for i in shown],
        others=others,
        tops=[max(output) for output in outputs],
        distances=[None]
        + [sum(abs(a - b) for a, b in zip(item.teacher, output, strict=True)) / 2 for output in outputs[1:]],
    )


def duration(seconds: float) -> str:
    """Seconds as text: `0.8 s`, `42.0 s`, `2 min 05 s`."""
    if seconds < 59.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}\u00a0min {rest:02d}\u00a0s"


def chance(log10_p: float) -> str:
    """A probability in words that a person can compare."""
    return f"{10**log10_p:.2g}" if log10_p > -4 else f"below 1 in 10^{int(-log10_p)}"


def plain(value: Any) -> str:
    """A parameter or a fact of the environment as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return value if isinstance(value, str) else json_text(value, sort_keys=True, ensure_ascii=False, default=str)


def pairs(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of a set of facts, in the record's order."""
    return [(name, plain(value)) for name, value in facts.items()]


def render(record: Record) -> str:
    """The page for a record, as HTML."""
    groups, ticks = _groups(record)
    environment = pages_of("report")
    environment.filters |= {
        "points": points_and_half,
        "chance": chance,
        "percent": percent,
        "duration": duration,
        "pairs": pairs,
    }
    charts = _charts(record)
    examples = record.examples.items
    return environment.get_template("template.html.j2").render(
        record=record,
        verdict=judge(record),
        groups=groups,
        ticks=ticks,
        style=style("style.css"),
        # Matplotlib's own output; everything else on the page is escaped.
        charts=[(chart, Markup(chart.svg)) for chart in charts],  # noqa: S704
        figures=_figures(record),
        examples=[example_view(n, item, record.data.classes) for n, item in enumerate(examples, start=1)],
        columns=[("Teacher", "teacher"), ("No key", "open"), ("Key", "key"), ("Wrong key", "wrong")],
        hidden_classes=len(record.data.classes) > MOST_CLASSES,
    )


def _figures(record: Record) -> dict[str, Markup]:
    """What the page opens with: gains over the bar, and how honest confidences are."""
    if record.regime is None or record.confidence is None:
        return {}
    drawn = {"gains": gain_chart(record.regime), "reliability": reliability_chart(record.confidence)}
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704 - matplotlib's own output


def write_report(record: dict[str, Any] | Record, path: Path | str) -> None:
    """Write the report of a run as one HTML file that needs nothing else, in one step.

    Args:
        record: The demo's record, as read from its JSON file, or checked already.
        path: Where the page goes. What was there stays until the new page is complete.

    Raises:
        ConfigError: The record is not one that can be reported.
        StorageError: The page could not be written.
    """
    checked = record if isinstance(record, Record) else read_record(record)
    write_atomic(Path(path), render(checked).encode("utf-8"))
