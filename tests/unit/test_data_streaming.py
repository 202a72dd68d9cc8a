"""Streamed images: the same pixels as cached ones, decoded when asked for; sizes, windows, and what fails."""

import io
import os
import threading
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sdb.data.stats
from sdb.data import Augment, Batches, from_arrays, from_dataset, load
from sdb.data import augment as augmentation
from sdb.data.pixels import decode
from sdb.data.rows import streamed
from sdb.data.stats import channel_stats, sample_of
from sdb.data.streamed import threads
from sdb.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SDB_CACHE", str(tmp_path / "cache"))


def photograph(height, width, mode="RGB", detail=6):
    """Smooth, so that JPEG and resampling change it little."""
    coarse = Image.fromarray(RNG.integers(0, 256, (detail, detail, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def write(folder, counts=(("train", 12), ("test", 4)), sizes=None, suffix="jpg"):
    """An ImageNet-like folder of two classes; the images' sizes all differ."""
    for part, count in counts:
        for name in ("n01", "n02"):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                height, width = sizes or (30 + 7 * number, 90 - 5 * number)
                photograph(height, width).save(place / f"{number}.{suffix}")
    return folder


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "set")


def everything(images, **options):
    return [torch.cat(tensors) for tensors in zip(*Batches(images, 5, **options).epoch(3), strict=True)]


def test_streamed_and_cached_batches_are_the_same(root):
    cached, lazy = (load("folder", root=root, image_size=32, stream=stream) for stream in (False, True))
    assert [streamed(part.images) for part in (cached.train, lazy.train, lazy.test)] == [False, True, True]
    assert cached.image_shape == lazy.image_shape == (3, 32, 32)
    assert (cached.mean, cached.std, cached.class_names) == (lazy.mean, lazy.std, lazy.class_names)
    assert lazy.augment.resized_crop is not None
    for part in ("train", "validation", "test"):
        first, second = getattr(cached, part), getattr(lazy, part)
        assert first.images.shape == second.images.shape
        options = {"seed": 4, "shuffle": True, "augment": lazy.augment}
        for a, b in zip(everything(first, **options), everything(second, **options), strict=True):
            assert torch.equal(a, b)


def test_nothing_streamed_is_kept(root, tmp_path):
    splits = load("folder", root=root, image_size=32, stream=True)
    assert not Batches(splits.train, 4).resident
    everything(splits.train)
    assert [file.name.partition("-")[0] for file in (tmp_path / "cache").iterdir()] == ["streamed"]


def test_streamed_images_look_like_the_array(root):
    splits = load("folder", root=root, image_size=16, stream=True)
    images = splits.test.images
    copy = np.asarray(images)
    assert (images.shape, images.dtype, images.ndim, images.nbytes, len(images)) == (
        (copy.shape, copy.dtype, copy.ndim, copy.nbytes, len(copy))
    )
    assert copy.flags.c_contiguous
    for index in (2, -1, slice(1, 4), slice(None, None, -2), [4, 0, 0], np.arange(8) % 3 == 0, slice(0, 0)):
        np.testing.assert_array_equal(images[index], copy[index])
    np.testing.assert_array_equal(np.asarray(images, dtype=np.float32), copy.astype(np.float32))
    taken = splits.test.take(np.array([5, 2, 2]))
    np.testing.assert_array_equal(taken.images[:], copy[[5, 2, 2]])
    assert taken.labels.tolist() == [1, 0, 0]
    with pytest.raises(IndexError):
        images[8]


def test_processes_together_see_the_batch_of_one(root):
    splits = load("folder", root=root, image_size=16, stream=True)
    options = {"seed": 1, "shuffle": True, "augment": splits.augment}
    alone = list(Batches(splits.train, 6, **options).epoch(2))
    shares = [list(Batches(splits.train, 6, rank=rank, world_size=3, **options).epoch(2)) for rank in range(3)]
    for whole, *parts in zip(alone, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert all(torch.equal(a, b[rank::3]) for a, b in zip(part, whole, strict=True))


def test_without_a_size_images_keep_theirs(tmp_path):
    write(tmp_path / "set", sizes=(20, 24))
    cached, lazy = (load("folder", root=tmp_path / "set", stream=stream) for stream in (False, True))
    assert lazy.image_shape == (3, 20, 24)
    assert lazy.augment == Augment()
    np.testing.assert_array_equal(cached.test.images[:], lazy.test.images[:])


def test_an_image_of_another_size_is_named(tmp_path):
    folder = write(tmp_path / "set", sizes=(20, 24))
    photograph(20, 25).save(folder / "test" / "n02" / "1.jpg")
    splits = load("folder", root=folder, stream=True)
    with pytest.raises(DataError, match=r"n02/1\.jpg is 25x20 pixels, the first image 24x20: set image_size"):
        splits.test.images[:]


@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_a_damaged_image_is_named_when_it_is_asked_for(root, damage):
    splits = load("folder", root=root, image_size=32, stream=True)
    bad = root / "test" / "n02" / "3.jpg"
    if damage == "gone":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[:300] if damage == "cut" else b"no image")
    splits.test.images[:7]
    with pytest.raises(DataError, match=r"n02/3\.jpg"):
        everything(splits.test)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sdb-")]


def test_large_sets_are_streamed_unless_told_otherwise(root, monkeypatch):
    size = 32 * 3 * 16 * 16  # all 32 images, decoded
    for limit, expected in ((size, False), (size - 1, True)):
        monkeypatch.setattr(import_module("sdb.data.load"), "STREAM_BYTES", limit)
        assert streamed(load("folder", root=root, image_size=16).train.images) is expected
    assert not streamed(load("folder", root=root, image_size=16, stream=False).train.images)


@pytest.mark.parametrize("options", [{"image_size": 32}, {"stream": True}])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_sets_that_are_no_single_images_refuse(name, options):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))}: the images of {name}"):
        load(name, **options)
    with pytest.raises(ConfigError, match="image_size 0"):
        load("folder", image_size=0)


def test_statistics_of_a_sample(root, monkeypatch, tmp_path):
    monkeypatch.setattr(sdb.data.stats, "SAMPLE", 7)
    splits = load("folder", root=root, image_size=16, stream=True)
    chosen = sample_of(len(splits.train))
    assert len(set(chosen.tolist())) == 7
    assert (splits.mean, splits.std) == channel_stats(splits.train.take(chosen))
    # Kept, and measured again where a file of the sample has changed, not where it was only touched.
    monkeypatch.setattr("sdb.data.image_cache.channel_stats", lambda images: ((0.0,) * 3, (1.0,) * 3))
    assert load("folder", root=root, image_size=16, stream=True).mean == splits.mean
    assert load("folder", root=root, image_size=24, stream=True).mean == (0.0,) * 3
    for file in root.rglob("*.jpg"):
        os.utime(file, (0, 0))
    assert load("folder", root=root, image_size=16, stream=True).mean == splits.mean
    first = splits.train.images.source.encoded[int(splits.train.images.rows[chosen[0]])]
    first.write_bytes(first.read_bytes() + b"x")
    os.utime(first, (0, 0))
    assert load("folder", root=root, image_size=16, stream=True).mean == (0.0,) * 3


def test_datasets_objects_are_streamed_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    cells = [photograph(40 + n, 70 - n) for n in range(10)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    both = datasets.Dataset.from_dict({"image": cells, "label": [n % 2 for n in range(10)]}, features=features)
    options = {"image_size": 24, "validation_fraction": 0.25}
    cached, lazy = (from_dataset(both, **options, stream=stream) for stream in (False, True))
    assert streamed(lazy.train.images)
    for part in ("train", "validation", "test"):
        first, second = getattr(cached, part), getattr(lazy, part)
        np.testing.assert_array_equal(first.images[:], second.images[:])
        np.testing.assert_array_equal(first.labels, second.labels)
    shuffled = both.shuffle(seed=1)
    lazy = from_dataset(shuffled, **options, stream=True)
    assert np.array_equal(from_dataset(shuffled, **options, stream=False).test.images[:], lazy.test.images[:])


def test_tiny_imagenet_at_another_size(tmp_path):
    base = tmp_path / "tiny-imagenet-200"
    for wnid in ("n01", "n02"):
        (base / "train" / wnid / "images").mkdir(parents=True)
        for number in range(10):
            photograph(64, 64).save(base / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
    (base / "val" / "images").mkdir(parents=True)
    lines = []
    for number in range(4):
        photograph(64, 64).save(base / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t62\t62")
    (base / "val" / "val_annotations.txt").write_text("\n".join(lines))
    (base / "wnids.txt").write_text("n02\nn01\n")
    cached, lazy = (load("tiny_imagenet", root=base, image_size=40, stream=stream) for stream in (False, True))
    assert lazy.image_shape == (3, 40, 40)
    assert lazy.test.labels.tolist() == [0, 1, 0, 1]
    assert lazy.augment.rotation == 20
    np.testing.assert_array_equal(cached.test.images[:], lazy.test.images[:])


def test_threads_are_this_process_s_share(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    for processes, expected in (("1", 12), ("5", 2), ("64", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert threads() == expected


# Decoding to a size


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 40), (40, 40), (20, 33)])
def test_the_square_in_the_middle_is_taken(height, width, suffix):
    image = photograph(height, width, detail=3)
    out = io.BytesIO()
    image.save(out, suffix, **({"quality": 95} if suffix == "JPEG" else {}))
    got = decode(out.getvalue(), 3, "x", 16).astype(float)
    side = min(height, width)
    top, left = (height - side) / 2, (width - side) / 2
    square = image.crop((int(left), int(top), int(left) + side, int(top) + side))
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC), float)
    # Half a pixel where the square is not in the middle of pixels; a JPEG's loss.
    assert np.abs(got - expected).mean() < (5 if suffix == "JPEG" or (height - width) % 2 else 0.5)


def test_a_jpeg_that_is_decoded_at_a_fraction_looks_the_same():
    image = photograph(1200, 1600)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    opened = Image.open(io.BytesIO(out.getvalue()))
    square = opened.crop((200, 0, 1400, 1200)).resize((64, 64), Image.Resampling.BICUBIC)
    got = decode(out.getvalue(), 3, "x", 64)
    assert np.abs(got.astype(float) - np.asarray(square, float)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_modes(mode):
    image = photograph(30, 40).convert(mode)
    out = io.BytesIO()
    image.save(out, "TIFF")
    assert decode(out.getvalue(), 3, "x", 12).shape == (12, 12, 3)
    if mode == "L":
        assert decode(out.getvalue(), 1, "x", 12).shape == (12, 12, 1)


# Resized crop


def torchvision_window(drawn, areas, height, width):
    """The window as torchvision's RandomResizedCrop chooses it, one try after the other."""
    tries = augmentation.TRIES
    for number in range(tries):
        area = height * width * (areas[0] + drawn[number] * (areas[1] - areas[0]))
        ratio = np.exp(np.log(3 / 4) + drawn[tries + number] * (np.log(4 / 3) - np.log(3 / 4)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(drawn[2 * tries] * (height - h + 1)), int(drawn[2 * tries + 1] * (width - w + 1)), h, w]
    if width / height < 3 / 4:
        h, w = min(height, round(width * 4 / 3)), width
    elif width / height > 4 / 3:
        h, w = height, min(width, round(height * 4 / 3))
    else:
        h, w = height, width
    return [(height - h) // 2, (width - w) // 2, h, w]


@settings(max_examples=60, deadline=None)
@given(
    areas=st.sampled_from([(0.08, 1.0), (0.35, 1.0), (0.9, 1.0), (1.0, 1.0)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**32),
)
def test_windows_are_torchvision_s(areas, size, seed):
    draws = augmentation.draw(Augment(resized_crop=areas), 8, torch.Generator().manual_seed(seed))
    got = augmentation.windows(areas, draws.window, *size)
    expected = [torchvision_window(row, areas, *size) for row in draws.window.double().tolist()]
    assert got.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)), channels=st.integers(1, 3), seed=st.integers(0, 2**32)
)
def test_a_resized_crop_is_a_crop_that_is_resized(size, channels, seed):
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (5, channels, *size), dtype=np.uint8))
    augment = Augment(resized_crop=(0.1, 1.0))
    draws = augmentation.draw(augment, 5, torch.Generator().manual_seed(seed))
    got = augmentation.apply(augment, images, draws)
    assert got.dtype == torch.uint8
    boxes = augmentation.windows((0.1, 1.0), draws.window, *size).tolist()
    for image, (top, left, height, width), result in zip(images, boxes, got, strict=True):
        crop = image[None, :, top : top + height, left : left + width].float()
        expected = F.interpolate(crop, size, mode="bilinear", align_corners=False, antialias=True)[0]
        assert (result.float() - expected).abs().max() <= 0.51  # half a level of rounding


def test_the_whole_image_stays_as_it_is():
    images = torch.from_numpy(RNG.integers(0, 256, (300, 3, 9, 9), dtype=np.uint8))  # more than a chunk
    augment = Augment(resized_crop=(1.0, 1.0))
    draws = augmentation.draw(augment, 300, torch.Generator().manual_seed(0))
    whole = augmentation.windows((1.0, 1.0), draws.window, 9, 9)[:, 2:] == 9
    kept = whole.all(dim=1)
    assert kept.float().mean() > 0.5
    assert torch.equal(augmentation.apply(augment, images, draws)[kept], images[kept])


def test_other_draws_do_not_change():
    """What was drawn before there were resized crops: runs of that time can be run again."""
    old = torch.Generator().manual_seed(3)
    offsets = torch.randint(0, 9, (2, 50), generator=old)
    flip = torch.rand(50, generator=old) < 0.5
    degrees = (2 * torch.rand(50, generator=old) - 1) * 20
    for areas in (None, (0.35, 1.0)):
        augment = Augment(crop_padding=4, flip=True, rotation=20.0, resized_crop=areas)
        draws = augmentation.draw(augment, 50, torch.Generator().manual_seed(3))
        for got, expected in zip(draws[:4], (offsets[0], offsets[1], flip, degrees), strict=True):
            assert torch.equal(got, expected)
    assert draws.window.shape == (50, 2 * augmentation.TRIES + 2)


@pytest.mark.parametrize("areas", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)])
def test_areas_out_of_range(areas):
    with pytest.raises(ConfigError, match="resized_crop"):
        Augment(resized_crop=areas)


def test_arrays_can_have_resized_crops():
    images = RNG.integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    splits = from_arrays(
        images, np.arange(30) % 3, augment=Augment(resized_crop=(0.5, 1.0)), validation_fraction=0.2
    )
    first, second = (Batches(splits.train, 8, augment=splits.augment) for _ in range(2))
    for a, b in zip(first.epoch(1), second.epoch(1), strict=True):
        assert torch.equal(a.images, b.images)
