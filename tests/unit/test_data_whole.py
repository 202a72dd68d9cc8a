"""Data sets as they lie on disks: what is no image, what is missing, and whose pixels a cache gives."""

from __future__ import annotations

import gzip
import io
import logging
import os
import shutil
import tarfile
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sdb.data.image_cache
from sdb.data import from_arrays, from_dataset, load
from sdb.data.image_cache import ImageCache, spread
from sdb.data.listing import class_folders, image_files
from sdb.data.parquet import lost_shards
from sdb.data.source import Decoding, Part
from sdb.errors import DataError, DataNotFoundError
from sdb.models import ModelSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SDB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("SDB_DATA", raising=False)


def write(folder, value=0, classes=("ant", "bee"), count=4, suffix="bmp", side=6):
    """A folder of class folders; all files have one size and one time of change."""
    for label, name in enumerate(classes):
        for number in range(count):
            file = folder / name / f"{number:03}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), (value, 40 * label, number)).save(file)
            os.utime(file, (0, 0))
    return folder


def red(splits):
    return {int(value) for value in np.unique(np.asarray(splits.train.images)[:, 0])}


# --- the cache --------------------------------------------------


@pytest.mark.parametrize("count", [4, 40])  # 80 files are more than were ever read whole
@pytest.mark.parametrize("stream", [False, True])
def test_two_sets_of_one_look_do_not_share_pixels(tmp_path, count, stream):
    """Same names, sizes and times of change: another set's pixels, nor its mean."""
    first, second = (
        write(tmp_path / name / "data", value, count=count) for name, value in (("a", 10), ("b", 200))
    )
    assert red(load("folder", root=first, stream=stream)) == {10}
    splits = load("folder", root=second, stream=stream)
    assert red(splits) == {200}
    assert splits.mean[0] == pytest.approx(200 / 255)


@pytest.mark.parametrize("limit", [2**30, 3000])
@pytest.mark.parametrize("place", ["first", "last", "everywhere"])
def test_one_changed_file_among_many_is_seen(tmp_path, monkeypatch, limit, place):
    """Also where the files are not read whole; nothing is decoded again where nothing changed."""
    monkeypatch.setattr(sdb.data.image_cache, "HASHED_BYTES", limit)
    monkeypatch.setattr(sdb.data.image_cache, "LEAST_SHARE", 16)
    root = write(tmp_path / "data", 10, count=40)
    stem = sdb.data.image_cache._key(_part(root))
    assert sdb.data.image_cache._key(_part(root)) == stem
    file = root / "bee" / "017.bmp"
    data = bytearray(file.read_bytes())
    for at in {"first": [0], "last": [-1], "everywhere": range(len(data))}[place]:
        data[at] ^= 1
    file.write_bytes(data)
    os.utime(file, (0, 0))
    assert sdb.data.image_cache._key(_part(root)) != stem


def _part(root):
    files = sorted(root.rglob("*.bmp"))
    return Part(files, "test", lambda: Decoding(0, []))


def test_large_files_are_read_at_places_all_over(tmp_path, monkeypatch):
    """A changed run of bytes longer than the gap between two places is seen wherever it lies."""
    monkeypatch.setattr(sdb.data.image_cache, "HASHED_BYTES", 8000)
    monkeypatch.setattr(sdb.data.image_cache, "BLOCK", 100)
    file = tmp_path / "large"
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    keys = set()
    for start in [None, *range(0, 100_000, 5000)]:
        changed = data.copy()
        if start is not None:
            changed[start : start + 3000] ^= 1
        file.write_bytes(changed.tobytes())
        os.utime(file, (0, 0))
        keys.add(sdb.data.image_cache._key(Part((file,), "test", lambda: Decoding(0, []))))
    assert len(keys) == 21


@given(st.integers(2, 10_000), st.data())
def test_spread(size, data):
    count = data.draw(st.integers(2, size))
    places = spread(size, count)
    assert (places[0], places[-1], len(set(places))) == (0, size - 1, count)
    assert max(np.diff(places)) - min(np.diff(places)) <= 1


