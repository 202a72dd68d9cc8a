"""Batches of images, a pure function of (seed, epoch, batch number).

Images stay uint8 until a batch is made. A set that fits stays on the device; a larger one is read from its
memory map, and a streamed one decoded, `AHEAD` batches ahead in threads. Order and augmentation come from
generators of this module's own, on the CPU, so that runs on different devices, resumed runs and runs on several
processes see the same pixels.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from sdb.data import augment as augmentation
from sdb.data.rows import select, streamed
from sdb.data.splits import Augment, ImageSet
from sdb.errors import ConfigError

RESIDENT_BYTES = 2 * 2**30  # a larger uint8 set is not kept on the device
RESIDENT_SHARE = 0.25  # of the free memory of a CUDA device
AHEAD = 2  # batches that are read at once: while the last image of one is decoded, the next has begun

_ORDER, _AUGMENT = 1, 2  # independent streams of random numbers


class Batch(NamedTuple):
    """One batch, on the device.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1].
        labels: int64 (B,).
        index: int64 (B,), the images' positions in their set.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class Batches:
    """Gives the batches of an epoch; holds no position, so an epoch can be had again or from the middle.

    With `world_size` processes, `batch_size` is that of all of them together, and each process takes every
    `world_size`-th image of each batch, beginning at its `rank`. Together they have the very batch that one
    process would have. The last batch of a set that `batch_size` does not divide may give them unequal
    shares, even none: `drop_last` leaves it out.

    Args:
        images: the set.
        batch_size: images per batch, over all processes; a multiple of `world_size`.
        device: where batches go.
        seed: of order and augmentation; at least 0.
        shuffle: a new order each epoch, else the set's own.
        augment: random changes, else none.
        drop_last: leave out the last batch when it is not full.
        rank: number of this process, in [0, world_size).
        world_size: number of processes.
        resident: keep the set on the device; None decides by its size, and never keeps a streamed one.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        images: ImageSet,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        resident: bool | None = None,
    ) -> None:
        if world_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size} processes: expected 0 <= rank < world_size")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"batch_size {batch_size}: expected a positive multiple of {world_size} (processes)")
        if seed < 0:
            raise ConfigError(f"seed {seed}: expected 0 or more")
        self.images = images
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.seed = seed
        self.shuffle = shuffle
        self.augment = None if augment is None or augment == Augment() else augment
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.resident = _fits(images, self.device) if resident is None else resident
        self._labels = torch.from_numpy(np.array(images.labels)).to(self.device)
        self._pixels = _as_tensor(images, self.device) if self.resident else None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, number: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            number: of the epoch, from 0.
            start: batch to begin at, for a run resumed in mid-epoch.

        Yields:
            Batches `start`, `start + 1`, ...; the same, bit for bit, whenever they are asked for.
        """
        order = self._order(number)
        numbers = range(start, len(self))
        if self._pixels is not None:
            order = order.to(self.device)
            for batch in numbers:
                index = self._share(order, batch)
                yield self._finish(number, batch, index, self._pixels.index_select(0, index))
            return
        reading: deque[Future[tuple[torch.Tensor, torch.Tensor]]] = deque()
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="sdb-read") as reader:
            try:
                reading.extend(reader.submit(self._read, order, batch) for batch in numbers[:AHEAD])
                for batch in numbers:
                    index, pixels = reading.popleft().result()
                    if batch + AHEAD < len(self):
                        reading.append(reader.submit(self._read, order, batch + AHEAD))
                    where = index.to(self.device, non_blocking=True)
                    yield self._finish(number, batch, where, pixels.to(self.device, non_blocking=True))
            finally:
                for later in reading:
                    later.cancel()

    def _order(self, epoch: int) -> torch.Tensor:
        size = len(self.images)
        if not self.shuffle:
            return torch.arange(size)
        return torch.randperm(size, generator=_generator(self.seed, epoch, _ORDER))

    def _share(self, order: torch.Tensor, batch: int) -> torch.Tensor:
        """This process's part of a batch: int64 (B,)."""
        return order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.world_size]

    def _read(self, order: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch of a set that is not on the device; pinned memory lets the copy to a GPU overlap."""
        index = self._share(order, batch)
        tensor = torch.from_numpy(np.asarray(select(self.images.images, index.numpy())))
        if self.device.type == "cuda":
            return index.pin_memory(), tensor.pin_memory()
        return index, tensor

    def _finish(self, epoch: int, batch: int, index: torch.Tensor, pixels: torch.Tensor) -> Batch:
        """Augment and scale. The draws are those of the whole batch, of which this process takes its rows."""
        if self.augment is not None:
            size = min(self.batch_size, len(self.images) - batch * self.batch_size)
            draws = augmentation.draw(self.augment, size, _generator(self.seed, epoch, _AUGMENT, batch))
            mine = augmentation.Draws(*(drawn[self.rank :: self.world_size] for drawn in draws))
            pixels = augmentation.apply(self.augment, pixels, mine)
        return Batch(pixels.float().div_(255), self._labels[index], index)


def _generator(*entropy: int) -> torch.Generator:
    """A CPU generator whose stream is a function of the given numbers alone."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def _fits(images: ImageSet, device: torch.device) -> bool:
    if streamed(images.images):
        return False
    limit = RESIDENT_BYTES
    if device.type == "cuda":
        limit = min(limit, int(torch.cuda.mem_get_info(device)[0] * RESIDENT_SHARE))
    return images.images.nbytes <= limit


def _as_tensor(images: ImageSet, device: torch.device) -> torch.Tensor:
    pixels = np.asarray(images.images)
    if not pixels.flags.writeable:  # a memory map that is opened to read; torch wants to be able to write
        pixels = pixels.copy()
    return torch.from_numpy(pixels).to(device)
