"""A picture from anywhere to what the model takes; every change that it needed is told."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from sdb.service.limits import Refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow knows more, some of which run other programs
MAX_PIXELS = 2**24  # of a picture, from its header; 16 million take up to 320 MB while they are converted
GREY, COLOUR = "L", "RGB"


def read_picture(data: bytes, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """Decode a picture and fit it to a model.

    Args:
        data: an encoded picture; the first frame of an animation counts.
        image_shape: (C, H, W) that the model takes; C is 1 or 3.

    Returns:
        float32 (1, C, H, W) with pixels in [0, 1], and what was done to the picture, for people.

    Raises:
        Refusal: 415 not a picture, 413 too many pixels, 400 damaged, or the model takes no pictures.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise Refusal(400, f"this model takes {channels} channels, which no picture has: use /v2/models/.../infer")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Refusal(413, f"the picture has more than {MAX_PIXELS} pixels: make it smaller") from None
    except Exception:  # on damaged headers Pillow fails in any way
        raise Refusal(415, f"not a picture: send one of {', '.join(FORMATS)}") from None
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise Refusal(413, f"the picture has {image.width}x{image.height} pixels: make it smaller")
        if image.mode.startswith(("I", "F")):
            raise Refusal(415, f"the picture has more than 8 bits a channel ({image.mode}): convert it first")
        try:
            picture, changes = _fit(image, COLOUR if channels == 3 else GREY, (width, height))
        except Exception:  # and so it does on damaged pixels
            raise Refusal(400, "the picture is damaged or cut off") from None
    pixels = np.asarray(picture, np.float32).reshape(height, width, channels) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), changes


def _fit(image: Image.Image, mode: str, size: tuple[int, int]) -> tuple[Image.Image, list[str]]:
    changes = []
    before = image.mode, image.size
    upright = ImageOps.exif_transpose(image)
    if upright.size != before[1]:
        changes.append("turned as its EXIF data say")
    # Through RGB(A), so that palettes and transparency of every kind end as plain colours on white.
    if upright.mode not in (GREY, COLOUR):
        colours = upright.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        upright = Image.alpha_composite(white, colours).convert(COLOUR)
    if upright.mode != mode:
        upright = upright.convert(mode)
    if before[0] != mode:
        changes.append(f"converted from {before[0]} to {'colour' if mode == COLOUR else 'grey'}")
    if upright.size != size:
        changes.append(f"resized from {upright.width}x{upright.height} to {size[0]}x{size[1]}")
        upright = upright.resize(size, Image.Resampling.BILINEAR)
    return upright, changes
