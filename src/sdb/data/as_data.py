"""Data as people have them: loaders, datasets, arrays, folders, alone or in parts; `as_data` takes them all.

uint8 arrays become `Splits`, whose batches are made here, on the device. What gives its images itself, a loader or a
dataset, becomes `LoaderSplits`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from sdb.config import Pictures
from sdb.data.batch_items import labels_of
from sdb.data.given import (
    EXPECTED,
    Given,
    hold_out,
    is_arrays,
    is_huggingface,
    own_names,
    recognise,
    warn_if_random,
)
from sdb.data.load import DATASETS, HUB, load
from sdb.data.loader_sets import LoaderBatches, LoaderSet, Normalisation, look_through
from sdb.data.objects import from_dataset, numbered
from sdb.data.places import some
from sdb.data.source import NO_AUGMENT
from sdb.data.splits import Augment, ImageSet, Splits, check_names
from sdb.data.stats import channel_stats
from sdb.errors import ConfigError, DataError

PARTS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
DECODED_BYTES = 16 * 2**30  # of loaders' images that are kept in memory for an audit

log = logging.getLogger(__name__)


class Samples(Protocol):
    """A map-style dataset: (image, label) by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


@dataclass(frozen=True, slots=True, eq=False)
class LoaderSplits:
    """`Splits` of which at least one part is a loader's or a dataset's; see there.

    Attributes:
        name: for records.
        train, validation: for training and for selection.
        test: None where none was given; what is only reported on test images says so.
        class_names: one name per class, in label order.
        mean, std: per channel, of training pixels in [0, 1].
        augment: nothing: images come as the caller's transforms leave them.
        note: what to say of numbers that come from this data.
        pictures: as in `Splits`.
    """

    name: str
    train: LoaderSet | ImageSet
    validation: LoaderSet | ImageSet
    test: LoaderSet | ImageSet | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = NO_AUGMENT
    note: str = "from the caller's loaders"
    pictures: Pictures | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return self.train.image_shape


# What `wrap`, `distill`, `train` and `audit` take for data.
Data = Splits | LoaderSplits | Dataset[Any] | Samples | Iterable[Any] | Path


