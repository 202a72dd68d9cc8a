"""What every benchmark of docs/results/speed says of itself, and where it goes."""

from __future__ import annotations

import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from sdb.runtime import environment, write_atomic


def keep(out: Path | None, what: str, device: torch.device | None = None, **content: Any) -> None:
    """Write one JSON object, or print it: what it is, its command, its machine, and its content."""
    record = {
        "what": what,
        "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "environment": environment(device) | {"processor": processor()},
        **content,
    }
    text = json.dumps(record, indent=1) + "\n"
    if out is None:
        print(text)
    else:
        write_atomic(out, text.encode())


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.machine()
