"""Trying a network on a few random images, so that what does not fit is refused before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdb.errors import ModelError


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
