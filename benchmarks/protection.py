"""How well boxes protect, and what each ingredient is worth: the experiment behind docs/results.md.

    python benchmarks/protection.py --data digits --seeds 5 --out docs/results/digits.json
    python benchmarks/protection.py --data digits --seeds 3 --variants ablation --out docs/results/ablation-digits.json
    python benchmarks/protection.py --data cifar10 --data-root DIR --seeds 3 --preset small --out ...
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

A seed is skipped when the file has it already, so an interrupted run goes on. Thieves' settings are chosen on
validation images; everything shown is measured on test images at the last epoch.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from few_images import fresh_network

import sdb
from sdb.box.box import Box
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.keys import Key, Owner
from sdb.losses import kl
from sdb.models import Classifier
from sdb.runtime import derive_seed, environment, write_atomic
from sdb.tracing.decoys import trace
from sdb.training.evaluation import calibration, evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap


@dataclass(frozen=True)
class Preset:
    """Sizes and lengths of one experiment."""

    model: str
    teacher_args: dict
    student: str
    student_args: dict
    subset: float
    batch_size: int
    learning_rate: float
    teacher_epochs: int
    box_epochs: int
    student_epochs: int
    box_rate: float = 1.0  # the box's learning rate, as a share of the others'


PRESETS = {
    "digits": Preset("net", {"num_channels": 24}, "net", {"num_channels": 8}, 1.0, 64, 0.003, 30, 60, 60),
    "small": Preset("net", {"num_channels": 16}, "net", {"num_channels": 8}, 0.05, 64, 0.002, 15, 12, 12),
    "gpu": Preset("resnet18", {}, "preresnet20", {}, 1.0, 128, 0.1, 100, 60, 100, 0.1),
}

# name -> (key kind or None, changes to WrapSettings, what it shows)
MAIN = {
    "decoy, weight key": ("weight", {}, "the default"),
    "decoy, image key": ("image", {}, "the same with the paper's kind of key"),
    "sdb": ("image", {"method": "sdb", "disturbance_weight": 0.1}, "the paper's method, joint forward"),
    "nasty": (None, {"method": "nasty", "disturbance_weight": 0.04}, "the parent method"),
}
# What training does shows in the network's own logits only: fixed answers would hide it.
ABLATION = {
    "decoy, weight key": ("weight", {}, "the default"),
    "no blended images": ("weight", {"mixed_share": 0.0}, "no mixup of teacher-labelled blends"),
    "random decoys": ("weight", {"decoy_choice": "any"}, "decoys from all classes"),
    "margin 2": ("weight", {"margin": 2.0}, ""),
    "no label term": ("weight", {"ce_weight": 0.0}, "keyless cross-entropy off"),
    "from scratch": ("weight", {"start": "scratch"}, "not from the teacher's weights"),
    "four views": ("weight", {"teacher_views": 4}, "knowledge augmentation: teacher averaged over views"),
    "image key": ("image", {}, "joint forward, rejection"),
    "image key, separate": ("image", {"forward": "separate"}, "a forward for each kind of image"),
    "image key, no rejection": ("image", {"wrong_key_rejection": False}, ""),
    "sdb": ("image", {"method": "sdb", "disturbance_weight": 0.1}, "the paper's, joint forward"),
    "sdb, separate": (
        "image",
        {"method": "sdb", "disturbance_weight": 0.1, "forward": "separate"},
        "as the reference",
    ),
    "sdb, no augmentation": (
        "image",
        {"method": "sdb", "disturbance_weight": 0.1, "augmentation_weight": 0.0},
        "the paper's third term off",
    ),
    "sdb, no preservation": (
        "image",
        {"method": "sdb", "disturbance_weight": 0.1, "preservation_weight": 0.0},
        "the paper's second term off",
    ),
    "nasty": (None, {"method": "nasty", "disturbance_weight": 0.04}, "the parent method"),
}
GRID = [(alpha, temperature) for alpha in (0.5, 0.9, 1.0) for temperature in (1.0, 4.0, 20.0)]


class Experiment:
    """One seed: data, teacher, and how to make boxes and students."""

    def __init__(self, dataset: str, root: Path | None, preset: Preset, seed: int, base: dict) -> None:
        self.preset, self.seed, self.base = preset, seed, base
        self.data: Splits = sdb.load_data(dataset, root=root, seed=seed, subset_percent=preset.subset)
        self.common = {"batch_size": preset.batch_size, "learning_rate": preset.learning_rate, "seed": seed}
        self.common |= {"optimizer": "auto", "schedule": "cosine"}
        self.teacher = self.model(preset.model, preset.teacher_args, "teacher")
        train(self.teacher, self.data, TrainSettings(epochs=preset.teacher_epochs, **self.common))

    def model(self, name: str, arguments: dict, purpose: str) -> Classifier:
        """A fresh network; the same weights for the same purpose and seed."""
        return fresh_network(self.data, name, arguments, derive_seed(self.seed, purpose))

    def student(self) -> Classifier:
        """The student that everyone starts with."""
        return self.model(self.preset.student, self.preset.student_args, "student")

    def score(self, model: torch.nn.Module, part: str = "test") -> float:
        """Accuracy on test or validation images."""
        device = next(model.parameters()).device
        return evaluate(model, evaluation_batches(getattr(self.data, part), device))["accuracy"]

    def trained(self, **changes: float) -> Classifier:
        """A student on labels alone."""
        student = self.student()
        train(student, self.data, TrainSettings(epochs=self.preset.student_epochs, **self.common, **changes))
        return student

    def distilled(self, teacher: torch.nn.Module, key: Key | None = None, **changes: object) -> Classifier:
        """A student of a teacher or box."""
        student = self.student()
        settings = DistillSettings(epochs=self.preset.student_epochs, **self.common, **changes)
        distill(teacher, student, self.data, settings, key=key)
        return student

    def reference(self) -> dict[str, float]:
        """Teacher and the students that never saw a box."""
        device = next(self.teacher.parameters()).device
        return {
            "teacher": self.score(self.teacher),
            "teacher_calibration": calibration(self.teacher, evaluation_batches(self.data.test, device)),
            "alone": self.score(self.trained()),
            "label_smoothing": self.score(self.trained(label_smoothing=0.1)),
            "from_teacher": self.score(self.distilled(self.teacher)),
        }

    def wrong_keys(self, box: Box, key: Key, kind: str, count: int = 100) -> dict[str, float]:
        """What random keys get: accuracy, and the distance of their soft outputs from the teacher's, beside keyless."""
        asked = [
            box.attempt(Key(derive_seed(self.seed, "wrong", i).to_bytes(32, "big"), 0.5, kind))
            for i in range(count)
        ]
        scores, distances = [self.score(model) for model in asked], [self.distance(model) for model in asked]
        return {
            "mean": sum(scores) / count,
            "best": max(scores),
            "nearest": min(distances),
            "keyless_distance": self.distance(box),
            "keyed_distance": self.distance(box.unlock(key)),
        }

    @torch.no_grad()
    def distance(self, model: torch.nn.Module) -> float:
        """KL(teacher || model) at temperature 4 on test images, nats."""
        device = next(model.parameters()).device
        batches = evaluation_batches(self.data.test, device).epoch(0)
        parts = [
            (float(kl(self.teacher(b.images), model(b.images), 4.0)) * len(b.labels), len(b.labels))
            for b in batches
        ]
        return sum(total for total, _ in parts) / sum(count for _, count in parts)

    def variant(self, kind: str | None, changes: dict, full: bool) -> dict[str, object]:
        """One box and who distils it."""
        started = time.perf_counter()
        # Keys are secrets, but a table must come out the same twice: this experiment's follow from its seed.
        owner = Owner(derive_seed(self.seed, "owner").to_bytes(32, "big"))
        key = owner.partner("partner", kind, 0.5) if kind else None
        rate = self.preset.learning_rate * self.preset.box_rate
        fitted = {**self.common, "learning_rate": rate, "epochs": self.preset.box_epochs}
        settings = WrapSettings(**{"method": "decoy", **fitted, **self.base, **changes})
        box = wrap(self.teacher, self.data, settings, key=key, owner=owner if kind else None)
        device = next(box.parameters()).device
        result: dict[str, object] = {"seconds": time.perf_counter() - started, "keyless": self.score(box)}
        result["keyless_calibration"] = calibration(box, evaluation_batches(self.data.test, device))
        thief = self.distilled(box)
        result["thief"] = self.score(thief)
        if key is not None:
            keyed = box.unlock(key)
            result["keyed"] = self.score(keyed)
            result["keyed_calibration"] = calibration(keyed, evaluation_batches(self.data.test, device))
            result["partner"] = self.score(self.distilled(box, key))
        if box.record is not None:
            result["trace_log10_p"] = trace(thief, box, owner, self.data).log10_p
        if full and settings.method == "decoy":
            if key is not None:
                result["wrong_keys"] = self.wrong_keys(box, key, kind)
            thieves = {pair: self.distilled(box, kd_weight=pair[0], kd_temperature=pair[1]) for pair in GRID}
            best = max(GRID, key=lambda pair: self.score(thieves[pair], "validation"))
            result["best_thief"] = self.score(thieves[best])
            result["best_thief_settings"] = best
            result["thieves"] = {f"{a:g}/{t:g}": self.score(model) for (a, t), model in thieves.items()}
        return result


