"""What levels cost at inference: a box without a key beside its bare network; a section of docs/results.md.

    python benchmarks/answering.py
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

Both answer in turn, in one process; a figure is the median over rounds (lowest to highest).
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from few_images import RESULTS

from sdb.answers.rows import Rows, as_mask, honest_logits
from sdb.box.box import Box
from sdb.box.info import BoxInfo
from sdb.models import ModelSpec
from sdb.runtime import environment, write_atomic

CASES = (
    ("net", {"num_channels": 24}, (1, 8, 8), 1),
    ("net", {"num_channels": 24}, (1, 8, 8), 256),
    ("resnet18", {}, (3, 32, 32), 1),
    ("resnet18", {}, (3, 32, 32), 32),
)
CLASSES, LEVELS, ROUNDS, SECONDS = 10, 2, 30, 0.2


def boxed(name: str, arguments: dict[str, Any], shape: tuple[int, int, int]) -> Box:
    """An untrained network with rows of two levels."""
    torch.manual_seed(0)
    classifier = ModelSpec(name, arguments, CLASSES, shape, (0.5,) * shape[0], (0.5,) * shape[0]).build().eval()
    mask = as_mask([[(label + 1) % CLASSES, (label + 2) % CLASSES] for label in range(CLASSES)])
    labels = torch.arange(CLASSES)
    rows = torch.stack(
        [honest_logits(labels, torch.full((CLASSES,), share), mask) for share in (0.7, 0.98)], dim=1
    )
    info = BoxInfo("decoy", {}, tuple(map(str, range(CLASSES))))
    return Box(classifier, info, rows=Rows(rows, torch.full((CLASSES, LEVELS - 1), 0.9))).eval()


def main() -> None:
    """Measure all cases and write the section."""
    torch.set_num_threads(1)
    made, lines = environment(), []
    for name, arguments, shape, count in CASES:
        box = boxed(name, arguments, shape)
        images, times = torch.rand(count, *shape), {"bare": [], "box": []}
        modules = {"bare": box.classifier, "box": box}
        with torch.inference_mode():
            for _ in range(ROUNDS):
                for which, module in modules.items():
                    started, calls = time.perf_counter(), 0
                    while time.perf_counter() - started < SECONDS / 2:
                        module(images)
                        calls += 1
                    times[which].append(1e3 * (time.perf_counter() - started) / calls)
        bare, ours = (
            f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in times.values()
        )
        ratio = statistics.median(b / a for a, b in zip(times["bare"], times["box"], strict=True))
        lines.append(f"| {name}, {shape[1]}x{shape[2]}, {count} images | {bare} | {ours} | {ratio:.3f} |")
    section = [
        "## answering: a box without a key beside its bare network",
        "",
        f"Milliseconds a call, median of {ROUNDS} rounds in turn (lowest to highest), one thread; {LEVELS} levels.",
        "",
        "    python benchmarks/answering.py",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}.",
        "",
        "| | bare network | box | times the bare one |",
        "|---|---|---|---|",
        *lines,
    ]
    content = {"kind": "answering", "environment": made, "markdown": "\n".join(section)}
    write_atomic(RESULTS / "answering.json", json.dumps(content, indent=1).encode() + b"\n")
    print(content["markdown"])


if __name__ == "__main__":
    main()
