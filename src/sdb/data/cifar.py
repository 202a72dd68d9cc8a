"""CIFAR-10 and CIFAR-100, from any of the forms in which they are handed out.

Parquet as on the Hugging Face hub (uoft-cs/cifar10, uoft-cs/cifar100), the original Python archives and the
original binary archives, packed or unpacked.

Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; layouts from
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdb.data import parquet
from sdb.data.archives import read_files
from sdb.data.pictures import JPEG_START
from sdb.data.places import folders, incomplete, not_found
from sdb.data.source import Decoding, Part, Source
from sdb.data.splits import Augment
from sdb.data.unpickle import read_pickle
from sdb.errors import DataError

PIXELS = 3 * 32 * 32
AUGMENT = Augment(crop_padding=4, flip=True)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100_CLASSES.split())


@dataclass(frozen=True, slots=True)
class _Kind:
    """What tells the two data sets apart.

    Attributes:
        folders: usual names of its folder.
        python, binary: names of the unpacked folder and the packed archive.
        train, test: names of the files in these; binary ones end with .bin.
        label: entry of the pickled dictionaries.
        label_bytes: bytes before the pixels of a binary record, of which the last is the label.
        columns: names of the parquet column.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    python: tuple[str, str]
    binary: tuple[str, str]
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: str
    label_bytes: int
    columns: tuple[str, ...]


_Parse = Callable[[_Kind, bytes, str], tuple[np.ndarray, np.ndarray]]  # to uint8 (N, 3, 32, 32) and labels

_CIFAR10 = _Kind(
    name="cifar10",
    title="CIFAR-10",
    classes=CIFAR10_CLASSES,
    folders=("cifar10", "cifar-10", "data-cifar10", "CIFAR10", "cifar10/plain_text"),
    python=("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    binary=("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    label="labels",
    label_bytes=1,
    columns=("label",),
)
_CIFAR100 = _Kind(
    name="cifar100",
    title="CIFAR-100",
    classes=CIFAR100_CLASSES,
    folders=("cifar100", "cifar-100", "data-cifar100", "CIFAR100", "cifar100/cifar100"),
    python=("cifar-100-python", "cifar-100-python.tar.gz"),
    binary=("cifar-100-binary", "cifar-100-binary.tar.gz"),
    train=("train",),
    test=("test",),
    label="fine_labels",
    label_bytes=2,
    columns=("fine_label", "label"),
)


def cifar10(root: Path | None) -> Source:
    """CIFAR-10: uint8 (N, 3, 32, 32), 50,000 and 10,000 images, ten classes."""
    return _find(_CIFAR10, root)


def cifar100(root: Path | None) -> Source:
    """CIFAR-100 with its fine labels: uint8 (N, 3, 32, 32), 50,000 and 10,000 images, a hundred classes."""
    return _find(_CIFAR100, root)


def _find(kind: _Kind, root: Path | None) -> Source:
    looked = folders(root, kind.folders)
    broken: list[DataError] = []
    for folder in looked:
        shards = [sorted(folder.glob(f"{role}-*.parquet")) for role in ("train", "test")]
        if any(shards):
            lost = [
                name for role, files in zip(("train", "test"), shards, strict=True) for name in _lost(role, files)
            ]
            if not lost:
                return _from_parquet(kind, *shards)
            broken.append(incomplete(kind.title, folder, lost))
        for (unpacked, packed), end, parse in (
            (kind.python, "", _from_pickle),
            (kind.binary, ".bin", _from_binary),
        ):
            parts = [tuple(f"{name}{end}" for name in names) for names in (kind.train, kind.test)]
            for place in (folder / unpacked, folder / packed, folder):
                absent = _absent(place, packed, [name for names in parts for name in names])
                if absent == []:
                    return _source(kind, [_original(kind, place, names, parse) for names in parts])
                if absent:
                    broken.append(incomplete(kind.title, place, absent))
    if broken:
        raise broken[0]
    raise not_found(
        kind.title,
        looked,
        f"train-*.parquet and test-*.parquet, or {', '.join((*kind.python, *kind.binary))}",
        f"Get {kind.python[1]} from https://www.cs.toronto.edu/~kriz/cifar.html (no need to unpack it), "
        f"or the parquet files of uoft-cs/{kind.name} from the Hugging Face hub.",
    )


def _absent(place: Path, packed: str, names: Sequence[str]) -> list[str] | None:
    """Which of the files a place lacks; None where it holds none of them."""
    if place.is_file():
        return [] if place.name == packed else None
    absent = [name for name in names if not (place / name).is_file()]
    return None if len(absent) == len(names) else absent


def _lost(role: str, files: Sequence[Path]) -> list[str]:
    return parquet.lost_shards(files) if files else [f"{role}-*.parquet"]


def _source(kind: _Kind, parts: Sequence[Part], note: str = "") -> Source:
    sizes = {"train": 50_000, "test": 10_000}
    return Source(kind.name, parts[0], parts[1], kind.classes, AUGMENT, note or kind.title, sizes=sizes)


def _from_parquet(kind: _Kind, train: list[Path], test: list[Path]) -> Source:
    image = parquet.find_column(train[0], ("img", "image"))
    label = parquet.find_column(train[0], kind.columns)
    names = parquet.class_names(train[0], label)
    if names is not None and len(names) != len(kind.classes):
        raise DataError(f"{train[0]}: {len(names)} classes, but {kind.title} has {len(kind.classes)}")
    lossy = parquet.first_image(train[0], image).startswith(JPEG_START)
    note = f"{kind.title} (JPEG): the images are not the lossless originals" if lossy else ""
    parts = [parquet.part(files, image, label, 3, len(kind.classes)) for files in (train, test)]
    return _source(kind, parts, note)


def _original(kind: _Kind, place: Path, names: Sequence[str], parse: _Parse) -> Part:
    """The images of some files of an original archive, packed or not. They fit in memory."""

    def decode() -> Decoding:
        files = read_files(place, names)
        decoded = [parse(kind, data, f"{place}: {name}") for name, data in files.items()]
        most = max(len(labels) for _, labels in decoded)
        for name, (_, labels) in zip(files, decoded, strict=True):
            if len(labels) < most:
                raise DataError(
                    f"{place}: {name} holds {len(labels)} images, the others {most}: cut short: get the data set again"
                )
        return Decoding(sum(len(labels) for _, labels in decoded), decoded)

    files = (place,) if place.is_file() else tuple(place / name for name in names)
    return Part(files, f"{kind.name} {' '.join(names)}", decode)


def _from_pickle(kind: _Kind, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(data, where)
    pixels, labels = content.get("data"), content.get(kind.label)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise DataError(f"{where}: expected an entry data of shape (N, {PIXELS})")
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not whole or len(labels) != len(pixels):
        raise DataError(f"{where}: expected an entry {kind.label}: a list of {len(pixels)} whole numbers")
    return _checked(kind, pixels, np.array(labels, np.int64), where)


def _from_binary(kind: _Kind, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    size = kind.label_bytes + PIXELS
    if not data or len(data) % size:
        raise DataError(
            f"{where}: {len(data)} bytes, expected a multiple of {size}: cut short or another data set"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, kind.label_bytes - 1].astype(np.int64)
    return _checked(kind, records[:, kind.label_bytes :], labels, where)


def _checked(kind: _Kind, pixels: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    outside = labels[(labels < 0) | (labels >= len(kind.classes))]
    if len(outside):
        raise DataError(f"{where}: label {outside[0]} is outside 0..{len(kind.classes) - 1}")
    return pixels.reshape(-1, 3, 32, 32), labels
