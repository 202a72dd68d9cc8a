"""audit-marks: thieves of labels against a model's ties, and where the mark ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import (
    Cluster,
    Network,
    OtherClassNames,
    Overwrite,
    Set,
    TaskCpus,
    TaskGpus,
    Workers,
    say,
    showing,
    where_of,
)
from sdb.errors import ConfigError


def audit_marks(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A box, or a teacher's run folder or checkpoint.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("runs/marks"),
    owner: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The owner's file; none: a fresh secret, for this study.")
    ] = None,
    thief: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this thief (more than once for several); else a quick list."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all thieves.")] = False,
    queries: Annotated[
        int | None, typer.Option(help="Labels that a thief asks for; 2,000, or as many as there are images.")
    ] = None,
    pool: Annotated[
        str,
        typer.Option(help="Images that thieves ask about: test (half of them), or left_out by subset_percent."),
    ] = "test",
    budget: Annotated[float, typer.Option(help="Accuracy that ties may cost, a fraction of all answers.")] = 0.001,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 1,
    dataset: Annotated[str | None, typer.Option(help="Data set, where MODEL does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    other_class_names: OtherClassNames = False,
    network: Network = None,
    workers: Workers = 2,
    cluster: Cluster = None,
    task_cpus: TaskCpus = 1,
    task_gpus: TaskGpus = 0,
    sets: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in OUT; thieves and seeds may be added.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Let thieves of labels try to lose the mark of ties; say which are named, and what losing it costs the others.

    Writes OUT/marks.json and OUT/marks.md. Prints one sentence and a table. Exits with 0 whatever it finds.
    """
    from sdb.audit.marks.job import MarkFiles, study_job
    from sdb.audit.marks.study import MarkSettings
    from sdb.audit.marks.thieves import QUICK, THIEVES
    from sdb.config import parse_overrides
    from sdb.report.mark_words import lines
    from sdb.training.progress import ShowTasks

    if every and thief:
        raise ConfigError("--all and --thief contradict each other; give one")
    where = where_of(workers, cluster, task_cpus, task_gpus)
    named: dict[str, Any] = {"queries": queries, "pool": pool, "budget": budget, "seeds": seeds}
    chosen = tuple(THIEVES) if every else tuple(thief or QUICK)
    values: dict[str, Any] = named | {"thieves": chosen} | parse_overrides(sets or [])
    settings = MarkSettings(**values)
    files = MarkFiles(
        model,
        owner,
        dataset=dataset,
        data_root=data_root,
        network=network,
        other_class_names=other_class_names,
    )
    progress = ShowTasks("marks")
    with showing(progress, f"what is finished is kept, continue with the same command and --resume (--out {out})"):
        result = study_job(
            out,
            files,
            settings,
            where=where,
            resume=resume,
            overwrite=overwrite,
            on_progress=progress.on_progress,
        )
    say(result["sentence"])
    for line in lines(result):
        typer.echo(line)
    say(f"result: {out / 'marks.json'}, {out / 'marks.md'}")
