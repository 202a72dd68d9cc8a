"""What was given for a part of the data: arrays, a dataset or a loader; and a tenth of it held out for validation."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, Subset, TensorDataset

from sdb.data import carve
from sdb.data.batch_items import MOST_CHANNELS, ONLY, pair_of, picture
from sdb.data.objects import image_set
from sdb.data.splits import ImageSet
from sdb.errors import ConfigError, DataError

EXPECTED = (
    "expected a DataLoader, a dataset of pairs (image, label), arrays (images, labels), a tuple (train, validation) or "
    "(train, validation, test) or a dictionary of these, a datasets.Dataset, the path of a folder, or Splits"
)
HELD_OUT = 0.1  # of the training images, for validation, where none are given
HELD_OUT_SEED = 0
TABLES = {"pandas", "polars", "pyarrow"}

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """A loader or a dataset.

    Attributes:
        source: what can be read again and again.
        single: whether it gives single images, not batches.
    """

    source: Any
    single: bool


class Stream(IterableDataset):
    """An iterable dataset of another library, such as a `datasets.IterableDataset`, as torch's."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)


class Kept(Sampler[int]):
    """A sampler of the caller's, without the positions that are held out."""

    def __init__(self, sampler: Any, held: frozenset[int]) -> None:
        self.sampler, self.held = sampler, held

    def __iter__(self) -> Iterator[int]:
        return (position for position in self.sampler if position not in self.held)

    def set_epoch(self, epoch: int) -> None:
        """Tell the caller's sampler, if it wants to know."""
        if callable(tell := getattr(self.sampler, "set_epoch", None)):
            tell(epoch)


def recognise(part: Any, title: str) -> ImageSet | Given:
    """What a part is.

    Raises:
        ConfigError: it is nothing that gives images with labels, or can be read only once.
        DataError: arrays of a wrong type or shape.
    """
    if isinstance(part, ImageSet):
        return part
    if is_arrays(part) or type(part) is TensorDataset:
        return _arrays(part.tensors if isinstance(part, TensorDataset) else part, title)
    if isinstance(part, (np.ndarray, Tensor)):
        raise ConfigError(f"{title}: images without labels: give a pair (images, labels)")
    if _library(part) in TABLES:
        raise ConfigError(f"{title}: a {type(part).__name__}: {ONLY}")
    if isinstance(part, (str, bytes, Mapping)):
        raise ConfigError(f"{title}: a {type(part).__name__}: {EXPECTED}")
    stream = part.dataset if isinstance(part, DataLoader) else part
    if hasattr(part, "__next__") or (isinstance(stream, IterableDataset) and hasattr(stream, "__next__")):
        raise ConfigError(once(title))
    if isinstance(part, DataLoader):
        return Given(part, single=False)
    if isinstance(part, IterableDataset):
        return Given(part, single=True)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        if not len(part):
            raise DataError(f"{title}: it is empty: expected at least one image")
        return Given(part, single=True)
    if not hasattr(part, "__iter__"):
        raise ConfigError(f"{title}: a {type(part).__name__}: {EXPECTED}")
    if is_huggingface(part):
        return Given(Stream(part), single=True)
    return Given(part, single=False)


def once(title: str) -> str:
    """What is said of something that can be read only once."""
    return (
        f"{title}: it can be read only once, and every epoch reads it again: give a DataLoader, a dataset or a list "
        "in the place of a generator"
    )


def is_arrays(value: Any) -> bool:
    """Whether it is a pair (images, labels) of arrays."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], (np.ndarray, Tensor))


def is_huggingface(value: Any) -> bool:
    """Whether it is an object of the library `datasets`, which need not be installed."""
    return _library(value) == "datasets"


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def own_names(part: Any) -> tuple[str, ...] | None:
    """The class names that a dataset has, also one inside of a loader or of a subset."""
    while part is not None:
        features = getattr(part, "features", None)  # of the library `datasets`
        columns = features if isinstance(features, Mapping) else {}
        label = columns.get("label") or columns.get("labels")
        names = getattr(part, "classes", None) or getattr(label, "names", None)
        if isinstance(names, (list, tuple)):
            return tuple(map(str, names))
        part = getattr(part, "dataset", None)
    return None


def _arrays(pair: Any, title: str) -> ImageSet | Given:
    """uint8 arrays as a set; floats as a dataset."""
    if len(pair) < 2:
        raise DataError(f"{title}: images without labels: give a pair (images, labels)")
    images, labels = (each.detach().cpu().numpy() if isinstance(each, Tensor) else each for each in pair[:2])
    if images.dtype == np.uint8:
        last = images.ndim == 4 and images.shape[1] > MOST_CHANNELS >= images.shape[3]
        return image_set(images, labels, "NHWC" if last else "NCHW", title)
    if not len(images):
        raise DataError(f"{title}: it is empty: expected at least one image")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{title}: labels {labels.dtype} {labels.shape}: expected whole numbers ({len(images)},), from 0"
        )
    return Given(TensorDataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))), single=True)


def hold_out(train: ImageSet | Given, title: str) -> tuple[ImageSet | Given, ImageSet | Given]:
    """Training images without a tenth of them, and that tenth; by a fixed seed, so always the same.

    Raises:
        ConfigError: there is no telling which of its images are which.
        DataError: a tenth of so few is none.
    """
    if isinstance(train, ImageSet):
        keep, held = carve.stratified(train.labels, HELD_OUT, seed=HELD_OUT_SEED)
        _some(held, title)
        return train.take(keep), train.take(held)
    loader = None if train.single else train.source
    dataset: Any = train.source if train.single else getattr(loader, "dataset", None)
    plain = loader is None or (isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler)
    if not plain or isinstance(dataset, IterableDataset):
        raise ConfigError(
            f"{title}: no validation images can be held out of {'an iterable' if plain else 'a loader of this kind'}: "
            "give validation too, as (train, validation)"
        )
    size = len(dataset)
    held = np.sort(np.random.default_rng(HELD_OUT_SEED).permutation(size)[: round(HELD_OUT * size)])
    _some(held, title)
    keep = np.setdiff1d(np.arange(size), held)
    log.info("%s: %d of its %d images are held out for validation, by a fixed seed", title, len(held), size)
    apart = Subset(dataset, held.tolist())
    if loader is None:
        return Given(Subset(dataset, keep.tolist()), single=True), Given(apart, single=True)
    same = {
        name: getattr(loader, name)
        for name in (
            *("batch_size", "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn"),
            *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
        )
    }
    sampler = Kept(loader.sampler, frozenset(held.tolist()))
    return (
        Given(DataLoader(dataset, sampler=sampler, drop_last=loader.drop_last, **same), single=False),
        Given(DataLoader(apart, **same), single=False),
    )


def _some(held: np.ndarray, title: str) -> None:
    if not len(held):
        raise DataError(f"{title}: too few images to hold out a tenth for validation: give validation too")


def warn_if_random(part: ImageSet | Given, title: str) -> None:
    """Say so where the images that judge come out otherwise each time: a random transform."""
    if isinstance(part, ImageSet):
        return
    dataset = part.source if part.single else getattr(part.source, "dataset", None)
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return
    with contextlib.suppress(Exception):  # a collate function may make images of what is none yet
        first, second = (picture(pair_of(dataset[0], title)[0], title) for _ in range(2))
        if not torch.equal(first, second):
            log.warning(
                "%s: its images change from pass to pass (a random transform): accuracies are of changed images; give "
                "it a transform without chance",
                title,
            )
