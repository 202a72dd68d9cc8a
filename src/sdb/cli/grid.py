"""grid: many run folders at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import Cluster, Set, TaskCpus, TaskGpus, Workers, say, showing, where_of
from sdb.errors import SDBError, TrainingError
from sdb.runtime import json_text

SHOWN = ("accuracy", "keyless", "keyed")


def grid(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders of such.")],
    workers: Workers = 2,
    cluster: Cluster = None,
    task_cpus: TaskCpus = 1,
    task_gpus: TaskGpus = 0,
    sets: Set = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every run's result here.")
    ] = None,
) -> None:
    """Do every run below DIR..., each after its teacher.

    train, wrap or distill, as each params.json says. What is finished is not done again: the same command goes on after
    anything. Paths in params.json are relative to the current folder.
    """
    from sdb.runs.grid import find_runs, results_of, run_grid
    from sdb.runtime import write_atomic
    from sdb.training.progress import ShowTasks

    where = where_of(workers, cluster, task_cpus, task_gpus)
    runs = find_runs(folders, sets or [])
    progress = ShowTasks("grid")
    failed: SDBError | None = None
    try:
        with showing(progress, "finished epochs are kept, the same command goes on"):
            run_grid(runs, where, sets=sets or [], on_progress=progress.on_progress)
    except TrainingError as error:  # some runs failed; the others have results
        failed = error
    found = results_of(runs)
    say(table(found))
    if json_file is not None:
        write_atomic(json_file, json_text(found, indent=1).encode() + b"\n")
    if failed is not None:
        raise failed


def table(found: dict[str, dict[str, Any] | None]) -> str:
    """A line for each run: its name, and its accuracies in per cent."""
    width = max(len(name) for name in found)
    return "\n".join(
        f"{name:<{width}}  "
        + (
            "  ".join(f"{key} {100 * result[key]:.1f} %" for key in SHOWN if key in result)
            if result
            else "not done"
        )
        for name, result in found.items()
    )
