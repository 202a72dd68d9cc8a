"""The reference's four scripts, train_*.py in the repository's root: our commands under their names.

Each takes `--save_path DIR` as there, and leaves `best_model.tar` beside what ours leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sdb.cli import run_app
from sdb.cli.runs import run_command
from sdb.cli.shell import KeyOption, Overwrite, Resume, Set, say, with_key
from sdb.errors import ConfigError

Place = Annotated[Path, typer.Option("--save_path", "--save-path", metavar="DIR", help="Folder with params.json.")]


def train_scratch(
    save_path: Place, sets: Set = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Train a classifier, as sdb train does."""
    _run("train", save_path, sets or [], resume, overwrite)


def train_smb(
    save_path: Place, sets: Set = None, key: KeyOption = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Wrap a teacher, as sdb wrap does."""
    _run("wrap", save_path, with_key(sets, key), resume, overwrite)


def train_kd(save_path: Place, sets: Set = None, resume: Resume = False, overwrite: Overwrite = False) -> None:
    """Distil a student, as sdb distill does; lamb is not used, as there."""
    _run("distill", save_path, ["key_blend=null", *(sets or [])], resume, overwrite)


def train_kd_noise(
    save_path: Place, sets: Set = None, key: KeyOption = None, resume: Resume = False, overwrite: Overwrite = False
) -> None:
    """Distil a student with a key, as sdb distill --key does.

    The key is that of --key or params.json, else DIR/key.json, else the one beside the teacher's box.
    """
    from sdb import config

    given = with_key(sets, key)
    params = config.load(save_path, "distill", given, resume=resume)
    if params.key is None and params.key_blend is None:
        raise ConfigError(
            f"{save_path}: names neither lamb nor a key: set lamb, or give --key FILE; train_kd.py needs no key"
        )
    _run("distill", save_path, given, resume, overwrite)


def main(script: Callable[..., None]) -> int:
    """Run one of the scripts with this process's arguments; its exit code."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(script)
    return run_app(app)


def _run(command: str, folder: Path, sets: list[str], resume: bool, overwrite: bool) -> None:
    from sdb.runs.reference_checkpoint import NAME, write_best_model
    from sdb.runtime import world

    # The reference's code will normalise with constants of its own what it gives to best_model.tar.
    first = [] if resume else ["normalisation=reference"]
    code = run_command(command, folder, [*first, *sets], resume, overwrite, None, None)
    if world().is_main and write_best_model(folder, command) is None:
        say(f"sdb: no {NAME}: a decoy box is more than one network, see {folder / 'box'}")
    raise typer.Exit(code)
