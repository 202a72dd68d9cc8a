"""A list of image files with labels, as one part of a data set."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdb.data.pixels import decode_all
from sdb.data.source import Decoding, Part
from sdb.errors import DataError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


def class_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, by name."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Files with the suffix of an image, at any depth, by path; anything else is left out."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def labelled(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Every image of a folder of class folders.

    Args:
        folder: holds one folder a class.
        classes: names of the class folders, in label order.

    Raises:
        DataError: a class folder is not one of `classes`, or there is no image.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    found: list[tuple[Path, int]] = []
    for child in class_folders(folder):
        if child.name not in numbers:
            raise DataError(
                f"{child}: class {child.name} is not one of those to train on: {', '.join(classes[:10])} ..."
            )
        found += [(file, numbers[child.name]) for file in image_files(child)]
    if not found:
        raise DataError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}) in folders named after their class")
    return found


def part(root: Path, listing: Sequence[tuple[Path, int]], channels: int) -> Part:
    """Image files with labels, decoded in the order given.

    Args:
        root: holds all of them; names relative to it, with the labels, are part of the cache's key.
        listing: (file, label).
        channels: 1 or 3.
    """
    names = hashlib.sha256("\n".join(f"{file.relative_to(root)} {label}" for file, label in listing).encode())

    def decode() -> Decoding:
        return Decoding(len(listing), decode_all(_read(listing), channels))

    return Part(tuple(file for file, _ in listing), f"files channels={channels} {names.hexdigest()}", decode)


def _read(listing: Sequence[tuple[Path, int]]) -> Iterator[tuple[bytes, int, str]]:
    for file, label in listing:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        yield data, label, str(file)
