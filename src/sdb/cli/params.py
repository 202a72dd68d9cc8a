"""init, params: the commands that help to write a run's parameters."""

from __future__ import annotations

import difflib
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import say
from sdb.errors import ConfigError


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder; gets params.toml.")],
    command: Annotated[str, typer.Option(help="What the run does: wrap, train or distill.")] = "wrap",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Architecture; default: the teacher's, else net.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set; default: the teacher's, else digits.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Wrap and distill: run folder, checkpoint or box.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR/params.toml.")] = False,
) -> None:
    """Write DIR/params.toml, with every parameter explained.

    What is not set here stands there as a comment with its default. Nothing is asked and nothing else is touched.
    """
    from sdb import config
    from sdb.config.template import template
    from sdb.runtime import write_atomic

    if command not in config.COMMANDS:
        raise ConfigError(f"--command {command!r}: expected {', '.join(config.COMMANDS)}")
    if command == "train" and teacher is not None:
        raise ConfigError("--teacher: a training has none; leave it out, or say --command wrap or distill")
    there = [name for name in config.PARAMS if (folder / name).exists()]
    if there and (not overwrite or there != ["params.toml"]):
        raise ConfigError(f"{folder / there[0]} exists; edit it, add --overwrite, or choose another folder")
    of_teacher: dict[str, Any] = {}
    if teacher is not None and (teacher / config.RESOLVED).is_file():
        of_teacher = config.read_json(teacher / config.RESOLVED)
    taken = ("model_name", "model_args", "dataset", "data_root", "image_size")
    values = {"model_name": "net", "dataset": "digits"}
    values |= {name: of_teacher[name] for name in taken if of_teacher.get(name)}
    if model is not None:
        values |= {"model_name": model}
        values.pop("model_args", None)
    values |= {"dataset": dataset} if dataset is not None else {}
    if command != "train":
        values |= {"teacher": str(teacher or "runs/teacher")}
    file = folder / "params.toml"
    write_atomic(file, template(command, values).encode())
    if "dataset" not in of_teacher and dataset is None:
        say("dataset is digits: set dataset and data_root to your own data (docs/data.md), or give --dataset")
    say(f"{file}: look through it, then: sdb check {folder}; sdb {command} {folder}")


def params(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A parameter, or train, wrap or distill; none: all of them."),
    ] = None,
) -> None:
    """Print what can be set: parameters with their values, default and help.

    They are the keys of params.json and params.toml, and of --set KEY=VALUE.
    """
    from sdb.config import ALIASES, COMMANDS
    from sdb.config.described import parameters

    found: dict[Any, list[str]] = {}
    for command in [name] if name in COMMANDS else COMMANDS:
        for each in parameters(command):
            found.setdefault(each, []).append(command)
    if name is not None and name not in COMMANDS:
        ours = ALIASES.get(name, name)
        known = sorted({each.name for each in found})
        found = {each: commands for each, commands in found.items() if each.name == ours}
        if not found:
            near = difflib.get_close_matches(name, [*known, *ALIASES, *COMMANDS], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{name!r} is no parameter: {hint}`sdb params` lists all")
    for each, commands in found.items():
        typer.echo(f"{each.name}  ({', '.join(commands)})  {each.values}; default: {each.default}")
        typer.echo(textwrap.fill(each.help, 100, initial_indent="    ", subsequent_indent="    "))
