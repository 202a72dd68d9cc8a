"""What is at stake, denied and given to partners where students have few images: a section of docs/results.md.

    python benchmarks/few_images.py --data digits --seeds 5
    python benchmarks/few_images.py --data fashion_mnist --data-root DIR --seeds 3
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

A seed is a split, a teacher and a box with the defaults of a wrap; its students come in pairs, see `sdb.audit.regime`.
The bar, and the best of several ways for each row, are chosen on the students' own validation images over all pairs;
test images only measure. The number of the students' images and their length were chosen on validation images of seed
0, for the teacher's soft answers to be worth most. Pairs that the file has are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn

import sdb
from sdb.audit.marks.mark_seed import fresh_network
from sdb.audit.regime import Regime, attacker_of, bar_ways, measure, soft_ways, thief_ways
from sdb.box.box import Box
from sdb.config import FitSettings, TrainSettings, WrapSettings
from sdb.data import Splits
from sdb.keys import Key
from sdb.models import Classifier, ModelSpec
from sdb.report.pairs import Scores, best, gain
from sdb.runtime import choose_device, derive_seed, environment, write_atomic
from sdb.training.evaluation import answers_to, evaluate, evaluation_batches, honesty
from sdb.training.loop import train

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COMMAND = "python benchmarks/few_images.py --data {data}{root} --seeds {seeds}"


@dataclass(frozen=True)
class Case:
    """Sizes on one data set.

    Attributes:
        subset: share of the training images that teacher and box learn from.
        validation: share of these that is held out.
        width, epochs: of the teacher; wrap_epochs: of its box.
        labelled, student_epochs, student_rate: of students.
        pairs: per seed.
    """

    subset: float
    validation: float
    width: int
    epochs: int
    wrap_epochs: int
    labelled: int
    student_epochs: int
    student_rate: float
    pairs: int


CASES = {
    "digits": Case(1.0, 0.231, 24, 25, 50, 150, 60, 0.01, 12),
    "fashion_mnist": Case(0.15, 0.1, 16, 12, 20, 300, 60, 0.01, 8),
}
ROWS = {
    "bare": "student of the bare model (at stake)",
    "thief": "thief of the box",
    "partner": "partner",
}


def boxed(
    name: str, root: Path | None, seed: int, precision: Literal["auto", "float32", "bfloat16"] = "auto"
) -> tuple[Splits, Classifier, Box, Key]:
    """Data, teacher and box of one seed, with the box's key."""
    case = CASES[name]
    data = sdb.load_data(
        name, root=root, seed=seed, subset_percent=case.subset, validation_fraction=case.validation
    )
    spec = ModelSpec("net", {"num_channels": case.width}, data.num_classes, data.image_shape, data.mean, data.std)
    torch.manual_seed(derive_seed(seed, "teacher"))
    teacher = spec.build()
    rate = {"optimizer": "adamw", "learning_rate": 0.003, "schedule": "one_cycle", "batch_size": 64}
    train(teacher, data, TrainSettings(epochs=case.epochs, seed=seed, precision=precision, **rate), progress=False)
    # Keys are secrets, but a table must come out the same twice.
    key = Key(derive_seed(seed, "key").to_bytes(32, "big"), 0.5, "weight")
    settings = WrapSettings(seed=seed, epochs=case.wrap_epochs, precision=precision)
    box = sdb.wrap(teacher, data, settings, key=key, progress=False)
    return data, teacher.eval(), box, key


def student_settings(epochs: int, rate: float, seed: int, **others: Any) -> FitSettings:
    """How students with few images learn."""
    usual = {"batch_size": 32, "optimizer": "adam", "schedule": "cosine"}
    return FitSettings(epochs=epochs, learning_rate=rate, seed=seed, **(usual | others))


def scores_of(models: dict[str, nn.Module], data: Splits) -> dict[str, dict[str, float]]:
    """Accuracy and honesty of models on test images."""
    batches = evaluation_batches(data.test, choose_device("auto"))
    return {
        which: {"accuracy": evaluate(model.eval(), batches)["accuracy"]} | honesty(*answers_to(model, batches))
        for which, model in models.items()
    }


