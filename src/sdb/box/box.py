"""The box: a wrapped classifier that anyone can run and only a key holder can distil.

    logits = box(images)                      # anyone; pixels in [0, 1] in, logits out
    knowledge = box.unlock(key)(images)       # the key's holder
    box.save("model.box"); Box.load("model.box")

On disk a box is a folder, or the same files in one .zip (`sdb.box.boxfile`): `box.json`, `weights.safetensors`,
and, encrypted, the private part of a weight-key box and the owner's record. It holds no key, only one-way ids. Each
partner has a slot: the secret that opens the private part, encrypted under that partner's key. Nothing in a box is
unpickled or executed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sdb.answers.rows import Rows
from sdb.box.boxfile import PRIVATE, RECORD, WEIGHTS, read_box_files, write_box_files
from sdb.box.info import BoxInfo, levels_of, measurements
from sdb.box.private_part import put_in_place
from sdb.box.summary import summary
from sdb.config import MANIFEST, is_box
from sdb.errors import CheckpointError, ConfigError, KeyFileError, ModelError
from sdb.keys import Key, Owner, derive
from sdb.keys.sealing import seal, unseal
from sdb.models import Classifier, ModelSpec
from sdb.models.checkpoint import build_with
from sdb.runtime import json_text

# What the fixed rows and the edges between their levels are called in the weights' file.
ROWS, EDGES = "answers", "edges"

__all__ = ["MANIFEST", "WEIGHTS", "Box", "BoxInfo", "Embed", "is_box"]


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
        private: the encrypted private part of a weight-key box.
        record: the owner's encrypted record.
        rows: with them the box gives the row of its class and level of confidence, always the same, so that its
            answers say no more than these. None gives the network's own logits.

    Raises:
        ModelError: class names or rows do not fit the classifier.
    """

    def __init__(
        self,
        classifier: Classifier,
        info: BoxInfo,
        private: bytes | None = None,
        record: bytes | None = None,
        rows: Rows | None = None,
    ) -> None:
        super().__init__()
        classes = classifier.num_classes
        if len(info.class_names) != classes:
            raise ModelError(f"{len(info.class_names)} class names for {classes} classes")
        if rows is not None and rows.classes != classes:
            raise ModelError(f"rows of {rows.classes} classes for {classes} classes")
        self.rows = rows
        self.classifier = classifier
        self.classifier.class_names = info.class_names  # also of what is opened from it
        self.info = info
        self.private = private
        self.record = record
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Keyless logits (N, classes) of images (N, C, H, W) with pixels in [0, 1]."""
        logits = self.classifier(images)
        return logits if self.rows is None else self.rows(logits)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any, **named: Any) -> None:
        """Also take fixed rows where this box has none yet; where it has some, a state without them is incomplete.

        Raises:
            ModelError: they do not fit the classifier.
        """
        table, edges = (state_dict.get(f"{prefix}rows.{name}") for name in ("rows", "edges"))
        if self.rows is None and table is not None and edges is not None:
            rows = Rows(table.clone(), edges.clone()).to(self.classifier.mean.device)
            if rows.classes != self.classifier.num_classes:
                raise ModelError(f"rows of {rows.classes} classes for {self.classifier.num_classes} classes")
            self.rows = rows
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def summary(self) -> str:
        """The box in a few lines: accuracy, calibration, what an answer tells, what is promised."""
        return summary(self.info, self.classifier, self.rows)

    def unlock(self, key: Key) -> nn.Module:
        """The module a partner distils: images to keyed logits.

        Raises:
            KeyFileError: the key is of another box.
            CheckpointError: the partner's slot or the private part was altered.
        """
        if not self.info.key_ids:
            raise KeyFileError(f"this box has no keys: method {self.info.method!r} gives knowledge to nobody")
        if key.id not in self.info.key_ids:
            opens = ", ".join(short[:8] for short in self.info.key_ids[:4])
            raise KeyFileError(f"key {key.id[:8]} is of another box; this one opens for {opens}")
        if key.kind == "image":
            return self.attempt(key)
        try:
            slot = bytes.fromhex(self.info.slots.get(key.id, ""))
        except ValueError:
            slot = b""  # altered: opening it fails below and says so
        content = unseal(self._slot_secret(key), slot, self._context(f"slot/{key.id}"), "the key's slot")
        return self._open_private(content)

    def attempt(self, key: Key) -> nn.Module:
        """Ask with any key, as anybody can; audits and wrong-key rows use it.

        A foreign image key is put into the images; a foreign weight key opens nothing and gets keyless answers.
        """
        if key.kind == "weight":
            return self.unlock(key) if key.id in self.info.key_ids else self
        embed = Embed(key, self.classifier.image_shape).to(self.classifier.mean.device)
        return nn.Sequential(embed, self.classifier).eval()

    def add_partner(self, key: Key, owner: Owner) -> Self:
        """The same box with a slot for one more partner; needs the owner, not the data.

        Raises:
            ConfigError: the box or the key is not of the weight kind.
            KeyFileError: the owner is another's.
        """
        if self.info.key_kind != "weight" or key.kind != "weight":
            raise ConfigError("a partner can be added to a weight-key box; an image key is trained in: wrap again")
        self.check_owner(owner)
        slots = {**self.info.slots, key.id: self._slot(key, owner)}
        ids = tuple(dict.fromkeys([*self.info.key_ids, key.id]))
        info = replace(self.info, slots=slots, key_ids=ids)
        return type(self)(self.classifier, info, self.private, self.record, self.rows)

    def lock(
        self, private: dict[str, Tensor] | None, record: dict[str, Any], keys: list[Key], owner: Owner
    ) -> Self:
        """The same network as a finished box: private part and record encrypted, one slot a key."""
        content = self._content_secret(owner)
        box = type(self)(
            self.classifier,
            self.info,
            None if private is None else seal(content, to_bytes(private), self._context("private")),
            seal(
                derive(owner.secret, f"record/{self.info.id}"),
                json_text(record).encode(),
                self._context("record"),
            ),
            self.rows,
        )
        if private is not None:
            for key in keys:
                box = box.add_partner(key, owner)
        return box

    def owner_record(self, owner: Owner) -> dict[str, Any]:
        """What the owner keeps in the box for itself: decoys and their candidates.

        Raises:
            KeyFileError: the owner is another's.
            CheckpointError: there is none, or it was altered.
        """
        self.check_owner(owner)
        if self.record is None:
            raise CheckpointError(f"this box holds no owner's record: method {self.info.method!r} leaves no mark")
        secret = derive(owner.secret, f"record/{self.info.id}")
        return json.loads(unseal(secret, self.record, self._context("record"), "the owner's record"))

    def check_owner(self, owner: Owner) -> None:
        """Refuse somebody else's owner file.

        Raises:
            KeyFileError: naming both ids.
        """
        if owner.id != self.info.owner_id:
            raise KeyFileError(
                f"owner {owner.id[:8]} does not own this box, {self.info.owner_id[:8] or 'nobody'} does"
            )

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the box as a folder, or as one uncompressed archive where the path ends in `.zip`.

        Raises:
            CheckpointError: something is there that is not a box, or `overwrite` is false.
            StorageError: the disk is full; what was there is untouched.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise CheckpointError(f"{path} exists; choose another name or overwrite it")
        if path.exists() and not is_box(path):
            raise CheckpointError(f"{path} is not a box, so a box does not overwrite it; choose another name")
        state = {n: t.detach().cpu().contiguous().clone() for n, t in self.classifier.state_dict().items()}
        if self.rows is not None:
            state |= {ROWS: self.rows.rows.cpu().clone(), EDGES: self.rows.edges.cpu().clone()}
        files = {WEIGHTS: to_bytes(state)}
        files |= {n: data for n, data in ((PRIVATE, self.private), (RECORD, self.record)) if data is not None}
        manifest = {
            "id": self.info.id,
            "method": self.info.method,
            "parameters": self.info.parameters,
            "class_names": list(self.info.class_names),
            "key_kind": self.info.key_kind,
            "key_ids": list(self.info.key_ids),
            "slots": self.info.slots,
            "owner_id": self.info.owner_id,
            "measured": self.info.measured,
            "levels": [asdict(level) for level in self.info.levels],
            "model": self.classifier.spec.to_json(),
        }
        write_box_files(path, manifest, files)

    @classmethod
    def load(cls, path: Path | str, network: nn.Module | str | None = None) -> Self:
        """Read a box, checking every byte against its manifest.

        Args:
            path: folder or .zip.
            network: what the file cannot make itself: an instance of the class that was wrapped, or the name of a
                factory that you trust, package.module:factory, which is imported and run. A known architecture
                needs none.

        Raises:
            CheckpointError: missing, damaged, altered, or with files that its manifest does not name.
            ModelError: the architecture is unknown, or one that `network` must bring.
        """
        path = Path(path)
        manifest, files = read_box_files(path)
        try:
            weights = from_bytes(files[WEIGHTS])
        except (SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: {WEIGHTS} is not a safetensors file ({error})") from None
        rows, edges = weights.pop(ROWS, None), weights.pop(EDGES, None)
        if rows is not None and rows.dim() == 2:  # of an sdb without levels
            rows = rows.unsqueeze(1)
        classifier = build_with(ModelSpec.from_json(manifest["model"]), weights, path, network)
        names = ("method", "parameters", "key_kind", "slots", "owner_id", "id")
        lists = {name: tuple(manifest[name]) for name in ("class_names", "key_ids")}
        measured = measurements(manifest.get("measured", {}), path)
        levels = levels_of(manifest.get("levels", []), path)
        info = BoxInfo(**{name: manifest[name] for name in names}, **lists, measured=measured, levels=levels)
        answers = None if rows is None else Rows(rows, edges)
        return cls(classifier, info, files.get(PRIVATE), files.get(RECORD), answers)

    def _context(self, purpose: str) -> dict[str, Any]:
        """What a sealed part is bound to: this box, its classes and its architecture."""
        return {
            "box": self.info.id,
            "purpose": purpose,
            "method": self.info.method,
            "class_names": list(self.info.class_names),
            "model": self.classifier.spec.to_json(),
        }

    def _content_secret(self, owner: Owner) -> bytes:
        return derive(owner.secret, f"content/{self.info.id}")

    def _slot_secret(self, key: Key) -> bytes:
        return derive(key.secret, f"slot/{self.info.id}")

    def _slot(self, key: Key, owner: Owner) -> str:
        return seal(self._slot_secret(key), self._content_secret(owner), self._context(f"slot/{key.id}")).hex()

    def _open_private(self, content: bytes) -> Classifier:
        if self.private is None:
            raise CheckpointError(f"{PRIVATE} is missing from this box; restore it from a copy")
        data = unseal(content, self.private, self._context("private"), "the private part")
        return put_in_place(self.classifier, from_bytes(data))
