"""key: the commands that make and show keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Encrypt, Network, new_passphrase, print_json, say
from sdb.errors import ConfigError

key_app = typer.Typer(help="Make and look at keys.", no_args_is_help=True, rich_markup_mode=None)
owner_app = typer.Typer(help="Make an owner's secret.", no_args_is_help=True, rich_markup_mode=None)
key_app.add_typer(owner_app, name="owner")


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
    key = Key.generate(kind, blend=DEFAULT_BLEND if blend is None else blend)  # ty: ignore[invalid-argument-type]
    key.save(path, passphrase=new_passphrase(encrypt))
    say(f"{path}: {kind} key {key.id[:8]}. Keep it secret; who has it can distil the box.")


@key_app.command("show")
def key_show(path: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Print the public part of a key file as JSON."""
    from sdb.keys.keyfile import read_secret

    header, _ = read_secret(path)
    print_json(header)


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
    network: Network = None,
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
        from sdb.box.box import Box

        Box.load(box_path, network).add_partner(key, owner).save(box_path, overwrite=True)
        say(f"{box_path}: opens for {name} too")
    key.save(path, passphrase=new_passphrase(encrypt))
    say(f"{path}: {kind} key {key.id[:8]} for {name}. Hand it over in a safe way.")


@owner_app.command("new")
def owner_new(path: Annotated[Path, typer.Argument(metavar="FILE")], encrypt: Encrypt = False) -> None:
    """Make an owner's secret.

    Every partner's key and the box's mark follow from it.
    """
    from sdb.keys import Owner

    owner = Owner.generate()
    owner.save(path, passphrase=new_passphrase(encrypt))
    say(f"{path}: owner {owner.id[:8]}. Keep it safe and backed up; boxes cannot be changed or traced without it.")
