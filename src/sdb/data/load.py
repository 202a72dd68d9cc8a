"""From a name, arrays or Python objects to `Splits`."""

import difflib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data import carve, digits, hub
from sdb.data.cifar import cifar10, cifar100
from sdb.data.folder import folder
from sdb.data.idx import fashion_mnist
from sdb.data.image_cache import ImageCache
from sdb.data.places import some
from sdb.data.source import Part, Source
from sdb.data.splits import ImageSet, Splits
from sdb.data.tiny_imagenet import tiny_imagenet
from sdb.errors import ConfigError, DataError
from sdb.runtime import expand

SUBSET_SEED = 230  # the part of the training set is the same whatever the run's seed, as in Nasty Teacher
TEST_FRACTION = 0.2  # of the images of a folder that has no test images

DATASETS: dict[str, Callable[[Path | None], Source]] = {
    "digits": lambda root: digits.read(),
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "tiny_imagenet": tiny_imagenet,
    "folder": folder,
}
HUB = "hub:"  # before owner/name
# Those whose images lie each in a file of its own: they can be brought to another size, and streamed.
SINGLE_FILES = {"tiny_imagenet": tiny_imagenet, "folder": folder}
MINIATURE = 1000  # images in each part, below which a copy of a well-known data set is not taken for the real one
STREAM_BYTES = 16 * 2**30  # a set that takes more when decoded is streamed unless something else is said

log = logging.getLogger(__name__)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    subset_percent: float = 1.0,
    cache: str | Path | None = None,
    image_size: int | None = None,
    stream: bool | None = None,
    pictures: Pictures = DEFAULT_PICTURES,
) -> Splits:
    """Load a data set by name.

    Args:
        name: a key of `DATASETS`, or "hub:owner/name" for a data set of the Hugging Face hub (extra `hf`).
        root: folder that holds it; by default the folder named by SDB_DATA, else ./data.
        validation_fraction: part of the training images held out for selection, in (0, 0.5]; each class gives
            its share. Not used where the data set brings validation images of its own.
        seed: chooses the validation images (and, where a data set has none, the test images).
        subset_percent: part of the training images, after validation, to train on, as a fraction in (0, 1].
        cache: folder for decoded images; by default the folder named by SDB_CACHE, else ~/.cache/sdb.
        image_size: of folder, tiny_imagenet and hub: the side in pixels of the square to which every image is brought,
            as `pictures` says. None leaves them as they are.
        stream: of the same: decode an image when a batch needs it, in place of all of them once into the cache. None
            streams a set that takes more than `STREAM_BYTES` when decoded. The batches are the same, bit for bit; the
            channels' mean and deviation are those of a sample (`sdb.data.stats`).
        pictures: how pictures become pixels, here and where a model of this data is served: the images of folder,
            tiny_imagenet and hub are decoded so; those of the other sets have one size, no transparency and no turns.

    Raises:
        ConfigError: an unknown name, or a value out of range, or that the data set does not have.
        DataNotFoundError: the data set is not where it was looked for.
        DataError: it is damaged or inconsistent.
        MissingExtraError: its format needs an optional dependency.
    """
    check(validation_fraction, seed, subset_percent)
    where = None if root is None else expand(root)
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size {image_size}: expected 1 or more")
    if name.startswith(HUB):
        source = hub.read(name.removeprefix(HUB), image_size, pictures)
    elif name in SINGLE_FILES:
        source = SINGLE_FILES[name](where, image_size, pictures)
    elif name in DATASETS:
        if image_size is not None or stream:
            raise ConfigError(
                f"{'stream' if image_size is None else 'image_size'}: the images of {name} have one size and do not "
                f"lie in files of their own: leave it out, or take {', '.join(SINGLE_FILES)} or hub:owner/name"
            )
        source = DATASETS[name](where)
    else:
        near = difflib.get_close_matches(name, DATASETS, 1)
        raise ConfigError(
            f"unknown data set {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: "
            f"expected one of {', '.join(DATASETS)}, or hub:owner/name"
        )
    return split(
        source,
        validation_fraction=validation_fraction,
        seed=seed,
        subset_percent=subset_percent,
        cache=cache,
        stream=stream,
        pictures=pictures,
    )


