"""The files of a box: a folder, or the same in one uncompressed .zip; every byte checked against the manifest."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import shutil
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from sdb.config import MANIFEST
from sdb.errors import CheckpointError, StorageError
from sdb.runtime import (
    JSON_LIMIT,
    RECORD_LIMIT,
    SECRET_LIMIT,
    WEIGHTS_LIMIT,
    exchange,
    json_text,
    open_regular,
    parse_json,
    read_bytes,
    write_atomic,
)

BOX_VERSION = 1
WEIGHTS, PRIVATE, RECORD = "weights.safetensors", "private.bin", "record.bin"
PARTS = (WEIGHTS, PRIVATE, RECORD)  # what a manifest may name
SIGNATURE = "signature.json"  # over the manifest, so it cannot be named there; a box has no other files
# The most bytes of each; a box has no other files.
LIMITS = {
    MANIFEST: JSON_LIMIT,
    WEIGHTS: WEIGHTS_LIMIT,
    PRIVATE: WEIGHTS_LIMIT,
    RECORD: RECORD_LIMIT,
    SIGNATURE: SECRET_LIMIT,
}
ATTEMPTS = 10  # to read a box that is being replaced
FIELDS: dict[str, type] = {
    "id": str,
    "method": str,
    "parameters": dict,
    "class_names": list,
    "key_kind": str,
    "key_ids": list,
    "slots": dict,
    "owner_id": str,
    "model": dict,
    "files": dict,
}


def write_box_files(path: Path, manifest: dict[str, Any], files: dict[str, bytes]) -> None:
    """Write a box's files and the manifest that names them, atomically: a folder, or an archive for `.zip`.

    Raises:
        StorageError: the disk is full; what was there is untouched.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    body = json.loads(json_text({"sdb_box": BOX_VERSION, **manifest, "files": digests}))
    body["sha256"] = _digest(body)
    everything = {MANIFEST: json_text(body, indent=1).encode() + b"\n", **files}
    if path.suffix == ".zip":
        write_atomic(path, _zipped(everything))
    else:
        _write_folder(path, everything)


