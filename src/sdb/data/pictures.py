"""From an encoded picture (JPEG, PNG, ...) to pixels: the one place that decodes, for data sets and for the service.

What is chosen is in `Pictures`; what is fixed: the first frame of an animation, 16 bits per channel brought to 8 by
their upper half, transparency laid on the background before colours are converted, ITU-R BT.601 from colour to grey.
"""

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile

from sdb.config import Pictures
from sdb.errors import DataError

# What a stranger may send. Pillow knows more, some of which run other programs. A small TIFF can hold tiles of
# gigabytes, which its header does not tell; PPM as text is read digit by digit, slowly.
SERVED = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FORMATS = (*SERVED, "TIFF", "PPM")
DRAFTS = ("JPEG", "MPO")  # whose decoder can leave out what is made smaller anyway
DECODE_GAP = 2  # a JPEG is decoded to at least this many times the size it is brought to
JPEG_START = b"\xff\xd8"
TURN_NOTES = (
    b"Exif\0\0",
    b"http://ns.adobe.com/xap/1.0/\0",
)  # how the parts of a JPEG begin that may tell of a turn
ORIENTATION = 0x0112
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored left to right"),
    3: (Image.Transpose.ROTATE_180, "turned by 180 degrees"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
    5: (Image.Transpose.TRANSPOSE, "mirrored left to right and turned left"),
    6: (Image.Transpose.ROTATE_270, "turned right"),
    7: (Image.Transpose.TRANSVERSE, "mirrored left to right and turned right"),
    8: (Image.Transpose.ROTATE_90, "turned left"),
}
SIDEWAYS = (5, 6, 7, 8)  # turns that exchange width and height

Size = tuple[int, int]  # (width, height), as Pillow has it


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Attributes:
        pixels: uint8 (H, W, C).
        mode: Pillow's name for what the file holds: L, RGB, P, ...
        changes: what was done to it beyond decoding, in order, for people.
    """

    pixels: np.ndarray
    mode: str
    changes: list[str]


class PictureError(DataError):
    """A picture that cannot be read. `reason`: no picture, too large, or damaged."""

    def __init__(self, reason: Literal["unknown", "large", "damaged"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read(
    data: bytes,
    channels: int,
    choices: Pictures,
    size: Size | None = None,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int | None = None,
) -> Picture:
    """Decode a picture and fit it.

    A JPEG that needs neither a turn nor another size is decoded by simplejpeg where that is installed, which gives the
    pixels that Pillow gives, some times as fast.

    Args:
        data: the encoded picture.
        channels: 3, or 1 for grey.
        choices: how it is turned, laid on a background and fitted.
        size: (width, height) to bring it to; None leaves it as it is.
        formats: Pillow's names of those that are read.
        max_pixels: of the picture, from its header; None is Pillow's own limit.

    Raises:
        PictureError: it cannot be read.
    """
    most = max_pixels or Image.MAX_IMAGE_PIXELS
    fast = _fast(data, channels, choices, size, most)
    if fast is not None:
        return fast
    with _open(data, formats, most) as image:
        if most is not None and image.width * image.height > most:
            raise PictureError("large", f"{image.width}x{image.height} pixels, more than {most}: make it smaller")
        if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
            raise PictureError(
                "unknown", f"mode {image.mode} does not say which value is white: convert to 8 or 16 bits"
            )
        try:
            return _prepared(image, channels, choices, size)
        except Exception as error:  # and so it does on damaged pixels
            raise PictureError("damaged", f"not a readable image: {_words(error)}") from error


def mode_of(data: bytes) -> str:
    """Pillow's name for what a picture holds (L, RGB, P, ...), from its header.

    Raises:
        PictureError: as `read`.
    """
    with _open(data, FORMATS, Image.MAX_IMAGE_PIXELS) as image:
        return image.mode


def _open(data: bytes, formats: tuple[str, ...], most: int | None) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise PictureError("large", f"more than {most} pixels: make it smaller") from None
    except Exception as error:  # on damaged headers Pillow fails in any way
        told = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({_words(error)})"
        raise PictureError("unknown", f"not a readable image{told}: expected {', '.join(formats)}") from error


def _prepared(file: ImageFile.ImageFile, channels: int, choices: Pictures, size: Size | None) -> Picture:
    mode, whole, changes = file.mode, file.size, []
    deep = mode.startswith("I") or (file.format == "PNG" and any(";16" in str(tile) for tile in file.tile))
    if size is not None and file.format in DRAFTS:
        _draft(file, choices, size)
    file.load()
    if file.format == "TIFF":  # Pillow has turned it, and it no longer says that it is to be turned
        whole = file.size
    image: Image.Image = file
    turn = _orientation(image) if choices.turn else 1
    if turn in TURNS:
        method, words = TURNS[turn]
        image = image.transpose(method)
        whole = whole[::-1] if turn in SIDEWAYS else whole
        changes.append(f"{words}, as its EXIF data say")
    if deep:
        changes.append("scaled from 16 to 8 bits per channel")
    image, composited = plain(image, choices.background)
    if composited:
        changes.append(f"transparency laid on {choices.background}")
    wanted = "RGB" if channels == 3 else "L"
    if mode != wanted:
        changes.append(_converted(mode, channels))
    if image.mode != wanted:
        image = image.convert(wanted)
    if size is not None:
        image, fitting = _fitted(image, whole, choices, size)
        changes += fitting
    pixels = np.asarray(image)
    return Picture(pixels if channels == 3 else pixels[..., None], mode, changes)


def _orientation(image: Image.Image) -> int:
    """What the EXIF (or XMP) data say, 1 to 8; 1 where they are damaged, whatever is wrong with them."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in TURNS else 1
    except Exception:  # as on damaged headers
        return 1


