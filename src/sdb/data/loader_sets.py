"""Images that a loader or a dataset of the caller's gives, read anew in every pass: what is known of them, and batches.

`Batches` (sdb.data.loader) makes its batches itself, from uint8 arrays, on the device. Here order, augmentation, batch
size and workers are the caller's, so an epoch is no function of a seed alone, and a resumed run is not the same bit for
bit.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from sdb.data.batch_items import batch_of, changing, collate
from sdb.data.given import once
from sdb.data.loader import Batch
from sdb.data.objects import numbered
from sdb.errors import ConfigError, DataError, SDBError

ROOM = 1e-3  # how far pixels may lie outside [0, 1]: rounding, also that of half precision
OVERSHOOT = 0.4  # how far a resize of floats may leave [0, 1]; normalised images go farther
TOGETHER = 64  # samples of a dataset that are read at once when it is looked through
MANY = 100_000  # images after which it is said that there is no end yet

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation per channel
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class LoaderSet:
    """What a loader or a dataset of the caller's gives, and what one pass over it has shown.

    Attributes:
        source: an iterable of batches (a DataLoader); or a dataset of single images, which are put into batches here.
        title: what to call it in an error.
        single: whether `source` is a dataset of single images.
        size: images of a pass.
        steps: batches of a pass; of a dataset of single images, as many as were read together.
        smallest: images of the smallest batch.
        image_shape: (C, H, W) of every image.
        counts: images of each class; of classes that no image has, 0.
        num_classes: labels are below.
        normalised: mean and deviation that the images come normalised with, which is undone; None where they come as
            pixels.
        mean, std: per channel, of pixels in [0, 1].
    """

    source: Any
    title: str
    single: bool
    size: int
    steps: int
    smallest: int
    image_shape: tuple[int, int, int]
    counts: tuple[int, ...]
    num_classes: int
    normalised: Normalisation | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return self.size

    def first(self, count: int) -> LoaderSet:
        """About the first `count` images: a pass ends with the batch in which they are reached."""
        share = min(1.0, count / self.size)
        return replace(self, size=math.ceil(share * self.size), steps=math.ceil(share * self.steps))


class LoaderBatches:
    """The batches of a `LoaderSet`: the interface of `Batches`, but the caller's order, augmentation and workers.

    Args:
        images: the set.
        device: where batches go.
        batch_size: of a dataset of single images; a loader has its own.
        shuffle: the same; a new order each epoch.
        seed: of that order.
        drop_last: the same; leave out the last batch when it is not full.
    """

    def __init__(
        self,
        images: LoaderSet,
        device: torch.device | str,
        *,
        batch_size: int = TOGETHER,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.images, self.device = images, torch.device(device)
        self.batch_size, self.shuffle, self.seed, self.drop_last = batch_size, shuffle, seed, drop_last

    def __len__(self) -> int:
        if not self.images.single:
            return self.images.steps
        whole, rest = divmod(self.images.size, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """One pass; no more batches than the first pass had.

        Args:
            number: of the epoch, from 0; told to samplers and datasets that have `set_epoch`.

        Raises:
            DataError: the pass is empty or has fewer batches than the first, or a batch is not as the others were.
        """
        loader = self._loader(number)
        done = steps = 0
        for pixels, labels in checked(loader, self.images.title, self.images.num_classes, self.images.image_shape):
            if steps == len(self):
                break
            _check_range(*_range(pixels), self.images.normalised, self.images.title)
            index = torch.arange(done, done + len(labels), device=self.device)
            done, steps = done + len(labels), steps + 1
            images = as_pixels(pixels.to(self.device, non_blocking=True), self.images.normalised)
            yield Batch(images, labels.to(self.device, non_blocking=True), index)
        if not steps:
            raise DataError(once(self.images.title))

    def _loader(self, epoch: int) -> Iterable[Any]:
        if self.images.single:
            order = torch.Generator().manual_seed(
                int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
            )
            return in_batches(
                self.images.source,
                self.images.title,
                self.batch_size,
                shuffle=self.shuffle,
                drop_last=self.drop_last,
                generator=order,
            )
        parts = [getattr(self.images.source, name, None) for name in ("sampler", "batch_sampler", "dataset")]
        for part in parts:
            if callable(tell := getattr(part, "set_epoch", None)):
                tell(epoch)
        return self.images.source


def in_batches(
    dataset: Any, title: str, batch_size: int, *, shuffle: bool = False, **options: Any
) -> DataLoader[Any]:
    """A dataset of single images, map-style or iterable, in batches."""
    streams = isinstance(dataset, IterableDataset)
    return DataLoader(
        dataset,
        batch_size,
        shuffle=None if streams else shuffle,
        collate_fn=partial(collate, where=title),
        **options,
    )


def look_through(
    source: Any, title: str, single: bool, num_classes: int | None, given: Normalisation | None
) -> LoaderSet:
    """Read everything once, so that what does not fit is refused before anything is trained.

    Args:
        source: as in `LoaderSet`.
        title: as in `LoaderSet`.
        single: as in `LoaderSet`.
        num_classes: labels must be below; None takes the largest label for the last class.
        given: mean and deviation that the images may come normalised with.

    Raises:
        DataError: a batch is not (images, labels) of one shape; it is empty; a label is out of range.
        ConfigError: it can be read once only, or the images are normalised and `given` is not what was done.
    """
    loader = in_batches(source, title, TOGETHER) if single else source
    size = steps = 0
    smallest: int | None = None
    shape: tuple[int, int, int] | None = None
    counts: Counter[int] = Counter()
    low = high = total = squares = torch.zeros(1, dtype=torch.float64)
    said = MANY
    for pixels, numbers in checked(loader, title, num_classes, None):
        least, most = _range(pixels)
        values = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()
        sums = values.sum((0, 2, 3), dtype=torch.float64).cpu()
        square_sums = torch.linalg.vector_norm(values, dim=(0, 2, 3), dtype=torch.float64).square().cpu()
        if shape is None:
            shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
            low, high, total, squares = least, most, sums, square_sums
        else:
            low, high = torch.minimum(low, least), torch.maximum(high, most)
            total, squares = total + sums, squares + square_sums
        size, steps = size + len(numbers), steps + 1
        smallest = len(numbers) if smallest is None else min(smallest, len(numbers))
        counts.update(numbers.tolist())
        if size >= said:
            said += MANY
            log.log(
                logging.INFO if hasattr(source, "__len__") else logging.WARNING,
                "%s: %d images read and no end yet; if it repeats them for ever, let it end after one pass",
                title,
                size,
            )
    if shape is None or smallest is None:
        raise DataError(f"{title}: it is empty: expected at least one batch of images")
    if next(iter(checked(loader, title, num_classes, shape)), None) is None:
        raise ConfigError(once(title))
    outside = bool(low.min() < -ROOM or high.max() > 1 + ROOM)
    normalised = given if outside else None
    _check_range(low, high, normalised, title)
    if outside and given is not None:
        log.info("%s: batches come normalised; mean and std are undone, and pixels in [0, 1] are used", title)
    count = size * shape[1] * shape[2]
    mean, std = total / count, (squares / count - (total / count).square()).clamp_min(0).sqrt()
    if normalised is not None:
        offset, scale = (torch.tensor(each, dtype=torch.float64) for each in normalised)
        mean, std = mean * scale + offset, std * scale
    classes = max(counts) + 1 if num_classes is None else num_classes
    if num_classes is None and len(counts) < classes:
        # A lone label far above the others must not fill memory with counts of nothing: it is refused here.
        numbered(np.array(sorted(counts)))
    return LoaderSet(
        source,
        title,
        single,
        size,
        steps,
        smallest,
        shape,
        tuple(counts[number] for number in range(classes)),
        classes,
        normalised,
        tuple(mean.tolist()),
        tuple(torch.where(std > 0, std, 1.0).tolist()),
    )


def checked(
    loader: Iterable[Any], title: str, num_classes: int | None, shape: tuple[int, ...] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, C, H, W) and labels (N,) of a pass, all images of one shape; errors of the caller's code have a name.

    Raises:
        DataError: the loader fails, or gives something else.
    """
    for number, item in enumerate(_read(loader, title)):
        where = f"{title}, batch {number}"
        pixels, labels = batch_of(item, num_classes, where)
        if not len(labels):
            continue
        shape = shape or tuple(pixels.shape[1:])
        if tuple(pixels.shape[1:]) != shape:
            raise DataError(changing(shape, tuple(pixels.shape[1:]), where))
        yield pixels, labels


