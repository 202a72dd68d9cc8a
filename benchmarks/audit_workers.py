"""Wall time of an audit against its number of worker processes, beside what the machine itself gains by them.

    python benchmarks/audit_workers.py [--workers 1 2] [--rounds 3] [--out docs/results/speed/audit-cpu.json]

A small audit on digits (two defences, the attacks in ATTACKS, one thread a task) runs from nothing with each number
of workers in turn. Its tasks share nothing but files, so it should gain what the machine gains: the same
single-threaded training step in as many processes at once, none of which waits for another.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import keep

ATTACKS = ("labels", "distil", "distil_unlabelled", "clip", "second_peak_removed", "blend_average", "skeptical")
SMALL = ("epochs=12", "maker_epochs=20", "subset_percent=0.5", "seeds=2", "device=cpu")
QUICK = ("epochs=2", "maker_epochs=2", "subset_percent=0.1", "seeds=1", "device=cpu")
# One process's work, after a start that is not timed: training steps of a small network.
ALONE = """
import sys, time, torch
torch.set_num_threads(1)
from sdb.models import ModelSpec
net = ModelSpec("net", {"num_channels": 16}, 10, (1, 8, 8), (0.3,), (0.4,)).build()
images, labels = torch.rand(64, 1, 8, 8), torch.arange(64) % 10
def step():
    net.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(net(images), labels).backward()
for _ in range(50): step()
print("ready", flush=True); sys.stdin.readline()
begin = time.perf_counter()
for _ in range(int(sys.argv[1])): step()
print(time.perf_counter() - begin, flush=True)
"""


def audit(workers: int, settings: tuple[str, ...]) -> float:
    """Seconds of one audit from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sdb", "audit", "--out", f"{folder}/audit", "--workers", str(workers)]
        for attack in ATTACKS:
            command += ["--attack", attack]
        for setting in settings:
            command += ["--set", setting]
        command += ["--defence", "stingy"]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
        if done.returncode not in (0, 1):  # 1: a bar was not met, which is no matter here
            raise RuntimeError(done.stderr)
        return time.perf_counter() - begin


def machine(workers: int, steps: int) -> float:
    """Seconds of the slowest of several processes that train at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, str(steps)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=one_thread(),
        )
        for _ in range(workers)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    seconds = [float(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    return max(seconds)


def one_thread() -> dict[str, str]:
    """This environment, with one thread a process."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure, and write or print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny audit: only to see that it runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    steps = 100 if options.quick else 1500
    audits: dict[int, list[float]] = {workers: [] for workers in options.workers}
    alone: dict[int, list[float]] = {workers: [] for workers in options.workers}
    for _ in range(options.rounds):
        for workers in options.workers:
            audits[workers].append(audit(workers, QUICK if options.quick else SMALL))
            alone[workers].append(machine(workers, steps))
    first = options.workers[0]
    rows: list[dict[str, Any]] = [
        {
            "workers": workers,
            "seconds": statistics.median(audits[workers]),
            "seconds_low": min(audits[workers]),
            "seconds_high": max(audits[workers]),
            "times_the_first": statistics.median(audits[first]) / statistics.median(audits[workers]),
            "machine_times_the_first": workers
            / first
            * statistics.median(alone[first])
            / statistics.median(alone[workers]),
        }
        for workers in options.workers
    ]
    keep(options.out, "audit against workers", rounds=options.rounds, attacks=ATTACKS, rows=rows)


if __name__ == "__main__":
    main()