def check(validation_fraction: float, seed: int, subset_percent: float) -> None:
    """Refuse values out of range.

    Raises:
        ConfigError: naming the value and its range.
    """
    if not 0 < validation_fraction <= 0.5:
        raise ConfigError(f"validation_fraction {validation_fraction}: expected more than 0 and at most 0.5")
    if not 0 < subset_percent <= 1:
        raise ConfigError(f"subset_percent {subset_percent}: expected a fraction, more than 0 and at most 1")
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected 0 or more")


def split(
    source: Source,
    *,
    validation_fraction: float,
    seed: int,
    subset_percent: float,
    cache: str | Path | None,
    stream: bool | None = None,
    pictures: Pictures | None = None,
) -> Splits:
    """Decode or stream what is not decoded yet, carve off what the source lacks, and measure the training pixels."""
    store = ImageCache(cache)
    given = {"train": source.train, "test": source.test, "validation": source.validation}
    present = {role: part for role, part in given.items() if part is not None}
    streamed = _streamed(present) if stream is None or stream else None
    if streamed is not None and (
        stream or sum(images.images.nbytes for images in streamed.values()) > STREAM_BYTES
    ):
        sets = streamed
    else:
        sets = {role: _decoded(source, role, part, store) for role, part in present.items()}
    _check_whole(source, sets)
    train, test, validation = sets["train"], sets.get("test"), sets.get("validation")
    note = source.note
    if test is None:
        keep, held = carve.stratified(train.labels, TEST_FRACTION, seed=seed)
        train, test = train.take(keep), train.take(held)
        note = f"{note}; test is {TEST_FRACTION:.0%} of the images, chosen by seed {seed}".lstrip("; ")
    if validation is None:
        keep, held = carve.stratified(train.labels, validation_fraction, seed=seed)
        train, validation = train.take(keep), train.take(held)
    if subset_percent < 1:
        train = train.take(carve.subset(len(train), subset_percent, seed=SUBSET_SEED))
    for part, images in (("training", train), ("validation", validation), ("test", test)):
        if not len(images):
            raise DataError(f"{source.name}: no {part} images are left: give more images or larger fractions")
    without = np.flatnonzero(np.bincount(train.labels, minlength=len(source.class_names)) == 0)
    if len(without):
        names = some([source.class_names[number] for number in without])
        log.warning("%s: no training image of class %s: a network cannot learn it", source.name, names)
    mean, std = store.stats(train)
    names, augment = source.class_names, source.augment
    return Splits(source.name, train, validation, test, names, mean, std, augment, note, pictures)


def _check_whole(source: Source, sets: dict[str, ImageSet]) -> None:
    """Refuse a copy of a well-known data set that lacks images; tiny copies, made for tests, are let pass.

    Raises:
        DataError: naming the part.
    """
    if max(len(images) for images in sets.values()) < MINIATURE:
        return
    for role, size in source.sizes.items():
        if len(sets[role]) != size:
            raise DataError(
                f"{source.name}: its {role} part holds {len(sets[role])} images, {size} are expected: get the data set "
                "again (subset_percent trains on fewer; a data set of your own is a folder)"
            )


def _streamed(parts: dict[str, Part | ImageSet]) -> dict[str, ImageSet] | None:
    """The parts as sets that decode when they are indexed; None where one of them cannot be one."""
    sets = {}
    for role, part in parts.items():
        if isinstance(part, ImageSet) or part.stream is None:
            return None
        sets[role] = part.stream()
    return sets


def _decoded(source: Source, role: str, part: Part | ImageSet, store: ImageCache) -> ImageSet:
    return part if isinstance(part, ImageSet) else store.images(f"{source.name}-{role}", part)