def _read(loader: Iterable[Any], title: str) -> Iterator[Any]:
    """The items of a pass."""
    number = 0
    step: Callable[[], Any]
    try:
        step = iter(loader).__next__
        while True:
            yield step()
            number += 1
    except StopIteration:
        return
    except SDBError:
        raise
    except Exception as error:  # datasets, transforms and collate functions may be anyone's
        text = str(error).strip()
        advice = "it is the loader's own error"
        if "PIL." in text:
            advice = "add ToTensor() to the transform, or give the dataset itself in the place of its loader"
        elif "equal size" in text or "not resizable" in text:
            advice = "resize all images to one size in the transform"
        last = text.splitlines()[-1] if text else ""
        raise DataError(
            f"{title}: batch {number} cannot be read: {type(error).__name__}: {last}: {advice}"
        ) from error


def as_pixels(images: Tensor, normalised: Normalisation | None) -> Tensor:
    """Images (N, C, H, W) as a loader gave them, as pixels in [0, 1], float32."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    images = images.float()
    if normalised is not None:
        mean, std = (torch.tensor(each, device=images.device).view(-1, 1, 1) for each in normalised)
        images = images * std + mean
    return images.clamp(0, 1)


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value per channel, float64 (C,); uint8 as pixels in [0, 1]."""
    low, high = (each.double().cpu() for each in (images.amin((0, 2, 3)), images.amax((0, 2, 3))))
    return (low / 255, high / 255) if images.dtype == torch.uint8 else (low, high)


