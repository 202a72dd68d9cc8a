"""Defences that are trained into a box: Nasty Teacher, the paper's box, and ours with either kind of key."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from sdb.audit.defences.defence import BOX, Defence, Defended, Parts, owner_of
from sdb.box.box import Box
from sdb.config import FitSettings, WrapSettings
from sdb.data import Splits
from sdb.keys import Key, Owner
from sdb.models import Classifier, device_of
from sdb.wrapping.wrap import wrap

PARTNER = "partner"
# (temperature, Nasty Teacher's weight), as published; all other data sets get CIFAR-10's.
PUBLISHED = {"cifar10": (4.0, 0.04), "cifar100": (20.0, 0.005), "tiny_imagenet": (20.0, 0.01)}


def boxed(box: Box, key: Key | None, owner: Owner | None = None, seconds: float = 0.0) -> Defended:
    """A finished box as a defence, for example the one that an audit is about.

    Args:
        box: on its device already.
        key: a partner's; None where the box has no keys, or none is at hand.
        owner: needed to look for the owner's marks.
        seconds: what building it took.

    Raises:
        KeyFileError: the key or the owner is of another box.
    """
    if owner is not None:
        box.check_owner(owner)
    keyed = None if key is None else box.unlock(key).eval()
    return Defended(box.eval(), keyed, box.classifier, key=key, box=box, owner=owner, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class _Wrapped(Defence):
    """A box of a method, made for one partner whose key follows from the seed.

    Attributes:
        public: settings in place of the defence's own: what a given box says of how it was made.
    """

    file = BOX

    public: tuple[tuple[str, Any], ...] = ()

    def changes(self, data: Splits) -> dict[str, Any]:
        """The method and its settings."""
        raise NotImplementedError(f"{type(self).__name__} has no changes")

    def key(self, owner: Owner) -> Key | None:
        """The partner's key; none by default."""
        del owner
        return None

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Box:
        """Wrap."""
        fitted = {name: getattr(settings, name) for name in FitSettings.model_fields}
        owner = owner_of({"settings": fitted})
        key = self.key(owner)
        return wrap(
            teacher,
            data,
            WrapSettings(**fitted | self.changes(data) | dict(self.public)),
            key=key,
            owner=owner if key else None,
            progress=False,
        )

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The box, and its partner's key."""
        if not isinstance(parts, Box):
            raise TypeError("a box is expected, these are tensors")
        box = copy.deepcopy(parts).to(device_of(teacher)).requires_grad_(False)
        owner = owner_of(record)
        key = self.key(owner)
        return boxed(box, key, owner if key else None, record["seconds"])


@dataclass(frozen=True, kw_only=True)
class Nasty(_Wrapped):
    """Right labels, soft outputs as far from the teacher's as they go.

    Attributes:
        disturbance_weight: None for the published one of the data set.
    """

    name = "nasty"
    title = "nasty teacher"
    summary = "Trained to be right and to give soft outputs as unlike the teacher's as possible; no key"
    source = "Ma et al., ICLR 2021; VITA-Group/Nasty-Teacher"

    disturbance_weight: float | None = None

    def changes(self, data: Splits) -> dict[str, Any]:
        """Temperature and weight as published for the data set."""
        temperature, published = PUBLISHED.get(data.name, PUBLISHED["cifar10"])
        weight = published if self.disturbance_weight is None else self.disturbance_weight
        return {"method": "nasty", "temperature": temperature, "disturbance_weight": weight}


@dataclass(frozen=True, kw_only=True)
class PaperBox(_Wrapped):
    """The paper's box with its image key, plain and keyed images in one forward.

    Attributes:
        disturbance_weight: how hard keyless outputs are pushed off; the reference's 1 ruins small networks.
        key_blend: share of the image in a keyed image.
    """

    name = "sdb"
    title = "SDB (paper)"
    summary = "The paper's box: nasty without the key, the teacher's knowledge with it; the key is an image"
    source = "Ye et al., AAAI 2022 (arXiv 2112.03695); JngwenYe/SDB"
    threat_note = "Whoever has the weights can search for the image key."

    disturbance_weight: float = 0.1
    key_blend: float = 0.5

    def changes(self, data: Splits) -> dict[str, Any]:
        """The paper's method, weaker; temperature as published for the data set."""
        temperature, _ = PUBLISHED.get(data.name, PUBLISHED["cifar10"])
        return {"method": "sdb", "temperature": temperature, "disturbance_weight": self.disturbance_weight}

    def key(self, owner: Owner) -> Key:
        """An image key."""
        return owner.partner(PARTNER, "image", self.key_blend)


@dataclass(frozen=True, kw_only=True)
class Decoy(_Wrapped):
    """Our box: keyless answers depend on the class alone; the key opens encrypted weights."""

    name = "decoy"
    title = "decoy box"
    summary = (
        "Ours: without the key one fixed answer per class, with near-tied wrong classes; the key opens weights"
    )
    source = "this project, docs/method.md"

    def changes(self, data: Splits) -> dict[str, Any]:
        """Our method with its defaults."""
        return {"method": "decoy"}

    def key(self, owner: Owner) -> Key:
        """A weight key."""
        return owner.partner(PARTNER, "weight")


@dataclass(frozen=True, kw_only=True)
class DecoyImage(_Wrapped):
    """Our box with the paper's kind of key.

    Attributes:
        key_blend: share of the image in a keyed image.
    """

    name = "decoy_image"
    title = "decoy box, image key"
    summary = "The decoy box with the paper's kind of key, an image blended into the query"
    source = "this project, docs/method.md"
    threat_note = "Whoever has the weights can search for the image key."

    key_blend: float = 0.5

    def changes(self, data: Splits) -> dict[str, Any]:
        """Our method with its defaults."""
        return {"method": "decoy"}

    def key(self, owner: Owner) -> Key:
        """An image key."""
        return owner.partner(PARTNER, "image", self.key_blend)
