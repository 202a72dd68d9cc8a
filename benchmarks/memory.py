"""Peak memory of a box step at 224x224, and host memory against the size of the data and the number of classes.

    python benchmarks/memory.py [--device cpu] [--out docs/results/speed/memory-cpu.json] [--only step]

Each row is measured in a process of its own, for a process does not give back all that it had. On a CPU a value is the
largest resident memory during the work less what the process had before it; glibc's allocator gives freed memory back
at once here, where by default it keeps some. On a GPU it is the most that torch allocated there. `--device cuda` takes
larger networks and batches. The last rows say how many images per second are streamed, on one core and on two.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import keep

MIB = 2**20
SPARING = {
    "as it is": {},
    "4 accumulation steps": {"accumulation_steps": 4},
    "activation checkpointing": {"activation_checkpointing": True},
    "both": {"accumulation_steps": 4, "activation_checkpointing": True},
}
VIT = "transformers:ViTForImageClassification"
RESNET = "transformers:ResNetForImageClassification"
BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
# device -> network -> (name, configuration, batch size)
NETWORKS: dict[str, dict[str, tuple[str, dict[str, Any], int]]] = {
    "cpu": {
        "ViT-Ti/16": (VIT, {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}, 16),
        "ResNet-18": (RESNET, BASIC | {"depths": [2, 2, 2, 2]}, 16),
    },
    "cuda": {
        "ViT-B/16": (VIT, {}, 128),
        "ResNet-50": (RESNET, {}, 128),
        "ResNet-18": (RESNET, BASIC | {"depths": [2, 2, 2, 2]}, 128),
    },
}
SIDE = 64
IMAGES = (1_000, 4_000, 16_000)
CLASSES = (10, 100, 1_000, 3_000)
IMAGENET = 1_281_167


def resident() -> dict[str, int]:
    """Bytes of this process in memory: its own, and mapped from files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = {
        name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value
    }
    return {"own": 1024 * fields["RssAnon"], "files": 1024 * fields["RssFile"]}


def growth(work: Callable[[], Any], kind: str = "own") -> int:
    """By how much resident memory grows, at most, while something is done; looked at every millisecond."""
    before = resident()[kind]
    most, done = before, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.001):
            most = max(most, resident()[kind])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        held = work()
        most = max(most, resident()[kind])
        del held
    finally:
        done.set()
        watcher.join()
    return most - before


