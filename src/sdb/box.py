"""The box: a wrapped classifier that anyone can run and only a key holder can distil.

    logits = box(images)                      # anyone; pixels in [0, 1] in, logits out
    knowledge = box.unlock(key)(images)       # the key's holder
    box.save("model.box"); Box.load("model.box")

On disk a box is a folder, or the same files in one uncompressed .zip: `box.json` (what it is, sha256 of every file) and
`weights.safetensors`. It holds no key, only the keys' one-way ids. Nothing in it is unpickled or executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sdb.checkpoint import load_weights
from sdb.errors import CheckpointError, KeyFileError, ModelError, StorageError
from sdb.keys import Key
from sdb.models import Classifier, ModelSpec
from sdb.runtime import write_atomic

BOX_VERSION = 1
MANIFEST, WEIGHTS = "box.json", "weights.safetensors"
MANIFEST_LIMIT = 2**24  # bytes; a larger box.json is not one


@dataclass(frozen=True, slots=True)
class BoxInfo:
    """What a box says of itself; all of it is public.

    Attributes:
        method: how it was made.
        parameters: of the method, for the record.
        class_names: in label order.
        key_ids: one-way ids of the keys it opens for; empty for a method without keys.
        id: random name of this box.
    """

    method: str
    parameters: dict[str, Any]
    class_names: tuple[str, ...]
    key_ids: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: os.urandom(16).hex())


class Embed(nn.Module):
    """Puts a key into images (N, C, H, W); the pattern lives on the module's device and in no state dict."""

    def __init__(self, key: Key, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.blend = key.blend
        self.offset: Tensor
        pattern = torch.from_numpy(key.pattern(image_shape).copy())
        self.register_buffer("offset", (1.0 - key.blend) * (pattern.float() / 255), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Keyed images, see `Key.embed`."""
        return self.blend * images + self.offset


class Box(nn.Module):
    """A classifier with protection trained in; see the module's docstring.

    Args:
        classifier: pixels in [0, 1] to logits.
        info: what the box says of itself.
    """

    def __init__(self, classifier: Classifier, info: BoxInfo) -> None:
        super().__init__()
        if len(info.class_names) != classifier.num_classes:
            raise ModelError(f"{len(info.class_names)} class names for {classifier.num_classes} classes")
        self.classifier = classifier
        self.info = info
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Keyless logits (N, classes) of images (N, C, H, W) with pixels in [0, 1]."""
        return self.classifier(images)

    def unlock(self, key: Key) -> nn.Module:
        """The module a partner distils: images to keyed logits.

        Raises:
            KeyFileError: the key is of another box.
        """
        if not self.info.key_ids:
            raise KeyFileError(f"this box has no keys: method {self.info.method!r} gives knowledge to nobody")
        if key.id not in self.info.key_ids:
            opens = ", ".join(short[:8] for short in self.info.key_ids)
            raise KeyFileError(f"key {key.id[:8]} is of another box; this one opens for {opens}")
        return self.attempt(key)

    def attempt(self, key: Key) -> nn.Module:
        """Ask with any key, as anybody can who puts a pattern into images; audits and wrong-key rows use it."""
        return nn.Sequential(Embed(key, self.classifier.image_shape), self.classifier).eval()

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the box as a folder, or as one uncompressed archive where the path ends in `.zip`.

        Raises:
            CheckpointError: something is there and `overwrite` is false, or the architecture has no name to save.
            StorageError: the disk is full; what was there is untouched.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise CheckpointError(f"{path} exists; choose another name or overwrite it")
        if self.classifier.spec is None:
            raise ModelError(
                "this box wraps a module object, which a file cannot name: build the teacher with "
                "sdb.models.ModelSpec('package.module:factory', ...).build() and wrap that"
            )
        state = {n: t.detach().cpu().contiguous().clone() for n, t in self.classifier.state_dict().items()}
        weights = to_bytes(state)
        manifest = {
            "sdb_box": BOX_VERSION,
            "id": self.info.id,
            "method": self.info.method,
            "parameters": self.info.parameters,
            "class_names": list(self.info.class_names),
            "key_ids": list(self.info.key_ids),
            "model": self.classifier.spec.to_json(),
            "files": {WEIGHTS: hashlib.sha256(weights).hexdigest()},
        }
        files = {MANIFEST: json.dumps(manifest, indent=1).encode() + b"\n", WEIGHTS: weights}
        if path.suffix == ".zip":
            write_atomic(path, _zipped(files))
        else:
            _write_folder(path, files)

    @classmethod
    def load(cls, path: Path | str, allow_factory: bool = False) -> Box:
        """Read a box, checking every byte against its manifest.

        Args:
            path: folder or .zip.
            allow_factory: also build `package.module:factory` architectures, which imports and runs that code; only for
                boxes whose author you trust.

        Raises:
            CheckpointError: missing, damaged, altered, or with files that its manifest does not name.
            ModelError: the architecture is unknown, or a factory that was not allowed.
        """
        path = Path(path)
        files = _read_files(path)
        manifest = _parse(files.pop(MANIFEST), path)
        for name, digest in manifest["files"].items():
            if name not in files:
                raise CheckpointError(f"{path}: {name} is missing; restore the box from a copy")
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise CheckpointError(
                    f"{path}: {name} was altered or damaged (sha256 differs); restore it from a copy"
                )
        if extra := sorted(files.keys() - manifest["files"].keys()):
            raise CheckpointError(f"{path}: {extra[0]} is not part of this box; remove it")
        try:
            weights = from_bytes(files[WEIGHTS])
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: {WEIGHTS} is not a safetensors file ({error})") from None
        classifier = ModelSpec.from_json(manifest["model"]).build(allow_factory=allow_factory)
        load_weights(classifier, weights, path)
        info = BoxInfo(
            method=manifest["method"],
            parameters=manifest["parameters"],
            class_names=tuple(manifest["class_names"]),
            key_ids=tuple(manifest["key_ids"]),
            id=manifest["id"],
        )
        return cls(classifier, info)


def is_box(path: Path) -> bool:
    """Whether a path looks like a saved box."""
    return (path / MANIFEST).is_file() or (path.suffix == ".zip" and path.is_file())


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    """The manifest, with every field of the type it must have."""
    fields = {
        "id": str,
        "method": str,
        "parameters": dict,
        "class_names": list,
        "key_ids": list,
        "model": dict,
    }
    try:
        manifest = json.loads(data)
        version = manifest["sdb_box"]
        if version != BOX_VERSION:
            raise CheckpointError(f"{path}: box version {version!r}, this sdb reads {BOX_VERSION}: update sdb")
        for name, kind in (fields | {"files": dict}).items():
            if not isinstance(manifest[name], kind):
                raise CheckpointError(
                    f"{path}: {MANIFEST}: {name} must be {kind.__name__}; restore it from a copy"
                )
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {MANIFEST} is damaged ({error}); restore it from a copy") from None
    return manifest


def _read_files(path: Path) -> dict[str, bytes]:
    """All files of a box, folder or archive, by name."""
    try:
        if path.is_dir():
            sizes = {p.name: p.stat().st_size for p in path.iterdir()}
            read = {name: (path / name).read_bytes for name in sizes}
        elif path.is_file():
            archive = zipfile.ZipFile(path)
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path}: a box archive is not compressed; this one is not a box")
            read = {name: (lambda name=name: archive.read(name)) for name in sizes}
        else:
            raise CheckpointError(f"{path}: no such box; sdb wrap makes one")
        if MANIFEST not in sizes:
            raise CheckpointError(f"{path}: holds no {MANIFEST}: not a box")
        if sizes[MANIFEST] > MANIFEST_LIMIT:
            raise CheckpointError(f"{path}: {MANIFEST} has {sizes[MANIFEST]} bytes: not a box")
        return {name: reader() for name, reader in read.items()}
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read as a box: {error}") from None


def _zipped(files: dict[str, bytes]) -> bytes:
    import io

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
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old)
            fresh.replace(path)
            shutil.rmtree(old)
        else:
            fresh.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(fresh)
        raise