def test_of_very_many_files_some_are_opened(tmp_path, monkeypatch):
    """The first and the last among them; of the others names, sizes and times of change count."""
    monkeypatch.setattr(sdb.data.image_cache, "HASHED_FILES", 5)
    root = write(tmp_path / "data", count=10)
    files = sorted(root.rglob("*.bmp"))
    seen = {sdb.data.image_cache._key(_part(root))}
    for number, same_time in ((0, True), (19, True), (1, False)):
        data = files[number].read_bytes()
        files[number].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        if same_time:
            os.utime(files[number], (0, 0))
        seen.add(sdb.data.image_cache._key(_part(root)))
    files[3].rename(files[3].with_name("x.bmp"))
    seen.add(sdb.data.image_cache._key(_part(root)))
    assert len(seen) == 5


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="gone: missing or not readable"):
        ImageCache(tmp_path / "cache").images("n", Part((tmp_path / "gone",), "test", lambda: Decoding(0, [])))


# --- folders ----------------------------------------------------


def test_what_is_no_image(tmp_path):
    """Hidden files and folders, copies of notebooks, what macOS and Windows leave, at every depth."""
    root = write(tmp_path / "d", count=10)
    picture = (root / "ant" / "000.bmp").read_bytes()
    for name in (
        *(".ipynb_checkpoints/000-checkpoint.bmp", "ant/.ipynb_checkpoints/000-checkpoint.bmp"),
        *("ant/._000.bmp", "__MACOSX/ant/._000.bmp", "bee/__MACOSX/000.bmp", "bee/deep/.hidden/1.bmp"),
        *(
            "ant/.thumbnails/1.bmp",
            "ant/Thumbs.db",
            "bee/desktop.ini",
            ".DS_Store",
            "ant/.DS_Store",
            "ant/notes.txt",
        ),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture)
    splits = load("folder", root=root)
    assert splits.class_names == ("ant", "bee")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20


def test_links(tmp_path):
    """Linked classes, folders and files are followed; one to a folder above is not entered; a dead one is refused."""
    root, store = write(tmp_path / "d", classes=("ant", "bee", "cow")), tmp_path / "store"
    shutil.move(root / "bee", store / "bee")
    (root / "bee").symlink_to(store / "bee")
    shutil.move(root / "cow", store / "cow")
    (root / "cow").mkdir()
    (root / "cow" / "images").symlink_to(store / "cow")
    (root / "ant" / "again.bmp").symlink_to("000.bmp")
    assert [len(image_files(root / name)) for name in ("ant", "bee", "cow")] == [5, 4, 4]
    for name, target in (("ant/up", ".."), ("ant/self", "."), ("cow/here", root / "cow"), ("bee/far", root)):
        (root / name).symlink_to(target)
    (store / "cow" / "back").symlink_to(root / "cow")
    assert [len(image_files(root / name)) for name in ("ant", "bee", "cow")] == [5, 4, 4]
    assert [child.name for child in class_folders(root)] == ["ant", "bee", "cow"]
    (root / "ant" / "dead.bmp").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"dead.bmp: a link that leads nowhere"):
        load("folder", root=root)
    (root / "ant" / "dead.bmp").unlink()
    (root / "dog").symlink_to("nowhere")
    with pytest.raises(DataError, match="dog: a link that leads nowhere"):
        load("folder", root=root)


@pytest.mark.parametrize("part", ["", "train", "test", "val"])
def test_empty_classes_are_refused(tmp_path, part):
    for each in (part,) if part in ("", "train") else ("train", part):
        write(tmp_path / "d" / each)
    (tmp_path / "d" / part / "cow").mkdir()
    if part in ("test", "val"):
        write(tmp_path / "d" / "train", classes=("cow",))
    with pytest.raises(DataError, match="class cow has no images"):
        load("folder", root=tmp_path / "d")


@pytest.mark.parametrize("part", ["test", "val"])
def test_empty_parts_are_refused_and_lacking_ones_told(tmp_path, part, caplog):
    write(tmp_path / "d" / "train")
    (tmp_path / "d" / part).mkdir()
    with pytest.raises(DataError, match=f"{part}: no images"):
        load("folder", root=tmp_path / "d")
    write(tmp_path / "d" / part, classes=("ant",))
    load("folder", root=tmp_path / "d")
    assert "has no folder for bee" in caplog.text