def as_data(
    data: Data,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits | LoaderSplits:
    """Take data in whatever form a program has them.

    Args:
        data: `Splits`, as they are; a DataLoader, or any iterable of batches that can be read again; a map-style or
            iterable dataset of (image, label); arrays (images, labels); a tuple (train, validation) or (train,
            validation, test), or a dictionary with these names, of such; a `datasets.Dataset` or DatasetDict; the path
            of a folder of class folders. See `from_loaders`.
        num_classes: where it is known, as of a network. Otherwise the dataset's own class names count, or the labels.
        mean: what the loader normalises with, where it does; undone, see `from_loaders`.
        std: the same.

    Raises:
        ConfigError, DataError: saying which argument, what came, and what to do.
    """
    if isinstance(data, (Splits, LoaderSplits)):
        return data
    if isinstance(data, (str, Path)):
        return _folder(data)
    if is_huggingface(data) and hasattr(data, "num_rows") and _unformatted(data):
        return from_dataset(data)
    if isinstance(data, Mapping):
        parts = _named_parts(data)
    elif isinstance(data, tuple) and not is_arrays(data):
        if len(data) not in (2, 3):
            raise ConfigError(f"data: a tuple of {len(data)}: {EXPECTED}")
        parts = dict(zip(("train", "validation", "test"), data, strict=False))
    else:
        parts = {"train": data}
    own = own_names(parts["train"])
    names = (
        own if num_classes is None or (own and len(own) == num_classes) else tuple(map(str, range(num_classes)))
    )
    return _made(parts, "data ({})", names, _both(mean, std))


def from_loaders(
    train: Any,
    validation: Any = None,
    test: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pictures: Pictures | None = None,
) -> Splits | LoaderSplits:
    """Make a data set of loaders, datasets or arrays.

    A loader's order, augmentation, batch size and workers are obeyed; `batch_size` and `augment` of the settings say
    nothing to it. Everything is read once at the start, so that what does not fit is refused before anything is
    trained. A run on loaders that is resumed is not the same, bit for bit, as one that was not interrupted. Only the
    caller's own code applies the caller's transforms: a box takes pixels in [0, 1].

    Args:
        train: a DataLoader (or any iterable of batches that can be read again), a map-style or iterable dataset, or
            arrays (images, labels). Images are uint8, or floats in [0, 1]; PIL images too in a dataset. A batch is
            (images, labels), or a dictionary with pixel_values, image or img, and label or labels. uint8 arrays are
            kept on the device, and batches are made there.
        validation: such, for selection. None holds out a tenth of `train`, by a fixed seed; of an iterable that cannot
            be.
        test: such, for reporting only.
        class_names: in label order; by default the dataset's `classes`, or the labels themselves, without a gap.
        mean: per channel, what the loaders normalise with (Normalize), where they do: it is undone. Where all images
            lie in [0, 1], there is nothing to undo.
        std: the same.
        pictures: how the caller's transforms make pixels of pictures, where chance has no part in it, for whoever
            serves a model of them.

    Raises:
        ConfigError: images are normalised and `mean` and `std` do not say how; a generator, which can be read only
            once; nothing to validate on.
        DataError: a batch is not (images, labels), images of one shape, labels in 0..classes-1; or there are none.
    """
    parts = {"train": train, "validation": validation, "test": test}
    names = own_names(train) if class_names is None else tuple(map(str, class_names))
    return replace(_made(parts, "{}", names, _both(mean, std)), pictures=pictures)


def as_images(
    images: Any,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    title: str = "validation",
) -> ImageSet | LoaderSet:
    """One part of what `as_data` takes: a loader, a dataset or arrays, for measuring; of `Splits`, the validation part.

    Args:
        images: as `validation` of `from_loaders`.
        num_classes: labels must be below.
        mean: as in `from_loaders`.
        std: the same.
        title: what to call it in an error.

    Raises:
        ConfigError, DataError: as `from_loaders`.
    """
    if isinstance(images, (Splits, LoaderSplits)):
        return images.validation
    source = recognise(images, title)
    warn_if_random(source, title)
    return _looked_at(source, title, num_classes, _both(mean, std))


def as_splits(
    data: Data,
    num_classes: int | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """What `as_data` takes, with test images, as uint8 arrays: loaders are read once, each image in one view.

    Args:
        data: as in `as_data`.
        num_classes: the same.
        mean: the same.
        std: the same.

    Raises:
        ConfigError: as `as_data`; there are no test images, or too many for memory.
    """
    made = as_data(data, num_classes, mean=mean, std=std)
    if made.test is None or not len(made.test):
        raise ConfigError(
            "data: there are no test images, and results are reported on these: give (train, validation, test)"
        )
    if isinstance(made, Splits):
        return made
    size = sum(len(part) for part in (made.train, made.validation, made.test)) * int(np.prod(made.image_shape))
    if size > DECODED_BYTES:
        raise ConfigError(
            f"data: {size / 2**30:.0f} GiB of decoded images, too many to keep: give a folder, or fewer images"
        )
    return Splits(
        made.name,
        _decoded(made.train),
        _decoded(made.validation),
        _decoded(made.test),
        made.class_names,
        made.mean,
        made.std,
        made.augment,
        made.note,
        made.pictures,
    )


def _decoded(part: LoaderSet | ImageSet) -> ImageSet:
    if isinstance(part, ImageSet):
        return part
    batches = list(LoaderBatches(part, "cpu").epoch(0))
    images = torch.cat([(batch.images * 255).round().to(torch.uint8) for batch in batches])
    return ImageSet(images.numpy(), torch.cat([batch.labels for batch in batches]).numpy())


def _folder(path: str | Path) -> Splits:
    if isinstance(path, str) and (path in DATASETS or path.startswith(HUB)) and not Path(path).is_dir():
        raise ConfigError(f"data: {path!r} is the name of a data set, not a folder: give sdb.load_data({path!r})")
    return load("folder", root=path)


def _unformatted(data: Any) -> bool:
    """Whether objects of `datasets` give their rows as they are stored, without a transform of the caller's."""
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    return all(part.format["type"] is None for part in parts)


def _named_parts(data: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a dictionary.

    Raises:
        ConfigError: a name is unknown, twice there or lacking.
    """
    parts: dict[str, Any] = {}
    for name, part in data.items():
        role = PARTS.get(name)
        if role is None or role in parts:
            raise ConfigError(
                f"data: a dictionary with {', '.join(map(repr, data))}: expected train, validation and test"
            )
        parts[role] = part
    if "train" not in parts:
        raise ConfigError(f"data: a dictionary with {', '.join(map(repr, data)) or 'nothing'}: expected train")
    return parts


def _both(mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation | None:
    if (mean is None) != (std is None):
        raise ConfigError("mean and std: give both or neither")
    if mean is None or std is None:
        return None
    if not all(value > 0 for value in std):
        raise ConfigError(f"std {tuple(std)}: expected values above 0")
    return tuple(map(float, mean)), tuple(map(float, std))


def _made(
    parts: Mapping[str, Any], title: str, names: tuple[str, ...] | None, given: Normalisation | None
) -> Splits | LoaderSplits:
    """Look at every part; the training images settle the classes that have no names.

    Args:
        parts: by name; None for one that is not given.
        title: of a part in an error, with a place for its name.
        names: of the classes, in label order; None numbers them.
        given: mean and deviation that loaders may normalise with.
    """
    if names is not None:
        check_names(names, "class_names")
    titles = {name: title.format(name) for name in parts}
    sources = {
        name: recognise(part, titles[name]) for name, part in parts.items() if part is not None or name == "train"
    }
    if "validation" not in sources:
        sources["train"], sources["validation"] = hold_out(sources["train"], titles["train"])
        titles["validation"] = f"{titles['train']}, held out"
    train = _looked_at(sources["train"], titles["train"], None if names is None else len(names), given)
    if names is None:
        names = numbered(train.labels if isinstance(train, ImageSet) else np.arange(train.num_classes))
    counts = train.counts if isinstance(train, LoaderSet) else np.bincount(train.labels, minlength=len(names))
    if without := [name for name, count in zip(names, counts, strict=True) if not count]:
        log.warning("%s: no training image of class %s: a network cannot learn it", titles["train"], some(without))
    validation = _judging(sources["validation"], titles["validation"], train, len(names), given)
    test = _judging(sources["test"], titles["test"], train, len(names), given) if "test" in sources else None
    log.info("data: %s", "; ".join(map(_path, [train, validation, *([test] if test is not None else [])])))
    measured = channel_stats(train) if isinstance(train, ImageSet) else (train.mean, train.std)
    if isinstance(train, ImageSet) and isinstance(validation, ImageSet) and not isinstance(test, LoaderSet):
        # A set without images stands for one that is not there.
        test = validation.take(np.arange(0)) if test is None else test
        return Splits("arrays", train, validation, test, names, *(given or measured))
    return LoaderSplits("loaders", train, validation, test, names, *(given or measured))


def _looked_at(
    source: ImageSet | Given, title: str, num_classes: int | None, given: Normalisation | None
) -> ImageSet | LoaderSet:
    if isinstance(source, ImageSet):
        labels_of(torch.from_numpy(source.labels), len(source), num_classes, title)
        return source
    return look_through(source.source, title, source.single, num_classes, given)


def _judging(
    source: ImageSet | Given,
    title: str,
    train: ImageSet | LoaderSet,
    num_classes: int,
    given: Normalisation | None,
) -> ImageSet | LoaderSet:
    """A part that accuracies are measured on."""
    warn_if_random(source, title)
    part = _looked_at(source, title, num_classes, given)
    if part.image_shape != train.image_shape:
        raise DataError(
            f"{title}: images are {part.image_shape}, training images {train.image_shape} (C, H, W): bring all to one "
            "size"
        )
    return part


def _path(part: ImageSet | LoaderSet) -> str:
    """How a part will be read, in words."""
    shape = "x".join(map(str, part.image_shape))
    if isinstance(part, ImageSet):
        return f"{len(part)} uint8 images {shape}, batches are made here, on the device"
    if part.single:
        return f"{len(part)} images {shape} of a dataset, read one by one with its own transforms"
    return f"{len(part)} images {shape} of a loader, with its own order, batches, transforms and workers"
