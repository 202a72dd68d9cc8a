"""Parquet files as on the Hugging Face hub: a column of encoded images and a column of class numbers."""

import json
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdb.config import DEFAULT_PICTURES
from sdb.data.pixels import CHUNK, decode_all, settings
from sdb.data.source import Decoding, Part
from sdb.errors import DataError, MissingExtraError
from sdb.runtime import IMAGE_LIMIT, read_bytes

if TYPE_CHECKING:
    import pyarrow as pa

# As the hub names the files of one split; older ones have a hash at the end.
SHARD = re.compile(r"(?P<start>.+)-(?P<number>\d+)-of-(?P<count>\d{1,5})(-[0-9a-f]+)?\.parquet")


def pyarrow_parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "reading parquet files") from error
    return pyarrow.parquet


def class_names(file: Path, label: str) -> tuple[str, ...] | None:
    """Names of the classes, from the metadata that the hub writes; None without it."""
    with reading(file):
        metadata = pyarrow_parquet().read_schema(file).metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return tuple(map(str, features[label]["names"]))
        except (KeyError, TypeError):
            return None


def find_column(file: Path, choices: Iterable[str]) -> str:
    """The first of `choices` that the file has.

    Raises:
        DataError: it has none of them.
    """
    with reading(file):
        have = pyarrow_parquet().read_schema(file).names
    for column in choices:
        if column in have:
            return column
    raise DataError(f"{file}: columns {', '.join(have)}: expected one called {' or '.join(choices)}")


def lost_shards(files: Iterable[Path]) -> list[str]:
    """Files that the names of others tell of, and that are not among them: train-00001-of-00003.parquet."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, (SHARD.fullmatch(file.name) for file in files)):
        numbers.setdefault((match["start"], match["count"]), set()).add(int(match["number"]))
    return [
        f"{start}-{number:0{len(count)}}-of-{count}.parquet"
        for (start, count), have in numbers.items()
        for number in range(int(count))
        if number not in have
    ]


def first_image(file: Path, image: str) -> bytes:
    """The encoded bytes of the first image."""
    with reading(file):
        batch = next(pyarrow_parquet().ParquetFile(file).iter_batches(1, columns=[image]), None)
        cell = batch.column(0)[0].as_py() if batch is not None else None
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise DataError(f"{file}: no encoded image in column {image}")
    return data


def part(files: list[Path], image: str, label: str, channels: int, classes: int) -> Part:
    """The images of some parquet files.

    Args:
        files: in order.
        image: column of encoded images: struct{bytes, path}, or the bytes themselves.
        label: column of class numbers.
        channels: 1 or 3.
        classes: number of classes; a label outside is refused.
    """

    def decode() -> Decoding:
        count = 0
        for file in files:
            with reading(file):
                count += pyarrow_parquet().read_metadata(file).num_rows
        return Decoding(count, decode_all(_rows(files, image, label, classes), channels))

    decoding = settings(channels, None, DEFAULT_PICTURES)
    return Part(tuple(files), f"parquet {image} {label} {decoding} classes={classes}", decode)


def _rows(files: list[Path], image: str, label: str, classes: int) -> Iterator[tuple[bytes, int, str]]:
    for file in files:
        with reading(file):
            content = pyarrow_parquet().ParquetFile(file)
            start = 0
            for batch in content.iter_batches(CHUNK, columns=[image, label]):
                yield from table_rows(batch, image, label, classes, f"{file} row", start)
                start += len(batch)


def table_rows(
    table: "pa.RecordBatch | pa.Table", image: str, label: str, classes: int, where: str, start: int
) -> Iterator[tuple[bytes, int, str]]:
    """Rows of an arrow table: (encoded image, label, what to call it).

    Raises:
        DataError: a row has no image or no label, or its label is out of range.
    """
    rows = zip(table.column(image).to_pylist(), table.column(label).to_pylist(), strict=True)
    for number, (cell, target) in enumerate(rows, start):
        data = cell
        if isinstance(cell, dict):
            data = cell["bytes"]
            if data is None and cell.get("path"):
                data = _read(Path(cell["path"]), f"{where} {number}")
        if not isinstance(data, bytes):
            raise DataError(f"{where} {number}: no encoded image in column {image}")
        if not isinstance(target, int) or not 0 <= target < classes:
            raise DataError(f"{where} {number}: label {target} is outside 0..{classes - 1} ({classes} classes)")
        yield data, target, f"{where} {number}"


def _read(file: Path, where: str) -> bytes:
    try:
        return read_bytes(file, IMAGE_LIMIT)
    except OSError as error:
        raise DataError(f"{where}: its image {file} cannot be read ({error.strerror}): put it back") from error


@contextmanager
def reading(file: Path) -> Generator[None]:
    """Turn what pyarrow raises on a damaged file into a DataError that names the file."""
    try:
        yield
    except (DataError, MissingExtraError):
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own errors are children of these
        raise DataError(f"{file}: not a readable parquet file: {error}") from error
