"""What a format's reader hands over, before validation images are carved off."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdb.data.splits import Augment, ImageSet


class Decoding(NamedTuple):
    """One decode in progress.

    Attributes:
        count: number of images in all.
        chunks: (images uint8 (n, C, H, W), labels int64 (n,)), in order; their n sum to `count`.
    """

    count: int
    chunks: Iterable[tuple[np.ndarray, np.ndarray]]


NO_AUGMENT = Augment()
# What images that are brought to one size get. A box starts from its teacher, so windows need not be as small as the
# 0.08 that training from scratch uses.
PHOTOGRAPHS = Augment(flip=True, resized_crop=(0.35, 1.0))


@dataclass(frozen=True, slots=True)
class Part:
    """Images that are still on disk.

    Attributes:
        files: everything that decoding reads; their contents are part of the cache's key.
        settings: how they are decoded, in words that change when the result would.
        decode: starts reading.
        stream: gives the same images as a set that decodes them when they are indexed; None where that cannot be.
    """

    files: Sequence[Path]
    settings: str
    decode: Callable[[], Decoding]
    stream: Callable[[], ImageSet] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A data set as its distributor splits it.

    Attributes:
        name: for records.
        train: training images, of which `load` carves validation unless that is given.
        test: None where there is none: `load` carves it from the training images.
        class_names, augment, note: as in `Splits`.
        validation: given validation images, or None.
        sizes: of "train" and "test", where everybody's copy has as many images.
    """

    name: str
    train: Part | ImageSet
    test: Part | ImageSet | None
    class_names: tuple[str, ...]
    augment: Augment = NO_AUGMENT
    note: str = ""
    validation: Part | ImageSet | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
