"""The command line: parse, call the library, print. Talk goes to stderr, data to stdout.

Exit codes: 0 done, 1 an audit's bar failed, 2 something the user can mend (one line says what), 130 interrupted.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.errors import ConfigError, SDBError

app = typer.Typer(
    help="Safe Distillation Box: everyone can run the model, only key holders can distil it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
key_app = typer.Typer(help="Make and look at keys.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(key_app, name="key")
owner_app = typer.Typer(help="Make an owner's secret.", no_args_is_help=True, rich_markup_mode=None)
key_app.add_typer(owner_app, name="owner")

Folder = Annotated[Path | None, typer.Argument(metavar="DIR", help="Run folder; holds params.json.")]
SavePath = Annotated[
    Path | None, typer.Option("--save_path", "--save-path", help="The same, as the reference has it.")
]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a parameter.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR after its last finished epoch.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Discard the run in DIR.")]
Encrypt = Annotated[
    bool, typer.Option("--encrypt", help="Encrypt under a passphrase, asked for or from $SDB_PASSPHRASE.")
]
KeyOption = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Key file.")]


@app.command()
def train(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a teacher, or a student without a teacher, into DIR."""
    _run("train", _folder(folder, save_path), sets or [], resume, overwrite)


@app.command()
def wrap(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    key: KeyOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Wrap a teacher into DIR/box.

    The box opens for the keys that are named, else for DIR/key.json, which is made. Method nasty has no key. Paths in
    params.json are relative to the current folder.
    """
    _run("wrap", _folder(folder, save_path), _with_key(sets, key), resume, overwrite)


@app.command()
def distill(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    key: KeyOption = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Distil a student into DIR.

    From a teacher or a box; --key makes it a partner's. Paths in params.json are relative to the current folder.
    """
    _run("distill", _folder(folder, save_path), _with_key(sets, key), resume, overwrite)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder, checkpoint or box.")],
    key: KeyOption = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, where PATH does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Print test accuracies as JSON."""
    from sdb.jobs import evaluate_job

    _print_json(evaluate_job(path, key_file=key, dataset=dataset, data_root=data_root, device=device))


@app.command()
def trace(
    suspect: Annotated[Path, typer.Argument(help="Run folder, checkpoint or box that may be a copy.")],
    box_path: Annotated[Path, typer.Option("--box", metavar="BOX", help="The decoy box.")],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file.")],
    reference: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The teacher: which classes look alike then counts less.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, where BOX does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Also print the decoys, which are your secret.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")
    ] = None,
) -> None:
    """Look for a box's mark in a suspect.

    Prints an exact p-value as JSON, and one sentence. Exits with 0 either way.
    """
    from sdb.jobs import trace_job
    from sdb.runtime import write_atomic

    result = trace_job(
        suspect,
        box_path=box_path,
        owner_file=owner_file,
        reference_path=reference,
        dataset=dataset,
        data_root=data_root,
        device=device,
        reveal=reveal,
    )
    values = result.to_json()
    if json_file is not None:
        write_atomic(json_file, (json.dumps(values, indent=1) + "\n").encode(), mode=0o600 if reveal else 0o644)
    _say(result.sentence())
    _print_json(values)


@app.command()
def check(
    folder: Folder = None,
    save_path: SavePath = None,
    sets: Set = None,
    command: Annotated[
        str | None, typer.Option("--for", help="train, wrap or distill; guessed by default.")
    ] = None,
) -> None:
    """Validate DIR/params.json without running it."""
    from sdb.jobs import check_job

    place = _folder(folder, save_path)
    _say(f"{place}: good for sdb {check_job(place, command, sets or [])}")


@app.command()
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


@key_app.command("new")
def key_new(
    path: Annotated[Path, typer.Argument(metavar="FILE")],
    kind: Annotated[
        str, typer.Option(help="weight (opens encrypted parameters), or image (a pattern).")
    ] = "weight",
    blend: Annotated[
        float | None, typer.Option(help="Image keys: share of the image in a keyed image, in (0, 1]; default 0.9.")
    ] = None,
    encrypt: Encrypt = False,
) -> None:
    """Make a key, readable by you alone.

    From the operating system's randomness.
    """
    from sdb.keys import DEFAULT_BLEND, Key

    if blend is not None and kind != "image":
        raise ConfigError("--blend: only an image key has one: add --kind image, or leave --blend out")
    key = Key.generate(DEFAULT_BLEND if blend is None else blend, kind)  # ty: ignore[invalid-argument-type]
    key.save(path, passphrase=_new_passphrase(encrypt))
    _say(f"{path}: {kind} key {key.id[:8]}. Keep it secret; who has it can distil the box.")


@key_app.command("show")
def key_show(path: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Print the public part of a key file as JSON."""
    from sdb.keyfile import read_secret

    header, _ = read_secret(path)
    _print_json(header)


@key_app.command("partner")
def key_partner(
    name: Annotated[str, typer.Argument(help="The partner's name; the same name gives the same key.")],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; default NAME.key.json.")
    ] = None,
    kind: Annotated[str, typer.Option(help="weight or image, as the box has it.")] = "weight",
    blend: Annotated[float, typer.Option(help="Image keys: the blend of the box.")] = 0.9,
    box_path: Annotated[
        Path | None,
        typer.Option("--box", metavar="BOX", help="Also give this weight-key box a slot for the partner."),
    ] = None,
    encrypt: Encrypt = False,
) -> None:
    """Make a partner's key from the owner's secret.

    With --box, add the partner to a box, without data or training.
    """
    from sdb.keys import Owner

    owner = Owner.load(owner_file)
    key = owner.partner(name, kind, blend)  # ty: ignore[invalid-argument-type]
    path = out or Path(f"{name}.key.json")
    if box_path is not None:
        from sdb.box import Box

        Box.load(box_path).add_partner(key, owner).save(box_path, overwrite=True)
        _say(f"{box_path}: opens for {name} too")
    key.save(path, passphrase=_new_passphrase(encrypt))
    _say(f"{path}: {kind} key {key.id[:8]} for {name}. Hand it over on a safe way.")


