"""Decoded images on disk: decode once, then map the file into memory.

One part of a data set (say, CIFAR-10's training images) is three files in the cache folder, named by a key:
KEY.images.npy, KEY.labels.npy and, written last, KEY.json, which says what the other two must hold. The key
is a hash of what the source's files hold, of how they are decoded and of the version of this layout.
Each file is written under a name of its own and then renamed: a reader sees a whole file or none, and
processes that decode the same part at once do the work twice and end with the same files.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sdb.data.rows import Rows
from sdb.data.source import Decoding, Part
from sdb.data.splits import ImageSet
from sdb.data.stats import channel_stats, sample_of
from sdb.data.streamed import Streamed
from sdb.errors import DataError, StorageError
from sdb.runtime import expand, has_home, json_text

DEFAULT_FOLDER = "~/.cache/sdb"
LAYOUT_VERSION = 1
HASHED_BYTES = 256 * 2**20  # of a part's files in all; of more, each file gives an equal share, spread over it
HASHED_FILES = 2**16  # of more files, as many are opened, spread over all; names and sizes are those of all
LEAST_SHARE = 8 * 2**10  # of a file, whatever the number of files
BLOCK = 64 * 2**10  # a share that is larger is read in pieces of this size
MEMORY_SHARE = 0.5  # of physical memory that decoded images may take when they cannot be cached

DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError)  # what reading a damaged entry may raise

log = logging.getLogger(__name__)


class ImageCache:
    """A cache folder.

    Args:
        folder: None is the folder named by SDB_CACHE, else ~/.cache/sdb; without a home nothing is kept.

    Raises:
        ConfigError: the folder begins with ~ and there is no such home.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        given = folder or os.environ.get("SDB_CACHE")
        self.keeps = bool(given) or has_home()
        self.folder = expand(given or DEFAULT_FOLDER) if self.keeps else Path(DEFAULT_FOLDER)

    def images(self, name: str, part: Part) -> ImageSet:
        """Decode a part, or map what an earlier call decoded.

        Args:
            name: of data set and part: the readable half of the cache's file names.
            part: what to decode.

        Returns:
            Images as a memory map; in memory where the cache folder cannot be written.

        Raises:
            DataError: the files are damaged or inconsistent.
            StorageError: the cache folder cannot be written and the images do not fit in memory.
        """
        if not self.keeps:
            log.warning(
                "there is no home folder, so no %s: decoding into memory; SDB_CACHE names one", self.folder
            )
            return self._in_memory(part)
        stem = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{_key(part)}"
        try:
            return self._read(stem)
        except FileNotFoundError:
            log.info("decoding %s into %s", name, self.folder)
        except DAMAGE as error:
            log.warning("cached %s in %s is damaged (%s): decoding again", stem, self.folder, error)
        try:
            self._write(stem, part)
            return self._read(stem)
        except OSError as error:
            log.warning("cannot cache images in %s (%s): decoding into memory", self.folder, error)
            return self._in_memory(part)

    def stats(self, train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`channel_stats`, kept in the cache for rows of a cached part; of streamed images, those of a sample."""
        source = train.images.source if isinstance(train.images, Rows) else train.images
        if isinstance(source, Streamed):
            sample = sample_of(len(train))
            rows = train.images.rows[sample] if isinstance(train.images, Rows) else sample
            return self._kept(f"streamed-{source.stamp(rows)}.stats.json", train.take(sample))
        if not isinstance(train.images, Rows) or not isinstance(train.images.source, np.memmap):
            return channel_stats(train)
        images = Path(str(train.images.source.filename)).resolve()
        if images.parent != self.folder.resolve():  # a memory map of the user's own, which may change
            return channel_stats(train)
        rows = hashlib.sha256(train.images.rows.tobytes()).hexdigest()[:16]
        return self._kept(f"{images.name.partition('.')[0]}.{rows}.stats.json", train)

    def _kept(self, name: str, images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """`channel_stats` of images, kept in a file of the cache."""
        if not self.keeps:
            return channel_stats(images)
        file = self.folder / name
        try:
            kept = json.loads(file.read_text())
            return tuple(map(float, kept["mean"])), tuple(map(float, kept["std"]))
        except FileNotFoundError:
            pass
        except DAMAGE as error:
            log.warning("cached %s is damaged (%s): measuring again", file, error)
        mean, std = channel_stats(images)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".tmp-") as work:
                _publish(Path(work), file, json_text({"mean": mean, "std": std}))
        except OSError as error:
            log.warning("cannot write %s (%s)", file, error)
        return mean, std

    def _read(self, stem: str) -> ImageSet:
        expected = json.loads((self.folder / f"{stem}.json").read_text())
        file = self.folder / f"{stem}.images.npy"
        images = np.load(file, mmap_mode="r")
        labels = np.load(self.folder / f"{stem}.labels.npy")
        if (
            list(images.shape) != expected["shape"]
            or hashlib.sha256(labels.tobytes()).hexdigest() != expected["labels"]
        ):
            raise ValueError(f"images {images.shape}, expected {expected['shape']}, or other labels")
        if "images" in expected and _digest(file, file.stat().st_size, HASHED_BYTES) != expected["images"]:
            raise ValueError("other pixels than were written")
        return ImageSet(images, labels)

    def _write(self, stem: str, part: Part) -> None:
        """Write chunk after chunk, so that a full disk is an OSError; a memory map would crash."""
        self.folder.mkdir(parents=True, exist_ok=True)
        decoding = part.decode()
        labels: list[np.ndarray] = []
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".tmp-") as work:
            pixels = Path(work) / "images"
            shape: tuple[int, ...] = ()
            with pixels.open("wb") as out:
                for images, classes in _checked(decoding):
                    if not labels:
                        shape = (decoding.count, *images.shape[1:])
                        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(out, header)
                    out.write(np.ascontiguousarray(images).data)
                    labels.append(classes)
            every = np.concatenate(labels)
            np.save(Path(work) / "labels.npy", every)
            written = _digest(pixels, pixels.stat().st_size, HASHED_BYTES)
            pixels.replace(self.folder / f"{stem}.images.npy")
            (Path(work) / "labels.npy").replace(self.folder / f"{stem}.labels.npy")
            entry = {"shape": shape, "labels": hashlib.sha256(every.tobytes()).hexdigest(), "images": written}
            _publish(Path(work), self.folder / f"{stem}.json", json_text(entry))

    def _in_memory(self, part: Part) -> ImageSet:
        decoding = part.decode()
        pixels: np.ndarray | None = None
        labels = np.empty(decoding.count, np.int64)
        done = 0
        for images, classes in _checked(decoding):
            if pixels is None:
                self._refuse_too_large(decoding.count * images[0].nbytes)
                pixels = np.empty((decoding.count, *images.shape[1:]), np.uint8)
            pixels[done : done + len(images)] = images
            labels[done : done + len(images)] = classes
            done += len(images)
        return ImageSet(pixels if pixels is not None else np.empty((0, 1, 1, 1), np.uint8), labels)

    def _refuse_too_large(self, size: int) -> None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory * MEMORY_SHARE:
            raise StorageError(
                f"decoded images take {size / 2**30:.1f} GiB, too much for memory, and the cache folder "
                f"{self.folder} cannot be written: name another one with SDB_CACHE or cache=, or stream the images"
            )


def _checked(decoding: Decoding) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The chunks, of which there must be as many images as announced, all of one shape."""
    done, shape = 0, None
    for images, labels in decoding.chunks:
        if shape not in (None, images.shape[1:]):
            raise DataError(
                f"images of {images.shape[1:]} follow images of {shape} (C, H, W): set image_size, or resize"
            )
        done, shape = done + len(images), images.shape[1:]
        yield images, labels
    if done != decoding.count or not done:
        raise DataError(f"{done} images decoded, expected {decoding.count or 'at least 1'}")


def _publish(work: Path, file: Path, text: str) -> None:
    draft = work / "draft"
    draft.write_text(text)
    draft.replace(file)


def _key(part: Part) -> str:
    """Changes with names and sizes of the files, with what they hold, and with how they are decoded.

    Of files that are not read whole, times of change are part of it too. They alone would not do: archives that are
    made reproducible give all files the same one.
    """
    try:
        infos = [os.stat(file) for file in part.files]  # noqa: PTH116 - twice as fast, for many files
        sizes = [info.st_size for info in infos]
        opened = range(len(sizes)) if len(sizes) <= HASHED_FILES else spread(len(sizes), HASHED_FILES)
        whole = sum(sizes) <= HASHED_BYTES and len(opened) == len(sizes)
        share = max(sizes, default=0) if whole else max(LEAST_SHARE, HASHED_BYTES // len(opened))
        contents = {number: _digest(part.files[number], sizes[number], share) for number in opened}
    except OSError as error:
        raise DataError(f"{error.filename}: missing or not readable: get the data set again") from error
    key = hashlib.sha256(json_text([LAYOUT_VERSION, part.settings]).encode())
    for number, (file, info) in enumerate(zip(part.files, infos, strict=True)):
        said = [file.name, info.st_size, contents.get(number)]
        key.update(json_text(said if whole else [*said, info.st_mtime_ns]).encode())
    return key.hexdigest()[:32]


def _digest(file: Path, size: int, share: int) -> str:
    """A hash of a file, or of `share` bytes spread over it, its first and its last among them."""
    with open(file, "rb", buffering=0) as content:  # noqa: PTH123 - twice as fast, for many files
        if size <= share:
            return hashlib.sha256(content.readall()).hexdigest()
        pieces = max(2, share // BLOCK)
        length, digest = share // pieces, hashlib.sha256()
        for start in spread(size - length + 1, pieces):
            content.seek(start)
            digest.update(content.read(length))
    return digest.hexdigest()


def spread(size: int, count: int) -> list[int]:
    """`count` numbers from 0 to `size` - 1 at equal distances, both ends among them; `count` is 2 to `size`."""
    return [number * (size - 1) // (count - 1) for number in range(count)]
