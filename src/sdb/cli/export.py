"""export, sign, verify: the commands that prepare a box for handing out, and check one that was received."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Encrypt, KeyOption, Network, new_passphrase, print_json, say
from sdb.errors import ConfigError
from sdb.runtime import read_bytes

LICENCE_LIMIT = 2**20  # bytes; a text of this length is no licence
BoxPath = Annotated[Path, typer.Argument(metavar="BOX", help="Box, or run folder that holds one.")]


def export(
    box_path: BoxPath,
    to: Annotated[str, typer.Option(help="onnx or pt2.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")],
    key: KeyOption = None,
    licence: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to put into the file as its licence.")
    ] = None,
    network: Network = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a box as one file for other runtimes.

    Without --key the network that everyone may run; with it the unlocked one: that file is the knowledge itself.
    """
    text = "" if licence is None else _read_licence(licence)
    from sdb.box.box import Box
    from sdb.export import export as write
    from sdb.keys import Key

    opened = None if key is None else Key.load(key)
    metadata = write(Box.load(_box_in(box_path), network), out, to, key=opened, licence=text, overwrite=overwrite)
    if key is not None:
        say(f"{out}: holds the unlocked network. Whoever has it can distil the model; hand it over in a safe way.")
    print_json({"file": str(out), "bytes": out.stat().st_size, "metadata": metadata})


def sign(
    box_path: Annotated[
        Path | None, typer.Argument(metavar="BOX", help="Box, or run folder that holds one.")
    ] = None,
    signing_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sign BOX with this signing key.")
    ] = None,
    new_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Make a signing key, and FILE.pub, its public half.")
    ] = None,
    encrypt: Encrypt = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a signature that is there.")] = False,
) -> None:
    """Sign a box with Ed25519, or make a key for it.

    The signature goes into the box and covers every byte of it; sign again after adding a partner.
    """
    from sdb.box.signing import SigningKey, key_id, sign_box, write_public

    if new_key is not None:
        if box_path is not None or signing_key is not None:
            raise ConfigError("--new-key makes a key and signs nothing: leave BOX and --signing-key out")
        fresh, public = SigningKey.generate(), new_key.with_name(new_key.name + ".pub")
        if public.exists():
            raise ConfigError(f"{public} exists; choose another name for the key")
        fresh.save(new_key, passphrase=new_passphrase(encrypt))
        write_public(fresh.public, public)
        say(f"{new_key}: signing key {key_id(fresh.public)[:8]}. Keep it secret; publish {public}.")
        return
    if box_path is None or signing_key is None:
        raise ConfigError("give BOX and --signing-key FILE, or --new-key FILE to make a key")
    if encrypt:
        raise ConfigError("--encrypt belongs to --new-key; a signature is public")
    key, place = SigningKey.load(signing_key), _box_in(box_path)
    sign_box(place, key, overwrite=overwrite)
    say(f"{place}: signed by {key_id(key.public)[:8]}")


def verify(
    box_path: BoxPath,
    public_key: Annotated[Path, typer.Option(metavar="FILE", help="The maker's public key, PEM.")],
) -> None:
    """Check who signed a box, and every byte of it.

    Exits with 2 when anything differs.
    """
    from sdb.box.signing import key_id, read_public, verify_box

    public, place = read_public(public_key), _box_in(box_path)
    print_json({"box": str(place), "id": verify_box(place, public), "signed_by": key_id(public)})


def _box_in(path: Path) -> Path:
    """The box that a path stands for; the path itself where there is none, for the reader to say so."""
    from sdb.config import box_of

    return box_of(path) or path


def _read_licence(path: Path) -> str:
    try:
        return read_bytes(path, LICENCE_LIMIT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"--licence: cannot read {path}: {reason}") from None