def _check_range(low: Tensor, high: Tensor, normalised: Normalisation | None, title: str) -> None:
    """Refuse values that are no pixels in [0, 1], after undoing what is known to have been done.

    Raises:
        ConfigError: saying the range and what to do.
        DataError: there are values that are not finite.
    """
    if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise DataError(f"{title}: images hold values that are not finite: mend the transform")
    undone = ""
    if normalised is not None:
        if len(normalised[0]) not in (1, len(low)) or len(normalised[1]) not in (1, len(low)):
            raise ConfigError(
                f"mean and std: {len(normalised[0])} and {len(normalised[1])} values for {len(low)} channels"
            )
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in normalised)
        low, high, undone = low * std + mean, high * std + mean, " when mean and std are undone"
    least, most = float(low.min()), float(high.max())
    if least >= -ROOM and most <= 1 + ROOM:
        return
    seen = f"{title}: images lie in [{least:.3g}, {most:.3g}]{undone}, and pixels in [0, 1] are expected"
    if undone:
        raise ConfigError(
            f"{seen}: give the mean= and std= that the loader's Normalize has, and let nothing random come after it"
        )
    if least >= 0 and most > 1 + OVERSHOOT:
        raise ConfigError(f"{seen}: divide by 255, or give uint8 images")
    if least >= -OVERSHOOT and most <= 1 + OVERSHOOT:
        raise ConfigError(
            f"{seen}: a resize of floats can do that: end the transform with clamp(0, 1); if the loader normalises "
            "(Normalize), drop that, or give its mean= and std="
        )
    raise ConfigError(
        f"{seen}: the loader normalises: drop Normalize from the transform, or give the same mean= and std= here (in "
        "sdb.data.from_loaders)"
    )
