"""How long a training step takes: a box, a student, keys and partners, beside the reference's loop and the floor.

    python benchmarks/training_step.py [--device cpu|cuda] [--rounds 5] [--out docs/results/speed/training-cpu.json]

Ours is `wrap` and `distill` themselves, timed between two steps of one epoch, data path included. The reference's loop
is reference_loop.py, with its loader workers. Images are random 32x32 pixels. Variants take turns in every round; a
figure is the median over the rounds, beside the lowest and the highest. The floor of a step: floor.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import measure_peak, seconds_of, step_floor, work_of
from reference_loop import MEAN, STD, BoxLoop, DistillationLoop, loader

from sdb.config import DistillSettings, WrapSettings
from sdb.data import Augment, ImageSet, Splits
from sdb.distillation import distill
from sdb.keys import Key, Owner
from sdb.models import Classifier, ModelSpec
from sdb.runtime import environment, keep_freed_memory, write_atomic
from sdb.wrapping import wrap

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
        batch_size: images a step.
        steps: that are timed.
    """

    def __init__(self, device: torch.device, batch_size: int, steps: int) -> None:
        self.device, self.batch_size, self.steps = device, batch_size, steps
        self.warm_up = WARM_UP[device.type]
        count = batch_size * (self.warm_up + steps)
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
        }

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
        return self.ours(lambda watch: wrap(teacher, key, self.data, chosen, owner=owner, progress=watch))

    def reference(self, loop: BoxLoop | DistillationLoop) -> float:
        """Milliseconds a step of a loop of the reference's."""
        pin = self.device.type == "cuda"
        batches = iter(loader(self.images, self.labels, self.batch_size, LOADER_WORKERS, pin))
        loop.run(itertools.islice(batches, self.warm_up))
        return 1e3 * seconds_of(lambda: loop.run(itertools.islice(batches, self.steps)), self.device) / self.steps

    def work(self, name: str) -> dict[str, float]:
        """Operations and bytes of one forward of a batch."""
        return work_of(self.network(name, 0).eval(), torch.rand(self.batch_size, *SHAPE, device=self.device))


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
        return {
            "reference": reference,
            "ours": ours,
            "ours, two forwards": lambda: ours(forward="separate"),
            "ours, channels first": lambda: ours(torch.contiguous_format),
        }
    return {
        "reference, float32": reference,
        "reference, bfloat16": lambda: reference(True),
        "ours, float32": lambda: ours(precision="float32"),
        "ours, bfloat16": ours,
        "ours, bfloat16, channels first": lambda: ours(torch.contiguous_format),
        "ours, bfloat16, compiled": lambda: ours(compile="default"),
        "ours, bfloat16, CUDA graphs": lambda: ours(compile="reduce-overhead"),
    }


def student_steps(bench: Bench, teacher: str, student: str) -> dict[str, Callable[[], float]]:
    """Plain distillation from a teacher."""
    settings = {"kd_weight": 0.9, "kd_temperature": 4.0}

    def ours(**more: Any) -> float:
        chosen = DistillSettings(**bench.fit | settings | more)
        pupil, master = bench.classifier(student, 0), bench.classifier(teacher, 1)
        return bench.ours(lambda watch: distill(master, pupil, bench.data, chosen, progress=watch))

    def reference(autocast: bool = False) -> float:
        networks = bench.network(student, 0), bench.network(teacher, 1)
        return bench.reference(DistillationLoop(*networks, bench.device, autocast))

    steps = {
        "reference": reference,
        "ours": ours,
        # The pass over the view comes with its first batch, which is not timed.
        "ours, the teacher's answers kept (views)": lambda: ours(views=1),
    }
    if bench.device.type == "cuda":
        steps["reference, bfloat16"] = lambda: reference(True)
        steps["ours, CUDA graphs"] = lambda: ours(compile="reduce-overhead")
    return steps


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


def tables(device: torch.device, rounds: int, quick: bool, peak: dict[str, float]) -> list[dict[str, Any]]:
    """All comparisons."""
    found = []

    def add(kind: str, title: str, bench: Bench, steps: dict[str, Callable[[], float]], floor: Any) -> None:
        print(f"{kind}: {title}", file=sys.stderr)
        table = {
            "kind": kind,
            "title": title,
            "batch_size": bench.batch_size,
            "steps": bench.steps,
            "floor": floor,
        }
        found.append(table | {"rows": take_turns(steps, rounds)})

    for name, (batch_size, steps) in BOXES[device.type].items():
        bench = Bench(device, batch_size, QUICK_STEPS if quick else steps)
        work = bench.work(name)
        add("box", name, bench, box_steps(bench, name), step_floor(work, [work, work], 2, peak))
    for (teacher, student), (batch_size, steps) in STUDENTS[device.type].items():
        bench = Bench(device, batch_size, QUICK_STEPS if quick else steps)
        floor = step_floor(bench.work(student), [bench.work(teacher)], 1, peak)
        add("student", f"{student} from {teacher}", bench, student_steps(bench, teacher, student), floor)
    name, batch_size, steps = KEYS[device.type]
    bench = Bench(device, batch_size, QUICK_STEPS if quick else steps)
    work = bench.work(name)
    add("keys", name, bench, key_steps(bench, name), step_floor(work, [work], 2, peak))
    return found


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


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.machine()


def main() -> None:
    """Measure, and write or print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--quick", action="store_true", help="two steps each: only to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does; it holds for the reference's loop too
    precisions = {"float32": torch.float32} | (
        {"bfloat16": torch.bfloat16} if options.device.type == "cuda" else {}
    )
    peaks = {name: measure_peak(options.device, dtype) for name, dtype in precisions.items()}
    best = peaks.get("bfloat16", peaks["float32"])
    result = {
        "what": "training step",
        "command": "python benchmarks/training_step.py " + " ".join(sys.argv[1:]),
        "environment": environment(options.device) | {"processor": processor()},
        "rounds": options.rounds,
        "loader_workers": LOADER_WORKERS,
        "peak": peaks,
        "tables": tables(options.device, options.rounds, options.quick, best),
        "profile": profile(options.device, options.quick),
    }
    text = json.dumps(result, indent=1) + "\n"
    if options.out is None:
        print(text)
    else:
        write_atomic(options.out, text.encode())


if __name__ == "__main__":
    main()
