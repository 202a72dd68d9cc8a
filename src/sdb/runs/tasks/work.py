"""A piece of work, where it runs, and how what can be mended comes back from another process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from sdb.errors import ConfigError, SDBError

# Hears how many pieces of work of how many are done, and which was the last.
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work; it must leave the same files if it is done twice.

    Attributes:
        name: unique, shown to people.
        call: a module-level function.
        arguments: picklable and small.
        needs: names of work that must be finished first; a name that is not in the list is finished already.
    """

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Where:
    """Where work runs. Each piece has one torch thread everywhere, so results are the same everywhere.

    Attributes:
        workers: processes of this machine; 1: this process.
        cluster: instead, a Ray cluster: "auto" (the one that this machine is part of), HOST:PORT or ray://HOST:PORT.
        task_cpus: CPU cores that one piece of work takes on the cluster.
        task_gpus: GPUs, below 1 for several at once on one GPU.

    Raises:
        ConfigError: a number is out of range, or the cluster's address is none.
    """

    workers: int = 1
    cluster: str | None = None
    task_cpus: float = 1
    task_gpus: float = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers: {self.workers}; at least one is needed")
        if self.cluster is not None:
            host_and_port(self.cluster)
        if not self.task_cpus > 0:
            raise ConfigError(f"task_cpus: {self.task_cpus}; a number above 0 is needed, for example 1 or 0.5")
        if self.task_gpus < 0 or (self.task_gpus > 1 and self.task_gpus != int(self.task_gpus)):
            raise ConfigError(f"task_gpus: {self.task_gpus}; 0, a share below 1, or whole GPUs are needed")


def host_and_port(cluster: str) -> tuple[str, int] | None:
    """Where a cluster is; None for "auto".

    Raises:
        ConfigError: the address is none.
    """
    if cluster == "auto":
        return None
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"cluster: {cluster!r} is no address; use auto, HOST:PORT or ray://HOST:PORT")
    return host, int(port)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a user can mend, as data: not every exception survives pickling."""

    kind: type[SDBError]
    message: str

    def error(self) -> SDBError:
        """The error, of the same class."""
        return self.kind.__new__(self.kind, self.message)


def attempt(call: Callable[..., None], arguments: tuple[Any, ...]) -> Failure | None:
    """Do a piece of work; what a user can mend is handed back, anything else is raised."""
    try:
        call(*arguments)
    except SDBError as error:
        return Failure(type(error), str(error))
    return None


@contextlib.contextmanager
def one_thread() -> Generator[None]:
    """One torch thread in this process for a while: sums in one order, so the same results as in any worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
