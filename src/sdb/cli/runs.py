"""train, wrap, distill, check, demo: the commands that work in run folders."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import (
    Cluster,
    Folder,
    KeyOption,
    Overwrite,
    Processes,
    Resume,
    SavePath,
    Set,
    print_json,
    run_folder,
    say,
    with_key,
)
from sdb.errors import ConfigError

BELOW = 3  # exit code: the box is kept, and is less accurate than was asked for


def train(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    cluster: Cluster = None,
    processes: Processes = None,
) -> None:
    """Train a teacher, or a student without a teacher, into DIR."""
    run_command("train", run_folder(folder, save_path), sets or [], resume, overwrite, cluster, processes)


def wrap(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    key: KeyOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    cluster: Cluster = None,
    processes: Processes = None,
) -> None:
    """Wrap a teacher into DIR/box.

    The box opens for the keys that are named, else for DIR/key.json, which is made. Method nasty has no key. Paths in
    params.json are relative to the current folder. Exit code 3: the box is there, and is further below its teacher
    than allowed_loss.
    """
    place, given = run_folder(folder, save_path), with_key(sets, key)
    raise typer.Exit(run_command("wrap", place, given, resume, overwrite, cluster, processes))


def distill(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    key: KeyOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    cluster: Cluster = None,
    processes: Processes = None,
) -> None:
    """Distil a student into DIR.

    From a teacher or a box; --key makes it a partner's. Paths in params.json are relative to the current folder.
    """
    run_command(
        "distill", run_folder(folder, save_path), with_key(sets, key), resume, overwrite, cluster, processes
    )


def check(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    command: Annotated[
        str | None, typer.Option("--for", help="train, wrap or distill; guessed by default.")
    ] = None,
) -> None:
    """Validate DIR/params.json without running it.

    Says what was inferred, and why.
    """
    from sdb import config
    from sdb.runs.jobs import check_job, missing_paths

    place = run_folder(folder, save_path)
    found = check_job(place, command, sets or [])
    say(f"{place}: good for sdb {found}")
    if command is None:
        say(f"  {found}: {config.guess(config.read_params(config.params_file(place)))[1]}")
    for line in (*config.inferred(place, found, sets or []), *missing_paths(place, found, sets or [])):
        say(f"  {line}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the record.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of everything but the keys.")] = 0,
    method: Annotated[str, typer.Option(help="How the box is made: decoy or sdb.")] = "decoy",
    data: Annotated[str, typer.Option(help="Data set.")] = "digits",
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the accuracies here.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """The main job, small, with a report.

    Teacher, box, students; a table, and OUT/report.html.
    """
    from sdb.demo import run_demo

    run_demo(
        out,
        seed=seed,
        method=method,
        dataset=data,
        data_root=data_root,
        json_file=json_file,
        overwrite=overwrite,
    )


def run_command(
    command: str,
    folder: Path,
    sets: list[str],
    resume: bool,
    overwrite: bool,
    cluster: str | None,
    processes: int | None,
) -> int:
    """Run a job in its folder and print its result; Ctrl-C says how to go on. Returns the exit code."""
    from sdb import config
    from sdb.runs.folder import told
    from sdb.runtime import world

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one")
    if processes is not None and cluster is None:
        raise ConfigError("--processes: say on which --cluster; on this machine, use torchrun")
    params = config.load(folder, command, sets, resume=resume)
    if world().is_main:
        tell_what_was_taken(command, folder, params, sets, resume)
    try:
        if cluster is None:
            result = here(command, folder, params, resume, overwrite)
        else:
            from sdb.runs.data_parallel import run_on_cluster

            say(f"sdb: progress is in {folder / 'training.log'}")
            flags = {"cluster": cluster, "processes": processes or 1, "resume": resume, "overwrite": overwrite}
            result = run_on_cluster(command, folder, sets, **flags)
    except KeyboardInterrupt:
        if world().is_main:
            begun = (folder / "params.resolved.json").exists()
            kept = f"finished epochs are kept, continue with: {_resuming()}" if begun else "nothing was started"
            say(f"sdb: interrupted; {kept}")
        raise typer.Exit(130) from None
    if world().is_main:
        if said := told(result):
            say(f"sdb: {said}")
        print_json(result)
        if "warning" in result and cluster is not None:  # else the log has said it
            say(f"sdb: {result['warning']}")
    return BELOW if "warning" in result else 0


def tell_what_was_taken(command: str, folder: Path, params: Any, sets: list[str], resume: bool) -> None:
    """Say what the parameters have that DIR/params.json does not say itself."""
    from sdb import config

    if not resume:
        for line in config.inferred(folder, command, sets):
            say(f"sdb: {line}")
        return
    for name, (taken, now) in config.differing(folder, params, command, sets).items():
        say(f"sdb: {name} is {taken!r}, as the run was started (the file: {now!r})")


def here(command: str, folder: Path, params: Any, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Run a job in this process, with its progress."""
    from sdb.runs.jobs import JOBS
    from sdb.runtime import world
    from sdb.training.progress import ShowProgress

    progress = ShowProgress(f"{command} {folder.name}") if world().is_main else None
    return JOBS[command](folder, params, resume=resume, overwrite=overwrite, progress=progress)


def _resuming() -> str:
    """The command that continues this one: the same, since --set and --key must stay as they were."""
    given = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
    return shlex.join(["sdb", *given, "--resume"])