def run_seed(
    dataset: str, root: Path | None, preset: str, seed: int, names: str, full: bool, threads: int
) -> dict:
    """All variants of one seed."""
    torch.set_num_threads(threads)
    base = {"fixed_answers": False} if names == "ablation" else {}
    experiment = Experiment(dataset, root, PRESETS[preset], seed, base)
    record: dict = {"seed": seed, "reference": experiment.reference(), "variants": {}}
    for name, (kind, changes, _) in {"main": MAIN, "ablation": ABLATION}[names].items():
        record["variants"][name] = experiment.variant(kind, changes, full)
        print(f"seed {seed}: {name}", flush=True)
    return record


def main() -> None:
    """Run what is missing, keep it after every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="digits")
    parser.add_argument("--variants", choices=("main", "ablation"), default="main")
    parser.add_argument("--quick", action="store_true", help="no grid of thieves, no random keys")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", action="store_true", help="write docs/results.md from docs/results/*.json")
    options = parser.parse_args()
    if options.write:
        from protection_page import write_page

        return write_page()
    done = json.loads(options.out.read_text())["seeds"] if options.out.exists() else []
    missing = [seed for seed in range(options.seeds) if seed not in {record["seed"] for record in done}]
    full = options.variants == "main" and not options.quick
    arguments = [
        (options.data, options.data_root, options.preset, seed, options.variants, full, options.threads)
        for seed in missing
    ]
    with ProcessPoolExecutor(options.workers) as pool:
        for record in pool.map(run_seed, *zip(*arguments, strict=True)):
            done.append(record)
            content = {
                "experiment": options.variants,
                "data": options.data,
                "preset": options.preset,
                "command": f"python benchmarks/protection.py --data {options.data} --preset {options.preset} "
                f"--variants {options.variants} --seeds {options.seeds}{' --quick' if options.quick else ''}",
                "environment": environment(),
                "seeds": sorted(done, key=lambda entry: entry["seed"]),
            }
            write_atomic(options.out, json.dumps(content, indent=1).encode() + b"\n")
    return None


if __name__ == "__main__":
    main()