def seed_of(name: str, root: Path | None, seed: int, pairs: dict[str, Any], keep: Any) -> dict[str, Any]:
    """Teacher, box and students of one seed; `pairs` holds what is done, `keep` is called after each pair."""
    case = CASES[name]
    data, teacher, box, key = boxed(name, root, seed)
    keyed = box.unlock(key)
    regime = Regime(case.labelled)
    groups = {
        "bar": bar_ways(box, regime),
        "bare": soft_ways(teacher),
        "thief": thief_ways(box, regime),
        "partner": soft_ways(keyed),
    }
    ways = {f"{group}/{way}": made for group, found in groups.items() for way, made in found.items()}

    def student(purpose: object) -> Classifier:
        return fresh_network(data, "net", {"num_channels": 8}, derive_seed(seed, "student", purpose))

    settings = student_settings(case.student_epochs, case.student_rate, seed)
    for pair in range(case.pairs):
        if str(pair) not in pairs:
            scores = measure(ways, data, [attacker_of(data, regime, student, settings, pair)])
            pairs[str(pair)] = {way: [each.test[0], each.validation[0]] for way, each in scores.items()}
            keep()
    models = {
        "teacher": teacher,
        "box, no key": box,
        "box, exact confidence": box.classifier,
        "box, key": keyed,
    }
    return {
        "pairs": pairs,
        "images": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        "bits": box.info.measured["bits"],
        "levels": len(box.info.levels),
        "models": scores_of(models, data),
    }


def main() -> None:
    """Measure what is missing, keep it after every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or RESULTS / f"few-images-{options.data}.json"
    torch.set_num_threads(1)
    content: dict[str, Any] = (
        json.loads(out.read_text()) if out.exists() else {"seeds": {}, "pairs": {}, "seconds": 0}
    )
    command = COMMAND.format(
        data=options.data, root=" --data-root DIR" if options.data_root else "", seeds=options.seeds
    )
    content |= {"kind": "few-images", "data": options.data, "command": command, "environment": environment()}

    def keep() -> None:
        write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")

    for seed in range(options.seeds):
        if str(seed) in content["seeds"]:
            continue
        started = time.perf_counter()
        pairs = content["pairs"].setdefault(str(seed), {})
        content["seeds"][str(seed)] = seed_of(options.data, options.data_root, seed, pairs, keep)
        del content["pairs"][str(seed)]
        content["seconds"] += time.perf_counter() - started
        content["markdown"] = markdown(content)
        keep()
        print(f"{options.data}: seed {seed + 1} of {options.seeds}", flush=True)
    content["markdown"] = markdown(content)
    keep()
    print(content["markdown"])


def markdown(content: dict[str, Any]) -> str:
    """The section."""
    case, seeds, made = CASES[content["data"]], list(content["seeds"].values()), content["environment"]
    pairs = [pair for seed in seeds for _, pair in sorted(seed["pairs"].items(), key=lambda each: int(each[0]))]
    scores = {
        way: Scores(tuple(pair[way][0] for pair in pairs), tuple(pair[way][1] for pair in pairs))
        for way in pairs[0]
    }
    chosen = {
        group: best(scores, [way for way in scores if way.startswith(f"{group}/")]) for group in ("bar", *ROWS)
    }
    bar, taught = scores[chosen["bar"]], scores[chosen["bare"]]
    lines = [
        f"## few images: {content['data']}, {len(seeds)} seeds",
        "",
        f"Students with {case.labelled} labelled images (a fifth of them to choose by), {len(pairs)} pairs over "
        f"{len(seeds)} seeds of split, teacher ({seeds[0]['images']:,} images) and box. Points over the bar on "
        f"{seeds[0]['test']:,} test images, mean over pairs ± half the 95 % interval. The bar, "
        f"{chosen['bar'].partition('/')[2]}: {100 * fmean(bar.test):.1f} %.",
        "",
        f"    {content['command']}",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}; "
        f"{content['seconds'] / 60:.0f} minutes.",
        "",
        "| | in the best way on validation images | accuracy | points over the bar | standard error | against the bare "
        "model's student |",
        "|---|---|---|---|---|---|",
    ]
    for group, title in ROWS.items():
        ours = scores[chosen[group]]
        over, against = gain(ours, bar), gain(ours, taught)
        lines.append(
            f"| {title} | {chosen[group].partition('/')[2]} | {100 * fmean(ours.test):.1f} | "
            f"{100 * over.value:+.2f} ± {100 * over.half:.2f} | {100 * over.error:.2f} | "
            f"{100 * against.value:+.2f} ± {100 * against.half:.2f} |"
        )
    lines += ["", "Whether users are served whole, test images, mean over seeds:", ""]
    lines += ["| | accuracy, % | calibration error, % | Brier score, % |", "|---|---|---|---|"]
    for which in seeds[0]["models"]:
        cells = [
            fmean(seed["models"][which][score] for seed in seeds)
            for score in ("accuracy", "calibration_error", "brier")
        ]
        lines.append(f"| {which} | " + " | ".join(f"{100 * cell:.2f}" for cell in cells) + " |")
    bits = [seed["bits"] for seed in seeds]
    lines += ["", f"An answer without a key says {fmean(bits):.2f} bits beyond its class (most: {max(bits):.2f})."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
