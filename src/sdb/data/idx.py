"""Fashion-MNIST, from its four IDX files, plain or gzipped.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", 2017,
https://github.com/zalandoresearch/fashion-mnist; the IDX format from http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from sdb.data.places import folders, incomplete, not_found
from sdb.data.source import Decoding, Part, Source
from sdb.data.splits import Augment
from sdb.errors import DataError

CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
AUGMENT = Augment(crop_padding=2, flip=True)  # clothes keep their class when mirrored
FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
MAX_BYTES = 512 * 2**20  # ten times the largest of the four files

_UINT8 = 0x08  # the type byte of an IDX header
_FOLDERS = ("fashion_mnist", "fashion-mnist", "data-fashion-mnist", "FashionMNIST/raw", "fashion")


def fashion_mnist(root: Path | None) -> Source:
    """Fashion-MNIST: uint8 (N, 1, 28, 28), 60,000 and 10,000 images, ten classes."""
    looked = folders(root, _FOLDERS)
    broken: DataError | None = None
    for folder in looked:
        found = [_find(folder, name) for name in FILES]
        files = [file for file in found if file is not None]
        if len(files) == len(FILES):
            train, test = _part(*files[:2]), _part(*files[2:])
            note, sizes = "Fashion-MNIST (MIT licence)", {"train": 60_000, "test": 10_000}
            return Source("fashion_mnist", train, test, CLASSES, AUGMENT, note, sizes=sizes)
        if files:
            absent = [name for name, file in zip(FILES, found, strict=True) if file is None]
            broken = broken or incomplete("Fashion-MNIST", folder, absent)
    raise broken or not_found(
        "Fashion-MNIST",
        looked,
        f"{', '.join(FILES)}, plain or .gz",
        "Get them from https://github.com/zalandoresearch/fashion-mnist.",
    )


def _part(images: Path, labels: Path) -> Part:
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