@owner_app.command("new")
def owner_new(path: Annotated[Path, typer.Argument(metavar="FILE")], encrypt: Encrypt = False) -> None:
    """Make an owner's secret.

    Every partner's key and the box's mark follow from it.
    """
    from sdb.keys import Owner

    owner = Owner.generate()
    owner.save(path, passphrase=_new_passphrase(encrypt))
    _say(
        f"{path}: owner {owner.id[:8]}. Keep it safe and backed up; boxes cannot be changed or traced without it."
    )


def main() -> int:
    """Entry point: one line and exit code 2 for what a user can mend; bugs keep their traceback."""
    try:
        app(standalone_mode=True)
    except SDBError as error:
        _say(f"sdb: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        _say("sdb: interrupted")
        return 130
    return 0


def _run(command: str, folder: Path, sets: list[str], resume: bool, overwrite: bool) -> None:
    from sdb import config
    from sdb.jobs import JOBS
    from sdb.progress import ShowProgress
    from sdb.runtime import world

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one")
    params = config.load(folder, command, sets)
    progress = ShowProgress(f"{command} {folder.name}") if world().is_main else None
    try:
        result = JOBS[command](folder, params, resume=resume, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        if progress is not None:
            begun = (folder / "params.resolved.json").exists()
            kept = f"finished epochs are kept, go on with: {_resuming()}" if begun else "nothing was begun"
            _say(f"sdb: interrupted; {kept}")
        raise typer.Exit(130) from None
    if world().is_main:
        _print_json(result)


def _resuming() -> str:
    """The command that goes on with this one: the same, since --set and --key must stay as they were."""
    given = [argument for argument in sys.argv[1:] if argument not in ("--overwrite", "--resume")]
    return shlex.join(["sdb", *given, "--resume"])


def _folder(folder: Path | None, save_path: Path | None) -> Path:
    if (folder is None) == (save_path is None):
        raise ConfigError("give the run folder once, as DIR or as --save_path DIR")
    return folder if folder is not None else save_path  # ty: ignore[invalid-explicit-return]


def _with_key(sets: list[str] | None, key: Path | None) -> list[str]:
    return [*(sets or []), *([f"key={json.dumps(str(key))}"] if key is not None else [])]


def _new_passphrase(encrypt: bool) -> str | None:
    """A passphrase for a new file: from the environment, else typed twice; None where none is wanted."""
    if not encrypt:
        return None
    import os

    from sdb.keyfile import PASSPHRASE_VARIABLE

    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    if passphrase is None:
        passphrase = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True)
    if not passphrase:
        raise ConfigError("--encrypt: the passphrase is empty; give one, or leave --encrypt out")
    return passphrase


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
