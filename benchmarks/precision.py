"""Whether bfloat16 moves accuracy: teachers and boxes trained in float32 and in bfloat16; a section of docs/results.md.

    python benchmarks/precision.py --data digits
    python benchmarks/precision.py --data fashion_mnist --data-root DIR
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

The sizes are those of few_images.py. How much faster it is: docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from few_images import CASES, RESULTS, boxed, scores_of

from sdb.runtime import environment, has_amx, write_atomic

PRECISIONS = ("float32", "bfloat16")
SCORES = {"accuracy": "accuracy, %", "calibration_error": "calibration error, %", "brier": "Brier score, %"}


def one(name: str, root: Path | None, seed: int, precision: str) -> dict[str, Any]:
    """Teacher and box of one seed: what test images show of them, and how long they took."""
    started = time.perf_counter()
    data, teacher, box, key = boxed(name, root, seed, precision)
    seconds = time.perf_counter() - started
    models = {"teacher": teacher, "box, no key": box, "box, key": box.unlock(key)}
    return {"models": scores_of(models, data), "seconds": seconds}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or RESULTS / f"precision-{options.data}.json"
    torch.set_num_threads(1)
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    root = " --data-root DIR" if options.data_root else ""
    command = f"python benchmarks/precision.py --data {options.data}{root} --seeds {options.seeds}"
    content |= {"kind": "precision", "data": options.data, "command": command, "amx": has_amx()}
    content["environment"] = environment()
    for seed in range(options.seeds):
        for precision in PRECISIONS:
            name = f"{precision} {seed}"
            if name not in content["runs"]:
                content["runs"][name] = one(options.data, options.data_root, seed, precision)
                print(f"{options.data}: {name}", flush=True)
        content["markdown"] = markdown(content)
        write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")
    print(content["markdown"])


def markdown(content: dict[str, Any]) -> str:
    """The section: means over seeds, float32 / bfloat16."""
    made, runs = content["environment"], content["runs"]
    by = {precision: [run for name, run in runs.items() if name.startswith(precision)] for precision in PRECISIONS}
    lines = [
        f"## precision: {content['data']}, {len(by['float32'])} seeds",
        "",
        "Teacher and box trained in float32 / in bfloat16, one thread; test images, mean over seeds.",
        "",
        f"    {content['command']}",
        "",
        f"torch {made['torch']}, {made['platform']}, {'with' if content['amx'] else 'without'} AMX, commit "
        f"{made['commit']}.",
        "",
        "| | " + " | ".join(SCORES.values()) + " |",
        "|---|---|---|---|",
    ]
    for which in by["float32"][0]["models"]:
        cells = [
            " / ".join(
                f"{100 * fmean(run['models'][which][score] for run in by[each]):.2f}" for each in PRECISIONS
            )
            for score in SCORES
        ]
        lines.append(f"| {which} | " + " | ".join(cells) + " |")
    times = {each: fmean(run["seconds"] for run in by[each]) for each in PRECISIONS}
    lines += ["", f"Seconds: {times['float32']:.0f} / {times['bfloat16']:.0f}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
