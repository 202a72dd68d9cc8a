"""Tiny ImageNet, from the folders that its archive unpacks to.

Its test images come without labels, so what it calls validation is our test set, as in the papers that use
it.

Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip
"""

from collections import Counter
from pathlib import Path

import numpy as np

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data import listing
from sdb.data.places import folders, not_found, some
from sdb.data.source import Source
from sdb.data.splits import Augment
from sdb.errors import DataError

AUGMENT = Augment(flip=True, rotation=20.0)
_FOLDERS = ("tiny-imagenet-200", "tiny_imagenet", "tiny-imagenet", "data-tiny-imagenet")


def tiny_imagenet(root: Path | None, size: int | None = None, choices: Pictures = DEFAULT_PICTURES) -> Source:
    """Tiny ImageNet: uint8 (N, 3, 64, 64) or another size, 100,000 and 10,000 images, 200 classes by wnid."""
    looked = folders(root, _FOLDERS)
    base = next(
        (folder for folder in looked if (folder / "wnids.txt").is_file() and (folder / "val").is_dir()), None
    )
    if base is None:
        raise not_found(
            "Tiny ImageNet",
            looked,
            "wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt",
            "Get and unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip.",
        )
    wnids = tuple(sorted((base / "wnids.txt").read_text().split()))
    train, test = listing.labelled(base, base / "train", wnids), _validation(base, wnids)
    _check_whole(train, base / "train", wnids)
    _check_whole(test, base / "val", wnids)
    return Source(
        name="tiny_imagenet",
        train=listing.part(train, 3, size, choices),
        test=listing.part(test, 3, size, choices),
        class_names=_names(base, wnids),
        augment=AUGMENT,
        note="Tiny ImageNet; test is the distributed validation set",
        sizes={"train": 100_000, "test": 10_000},
    )


def _check_whole(files: listing.Listing, place: Path, wnids: tuple[str, ...]) -> None:
    """Refuse a part that lacks classes, or images of some: all classes have equally many.

    Raises:
        DataError: naming the classes.
    """
    counts = np.bincount(files.labels, minlength=len(wnids))
    if missing := [wnid for wnid, count in zip(wnids, counts, strict=True) if not count]:
        raise DataError(
            f"{place}: {len(missing)} of {len(wnids)} classes have no images: {some(missing)}: unpack the archive again"
        )
    if short := [f"{wnid} ({count})" for wnid, count in zip(wnids, counts, strict=True) if count < counts.max()]:
        raise DataError(
            f"{place}: some classes have fewer images than the {counts.max()} of others: {some(short)}: unpack the "
            "archive again"
        )


def _validation(base: Path, wnids: tuple[str, ...]) -> listing.Listing:
    """Files and labels of the validation folder, as distributed or sorted into class folders.

    The usual scripts sort the images into val/WNID/ or val/WNID/images/, and leave the annotations behind.
    """
    val, images = base / "val", base / "val" / "images"
    annotations = val / "val_annotations.txt"
    if not annotations.is_file() or not images.is_dir() or not any(images.iterdir()):
        return listing.labelled(base, val, wnids, without=("images",))
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    names, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        name, wnid, *_ = [*line.split("\t"), ""]
        file = val / "images" / Path(name).name
        if wnid not in numbers:
            raise DataError(f"{annotations} line {number}: class {wnid!r} is not in wnids.txt")
        if not file.is_file():
            raise DataError(f"{annotations} line {number}: {file} is missing")
        names.append(file.relative_to(base).as_posix())
        labels.append(numbers[wnid])
    return listing.Listing(base, names, np.array(labels, np.int64))


def _names(base: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """The first word for each class; the wnid where there is none, or beside it where two share it."""
    words: dict[str, str] = {}
    if (base / "words.txt").is_file():
        lines = (base / "words.txt").read_text(errors="replace").splitlines()
        words = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    names = [words.get(wnid) or wnid for wnid in wnids]
    often = Counter(names)
    return tuple(name if often[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))
