"""The demo: the main job, small and whole, on embedded data. The runs that it is made of are in runs.

Every stage is an ordinary run folder under OUT, made by the same jobs as `sdb train`, `wrap` and `distill`, so each can
be looked at, evaluated and continued with those commands.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdb import config
from sdb.audit.attacks.similar_keys import SimilarKeys
from sdb.box.box import Box
from sdb.config import BOX, box_of
from sdb.data import Splits
from sdb.errors import ConfigError, RunExistsError, StorageError
from sdb.keys import Key, Owner
from sdb.losses import kl
from sdb.models.checkpoint import load_classifier
from sdb.report import write_report
from sdb.report.record import read_record
from sdb.report.verdict import judge
from sdb.runs import jobs
from sdb.runs.resolve import KEY, OWNER, load_data
from sdb.runtime import choose_device, command_line, environment, folder_lock, json_text, write_atomic
from sdb.tracing.decoys import trace
from sdb.training.progress import ShowProgress

METHODS = ("decoy", "sdb")
EXAMPLE_TEMPERATURE = 4.0
EXAMPLES = 6
UNLOCK_IMAGES = 500
RANDOM_KEYS = 100


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the demo: a folder, a command and its parameters."""

    name: str
    command: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    id: str
    label: str
    stage: str
    metric: str
    reads: str


ROWS = (
    Row("teacher", "Teacher", "teacher", "accuracy", "the unprotected model"),
    Row("box.keyless", "Box, keyless", "box", "keyless", "what everyone gets; should match the teacher"),
    Row("box.keyed", "Box, keyed", "box", "keyed", "what a partner gets; should match the teacher"),
    Row("box.wrong_key", "Box, wrong key", "box", "wrong_key", "a stranger's key; should gain nothing"),
    Row(
        "students.alone",
        "Student alone",
        "student_alone",
        "accuracy",
        "trained on labels, never saw a teacher",
    ),
    Row(
        "students.label_smoothing",
        "Student, label smoothing",
        "student_label_smoothing",
        "accuracy",
        "the bar: what a thief has without stealing",
    ),
    Row(
        "students.from_teacher",
        "Student of the teacher",
        "from_teacher",
        "accuracy",
        "distilled without protection",
    ),
    Row(
        "students.thief",
        "Thief",
        "thief",
        "accuracy",
        "distilled from the box, keyless; should not pass the bar",
    ),
    Row(
        "students.partner",
        "Partner",
        "partner",
        "accuracy",
        "distilled with the key; should match the teacher's student",
    ),
    Row("students.wrong_key", "Wrong-key student", "wrong_key", "accuracy", "distilled with a stranger's key"),
    Row(
        "nasty.teacher",
        "Nasty teacher",
        "nasty",
        "keyless",
        "the parent method, for comparison; it has no key",
    ),
    Row("nasty.student", "Student of the nasty teacher", "nasty_student", "accuracy", "its thief"),
)


def stages(out: Path, *, seed: int, method: str, dataset: str, data_root: Path | None) -> list[Stage]:
    """The runs of the demo, in order; each names the ones it builds on by folder."""
    small = dataset == "digits"
    common = {
        "dataset": dataset,
        "data_root": str(data_root) if data_root else None,
        "seed": seed,
        "batch_size": 64 if small else 128,
        "optimizer": "adam",
        "learning_rate": 0.003 if small else 0.001,
        "schedule": "cosine",
        "model_name": "net",
    }
    teacher = common | {"model_args": {"num_channels": 24 if small else 32}, "epochs": 30 if small else 10}
    wrapped = teacher | {"teacher": str(out / "teacher"), "epochs": 30 if small else 10}
    student = common | {"model_args": {"num_channels": 8}, "epochs": 40 if small else 10}
    box = {"teacher": str(out / "box")}
    # Disturbance weights of sdb and nasty: what leaves a small net its accuracy; the paper's 1 does not.
    protection = {
        "decoy": {"method": "decoy", "epochs": 60 if small else 15},
        "sdb": {"method": "sdb", "disturbance_weight": 0.1, "key_blend": 0.5},
    }
    image = {"method": "decoy", "key_kind": "image", "key_blend": 0.5, "epochs": 15 if small else 5}
    return [
        Stage("teacher", "train", teacher),
        Stage("box", "wrap", wrapped | protection[method]),
        Stage("student_alone", "train", student),
        Stage("student_label_smoothing", "train", student | {"label_smoothing": 0.1}),
        Stage("from_teacher", "distill", student | {"teacher": str(out / "teacher")}),
        Stage("thief", "distill", student | box),
        Stage("partner", "distill", student | box | {"key": str(out / "box" / KEY)}),
        Stage("wrong_key", "distill", student | box | {"key": str(out / "wrong_key.json"), "foreign_key": True}),
        Stage("nasty", "wrap", wrapped | {"method": "nasty", "disturbance_weight": 0.04}),
        # For the unlock curve: how the paper's kind of key opens. Short, since nobody distils it.
        Stage("image_box", "wrap", wrapped | image),
        Stage("nasty_student", "distill", student | {"teacher": str(out / "nasty")}),
    ]


