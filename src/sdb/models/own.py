"""A network of the caller's own as a classifier of pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from sdb.errors import ConfigError, ModelError
from sdb.models.classifier import Classifier, from_module
from sdb.models.weights import device_of


def classifier_of(
    network: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    copied: bool = True,
) -> Classifier:
    """A caller's network as a classifier of pixels in [0, 1].

    Args:
        network: a classifier already, or any module from images to logits.
        num_classes: of the data.
        image_shape: (C, H, W) of the data.
        mean: per channel, where the network takes normalised pixels.
        std: per channel, the deviation.
        copied: leave the caller's network as it is; else it becomes part of the classifier.

    Raises:
        ConfigError: it is a classifier, which has its normalisation, or one of mean and std is missing.
        ModelError: it is no module, has nothing to train, or does not map such images to `num_classes` logits.
    """
    if (mean is None) != (std is None):
        raise ConfigError("mean and std: give both, or none where the network normalises pixels itself")
    if isinstance(network, Classifier):
        if mean is not None:
            raise ConfigError("mean, std: this classifier has its normalisation already; leave both out")
        return network
    if not isinstance(network, nn.Module):
        raise ModelError(f"the network is a {type(network).__name__}: give an nn.Module from images to logits")
    if not any(True for _ in network.parameters()):
        raise ModelError("the network has no parameters: there is nothing to train")
    channels = image_shape[0]
    plain = (0.0,) * channels, (1.0,) * channels
    mean, std = plain if mean is None or std is None else (tuple(mean), tuple(std))
    return from_module(copy.deepcopy(network) if copied else network, num_classes, image_shape, mean, std)


@torch.no_grad()
def outputs_of(network: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """How many logits a network gives for images of that shape; None where it fails or does not say."""
    if not isinstance(network, nn.Module):
        return None
    copied = copy.deepcopy(network).eval().float()
    try:
        output = copied(torch.zeros(2, *image_shape, device=device_of(copied)))
    except Exception:  # anybody's code; `classifier_of` asks again and says what is wrong
        return None
    first = output[0] if isinstance(output, tuple) and output else getattr(output, "logits", output)
    first = first.get("logits") if isinstance(first, dict) else first
    return first.shape[1] if isinstance(first, torch.Tensor) and first.dim() == 2 else None
