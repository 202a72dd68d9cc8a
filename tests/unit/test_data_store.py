"""The cache of decoded images: used, keyed by content, mended when damaged, done without when it must be."""

import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

import sdb.data.image_cache
from sdb.data import ImageSet, Rows, load
from sdb.data.image_cache import ImageCache
from sdb.data.source import Decoding, Part
from sdb.errors import DataError, StorageError


class Counter:
    """A part of 10 images in chunks of 4, that counts how often it is decoded."""

    def __init__(self, folder, text="content", settings="test"):
        self.decoded = 0
        self.pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 5), dtype=np.uint8)
        file = Path(folder) / "source.bin"
        if not file.exists():
            file.write_text(text)
        self.part = Part((file,), settings, self.decode)

    def decode(self):
        self.decoded += 1
        labels = np.arange(10, dtype=np.int64)
        return Decoding(10, ((self.pixels[i : i + 4], labels[i : i + 4]) for i in range(0, 10, 4)))


@pytest.fixture
def store(tmp_path):
    return ImageCache(tmp_path / "cache")


def check(images, counter):
    np.testing.assert_array_equal(images.images, counter.pixels)
    np.testing.assert_array_equal(images.labels, np.arange(10))


def test_second_time_nothing_is_decoded(tmp_path, store):
    first = Counter(tmp_path)
    images = store.images("some/name", first.part)
    check(images, first)
    assert isinstance(images.images, np.memmap)
    assert not images.images.flags.writeable
    again = Counter(tmp_path)
    check(store.images("some/name", again.part), again)
    assert (first.decoded, again.decoded) == (1, 0)
    assert not [file for file in store.folder.iterdir() if file.name.startswith(".tmp")]


def test_key_follows_content_and_settings(tmp_path, store):
    store.images("n", Counter(tmp_path).part)
    touched = Counter(tmp_path)
    os.utime(touched.part.files[0], (0, 0))
    store.images("n", touched.part)
    assert touched.decoded == 0
    other_settings = Counter(tmp_path, settings="other")
    store.images("n", other_settings.part)
    assert other_settings.decoded == 1
    other_settings.part.files[0].write_text("CONTENT")  # as many bytes
    other_content = Counter(tmp_path)
    store.images("n", other_content.part)
    assert other_content.decoded == 1


def test_key_of_large_files_follows_the_time_of_change(tmp_path, store, monkeypatch):
    monkeypatch.setattr(sdb.data.image_cache, "HASHED_BYTES", 3)
    store.images("n", Counter(tmp_path).part)
    unchanged = Counter(tmp_path)
    store.images("n", unchanged.part)
    os.utime(unchanged.part.files[0], (0, 0))
    changed = Counter(tmp_path)
    store.images("n", changed.part)
    assert (unchanged.decoded, changed.decoded) == (0, 1)