def run_demo(
    out: Path,
    *,
    seed: int,
    method: str,
    dataset: str,
    data_root: Path | None,
    json_file: Path | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Run every stage, print the table, write OUT/record.json and OUT/report.html; returns the `--json` summary.

    Raises:
        ConfigError: an unknown method.
        RunExistsError: OUT holds a demo already and `overwrite` is false.
        StorageError: OUT or `json_file` cannot be written.
    """
    if method not in METHODS:
        raise ConfigError(
            f"method: {method!r} is none of {', '.join(METHODS)}; nasty stands beside it in every demo"
        )
    if (out / "teacher").exists() and not overwrite:
        raise RunExistsError(f"{out} already holds a demo: add --overwrite to discard it, or use another --out")
    if json_file is not None:  # refused now, not after the work
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {json_file}: {error.strerror}; choose another --json") from error
    began = time.monotonic()
    plan = stages(out, seed=seed, method=method, dataset=dataset, data_root=data_root)
    results: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    with folder_lock(out):
        kind = "weight" if method == "decoy" else "image"
        Key.generate(kind, blend=0.5).save(out / "wrong_key.json", overwrite=True)
        # Keys of a demo before go with its boxes: another method needs another kind.
        for place in ("box", "image_box"):
            for name in (KEY, OWNER):
                (out / place / name).unlink(missing_ok=True)
        for number, stage in enumerate(plan, start=1):
            started = time.monotonic()
            folder = out / stage.name
            write_atomic(folder / "params.json", json_text(stage.params, indent=1).encode() + b"\n")
            params = config.load(folder, stage.command)
            label = f"[{number}/{len(plan)}] {stage.name}"
            results[stage.name] = jobs.JOBS[stage.command](
                folder, params, resume=False, overwrite=overwrite, progress=ShowProgress(label)
            )
            seconds[stage.name] = time.monotonic() - started
        data = load_data(config.load(out / "teacher", "train"), seed)
        total = time.monotonic() - began
        record = make_record(out, plan, results, seconds, data, seed=seed, method=method, total=total)
        write_atomic(out / "record.json", json_text(record, indent=1).encode() + b"\n")
        write_report(record, out / "report.html")
        answer = summary(record)
        if json_file is not None:
            write_atomic(json_file, json_text(answer, indent=1).encode() + b"\n")
    print_table(record, out)
    return answer


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The accuracies of a record, nested by the rows' ids."""
    answer: dict[str, Any] = {}
    for row in record["rows"]:
        *outer, name = row["id"].split(".")
        place = answer.setdefault(outer[0], {}) if outer else answer
        place[name] = row["accuracy"]
    return answer | {"seconds": record["seconds"], "seed": record["seed"]}


def make_record(
    out: Path,
    plan: list[Stage],
    results: dict[str, dict[str, Any]],
    seconds: dict[str, float],
    data: Splits,
    *,
    seed: int,
    method: str,
    total: float,
) -> dict[str, Any]:
    """All that the report shows, as JSON values."""
    rows = []
    for row in ROWS:
        box = box_of(out / row.stage)
        model = load_classifier(out / row.stage) if box is None else Box.load(box).classifier
        count = sum(parameter.numel() for parameter in model.parameters())
        accuracy = results[row.stage][row.metric]
        rows.append(
            {"id": row.id, "label": row.label, "accuracy": accuracy, "parameters": count, "reads": row.reads}
        )
    return {
        "schema": 1,
        "kind": "demo",
        "title": f"Safe Distillation Box: {data.name}",
        "seed": seed,
        "seconds": total,
        "method": method,
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "classes": list(data.class_names),
            "image_shape": list(data.image_shape),
            "note": data.note,
        },
        "rows": rows,
        "curves": [_curve(out, row) for row in ROWS if row.id != "box.wrong_key"],
        "examples": {"temperature": EXAMPLE_TEMPERATURE, "items": _examples(out, data)},
        "traces": _traces(out, data) if method == "decoy" else [],
        "unlock": _unlock(out, data),
        "stages": [{"label": name, "seconds": value} for name, value in seconds.items()],
        "parameters": {stage.name: stage.params for stage in plan},
        "command": command_line(),
        "environment": environment(choose_device()),
    }


