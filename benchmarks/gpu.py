"""All that is to be measured on a GPU, one after the other; a part whose file is there is not done again.

    python benchmarks/gpu.py --data-root DIR               # about an hour on one H100 or H200: a guess, never timed
    python benchmarks/gpu.py --small --out /tmp/gpu        # the same parts, tiny, on a CPU: to see that they run

Writes docs/results/speed/*-cuda.json and docs/results/reproduce-cifar10-fast.json, then docs/speed.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def parts(out: Path, data_root: Path | None, small: bool) -> dict[Path, list[list[str]]]:
    """What each file needs: commands, the last of which writes it or what is copied there."""
    device, kind = ("cpu", "cpu") if small else ("cuda", "cuda")
    speed = out / "speed"
    quick = ["--quick", "--rounds", "1"] if small else []
    root = ["--root", str(data_root)] if data_root else []

    def own(script: str, *arguments: str) -> list[str]:
        return [sys.executable, str(HERE / script), "--device", device, *arguments]

    training = speed / f"training-{kind}.json"
    path, memory = (speed / f"{name}-{kind}.json" for name in ("data-path", "memory"))
    grid = out / "grid"
    if small:
        reproduce = ["digits", "--set", "epochs=1"]
    else:
        reproduce = ["cifar10", "--preset", "fast", "--data-root", str(data_root)]
    table = [sys.executable, "-m", "sdb", "reproduce", *reproduce, "--out", str(grid)]
    return {
        training: [own("training_step.py", *quick, "--out", str(training))],
        path: [own("data_path.py", *root, *(["--steps", "2"] if small else []), "--out", str(path))],
        memory: [own("memory.py", *(["--only", "names"] if small else []), "--out", str(memory))],
        out / f"reproduce-{'digits' if small else 'cifar10-fast'}.json": [table],
    }


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, help="folder that holds CIFAR-10, see docs/data.md")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs/results")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if not options.small and options.data_root is None:
        parser.error("--data-root: name the folder that holds CIFAR-10")
    for file, commands in parts(options.out.absolute(), options.data_root, options.small).items():
        if file.exists():
            print(f"{file.name}: there already", file=sys.stderr)
            continue
        begin = time.monotonic()
        for command in commands:
            print("$", " ".join(command), file=sys.stderr)
            subprocess.run(command, check=True)
        if file.name.startswith("reproduce"):
            shutil.copyfile(options.out.absolute() / "grid" / "table.json", file)
        print(f"{file.name}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    if not options.small:
        subprocess.run([sys.executable, str(HERE / "speed_page.py")], check=True)


if __name__ == "__main__":
    main()
