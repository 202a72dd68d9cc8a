"""The encoded images (JPEG, PNG, ...) of a data set to uint8 arrays of one size."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data import pictures
from sdb.data.pictures import PictureError
from sdb.errors import DataError
from sdb.runtime import json_text

CHUNK = 512  # images decoded between two writes to the cache
GREY_MODES = ("L", "1", "LA")
DECODING = 2  # of the rules in `sdb.data.pictures`: another number decodes again what is in the cache
PEEK = 64  # images looked at to tell a grey set from a coloured one


def decode(
    data: bytes, channels: int, where: str, size: int | None = None, choices: Pictures = DEFAULT_PICTURES
) -> np.ndarray:
    """Decode one image of a data set.

    Args:
        data: the encoded image.
        channels: 3 (grey images are repeated) or 1.
        where: what to call the image in an error.
        size: side of the square that the image is brought to. None leaves it as it is.
        choices: how transparency, turns and other sizes are dealt with.

    Returns:
        uint8 (H, W, channels), or (size, size, channels).

    Raises:
        DataError: not an image, damaged, too many pixels, or a coloured image in a grey set.
    """
    try:
        picture = pictures.read(data, channels, choices, None if size is None else (size, size))
    except PictureError as error:
        raise DataError(f"{where}: {error}") from error
    if channels == 1 and not grey(picture.mode):
        raise DataError(f"{where}: a coloured image ({picture.mode}) in a grey set: convert all to one kind")
    return picture.pixels


def settings(channels: int, size: int | None, choices: Pictures) -> str:
    """How images are decoded, in words that change when the result would."""
    return f"decoding={DECODING} channels={channels} size={size} {json_text(asdict(choices), sort_keys=True)}"


def grey(mode: str) -> bool:
    """Whether an image of this mode of Pillow has no colours."""
    return mode in GREY_MODES or mode.startswith("I")


def decode_all(
    items: Iterable[tuple[bytes, int, str]],
    channels: int,
    size: int | None = None,
    choices: Pictures = DEFAULT_PICTURES,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode many images of one size, a chunk at a time.

    Args:
        items: (encoded image, label, what to call it).
        channels: 1 or 3.
        size: as in `decode`.
        choices: as in `decode`.

    Yields:
        (images uint8 (n, C, H, W), labels int64 (n,)).

    Raises:
        DataError: as `decode`, or two images differ in size.
    """
    items = iter(items)
    first: tuple[tuple[int, ...], str] | None = None
    while chunk := list(islice(items, CHUNK)):
        decoded: np.ndarray | None = None
        for position, (data, _, where) in enumerate(chunk):
            image = decode(data, channels, where, size, choices)
            first = first or (image.shape, where)
            if image.shape != first[0]:
                (height, width), (h, w) = first[0][:2], image.shape[:2]
                raise DataError(
                    f"{where} is {w}x{h} pixels, but {first[1]} is {width}x{height}: "
                    "resize all to one size, or set image_size"
                )
            if decoded is None:
                decoded = np.empty((len(chunk), *image.shape), np.uint8)
            decoded[position] = image
        if decoded is not None:
            yield decoded.transpose(0, 3, 1, 2), np.array([label for _, label, _ in chunk], np.int64)


def channels_of(samples: Iterable[tuple[bytes, str]]) -> int:
    """1 when each of the first `PEEK` images is grey, else 3. Reads headers only.

    Args:
        samples: (encoded image, what to call it).

    Raises:
        DataError: one of them is not an image.
    """
    for data, where in islice(samples, PEEK):
        try:
            mode = pictures.mode_of(data)
        except PictureError as error:
            raise DataError(f"{where}: {error}") from error
        if not grey(mode):
            return 3
    return 1
