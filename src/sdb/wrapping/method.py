"""What a way to wrap is made from, and what it is: a `Method`. One file per way; `wrap.METHODS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sdb.box.box import Box, BoxInfo
from sdb.config import WrapSettings
from sdb.data import Augment, Batches, LoaderBatches
from sdb.keys import Key, Owner
from sdb.models import Classifier
from sdb.training.loop import Step
from sdb.training.repeated_views import Ask

# Images that nothing was trained on; None where there are none.
HeldOut = Batches | LoaderBatches | None


@dataclass(frozen=True, eq=False)
class Material:
    """What every method is made from.

    Attributes:
        teachers: frozen, on the device; the first is the one that is wrapped.
        network: begins as the box's public network; trained in place.
        keys: of one kind and one blend; none for method "nasty".
        owner: whose box it is; None without keys.
        settings: of the wrap.
        class_names: in label order.
        augment: what makes another view of an image.
        ask: how a frozen network is asked about batches.
        confusion: mean log-probabilities (C, C) of the first teacher over the training images, row c of class c; None
            where there are none to look at, and then any other class may be a decoy.
    """

    teachers: tuple[Classifier, ...]
    network: Classifier
    keys: tuple[Key, ...]
    owner: Owner | None
    settings: WrapSettings
    class_names: tuple[str, ...]
    augment: Augment
    ask: Callable[[nn.Module], Ask]
    confusion: Callable[[], Tensor] | None

    def info(self, recorded: Sequence[str], **more: Any) -> BoxInfo:
        """What the box will say of itself: the settings named in `recorded`, and `more` of its parameters."""
        image_keys = [key for key in self.keys if key.kind == "image"]
        blend = {"key_blend": image_keys[0].blend} if image_keys else {}
        return BoxInfo(
            self.settings.method,
            {name: getattr(self.settings, name) for name in recorded} | blend | more,
            self.class_names,
            # A weight key's id is listed when its slot is made.
            key_ids=tuple(key.id for key in image_keys),
            key_kind=self.keys[0].kind if self.keys else "",
            owner_id=self.owner.id if self.owner else "",
        )


@dataclass(frozen=True, eq=False)
class Method:
    """One way to wrap, ready to be trained.

    Attributes:
        network: the box's public network; trained.
        step: the named loss terms of a batch, given what to call with images.
        forward: what the step calls: images (N, C, H, W) to the logits that the step expects.
        keyed: images to keyed logits while training goes on; None where there is no key.
        beside: trained with the network and no part of it, the private part of a weight-key box; or None.
        finish: makes the box of the trained network; held-out images show how sure it may be.
    """

    network: Classifier
    step: Step
    forward: nn.Module
    keyed: nn.Module | None
    beside: nn.Module | None
    finish: Callable[[HeldOut], Box]