def test_names_are_compared_and_sorted_composed(tmp_path):
    """As macOS stores them in one part and Linux in the other; z comes before an accented letter in both."""
    composed = ("caf\u00e9", "cafz", "\u00e9t\u00e9")
    apart = tuple(unicodedata.normalize("NFD", name) for name in composed)
    write(tmp_path / "d" / "train", classes=composed)
    write(tmp_path / "d" / "test", classes=apart)
    splits = load("folder", root=tmp_path / "d")
    assert splits.class_names == tuple(sorted(composed))
    for label, name in enumerate(splits.class_names):
        green = np.asarray(splits.test.images)[splits.test.labels == label, 1]
        assert set(green.ravel().tolist()) == {40 * composed.index(name)}
    write(tmp_path / "d" / "train", classes=(apart[0],))
    with pytest.raises(DataError, match="two folders are called 'caf\u00e9'"):
        load("folder", root=tmp_path / "d")


def test_names_that_are_no_unicode(tmp_path):
    """A folder named in Latin-1, as old archives unpack: its name is escaped, so that files of JSON can hold it."""
    (write(tmp_path / "d") / "ant").rename(tmp_path / "d" / os.fsdecode(b"caf\xe9"))
    splits = load("folder", root=tmp_path / "d")
    assert splits.class_names == ("bee", "caf\\xe9")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 8
    with pytest.raises(DataError, match="half a character"):
        from_arrays(np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 2, class_names=["a", "caf\udce9"])


# --- incomplete data sets ---------------------------------------