def _curve(out: Path, row: Row) -> dict[str, Any]:
    """Validation accuracy after each epoch of the run behind a row."""
    name = f"{row.metric}_accuracy" if row.id.startswith("box.") else "accuracy"
    lines = (out / row.stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        "id": row.id,
        "label": row.label,
        "epochs": [record["epoch"] for record in records],
        "accuracy": [record["validation"][name] for record in records],
    }


def _traces(out: Path, data: Splits) -> list[dict[str, Any]]:
    """Whether the thief carries the owner's mark, and whether students that are innocent do not."""
    box, owner = Box.load(out / "box" / BOX), Owner.load(out / "box" / OWNER)
    rows = []
    for row in ROWS:
        if row.id in ("students.thief", "students.alone", "students.label_smoothing", "students.from_teacher"):
            result = trace(load_classifier(out / row.stage), box, owner, data)
            facts = {"found": result.found, "total": result.total, "log10_p": min(0.0, result.log10_p)}
            rows.append({"label": row.label, **facts, "marked": result.marked})
    return rows


@torch.no_grad()
def _unlock(out: Path, data: Splits) -> list[dict[str, Any]]:
    """How near keys bring the answers to the teacher's, for this box and for a box with an image key."""
    images = torch.from_numpy(np.asarray(data.test.images[:UNLOCK_IMAGES])).float() / 255
    target = load_classifier(out / "teacher")(images)

    def row(label: str, module: torch.nn.Module, similarity: float | None = None) -> dict[str, Any]:
        distance = max(0.0, float(kl(target, module(images), EXAMPLE_TEMPERATURE)))
        return {"label": label, "similarity": similarity, "distance": distance}

    rows = []
    for place in ("box", "image_box"):
        box, key = Box.load(out / place / BOX), Key.load(out / place / KEY)
        kind = f"{key.kind} key"
        rows += [row(f"{kind}: nothing", box), row(f"{kind}: the key", box.unlock(key), 1.0)]
        if key.kind == "weight":
            wrong = [row("", box.attempt(Key.generate())) for _ in range(RANDOM_KEYS)]
        else:
            near = SimilarKeys(random_keys=RANDOM_KEYS, sigmas=(), jpeg_qualities=(), blend_changes=())
            found = near.run(box, key, data.image_shape)
            noisy = [each for each in found if each.name.startswith("noise")]
            rows += [row(f"{kind}: the key with noise", each.module, each.cosine) for each in noisy]
            wrong = [row("", each.module) for each in found if each.name.startswith("random")]
        nearest = min(entry["distance"] for entry in wrong)
        rows.append(
            {"label": f"{kind}: the best of {RANDOM_KEYS} random", "similarity": None, "distance": nearest}
        )
    return rows


@torch.no_grad()
def _examples(out: Path, data: Splits) -> list[dict[str, Any]]:
    """Soft outputs for the first test image of each of the first classes: the data's order chooses, not we."""
    labels = data.test.labels
    positions = [int(np.flatnonzero(labels == label)[0]) for label in range(min(EXAMPLES, data.num_classes))]
    pixels = np.stack([data.test.images[position] for position in positions])
    images = torch.from_numpy(pixels).float() / 255
    box, wrong = Box.load(out / "box" / BOX), Key.load(out / "wrong_key.json")
    asked = {
        "teacher": load_classifier(out / "teacher"),
        "keyless": box,
        "keyed": box.unlock(Key.load(out / "box" / KEY)),
        "wrong_key": box.attempt(wrong),
    }
    soft = {name: (model(images) / EXAMPLE_TEMPERATURE).softmax(dim=1).tolist() for name, model in asked.items()}
    return [
        {
            "image": np.moveaxis(pixels[i], 0, -1).tolist(),
            "label": int(labels[positions[i]]),
            **{name: values[i] for name, values in soft.items()},
        }
        for i in range(len(positions))
    ]


def print_table(record: dict[str, Any], out: Path) -> None:
    """The table, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['data']['name']}, {record['data']['test']} test images, seed {record['seed']}")
    for heading in ("", "accuracy", "what it means"):
        table.add_column(heading, justify="right" if heading == "accuracy" else "left")
    for row in record["rows"]:
        table.add_row(row["label"], f"{100 * row['accuracy']:.1f} %", row["reads"])
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
    console.print(table)
    for row in record["traces"]:
        mark = "carries the owner's mark" if row["marked"] else "carries no mark"
        console.print(
            f"trace: {row['label']} {mark} ({row['found']} of {row['total']} decoys, p = 10^{row['log10_p']:.1f})",
            highlight=False,
        )
    console.print(judge(read_record(record)).summary, highlight=False)
    console.print(f"{record['seconds']:.0f} s; report: {out / 'report.html'}", highlight=False)
