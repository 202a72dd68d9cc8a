"""How long a training step takes: a box, a student, keys and partners, beside the reference's loop and the floor.

    python benchmarks/training_step.py [--device cpu|cuda] [--rounds 5] [--out docs/results/speed/training-cpu.json]

Ours is `wrap` and `distill` themselves, timed between two steps of one epoch, data path included. The reference's loop
is reference_loop.py, with its loader workers, in a process of its own. Images are random 32x32 pixels. Variants take
turns in every round; a figure is the median over the rounds, beside the lowest and the highest. The floor: floor.py.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import measure_peak, seconds_of, step_floor, work_of
from record import keep
from reference_loop import MEAN, STD, BoxLoop, DistillationLoop, loader

from sdb.config import DistillSettings, WrapSettings
from sdb.data import Augment, ImageSet, Splits
from sdb.distillation import distill
from sdb.keys import Key, Owner
from sdb.models import Classifier, ModelSpec
from sdb.runtime import has_amx, keep_freed_memory
from sdb.wrapping.wrap import wrap

SHAPE, CLASSES = (3, 32, 32), 10
# network -> batch size, and steps that are timed after some that are not.
BOXES = {
    "cpu": {"net": (128, 12), "preresnet20": (128, 6), "resnet18": (32, 4)},
    "cuda": {"resnet18": (128, 60), "preresnet20": (128, 60)},
}
STUDENTS = {
    "cpu": {("preresnet20", "net"): (128, 8), ("resnet18", "preresnet20"): (32, 6)},
    "cuda": {("resnet18", "preresnet20"): (128, 60), ("resnet18", "resnet18"): (128, 60)},
}
KEYS = {"cpu": ("net", 128, 10), "cuda": ("resnet18", 128, 60)}
WARM_UP = {"cpu": 2, "cuda": 15}
LOADER_WORKERS = 2
# A student whose teacher was asked before: the pass over a view comes with its first batch, which is not timed.
KEPT = "the teacher's answers kept, after a view's first epoch"
QUICK_STEPS = 2
# Operations of a profile that are shown.
TOLD = 10


class Stopwatch:
    """A `Progress` that takes the time between two steps of an epoch, with what they started on the device."""

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        self.first, self.last, self.device = first, last, device
        self.steps, self.begin, self.seconds = 0, 0.0, 0.0

    def start(self, epochs: int, first: int, steps: int) -> None:
        """Training begins."""

    def step(self) -> None:
        """A step is done."""
        self.steps += 1
        if self.steps in (self.first, self.last):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            now = time.perf_counter()
            self.begin, self.seconds = now, now - self.begin

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch is done."""

    def close(self) -> None:
        """Training has ended."""


class Bench:
    """Random images for a number of steps, networks, and timed runs of ours and of the reference's.

    Args:
        device: where networks are.
        batch_size: images per step.
        steps: that are timed.
    """

    def __init__(self, device: torch.device, batch_size: int, steps: int) -> None:
        self.device, self.batch_size, self.steps = device, batch_size, steps
        self.warm_up = WARM_UP[device.type]
        # The reference's loader is some batches ahead; it works on the next ones while a step is timed.
        count = batch_size * (self.warm_up + steps + 2 * LOADER_WORKERS)
        random = np.random.default_rng(0)
        self.images = random.integers(0, 256, (count, *SHAPE), dtype=np.uint8)
        self.labels = np.arange(count, dtype=np.int64) % CLASSES
        train = ImageSet(self.images, self.labels)
        few = train.take(np.arange(2 * CLASSES))
        names = tuple("0123456789")
        self.data = Splits("random", train, few, few, names, MEAN, STD, Augment(crop_padding=4, flip=True))
        self.fit = {
            "epochs": 1,
            "batch_size": batch_size,
            "optimizer": "sgd",
            "device": str(device),
            "learning_rate": 1e-3,
        } | ({"precision": "float32"} if device.type == "cpu" else {})

    def classifier(self, name: str, seed: int = 0) -> Classifier:
        """A fresh network with its normalisation."""
        torch.manual_seed(seed)
        return ModelSpec(name, {}, CLASSES, SHAPE, MEAN, STD).build()

    def network(self, name: str, seed: int) -> torch.nn.Module:
        """The network alone, channels first, as the reference has it."""
        return self.classifier(name, seed).network.to(self.device, memory_format=torch.contiguous_format)

    def ours(self, call: Callable[[Stopwatch], Any]) -> float:
        """Milliseconds a step of a `wrap` or `distill`."""
        watch = Stopwatch(self.warm_up, self.warm_up + self.steps, self.device)
        call(watch)
        return 1e3 * watch.seconds / self.steps

    def wrapped(self, teacher: Classifier, key: Any, owner: Owner | None = None, **settings: Any) -> float:
        """Milliseconds a step of a wrap."""
        chosen = WrapSettings(**self.fit | settings)
        return self.ours(lambda watch: wrap(teacher, self.data, chosen, key=key, owner=owner, progress=watch))

    def reference(self, loop: BoxLoop | DistillationLoop) -> float:
        """Milliseconds a step of a loop of the reference's."""
        pin = self.device.type == "cuda"
        batches = iter(loader(self.images, self.labels, self.batch_size, LOADER_WORKERS, pin))
        loop.run(itertools.islice(batches, self.warm_up))
        return 1e3 * seconds_of(lambda: loop.run(itertools.islice(batches, self.steps)), self.device) / self.steps

    def work(self, name: str, dtype: torch.dtype) -> dict[str, float]:
        """Operations and bytes of one forward of a batch."""
        images = torch.rand(self.batch_size, *SHAPE, device=self.device, dtype=dtype)
        return work_of(self.network(name, 0).eval().to(dtype), images)


