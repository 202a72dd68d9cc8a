"""A picture from anywhere to what the model takes, as its training images were; every change is told."""

from __future__ import annotations

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data.pictures import SERVED, PictureError, read
from sdb.service.limits import Refusal

MAX_PIXELS = 2**24  # of a picture, from its header; 16 million take up to 320 MB while they are converted
STATUS = {"unknown": 415, "large": 413, "damaged": 400}


def read_picture(
    data: bytes, image_shape: tuple[int, int, int], choices: Pictures = DEFAULT_PICTURES
) -> tuple[np.ndarray, list[str]]:
    """Decode a picture and fit it to a model.

    Args:
        data: an encoded picture; the first frame of an animation counts.
        image_shape: (C, H, W) that the model takes; C is 1 or 3.
        choices: how pictures become pixels for the model.

    Returns:
        float32 (1, C, H, W) with pixels in [0, 1], whole 255ths, and what was done to the picture, for people.

    Raises:
        Refusal: 415 not a picture, 413 too many pixels, 400 damaged, or the model takes no pictures.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise Refusal(400, f"this model takes {channels} channels, which no picture has: use /v2/models/.../infer")
    try:
        picture = read(data, channels, choices, (width, height), formats=SERVED, max_pixels=MAX_PIXELS)
    except PictureError as error:
        raise Refusal(STATUS[error.reason], f"the picture is refused: {error}") from None
    pixels = picture.pixels.astype(np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), picture.changes
