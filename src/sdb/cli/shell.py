"""What the commands share: the options they have in common, and how they talk."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdb.errors import ConfigError
from sdb.runtime import json_text, parse_json

if TYPE_CHECKING:
    from sdb.runs.tasks import Where
    from sdb.training.progress import ShowTasks

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="DIR", help="Run folder; holds params.json or params.toml (sdb init writes one)."),
]
SavePath = Annotated[
    Path | None, typer.Option("--save_path", "--save-path", help="The same, as the reference has it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a parameter; `sdb params` lists the keys."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR after its last finished epoch.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard the run in DIR.")]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt under a passphrase, asked for or from $SDB_PASSPHRASE.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes of this machine.")]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A Ray cluster: auto (this machine's), HOST:PORT or ray://HOST:PORT."),
]
Processes = Annotated[
    int | None,
    typer.Option(min=1, help="On a cluster: processes that share each batch; a GPU each, if there are."),
]
TaskCpus = Annotated[float, typer.Option(help="On a cluster: CPU cores for each at once.")]
TaskGpus = Annotated[float, typer.Option(help="On a cluster: GPUs for each at once; 0.25 puts four on one GPU.")]
OtherClassNames = Annotated[
    bool,
    typer.Option("--other-class-names", help="The data may call the classes by other names, in the same order."),
]
Network = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="PACKAGE.MODULE:FACTORY",
        help="What makes the network, where the file cannot say it alone; it is imported and run: trust it.",
    ),
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Key file.")]


def where_of(workers: int, cluster: str | None, task_cpus: float, task_gpus: float) -> Where:
    """Where many pieces of work run.

    Raises:
        ConfigError: a number is out of range, or is for a cluster and there is none.
    """
    from sdb.runs.tasks import Where

    where = Where(workers, cluster, task_cpus, task_gpus)
    if cluster is None and (task_cpus, task_gpus) != (1, 0):
        raise ConfigError("--task-cpus and --task-gpus say what a piece of work asks of a cluster: add --cluster")
    return where


def run_folder(folder: Path | None, save_path: Path | None) -> Path:
    """The run folder, named once, in either way."""
    if (folder is None) == (save_path is None):
        raise ConfigError("give the run folder once, as DIR or as --save_path DIR")
    return folder if folder is not None else save_path  # ty: ignore[invalid-explicit-return]


def with_key(sets: list[str] | None, key: Path | None) -> list[str]:
    """The overrides, with --key as one of them."""
    return [*(sets or []), *([f"key={json_text(str(key))}"] if key is not None else [])]


def json_object(option: str, text: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{option} {text!r}: expected a JSON object, for example '{{\"num_channels\": 8}}'")
    return value


def say(text: str) -> None:
    """Talk to the user, on stderr."""
    print(text, file=sys.stderr)


@contextmanager
def showing(progress: ShowTasks, kept: str) -> Generator[None]:
    """Close what shows progress in the end; on Ctrl-C say what is kept and how to go on, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        progress.close()
        say(f"sdb: interrupted; {kept}")
        raise typer.Exit(130) from None
    finally:
        progress.close()


def print_json(value: Any) -> None:
    """Data, on stdout."""
    print(json_text(value, indent=1))


def new_passphrase(encrypt: bool) -> str | None:
    """A passphrase for a new file: from the environment, else typed twice; None where none is wanted."""
    if not encrypt:
        return None
    import os

    from sdb.keys.keyfile import PASSPHRASE_VARIABLE

    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    if not passphrase:
        raise ConfigError("--encrypt: the passphrase is empty; give one, or leave --encrypt out")
    return passphrase
