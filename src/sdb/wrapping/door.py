"""The door of wrapping: which method, which keys it takes, and a caller's network as a classifier of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import Data, LoaderSplits, Splits, as_data
from sdb.errors import ConfigError, ModelError
from sdb.keys import Key, Owner
from sdb.models import Classifier
from sdb.models.own import classifier_of, outputs_of
from sdb.wrapping.image_key import image_key
from sdb.wrapping.method import Material, Method
from sdb.wrapping.nasty import nasty
from sdb.wrapping.paper import paper
from sdb.wrapping.weight_key import weight_key

# (method of the settings, kind of key) -> how it is made.
METHODS: dict[tuple[str, str], Callable[[Material], Method]] = {
    ("decoy", "weight"): weight_key,
    ("decoy", "image"): image_key,
    ("sdb", "image"): paper,
    ("nasty", ""): nasty,
}
# Heights (and widths) of images that a network is tried on where nobody says its shape, the usual ones first.
SIDES = (32, 28, 224, 64, 48, 96, 128, 256, 16, 8, 299, 384)


def classifier_and_data(
    network: nn.Module, data: Data, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Splits | LoaderSplits, Classifier]:
    """A caller's data and network, fitting each other; see `sdb.data.as_data` and `sdb.models.own`.

    How many classes there are is the network's to say: a loader's labels do not tell of a class without images.
    """
    if isinstance(network, Box):
        raise ConfigError("the network is a box already: give the unprotected network")
    known = network.num_classes if isinstance(network, Classifier) else None
    found = as_data(data, known, mean=mean, std=std)
    asked = outputs_of(network, found.image_shape)
    if asked not in (None, found.num_classes):
        found = as_data(data, asked, mean=mean, std=std)
    return found, classifier_of(network, found.num_classes, found.image_shape, mean, std)


def guess_shape(
    network: nn.Module, num_classes: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[int, int, int]:
    """A shape (C, H, W) of images that the network takes, found by trying; the first batch corrects it.

    Raises:
        ConfigError: none of the usual ones does.
        ModelError: it is no network for images.
    """
    if isinstance(network, Classifier):
        return network.image_shape
    if not isinstance(network, nn.Module):
        raise ModelError(f"the network is a {type(network).__name__}: give an nn.Module from images to logits")
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    channels = (first.in_channels,) if first is not None else (len(mean),) if mean is not None else (3, 1)
    problem: Exception | None = None
    for count in channels:
        for side in SIDES:
            shape = (count, side, side)
            try:
                with torch.random.fork_rng(devices=[]):
                    classifier_of(network, num_classes, shape, mean, std)
                return shape
            except ModelError as error:
                problem = problem or error
    raise ConfigError(f"image_shape: none of the usual shapes fits this network; give (C, H, W) ({problem})")


def check_keys(keys: Sequence[Key], owner: Owner | None, settings: WrapSettings) -> None:
    """Refuse keys that the method cannot use.

    Raises:
        ConfigError: saying which and why.
    """
    method = settings.method
    if method == "nasty":
        if keys:
            raise ConfigError("method 'nasty' has no key: leave key out")
        return
    if not keys:
        raise ConfigError(f"method {method!r} needs a key: make one with Key.generate() or sdb key new")
    if any(not isinstance(key, Key) for key in keys):
        given = next(key for key in keys if not isinstance(key, Key))
        raise ConfigError(f"key: a {type(given).__name__}; give a Key: Key.generate(), or owner.partner(name)")
    if len({(key.kind, key.blend if key.kind == "image" else None) for key in keys}) > 1:
        raise ConfigError("the keys of one box are of one kind and one blend")
    if method == "sdb" and (len(keys) > 1 or keys[0].kind != "image"):
        raise ConfigError(
            "method 'sdb' takes one image key; use method='decoy' for weight keys and for many partners"
        )
    if settings.private_part == "whole" and (method != "decoy" or keys[0].kind != "weight"):
        raise ConfigError(
            "private_part 'whole' is for method 'decoy' with weight keys: leave it out, or take those"
        )
    if len(keys) > 1 and owner is None:
        raise ConfigError("a box for several partners needs its owner: Owner.generate(), then owner.partner(name)")
