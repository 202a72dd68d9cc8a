"""What a demo's record holds, gathered from the run folders and the students' scores: JSON values."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdb.audit.attacks.similar_keys import SimilarKeys
from sdb.box.box import Box
from sdb.config import BOX, box_of
from sdb.data import Splits
from sdb.demo import students
from sdb.demo.plan import PAIRS, ROWS, Row, Stage, key_of, wrong_key
from sdb.keys import Key, Owner
from sdb.losses import kl
from sdb.models.checkpoint import load_classifier
from sdb.report.pairs import Gain, Scores, best, gain
from sdb.runs.resolve import OWNER
from sdb.runtime import choose_device, command_line, environment
from sdb.tracing.decoys import trace
from sdb.training.evaluation import answers_to, evaluation_batches, honesty, reliability

EXAMPLE_TEMPERATURE = 4.0
EXAMPLES = 6
UNLOCK_IMAGES = 500
RANDOM_KEYS = 100
# What is compared with the bar, in the order of the figure.
GAINS = (
    ("students.from_teacher", "the bare model"),
    ("students.thief", "the box, no key"),
    ("students.wrong_key", "the box, a stranger's key"),
    ("students.partner", "the box, its key: a partner"),
    ("nasty.student", "the nasty teacher"),
    ("paper.student", "the paper's box, no key"),
    ("paper.partner", "the paper's box, its key"),
)


def make_record(
    out: Path,
    plan: list[Stage],
    results: dict[str, dict[str, Any]],
    scores: dict[str, Scores],
    seconds: dict[str, float],
    data: Splits,
    *,
    seed: int,
    method: str,
    total: float,
) -> dict[str, Any]:
    """All that the report shows."""
    return {
        "schema": 2,
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
        "rows": [_row(out, row, results, scores) for row in ROWS],
        "regime": _regime(data, scores),
        "confidence": _confidence(out, data),
        "curves": [_curve(out, row) for row in ROWS if row.stage and row.id != "box.wrong_key"],
        "examples": {"temperature": EXAMPLE_TEMPERATURE, "items": _examples(out, data)},
        "traces": _traces(out, data) if method == "decoy" else [],
        "unlock": _unlock(out, data),
        "stages": [{"label": name, "seconds": value} for name, value in seconds.items()],
        "parameters": {stage.name: stage.params for stage in plan},
        "command": command_line(),
        "environment": environment(choose_device()),
    }


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """The accuracies of a record, nested by the rows' ids; the bar, what is at stake, what an answer tells."""
    answer: dict[str, Any] = {}
    for row in record["rows"]:
        *outer, name = row["id"].split(".")
        place = answer.setdefault(outer[0], {}) if outer else answer
        place[name] = row["accuracy"]
    regime, models = record["regime"], record["confidence"]["models"]
    gains = {each["id"]: {name: each[name] for name in ("value", "half")} for each in regime["gains"]}
    return answer | {
        "bar": regime["bar"],
        "at_stake": gains["students.from_teacher"],
        "gains": gains,
        "bits": record["confidence"]["bits"],
        "calibration": {
            each["id"]: {name: each[name] for name in ("calibration_error", "brier")} for each in models
        },
        "seconds": record["seconds"],
        "seed": record["seed"],
    }


def _row(out: Path, row: Row, results: dict[str, dict[str, Any]], scores: dict[str, Scores]) -> dict[str, Any]:
    if row.stage:
        box = box_of(out / row.stage)
        model = load_classifier(out / row.stage) if box is None else Box.load(box).classifier
        accuracy = results[row.stage][row.metric]
    else:
        model = load_classifier(out / "thief")
        chosen = best(scores, students.of(scores, row.ways))
        accuracy = fmean(scores[chosen].test)
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"id": row.id, "label": row.label, "accuracy": accuracy, "parameters": count, "reads": row.reads}


