"""Any folder of class folders.

Either ROOT/train/CLASS/IMAGE with ROOT/test (or ROOT/val, when there is no test) and optionally
ROOT/validation (or ROOT/val, beside test); or only ROOT/CLASS/IMAGE, of which `load` carves a test set by its
seed.
"""

import logging
from pathlib import Path

from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.data import listing
from sdb.data.pixels import channels_of
from sdb.data.places import folders, not_found, some
from sdb.data.source import NO_AUGMENT, PHOTOGRAPHS, Source

_VALIDATION = ("validation", "valid", "val")

log = logging.getLogger(__name__)


def folder(root: Path | None, size: int | None = None, choices: Pictures = DEFAULT_PICTURES) -> Source:
    """Images sorted into folders by class: uint8 (N, 3, H, W), or (N, 1, H, W) where all images are grey.

    Args:
        root: the folder.
        size: side to bring the images to; they are then taken for photographs, see `PHOTOGRAPHS`.
        choices: how pictures become pixels.
    """
    base = folders(root, ())[0]
    train = base / "train" if (base / "train").is_dir() else base
    classes = tuple(listing.class_name(child) for child in listing.class_folders(train))
    if not classes:
        raise not_found(
            "A folder of class folders",
            [base],
            "train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE",
            "Sort the images into one folder a class.",
        )
    given = {"train": train}
    if train != base:
        held = [base / name for name in _VALIDATION if (base / name).is_dir()]
        if (base / "test").is_dir():
            given["test"] = base / "test"
            if held:
                given["validation"] = held[0]
        elif held:
            given["test"] = held[0]
    listings = {role: listing.labelled(base, place, classes) for role, place in given.items()}
    for role, files in listings.items():
        if absent := [name for number, name in enumerate(classes) if number not in set(files.labels.tolist())]:
            log.warning("%s: has no folder for %s: these classes are not judged", given[role], some(absent))
    train_files = listings["train"]
    channels = channels_of(train_files.read(number) for number in range(len(train_files)))
    parts = {role: listing.part(files, channels, size, choices) for role, files in listings.items()}
    return Source(
        name=f"folder-{base.absolute().name}",
        train=parts["train"],
        test=parts.get("test"),
        class_names=classes,
        augment=NO_AUGMENT if size is None else PHOTOGRAPHS,
        note=f"images of the folder {base.absolute().name}",
        validation=parts.get("validation"),
    )