def plain(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """An image in mode 1, L or RGB, 8 bits per channel at most, and whether anything was transparent.

    Args:
        image: of any mode but F, which does not say which value is white.
        background: colour under what is transparent.
    """
    if image.mode.startswith("I"):
        image = _upper_half(image)
    composited = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        composited = image.getchannel("A").getextrema() != (255, 255)
        if composited:
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB"), composited


def _upper_half(image: Image.Image) -> Image.Image:
    """16 bits brought to 8, as Pillow does with coloured PNGs; with the one value that a PNG may call transparent."""
    values = np.asarray(image)
    grey = Image.fromarray((np.clip(values, 0, 0xFFFF) >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _window(whole: Size, choices: Pictures, size: Size) -> Size:
    """The size of the part in the middle that is kept, in whole pixels."""
    (width, height), (w, h) = whole, size
    if choices.fit == "stretch":
        return whole
    if width * h > height * w:
        return max(1, round(height * w / h)), height
    return width, max(1, round(width * h / w))


def _fitted(image: Image.Image, whole: Size, choices: Pictures, size: Size) -> tuple[Image.Image, list[str]]:
    """The image at its size, and what was done, in the sizes of the file: a JPEG may have been decoded to a part."""
    kept, changes = _window(whole, choices, size), []
    left, top = ((length - part) // 2 for length, part in zip(whole, kept, strict=True))
    box = (left, top, left + kept[0], top + kept[1])
    if kept != whole:
        changes.append(f"cropped from {_by(whole)} to the middle {_by(kept)}")
    if kept == size:
        return image.crop(box), changes
    changes.append(f"resized from {_by(kept)} to {_by(size)}")
    across, down = image.width / whole[0], image.height / whole[1]
    right, bottom = min(box[2] * across, image.width), min(box[3] * down, image.height)
    return image.resize(
        size, FILTERS[choices.filter], box=(box[0] * across, box[1] * down, right, bottom)
    ), changes


def _draft(image: Image.Image, choices: Pictures, size: Size) -> None:
    """Have a JPEG decoded at a half, a quarter or an eighth where that leaves `DECODE_GAP` times the size wanted."""
    sideways = choices.turn and _orientation(image) in SIDEWAYS
    width, height = image.size[::-1] if sideways else image.size
    kept = _window((width, height), choices, size)
    enough = width * DECODE_GAP * size[0] // kept[0], height * DECODE_GAP * size[1] // kept[1]
    image.draft(image.mode, enough[::-1] if sideways else enough)


def _fast(data: bytes, channels: int, choices: Pictures, size: Size | None, most: int | None) -> Picture | None:
    """An ordinary JPEG of the right size; None leaves every other one, damage and its errors to Pillow."""
    simplejpeg = _simplejpeg()
    if simplejpeg is None or not data.startswith(JPEG_START):
        return None
    if choices.turn and any(note in data for note in TURN_NOTES):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if (size is not None and size != (width, height)) or (most is not None and width * height > most):
            return None
        if space not in (("Gray", "YCbCr", "RGB") if channels == 3 else ("Gray",)):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:
        return None
    mode = "L" if space == "Gray" else "RGB"
    changes = [_converted(mode, channels)] if channels == 3 and mode == "L" else []
    return Picture(pixels, mode, changes)


@cache
def _simplejpeg() -> Any:
    """The module, or None: about eight times as fast as Pillow on small JPEGs, and bit for bit the same."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _converted(mode: str, channels: int) -> str:
    return f"converted from {mode} to {'colour' if channels == 3 else 'grey'}"


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