def _regime(data: Splits, scores: dict[str, Scores]) -> dict[str, Any]:
    """The bar and the gains over it; what is best of many is chosen on the students' own validation images."""
    regime = students.regime_of(data)
    bar = best(scores, students.of(scores, "bar/"))
    ways = {row.id: best(scores, students.of(scores, row.ways)) for row in ROWS if row.ways}
    taught = scores[ways["students.from_teacher"]]

    def shown(found: Gain) -> dict[str, Any]:
        return {"value": found.value, "half": found.half, "lowest": found.lowest, "pairs": found.pairs}

    return {
        "labelled": regime.labelled,
        "unlabelled": regime.unlabelled,
        "pairs": PAIRS,
        "bar": {"way": bar.partition("/")[2], "accuracy": fmean(scores[bar].test)},
        "gains": [
            {
                "id": name,
                "label": label,
                "way": ways[name].partition("/")[2],
                **shown(gain(scores[ways[name]], scores[bar])),
            }
            for name, label in GAINS
        ],
        "partner_short": shown(gain(taught, scores[ways["students.partner"]])),
    }


def _confidence(out: Path, data: Splits) -> dict[str, Any]:
    """How honest the confidences are, on test images."""
    box = Box.load(out / "box" / BOX)
    batches = evaluation_batches(data.test, choose_device())
    asked: dict[str, tuple[str, nn.Module]] = {
        "teacher": ("teacher", load_classifier(out / "teacher")),
        "keyless": ("box, no key", box),
        "keyed": ("box, its key", box.unlock(Key.load(key_of(out, "box")))),
    }
    models = []
    for name, (label, model) in asked.items():
        answers = answers_to(model, batches)
        models.append({"id": name, "label": label, **honesty(*answers), "bins": reliability(*answers)})
    return {"bits": box.info.measured.get("bits"), "levels": len(box.info.levels), "models": models}


def _curve(out: Path, row: Row) -> dict[str, Any]:
    """Validation accuracy after each epoch of the run behind a row."""
    name = f"{row.metric}_accuracy" if row.id.startswith(("box.", "paper.")) else "accuracy"
    lines = (out / row.stage / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        "id": row.id,
        "label": row.label,
        "epochs": [record["epoch"] for record in records],
        "accuracy": [record["validation"][name] for record in records],
    }


def _traces(out: Path, data: Splits) -> list[dict[str, Any]]:
    """Whether a thief carries the owner's mark, and whether a student that is innocent does not."""
    box, owner = Box.load(out / "box" / BOX), Owner.load(out / "box" / OWNER)
    rows = []
    for stage, label in (("thief", "Thief of all images"), ("student_alone", "Student alone")):
        result = trace(load_classifier(out / stage), box, owner, data)
        facts = {"found": result.found, "total": result.total, "log10_p": min(0.0, result.log10_p)}
        rows.append({"label": label, **facts, "marked": result.marked})
    return rows


def _pixels(data: Splits, count: int) -> Tensor:
    return torch.from_numpy(np.array(data.test.images[:count])).float() / 255


@torch.no_grad()
def _unlock(out: Path, data: Splits) -> list[dict[str, Any]]:
    """How near keys bring the answers to the teacher's, for this box and for the paper's, with its image key."""
    images = _pixels(data, UNLOCK_IMAGES)
    target = load_classifier(out / "teacher")(images)

    def row(label: str, module: nn.Module, similarity: float | None = None) -> dict[str, Any]:
        distance = max(0.0, float(kl(target, module(images), EXAMPLE_TEMPERATURE)))
        return {"label": label, "similarity": similarity, "distance": distance}

    rows = []
    for place in ("box", "paper"):
        box, key = Box.load(out / place / BOX), Key.load(key_of(out, place))
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
    box = Box.load(out / "box" / BOX)
    asked = {
        "teacher": load_classifier(out / "teacher"),
        "keyless": box,
        "keyed": box.unlock(Key.load(key_of(out, "box"))),
        "wrong_key": box.attempt(Key.load(wrong_key(out))),
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
