"""A list of image files with labels, as one part of a data set."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sdb.data.pixels import decode_all
from sdb.data.source import Decoding, Part
from sdb.data.splits import ImageSet
from sdb.data.streamed import Streamed
from sdb.errors import DataError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


class Listing(Sequence[Path]):
    """Image files and their labels: tens of megabytes for a million, where `Path` objects take ten times that.

    Args:
        base: folder that holds all of them.
        names: paths relative to it.
        labels: int64 (N,).
    """

    def __init__(self, base: Path, names: Iterable[str], labels: np.ndarray) -> None:
        self.base, self.labels = base, labels
        self.names = np.array([os.fsencode(name) for name in names], np.bytes_)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """A file's path relative to the base."""
        return os.fsdecode(bytes(self.names[number]))

    def __getitem__(self, number: int) -> Path:  # ty: ignore[incompatible-method-override] - no slices
        return self.base / self.name(number)

    def read(self, number: int) -> tuple[bytes, str]:
        """A file's bytes, and its path.

        Raises:
            DataError: it cannot be read.
        """
        file = self[number]
        try:
            return file.read_bytes(), str(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error

    def stamp(self, number: int) -> str:
        """A file's name, size and time of change."""
        try:
            info = self[number].stat()
        except OSError as error:
            raise DataError(f"{self[number]}: cannot be read: {error}") from error
        return f"{self.name(number)} {info.st_size} {info.st_mtime_ns}"


def class_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, by name."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def image_files(folder: Path) -> list[str]:
    """Files with the suffix of an image, at any depth, as paths relative to the folder, in order."""
    found: list[str] = []
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                name = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122 - a str
                    found.append(name)
    return sorted(found, key=lambda name: name.split("/"))


def labelled(base: Path, folder: Path, classes: Sequence[str]) -> Listing:
    """Every image of a folder of class folders.

    Args:
        base: folder that holds `folder`, or `folder` itself.
        folder: holds one folder a class.
        classes: names of the class folders, in label order.

    Raises:
        DataError: a class folder is not one of `classes`, or there is no image.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    labels: list[np.ndarray] = []
    for child in class_folders(folder):
        if child.name not in numbers:
            raise DataError(
                f"{child}: class {child.name} is not one of those to train on: {', '.join(classes[:10])} ..."
            )
        files = image_files(child)
        place = child.relative_to(base).as_posix()
        names += [f"{place}/{file}" for file in files]
        labels.append(np.full(len(files), numbers[child.name], np.int64))
    if not names:
        raise DataError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}) in folders named after their class")
    return Listing(base, names, np.concatenate(labels))


def part(listing: Listing, channels: int, size: int | None = None) -> Part:
    """Image files with labels, decoded in the order given.

    Args:
        listing: the files; names and labels are part of the cache's key.
        channels: 1 or 3.
        size: side to bring each image to; None leaves them as they are.
    """

    def decode() -> Decoding:
        return Decoding(len(listing), decode_all(_items(listing), channels, size))

    def stream() -> ImageSet:
        return ImageSet(Streamed(listing, channels, size), listing.labels)

    names = hashlib.sha256()
    for number, label in enumerate(listing.labels.tolist()):
        names.update(f"{chr(10) if number else ''}{listing.name(number)} {label}".encode(errors="surrogateescape"))
    settings = f"files channels={channels} {names.hexdigest()}"
    return Part(listing, settings if size is None else f"{settings} size={size}", decode, stream)


def _items(listing: Listing) -> Iterator[tuple[bytes, int, str]]:
    for number, label in enumerate(listing.labels.tolist()):
        data, where = listing.read(number)
        yield data, label, where
