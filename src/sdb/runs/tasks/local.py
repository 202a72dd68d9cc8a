"""Work on this machine: in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType

import torch

from sdb.errors import SDBError, TrainingError
from sdb.runs.tasks.work import Failure, Work, attempt, one_thread
from sdb.runtime import keep_freed_memory


class InProcess:
    """One piece of work after the other, here."""

    places = 1

    def __enter__(self) -> InProcess:
        self._work: Work | None = None
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(one_thread())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def has_room(self) -> bool:
        """Whether nothing is waiting."""
        return self._work is None

    def begin(self, work: Work) -> None:
        """Take a piece of work; `finished` does it."""
        self._work = work

    def finished(self) -> tuple[str, SDBError | None]:
        """Do it; its name, and its error."""
        work, self._work = self._work, None
        if work is None:
            raise RuntimeError("there is no work")
        try:
            work.call(*work.arguments)
        except SDBError as error:
            return work.name, error
        return work.name, None


class Pool:
    """Processes of this machine, one thread each; they end with this process, however that ends.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.places = workers
        self._under_way: dict[Future[Failure | None], str] = {}

    def __enter__(self) -> Pool:
        # Spawned, not forked: torch's threads do not survive a fork.
        self._pool = ProcessPoolExecutor(
            self.places, multiprocessing.get_context("spawn"), initializer=start_worker
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # What is under way is given up; what it would have written is whole or not there.
            for process in (self._pool._processes or {}).values():
                process.kill()
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def has_room(self) -> bool:
        """Whether a process is idle."""
        return len(self._under_way) < self.places

    def begin(self, work: Work) -> None:
        """Hand a piece of work to an idle process."""
        self._under_way[self._pool.submit(attempt, work.call, work.arguments)] = work.name

    def finished(self) -> tuple[str, SDBError | None]:
        """Wait for the next that ends; its name, and its error.

        Raises:
            TrainingError: a process ended without an answer.
        """
        ended, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
        future = ended.pop()
        try:
            failure = future.result()
        except BrokenProcessPool:
            raise TrainingError(
                "a worker process ended, perhaps for lack of memory; what is finished is kept: continue with fewer "
                "--workers"
            ) from None
        return self._under_way.pop(future), None if failure is None else failure.error()


def start_worker() -> None:
    """A worker leaves Ctrl-C to the process that it works for, and has one thread: always the same results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End this process when the one that it works for is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