def row(group: str, label: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    return {"group": group, "label": label, "value": value, "unit": unit, **more}


def step(device: str, network: str, sparing: str) -> list[dict[str, Any]]:
    """One epoch of one batch: a step of a weight-key box, from the method's own code."""
    from sdb.config import WrapSettings
    from sdb.data import from_arrays
    from sdb.keys import Key
    from sdb.models import ModelSpec
    from sdb.wrapping.wrap import wrap

    name, config, batch = NETWORKS[device][network]
    rng = np.random.default_rng(0)
    count = batch + 8  # the rest is for validation
    images = rng.integers(0, 256, (count, 3, 224, 224), dtype=np.uint8)
    labels = np.arange(count) % 10
    few = {"test_images": images[:2], "test_labels": labels[:2]}
    data = from_arrays(images, labels, validation_fraction=8 / count, **few)
    spec = ModelSpec(name, {"config": config}, 10, data.image_shape, (0.5,) * 3, (0.5,) * 3)
    teacher = spec.build()
    settings = WrapSettings(
        epochs=1,
        batch_size=batch,
        optimizer="auto",
        learning_rate=0.01,
        decoy_choice="any",
        device=device,
        **SPARING[sparing],
    )

    def work() -> None:
        wrap(teacher, data, settings, key=Key.generate())

    if device == "cpu":
        peak = growth(work)
    else:
        torch.cuda.reset_peak_memory_stats()
        work()
        peak = torch.cuda.max_memory_allocated()
    label = f"{network}, {sparing}"
    return [row("step", label, round(peak / MIB), "MiB", network=network, sparing=sparing, batch_size=batch)]


def data_size(kind: str, count: int, folder: str) -> list[dict[str, Any]]:
    """One epoch over images that are in memory, mapped from the cache, or streamed from JPEG files."""
    from sdb.data import Batches, ImageSet, load

    def work() -> Any:
        if kind == "resident":
            pixels = np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
            images = ImageSet(pixels, np.zeros(count, np.int64))
        else:
            place = {"root": Path(folder) / str(count), "cache": Path(folder) / "cache", "image_size": SIDE}
            images = load("folder", **place, stream=kind == "streamed").train
        batches = Batches(images, 128, shuffle=True, resident=kind == "resident")
        for _ in batches.epoch(0):
            pass
        return batches

    if kind == "memory map":
        work()  # fills the cache
        return [
            row("data", f"memory map, {count} images", round(growth(work) / MIB), "MiB", images=count, kind=kind),
            row(
                "data",
                f"memory map, {count} images, pages of the file",
                round(growth(work, "files") / MIB),
                "MiB",
                images=count,
                kind="memory map, pages of the file",
            ),
        ]
    return [row("data", f"{kind}, {count} images", round(growth(work) / MIB), "MiB", images=count, kind=kind)]


def names(count: int) -> list[dict[str, Any]]:
    """What a data set of ImageNet's size holds per image when it is streamed: a name and a label."""
    from sdb.data.listing import Listing

    def work() -> Listing:
        made = (f"train/n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG" for number in range(count))
        return Listing(Path("imagenet"), made, np.zeros(count, np.int64))

    held = work()
    size = held.names.nbytes + held.labels.nbytes
    return [row("data", f"names and labels of {count} streamed images", round(size / MIB), "MiB", images=count)]


def classes(count: int) -> list[dict[str, Any]]:
    """A weight-key box of a small network with many classes: while it is made, and on disk."""
    from sdb.config import WrapSettings
    from sdb.data import from_arrays
    from sdb.keys import Key
    from sdb.models import ModelSpec
    from sdb.wrapping.wrap import wrap

    rng = np.random.default_rng(0)
    total = max(4 * count, 500)
    images, labels = rng.integers(0, 256, (total, 1, 8, 8), dtype=np.uint8), np.arange(total) % count
    data = from_arrays(images, labels, class_names=tuple(map(str, range(count))))
    teacher = ModelSpec("net", {"num_channels": 4}, count, data.image_shape, data.mean, data.std).build()
    settings = WrapSettings(epochs=1, batch_size=128, optimizer="auto", learning_rate=0.001, device="cpu")
    boxes = []
    peak = growth(lambda: boxes.append(wrap(teacher, data, settings, key=Key.generate())))
    with tempfile.TemporaryDirectory() as folder:
        boxes[0].save(Path(folder) / "a.box")
        sizes = {file.name: file.stat().st_size for file in (Path(folder) / "a.box").iterdir()}
    weights = sum(parameter.nbytes for parameter in teacher.parameters())
    return [
        row("classes", f"{count} classes, while it is made", round(peak / MIB), "MiB", classes=count),
        row("classes", f"{count} classes, box on disk", round(sum(sizes.values()) / MIB, 2), "MiB", classes=count),
        row(
            "classes", f"{count} classes, the network's own weights", round(weights / MIB, 2), "MiB", classes=count
        ),
    ]


def rate(cores: int, folder: str) -> list[dict[str, Any]]:
    """Images a second that are read from JPEG files of 500x375, decoded and cut to 224x224: best of ten epochs."""
    import time

    from sdb.data import Batches, load

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    data = load("folder", root=Path(folder) / "large", cache=Path(folder) / "cache", image_size=224, stream=True)
    seconds = []
    for epoch in range(10):
        begin = time.perf_counter()
        seen = sum(len(batch.labels) for batch in Batches(data.train, 64, shuffle=True).epoch(epoch))
        seconds.append(time.perf_counter() - begin)
    label = f"streamed from JPEG, 500x375 to 224x224, {cores} core{'s' if cores > 1 else ''}"
    return [row("rate", label, round(seen / min(seconds)), "images/s", cores=cores)]


def write_images(folder: Path, count: int, size: tuple[int, int] = (SIDE + 8, SIDE)) -> None:
    """A folder of class folders with `count` JPEG files in train/, and a few in test/."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, total in (("train", count * 10 // 9), ("test", 20)):  # a tenth becomes validation images
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True)
        for number in range(total):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size)
            noisy = np.asarray(small) + rng.integers(-10, 11, (*size[::-1], 3))  # files as large as a photograph's
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / part / str(number % 10) / f"{number}.jpg", quality=90)


MEASURES: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "step": step,
    "data": data_size,
    "names": names,
    "classes": classes,
    "rate": rate,
}


def jobs(device: str, folder: Path) -> list[tuple[str, list[Any]]]:
    """All measurements: which, and its arguments."""
    found: list[tuple[str, list[Any]]] = [
        ("step", [device, network, sparing]) for network in NETWORKS[device] for sparing in SPARING
    ]
    kinds = ("resident", "memory map", "streamed")
    found += [("data", [kind, count, str(folder)]) for count in IMAGES for kind in kinds]
    found += [("names", [IMAGENET])]
    found += [("classes", [count]) for count in CLASSES]
    return found + [("rate", [cores, str(folder)]) for cores in (1, 2)]


def measured(name: str, arguments: list[Any], threads: int) -> list[dict[str, Any]]:
    """Rows of one measurement, from a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps([name, arguments]), "--threads", str(threads)]
    # Freed memory goes back to the system at once, so that what is resident is what is needed, not what was once.
    allocator = {} if name == "rate" else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = os.environ | allocator | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} {arguments}: {done.stderr[-2000:]}")
    rows = json.loads(done.stdout.splitlines()[-1])
    for each in rows:
        print(f"{each['label']}: {each['value']} {each['unit']}", file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=NETWORKS)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=MEASURES, help="one group of rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        name, arguments = json.loads(options.one)
        print(json.dumps(MEASURES[name](*arguments)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [job for job in jobs(options.device, Path(folder)) if options.only in (None, job[0])]
        for count in {arguments[1] for name, arguments in chosen if name == "data"}:
            write_images(Path(folder) / str(count), count)
        if "rate" in {name for name, _ in chosen}:
            write_images(Path(folder) / "large", 200, (500, 375))
        for name, arguments in chosen:
            rows += measured(name, arguments, options.threads)
    sides = {"step": 224, "data": SIDE, "classes": 8}
    keep(options.out, "memory", torch.device(options.device), image_side=sides, rows=rows)


if __name__ == "__main__":
    main()
