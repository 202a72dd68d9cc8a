"""What every defence is: a frozen set of parameters, how it is built once, and what it then answers to whom.

defence = DEFENCES["decoy"]
built = defence.built(teacher, data, settings)                      # trains what must be trained
defended = defence.open(teacher, built.parts, built.record)         # defended.keyless(images), defended.keyed(images)

`build` and `load` do the same by a folder, and train nothing twice.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sdb.box.box import Box
from sdb.config import FitSettings
from sdb.data import Splits
from sdb.errors import CheckpointError, RunExistsError
from sdb.keys import Key, Owner
from sdb.models import MODULE, Classifier
from sdb.models.checkpoint import read_tensors, write_tensors
from sdb.runtime import (
    JSON_LIMIT,
    choose_device,
    derive_seed,
    folder_lock,
    json_text,
    parse_json,
    read_bytes,
    write_atomic,
)

SCHEMA = 1
BOX = "box"
# Written last: a folder without it holds a build that was interrupted.
DONE = "defence.json"
FIELDS: dict[str, type] = {
    "name": str,
    "parameters": dict,
    "settings": dict,
    "teacher": str,
    "data": dict,
    "seconds": float,
}
# The most that users of a defended model get for an image, from least to most.
Gives = Literal["labels", "top_k", "probabilities", "logits"]


# What a defence trained: a box, or tensors by name; none where it trains nothing.
Parts = Box | dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """What `Defence.built` made of a teacher.

    Attributes:
        parts: what was trained.
        record: all that it depends on; its settings' seed gives keys again.
    """

    parts: Parts
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Defended:
    """A defended teacher, ready to be asked; all modules are in eval mode on the teacher's device.

    Attributes:
        keyless: images (N, C, H, W) in [0, 1] to logits (N, K), as anybody gets them. Where the defence makes
            probabilities, their logarithms, which are logits of the same probabilities.
        keyed: the same for a holder of the key; None where there is no key.
        network: what there is when the weights are shipped. Their holder cuts off whatever is done to outputs, so this
            is the trained network without it.
        interface: the most that users of `keyless` get.
        top_k: classes that an answer names, with interface "top_k".
        key: a partner's key; None where there is none, or where it is a matter of the server's log-in alone.
        box: the box, where it is one.
        owner: whose box it is.
        seconds: what building took.
    """

    keyless: nn.Module
    keyed: nn.Module | None
    network: nn.Module
    interface: Gives = "logits"
    top_k: int = 0
    key: Key | None = None
    box: Box | None = None
    owner: Owner | None = None
    seconds: float = 0.0

    @property
    def blend(self) -> float | None:
        """Share of the image in a keyed image; None without an image key."""
        return self.key.blend if self.key is not None and self.key.kind == "image" else None


@dataclass(frozen=True, kw_only=True)
class Defence:
    """Base of all defences; a subclass adds its parameters, `make` where it trains something, and `open`.

    Attributes:
        name: as the command line and the report have it.
        title: for the head of a column.
        summary: one line for somebody who has not read the paper.
        source: paper, or repository and file.
        threat_note: what the defence cannot do by its nature, for the report; may be empty.
        file: of what `make` trained, in a build's folder: `BOX` holds a box, another tensors; none where nothing is.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    threat_note: ClassVar[str] = ""
    file: ClassVar[str] = ""

    def built(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Built:
        """Train what must be trained; the same arguments give the same answers later.

        Args:
            teacher: trained; not changed.
            data: test images are not looked at.
            settings: how networks are trained; keys and decoys follow from its seed too, so they are no secrets.

        Raises:
            ModelError: the defence cannot be made of such a teacher.
        """
        started = time.perf_counter()
        device = choose_device(settings.device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(settings.seed, "defence", self.name))
            parts = self.make(teacher, data, settings)
        described = self._description(teacher, data, settings)
        return Built(parts, {"schema": SCHEMA, **described, "seconds": time.perf_counter() - started})

    def build(self, teacher: Classifier, data: Splits, settings: FitSettings, folder: Path) -> None:
        """As `built`, kept in a folder; nothing where that is done already.

        What an interrupted build left is built again.

        Args:
            teacher: as in `built`.
            data: the same.
            settings: the same.
            folder: made if missing; one for each defence, teacher and seed.

        Raises:
            RunExistsError: the folder holds a build with other parameters, settings, data or teacher, or another
                process is writing there.
        """
        wanted = self._description(teacher, data, settings)
        if self._is_done(folder, wanted):
            return
        with folder_lock(folder):
            built = self.built(teacher, data, settings)
            if isinstance(built.parts, Box):
                built.parts.cpu().save(folder / self.file, overwrite=True)
            elif self.file:
                write_tensors(folder / self.file, built.parts, {"defence": self.name})
            write_atomic(folder / DONE, json_text(built.record, indent=1).encode() + b"\n")

    def load(self, teacher: Classifier, folder: Path) -> Defended:
        """What `build` made of this teacher.

        Raises:
            CheckpointError: it was not finished, is damaged, or is of another defence or teacher.
        """
        record = read_done(folder)
        if record["name"] != self.name or record["parameters"] != self.parameters():
            raise CheckpointError(
                f"{folder}: holds defence {record['name']!r} with parameters {record['parameters']}, not "
                f"{self.name!r} with {self.parameters()}; build it in a folder of its own"
            )
        if record["teacher"] != digest_of(teacher):
            raise CheckpointError(
                f"{folder}: built for another teacher; load that one, or build in another folder"
            )
        parts: Parts = {}
        if self.file == BOX:
            parts = Box.load(folder / BOX, network=network_for(teacher))
        elif self.file:
            parts = read_tensors(folder / self.file)[0]
        return self.open(teacher, parts, record)

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Parts:
        """Train; by default there is nothing to do. Runs under a random state of its own."""
        del teacher, data, settings
        return {}

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """What `make` trained, as it is asked.

        Args:
            teacher: not changed.
            parts: what `make` gave; not changed.
            record: what was asked for, see `Built`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no open")

    def parameters(self) -> dict[str, Any]:
        """The defence's own parameters, JSON values, for the record."""
        return json.loads(json_text({each.name: getattr(self, each.name) for each in fields(self)}))

    def _description(self, teacher: Classifier, data: Splits, settings: FitSettings) -> dict[str, Any]:
        """All that a build depends on."""
        # Where it runs may change; how it is trained may not.
        kept = {name: getattr(settings, name) for name in FitSettings.model_fields if name != "device"}
        labels = hashlib.sha256(data.train.labels.tobytes()).hexdigest()[:16]
        return {
            "name": self.name,
            "parameters": self.parameters(),
            "settings": json.loads(json_text(kept)),
            "teacher": digest_of(teacher),
            "data": {"name": data.name, "train": len(data.train), "labels": labels},
        }

    def _is_done(self, folder: Path, wanted: dict[str, Any]) -> bool:
        """Whether the very same build is complete."""
        if not (folder / DONE).exists():
            return False
        record = read_done(folder)
        changed = [name for name in wanted if record[name] != wanted[name]]
        if changed:
            raise RunExistsError(
                f"{folder}: holds a defence built with another {' and '.join(changed)}; choose another folder"
            )
        return True


def read_done(folder: Path) -> dict[str, Any]:
    """What a finished build says of itself.

    Raises:
        CheckpointError: not finished, or damaged.
    """
    path = folder / DONE
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no finished defence; build it first")
    try:
        record = parse_json(read_bytes(path, JSON_LIMIT), finite=False)
        if record["schema"] != SCHEMA:
            raise CheckpointError(f"{path}: schema {record['schema']!r}, this sdb reads {SCHEMA}: build it again")
        if wrong := [name for name, kind in FIELDS.items() if not isinstance(record[name], kind)]:
            raise TypeError(f"{wrong[0]} is not of its type")
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged ({error}); remove the folder and build it again") from None
    return record


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's weights, shortened: tells one teacher from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"\0{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def network_for(classifier: Classifier) -> nn.Module | str | None:
    """What it takes to read a network of the same architecture from a file: see `sdb.models.checkpoint.build_with`."""
    name = classifier.spec.name
    if name == MODULE:
        return copy.deepcopy(classifier.network)
    # A factory's network is read again only where the teacher comes from that factory too.
    return name if ":" in name else None


def tensors_of(parts: Parts) -> dict[str, Tensor]:
    """Parts that are tensors."""
    if isinstance(parts, Box):
        raise TypeError("tensors are expected, this is a box")
    return parts


def owner_of(record: dict[str, Any]) -> Owner:
    """The owner of an audit's own boxes. Follows from the seed, so that an audit comes out the same twice."""
    return Owner(derive_seed(record["settings"]["seed"], "owner").to_bytes(32, "big"))
