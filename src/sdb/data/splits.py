"""What a data set is to the rest of the library: uint8 arrays, labels, augmentation, normalisation."""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from sdb.config import Pictures
from sdb.data.rows import Rows, select
from sdb.data.streamed import Streamed
from sdb.errors import ConfigError, DataError

UNPAIRED = re.compile("[\ud800-\udfff]")  # surrogates, which no file of UTF-8 can hold


@dataclass(frozen=True, slots=True)
class Augment:
    """Random changes made to training images, on the device, a batch at a time.

    Attributes:
        crop_padding: pixels of zero padding around the image before a random crop of the original size; 0 is
            off.
        flip: whether half the images are mirrored left to right.
        rotation: images are turned by a random angle in [-rotation, rotation] degrees; 0 is off.
        resized_crop: least and largest share of the area that a random window has, which is then brought to the full
            size; None is off. The window's aspect ratio is between 3/4 and 4/3.

    Raises:
        ConfigError: `resized_crop` is out of range.
    """

    crop_padding: int = 0
    flip: bool = False
    rotation: float = 0.0
    resized_crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.resized_crop is not None and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ConfigError(f"resized_crop {self.resized_crop}: expected 0 < least <= largest <= 1")


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images and labels, decoded once, or each time where they are streamed.

    Attributes:
        images: uint8 (N, C, H, W): an array, a memory map larger than memory, `Streamed`, or `Rows` of one. All
            have `shape`, `len` and indexing along the first axis; `np.asarray` makes an array of any of them.
        labels: int64 (N,), each in [0, number of classes).
    """

    images: np.ndarray | Rows | Streamed
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DataError(
                f"images must be uint8 (N, C, H, W), not {self.images.dtype} {self.images.shape}: "
                "scale to 0..255 and order the axes first"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.images),):
            raise DataError(
                f"labels must be int64 ({len(self.images)},), not {self.labels.dtype} {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, positions: np.ndarray) -> "ImageSet":
        """The images at `positions` (int64 (n,)) as a set of their own; a memory map is not copied."""
        return ImageSet(select(self.images, positions), self.labels[positions])


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Train, validation and test sets of one data set. Selection uses validation; test is only for reporting.

    Attributes:
        name: the data set's name, for records.
        train, validation, test: validation is carved from the training images by seed.
        class_names: one name a class, in label order.
        mean, std: per channel, of training pixels in [0, 1]; they become part of every model.
        augment: what the data set's training images get when augmentation is on.
        note: what to say of numbers that come from this data (source, licence, caveats).
        pictures: how pictures became these pixels, and are to become them for a model of this data; None where nobody
            said.
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment = Augment()
    note: str = ""
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        check_names(self.class_names, self.name)
        for part in ("train", "validation", "test"):
            labels = getattr(self, part).labels
            if len(labels) and not (labels.min() >= 0 and labels.max() < self.num_classes):
                bad = labels.max() if labels.max() >= self.num_classes else labels.min()
                raise DataError(
                    f"{self.name} {part}: label {bad} is outside 0..{self.num_classes - 1} "
                    f"({self.num_classes} classes): number the classes from 0 or name all of them"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W)."""
        return self.train.image_shape


def check_names(names: tuple[str, ...], title: str) -> None:
    """Refuse class names that are there twice, or that no file can hold.

    Raises:
        DataError: naming one; the message begins with `title`.
    """
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{title}: two classes are called {twice[0]!r}: give each class a name of its own")
    if broken := [name for name in names if UNPAIRED.search(name)]:
        raise DataError(f"{title}: class name {broken[0]!r} holds half a character: give it as Unicode text")
