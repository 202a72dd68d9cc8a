"""Fashion-MNIST, from its four IDX files, plain or gzipped.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017,
https://github.com/zalandoresearch/fashion-mnist; the IDX format from http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from sdb.data.places import folders, not_found
from sdb.data.source import Decoding, Part, Source
from sdb.data.splits import Augment
from sdb.errors import DataError

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
AUGMENT = Augment(crop_padding=2, flip=True)  # clothes keep their class when mirrored
MAX_BYTES = 512 * 2**20  # ten times the largest of the four files

_UINT8 = 0x08  # the type byte of an IDX header
_FOLDERS = ("fashion_mnist", "fashion-mnist", "data-fashion-mnist", "FashionMNIST/raw", "fashion")


def fashion_mnist(root: Path | None) -> Source:
    """Fashion-MNIST: uint8 (N, 1, 28, 28), 60,000 and 10,000 images, ten classes."""
    looked = folders(root, _FOLDERS)
    for folder in looked:
        parts = [_part(folder, prefix) for prefix in ("train", "t10k")]
        if parts[0] is not None and parts[1] is not None:
            return Source("fashion_mnist", parts[0], parts[1], CLASSES, AUGMENT, "Fashion-MNIST (MIT licence)")
    raise not_found(
        "Fashion-MNIST",
        looked,
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        "t10k-labels-idx1-ubyte, plain or .gz",
        "Get them from https://github.com/zalandoresearch/fashion-mnist.",
    )


def _part(folder: Path, prefix: str) -> Part | None:
    images, labels = (
        _find(folder, f"{prefix}-images-idx3-ubyte"),
        _find(folder, f"{prefix}-labels-idx1-ubyte"),
    )
    if images is None or labels is None:
        return None

    def decode() -> Decoding:
        pixels, classes = read_idx(images, 3), read_idx(labels, 1)
        if len(pixels) != len(classes):
            raise DataError(f"{images} holds {len(pixels)} images, but {labels} {len(classes)} labels")
        if len(classes) and classes.max() >= len(CLASSES):
            raise DataError(f"{labels}: label {classes.max()} is outside 0..{len(CLASSES) - 1}")
        return Decoding(len(pixels), [(pixels[:, None], classes.astype(np.int64))])

    return Part((images, labels), "idx", decode)


def _find(folder: Path, name: str) -> Path | None:
    choices = (folder / name, folder / f"{name}.gz")
    return next((file for file in choices if file.is_file()), None)


def read_idx(file: Path, axes: int) -> np.ndarray:
    """Read an IDX file of bytes.

    Args:
        file: plain, or gzipped when its name ends with .gz.
        axes: number of axes it must have.

    Returns:
        uint8, read-only.

    Raises:
        DataError: not such a file, or of another length than its header says.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged or not readable: {error}") from error
    start = 4 + 4 * axes
    if len(data) < start or data[:4] != bytes((0, 0, _UINT8, axes)):
        raise DataError(f"{file}: begins with {data[:4].hex(' ')}, not an IDX file of bytes with {axes} axes")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    if len(data) != start + math.prod(shape):
        raise DataError(f"{file}: {len(data)} bytes, but its header {shape} asks for {start + math.prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
