"""How long a student's step takes in a stack of K students, beside students that are trained one after the other.

    python benchmarks/stacking.py [--device cpu|cuda] [--rounds 5] [--out docs/results/speed/stacking-cpu.json]

Students learn from labels, so that nothing is measured but the stack: students of one teacher would also ask it once
instead of K times. Both ways are timed between two steps of one epoch, data path included. Times are a step's over its
number of students. Variants take turns in every round; a figure is the median, beside the lowest and the highest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import keep
from training_step import QUICK_STEPS, Bench, Stopwatch, take_turns

import sdb.data
from sdb.config import TrainSettings
from sdb.models import Classifier, ModelSpec
from sdb.runtime import keep_freed_memory
from sdb.stacking import Stack, evaluate_stack, stacked_step
from sdb.training import cross_entropy_step, evaluation_batches, fit, train, train_batches

SIZES = (1, 2, 4, 8)
DIGITS, REPEATS = "digits", 5
# title, data, network, arguments; device -> batch size, and steps that are timed after some that are not.
STUDENTS = (
    ("net of 8 channels, 8x8 digits", DIGITS, "net", {"num_channels": 8}, {"cpu": (64, 40), "cuda": (64, 60)}),
    ("net, 32x32", "random", "net", {}, {"cpu": (128, 4), "cuda": (128, 60)}),
    ("preresnet20, 32x32", "random", "preresnet20", {}, {"cpu": (128, 3), "cuda": (128, 60)}),
)


def variants(
    bench: Bench, name: str, arguments: dict[str, Any], sizes: tuple[int, ...]
) -> dict[str, Callable[[], float]]:
    """Milliseconds of a student's step: of one that trains alone, and of one in a stack of each size."""
    data, settings = bench.data, TrainSettings(**bench.fit)
    spec = ModelSpec(name, arguments, data.num_classes, data.image_shape, data.mean, data.std)

    def student(seed: int) -> Classifier:
        torch.manual_seed(seed)
        return spec.build()

    def alone() -> float:
        return bench.ours(lambda watch: train(student(0), data, settings, progress=watch))

    def stacked(size: int) -> float:
        stack = Stack([student(seed) for seed in range(size)]).to(bench.device)
        validation = evaluation_batches(data.validation, bench.device)

        def call(watch: Stopwatch) -> None:
            fit(
                stack,
                stacked_step([cross_entropy_step(settings)] * size),
                train_batches(data, settings, bench.device),
                settings,
                evaluate=lambda: evaluate_stack(stack, validation),
                monitor="accuracy",
                progress=watch,
            )

        return bench.ours(call) / size

    steps: dict[str, Callable[[], float]] = {"one after the other": alone}
    return steps | {f"a stack of {size}": lambda size=size: stacked(size) for size in sizes}


def tables(device: torch.device, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """All comparisons."""
    found = []
    for title, data, name, arguments, lengths in STUDENTS:
        print(title, file=sys.stderr)
        batch_size, steps = lengths[device.type]
        bench = Bench(device, batch_size, QUICK_STEPS if quick else steps)
        if data == DIGITS:
            digits = sdb.data.load(DIGITS)
            often = np.tile(np.arange(len(digits.train)), REPEATS)  # one epoch must be long enough
            bench.data = replace(digits, train=digits.train.take(often))
        rows = take_turns(variants(bench, name, arguments, SIZES), rounds)
        found.append({"title": title, "batch_size": batch_size, "steps": bench.steps, "rows": rows})
    return found


def main() -> None:
    """Measure, and write or print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--quick", action="store_true", help="two steps each: only to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    keep(
        options.out,
        "stacking",
        options.device,
        rounds=options.rounds,
        tables=tables(options.device, options.rounds, options.quick),
    )


if __name__ == "__main__":
    main()
