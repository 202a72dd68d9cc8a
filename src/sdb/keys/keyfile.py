"""Secrets on disk: one JSON file a secret, readable by its owner alone, encrypted when a passphrase is given.

The header (version, kind, id, scope, blend) stays readable and is authenticated: with a passphrase by AES-256-GCM,
whose key scrypt makes from it; without one by the id, a one-way function of the secret and of the header's words.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from sdb.errors import ConfigError, KeyFileError
from sdb.runtime import SECRET_LIMIT, is_text, json_text, parse_json, read_bytes, write_atomic

VERSION = 1
# 128 MiB and about half a second an attempt; SDB_SCRYPT_LOG_N lowers it for tests.
SCRYPT_LOG_N, SCRYPT_R, SCRYPT_P = 17, 8, 1
MAX_LOG_N = 18  # 256 MiB; a file that asks for more, or for another r or p, only exhausts the reader
PASSPHRASE_VARIABLE = "SDB_PASSPHRASE"  # noqa: S105 - a name, no secret
OTHERS = 0o077  # the permissions of everyone but the owner
# What each field of a header may be, where it is there.
HEADER: dict[str, Callable[[Any], bool]] = {
    "kind": is_text,
    "id": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{32}", value)),
    "scope": is_text,
    "blend": lambda value: type(value) in (int, float) and 0 < value <= 1,
}


def write_secret(
    path: Path, header: dict[str, Any], secret: bytes, passphrase: str | None, overwrite: bool = False
) -> None:
    """Write a secret with its header, mode 0600.

    Raises:
        KeyFileError: the file exists and `overwrite` is false; or other users could read it all the same, and it is not
            encrypted (a file system without permissions): then nothing is left there.
        ConfigError: SDB_SCRYPT_LOG_N is out of range.
    """
    if path.exists() and not overwrite:
        raise KeyFileError(f"{path} exists; a key that is overwritten is lost: choose another name")
    body: dict[str, Any] = {"sdb_key": VERSION, **header}
    if passphrase is None:
        body["secret"] = secret.hex()
    else:
        wanted = os.environ.get("SDB_SCRYPT_LOG_N", str(SCRYPT_LOG_N))
        log_n = int(wanted) if wanted.isdecimal() else 0
        if not 1 <= log_n <= MAX_LOG_N:
            raise ConfigError(f"SDB_SCRYPT_LOG_N: {wanted!r} is no integer from 1 to {MAX_LOG_N}")
        salt, nonce = os.urandom(16), os.urandom(12)
        body["scrypt"] = {"log_n": log_n, "r": SCRYPT_R, "p": SCRYPT_P, "salt": salt.hex()}
        cipher = AESGCM(_stretch(passphrase, body["scrypt"]))
        body["nonce"] = nonce.hex()
        body["ciphertext"] = cipher.encrypt(nonce, secret, _canonical(body)).hex()
    write_atomic(path, json_text(body, indent=1).encode() + b"\n", mode=0o600)
    if passphrase is None and (mode := _mode(path)) & OTHERS:
        path.unlink()
        raise KeyFileError(
            f"{path}: other users could read it (mode {mode:04o}: this file system keeps no permissions); write it on "
            "another file system, or encrypted (--encrypt)"
        )


def read_secret(path: Path, passphrase: str | None = None) -> tuple[dict[str, Any], bytes]:
    """Read a secret file: its header and the secret.

    Args:
        path: the file.
        passphrase: of an encrypted file; the environment variable SDB_PASSPHRASE by default.

    Raises:
        KeyFileError: missing, readable by others, damaged, altered, or the passphrase is wrong.
    """
    try:
        data = read_bytes(path, SECRET_LIMIT)
        mode = _mode(path)
    except OSError as error:
        raise KeyFileError(f"cannot read key file {path}: {error.strerror or error}") from None
    damaged = f"{path} is not an sdb key file, or is damaged: restore it from a copy"
    try:
        body = parse_json(data)
        version = body.pop("sdb_key")
    except (ValueError, KeyError, TypeError, AttributeError):
        body, version = {}, None
    if version is None:  # before its mode: who named the wrong file must not change the permissions of that
        raise KeyFileError(damaged)
    # An encrypted file may be read by anyone: that is what its passphrase is for.
    if mode & OTHERS and "ciphertext" not in body:
        raise KeyFileError(
            f"{path} can be read by other users (mode {mode:04o}): run chmod 600 {path}; where that changes nothing (a "
            "Windows or network drive), keep it on another file system, or make it with --encrypt"
        )
    if type(version) is not int or version != VERSION:
        raise KeyFileError(f"{path}: key file version {version!r}, this sdb reads {VERSION}: update sdb")
    if wrong := [name for name, fits in HEADER.items() if name in body and not fits(body[name])]:
        raise KeyFileError(
            f"{path}: {wrong[0]} is not what it must be; the file was altered: restore it from a copy"
        )
    try:
        if "secret" in body:
            return body, _from_hex(body.pop("secret"))
        ciphertext, nonce = _from_hex(body.pop("ciphertext")), _from_hex(body["nonce"])
        sealed = {"sdb_key": VERSION, **body}
        if passphrase is None:
            passphrase = os.environ.get(PASSPHRASE_VARIABLE)
        if passphrase is None and sys.stdin.isatty():
            passphrase = getpass.getpass(f"Passphrase of {path}: ")
        if passphrase is None:
            raise KeyFileError(f"{path} is encrypted: set {PASSPHRASE_VARIABLE} to its passphrase")
        _check_costs(path, body["scrypt"])
        secret = AESGCM(_stretch(passphrase, body["scrypt"])).decrypt(nonce, ciphertext, _canonical(sealed))
    except InvalidTag:
        raise KeyFileError(f"{path}: wrong passphrase, or the file was altered") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, KeyFileError):
            raise
        raise KeyFileError(damaged) from None
    return {name: value for name, value in body.items() if name not in ("scrypt", "nonce")}, secret


def _check_costs(path: Path, parameters: dict[str, Any]) -> None:
    log_n, r, p = (parameters[name] for name in ("log_n", "r", "p"))
    if not all(type(number) is int for number in (log_n, r, p)):
        raise TypeError("log_n, r and p are integers")
    if not 1 <= log_n <= MAX_LOG_N or (r, p) != (SCRYPT_R, SCRYPT_P):
        raise KeyFileError(
            f"{path}: asks for other work (log_n {log_n}, r {r}, p {p}) than an sdb key file does (log_n up to "
            f"{MAX_LOG_N}, r {SCRYPT_R}, p {SCRYPT_P}): it was altered, restore it from a copy"
        )


def _stretch(passphrase: str, parameters: dict[str, Any]) -> bytes:
    salt, n = _from_hex(parameters["salt"]), 2 ** parameters["log_n"]
    # A passphrase from the environment is bytes; those that are not UTF-8 stay what they are.
    secret = passphrase.encode("utf-8", "surrogateescape")
    return Scrypt(salt=salt, length=32, n=n, r=parameters["r"], p=parameters["p"]).derive(secret)


def _from_hex(text: str) -> bytes:
    if not re.fullmatch("([0-9a-f]{2})+", text):  # bytes.fromhex takes white space too
        raise ValueError("not hexadecimal")
    return bytes.fromhex(text)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _canonical(body: dict[str, Any]) -> bytes:
    return json_text(body, sort_keys=True, separators=(",", ":")).encode()
