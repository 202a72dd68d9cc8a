"""What the paper's box does in its own settings, as its reader would measure it; a section of docs/results.md.

    python benchmarks/reference_method.py --data-root DIR            # lossless CIFAR-10: DIR/train/airplane/*.png, ...
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

The settings of the reference: two forwards, from new weights, all of the loss's weights as printed, and key blends of
0.9 and 0.5. Teacher, box and students are small and learn from a part of the images, which two cores can do. Students
learn with labels and soft outputs (weight 0.9, temperature 4), of the same images as the teacher, as in the paper.
One row is what the paper does not measure: a student of the box's top-1 answers. Rows that the file has are not made
again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from evidence_cases import CASES, checked
from few_images import RESULTS, fresh_network, scores_of
from torch import Tensor, nn

import sdb
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.keys import Key
from sdb.models import Classifier
from sdb.runtime import derive_seed, environment, write_atomic
from sdb.training.loop import train

SHARE, EPOCHS = 0.4, 12
TEACHER, STUDENT = ("net", {"num_channels": 24}), ("net", {"num_channels": 16})
BLENDS = (0.9, 0.5)
RATE = {"optimizer": "adam", "learning_rate": 0.003, "schedule": "one_cycle", "batch_size": 128}
STUDENTS = {
    "alone": "trained alone",
    "label smoothing": "trained alone, smoothed labels",
    "of the teacher": "of the unprotected teacher",
    "thief {}": "of the box without a key",
    "labels {}": "of the box's top-1 answers, T=1",
    "wrong key {}": "of the box with a wrong key",
    "partner {}": "of the box with its key",
}


class Sharp(nn.Module):
    """A module's classes as logits that leave no doubt."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        logits = self.module(images)
        return 100.0 * nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


class Ground:
    """What is made for one seed, once it is needed."""

    def __init__(self, data: Splits, seed: int, epochs: int) -> None:
        self.data, self.seed, self.epochs = data, seed, epochs
        self.boxes: dict[float, tuple[Any, Key]] = {}
        self._teacher: Classifier | None = None

    def settings(self, **more: Any) -> TrainSettings:
        return TrainSettings(epochs=self.epochs, seed=self.seed, precision="float32", **RATE, **more)

    @property
    def teacher(self) -> Classifier:
        if self._teacher is None:
            self._teacher = fresh_network(self.data, *TEACHER, derive_seed(self.seed, "teacher"))
            train(self._teacher, self.data, self.settings(), progress=False)
        return self._teacher.eval()

    def key(self, whose: str, blend: float) -> Key:
        """Keys are secrets, but a table must come out the same twice."""
        return Key(derive_seed(self.seed, whose).to_bytes(32, "big"), blend, "image")

    def box(self, blend: float) -> tuple[Any, Key]:
        """The paper's box, with its key."""
        if blend not in self.boxes:
            key = self.key("key", blend)
            chosen = WrapSettings(
                method="sdb", start="scratch", forward="separate", epochs=self.epochs, seed=self.seed,
                precision="float32", **RATE,
            )  # fmt: skip
            torch.manual_seed(derive_seed(self.seed, "box"))
            self.boxes[blend] = sdb.wrap(self.teacher, self.data, chosen, key=key, progress=False), key
        return self.boxes[blend]

    def models(self, blend: float | None) -> dict[str, Any]:
        """Accuracy and calibration of what is asked, on test images."""
        if blend is None:
            return scores_of({"teacher": self.teacher}, self.data)
        box, key = self.box(blend)
        asked = {"keyless": box, "keyed": box.unlock(key), "wrong key": box.attempt(self.key("stranger", blend))}
        return scores_of(asked, self.data)

    def student(self, row: str, blend: float | None) -> float:
        """Test accuracy of a student."""
        student = fresh_network(self.data, *STUDENT, derive_seed(self.seed, "student"))
        if row in ("alone", "label smoothing"):
            smoothing = 0.1 if row == "label smoothing" else 0.0
            train(student, self.data, self.settings(label_smoothing=smoothing), progress=False)
        else:
            temperature, module = 4.0, self.teacher
            if blend is not None:
                box, key = self.box(blend)
                opened = {"thief": box, "labels": Sharp(box), "partner": box.unlock(key)}
                module = opened[row] if row in opened else box.attempt(self.key("stranger", blend))
                temperature = 1.0 if row == "labels" else 4.0
            usual = {"kd_weight": 0.9, "ce_weight": 0.1, "kd_temperature": temperature, "foreign_key": True}
            chosen = DistillSettings(**self.settings().model_dump(), **usual)
            distill(module, student, self.data, chosen, progress=False)
        return scores_of({"student": student}, self.data)["student"]["accuracy"]


