"""From finished runs to the table: means with intervals, the bar, and what others print. JSON values only.

An accuracy is that of the last epoch on all test images, never the best on them. How sure a mean is and when two
differ: `sdb.report.intervals`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from sdb.config import read_json
from sdb.report.intervals import difference, half_width
from sdb.reproduction.plan import ALONE, NETWORKS, STUDENTS, Plan, Row
from sdb.reproduction.printed import printed_for, silence
from sdb.reproduction.published import PublishedRecipe
from sdb.runtime import json_text

SCHEMA = 1
RESULT = "result.json"
# Of a run's own record of where it ran: what tells one kind of machine and one state of the code from another.
WHERE = ("device", "threads", "processes", "cores", "platform", "python", "torch", "sdb", "commit")


def make_table(
    recipe: PublishedRecipe, plan: Plan, out: Path, done: Collection[str], *, seeds: int, images: int
) -> dict[str, Any]:
    """All lines of the table.

    Args:
        recipe: which networks there are.
        plan: which run each line reads.
        out: where the runs lie.
        done: names of the runs that are finished; another one leaves a gap.
        seeds: how many.
        images: how many test images each accuracy was measured on.

    Returns:
        `networks`, `students` (each with its accuracies by seed, null for a gap) and `missing` runs.
    """

    def accuracies(row: Row, teacher: str | None, student: str | None) -> list[float | None]:
        names = [plan.run_of(seed, row, teacher, student) for seed in range(seeds)]
        return [read_json(out / name / RESULT)[row.metric] if name in done else None for name in names]

    def line(row: Row, teacher: str | None, student: str | None) -> dict[str, Any]:
        values = accuracies(row, teacher, student)
        printed = printed_for(recipe.dataset, row.id, teacher, student)
        return {
            "row": row.id,
            "label": row.label,
            "teacher": teacher,
            "student": student,
            "accuracies": values,
            **summary(values, images),
            "printed": [
                {"accuracy": each.accuracy, "source": each.source, "paper": each.paper} for each in printed
            ],
            "not_printed": None if printed else silence(recipe.dataset, row.id),
        }

    networks = [line(row, teacher, None) for teacher in recipe.teachers for row in NETWORKS]
    bars = {student: accuracies(STUDENTS[1], None, student) for student in recipe.students}
    students = [line(row, None, student) for row in STUDENTS if row.id in ALONE for student in recipe.students]
    students += [
        line(row, teacher, student)
        for teacher in recipe.teachers
        for row in STUDENTS
        if row.id not in ALONE
        for student in recipe.students_of(teacher)
    ]
    for each in students:
        is_bar = each["row"] == "label_smoothing"
        each["bar"] = None if is_bar else against(each["accuracies"], bars[each["student"]], images)
    missing = [run.name for run in plan.runs if run.name not in done]
    return {"networks": networks, "students": students, "missing": missing}


def summary(values: Sequence[float | None], images: int) -> dict[str, float | None]:
    """Mean over seeds and 95 % half-width of accuracies, fractions; nulls where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "half": None}
    return {"mean": fmean(known), "half": half_width(known, images)}


def against(ours: Sequence[float | None], bar: Sequence[float | None], images: int) -> dict[str, Any] | None:
    """How a student stands to the label-smoothing student of the same seeds; None where no seed has both."""
    both = [(a, b) for a, b in zip(ours, bar, strict=True) if a is not None and b is not None]
    if not both:
        return None
    gap = difference([a for a, _ in both], [b for _, b in both], images)
    place = "above" if gap.above else "below" if gap.below else "at"
    return {"gap": gap.value, "half": gap.half, "place": place}


def environments(out: Path, done: Collection[str]) -> list[dict[str, Any]]:
    """Where the finished runs ran: one entry for each kind of machine and state of the code, with its runs' number."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(done):
        record = read_json(out / name / "environment.json")
        entry = {each: record.get(each) for each in WHERE}
        found.setdefault(json_text(entry), entry | {"runs": 0})["runs"] += 1
    return list(found.values())


def training_seconds(out: Path, done: Collection[str]) -> float:
    """Seconds that the finished runs spent in their epochs, all together, however many ran at a time."""
    lines = [
        line
        for name in sorted(done)
        for line in (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return round(sum(json.loads(line)["seconds"] for line in lines), 1)


# row -> who teaches, and what such a student is called
TAUGHT = {
    "from_teacher": ("An unprotected teacher", "students"),
    "from_nasty": ("Nasty Teacher", "thieves"),
    "from_sdb.keyless": ("SDB, no key", "thieves"),
    "from_sdb.wrong_key": ("SDB, wrong key", "thieves"),
    "from_sdb.keyed": ("SDB, key", "partners"),
    "from_decoy.keyless": ("Decoy (ours), no key", "thieves"),
    "from_decoy.keyed": ("Decoy (ours), key", "partners"),
}


def findings(table: dict[str, Any]) -> list[dict[str, Any]]:
    """What the table says of each way to ask a teacher: how many students are above the bar, and below it."""
    result = []
    for row, (title, noun) in TAUGHT.items():
        places = [each["bar"]["place"] for each in table["students"] if each["row"] == row and each["bar"]]
        if places:
            counts = {"students": len(places), "above": places.count("above"), "below": places.count("below")}
            result.append({"row": row, "title": title, "noun": noun, **counts})
    return result
