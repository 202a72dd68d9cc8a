"""Random window, crop, mirror and rotation of a whole batch on its device.

The random numbers are drawn on the CPU, for a whole batch at once, from a generator that the caller owns. So
they do not depend on the device, on how many processes share the batch, or on anything else that draws random
numbers.
"""

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from sdb.data.splits import Augment

ASPECT = (3 / 4, 4 / 3)  # of a random window, width to height
TRIES = 10  # windows drawn before the largest one in the middle is taken
CHUNK = 256  # images resampled at once: the places they are read from take 8 bytes per pixel


class Draws(NamedTuple):
    """What happens to each image of a batch of B.

    Attributes:
        top: int64 (B,), row of the padded image where the crop starts, in [0, 2 * crop_padding].
        left: int64 (B,), the same for columns.
        flip: bool (B,), whether the image is mirrored.
        degrees: float32 (B,), the angle by which it is turned, anticlockwise.
        window: float32 (B, 2 * TRIES + 2) in [0, 1), from which `windows` makes the resized crop; (B, 0) where that is
            off.
    """

    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor
    degrees: torch.Tensor
    window: torch.Tensor


def draw(augment: Augment, size: int, generator: torch.Generator) -> Draws:
    """Draw for `size` images; switching one change on or off leaves the draws of the others as they are."""
    offsets = torch.randint(0, 2 * augment.crop_padding + 1, (2, size), generator=generator)
    flip = torch.rand(size, generator=generator) < 0.5
    degrees = (2 * torch.rand(size, generator=generator) - 1) * augment.rotation
    window = torch.rand(size, 2 * TRIES + 2 if augment.resized_crop else 0, generator=generator)
    return Draws(offsets[0], offsets[1], flip, degrees, window)


def apply(augment: Augment, images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Resized crop, crop, mirror, turn, in this order.

    Args:
        augment: which of them are on.
        images: uint8 (B, C, H, W) on any device.
        draws: for the same B images, on the CPU or on the device of `images`.

    Returns:
        uint8 (B, C, H, W) on the device of `images`.

    Source: crop and mirror as torchvision's RandomCrop(size, padding) and RandomHorizontalFlip; the padding
    is black (pixel value 0, before normalisation). Rotation as its RandomRotation with its defaults: nearest
    pixel, black outside, around the centre. Resized crop as its RandomResizedCrop, bilinear; a window is never larger
    than the image that it becomes, so there is nothing for antialiasing to do.
    """
    draws = Draws(*(moved(drawn, images.device) for drawn in draws))
    if augment.resized_crop:
        _, _, height, width = images.shape
        boxes = windows(augment.resized_crop, draws.window, height, width)
        parts = zip(images.split(CHUNK), boxes.split(CHUNK), strict=True)
        images = torch.cat([_enlarge(part, box) for part, box in parts]) if len(images) else images
    if augment.crop_padding or augment.flip:
        images = _crop_and_mirror(images, augment, draws)
    if augment.rotation:
        images = _rotate(images, draws.degrees)
    return images


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; from pinned memory, so that nobody waits for what the device does before."""
    if device.type == "cuda" and tensor.device.type == "cpu" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def windows(areas: tuple[float, float], drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The window of each image: int64 (B, 4), top, left, height and width in whole pixels.

    Args:
        areas: least and largest share of the area.
        drawn: (B, 2 * TRIES + 2), uniform: an area and an aspect for each try, and a place.
        height: of the image.
        width: of the image.

    Source: torchvision's RandomResizedCrop: area uniform, aspect uniform in its logarithm, the first of ten that fit,
    else the largest window in the middle with an allowed aspect.
    """
    drawn = drawn.double()
    area = height * width * (areas[0] + drawn[:, :TRIES] * (areas[1] - areas[0]))
    low, high = (math.log(aspect) for aspect in ASPECT)
    aspect = (low + drawn[:, TRIES : 2 * TRIES] * (high - low)).exp()
    widths, heights = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    # One more try, which always fits.
    ratio = min(max(width / height, ASPECT[0]), ASPECT[1])
    last = min(height, round(width / ratio)), min(width, round(height * ratio))
    heights, widths = (
        F.pad(sizes, (0, 1), value=size) for sizes, size in zip((heights, widths), last, strict=True)
    )
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    first = fits.long().argmax(dim=1, keepdim=True)
    size = torch.cat([heights.gather(1, first), widths.gather(1, first)], dim=1)
    room = torch.stack([height - size[:, 0], width - size[:, 1]], dim=1)
    place = (drawn[:, 2 * TRIES :] * (room + 1)).long()
    return torch.cat([torch.where(first == TRIES, room // 2, place), size], dim=1)


def _enlarge(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Bring a window of each image to the image's size: bilinear, and nothing from outside the window."""
    _, _, height, width = images.shape

    def places(start: torch.Tensor, length: torch.Tensor, full: int) -> torch.Tensor:
        """Where on an axis the pixels are read, (B, full), in -1..1 from the first pixel to the last."""
        steps = (torch.arange(full, dtype=torch.float64, device=images.device) + 0.5) * (length / full)[
            :, None
        ] - 0.5
        inside = torch.minimum(steps.clamp(min=0), (length - 1)[:, None]) + start[:, None]
        return (2 * inside / max(full - 1, 1) - 1).float()

    top, left, high, wide = boxes.double().unbind(dim=1)
    rows, columns = places(top, high, height), places(left, wide, width)
    grid = torch.stack(
        [columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=3
    )  # (B, H, W, 2)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.round().to(torch.uint8)


def _crop_and_mirror(images: torch.Tensor, augment: Augment, draws: Draws) -> torch.Tensor:
    """Take from each padded image a window of the original size, backwards where it is mirrored."""
    count, channels, height, width = images.shape
    device, padding = images.device, augment.crop_padding
    rows = draws.top[:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    if augment.flip:
        columns = torch.where(draws.flip[:, None], columns.flip(1), columns)
    columns = columns + draws.left[:, None]
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
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return turned.to(torch.uint8)
