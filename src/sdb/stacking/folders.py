"""The run folders of a stack's students, each as if its student had been trained alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdb.errors import ConfigError
from sdb.runs import RESOLVED, RunFolder, open_run
from sdb.stacking.layers import stacked
from sdb.stacking.stack import INSIDE, SHARED, Stack
from sdb.training import Record

log = logging.getLogger("sdb")
# The run folder whose log hears what is said now; None: all logs do.
_heard_by: ContextVar[Path | None] = ContextVar("heard_by", default=None)


@contextlib.contextmanager
def open_runs(
    wanted: Sequence[tuple[Path, dict[str, Any]]], device: torch.device, *, resume: bool, overwrite: bool
) -> Generator[list[RunFolder]]:
    """Take all run folders of a stack, see `sdb.runs.open_run`; each log hears only of its own run.

    Args:
        wanted: folder and resolved parameters of each.
        device: for the record of the environment.
        resume: go on with those that were begun, begin the others.
        overwrite: discard what is there.

    Raises:
        RunExistsError: a folder holds a run and neither flag is set, or another process is writing to it.
        ConfigError: a run was begun with other parameters.
    """
    with only(None), contextlib.ExitStack() as opened:
        runs = []
        for folder, parameters in wanted:
            begun = resume and (folder / RESOLVED).exists()
            _heard_by.set(folder)
            runs.append(
                opened.enter_context(open_run(folder, parameters, device, resume=begun, overwrite=overwrite))
            )
            log.handlers[-1].addFilter(_hears(folder))
            opened.callback(_heard_by.set, folder)  # for what it says when it is closed
        _heard_by.set(None)
        yield runs


@contextlib.contextmanager
def only(folder: Path | None) -> Generator[None]:
    """What is said in this context is for one folder's log."""
    before = _heard_by.set(folder)
    try:
        yield
    finally:
        _heard_by.reset(before)


def _hears(folder: Path) -> Callable[[logging.LogRecord], bool]:
    return lambda _: _heard_by.get() in (None, folder)


class StackedRuns:
    """The students' run folders, each as if its student had been trained alone; what `fit` keeps of a stack.

    Args:
        stack: whose students these are.
        runs: one for each.

    Attributes:
        histories: a student's records of its epochs, for each.
    """

    def __init__(self, stack: Stack, runs: Sequence[RunFolder]) -> None:
        self._stack, self._runs = stack, runs
        self.folder = runs[0].folder
        self.histories: list[list[Record]] = [[] for _ in runs]

    def resume_state(self) -> tuple[dict[str, Tensor], list[Record]] | None:
        """Tensors and history of the stack, from those of the students; None for fresh runs.

        Raises:
            ConfigError: the students are not at the same epoch.
        """
        states = []
        for run in self._runs:
            with only(run.folder):
                states.append(run.resume_state())
        found = [state for state in states if state is not None]
        if len({0 if state is None else len(state[1]) for state in states}) > 1:
            raise ConfigError("the students of a stack are not at the same epoch: train them one after the other")
        if not found:
            return None
        self.histories = [list(history) for _, history in found]
        every = [tensors for tensors, _ in found]
        tensors = {
            f"model.{key}": every[0][f"model.{name}"]
            if (name := key.removeprefix(INSIDE)) in SHARED
            else stacked([each[f"model.{name}"] for each in every])
            for key in self._stack.state_dict()
        }
        for name, first in every[0].items():
            if name.startswith("optimizer."):
                # A count of steps is the same in all.
                tensors[name] = stacked([each[name] for each in every]) if first.dim() else first
        return tensors, [joined(records) for records in zip(*self.histories, strict=True)]

    def save_epoch(
        self, model: Stack, optimizer: dict[str, Tensor], history: list[Record], improved: bool
    ) -> None:
        """Keep each student's finished epoch in its folder, see `RunFolder.save_epoch`; it is best by its own record.

        Raises:
            StorageError: the disk is full; each student's last whole epoch is kept.
        """
        for number, (run, student) in enumerate(zip(self._runs, model.unstack(), strict=True)):
            before = [record["validation"]["accuracy"] for record in self.histories[number]]
            record = part_of(history[-1], number, model.size)
            self.histories[number].append(record)
            mine = {name: tensor[number] if tensor.dim() else tensor for name, tensor in optimizer.items()}
            best = record["validation"]["accuracy"] > max(before, default=-1.0)
            with only(run.folder):
                run.save_epoch(student, mine, self.histories[number], best)


def joined(records: Sequence[Record]) -> Record:
    """One epoch's record of a stack, from those of its students."""
    result: dict[str, Any] = {name: records[0][name] for name in ("epoch", "learning_rate")}
    accuracies = [record["validation"]["accuracy"] for record in records]
    result["terms"], result["validation"] = {}, {"accuracy": sum(accuracies) / len(records)}
    for number, record in enumerate(records):
        for kind in ("terms", "validation"):
            result[kind] |= {f"{number}/{name}": value for name, value in record[kind].items()}
    result["loss"] = sum(record["loss"] for record in records)
    result["seconds"] = sum(record["seconds"] for record in records)
    return result


def part_of(record: Record, number: int, size: int) -> Record:
    """A student's record of an epoch, from that of its stack; its seconds are its share of the stack's."""
    start = f"{number}/"
    mine = {
        kind: {n.removeprefix(start): value for n, value in record[kind].items() if n.startswith(start)}
        for kind in ("terms", "validation")
    }
    return {
        "epoch": record["epoch"],
        "learning_rate": record["learning_rate"],
        "terms": mine["terms"],
        "loss": sum(mine["terms"].values()),
        "validation": mine["validation"],
        "seconds": round(record["seconds"] / size, 3),
    }