def cifar(folder, name="cifar10", count=4):
    """The unpacked binary files of a small CIFAR."""
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"] if name == "cifar10" else ["train", "test"]
    size = {"cifar10": 1, "cifar100": 2}[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in names:
        records = np.random.default_rng(0).integers(0, 256, (count, size + 3072), dtype=np.uint8)
        records[:, :size] = np.arange(count)[:, None] % 10
        (folder / f"{file}.bin").write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize("gone", ["data_batch_1", "data_batch_3", "data_batch_5", "test_batch"])
def test_a_missing_batch_is_named(tmp_path, gone):
    folder = cifar(tmp_path / "cifar-10-batches-bin")
    (folder / f"{gone}.bin").unlink()
    with pytest.raises(DataError, match=rf"cifar-10-batches-bin is incomplete: {gone}.bin: missing"):
        load("cifar10", root=tmp_path)
    cifar(tmp_path / "cifar10" / "cifar-10-batches-bin")  # a whole one elsewhere is taken
    assert len(load("cifar10", root=tmp_path).test) == 4


@pytest.mark.parametrize("cut", ["data_batch_1", "data_batch_4"])
def test_a_batch_cut_between_two_records(tmp_path, cut):
    file = cifar(tmp_path / "cifar-10-batches-bin") / f"{cut}.bin"
    file.write_bytes(file.read_bytes()[:-3073])
    with pytest.raises(DataError, match=rf"{cut}.bin holds 3 images, the others 4: cut short"):
        load("cifar10", root=tmp_path)


@pytest.mark.parametrize(("part", "left"), [("train", 49_999), ("test", 9_999), ("test", 3)])
def test_a_real_cifar100_cut_between_two_records(tmp_path, part, left):
    """Known sizes count once a set is no miniature."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, count in (("train", 50_000), ("test", 10_000)):
        with (folder / f"{name}.bin").open("wb") as file:
            file.truncate(3074 * (left if name == part else count))
    with pytest.raises(
        DataError, match=rf"its {part} part holds {left} images, {50_000 if part == 'train' else 10_000}"
    ):
        load("cifar100", root=tmp_path)


def packed(file, folder):
    with tarfile.open(file, "w:gz") as archive:
        archive.add(folder, folder.name)
    shutil.rmtree(folder)
    return file


@pytest.mark.parametrize("field", ["checksum", "length", "cut"])
def test_checksums_of_archives(tmp_path, field):
    """The last 8 bytes of a gzip file: CRC-32 and length of what it holds."""
    file = packed(tmp_path / "cifar-10-binary.tar.gz", cifar(tmp_path / "cifar-10-batches-bin"))
    data = bytearray(file.read_bytes())
    assert len(load("cifar10", root=tmp_path).test) == 4
    data = data[:-4] if field == "cut" else data
    if field != "cut":
        data[-8 if field == "checksum" else -4] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: damaged"):
        load("cifar10", root=tmp_path)


def test_a_flipped_byte_in_an_archive(tmp_path):
    """Stored, not packed, so that the flip changes a pixel and nothing else."""
    folder = cifar(tmp_path / "cifar-10-batches-bin")
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        archive.add(folder, folder.name)
    data = bytearray(gzip.compress(plain.getvalue(), compresslevel=0))
    record = (folder / "data_batch_2.bin").read_bytes()[100:130]
    data[data.index(record)] ^= 1
    shutil.rmtree(folder)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        load("cifar10", root=tmp_path)


IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def fashion(folder, count=20):
    for name in IDX:
        shape = (count, 28, 28) if "images" in name else (count,)
        header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape)
        content = header + (np.arange(np.prod(shape)) % 10).astype(np.uint8).tobytes()
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))


@pytest.mark.parametrize("gone", IDX)
def test_a_missing_or_damaged_idx_file_is_named(tmp_path, gone):
    fashion(tmp_path)
    file = tmp_path / f"{gone}-ubyte.gz"
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=f"Fashion-MNIST: .* is incomplete: {gone}-ubyte: missing"):
        load("fashion_mnist", root=tmp_path)
    file.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    with pytest.raises(DataError, match=rf"{gone}-ubyte.gz: damaged"):
        load("fashion_mnist", root=tmp_path)


def test_a_short_fashion_mnist(tmp_path):
    fashion(tmp_path, 1200)
    with pytest.raises(DataError, match="its train part holds 1200 images, 60000 are expected"):
        load("fashion_mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["train-00000-of-00001.parquet"], []),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], ["train-00001-of-00003.parquet"]),
        (["train-00001-of-00002-0a1b2c3d4e5f6071.parquet"], ["train-00000-of-00002.parquet"]),
        (["train-mine.parquet"], []),
    ],
)
def test_lost_parquet_files(tmp_path, names, lost):
    assert lost_shards([tmp_path / name for name in names]) == lost


def test_parquet_parts_are_named(tmp_path):
    for name in ("train-00000-of-00002.parquet", "test-00000-of-00001.parquet"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"CIFAR-10: .* is incomplete: train-00001-of-00002.parquet: missing"):
        load("cifar10", root=tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet, test-\*.parquet: missing"):
        load("cifar10", root=tmp_path)


def tiny(base, form="distributed", classes=5, count=3):
    """A small Tiny-ImageNet; `form` says where its validation images lie."""
    wnids = [f"n{number:02}" for number in range(classes)]
    lines = []
    for label, wnid in enumerate(wnids):
        for number in range(count):
            for part in ("train", "val"):
                name = f"{'val' if part == 'val' else wnid}_{label}_{number}.JPEG"
                where = {"train": f"train/{wnid}/images"}.get(part) or {
                    "distributed": "val/images",
                    "copied": "val/images",
                    "sorted": f"val/{wnid}",
                    "sorted, images": f"val/{wnid}/images",
                    "sorted, empty images": f"val/{wnid}",
                }[form]
                file = base / where / name
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 64), (40 * label, 0, 0)).save(file, quality=95)
                if part == "val":
                    lines.append(f"{name}\t{wnid}\t0\t0\t62\t62")
                    if form == "copied":
                        (base / "val" / wnid).mkdir(exist_ok=True)
                        shutil.copy(file, base / "val" / wnid / name)
    (base / "wnids.txt").write_text("\n".join(wnids))
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines))
    if form == "sorted, empty images":
        (base / "val" / "images").mkdir()
    return base


FORMS = ["distributed", "copied", "sorted", "sorted, images", "sorted, empty images"]


@pytest.mark.parametrize("annotated", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_tiny_imagenet_however_it_is_sorted(tmp_path, form, annotated):
    base = tiny(tmp_path / "tiny-imagenet-200", form)
    if not annotated:
        (base / "val" / "val_annotations.txt").unlink()
    if form == "distributed" and not annotated:
        with pytest.raises(DataError):
            load("tiny_imagenet", root=tmp_path)
        return
    splits = load("tiny_imagenet", root=tmp_path)
    assert (len(splits.test), splits.num_classes) == (15, 5)
    for image, label in zip(np.asarray(splits.test.images), splits.test.labels, strict=True):
        assert abs(int(image[0].mean()) - 40 * label) < 4


@pytest.mark.parametrize("form", ["distributed", "sorted, images"])
def test_an_incomplete_tiny_imagenet(tmp_path, form):
    base = tiny(tmp_path, form)
    file = next((base / "train" / "n03" / "images").iterdir())
    data = file.read_bytes()
    file.unlink()
    with pytest.raises(DataError, match=r"fewer images than the 3 of others: n03 \(2\)"):
        load("tiny_imagenet", root=tmp_path)
    file.write_bytes(data)
    for wnid in ("n01", "n04"):
        shutil.rmtree(base / "train" / wnid)
    with pytest.raises(DataError, match="train: 2 of 5 classes have no images: n01, n04"):
        load("tiny_imagenet", root=tmp_path)
    shutil.rmtree(base / "train")
    shutil.copytree(tiny(tmp_path / "again", form) / "train", base / "train")
    lines = (base / "val" / "val_annotations.txt").read_text().splitlines()
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines[:-4]))
    for line in lines[-4:]:
        for file in (base / "val").rglob(line.split("\t")[0]):
            file.unlink()
    with pytest.raises(DataError, match=r"n04"):
        load("tiny_imagenet", root=tmp_path)


def test_nothing_there_is_still_not_found(tmp_path):
    for name in ("cifar10", "cifar100", "fashion_mnist", "tiny_imagenet"):
        with pytest.raises(DataNotFoundError):
            load(name, root=tmp_path)


# --- objects of programs ----------------------------------------

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("numbers", "word"),
    [((0, 5, 1000), "998 numbers up to 1000, such as 1"), (range(1, 11), "such as 0"), ((0, 1, 3), "such as 2")],
)
def test_labels_with_gaps(numbers, word, caplog):
    images = RNG.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    labels = np.array(numbers)[np.arange(60) % len(numbers)]
    with pytest.raises(DataError, match=f"{word}.*name all"):
        from_arrays(images, labels)
    names = [f"class {number}" for number in range(max(numbers) + 1)]
    with caplog.at_level(logging.WARNING):
        splits = from_arrays(images, labels, class_names=names)
    assert splits.num_classes == len(names)
    assert "no training image of class class" in caplog.text


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), ["a", "b", "c"], (10, 20, 30), np.array([7, 8, 9])])
def test_class_names_of_any_sequence(names):
    images = RNG.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    splits = from_arrays(
        images,
        np.arange(30) % np.int8(3),
        class_names=names,
        seed=np.int64(3),
        validation_fraction=np.float32(0.25),
        subset_percent=np.float64(0.5),
    )
    assert splits.class_names == tuple(map(str, names))
    assert all(type(name) is str for name in splits.class_names)
    with pytest.raises(DataError, match="two classes are called"):
        from_arrays(images, np.arange(30) % 3, class_names=[names[0], names[0], names[1]])


def test_numbers_of_numpy_and_torch_in_a_spec():
    import torch

    plain = ModelSpec("net", {"num_channels": 4}, 10, (1, 8, 8), (0.5,), (0.25,))
    for kind in (np.float32, np.float64, lambda value: torch.tensor(value)):
        made = ModelSpec(
            "net", {"num_channels": np.int64(4)}, np.int64(10), np.array([1, 8, 8]), kind([0.5]), (kind(0.25),)
        )
        assert made == plain
        assert ModelSpec.from_json(made.to_json()) == plain


def test_datasets_objects_of_files(tmp_path):
    """Rows that only name files: one that changed is decoded again, one that vanished is named."""
    datasets = pytest.importorskip("datasets")
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file in files:
        Image.new("RGB", (8, 8), (10, 0, 0)).save(file, compress_level=0)
    rows = {"image": [str(file) for file in files], "label": [0, 1] * 20}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    made = datasets.Dataset.from_dict(rows, features=features)
    assert red(from_dataset(made)) == {10}
    for file in files:
        Image.new("RGB", (8, 8), (77, 0, 0)).save(file, compress_level=0)
    assert red(from_dataset(made)) == {77}
    files[-1].unlink()
    for stream in (False, True):
        with pytest.raises(DataError, match=r"39\.png") as refused:
            np.asarray(from_dataset(made, stream=stream).train.images)
        assert "\n" not in str(refused.value)
    files[0].unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        from_dataset(made)
