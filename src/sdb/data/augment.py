"""Random crop, mirror and rotation of a whole batch on its device.

The random numbers are drawn on the CPU, for a whole batch at once, from a generator that the caller owns. So
they do not depend on the device, on how many processes share the batch, or on anything else that draws random
numbers.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from sdb.data.splits import Augment


class Draws(NamedTuple):
    """What happens to each image of a batch of B.

    Attributes:
        top: int64 (B,), row of the padded image where the crop starts, in [0, 2 * crop_padding].
        left: int64 (B,), the same for columns.
        flip: bool (B,), whether the image is mirrored.
        degrees: float32 (B,), the angle by which it is turned, anticlockwise.
    """

    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    degrees: torch.Tensor


def draw(augment: Augment, size: int, generator: torch.Generator) -> Draws:
    """Draw for `size` images; always as many numbers, so that switching one change off leaves the others."""
    offsets = torch.randint(0, 2 * augment.crop_padding + 1, (2, size), generator=generator)
    flip = torch.rand(size, generator=generator) < 0.5
    degrees = (2 * torch.rand(size, generator=generator) - 1) * augment.rotation
    return Draws(offsets[0], offsets[1], flip, degrees)


def apply(augment: Augment, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Crop, mirror, turn, in this order.

    Args:
        augment: which of the three are on.
        images: uint8 (B, C, H, W) on any device.
        draws: on the CPU, for the same B images.

    Returns:
        uint8 (B, C, H, W) on the device of `images`.

    Source: crop and mirror as torchvision's RandomCrop(size, padding) and RandomHorizontalFlip; the padding
    is black (pixel value 0, before normalisation). Rotation as its RandomRotation with its defaults: nearest
    pixel, black outside, around the centre.
    """
    if augment.crop_padding or augment.flip:
        images = _crop_and_mirror(images, augment, draws)
    if augment.rotation:
        images = _rotate(images, draws.degrees)
    return images


def _crop_and_mirror(images: torch.Tensor, augment: Augment, draws: Draws) -> torch.Tensor:
    """Take from each padded image a window of the original size, backwards where it is mirrored."""
    count, channels, height, width = images.shape
    device, padding = images.device, augment.crop_padding
    rows = draws.top.to(device)[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    if augment.flip:
        columns = torch.where(draws.flip.to(device)[:, None], columns.flip(1), columns)
    columns = columns + draws.left.to(device)[:, None]
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # in a channel of the padded image
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, places.view(count, 1, -1).expand(-1, channels, -1)).view(images.shape)


def _rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Turn each image by its angle; nearest-pixel sampling copies values, and float32 holds them exactly."""
    _, _, height, width = images.shape
    radians = torch.deg2rad(degrees)
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # From output to input position, in units of half the width and half the height: hence the aspect ratio.
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine * height / width, zero], dim=1),
            torch.stack([sine * width / height, cosine, zero], dim=1),
        ],
        dim=1,
    ).to(images.device)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.to(torch.uint8)
