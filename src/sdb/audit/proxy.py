"""Images of another kind, for thieves that have none of the right one: letters, drawn with Pillow's own font.

They need no download, fit any image size, and are to handwritten digits what another data set is to photographs: images
of a related kind that the victim never saw. For colour images each letter and each ground has a colour of its own.
"""

from __future__ import annotations

import string

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdb.data import ImageSet

LETTERS = string.ascii_letters
SCALE = 4  # drawn larger, then made small, for grey edges
NAME = "letters drawn in Pillow's font, sizes, places and angles at random"


def letters(count: int, image_shape: tuple[int, int, int], seed: int) -> ImageSet:
    """Draw letters.

    Args:
        count: images.
        image_shape: (C, H, W).
        seed: of letters, sizes, places, angles and colours.

    Returns:
        uint8 (count, C, H, W); the labels say which letter, and no attack may take them for classes.
    """
    channels, height, width = image_shape
    rng = np.random.default_rng(seed)
    side = SCALE * max(height, width)
    images = np.empty((count, channels, height, width), np.uint8)
    labels = rng.integers(0, len(LETTERS), count)
    for number, label in enumerate(labels):
        drawn = Image.new("L", (side, side))
        size = int(side * rng.uniform(0.7, 1.3))
        place = tuple(side * (0.5 + rng.uniform(-0.15, 0.15, 2)))
        font = ImageFont.load_default(size)
        ImageDraw.Draw(drawn).text(place, LETTERS[label], fill=255, font=font, anchor="mm")
        drawn = drawn.rotate(rng.uniform(-25, 25)).resize((width, height), Image.Resampling.BOX)
        shape = np.asarray(drawn, np.float32)[None] / 255
        if channels == 1:
            images[number] = (255 * shape).round()
        else:
            ink, audit_seed = rng.uniform(0, 255, (2, channels, 1, 1))
            images[number] = (shape * ink + (1 - shape) * audit_seed).round()
    return ImageSet(images, labels.astype(np.int64))
