"""`Splits` from what a program already has: arrays, or `datasets` objects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data import hub
from sdb.data.load import check, split
from sdb.data.places import some
from sdb.data.source import Source
from sdb.data.splits import Augment, ImageSet, Splits
from sdb.errors import DataError

Layout = Literal["NCHW", "NHWC"]
MAX_CHANNELS = 4


def from_arrays(
    images: Any,
    labels: Any,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    layout: Layout = "NCHW",
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    augment: Augment | None = None,
    note: str = "",
    validation_fraction: float = 0.1,
    seed: int = 0,
    subset_percent: float = 1.0,
    pictures: Pictures | None = None,
) -> Splits:
    """Make a data set of arrays.

    Args:
        images: uint8 (N, C, H, W), (N, H, W, C) with `layout="NHWC"`, or grey (N, H, W).
        labels: whole numbers (N,), from 0.
        test_images: images to test on; without them, they are carved from `images` by seed.
        test_labels: their labels.
        layout: order of the axes of four-axis images.
        class_names: one per class; by default the numbers, and then each number has images.
        name: as in `Splits`.
        augment: as in `Splits`; none by default.
        note: as in `Splits`.
        validation_fraction: as in `load`.
        seed: as in `load`.
        subset_percent: as in `load`.
        pictures: how pictures became these arrays, for whoever serves a model of them.

    Raises:
        DataError: arrays of the wrong type or shape, or that do not fit each other.
        ConfigError: a value out of range.
    """
    check(validation_fraction, seed, subset_percent)
    if (test_images is None) != (test_labels is None):
        raise DataError("test_images and test_labels: give both or neither")
    train = image_set(images, labels, layout, "images")
    test = None if test_images is None else image_set(test_images, test_labels, layout, "test_images")
    if test is not None and test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            f"test images are {test.images.shape[1:]}, training images {train.images.shape[1:]} (C, H, W)"
        )
    names = numbered(train.labels) if class_names is None else tuple(map(str, class_names))
    source = Source(name, train, test, names, augment or Augment(), note)
    return split(
        source,
        validation_fraction=validation_fraction,
        seed=seed,
        subset_percent=subset_percent,
        cache=None,
        pictures=pictures,
    )


def from_dataset(
    train: Any,
    test: Any = None,
    *,
    name: str = "dataset",
    validation_fraction: float = 0.1,
    seed: int = 0,
    subset_percent: float = 1.0,
    cache: str | Path | None = None,
    image_size: int | None = None,
    stream: bool | None = None,
    pictures: Pictures = DEFAULT_PICTURES,
) -> Splits:
    """Make a data set of `datasets` objects that have an Image and a ClassLabel column.

    Args:
        train: a Dataset, or a DatasetDict with a train split. Its test split is used for testing, or
            validation where there is no test; a validation split beside a test split is used for validation.
        test: a Dataset to test on instead.
        name: for records and the cache.
        validation_fraction: as in `load`.
        seed: as in `load`.
        subset_percent: as in `load`.
        cache: as in `load`.
        image_size: as in `load`.
        stream: as in `load`.
        pictures: as in `load`.

    Raises:
        DataError: there is no image or class column, or an image or label is damaged.
        ConfigError: a value out of range.
    """
    check(validation_fraction, seed, subset_percent)
    source = hub.source(train, test, name, image_size, pictures)
    return split(
        source,
        validation_fraction=validation_fraction,
        seed=seed,
        subset_percent=subset_percent,
        cache=cache,
        stream=stream,
        pictures=pictures,
    )


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """The classes' numbers as their names.

    Raises:
        DataError: there are numbers without an image.
    """
    used = np.unique(labels)
    count = max(int(used[-1]) + 1, 1)
    if used[0] >= 0 and len(used) < count:
        first = int(np.flatnonzero(used != np.arange(len(used)))[0])
        raise DataError(
            f"labels {some(list(map(str, used)))}: none is one of {count - len(used)} numbers up to {used[-1]}, such "
            f"as {first}: number the {len(used)} classes from 0, or name all {count} with class_names"
        )
    return tuple(map(str, range(count)))


def image_set(images: Any, labels: Any, layout: Layout, title: str) -> ImageSet:
    """Arrays as a set; see `from_arrays`.

    Raises:
        DataError: they are of a wrong type or shape; the message begins with `title`.
    """
    pixels, numbers = np.asanyarray(images), np.asarray(labels)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or not len(pixels):
        raise DataError(
            f"{title}: {pixels.dtype} {pixels.shape}, expected uint8 (N, H, W) or four axes, not empty: "
            "scale pixels to 0..255"
        )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif layout == "NHWC":
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.shape[1] > MAX_CHANNELS:
        raise DataError(
            f"{title}: {pixels.shape[1]} channels when read as {layout}: pass layout="
            f"{'NHWC' if layout == 'NCHW' else 'NCHW'!r}"
        )
    if numbers.dtype.kind not in "iu" or numbers.shape != (len(pixels),):
        raise DataError(
            f"labels of {title}: {numbers.dtype} {numbers.shape}, expected whole numbers ({len(pixels)},)"
        )
    return ImageSet(pixels, numbers.astype(np.int64))
