"""A list of image files with labels, as one part of a data set."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data.pixels import decode_all
from sdb.data.pixels import settings as decoding
from sdb.data.source import Decoding, Part
from sdb.data.splits import ImageSet
from sdb.data.streamed import Streamed
from sdb.errors import DataError
from sdb.runtime import IMAGE_LIMIT, read_bytes

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
# What macOS and Windows leave in folders of images and archives of them; hidden names (.DS_Store, ._1.png) too.
LEFT_BEHIND = frozenset(("__macosx", "thumbs.db", "desktop.ini"))


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
            return read_bytes(file, IMAGE_LIMIT), str(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error

    def stamp(self, number: int) -> str:
        """A file's name and a hash of what it holds."""
        data, _ = self.read(number)
        return f"{self.name(number)} {hashlib.sha256(data).hexdigest()}"


def class_name(folder: Path) -> str:
    """The name of a class folder, in Unicode's composed form (NFC): macOS stores names decomposed.

    Bytes that are no UTF-8 are escaped: names go into files of JSON.
    """
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode(errors="backslashreplace"))


def class_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, and links to folders, that may be classes, by name.

    Raises:
        DataError: a link leads nowhere, or two folders have one name.
    """
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    for child in folder.iterdir():
        if _aside(child.name):
            continue
        if child.is_symlink() and not child.exists():
            raise DataError(f"{child}: a link that leads nowhere: get the data set again, or remove it")
        if child.is_dir():
            other = found.setdefault(class_name(child), child)
            if other is not child:
                raise DataError(
                    f"{folder}: two folders are called {class_name(child)!r}, in two spellings of Unicode: join them"
                )
    return [found[name] for name in sorted(found)]


def image_files(folder: Path) -> list[str]:
    """Files with the suffix of an image, at any depth, as paths relative to the folder, in order.

    Hidden files and folders, and what systems leave beside images (`LEFT_BEHIND`), are no images. Links are followed; a
    folder that was met before, such as one above the link, is not entered again.

    Raises:
        DataError: an image is a link that leads nowhere.
    """
    found: list[str] = []
    here, there = folder.absolute(), folder.resolve()  # a class folder may be a link itself
    met = {_identity(place) for place in (there, *here.parents, *there.parents)}
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _aside(entry.name):
                    continue
                name = f"{inner}/{entry.name}" if inner else entry.name
                if entry.is_dir():
                    if (identity := _identity(entry)) not in met:
                        met.add(identity)
                        waiting.append(name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a str
                    if entry.is_file():
                        found.append(name)
                    elif entry.is_symlink():
                        raise DataError(f"{folder / name}: a link that leads nowhere: get the data set again")
    return sorted(found, key=lambda name: name.split("/"))


def _aside(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def _identity(place: "Path | os.DirEntry[str]") -> tuple[int, int]:
    info = place.stat()
    return info.st_dev, info.st_ino


def labelled(base: Path, folder: Path, classes: Sequence[str], without: Sequence[str] = ()) -> Listing:
    """Every image of a folder of class folders.

    Args:
        base: folder that holds `folder`, or `folder` itself.
        folder: holds one folder a class.
        classes: names of the class folders, composed (NFC), in label order.
        without: folders that are no classes.

    Raises:
        DataError: a class folder is not one of `classes` or has no image, or there is none.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    names: list[str] = []
    labels: list[np.ndarray] = []
    for child in class_folders(folder):
        if child.name in without:
            continue
        if class_name(child) not in numbers:
            raise DataError(
                f"{child}: class {child.name} is not one of those to train on: {', '.join(classes[:10])} ..."
            )
        files = image_files(child)
        if not files:
            raise DataError(
                f"{child}: class {child.name} has no images ({', '.join(sorted(SUFFIXES))}): get them again, or remove "
                "the folder"
            )
        place = child.relative_to(base).as_posix()
        names += [f"{place}/{file}" for file in files]
        labels.append(np.full(len(files), numbers[class_name(child)], np.int64))
    if not names:
        raise DataError(f"{folder}: no images ({', '.join(sorted(SUFFIXES))}) in folders named after their class")
    return Listing(base, names, np.concatenate(labels))


def part(listing: Listing, channels: int, size: int | None = None, choices: Pictures = DEFAULT_PICTURES) -> Part:
    """Image files with labels, decoded in the order given.

    Args:
        listing: the files; names and labels are part of the cache's key.
        channels: 1 or 3.
        size: side to bring each image to; None leaves them as they are.
        choices: how pictures become pixels.
    """

    def decode() -> Decoding:
        return Decoding(len(listing), decode_all(_items(listing), channels, size, choices))

    def stream() -> ImageSet:
        return ImageSet(Streamed(listing, channels, size, choices), listing.labels)

    names = hashlib.sha256()
    for number, label in enumerate(listing.labels.tolist()):
        names.update(f"{chr(10) if number else ''}{listing.name(number)} {label}".encode(errors="surrogateescape"))
    return Part(listing, f"files {decoding(channels, size, choices)} {names.hexdigest()}", decode, stream)


def _items(listing: Listing) -> Iterator[tuple[bytes, int, str]]:
    for number, label in enumerate(listing.labels.tolist()):
        data, where = listing.read(number)
        yield data, label, where
