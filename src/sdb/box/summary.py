"""What a box says of itself in words: accuracies, calibration, what an answer tells, and what is promised."""

from __future__ import annotations

import math

from sdb.answers.rows import Rows
from sdb.box.info import BoxInfo
from sdb.models import Classifier

COLUMNS = {"teacher": "teacher", "keyless": "without a key", "keyed": "with the key"}
# Classes from which a perfect copy has a p-value below the trace's threshold of 1e-6, with two decoys per class.
MARKED_FROM = 8
LINES = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "auroc": "AUROC",
}


def summary(info: BoxInfo, classifier: Classifier, rows: Rows | None) -> str:
    """The lines, without a line break at the end; `rows`: the fixed rows that it answers with, if any."""
    kind = f"{info.key_kind} key" if info.key_kind else "no key"
    shape = " x ".join(str(size) for size in classifier.image_shape)
    lines = [
        f"Box {info.id[:8]}: method {info.method}, {kind}, opens for {len(info.key_ids)}; "
        f"{classifier.spec.name}, {classifier.num_classes} classes, images {shape}"
    ]
    measured = {name: value for name, value in info.measured.items() if name != "images"}
    if measured:
        shown = [column for column in COLUMNS if f"{column}_accuracy" in measured]
        lines.append(f"{'':20}" + "".join(f"{COLUMNS[column]:>15}" for column in shown))
        for row, title in LINES.items():
            values = [measured.get(f"{column}_{row}") for column in shown]
            if any(value is not None for value in values):
                lines.append(f"{title:20}" + "".join(f"{_percent(value):>15}" for value in values))
        lines.append(f"measured on {info.measured['images']:.0f} validation images")
    lines.append(f"An answer without a key tells: {_told(info, rows)}.")
    lines += [
        f"  level {number} of {len(info.levels)}: right in {_percent(level.accuracy)} of {level.images:,} images "
        f"(95 % interval {_percent(level.low)} to {_percent(level.high)})"
        for number, level in enumerate(info.levels, 1)
    ]
    lines.append(f"Promised: {_promised(info, rows is not None)}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _told(info: BoxInfo, rows: Rows | None) -> str:
    if rows is None:
        return "the network's own soft output, which is trained to mislead and is not bounded in bits"
    if not info.levels:
        return "the class and nothing else (0 bits beyond top-1), with a confidence that means nothing"
    if rows.levels == 1:
        return "the class and nothing else (0 bits beyond top-1), with one honest confidence per class"
    bits, most = info.measured.get("bits", 0.0), math.log2(rows.levels)
    return (
        f"the class and one of {rows.levels} levels of confidence ({bits:.2f} bits beyond top-1 on average, "
        f"{most:.2f} for a chosen image)"
    )


def _promised(info: BoxInfo, fixed: bool) -> str:
    promises = ["everyone gets the right class as often as the table says"]
    if fixed:
        promises.append("an answer says no more than its class and level")
    if info.method == "decoy" and len(info.class_names) >= MARKED_FROM:
        promises.append("a copy made from soft answers carries the owner's decoys (sdb trace)")
    if info.key_ids:
        promises.append("who holds a key gets the teacher's knowledge")
    return "; ".join(promises) + ". Not promised: weights that are handed out can be trained again."
