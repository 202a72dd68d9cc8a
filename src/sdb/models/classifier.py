"""A network and its normalisation as one module: pixels in [0, 1] in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdb.errors import ModelError

if TYPE_CHECKING:
    from sdb.models import ModelSpec

MAX_CLASSES = 1_000_000
MAX_SIDE = 16_384


class Classifier(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] to logits (N, num_classes).

    The state dict holds `network.*`, `mean` and `std`, so whoever has the weights has the normalisation too.

    Args:
        network: takes normalised images, returns logits or an output object that carries `.logits`.
        mean, std: per channel, of pixels in [0, 1].
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.

    Attributes:
        spec: how to build it again, or None when the network came as a module object.

    Raises:
        ModelError: a size is out of range, or mean or std does not hold one usable number a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        check_sizes(num_classes, image_shape)
        check_normalisation(mean, std, channels=image_shape[0])
        # Channels-last kernels write no transposed copies and pool whole vectors; outputs follow the weights' layout.
        self.network = network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.num_classes = int(num_classes)
        self.image_shape = (int(image_shape[0]), int(image_shape[1]), int(image_shape[2]))
        self.spec: ModelSpec | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W) in [0, 1] and return logits (N, num_classes)."""
        output = self.network((pixels - self.mean) / self.std)
        return output if isinstance(output, Tensor) else output.logits


def from_module(
    module: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """Make a classifier from a network that the caller built, on the device it is on, after trying it once.

    Raises:
        ModelError: the network does not map such images to `num_classes` logits.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model is a {type(module).__name__}: give an nn.Module")
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with device:  # only the normalisation is new; a module may be spread over devices, so it is not moved
        classifier = Classifier(module, mean, std, num_classes, image_shape)
    check(classifier, image_shape, num_classes, device)
    return classifier


def check(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> None:
    """Send two random images through a model, leaving modes, statistics and random state as they were.

    Args:
        model: maps pixels (N, C, H, W) to logits (N, num_classes).
        image_shape: (C, H, W) of one image.
        num_classes: the number of logits expected.
        device: where the model is.

    Raises:
        ModelError: the model fails on such images, or its output is not (2, num_classes).
    """
    # A generator of its own: checking a model must not change what is drawn after it.
    generator = torch.Generator("cpu").manual_seed(0)
    pixels = torch.rand(2, *image_shape, generator=generator, device="cpu").to(device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            output = model(pixels)
    # The network may be anyone's and may raise anything; the cause keeps its traceback.
    except Exception as error:
        raise ModelError(
            f"the model fails on images of shape (C, H, W) = {image_shape}: {type(error).__name__}: {error}: "
            "give it images of the shape it was made for, or build it for this shape"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if given != (2, num_classes):
        raise ModelError(
            f"for 2 images of shape {image_shape} the model returned {given}, expected (2, {num_classes}): "
            "build it for this number of classes (a factory may need it among its arguments)"
        )


def check_sizes(num_classes: int, image_shape: Sequence[int]) -> None:
    """Raise ModelError unless the number of classes and the image shape can be those of a classifier.

    The upper limits keep a damaged or hostile description from overflowing the sizes of tensors.
    """
    if not _is_whole(num_classes, 2, MAX_CLASSES):
        raise ModelError(f"num_classes is {num_classes!r}: give a whole number from 2 to {MAX_CLASSES}")
    if len(image_shape) != 3 or not all(_is_whole(size, 1, MAX_SIDE) for size in image_shape):
        raise ModelError(f"image_shape is {image_shape!r}: give (C, H, W), whole numbers from 1 to {MAX_SIDE}")


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise ModelError unless mean and std hold one number a channel, that float32 can divide by."""
    for field, values, least in (("mean", mean, -1e6), ("std", std, 1e-6)):
        if len(values) != channels:
            raise ModelError(f"{field} has {len(values)} numbers for {channels} channels: give one a channel")
        for value in values:
            # The comparison also refuses NaN, infinities and integers beyond any float.
            if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= 1e6:
                raise ModelError(f"{field} holds {value!r}: give numbers from {least:g} to 1e6")


def _is_whole(value: object, least: int, most: int) -> bool:
    """Whether value is an integer (NumPy's too, not a bool) in [least, most]."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most