@pytest.mark.parametrize("suffix", [".images.npy", ".labels.npy", ".json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "gone", "other"])
def test_damaged_entries_are_made_again(tmp_path, store, suffix, damage):
    store.images("n", Counter(tmp_path).part)
    (file,) = store.folder.glob(f"n-*{suffix}")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "garbage":
        file.write_bytes(b"\xff" * 300)
    elif damage == "gone":
        file.unlink()
    elif suffix == ".json":
        file.write_text(json.dumps({"shape": [9, 3, 4, 5], "labels": ""}))
    else:
        np.save(file, np.zeros(10, np.int64))
    again = Counter(tmp_path)
    check(store.images("n", again.part), again)
    assert again.decoded == 1
    last = Counter(tmp_path)
    check(store.images("n", last.part), last)
    assert last.decoded == 0


def test_a_folder_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    counter = Counter(tmp_path)
    with caplog.at_level(logging.WARNING):
        images = ImageCache(tmp_path / "file" / "cache").images("n", counter.part)
    check(images, counter)
    assert "decoding into memory" in caplog.text


def test_full_disk(tmp_path, store, monkeypatch, caplog):
    """A limit on the size of files fails in the middle of a write, as a full disk does."""
    resource = pytest.importorskip("resource")
    counter = Counter(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        images = store.images("n", counter.part)
        monkeypatch.setattr(sdb.data.image_cache, "MEMORY_SHARE", 0)
        with pytest.raises(StorageError, match="SDB_CACHE"):
            store.images("n", counter.part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check(images, counter)
    assert "decoding into memory" in caplog.text
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize(
    ("chunks", "word"),
    [
        ([(3, (3, 4, 5))], "3 images decoded, expected 10"),
        ([(4, (3, 4, 5)), (6, (3, 5, 5))], "resize"),
        ([], "0 images decoded"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_decoders_that_do_not_keep_their_word(tmp_path, chunks, word, cached):
    def decode():
        return Decoding(10, [(np.zeros((n, *shape), np.uint8), np.zeros(n, np.int64)) for n, shape in chunks])

    (tmp_path / "file").write_text("")
    store = ImageCache(tmp_path / "cache" if cached else tmp_path / "file" / "cache")
    with pytest.raises(DataError, match=word):
        store.images("n", Part((), "test", decode))
    if cached:
        assert not list(store.folder.iterdir())


def test_statistics_are_kept(tmp_path, store, monkeypatch):
    images = store.images("n", Counter(tmp_path).part)
    train = images.take(np.arange(7))
    first = store.stats(train)
    monkeypatch.setattr(sdb.data.image_cache, "channel_stats", lambda images: ((0.0,), (1.0,)))
    assert store.stats(train) == first
    assert store.stats(images.take(np.arange(6))) == ((0.0,), (1.0,))
    (file,) = [file for file in store.folder.glob("*.stats.json") if json.loads(file.read_text())["mean"] != [0.0]]
    file.write_text("{")
    assert store.stats(train) == ((0.0,), (1.0,))


def test_statistics_of_a_users_own_memory_map_are_not_kept(tmp_path, store):
    np.save(tmp_path / "images.npy", Counter(tmp_path).pixels)
    mapped = ImageSet(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(10))
    store.stats(mapped.take(np.arange(5)))
    assert not store.folder.exists()


def _decode_in_a_process(folder, start):
    while time.time() < start:
        pass
    counter = Counter(folder)
    check(ImageCache(Path(folder) / "cache").images("n", counter.part), counter)


def test_processes_at_once(tmp_path):
    Counter(tmp_path)
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.3
    workers = [context.Process(target=_decode_in_a_process, args=(str(tmp_path), start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_the_default_folder_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SDB_CACHE", str(tmp_path / "x"))
    assert ImageCache().folder == tmp_path / "x"
    monkeypatch.delenv("SDB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImageCache().folder == tmp_path / ".cache" / "sdb"


REAL = Path(os.environ.get("SDB_DATA") or Path(__file__).parents[3] / "shared" / "data") / "cifar10"


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no CIFAR-10 in {REAL}; name its parent folder with SDB_DATA")
def test_real_cifar10_from_an_empty_cache(tmp_path):
    pytest.importorskip("simplejpeg")
    begin = time.process_time()
    splits = load("cifar10", root=REAL, cache=tmp_path)
    assert time.process_time() - begin < 10  # 2.4 s measured; a decoder image by image in Pillow takes 12
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (45_000, 5_000, 10_000)
    assert isinstance(splits.train.images, Rows)
    np.testing.assert_allclose(splits.mean, (0.4914, 0.4822, 0.4465), atol=1e-3)  # as everyone has them
    assert np.bincount(splits.validation.labels).tolist() == [500] * 10
    begin = time.process_time()
    again = load("cifar10", root=REAL, cache=tmp_path)
    assert time.process_time() - begin < 1
    np.testing.assert_array_equal(again.test.labels, splits.test.labels)


@pytest.mark.parametrize("read", [2**28, 64], ids=["whole", "spread"])
def test_one_byte_of_the_pixels_that_changed_is_noticed(tmp_path, store, monkeypatch, caplog, read):
    monkeypatch.setattr(sdb.data.image_cache, "HASHED_BYTES", read)
    store.images("n", Counter(tmp_path).part)
    (file,) = store.folder.glob("n-*.images.npy")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    again = Counter(tmp_path)
    check(store.images("n", again.part), again)
    assert again.decoded == 1
    assert "other pixels" in caplog.text


def test_an_entry_without_a_hash_of_its_pixels_is_still_read(tmp_path, store):
    store.images("n", Counter(tmp_path).part)
    (file,) = store.folder.glob("n-*[0-9a-f].json")
    entry = json.loads(file.read_text())
    del entry["images"]
    file.write_text(json.dumps(entry))
    again = Counter(tmp_path)
    check(store.images("n", again.part), again)
    assert again.decoded == 0
