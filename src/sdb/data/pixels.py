"""Encoded images (JPEG, PNG, ...) to uint8 arrays: the one place that decodes."""

import io
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from sdb.errors import DataError

CHUNK = 512  # images decoded between two writes to the cache
JPEG_START = b"\xff\xd8"
GREY_MODES = ("L", "1", "LA")
DEEP_MODES = ("I", "F")  # and I;16 and its kin: more than 8 bits a channel
DECODE_GAP = 2  # a JPEG is decoded to at least this many times the size it is brought to
PEEK = 64  # images looked at to tell a grey set from a coloured one


def decode(data: bytes, channels: int, where: str, size: int | None = None) -> np.ndarray:
    """Decode one image.

    Args:
        data: the encoded image.
        channels: 3 (grey images are repeated, transparency is dropped) or 1.
        where: what to call the image in an error.
        size: side to bring the image to: its short side is resized, and the square in the middle is cut out. None
            leaves it as it is.

    Returns:
        uint8 (H, W, channels), or (size, size, channels).

    Raises:
        DataError: not an image, cut short, too many pixels, or more than 8 bits a channel.
    """
    if size is None and data.startswith(JPEG_START):
        fast = _decode_jpeg(data, channels)
        if fast is not None:
            return fast
    try:
        with Image.open(io.BytesIO(data)) as image:
            if _too_large(*image.size):
                raise DataError(
                    f"{where}: {image.width}x{image.height} pixels, more than Pillow's limit: resize it"
                )
            if image.mode.startswith(DEEP_MODES):
                raise DataError(
                    f"{where}: mode {image.mode} has more than 8 bits a channel: convert to 8 bits first"
                )
            if channels == 1 and image.mode not in GREY_MODES:
                raise DataError(f"{where}: a coloured image ({image.mode}) in a grey set: convert all to one kind")
            mode = "RGB" if channels == 3 else "L"
            array = np.asarray(image.convert(mode) if size is None else _resized(image, mode, size))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not a readable image: {error}") from error
    return array if channels == 3 else array[..., None]


def _resized(image: Image.Image, mode: str, size: int) -> Image.Image:
    """The square in the middle of an image, (size, size): bicubic, with a wider filter where it becomes smaller.

    Pillow does this alone, whether or not the faster JPEG decoder is there: the pixels must not depend on it, and at
    these sizes it is not faster. A JPEG is decoded at a half, a quarter or an eighth where that leaves `DECODE_GAP`
    times the size that is wanted.
    """
    enough = DECODE_GAP * size
    image.draft(image.mode, (enough * image.width // min(image.size), enough * image.height // min(image.size)))
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    square = (left, top, left + side, top + side)
    return image.convert(mode).resize((size, size), Image.Resampling.BICUBIC, box=square)


def decode_all(
    items: Iterable[tuple[bytes, int, str]], channels: int, size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode many images of one size, a chunk at a time.

    Args:
        items: (encoded image, label, what to call it).
        channels: 1 or 3.
        size: as in `decode`.

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
            image = decode(data, channels, where, size)
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
            with Image.open(io.BytesIO(data)) as image:
                if image.mode not in GREY_MODES:
                    return 3
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{where}: not a readable image: {error}") from error
    return 1


@cache
def _simplejpeg() -> Any:
    """The module, or None: about eight times as fast as Pillow on small JPEGs, and bit for bit the same."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _decode_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """Decode an ordinary JPEG; None leaves the odd, damaged or too large to Pillow and its errors."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None:
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if _too_large(width, height) or space not in (("Gray", "YCbCr", "RGB") if channels == 3 else ("Gray",)):
            return None
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None


def _too_large(width: int, height: int) -> bool:
    return Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS
