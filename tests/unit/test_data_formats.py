"""Every format: small files made here, read back, and refused with the file's name when damaged."""

import gzip
import io
import json
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from sdb.data import from_arrays, from_dataset, load
from sdb.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from sdb.errors import ConfigError, DataError, DataNotFoundError, MissingExtraError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SDB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("SDB_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def pixels(count, *shape):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image, form="PNG"):
    out = io.BytesIO()
    Image.fromarray(image).save(out, form)
    return out.getvalue()


def everything(splits):
    """Training and validation images together, in any order: a set of (bytes, label)."""
    return {
        (image.tobytes(), int(label))
        for part in (splits.train, splits.validation)
        for image, label in zip(np.asarray(part.images), part.labels, strict=True)
    }


def pairs(images, labels):
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


# CIFAR: parquet


def write_parquet(file, images, labels, *, image="img", label="label", names=CIFAR10_CLASSES, form="PNG"):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    cells = [{"bytes": encoded(item, form), "path": None} for item in images]
    features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": list(names)}}
    table = pa.table({image: cells, label: labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def cifar_parquet(folder, **options):
    images, labels = pixels(20, 32, 32, 3), list(range(10)) * 2
    write_parquet(folder / "train-00000-of-00001.parquet", images, labels, **options)
    write_parquet(folder / "test-00000-of-00001.parquet", images[:10], labels[:10], **options)
    return images.transpose(0, 3, 1, 2), labels


@pytest.mark.parametrize("place", ["", "cifar10", "data-cifar10"])
def test_cifar10_parquet(tmp_path, place):
    images, labels = cifar_parquet(tmp_path / "here" / place)
    splits = load("cifar10", root=tmp_path / "here", validation_fraction=0.5)
    assert everything(splits) == pairs(images, labels)
    assert splits.image_shape == (3, 32, 32)
    assert splits.class_names == CIFAR10_CLASSES
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 10, 10)
    assert "JPEG" not in splits.note
    assert splits.augment.crop_padding == 4
    assert splits.augment.flip


def test_jpeg_is_noted_and_decoded_as_pillow_does(tmp_path):
    cifar_parquet(tmp_path, form="JPEG", image="image")
    splits = load("cifar10", root=tmp_path)
    assert "CIFAR-10 (JPEG)" in splits.note
    import pyarrow.parquet as pq

    cells = pq.read_table(tmp_path / "test-00000-of-00001.parquet").column("image").to_pylist()
    expected = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))).transpose(2, 0, 1) for cell in cells]
    np.testing.assert_array_equal(np.asarray(splits.test.images), np.stack(expected))


def test_without_the_fast_decoder_the_pixels_are_the_same(tmp_path, monkeypatch):
    cifar_parquet(tmp_path, form="JPEG")
    fast = load("cifar10", root=tmp_path, cache=tmp_path / "fast")
    monkeypatch.setattr("sdb.data.pictures._simplejpeg", lambda: None)
    slow = load("cifar10", root=tmp_path, cache=tmp_path / "slow")
    np.testing.assert_array_equal(fast.test.images, slow.test.images)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "cifar10"), ("datasets", "hub:owner/name")])
def test_missing_extras_are_named(tmp_path, monkeypatch, package, name):
    cifar_parquet(tmp_path)
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"needs {package}, which is not installed"):
        load(name, root=tmp_path)


def test_cifar100_parquet_by_fine_label(tmp_path):
    cifar_parquet(tmp_path / "cifar100", label="fine_label", names=CIFAR100_CLASSES)
    assert load("cifar100", root=tmp_path).num_classes == 100


def test_cifar10_is_not_taken_for_cifar100(tmp_path):
    cifar_parquet(tmp_path)
    with pytest.raises(DataError, match="10 classes, but CIFAR-100 has 100"):
        load("cifar100", root=tmp_path)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda data: data[: len(data) // 2], "not a readable parquet file"),
        (lambda data: b"", "not a readable parquet file"),
    ],
)
def test_damaged_parquet(tmp_path, damage, word):
    cifar_parquet(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=word) as refused:
        load("cifar10", root=tmp_path)
    assert file.name in str(refused.value)


@pytest.mark.parametrize("label", [10, -1, None])
def test_parquet_label_out_of_range(tmp_path, label):
    cifar_parquet(tmp_path)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", pixels(3, 32, 32, 3), [0, 1, label])
    with pytest.raises(DataError, match=rf"train-00000-of-00001.parquet row 2: label {label} is outside 0..9"):
        load("cifar10", root=tmp_path)


def test_parquet_without_the_columns(tmp_path):
    cifar_parquet(tmp_path, image="picture")
    with pytest.raises(DataError, match="expected one called img or image"):
        load("cifar10", root=tmp_path)


# CIFAR: original archives


def cifar_files(name, kind):
    """Contents of the files of a small archive, and what they hold: 4 images a file."""
    names = {
        "cifar10": [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"],
        "cifar100": ["train", "test"],
    }
    contents, images, labels = {}, [], []
    for file in names[name]:
        data, target = pixels(4, 3072), [0, 1, 2, 9]
        key = b"labels" if name == "cifar10" else b"fine_labels"
        if kind == "python":
            contents[file] = pickle.dumps({b"data": data, key: target, b"filenames": [b"a"] * 4}, protocol=4)
        else:
            coarse = [] if name == "cifar10" else [np.full((4, 1), 3, np.uint8)]
            records = [*coarse, np.array(target, np.uint8)[:, None], data]
            contents[file + ".bin"] = np.concatenate(records, axis=1).tobytes()
        if "test" not in file:
            images.append(data.reshape(-1, 3, 32, 32))
            labels += target
    return contents, pairs(np.concatenate(images), labels)


def cifar_place(name, kind):
    number = name.removeprefix("cifar")
    folder = {"python": f"cifar-{number}-python", "binary": f"cifar-{number}-binary"}[kind]
    unpacked = {"cifar-10-python": "cifar-10-batches-py", "cifar-10-binary": "cifar-10-batches-bin"}
    return unpacked.get(folder, folder), folder + ".tar.gz"


def write_files(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def write_archive(file, folder, contents):
    with tarfile.open(file, "w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("form", ["packed", "unpacked", "inside", "the archive itself"])
@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives(tmp_path, name, kind, form):
    contents, expected = cifar_files(name, kind)
    folder, archive = cifar_place(name, kind)
    root = tmp_path / "root"
    root.mkdir()
    if form in ("packed", "the archive itself"):
        write_archive(root / archive, folder, contents)
    else:
        write_files(root / folder, contents)
    root = {"inside": root / folder, "the archive itself": root / archive}.get(form, root)
    splits = load(name, root=root, validation_fraction=0.25)
    assert everything(splits) == expected
    assert splits.num_classes == {"cifar10": 10, "cifar100": 100}[name]
    assert len(splits.test) == 4


def test_python_2_pickles(tmp_path):
    """Protocol 2 as Python 2 wrote it: strings as bytes, numpy by its old module name."""
    contents, _ = cifar_files("cifar10", "python")
    raw = bytes(range(256)) * 12
    contents["test_batch"] = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tbU\x06labels](K\x07eu."
    )
    write_files(tmp_path / "cifar-10-batches-py", contents)
    splits = load("cifar10", root=tmp_path)
    assert splits.test.labels.tolist() == [7]
    assert np.asarray(splits.test.images).tobytes() == raw


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_pickle_is_refused_and_does_not_run(tmp_path):
    contents, _ = cifar_files("cifar10", "python")
    witness = tmp_path / "it_ran"
    contents["data_batch_3"] = pickle.dumps({b"data": Hostile(f"touch {witness}"), b"labels": []})
    write_files(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(DataError, match=r"data_batch_3: refused: .*system"):
        load("cifar10", root=tmp_path)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "refused"),
        (b"garbage", "refused"),
        (pickle.dumps([1, 2]), "expected a dictionary"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [0, 1]}), "not of uint8"),
        (pickle.dumps({b"data": np.zeros((2, 99), np.uint8), b"labels": [0, 1]}), "shape"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}), "list of 2"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 10]}), "label 10 is outside"),
        (pickle.dumps({b"data": np.array([{}], object), b"labels": [0]}), "not of uint8"),
    ],
)
def test_damaged_pickle(tmp_path, content, word):
    contents, _ = cifar_files("cifar10", "python")
    write_files(tmp_path / "cifar-10-batches-py", contents | {"data_batch_2": content})
    with pytest.raises(DataError, match=word) as refused:
        load("cifar10", root=tmp_path)
    assert "data_batch_2" in str(refused.value)


def test_truncated_binary(tmp_path):
    contents, _ = cifar_files("cifar10", "binary")
    contents["test_batch.bin"] = contents["test_batch.bin"][:-1]
    write_files(tmp_path / "cifar-10-batches-bin", contents)
    with pytest.raises(DataError, match=r"test_batch.bin: \d+ bytes, expected a multiple of 3073"):
        load("cifar10", root=tmp_path)


def test_truncated_and_incomplete_archives(tmp_path):
    contents, _ = cifar_files("cifar10", "python")
    file = tmp_path / "cifar-10-python.tar.gz"
    write_archive(file, "cifar-10-batches-py", contents)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: damaged"):
        load("cifar10", root=tmp_path)
    del contents["data_batch_4"]
    write_archive(file, "cifar-10-batches-py", contents)
    with pytest.raises(DataError, match="holds no data_batch_4"):
        load("cifar10", root=tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    file.unlink()
    contents, _ = cifar_files("cifar10", "python")
    del contents["test_batch"]
    write_files(tmp_path / "cifar-10-batches-py", contents)
    with pytest.raises(DataError, match="test_batch: missing"):
        load("cifar10", root=tmp_path)


# Fashion-MNIST


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def write_fashion(folder, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = pixels(20, 28, 28), np.arange(20, dtype=np.uint8) % 10
    for prefix, count in (("train", 20), ("t10k", 5)):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            data = idx(array[:count])
            file = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(data) if packed else data)
    return images[:, None], labels


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist(tmp_path, packed):
    images, labels = write_fashion(tmp_path / "fashion-mnist", packed)
    splits = load("fashion_mnist", root=tmp_path, validation_fraction=0.5)
    assert everything(splits) == pairs(images, labels)
    assert splits.image_shape == (1, 28, 28)
    assert splits.class_names[9] == "Ankle boot"
    assert len(splits.test) == 5


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("train-images-idx3-ubyte", lambda data: data[:-1], "its header"),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "its header"),
        ("train-images-idx3-ubyte", lambda data: b"\x00\x00\x0d\x03" + data[4:], "not an IDX file"),
        ("train-images-idx3-ubyte", lambda data: b"", "not an IDX file"),
        ("train-labels-idx1-ubyte", lambda data: data[:-1] + b"\x0a", "label 10 is outside"),
        ("train-labels-idx1-ubyte", lambda data: idx(np.zeros(19, np.uint8)), "19 labels"),
    ],
)
def test_damaged_idx(tmp_path, name, change, word):
    write_fashion(tmp_path)
    file = tmp_path / name
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=word) as refused:
        load("fashion_mnist", root=tmp_path)
    assert name in str(refused.value)


def test_truncated_gzip(tmp_path):
    write_fashion(tmp_path, packed=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: damaged"):
        load("fashion_mnist", root=tmp_path)


# Tiny ImageNet and folders


def write_image(file, image):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(image, "JPEG" if file.suffix.lower() in (".jpeg", ".jpg") else "PNG"))


def write_tiny(base, sorted_val=False):
    wnids = ["n02", "n01"]
    lines = []
    for wnid in wnids:
        for number in range(4):
            shape = (64, 64) if number == 0 else (64, 64, 3)  # some are grey, as in the real one
            write_image(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", pixels(1, *shape)[0])
        name = f"val_{wnid}.JPEG"
        place = base / "val" / wnid if sorted_val else base / "val"
        write_image(place / "images" / name, np.full((64, 64, 3), 200 if wnid == "n01" else 50, np.uint8))
        lines.append(f"{name}\t{wnid}\t0\t0\t62\t62")
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (base / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tfrog\nn03\tcrane\n")
    if not sorted_val:
        (base / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("sorted_val", [False, True])
def test_tiny_imagenet(tmp_path, sorted_val):
    write_tiny(tmp_path / "tiny-imagenet-200", sorted_val)
    splits = load("tiny_imagenet", root=tmp_path, validation_fraction=0.25)
    assert splits.image_shape == (3, 64, 64)
    assert splits.class_names == ("goldfish", "frog")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 2, 2)
    for image, label in zip(np.asarray(splits.test.images), splits.test.labels, strict=True):
        assert abs(int(image.mean()) - (200 if label == 0 else 50)) < 3
    assert splits.augment.rotation == 20


def test_tiny_imagenet_damage(tmp_path):
    write_tiny(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text() + "val_x.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"val_annotations.txt line 3: class 'n09'"):
        load("tiny_imagenet", root=tmp_path)
    annotations.write_text("val_x.JPEG\tn01\n")
    with pytest.raises(DataError, match=r"val_x.JPEG is missing"):
        load("tiny_imagenet", root=tmp_path)


def write_folder(base, count=5, shape=(8, 10, 3), classes=("cat", "dog")):
    for name in classes:
        for number in range(count):
            write_image(base / name / f"{number}.png", pixels(1, *shape)[0])


def test_folder_with_three_parts(tmp_path):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        write_folder(tmp_path / "pets" / part, count)
    splits = load("folder", root=tmp_path / "pets")
    assert splits.class_names == ("cat", "dog")
    assert splits.image_shape == (3, 8, 10)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 4, 6)


def test_folder_with_train_and_val_tests_on_val(tmp_path):
    write_folder(tmp_path / "train", 10)
    write_folder(tmp_path / "val", 3)
    splits = load("folder", root=tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 6)


def test_folder_of_classes_alone_gets_a_test_set(tmp_path):
    write_folder(tmp_path, 10, shape=(8, 8))
    splits = load("folder", root=tmp_path, seed=3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (14, 2, 4)
    assert splits.image_shape == (1, 8, 8)
    assert "chosen by seed 3" in splits.note


def test_folder_refuses_what_does_not_fit(tmp_path):
    write_folder(tmp_path, 5)
    write_image(tmp_path / "dog" / "large.png", pixels(1, 9, 10, 3)[0])
    with pytest.raises(DataError, match=r"large.png is 10x9 pixels, but .*0.png is 10x8"):
        load("folder", root=tmp_path)
    (tmp_path / "dog" / "large.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"large.png: not a readable image"):
        load("folder", root=tmp_path)
    data = encoded(pixels(1, 8, 10, 3)[0])
    (tmp_path / "dog" / "large.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"large.png: not a readable image"):
        load("folder", root=tmp_path)
    data = encoded(pixels(1, 8, 10, 3)[0], "JPEG")
    (tmp_path / "dog" / "large.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"large.png: not a readable image"):
        load("folder", root=tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_folder_refuses_bombs_odd_and_mixed_images(tmp_path, monkeypatch):
    write_folder(tmp_path, 5, shape=(8, 8))
    odd = tmp_path / "dog" / "odd.png"
    write_image(odd, pixels(1, 8, 8, 3)[0])
    monkeypatch.setattr("sdb.data.pixels.PEEK", 3)
    with pytest.raises(DataError, match=r"odd.png: a coloured image \(RGB\) in a grey set"):
        load("folder", root=tmp_path)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(odd, "TIFF")
    with pytest.raises(DataError, match=r"odd.png: mode F does not say which value is white"):
        load("folder", root=tmp_path)
    odd.unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    with pytest.raises(DataError, match="8x8 pixels, more than 63"):
        load("folder", root=tmp_path)
    write_folder(tmp_path / "jpeg", 5)
    (tmp_path / "jpeg" / "cat" / "0.png").write_bytes(encoded(pixels(1, 8, 10, 3)[0], "JPEG"))
    with pytest.raises(DataError, match="10x8 pixels, more than 63"):
        load("folder", root=tmp_path / "jpeg")


def test_folder_test_class_without_training_images(tmp_path):
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes=("cow",))
    with pytest.raises(DataError, match="class cow is not one of those to train on: cat, dog"):
        load("folder", root=tmp_path)


# Names and places


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "folder"])
def test_missing_data_names_the_places_and_the_remedy(tmp_path, monkeypatch, name):
    with pytest.raises(DataNotFoundError) as refused:
        load(name, root=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(refused.value)
    assert "Expected" in str(refused.value)
    assert "SDB_DATA" in str(refused.value)
    monkeypatch.setenv("SDB_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataNotFoundError, match="elsewhere"):
        load(name)


def test_root_by_default(tmp_path, monkeypatch):
    cifar_parquet(tmp_path / "data" / "cifar10")
    assert len(load("cifar10").test) == 10
    write_fashion(tmp_path / "other")
    monkeypatch.setenv("SDB_DATA", str(tmp_path / "other"))
    assert len(load("fashion_mnist").test) == 5


def test_unknown_name_and_values():
    with pytest.raises(ConfigError, match=r"did you mean 'cifar10'.*digits"):
        load("cifar-10")
    for options in (
        {"validation_fraction": 0},
        {"validation_fraction": 0.6},
        {"subset_percent": 0},
        {"subset_percent": 60},
        {"seed": -1},
    ):
        with pytest.raises(ConfigError, match=next(iter(options))):
            load("digits", **options)


# Objects


def test_arrays_in_each_layout():
    images, labels = pixels(20, 3, 8, 6), np.arange(20) % 4
    first = from_arrays(images, labels, test_images=images[:4], test_labels=labels[:4])
    other = images.transpose(0, 2, 3, 1)
    last = from_arrays(other, labels, test_images=other[:4], test_labels=labels[:4], layout="NHWC")
    assert everything(first) == everything(last) == pairs(images, labels)
    assert first.class_names == ("0", "1", "2", "3")
    grey = from_arrays(images[:, 0], labels)
    assert grey.image_shape == (1, 8, 6)
    assert (len(grey.train), len(grey.validation), len(grey.test)) == (14, 2, 4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"images": np.zeros((20, 3, 8, 8), np.float32)}, "scale pixels"),
        ({"images": np.zeros((20, 8, 8, 3), np.uint8)}, "layout='NHWC'"),
        ({"images": np.zeros((0, 3, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "not empty"),
        ({"labels": np.zeros(19, int)}, r"expected whole numbers \(20,\)"),
        ({"labels": np.zeros(20)}, "whole numbers"),
        ({"labels": np.arange(20) - 1}, "label -1"),
        ({"class_names": ("a", "b")}, "label 3 is outside"),
        ({"test_images": np.zeros((2, 3, 8, 8), np.uint8)}, "both or neither"),
        (
            {"test_images": np.zeros((2, 3, 9, 8), np.uint8), "test_labels": np.zeros(2, int)},
            "test images are",
        ),
    ],
)
def test_arrays_that_do_not_fit(change, word):
    arguments = {"images": np.zeros((20, 3, 8, 8), np.uint8), "labels": np.arange(20) % 4} | change
    with pytest.raises(DataError, match=word):
        from_arrays(**arguments)


def test_datasets_objects(tmp_path):
    datasets = pytest.importorskip("datasets")
    images, labels = pixels(20, 8, 8, 3), [0, 1] * 10
    features = datasets.Features(
        {
            "note": datasets.Value("string"),
            "pic": datasets.Image(),
            "y": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    rows = {"note": [""] * 20, "pic": [Image.fromarray(image) for image in images], "y": labels}
    whole = datasets.Dataset.from_dict(rows, features=features)
    splits = from_dataset(datasets.DatasetDict(train=whole, validation=whole.select(range(6))))
    assert everything(splits) == pairs(images.transpose(0, 3, 1, 2), labels)
    assert splits.class_names == ("a", "b")
    assert len(splits.test) == 6
    shuffled = from_dataset(whole.shuffle(seed=1).select(range(12)), whole)
    assert everything(shuffled) <= pairs(images.transpose(0, 3, 1, 2), labels)
    assert (len(shuffled.train) + len(shuffled.validation), len(shuffled.test)) == (12, 20)
    with pytest.raises(DataError, match="expected an Image and a ClassLabel"):
        from_dataset(whole.remove_columns("y"))
    with pytest.raises(DataError, match="not a streamed one"):
        from_dataset([1, 2])


def test_hub_without_a_connection(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataNotFoundError, match=r"owner/name could not be had from the hub"):
        load("hub:owner/name")
