"""Signed boxes and guards: who made one, by Ed25519, with nothing but `cryptography`.

    key = SigningKey.generate()
    key.save("signing.json"); write_public(key.public, "signing.pub")
    sign_box("model.box", key)
    verify_box("model.box", read_public("signing.pub"))      # raises where anything differs

The signature is a file in the box, `signature.json`. It signs a statement: the box's id and the SHA-256 of every other
file, byte for byte, as canonical JSON (names sorted, no white space) behind a fixed prefix. So no byte can change, no
file can be added, left out, or taken from another box.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from sdb.answers.guard import MANIFEST, ROWS, Guard
from sdb.box.boxfile import SIGNATURE, add_signature, check_box_files, read_raw_files
from sdb.errors import CheckpointError, KeyFileError
from sdb.keys.keyfile import read_secret, write_secret
from sdb.runtime import SECRET_LIMIT, WEIGHTS_LIMIT, json_text, parse_json, read_bytes, write_atomic

VERSION = 1
SECRET_BYTES = 32
KIND = "signing"
PREFIX = b"sdb/1/box-signature\0"  # a signature over a box is one over nothing else


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The secret half; it signs boxes and has nothing to do with what opens them.

    Attributes:
        secret: 32 bytes, Ed25519's seed.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(SECRET_BYTES))

    @property
    def public(self) -> Ed25519PublicKey:
        """The public half."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).public_key()

    def save(self, path: Path | str, passphrase: str | None = None) -> None:
        """Write the key file, mode 0600, encrypted where a passphrase is given.

        Raises:
            KeyFileError: the file exists.
        """
        write_secret(Path(path), {"kind": KIND, "id": key_id(self.public)}, self.secret, passphrase)

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Self:
        """Read a key file.

        Raises:
            KeyFileError: missing, readable by others, damaged or altered, or a key of another kind.
        """
        header, secret = read_secret(Path(path), passphrase)
        if header.get("kind") != KIND:
            raise KeyFileError(f"{path} does not hold a signing key; make one with sdb sign --new-key FILE")
        if len(secret) != SECRET_BYTES or header.get("id") != key_id(cls(secret).public):
            raise KeyFileError(f"{path}: secret and header do not belong together; restore it from a copy")
        return cls(secret)


def key_id(public: Ed25519PublicKey) -> str:
    """Name of a public key, 32 hexadecimal digits."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:32]


def write_public(public: Ed25519PublicKey, path: Path | str) -> None:
    """Write a public key as PEM, which any tool reads.

    Raises:
        KeyFileError: the file exists.
    """
    path = Path(path)
    if path.exists():
        raise KeyFileError(f"{path} exists; choose another name")
    write_atomic(path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def read_public(path: Path | str) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        KeyFileError: missing, or not the PEM of an Ed25519 public key.
    """
    path = Path(path)
    try:
        public = load_pem_public_key(read_bytes(path, SECRET_LIMIT))
    except OSError as error:
        raise KeyFileError(f"cannot read public key {path}: {error.strerror or error}") from None
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, Ed25519PublicKey):
        raise KeyFileError(
            f"{path} is not the PEM of an Ed25519 public key; sdb sign --new-key FILE makes FILE.pub"
        )
    return public


def sign_box(path: Path | str, key: SigningKey, overwrite: bool = False) -> str:
    """Sign a box or a guard, in place, and return its id.

    Raises:
        CheckpointError: it is damaged, or is signed already and `overwrite` is false.
        StorageError: the disk is full; the box is untouched.
    """
    path = Path(path)
    name, files = _read(path)
    if files.pop(SIGNATURE, None) is not None and not overwrite:
        raise CheckpointError(f"{path} is signed already; --overwrite puts your signature in place of that one")
    signature = Ed25519PrivateKey.from_private_bytes(key.secret).sign(_statement(name, files))
    content = _signature_file(key_id(key.public), signature)
    if MANIFEST in files:
        write_atomic(path / SIGNATURE, content)
    else:
        add_signature(path, content)
    return name


def _read(path: Path) -> tuple[str, dict[str, bytes]]:
    """Id and files of a box, or of a guard, whose folder holds nothing but its own.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (path / MANIFEST).exists():
        files = read_raw_files(path)
        return check_box_files(files, path)[0]["id"], files
    if extra := sorted({each.name for each in path.iterdir()} - {MANIFEST, ROWS, SIGNATURE}):
        raise CheckpointError(f"{path}: {extra[0]} is not part of this guard; remove it")
    name = Guard.load(path).info.id
    return name, {each.name: read_bytes(each, WEIGHTS_LIMIT) for each in path.iterdir()}


def verify_box(path: Path | str, public: Ed25519PublicKey) -> str:
    """Check that this key's owner signed this box or guard as it is, and return its id.

    Raises:
        CheckpointError: not signed, signed by another, altered in any byte, or damaged.
    """
    path = Path(path)
    name, files = _read(path)
    if SIGNATURE not in files:
        raise CheckpointError(f"{path} is not signed; ask its maker for a signed copy")
    data = files.pop(SIGNATURE)
    try:
        body = parse_json(data)
        signer, signature = str(body["key_id"]), bytes.fromhex(body["signature"])
        # Also the signature's own file has one form only.
        intact = data == _signature_file(signer, signature)
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: {SIGNATURE} is damaged; restore the box from a copy") from None
    if not intact:
        raise CheckpointError(f"{path}: {SIGNATURE} was altered; restore the box from a copy")
    if signer != key_id(public):
        raise CheckpointError(f"{path} is signed by {signer[:8]}, not by {key_id(public)[:8]}: do not use it")
    try:
        public.verify(signature, _statement(name, files))
    except InvalidSignature:
        raise CheckpointError(
            f"{path}: the signature does not fit: the box was altered after it was signed, or the signature is of "
            "another box; do not use it, and ask its maker for a copy"
        ) from None
    return name


def _statement(box_id: str, files: dict[str, bytes]) -> bytes:
    """What is signed."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    body = {"sdb_signature": VERSION, "box": box_id, "files": digests}
    return PREFIX + json_text(body, sort_keys=True, separators=(",", ":")).encode()


def _signature_file(signer: str, signature: bytes) -> bytes:
    body = {
        "sdb_signature": VERSION,
        "algorithm": "ed25519",
        "key_id": signer,
        "signature": signature.hex(),
    }
    return json_text(body, indent=1).encode() + b"\n"
