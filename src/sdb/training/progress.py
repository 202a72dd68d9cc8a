"""Telling a person how far a run is: a bar on a terminal, plain lines elsewhere, both with the time left."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO, cast

from sdb.runtime import world

Record = dict[str, Any]

LINE_SECONDS = 5.0  # shortest time between plain lines


class Progress(Protocol):
    """What `fit` tells while it works."""

    def start(self, epochs: int, first: int, steps: int) -> None: ...  # noqa: D102
    def step(self) -> None: ...  # noqa: D102
    def epoch(self, record: Record) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


# What `progress=` takes, see `as_progress`.
Listener = bool | Callable[[Record], object] | Progress


def as_progress(shown: Listener | None, title: str) -> Progress | None:
    """What `fit` tells of its epochs, from what a caller gave as `progress=`.

    Args:
        shown: True: a bar on a terminal and in a notebook, nothing elsewhere; False or None: nothing; a function:
            it is called with each epoch's record; a `Progress`: itself.
        title: of the bar.
    """
    if shown is None or shown is False:
        return None
    if shown is True:
        return ShowProgress(title) if watched() and world().is_main else None
    if hasattr(shown, "start"):
        return cast("Progress", shown)
    return _Function(shown)


def watched(stream: TextIO | None = None) -> bool:
    """Whether a person looks: stderr is a terminal, or this is a notebook."""
    return (stream or sys.stderr).isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this process is a notebook's."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None and hasattr(shell, "get_ipython") else None
    return type(found).__name__ == "ZMQInteractiveShell"


class _Function:
    """Tells a function of each epoch."""

    def __init__(self, listen: Callable[[Record], object]) -> None:
        self._listen = listen

    def start(self, epochs: int, first: int, steps: int) -> None:
        """Training begins."""

    def step(self) -> None:
        """One step is done."""

    def epoch(self, record: Record) -> None:
        """One epoch is done."""
        self._listen(record)

    def close(self) -> None:
        """All is done."""


class _Shown:
    """A bar, or lines with the time left.

    Args:
        label: what is under way.
        stream: where to write, stderr by default; a bar if it is a terminal.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None
        self._began = self._spoke = time.monotonic()

    def _open(self, total: float, completed: float, shown: str) -> None:
        """Put up a bar, where there is a terminal and no bar."""
        if self._bar is None and (self._stream.isatty() or _draws_in_notebook()):
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(self.label, total=total, completed=completed, shown=shown)
            self._bar.start()

    def _line(self, shown: str, done: float, first: float, total: float) -> None:
        """Write a plain line, unless one was written just now; what was done first took no time here."""
        now = time.monotonic()
        if done < total and now - self._spoke < LINE_SECONDS:
            return
        self._spoke = now
        left = (now - self._began) / (done - first) * (total - done)
        self._stream.write(f"{self.label}: {shown}  {now - self._began:.0f} s, {left:.0f} s left\n")
        self._stream.flush()

    def close(self) -> None:
        """All is done, or given up; may be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class ShowProgress(_Shown):
    """Progress of one `fit`."""

    def start(self, epochs: int, first: int, steps: int) -> None:
        """Training begins: epochs in all, epochs done before, steps per epoch."""
        self._epochs, self._first, self._steps = epochs, first, steps
        self._began = self._spoke = time.monotonic()
        self._open(epochs * steps, first * steps, f"epoch {first}/{epochs}")

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch is done."""
        done = record["epoch"]
        shown = f"epoch {done}/{self._epochs}  {summary(record)}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done * self._steps, shown=shown)
        else:
            self._line(shown, done, self._first, self._epochs)


class ShowTasks(_Shown):
    """Progress of many pieces of work.

    Args:
        label: what is under way.
        costs: about how long each piece of work takes, by name, in any unit; one that is not named counts as 1. So the
            time left follows from what was measured, also where what comes first takes long.
    """

    _first: int | None = None

    def __init__(self, label: str, costs: Mapping[str, float] | None = None) -> None:
        super().__init__(label)
        self._costs, self._spent = costs or {}, 0.0

    def on_progress(self, done: int, total: int, name: str) -> None:
        """One more is done."""
        if self._first is None:
            self._first = done - 1
        self._spent += self._costs.get(name, 1.0)
        # What was done before this process is left out, at the mean cost.
        whole = (sum(self._costs.values()) or total) * (total - self._first) / total
        share = 1.0 if done == total else min(0.999, self._spent / whole)
        self._open(1, 0, "")
        shown = f"{done}/{total} {name}"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, shown=shown)
        else:
            self._line(shown, share, 0, 1)


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=stream) if stream.isatty() else Console(),  # which finds the notebook itself
    )


def _draws_in_notebook() -> bool:
    """Whether a bar can move in this notebook; without ipywidgets there are plain lines."""
    return in_notebook() and importlib.util.find_spec("ipywidgets") is not None


def summary(record: dict[str, Any]) -> str:
    """The loss of an epoch, and its accuracies on validation images, in per cent."""
    parts = [
        f"{name.removesuffix('accuracy').removesuffix('_')} {100 * value:.1f} %".lstrip()
        for name, value in record["validation"].items()
        if name.endswith("accuracy") and name != "worse_accuracy"
    ]
    return "  ".join([f"loss {record['loss']:.3f}", f"validation accuracy {', '.join(parts)}"])
