"""Which work is ready, and what becomes of it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Protocol

from sdb.errors import ConfigError, SDBError, TrainingError
from sdb.runs.tasks.local import InProcess, Pool
from sdb.runs.tasks.work import OnProgress, Where, Work


class Engine(AbstractContextManager, Protocol):
    """What does work. Leaving it with an exception gives up what is under way."""

    places: int
    """Pieces of work that run at once."""

    def has_room(self) -> bool: ...  # noqa: D102 - whether one more may be started
    def begin(self, work: Work) -> None: ...  # noqa: D102
    def finished(self) -> tuple[str, SDBError | None]: ...  # noqa: D102 - waits for one; its name, and its error


def run(
    works: Sequence[Work],
    where: Where,
    on_progress: OnProgress,
    *,
    folders: Sequence[Path] = (),
    before: int = 0,
    keep_going: bool = False,
) -> int:
    """Do all work; a piece begins as soon as what it needs is finished and there is room, in the given order.

    Args:
        works: without what is finished already.
        where: this process, others of this machine, or a cluster.
        on_progress: is told of every piece that has ended.
        folders: what the work reads and writes; every node of a cluster must see them, which is checked.
        before: how many more are finished already; `on_progress` counts them.
        keep_going: after an error, do all that does not need what failed, and raise at the end.

    Returns:
        How many pieces of work could run at once.

    Raises:
        ConfigError: two pieces have one name, they need each other in a circle, or the cluster does not fit.
        SDBError: of the work itself, at once, or as one TrainingError that names all where `keep_going`.
        TrainingError: a process ended without an answer.
    """
    sorter = _sorted(works)
    if not works:
        return where.workers
    position = {work.name: number for number, work in enumerate(works)}
    ready: list[int] = []
    under_way = done = 0
    failed: dict[str, SDBError] = {}
    left_out: list[str] = []
    with engine_for(where, folders) as engine:
        while sorter.is_active():
            for name in sorter.get_ready():
                if failed and {*failed, *left_out} & {*works[position[name]].needs}:
                    left_out.append(name)
                    sorter.done(name)
                else:
                    heapq.heappush(ready, position[name])
            while ready and engine.has_room():
                engine.begin(works[heapq.heappop(ready)])
                under_way += 1
            if not under_way:
                continue
            name, error = engine.finished()
            under_way -= 1
            done += 1
            sorter.done(name)
            if error is not None:
                if not keep_going:
                    raise error
                failed[name] = error
            on_progress(before + done, before + len(works), name if error is None else f"{name} failed")
        places = engine.places
    if failed:
        raise TrainingError(_says(failed, left_out, len(works))) from next(iter(failed.values()))
    return places


def engine_for(where: Where, folders: Sequence[Path]) -> Engine:
    """What does the work there."""
    if where.cluster is not None:
        from sdb.runs.tasks.cluster import Cluster

        return Cluster(where, folders)
    return InProcess() if where.workers == 1 else Pool(where.workers)


def _sorted(works: Sequence[Work]) -> TopologicalSorter:
    names = [work.name for work in works]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{twice[0]!r} is the name of two pieces of work; give each its own")
    known = set(names)
    sorter = TopologicalSorter({work.name: [need for need in work.needs if need in known] for work in works})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigError(f"each needs the other, so none can begin: {' <- '.join(error.args[1])}") from None
    return sorter


def _says(failed: dict[str, SDBError], left_out: list[str], total: int) -> str:
    parts = [f"{len(failed)} of {total} failed: " + "; ".join(f"{name}: {e}" for name, e in failed.items())]
    if left_out:
        parts.append(f"not started, since they need what failed: {', '.join(left_out)}")
    return "; ".join([*parts, "what is finished is kept, the same command goes on"])
