"""What the data path costs beside the training step that it feeds, and beside a loop over single images.

    python benchmarks/data_path.py [--device cpu] [--threads 1] [--batch-size 128] [--steps 20] [--out FILE]

Writes one JSON object. Each round takes one batch from `Batches` (crop 4, mirror; resident and streamed from
a memory map), makes one training step of preresnet20 on it, and makes the same batch image by image, as a
data set class with Pillow transforms does. Times are medians over the rounds, after a warm-up; the ratio is
of medians. With --root (a folder that holds CIFAR-10) it also times decoding all of it into an empty cache
and mapping it again. On a machine that others use, --threads 1: OpenMP waits for the slowest of its threads.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from record import keep
from torch.nn import functional as F

from sdb.data import Augment, Batch, Batches, ImageSet, load
from sdb.models import build

AUGMENT = Augment(crop_padding=4, flip=True)
WARM_UP = 3


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, result


def forever(batches: Batches) -> Generator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def image_by_image(images: np.ndarray, index: list[int], rng: np.random.Generator) -> torch.Tensor:
    """(B, 3, 32, 32) in [0, 1], by Pillow, one image after the other, as RandomCrop, RandomFlip, ToTensor."""
    tensors = []
    for position in index:
        image = Image.fromarray(images[position].transpose(1, 2, 0))
        left, top = rng.integers(0, 9, 2).tolist()
        image = ImageOps.expand(image, 4).crop((left, top, left + 32, top + 32))
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        tensors.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255))
    return torch.stack(tensors)


def steps(device: torch.device, batch_size: int, count: int, folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (45_000, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, len(pixels))
    np.save(folder / "images.npy", pixels)
    mapped = np.load(folder / "images.npy", mmap_mode="r")
    options: dict[str, Any] = {"device": device, "shuffle": True, "augment": AUGMENT}
    resident = forever(Batches(ImageSet(pixels, labels), batch_size, resident=True, **options))
    streamed = forever(Batches(ImageSet(mapped, labels), batch_size, resident=False, **options))

    model = build("preresnet20", num_classes=10, image_shape=(3, 32, 32)).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()

    times: dict[str, list[float]] = {"resident": [], "streamed": [], "image_by_image": [], "step": []}
    for round_number in range(WARM_UP + count):
        measured: dict[str, float] = {}
        measured["resident"], batch = timed(lambda: next(resident), device)
        measured["step"], _ = timed(lambda batch=batch: step(batch), device)
        measured["streamed"], batch = timed(lambda: next(streamed), device)
        index = batch.index.tolist()
        measured["image_by_image"], _ = timed(
            lambda index=index: image_by_image(pixels, index, rng).to(device), device
        )
        if round_number >= WARM_UP:
            for name, seconds in measured.items():
                times[name].append(seconds)
    streamed.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "milliseconds_a_batch": {name: round(1e3 * value, 3) for name, value in medians.items()},
        "share_of_a_step": {
            name: round(medians[name] / medians["step"], 4) for name in ("resident", "streamed", "image_by_image")
        },
        "times_as_fast_as_image_by_image": round(medians["image_by_image"] / medians["resident"], 1),
    }


def decoding(root: Path, folder: Path) -> dict[str, Any]:
    cpu = torch.device("cpu")
    cold, splits = timed(lambda: load("cifar10", root=root, cache=folder), cpu)
    warm, _ = timed(lambda: load("cifar10", root=root, cache=folder), cpu)
    return {
        "data": splits.note,
        "seconds_with_an_empty_cache": round(cold, 2),
        "seconds_again": round(warm, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--batch-size", default=128, type=int)
    parser.add_argument("--steps", default=20, type=int)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "batch_size": options.batch_size,
            "rounds": options.steps,
            **steps(options.device, options.batch_size, options.steps, Path(folder)),
        }
        if options.root is not None:
            result["cifar10"] = decoding(options.root, Path(folder))
    keep(options.out, "data path", options.device, **result)


if __name__ == "__main__":
    main()
