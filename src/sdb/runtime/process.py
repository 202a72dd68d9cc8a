"""Where a run happens: device, seeds, processes, and the record of the environment."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sdb.errors import ConfigError

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *labels: object) -> int:
    """A seed in [0, 2**63) for one purpose, independent of every other purpose's seed."""
    text = "\0".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it has freed, for what it allocates next; glibc only, else nothing.

    A training step on a CPU frees and allocates the same large buffers over and over. By default each goes back to the
    kernel, which fills new pages with zeros: a tenth of a step. For processes of ours that train, not for a library's
    caller, whose memory is its own affair.
    """
    import ctypes

    top_pad, trim_threshold, mmap_threshold = -2, -1, -3  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 32 * 2**20)  # the most that glibc takes
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(top_pad, 64 * 2**20)


def seed_everything(seed: int) -> None:
    """Seed torch's generators (initialisation, dropout). Keys never come from these."""
    import torch

    torch.manual_seed(seed)


def choose_device(name: str = "auto") -> torch.device:
    """The device a run uses: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the name is unknown or the GPU is not there.
    """
    import torch

    if name == "auto":
        name = f"cuda:{world().local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} was asked for and torch sees no GPU; use device=cpu or auto")
    return device


def has_amx() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware (Intel AMX)."""
    import torch

    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return probe is not None and bool(probe())


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among the data-parallel processes of one run (one process: 0 of 1)."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


def world() -> World:
    """The processes that torchrun (or Ray Train) started, read from its environment variables."""
    return World(
        rank=int(os.environ.get("RANK", 0)),
        size=int(os.environ.get("WORLD_SIZE", 1)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def join(name: str = "auto") -> torch.device:
    """The device a run uses, see `choose_device`; joins the other processes of a torchrun launch, once and for good.

    Raises:
        ConfigError: there is no such device, or other processes came than torchrun asked for.
    """
    import torch.distributed as dist

    device, place = choose_device(name), world()
    if place.size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
        if dist.get_world_size() != place.size:
            raise ConfigError(f"torchrun asked for {place.size} processes, {dist.get_world_size()} came")
    return device


def meet() -> None:
    """Wait until all processes that have joined are here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """What a number depends on beside its parameters: versions, machine, commit of the code."""
    packages = ("torch", "numpy", "pillow", "safetensors", "cryptography")
    record: dict[str, Any] = {
        "sdb": metadata.version("safe-distillation-box"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if device is not None:
        import torch

        record["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        record["threads"] = torch.get_num_threads()
        record["processes"] = world().size
    return record


def _commit() -> str | None:
    """The git commit of an editable checkout, with "+" when it has changes; None for an installed package."""
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def command_line() -> str:
    """The command that started this process, as it could be typed again."""
    import shlex

    return shlex.join(["sdb", *sys.argv[1:]])


def import_named(module: str) -> ModuleType:
    """Import a module that the user named; the current folder is looked at too, last.

    An installed command does not look there by itself, and nothing but what a user names should be found there.

    Raises:
        ImportError, SyntaxError: it is not there, or is no Python.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return importlib.import_module(module)
