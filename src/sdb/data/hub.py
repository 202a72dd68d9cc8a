"""Data sets of the Hugging Face library `datasets`: by name from the hub, or as objects."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data.parquet import table_rows
from sdb.data.pixels import CHUNK, channels_of, decode_all, settings
from sdb.data.source import NO_AUGMENT, PHOTOGRAPHS, Decoding, Part, Source
from sdb.data.splits import ImageSet
from sdb.data.streamed import Streamed
from sdb.errors import DataError, DataNotFoundError, MissingExtraError

_TRAIN = ("train",)
_TEST = (
    "test",
    "validation",
    "valid",
    "val",
)  # without test, validation is the only labelled set to report on


def read(name: str, size: int | None = None, choices: Pictures = DEFAULT_PICTURES) -> Source:
    """Get a data set from the hub, or from the hub's own cache on this machine.

    Args:
        name: owner/name.
        size: side to bring the images to; None leaves them as they are.
        choices: how pictures become pixels.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataNotFoundError: there is no such data set, or no way to reach the hub.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hf", f"reading hub:{name}") from error
    try:
        content = datasets.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:  # which one depends on the version and the failure
        raise DataNotFoundError(
            f"the data set {name} could not be had from the hub ({type(error).__name__}): check the name "
            "and the connection, log in if it is restricted, or put it into the hub's cache beforehand "
            "(HF_HUB_OFFLINE=1 reads only from there), or use from_dataset(...) or a folder"
        ) from error
    return source(content, None, f"hub-{name}", size, choices)


def source(
    train: Any, test: Any, name: str, size: int | None = None, choices: Pictures = DEFAULT_PICTURES
) -> Source:
    """Find images and labels in `datasets` objects.

    Args:
        train: a Dataset, or a DatasetDict that has train and, unless `test` is given, test or validation.
        test: a Dataset, or None.
        name: for records.
        size: as in `read`.
        choices: as in `read`.

    Raises:
        DataError: there is no image or no class column.
    """
    validation = None
    if isinstance(train, Mapping):
        parts = dict(train)
        train = _first(parts, _TRAIN, name)
        if test is None:
            test = next((parts[key] for key in _TEST if key in parts), None)
        validation = next((parts[key] for key in _TEST[1:] if key in parts and parts[key] is not test), None)
    image, label, classes = _columns(train, name)
    for other in (test, validation):
        if other is not None and _columns(other, name) != (image, label, classes):
            raise DataError(f"{name}: the splits differ in columns or class names")
    sample = ((data, where) for data, _, where in _rows(train, image, label, len(classes), f"{name} train row"))
    channels = channels_of(sample)

    def part(dataset: Any, role: str) -> Part:
        def decode() -> Decoding:
            rows = _rows(dataset, image, label, len(classes), f"{name} {role} row")
            return Decoding(len(dataset), decode_all(rows, channels, size, choices))

        def stream() -> ImageSet:
            table = _Table(dataset, image, label, len(classes), f"{name} {role} row")
            return ImageSet(Streamed(table, channels, size, choices), table.labels())

        fingerprint = dataset._fingerprint  # the library's hash of the content and of all that was done to it
        words = f"datasets {fingerprint} {image} {label} {settings(channels, size, choices)}"
        return Part(_named(dataset, image), words, decode, stream)

    return Source(
        name=name,
        train=part(train, "train"),
        test=None if test is None else part(test, "test"),
        class_names=classes,
        augment=NO_AUGMENT if size is None else PHOTOGRAPHS,
        note=f"{name}, read with the library datasets",
        validation=None if validation is None else part(validation, "validation"),
    )


class _Table:
    """The encoded images of a `datasets` object, by number."""

    def __init__(self, dataset: Any, image: str, label: str, classes: int, where: str) -> None:
        self.columns, self.classes, self.where = (image, label), classes, where
        self.rows = dataset.select_columns([image, label]).with_format("arrow")
        self.fingerprint = dataset._fingerprint
        self.lock = threading.Lock()  # the library does not say that several threads may read at once

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> tuple[bytes, str]:
        """An image, and which row it is."""
        with self.lock:
            table = self.rows[number : number + 1]
        data, _, where = next(table_rows(table, *self.columns, self.classes, self.where, number))
        return data, where

    def stamp(self, number: int) -> str:
        """The library's hash of the whole."""
        return f"{self.fingerprint} {number}"

    def labels(self) -> np.ndarray:
        """All labels, int64 (N,).

        Raises:
            DataError: one is missing or out of range.
        """
        column = self.rows.select_columns([self.columns[1]])[:].column(0)
        labels = column.fill_null(-1).to_numpy().astype(np.int64)
        bad = np.flatnonzero((labels < 0) | (labels >= self.classes))
        if len(bad):
            raise DataError(f"{self.where} {bad[0]}: no label in 0..{self.classes - 1} ({self.classes} classes)")
        return labels


def _named(dataset: Any, image: str) -> list[Path]:
    """Files that rows only name, and whose contents the library's hash does not know."""
    files: dict[str, None] = {}
    for chunk in dataset.data.column(image).chunks:
        content, paths = chunk.field("bytes"), chunk.field("path")
        for row in np.flatnonzero(content.is_null().to_numpy(zero_copy_only=False)):
            if (file := paths[int(row)].as_py()) is not None:
                files[file] = None
    return [Path(file) for file in files]


def _first(parts: Mapping[str, Any], names: tuple[str, ...], title: str) -> Any:
    for name in names:
        if name in parts:
            return parts[name]
    raise DataError(f"{title}: splits {', '.join(parts)}: expected one called {' or '.join(names)}")


def _columns(dataset: Any, name: str) -> tuple[str, str, tuple[str, ...]]:
    """The image column, the class column and the names of the classes."""
    if not hasattr(dataset, "features") or not hasattr(dataset, "_fingerprint"):
        raise DataError(f"{name}: a {type(dataset).__name__}, expected a datasets.Dataset (not a streamed one)")
    kinds = {column: type(feature).__name__ for column, feature in dataset.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if not images or not labels:
        found = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise DataError(f"{name}: columns {found}: expected an Image and a ClassLabel; set them with cast_column")
    label = next((column for column in labels if column in ("label", "labels", "fine_label")), labels[0])
    return images[0], label, tuple(map(str, dataset.features[label].names))


def _rows(dataset: Any, image: str, label: str, classes: int, where: str) -> Iterator[tuple[bytes, int, str]]:
    arrow = dataset.select_columns([image, label]).with_format("arrow")
    for start in range(0, len(dataset), CHUNK):
        table = arrow[start : start + CHUNK]
        yield from table_rows(table, image, label, classes, where, start)
