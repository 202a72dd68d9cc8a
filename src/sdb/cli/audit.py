"""audit: every attack against a box, beside the known defences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import (
    Cluster,
    KeyOption,
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


def audit(
    box: Annotated[
        Path | None,
        typer.Argument(metavar="BOX", help="A box, or the run folder of `sdb wrap`; none: audit boxes made here."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the claim and the report.")] = Path("runs/audit"),
    preset: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    threat: Annotated[
        str, typer.Option(help="api (thieves ask a service) or shipped (they have the weights too).")
    ] = "api",
    interface: Annotated[
        str, typer.Option(help="What the service gives away: labels, top_k, probabilities or logits.")
    ] = "logits",
    query_budget: Annotated[int | None, typer.Option(help="Images it answers for one thief.")] = None,
    labelled: Annotated[
        str | None,
        typer.Option(help="Labelled images of a thief, a number or all; by default 15 per class."),
    ] = None,
    unlabelled: Annotated[int | None, typer.Option(help="Further images that a thief can only ask about.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="Run this attack only (more than once for several), or module:name.")
    ] = None,
    defence: Annotated[list[str] | None, typer.Option(help="Set only this defence beside the box.")] = None,
    key: KeyOption = None,
    owner: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The owner's file: look for the box's mark in its thieves.")
    ] = None,
    without_key: Annotated[bool, typer.Option("--without-key", help="Look at thieves alone.")] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The unprotected teacher; by default what the box's run names."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, where BOX does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    other_class_names: OtherClassNames = False,
    network: Network = None,
    workers: Workers = 2,
    cluster: Cluster = None,
    task_cpus: TaskCpus = 1,
    task_gpus: TaskGpus = 0,
    sets: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the audit in OUT.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Attack a box and the known defences; one report.

    Writes OUT/claim.json and OUT/report.html. Exits with 0 where every promise is established, and with 1 where one is
    broken or not settled; the first line says which.
    """
    from sdb.audit.job import audit_job, find_subject
    from sdb.audit.plan import AuditSettings
    from sdb.audit.runner import costs_of
    from sdb.config import parse_overrides
    from sdb.report.audit_verdict import judge
    from sdb.report.audit_words import findings, headline, summary
    from sdb.report.claim import read_claim
    from sdb.report.judgement import Judgement
    from sdb.training.progress import ShowTasks

    where = where_of(workers, cluster, task_cpus, task_gpus)
    named: dict[str, Any] = {
        "preset": preset,
        "threat": threat,
        "interface": interface,
        "query_budget": query_budget,
        "labelled": int(labelled) if labelled is not None and labelled.isdecimal() else labelled,
        "unlabelled": unlabelled,
        "seeds": seeds,
        "attacks": tuple(attack or ()),
        "defences": tuple(defence or ()),
        "dataset": dataset,
        "data_root": data_root,
        "other_class_names": other_class_names or None,
    }
    values = {name: value for name, value in named.items() if value is not None} | parse_overrides(sets or [])
    subject, settings = find_subject(box, key, teacher, owner, without_key, AuditSettings(**values), network)
    progress = ShowTasks("audit", costs_of(settings, subject))
    with showing(progress, f"what is finished is kept, continue with the same command and --resume (--out {out})"):
        claim = audit_job(
            out,
            settings,
            subject,
            where=where,
            resume=resume,
            overwrite=overwrite,
            on_progress=progress.on_progress,
        )
    found = read_claim(claim)
    verdict = judge(found)
    if subject.teacher is None:
        say("the teacher that it is compared with was trained by this audit; --teacher PATH names yours")
    say(f"{summary(found, verdict)}. {headline(found, verdict)}")
    for each in findings(found, verdict):
        say(f"{each.title}: {each.status}. {each.sentence}")
    say(f"{claim['seconds']:.0f} s; report: {out / 'report.html'}, claim: {out / 'claim.json'}")
    if verdict.judged.judgement is not Judgement.ESTABLISHED:
        raise typer.Exit(1)
