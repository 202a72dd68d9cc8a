"""reproduce: the papers' tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Cluster, Overwrite, Set, TaskCpus, TaskGpus, Workers, say, showing, where_of


def reproduce(
    dataset: Annotated[
        str, typer.Argument(metavar="DATA", help="cifar10, cifar100, tiny-imagenet; or digits, to try it out.")
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="paper (as published) or fast (short, for a GPU). Default: paper; of digits, fast."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where it goes; runs/reproduce/DATA-PRESET by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    workers: Workers = 2,
    cluster: Cluster = None,
    task_cpus: TaskCpus = 1,
    task_gpus: TaskGpus = 0,
    sets: Set = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the papers' grid and write its table.

    Teachers, Nasty Teacher, SDB, decoy, and every student of each: OUT/table.md, table.html and table.json, ours beside
    what others print. The same command goes on; what is finished is not run again. --set changes every run that has the
    parameter, and the table says so.
    """
    from sdb.reproduction.job import PAGE, TEXT
    from sdb.reproduction.job import reproduce as run
    from sdb.reproduction.recipes import recipe_of
    from sdb.training.progress import ShowTasks

    where = where_of(workers, cluster, task_cpus, task_gpus)
    preset, recipe = recipe_of(dataset, preset)
    place = out or Path("runs/reproduce") / f"{recipe.dataset}-{preset}"
    progress = ShowTasks("reproduce")
    with showing(progress, "finished epochs are kept, the same command (without --overwrite) goes on"):
        run(
            dataset,
            place,
            preset=preset,
            seeds=seeds,
            data_root=data_root,
            where=where,
            changes=sets or [],
            overwrite=overwrite,
            on_progress=progress.on_progress,
        )
    typer.echo((place / TEXT).read_text(encoding="utf-8"), nl=False)
    say(f"page: {place / PAGE}")