def box_steps(bench: Bench, name: str) -> dict[str, Callable[[], float]]:
    """The paper's box: two passes, teacher, random network."""
    key, cuda = Key(bytes(32), blend=0.9), bench.device.type == "cuda"

    def ours(layout: torch.memory_format = torch.channels_last, **settings: Any) -> float:
        teacher = bench.classifier(name, 1).to(memory_format=layout)
        return bench.wrapped(teacher, key, method="sdb", **settings)

    def reference(autocast: bool = False) -> float:
        pattern = torch.rand(SHAPE)
        networks = [bench.network(name, seed) for seed in range(3)]
        return bench.reference(BoxLoop(*networks, pattern, bench.device, autocast))

    if not cuda:
        found = {
            "reference": reference,
            "ours": ours,
            "ours, two forwards": lambda: ours(forward="separate"),
            "ours, channels first": lambda: ours(torch.contiguous_format),
        }
        return found | ({"ours, bfloat16": lambda: ours(precision="bfloat16")} if has_amx() else {})
    return {
        "reference, float32": reference,
        "reference, bfloat16": lambda: reference(True),
        "ours, float32": lambda: ours(precision="float32"),
        "ours, bfloat16": ours,
        "ours, bfloat16, channels first": lambda: ours(torch.contiguous_format),
        "ours, bfloat16, compiled": lambda: ours(compile="default"),
        "ours, bfloat16, CUDA graphs": lambda: ours(compile="reduce-overhead"),
    }


def student_steps(bench: Bench, student: str, teacher: str) -> dict[str, Callable[[], float]]:
    """Plain distillation from a teacher."""
    settings = {"kd_weight": 0.9, "kd_temperature": 4.0}

    def ours(**more: Any) -> float:
        chosen = DistillSettings(**bench.fit | settings | more)
        pupil, master = bench.classifier(student, 0), bench.classifier(teacher, 1)
        return bench.ours(lambda watch: distill(master, pupil, bench.data, chosen, progress=watch))

    def reference(autocast: bool = False) -> float:
        networks = bench.network(student, 0), bench.network(teacher, 1)
        return bench.reference(DistillationLoop(*networks, bench.device, autocast))

    if bench.device.type == "cuda":
        return {
            "reference, float32": reference,
            "reference, bfloat16": lambda: reference(True),
            "ours, float32": lambda: ours(precision="float32"),
            "ours, bfloat16": ours,
            f"ours, bfloat16, {KEPT}": lambda: ours(views=1),
            "ours, bfloat16, CUDA graphs": lambda: ours(compile="reduce-overhead"),
        }
    found = {"reference": reference, "ours": ours, f"ours, {KEPT}": lambda: ours(views=1)}
    return found | ({"ours, bfloat16": lambda: ours(precision="bfloat16")} if has_amx() else {})


