"""The door of wrapping: which method, which keys it takes, and a caller's network as a classifier of pixels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.errors import ConfigError, ModelError
from sdb.keys import Key, Owner
from sdb.models import Classifier, from_module
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


def classifier_of(
    network: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A caller's network as a classifier of pixels in [0, 1]; a copy, so that the caller's stays as it is.

    Args:
        network: a classifier already, or any module from images to logits.
        num_classes: of the data.
        image_shape: (C, H, W) of the data.
        mean: per channel, where the network takes normalised pixels.
        std: likewise.

    Raises:
        ConfigError: it is a box, or a classifier that has its normalisation, or one of mean and std is missing.
        ModelError: it is no module, has nothing to train, or does not map such images to `num_classes` logits.
    """
    if isinstance(network, Box):
        raise ConfigError("the network is a box already: give the unprotected network")
    if (mean is None) != (std is None):
        raise ConfigError("mean and std: give both, or none where the network normalises pixels itself")
    if isinstance(network, Classifier):
        if mean is not None:
            raise ConfigError("mean, std: this classifier has its normalisation already; leave both out")
        return network
    if not isinstance(network, nn.Module):
        raise ModelError(f"the network is a {type(network).__name__}: give an nn.Module from images to logits")
    if not any(True for _ in network.parameters()):
        raise ModelError("the network has no parameters: there is nothing to wrap")
    channels = image_shape[0]
    plain = (0.0,) * channels, (1.0,) * channels
    mean, std = plain if mean is None or std is None else (tuple(mean), tuple(std))
    return from_module(copy.deepcopy(network), num_classes, image_shape, mean, std)


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
