"""Secrets on disk: one JSON file a secret, readable by its owner alone, encrypted when a passphrase is given.

The header (version, kind, id, scope, blend) stays readable and is authenticated: with a passphrase by AES-256-GCM,
whose key scrypt makes from it; without one by the id, a one-way function of the secret and of the header's words.
"""

from __future__ import annotations

import getpass
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from sdb.errors import KeyFileError
from sdb.runtime import write_atomic

VERSION = 1
# 128 MiB and about half a second an attempt; SDB_SCRYPT_LOG_N lowers it for tests.
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 17, 8, 1
MAX_LOG_N = 20  # a file that asks for more would only exhaust the reader's memory
PASSPHRASE_VARIABLE = "SDB_PASSPHRASE"  # noqa: S105 - a name, no secret


def write_secret(
    path: Path, header: dict[str, Any], secret: bytes, passphrase: str | None, overwrite: bool = False
) -> None:
    """Write a secret with its header, mode 0600.

    Raises:
        KeyFileError: the file exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise KeyFileError(f"{path} exists; a key that is overwritten is lost: choose another name")
    body: dict[str, Any] = {"sdb_key": VERSION, **header}
    if passphrase is None:
        body["secret"] = secret.hex()
    else:
        log_n = int(os.environ.get("SDB_SCRYPT_LOG_N", SCRYPT_LOG_N))
        salt, nonce = os.urandom(16), os.urandom(12)
        body["scrypt"] = {"log_n": log_n, "r": SCRYPT_R, "p": SCRYPT_P, "salt": salt.hex()}
        cipher = AESGCM(_stretch(passphrase, body["scrypt"]))
        body["nonce"] = nonce.hex()
        body["ciphertext"] = cipher.encrypt(nonce, secret, _canonical(body)).hex()
    write_atomic(path, json.dumps(body, indent=1).encode() + b"\n", mode=0o600)


def read_secret(path: Path, passphrase: str | None = None) -> tuple[dict[str, Any], bytes]:
    """Read a secret file: its header and the secret.

    Args:
        path: the file.
        passphrase: of an encrypted file; the environment variable SDB_PASSPHRASE by default.

    Raises:
        KeyFileError: missing, readable by others, damaged, altered, or the passphrase is wrong.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read key file {path}: {getattr(error, 'strerror', None) or error}") from None
    if mode & 0o077:
        raise KeyFileError(f"{path} can be read by other users (mode {mode:04o}): run chmod 600 {path}")
    damaged = f"{path} is not an sdb key file, or is damaged: restore it from a copy"
    try:
        body = json.loads(text)
        version = body.pop("sdb_key")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyFileError(damaged) from None
    if version != VERSION:
        raise KeyFileError(f"{path}: key file version {version!r}, this sdb reads {VERSION}: update sdb")
    try:
        if "secret" in body:
            return body, bytes.fromhex(body.pop("secret"))
        ciphertext, nonce = bytes.fromhex(body.pop("ciphertext")), bytes.fromhex(body["nonce"])
        sealed = {"sdb_key": VERSION, **body}
        if passphrase is None:
            passphrase = os.environ.get(PASSPHRASE_VARIABLE)
        if passphrase is None and sys.stdin.isatty():
            passphrase = getpass.getpass(f"Passphrase of {path}: ")
        if passphrase is None:
            raise KeyFileError(f"{path} is encrypted: set {PASSPHRASE_VARIABLE} to its passphrase")
        secret = AESGCM(_stretch(passphrase, body["scrypt"])).decrypt(nonce, ciphertext, _canonical(sealed))
    except InvalidTag:
        raise KeyFileError(f"{path}: wrong passphrase, or the file was altered") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, KeyFileError):
            raise
        raise KeyFileError(damaged) from None
    return {name: value for name, value in body.items() if name not in ("scrypt", "nonce")}, secret


def _stretch(passphrase: str, parameters: dict[str, Any]) -> bytes:
    log_n, r, p = (int(parameters[name]) for name in ("log_n", "r", "p"))
    if not (1 <= log_n <= MAX_LOG_N and 1 <= r <= 16 and 1 <= p <= 4):
        raise KeyFileError("the key file asks for more work than any sdb key file does: it was altered")
    salt = bytes.fromhex(parameters["salt"])
    return Scrypt(salt=salt, length=32, n=2**log_n, r=r, p=p).derive(passphrase.encode())


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
