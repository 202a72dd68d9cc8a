"""A table as it is shown: lines, columns, and the notes without which its numbers would be read wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdb.report.page import duration, plain
from sdb.reproduction.plan import ALONE, NETWORKS, STUDENTS, Row

DASH = "–"
MARKS = {"above": "▲", "below": "▼", "at": ""}
PRESETS = {
    "paper": "Preset paper: the published hyper-parameters; those of decoy are ours.",
    "fast": "Preset fast: a short schedule of ours in place of the papers' 100 to 200 epochs, and boxes that start "
    "from the teacher. Its accuracies may be lower.",
}
DIGITS = "Small networks on the embedded digits, to try the grid out. The papers have no such table."


@dataclass(frozen=True, slots=True)
class Shown:
    """One accuracy.

    Attributes:
        text: per cent, mean and half-width; a dash where nothing is finished.
        place: above, at or below the bar; empty where there is no bar.
        printed: what others print, with the number of its source.
    """

    text: str
    place: str = ""
    printed: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line: what it is, one accuracy per column, and what to say where nothing is printed."""

    label: str
    is_bar: bool
    cells: tuple[Shown, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Block:
    """Lines under the same columns."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


def blocks(table: dict[str, Any]) -> list[Block]:
    """The networks, then each teacher's students, those that learn alone first."""
    numbers = {source: number for number, source in enumerate(sources(table), start=1)}
    cells = {
        (each["row"], each["teacher"], each["student"]): each for each in table["networks"] + table["students"]
    }

    def line(row: Row, found: Sequence[dict[str, Any]]) -> Line:
        notes = dict.fromkeys(each["not_printed"] for each in found if each["not_printed"])
        return Line(
            row.label, row.id == "label_smoothing", tuple(shown(each, numbers) for each in found), "; ".join(notes)
        )

    teachers = table["teachers"]
    networks = [line(row, [cells[row.id, teacher, None] for teacher in teachers]) for row in NETWORKS]
    result = [Block("Networks", tuple(teachers), tuple(networks))]
    for teacher in teachers:
        students = [
            each["student"]
            for each in table["students"]
            if (each["row"], each["teacher"]) == ("from_teacher", teacher)
        ]
        lines = [
            line(row, [cells[row.id, None if row.id in ALONE else teacher, student] for student in students])
            for row in STUDENTS
        ]
        result.append(Block(f"Students of {teacher}", tuple(students), tuple(lines)))
    return result


def shown(cell: dict[str, Any], numbers: dict[str, int]) -> Shown:
    """One cell of the table, ready to show."""
    text = DASH if cell["mean"] is None else f"{100 * cell['mean']:.1f} ± {100 * cell['half']:.1f}"
    bar = cell.get("bar")
    printed = tuple((f"{round(100 * each['accuracy'], 3):g}", numbers[each["source"]]) for each in cell["printed"])
    return Shown(text, bar["place"] if bar else "", printed)


def sources(table: dict[str, Any]) -> list[str]:
    """Where the printed numbers stand, in the order of the table."""
    cells = table["networks"] + table["students"]
    return list(dict.fromkeys(each["source"] for cell in cells for each in cell["printed"]))


def warnings(table: dict[str, Any]) -> list[str]:
    """What makes the numbers other than the papers' would be, the most important first."""
    missing, result = table["missing"], []
    if missing:
        result.append(
            f"Not finished: {len(missing)} run(s), {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}."
        )
    if table["changed"]:
        changed = ", ".join(f"{name}={plain(value)}" for name, value in table["changed"].items())
        result.append(f"Changed by --set: {changed}. These are not the preset's numbers.")
    result.append(DIGITS if table["dataset"] == "digits" else PRESETS[table["preset"]])
    result.append(f"Data: {table['data']['note'] or table['data']['name']}.")
    return result


def notes(table: dict[str, Any]) -> list[str]:
    """How to read the numbers."""
    data, seeds = table["data"], table["seeds"]
    result = [
        f"Accuracies in per cent over all {data['test']:,} test images after the last epoch. {data['validation']:,} "
        "training images are held out for validation. The papers' code takes the epoch that is best on test images and "
        "holds out none."
    ]
    result.append(
        "One seed: ± is the 95 % half-width from the choice of test images; the luck of training is not in it."
        if len(seeds) == 1
        else f"Means over {len(seeds)} seeds; ± is the 95 % half-width from the choice of test images and, from three "
        "seeds on, from the spread over seeds, whichever is larger."
    )
    result.append(
        "The bar is the same student trained alone with label smoothing, of the same seed. "
        "▲: above it beyond chance; ▼: below it beyond chance."
    )
    result.append(
        "Of decoy, wrong key: a wrong weight key opens nothing and is answered as no key is. The students of that line "
        "are those of the line without key; they are not run twice."
    )
    if table["dataset"] != "digits":
        result.append(
            "The result tables of both papers could not be read for this program. A printed number is shown only with "
            "the place where it was read."
        )
    return result


def machines(table: dict[str, Any]) -> list[str]:
    """Where the runs ran, one line for each kind of machine and state of the code."""
    return [
        f"{each['runs']} run(s): {each['device']}, {each['platform']}, {each['cores']} cores, "
        f"{each['threads']} thread(s) a process, torch {each['torch']}, sdb {each['sdb']}, "
        f"commit {each['commit'] or 'unknown'}"
        for each in table["environments"]
    ]


def times(table: dict[str, Any]) -> str:
    """How long it took."""
    call = table["last_call"]
    last = f"The last call that ran any did {call['runs']} in {duration(call['seconds'])}."
    return f"All runs together trained for {duration(table['training_seconds'])}. {last}".replace("\u00a0", " ")
