"""Whether a wrap with nothing set keeps its teacher's accuracy: a section of docs/results.md.

    python benchmarks/wrap_defaults.py --fashion DIR --cifar DIR
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

Fashion-MNIST is in Debian's package dataset-fashion-mnist: --fashion /usr/share/datasets/fashion-mnist. A row that the
file has already is not made again, so an interrupted run goes on. Nothing was chosen by the test images shown here: the
defaults were, by validation images of seed 0.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sdb
from sdb.config import TrainSettings, WrapSettings
from sdb.keys import Key
from sdb.models import Classifier, ModelSpec
from sdb.runtime import derive_seed, environment, write_atomic
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.training.optimizers import resolved

OUT = Path(__file__).resolve().parent.parent / "docs" / "results" / "wrap-defaults.json"
COMMAND = "python benchmarks/wrap_defaults.py --fashion DIR --cifar DIR"
VIT = {
    "image_size": 8,
    "num_channels": 1,
    "patch_size": 2,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


@dataclass(frozen=True)
class Case:
    """A data set, the share of its training images that is used, a network, how long it learns, how many seeds."""

    data: str
    subset: float
    model: str
    arguments: dict[str, Any]
    epochs: int
    seeds: int
    learning_rate: float = 0.003


TRANSFORMER = "transformers:ViTForImageClassification"
CASES = (
    Case("digits", 1.0, "net", {"num_channels": 24}, 25, 3),
    Case("fashion_mnist", 0.05, "net", {"num_channels": 12}, 20, 3),
    Case("cifar10", 0.05, "net", {"num_channels": 16}, 20, 1),
    Case("digits", 1.0, TRANSFORMER, {"config": VIT}, 60, 1, 0.002),
    Case("digits", 1.0, "mlp", {}, 30, 3),
    Case("digits", 1.0, "preresnet20", {}, 20, 1),
)


def measure(case: Case, root: Path | None, seed: int) -> dict[str, Any]:
    """One teacher, and its box with nothing set; accuracies on test images, fractions."""
    data = sdb.load_data(case.data, root=root, seed=seed, subset_percent=case.subset)
    spec = ModelSpec(case.model, case.arguments, data.num_classes, data.image_shape, data.mean, data.std)
    torch.manual_seed(derive_seed(seed, "teacher"))
    teacher: Classifier = spec.build()
    rate = {"optimizer": "adamw", "learning_rate": case.learning_rate, "schedule": "one_cycle"}
    train(teacher, data, TrainSettings(epochs=case.epochs, batch_size=64, seed=seed, **rate))
    # Keys are secrets, but a table must come out the same twice.
    key = Key(derive_seed(seed, "key").to_bytes(32, "big"), 0.5, "weight")
    started = time.perf_counter()
    box = sdb.wrap(teacher, data, WrapSettings(seed=seed), key=key)

    def score(model: nn.Module) -> float:
        return evaluate(model, evaluation_batches(data.test, next(model.parameters()).device))["accuracy"]

    return {
        **{name: value for name, value in asdict(case).items() if name != "seeds"},
        "seed": seed,
        "images": len(data.train),
        "test_images": len(data.test),
        "settings": resolved(WrapSettings(seed=seed), teacher).model_dump(mode="json"),
        "teacher": score(teacher),
        "keyless": score(box),
        "keyed": score(box.unlock(key)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def markdown(rows: list[dict[str, Any]], made: dict[str, Any]) -> str:
    """The rows as a section of docs/results.md: means over seeds."""
    from protection_page import DATA_NOTES, interval

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["data"], row["model"]), []).append(row)
    first = rows[0]["settings"]
    lines = [
        "## wrap: what the defaults keep of a teacher",
        "",
        f"Method decoy, weight key, nothing set: {first['optimizer']}, {first['schedule']}, {first['epochs']} epochs, "
        f"batches of {first['batch_size']}. Accuracies in per cent on test images, mean over seeds ± half the 95 % "
        "t-interval.",
        "",
        *(f"- {DATA_NOTES[name]}." for name in dict.fromkeys(row["data"] for row in rows)),
        "",
        f"    {COMMAND}",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}.",
        "",
        "| data | training images | network | highest rate | seeds | teacher | keyless | keyed | keyless - teacher | "
        "keyed - teacher |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, model), group in groups.items():
        cells = [interval([row[name] for row in group]) for name in ("teacher", "keyless", "keyed")]
        cells += [f"{100 * _mean(row[s] - row['teacher'] for row in group):+.2f}" for s in ("keyless", "keyed")]
        rate, name = group[0]["settings"]["learning_rate"], model.rpartition(":")[2]
        start = f"| {data} | {group[0]['images']:,} | {name} | {rate:g} | {len(group)} | "
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def main() -> None:
    """Make what is missing, keep it after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's files; left out without it")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10; left out without it")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    roots = {"digits": None, "fashion_mnist": options.fashion, "cifar10": options.cifar}
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["data"], row["model"], row["seed"]) for row in rows}
    for case in CASES:
        if case.data != "digits" and roots[case.data] is None:
            continue
        for seed in range(case.seeds):
            if (case.data, case.model, seed) in done:
                continue
            rows.append(measure(case, roots[case.data], seed))
            order = [(each.data, each.model) for each in CASES]
            rows.sort(key=lambda row: (order.index((row["data"], row["model"])), row["seed"]))
            made = environment()
            content = {"kind": "wrap-defaults", "command": COMMAND, "environment": made, "rows": rows}
            content["markdown"] = markdown(rows, made)
            write_atomic(options.out, json.dumps(content, indent=1).encode() + b"\n")
            shown = {name: rows[-1][name] for name in ("data", "model", "seed", "teacher", "keyless", "keyed")}
            print(shown, flush=True)


if __name__ == "__main__":
    main()
