"""Images that are decoded when they are indexed, for sets too large to keep decoded even on disk."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data.pixels import decode, settings
from sdb.errors import DataError

MAX_THREADS = 32


class Encoded(Protocol):
    """Encoded images (JPEG, PNG, ...) by number; several threads read at once."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> tuple[bytes, str]:
        """An image, and what to call it in an error."""
        ...

    def stamp(self, number: int) -> str:
        """Words that change when the image may have changed."""
        ...


class Streamed:
    """Looks like an array uint8 (N, C, H, W) of images; those that are indexed are read and decoded there and then.

    The decoders let go of Python's lock, so a batch is decoded on as many threads as this process has cores. Nothing
    is kept: neither in memory nor in the cache.

    Args:
        encoded: the images.
        channels: 1 or 3.
        size: side to which each image is brought, see `sdb.data.pixels.decode`; None leaves them as they are, and then
            all must have the first one's size.
        choices: how pictures become pixels.

    Raises:
        DataError: the first image is damaged, or there is none.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, encoded: Encoded, channels: int, size: int | None, choices: Pictures = DEFAULT_PICTURES
    ) -> None:
        if not len(encoded):
            raise DataError("there are no images to stream")
        self.encoded, self.channels, self.size, self.choices = encoded, channels, size, choices
        side = (size, size) if size is not None else self._decode(0).shape[:2]
        self.shape = (len(encoded), channels, *side)

    @property
    def nbytes(self) -> int:
        """Bytes that a copy would take."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Decode images; `index` is a number, a slice, or an array of numbers or bools.

        Raises:
            DataError: an image is damaged or of another size; the message names it.
        """
        numbers = np.arange(len(self))[index]
        wanted = np.atleast_1d(numbers)
        out = np.empty((len(wanted), *self.shape[1:]), np.uint8)

        def fill(places: Iterable[int]) -> None:
            for place in places:
                out[place] = self._checked(int(wanted[place])).transpose(2, 0, 1)

        workers = min(threads(), len(wanted))
        if workers <= 1:
            fill(range(len(wanted)))
        else:
            # A pool for each call: one kept for longer would not survive a fork.
            with ThreadPoolExecutor(workers, thread_name_prefix="sdb-decode") as pool:
                list(pool.map(fill, (range(first, len(wanted), workers) for first in range(workers))))
        return out if numbers.ndim else out[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("streamed images are an array only by decoding: leave copy=False out")
        return self[:].astype(dtype or self.dtype, copy=False)

    def stamp(self, numbers: np.ndarray) -> str:
        """A hash that changes when these images, or the way in which they are decoded, may have changed."""
        digest = hashlib.sha256(settings(self.channels, self.size, self.choices).encode())
        for number in numbers.tolist():
            digest.update(f"\n{number} {self.encoded.stamp(number)}".encode())
        return digest.hexdigest()[:32]

    def _checked(self, number: int) -> np.ndarray:
        image = self._decode(number)
        if image.shape[:2] != self.shape[2:]:
            (height, width), (h, w) = self.shape[2:], image.shape[:2]
            _, where = self.encoded.read(number)
            raise DataError(f"{where} is {w}x{h} pixels, the first image {width}x{height}: set image_size")
        return image

    def _decode(self, number: int) -> np.ndarray:
        data, where = self.encoded.read(number)
        return decode(data, self.channels, where, self.size, self.choices)


def threads() -> int:
    """Threads that decode: this process's share of the cores, at most `MAX_THREADS`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