def key_steps(bench: Bench, name: str) -> dict[str, Callable[[], float]]:
    """Our box by kind of key, wrong-key rejection and number of partners."""
    owner = Owner(bytes(32))

    def ours(kind: str, partners: int, **settings: Any) -> float:
        keys = [owner.partner(str(number), kind) for number in range(partners)]
        return bench.wrapped(bench.classifier(name, 1), keys, owner, method="decoy", **settings)

    return {
        "weight key, 1 partner": lambda: ours("weight", 1),
        "weight key, 100 partners": lambda: ours("weight", 100),
        "weight key, everything private": lambda: ours("weight", 1, private_part="whole"),
        "image key, no wrong-key rejection": lambda: ours("image", 1, wrong_key_rejection=False),
        "image key, 1 partner": lambda: ours("image", 1),
        "image key, 100 partners": lambda: ours("image", 100),
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Variants that are compared.

    Attributes:
        kind: a key of MAKERS.
        networks: what MAKERS takes after the bench.
        batch_size: images per step.
        steps: that are timed.
        images_trained: batches that go through the trained network, the first of `networks`, in a step.
        frozen: networks that only answer.
    """

    kind: str
    networks: tuple[str, ...]
    batch_size: int
    steps: int
    images_trained: int
    frozen: tuple[str, ...]


MAKERS: dict[str, Callable[..., dict[str, Callable[[], float]]]] = {
    "box": box_steps,
    "student": student_steps,
    "keys": key_steps,
}


def comparisons(device: torch.device, quick: bool) -> list[Comparison]:
    """All comparisons."""
    kind = device.type
    found = [Comparison("box", (name,), *size, 2, (name, name)) for name, size in BOXES[kind].items()]
    found += [
        Comparison("student", (student, teacher), *size, 1, (teacher,))
        for (teacher, student), size in STUDENTS[kind].items()
    ]
    name, batch_size, steps = KEYS[kind]
    found.append(Comparison("keys", (name,), batch_size, steps, 2, (name,)))
    return [replace(each, steps=QUICK_STEPS) for each in found] if quick else found


@functools.cache
def variants(device: str, one: Comparison) -> dict[str, Callable[[], float]]:
    """The variants of a comparison, in this process."""
    return MAKERS[one.kind](Bench(torch.device(device), one.batch_size, one.steps), *one.networks)


def milliseconds(device: str, one: Comparison, name: str) -> float:
    """Run a variant once."""
    return variants(device, one)[name]()


def precision_of(device: torch.device, name: str) -> torch.dtype:
    """In which type a variant computes: on a GPU ours is bfloat16 unless it says otherwise."""
    if device.type == "cpu":
        return torch.bfloat16 if "bfloat16" in name else torch.float32
    return torch.float32 if "float32" in name else torch.bfloat16


def take_turns(steps: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a step of each variant: median, lowest, highest, and how many times as fast as the first."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, call in steps.items():
            times[name].append(call())
    first = statistics.median(next(iter(times.values())))
    return [
        {
            "name": name,
            "ms": statistics.median(values),
            "ms_low": min(values),
            "ms_high": max(values),
            "times_the_first": first / statistics.median(values),
        }
        for name, values in times.items()
    ]


def table_of(
    device: torch.device,
    one: Comparison,
    rounds: int,
    peaks: dict[str, dict[str, float]],
    sides: dict[bool, ProcessPoolExecutor],
) -> dict[str, Any]:
    """A comparison's rows, each with its floor."""
    title = " from ".join(one.networks)
    print(f"{one.kind}: {title}", file=sys.stderr)
    bench = Bench(device, one.batch_size, one.steps)

    def elsewhere(name: str) -> float:
        return sides[name.startswith("reference")].submit(milliseconds, str(device), one, name).result()

    names = MAKERS[one.kind](bench, *one.networks)
    rows = take_turns({name: functools.partial(elsewhere, name) for name in names}, rounds)
    for row in rows:
        dtype = precision_of(device, row["name"])
        frozen = () if KEPT in row["name"] else one.frozen
        trained, answering = bench.work(one.networks[0], dtype), [bench.work(name, dtype) for name in frozen]
        row["floor"] = step_floor(trained, answering, one.images_trained, peaks[str(dtype).removeprefix("torch.")])
    return {
        "kind": one.kind,
        "title": title,
        "batch_size": one.batch_size,
        "steps": one.steps,
        "rows": rows,
    }


def profile(device: torch.device, quick: bool) -> dict[str, Any]:
    """Where the time of a step of the paper's box goes, by torch's profiler: the operations that take most."""
    name, (batch_size, steps) = ("preresnet20", BOXES[device.type]["preresnet20"])
    bench = Bench(device, batch_size, QUICK_STEPS if quick else steps)
    teacher, key = bench.classifier(name, 1), Key(bytes(32), blend=0.9)
    with torch.profiler.profile() as profiler:
        bench.wrapped(teacher, key, method="sdb")
    field = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    times = {event.key: getattr(event, field) for event in profiler.key_averages()}
    most = sorted(times.items(), key=lambda item: -item[1])[:TOLD]
    total = sum(times.values())
    return {"title": name, "rows": [{"name": key, "share": value / total} for key, value in most]}


def main() -> None:
    """Measure, and write or print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--quick", action="store_true", help="two steps each: only to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    # Two processes, so that ours may keep freed memory, as its command line does, and the reference's does not.
    sides = {True: ProcessPoolExecutor(1, spawn), False: ProcessPoolExecutor(1, spawn, keep_freed_memory)}
    fast = options.device.type == "cuda" or has_amx()
    precisions = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if fast else {})
    peaks = {name: measure_peak(options.device, dtype) for name, dtype in precisions.items()}
    keep(
        options.out,
        "training step",
        options.device,
        rounds=options.rounds,
        loader_workers=LOADER_WORKERS,
        peak=peaks,
        tables=[
            table_of(options.device, one, options.rounds, peaks, sides)
            for one in comparisons(options.device, options.quick)
        ],
        profile=profile(options.device, options.quick),
    )


if __name__ == "__main__":
    main()