def read_box_files(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A box's manifest and its other files.

    Raises:
        CheckpointError: missing, damaged, altered, or with files that the manifest does not name.
    """
    return check_box_files(read_raw_files(path), path)


def check_box_files(raw: dict[str, bytes], path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The same of files that were read already; `path` is for messages.

    Raises:
        CheckpointError: damaged, altered, or with files that the manifest does not name.
    """
    # Who made the box is another question: sdb.box.signing.
    files = {name: data for name, data in raw.items() if name != SIGNATURE}
    manifest = _parse(files.pop(MANIFEST), path)
    for name, digest in manifest["files"].items():
        if name not in PARTS:
            raise CheckpointError(f"{path}: {MANIFEST} names {name!r}, which no box has; restore it from a copy")
        if name not in files:
            raise CheckpointError(f"{path}: {name} is missing; restore the box from a copy")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise CheckpointError(
                f"{path}: {name} was altered or damaged (sha256 differs); restore it from a copy"
            )
    if extra := sorted(files.keys() - manifest["files"].keys()):
        raise CheckpointError(f"{path}: {extra[0]} is not part of this box; remove it")
    return manifest, files


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    """The manifest, with every field of the type it must have."""
    try:
        manifest = parse_json(data)
        version = manifest["sdb_box"]
        if type(version) is not int or version != BOX_VERSION:
            raise CheckpointError(f"{path}: box version {version!r}, this sdb reads {BOX_VERSION}: update sdb")
        for name, kind in FIELDS.items():
            if not isinstance(manifest[name], kind):
                raise CheckpointError(
                    f"{path}: {MANIFEST}: {name} must be {kind.__name__}; restore it from a copy"
                )
        for name, values in (
            *((name, manifest[name]) for name in ("class_names", "key_ids")),
            *((name, manifest[name].values()) for name in ("slots", "files")),
        ):
            if not all(isinstance(value, str) for value in values):
                raise CheckpointError(f"{path}: {MANIFEST}: {name} must hold text; restore it from a copy")
        for name in manifest["files"]:
            if name in ("", ".", "..") or "/" in name or "\\" in name:
                raise ValueError(f"{name!r} is not a plain file name")
        if manifest.pop("sha256") != _digest(manifest):
            raise ValueError("its sha256 differs")
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {MANIFEST} is damaged ({error}); restore it from a copy") from None
    return manifest


def _digest(body: dict[str, Any]) -> str:
    """SHA-256 of the manifest itself, its own digest left out: finds damage, not an author who means harm."""
    return hashlib.sha256(json_text(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def add_signature(path: Path, data: bytes) -> None:
    """Put a signature into a box, in place of one that is there.

    Raises:
        CheckpointError: the box cannot be read.
        StorageError: the disk is full; the box is untouched.
    """
    if path.is_dir():
        write_atomic(path / SIGNATURE, data)
    else:
        write_atomic(path, _zipped(read_raw_files(path) | {SIGNATURE: data}))


def read_raw_files(path: Path) -> dict[str, bytes]:
    """All files of a box, folder or archive, by name, unchecked but for their sizes.

    A box that is replaced in the meantime is read again, so that all files are of one.

    Raises:
        CheckpointError: there is no such box, it holds what no box has, or it cannot be read.
    """
    for _ in range(ATTEMPTS):
        before = _state_of(path)
        try:
            files = _read_once(path)
        except CheckpointError:
            if _state_of(path) != before:
                continue
            if before or not any(path.parent.glob(f".{glob.escape(path.name)}.old.*")):
                raise
            time.sleep(0.02)  # between the two renames of `sdb.runtime.writing.exchange`
        else:
            if _state_of(path) == before:
                return files
    raise CheckpointError(f"{path}: is being replaced again and again; wait for the program that writes it")


def _state_of(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _read_once(path: Path) -> dict[str, bytes]:
    try:
        if path.is_dir():
            entries = list(path.iterdir())
            if links := [each.name for each in entries if each.is_symlink()]:
                raise CheckpointError(f"{path}: {links[0]} is a link; a box holds its files itself")
            _check_names([each.name for each in entries], path)
            return {each.name: read_bytes(each, LIMITS[each.name]) for each in entries}
        if not path.exists():
            raise CheckpointError(f"{path}: no such box; sdb wrap makes one")
        with open_regular(path, sum(LIMITS.values())) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{path}: a box archive is not compressed; this one is not a box")
            _check_names([entry.filename for entry in entries], path)
            for entry in entries:
                if entry.file_size > LIMITS[entry.filename]:
                    raise CheckpointError(
                        f"{path}: {entry.filename}: {entry.file_size:,} bytes, and at most "
                        f"{LIMITS[entry.filename]:,} are expected"
                    )
            return {entry.filename: archive.read(entry) for entry in entries}
    except CheckpointError:
        raise
    # What zipfile raises on damaged directories: encrypted, of a later version, cut off, with impossible numbers.
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            inside = error.filename is not None and Path(error.filename) != path
            reason = f"{f'{Path(error.filename).name}: ' if inside else ''}{error.strerror or reason}"
        raise CheckpointError(f"{path}: cannot be read as a box: {reason}") from None


def _check_names(names: list[str], path: Path) -> None:
    if MANIFEST not in names:
        raise CheckpointError(f"{path}: holds no {MANIFEST}: not a box")
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path}: names a file twice; this one is not a box")
    if extra := sorted(set(names) - LIMITS.keys()):
        raise CheckpointError(f"{path}: {extra[0]} is not part of this box; remove it")


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def _write_folder(path: Path, files: dict[str, bytes]) -> None:
    """Write a whole folder beside its place, then put it there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    try:
        for name, data in files.items():
            write_atomic(fresh / name, data)
        fresh.chmod(0o755)
        if path.exists():
            exchange(fresh, path)
            shutil.rmtree(fresh)
        else:
            fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(fresh)
        raise
