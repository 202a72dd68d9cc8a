"""Which code of a tie's cell: how many cells it has, and how often changed copies of an image share theirs.

    python benchmarks/tie_cells.py --data fashion_mnist --data-root DIR --work runs/ties/fashion_mnist
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

Uses the teachers of benchmarks/ties.py, and makes them where --work has none. Images are the first 10,000 of the pool.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
from few_images import RESULTS
from PIL import Image
from ties import CASES, ground

from sdb.answers.ties import cells_of, log_probabilities, margins_of
from sdb.audit.archive import Folder
from sdb.audit.marks.mark_seed import MarkSeed, logits_of
from sdb.runtime import environment, write_atomic

QUERIES, FEW = 10_000, 2000
Code = Callable[[np.ndarray, np.ndarray], np.ndarray]


def ordered(logs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The classes beside each pair, the likeliest first."""
    others = logs.copy()
    np.put_along_axis(others, pairs, -np.inf, axis=1)
    return np.argsort(-others, axis=1, kind="stable")


def next_ones(count: int, as_set: bool) -> Code:
    """The next `count` classes, in their order or as a set."""

    def code(logs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        chosen = ordered(logs, pairs)[:, :count]
        chosen = np.sort(chosen, axis=1) if as_set else chosen
        return (chosen * logs.shape[1] ** np.arange(count)).sum(axis=1)

    return code


def projections(bits: int) -> Code:
    """Signs of random projections of the other classes' centred log-probabilities, as in the prototype."""

    def code(logs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        signs = np.random.default_rng(0).integers(0, 2, (bits, logs.shape[1])) * 2.0 - 1
        kept = np.maximum(logs, -8.0)
        np.put_along_axis(kept, pairs, np.nan, axis=1)
        kept = np.nan_to_num(kept - np.nanmean(kept, axis=1, keepdims=True))
        return ((kept @ signs.T > 0) << np.arange(bits)).sum(axis=1)

    return code


CODES: dict[str, Code] = {
    "8 projections": projections(8),
    "6 projections": projections(6),
    "next class": next_ones(1, False),
    "next two, in order": next_ones(2, False),
    "next two, as a set": next_ones(2, True),
    "next three, as a set": next_ones(3, True),
    "next three, in order": next_ones(3, False),
    "next two as a set, and a step of 2 nats (ours)": cells_of,
}


def jpeg(image: np.ndarray) -> np.ndarray:
    """A grey image (1, H, W) after JPEG of quality 75."""
    file = io.BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))[None]


def copies(images: np.ndarray) -> dict[str, np.ndarray]:
    """Changed copies of images uint8 (N, 1, H, W)."""
    rng = np.random.default_rng(0)
    noisy = {n: (images + rng.normal(0, n, images.shape)).round().clip(0, 255).astype(np.uint8) for n in (4, 16)}
    return {
        "noise 4/255": noisy[4],
        "noise 16/255": noisy[16],
        "moved by a pixel": np.roll(images, 1, axis=3),
        "JPEG 75": np.stack([jpeg(image) for image in images]),
        "mirrored": images[..., ::-1].copy(),
    }


def measured(seed: MarkSeed) -> dict[str, dict[str, float]]:
    """Of one seed: cells of 10,000 and of 2,000 images, and the share of copies with the same cell, by code."""
    images = seed.images(QUERIES)

    def logs_of(some: np.ndarray) -> np.ndarray:
        return log_probabilities(logits_of(seed.model, some))

    logs = logs_of(images)
    best, margins = margins_of(logs)
    rows = np.flatnonzero(margins < seed.ties.tau)
    pairs, logs = np.sort(best[rows], axis=1), logs[rows]
    changed = {name: logs_of(some) for name, some in copies(images[rows]).items()}
    tied = {}
    for name, other in changed.items():
        both, apart = margins_of(other)
        tied[name] = (np.sort(both, axis=1) == pairs).all(axis=1) & (apart < seed.ties.tau)
    found = {"still a tie": {name: float(same.mean()) for name, same in tied.items()}}
    for code, function in CODES.items():
        own = function(logs, pairs)
        cells = np.column_stack([pairs, own])
        found[code] = {"cells": float(len(np.unique(cells, axis=0)))}
        found[code]["cells of 2,000"] = float(len(np.unique(cells[rows < FEW], axis=0)))
        for name, other in changed.items():
            same = tied[name]
            found[code][name] = float((function(other[same], pairs[same]) == own[same]).mean())
    return found


def main() -> None:
    """Measure all seeds and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["fashion_mnist"], default="fashion_mnist")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="where benchmarks/ties.py keeps its teachers")
    options = parser.parse_args()
    archive = Folder(options.work.absolute())
    seeds = [
        measured(ground(CASES[options.data], options.data, options.data_root, seed, archive))
        for seed in range(options.seeds)
    ]

    def mean(code: str, column: str) -> float:
        return fmean(seed[code][column] for seed in seeds)

    names = list(seeds[0]["still a tie"])
    command = (
        f"python benchmarks/tie_cells.py --data {options.data} --data-root DIR --seeds {options.seeds} --work WORK"
    )
    still = ", ".join(f"{name} {100 * mean('still a tie', name):.0f} %" for name in names)
    lines = [
        f"## cells of ties: {options.data}, {options.seeds} seeds",
        "",
        f"    {command}",
        "",
        "Cells (with their pair of classes) that 10,000 and 2,000 images fall in, and the share of changed copies that "
        f"keep their cell, of those that are still a tie of the same pair ({still}).",
        "",
        f"| code | cells | of 2,000 | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for code in CODES:
        shares = " | ".join(f"{100 * mean(code, name):.0f} %" for name in names)
        lines.append(f"| {code} | {mean(code, 'cells'):.0f} | {mean(code, 'cells of 2,000'):.0f} | {shares} |")
    content = {"kind": "tie_cells", "command": command, "environment": environment(), "seeds": seeds}
    content["markdown"] = "\n".join(lines)
    out = RESULTS / f"tie-cells-{options.data}.json"
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
