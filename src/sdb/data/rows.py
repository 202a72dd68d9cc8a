"""Rows of an image array, chosen by number, without copying it."""

from typing import Any

import numpy as np

from sdb.data.streamed import Streamed


class Rows:
    """A read-only selection of rows of an array, in a given order.

    A training set and its validation set are both rows of one memory map that may be larger than memory;
    indexing it would copy it. This looks like the copy (`shape`, `dtype`, `ndim`, `len`, indexing along the
    first axis, `np.asarray`) and reads only the rows that are indexed.

    Attributes:
        source: the array, (M, ...), or images that are decoded when they are indexed.
        rows: int64 (N,), each in [0, M).
    """

    __slots__ = ("rows", "source")

    def __init__(self, source: np.ndarray | Streamed, rows: np.ndarray) -> None:
        self.source = source
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the selection, (N, ...)."""
        return (len(self.rows), *self.source.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Type of one element."""
        return self.source.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.source.ndim

    @property
    def nbytes(self) -> int:
        """Bytes that a copy would take."""
        return len(self.rows) * int(np.prod(self.source.shape[1:])) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read rows; `index` is a number, a slice, or an array of numbers or bools."""
        rows = self.rows[index]
        if rows.ndim == 0:
            return np.asarray(self.source[rows])
        order = np.argsort(rows, kind="stable")  # in file order, so that a memory map is read front to back
        out = np.empty((len(rows), *self.source.shape[1:]), self.source.dtype)
        out[order] = self.source[rows[order]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a selection of rows is an array only by copying: leave copy=False out")
        return self[:].astype(dtype or self.dtype, copy=False)


def select(images: np.ndarray | Rows | Streamed, rows: np.ndarray) -> np.ndarray | Rows:
    """Choose rows; a memory map is never copied, streamed images are not decoded, an array in memory is copied.

    Args:
        images: (M, ...).
        rows: int64 (N,), each in [0, M).

    Returns:
        (N, ...): `Rows` where `images` is a memory map, streamed or `Rows`, else an array.
    """
    if isinstance(images, Rows):
        return Rows(images.source, images.rows[rows])
    return Rows(images, rows) if isinstance(images, (np.memmap, Streamed)) else images[rows]


def streamed(images: np.ndarray | Rows | Streamed) -> bool:
    """Whether the images are decoded when they are indexed."""
    return isinstance(images.source if isinstance(images, Rows) else images, Streamed)
