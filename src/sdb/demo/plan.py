"""What the demo runs, and what its table says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdb.runs.resolve import KEY

METHODS = ("decoy", "sdb")
# Students per way to learn, each with images and a seed of its own.
PAIRS = 8
# Labelled images of a thief of the digits: about a tenth of them, where soft answers are worth most (chosen on
# validation images).
LABELLED = 150


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the demo: a folder, a command and its parameters."""

    name: str
    command: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a network of a stage, by a metric of its result, or the students of one way to learn."""

    id: str
    label: str
    reads: str
    stage: str = ""
    metric: str = ""
    ways: str = ""


ROWS = (
    Row("teacher", "Teacher", "the unprotected model", "teacher", "accuracy"),
    Row("box.keyless", "Box, keyless", "what everyone gets; should match the teacher", "box", "keyless"),
    Row("box.keyed", "Box, keyed", "what a partner gets; should match the teacher", "box", "keyed"),
    Row("box.wrong_key", "Box, wrong key", "a stranger's key; should gain nothing", "box", "wrong_key"),
    Row("students.alone", "Student alone", "trained on its few labels, never saw a teacher", ways="bar/alone"),
    Row(
        "students.label_smoothing",
        "Student, label smoothing",
        "the same with smoothed labels",
        ways="bar/label smoothing",
    ),
    Row("students.top1", "Student of top-1 answers", "the box's classes alone, which everyone gets", ways="top1/"),
    Row("students.from_teacher", "Student of the teacher", "distilled without protection", ways="bare/"),
    Row("students.thief", "Thief", "distilled from the box, keyless; should not pass the bar", ways="thief/"),
    Row(
        "students.partner",
        "Partner",
        "distilled with the key; should match the teacher's student",
        ways="partner/",
    ),
    Row("students.wrong_key", "Wrong-key student", "distilled with a stranger's key", ways="wrong_key/"),
    Row("nasty.teacher", "Nasty teacher", "an earlier defence, for comparison; it has no key", "nasty", "keyless"),
    Row("nasty.student", "Student of the nasty teacher", "its thief", ways="nasty/"),
    Row("paper.box", "The paper's box, keyless", "the method of AAAI 2022, for comparison", "paper", "keyless"),
    Row("paper.student", "Student of the paper's box", "its thief", ways="paper/"),
    Row("paper.partner", "Partner of the paper's box", "distilled with its key", ways="paper_partner/"),
)


def stages(out: Path, *, seed: int, method: str, dataset: str, data_root: Path | None) -> list[Stage]:
    """The run folders of the demo, in order; each names the ones it builds on by folder."""
    small = dataset == "digits"
    common = {
        "dataset": dataset,
        "data_root": str(data_root) if data_root else None,
        "seed": seed,
        # The digits' 300: fewer cannot tell levels of confidence apart.
        "validation_fraction": 0.231 if small else 0.1,
        "batch_size": 64 if small else 128,
        "optimizer": "adam",
        "learning_rate": 0.003 if small else 0.001,
        "schedule": "cosine",
        "model_name": "net",
    }
    teacher = common | {"model_args": {"num_channels": 24 if small else 32}, "epochs": 30 if small else 10}
    wrapped = teacher | {"teacher": str(out / "teacher"), "epochs": 30 if small else 10}
    student = common | {"model_args": {"num_channels": 8}, "epochs": 20 if small else 10}
    # Disturbance weights of sdb and nasty: what leaves a small net its accuracy; the paper's 1 does not.
    paper = {"method": "sdb", "disturbance_weight": 0.1, "key_blend": 0.5}
    box = {"decoy": {"method": "decoy", "epochs": 40 if small else 15}, "sdb": paper}[method]
    return [
        Stage("teacher", "train", teacher),
        Stage("box", "wrap", wrapped | box),
        Stage("nasty", "wrap", wrapped | {"method": "nasty", "disturbance_weight": 0.04}),
        Stage("paper", "wrap", wrapped | paper),
        # With all images: suspects for `sdb trace`, one of them guilty.
        Stage("thief", "distill", student | {"teacher": str(out / "box")}),
        Stage("student_alone", "train", student),
    ]


def wrong_key(out: Path) -> Path:
    """Where a stranger's key lies."""
    return out / "wrong_key.json"


def key_of(out: Path, stage: str) -> Path:
    """Where a box's key lies."""
    return out / stage / KEY