def rows_of(blends: tuple[float, ...]) -> list[tuple[str, str, float | None]]:
    """Name, kind and blend of every row, in the order in which they are made."""
    found: list[tuple[str, str, float | None]] = [("teacher", "models", None)]
    found += [(name, name, None) for name in STUDENTS if "{}" not in name]
    for blend in blends:
        found.append((f"box {blend}", "models", blend))
        found += [(name.format(blend), name.removesuffix(" {}"), blend) for name in STUDENTS if "{}" in name]
    return found


def main() -> int:
    """Make what is missing and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", choices=sorted(CASES))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=RESULTS / "reference-method.json")
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.exists() else {"seeds": {}}
    root = " --data-root DIR" if options.data_root else ""
    content |= {
        "kind": "reference method",
        "data": options.data,
        "command": f"python benchmarks/reference_method.py --data {options.data}{root} --seeds {options.seeds}",
        "epochs": options.epochs,
        "environment": environment(),
    }
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        found = content["seeds"].setdefault(str(seed), {})
        missing = [row for row in rows_of(BLENDS) if row[0] not in found]
        if not missing:
            continue
        data = part_of(options.data, options.data_root, seed)
        ground = Ground(data, seed, options.epochs)
        for name, kind, blend in missing:
            started = time.perf_counter()
            made = ground.models(blend) if kind == "models" else {"accuracy": ground.student(kind, blend)}
            found[name] = made | {"seconds": time.perf_counter() - started, "images": len(data.train)}
            print(f"seed {seed}: {name}, {found[name]['seconds']:.0f} s", flush=True)
            content["markdown"] = markdown(content)
            write_atomic(options.out, json.dumps(content, indent=1).encode() + b"\n")
    print(content["markdown"])
    return 0


def part_of(name: str, root: Path | None, seed: int) -> Splits:
    """The data set, checked, with a part of its training images."""
    data = checked(CASES[name], root, seed)
    chosen = np.random.default_rng(derive_seed(seed, "part")).permutation(len(data.train))
    return replace(data, train=data.train.take(np.sort(chosen[: round(SHARE * len(chosen))])))


def markdown(content: dict[str, Any]) -> str:
    """The part of docs/results.md."""
    seeds, made = list(content["seeds"].values()), content["environment"]

    def percent(values: list[float]) -> str:
        spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * fmean(values):.1f}{spread}" if values else "to do"

    def model(row: str, which: str) -> str:
        found = [seed[row][which] for seed in seeds if row in seed]
        honest = percent([each["calibration_error"] for each in found])
        return f"{percent([each['accuracy'] for each in found])} ({honest})"

    def student(row: str) -> str:
        return percent([seed[row]["accuracy"] for seed in seeds if row in seed])

    images = max((row["images"] for seed in seeds for row in seed.values()), default=0)
    lines = [
        f"## the reference method in its own settings: {content['data']}",
        "",
        f"    {content['command']}",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}; seeds: "
        f"{len(seeds)}; teacher, box and students are {TEACHER[0]} of {TEACHER[1]['num_channels']} and "
        f"{STUDENT[1]['num_channels']} channels, {content['epochs']} epochs, {images:,} training images; two forwards, "
        "new weights, weights of the loss as printed. Accuracy on test images, %, last epoch (in brackets: calibration "
        "error, %).",
        "",
        "| what is asked | " + " | ".join(f"key blend {blend}" for blend in BLENDS) + " |",
        "|---|---|---|",
        f"| the unprotected teacher | {' | '.join([model('teacher', 'teacher')] * len(BLENDS))} |",
    ]
    for which, said in (("keyless", "no key"), ("keyed", "its key"), ("wrong key", "a wrong key")):
        cells = [model(f"box {blend}", which) for blend in BLENDS]
        lines.append(f"| the box, {said} | {' | '.join(cells)} |")
    lines += ["", "| a student | " + " | ".join(f"key blend {blend}" for blend in BLENDS) + " |", "|---|---|---|"]
    lines += [
        f"| {said} | {' | '.join(student(name.format(blend)) for blend in BLENDS)} |"
        for name, said in STUDENTS.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
