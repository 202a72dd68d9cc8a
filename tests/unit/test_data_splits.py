"""Splits: who gets which image, the embedded digits, and the statistics of the pixels."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.data import DATASETS, ImageSet, Rows, Splits, carve, from_arrays, load
from sdb.data.digits import FILE
from sdb.data.rows import select
from sdb.data.stats import channel_stats
from sdb.errors import DataError


def test_digits_are_the_published_ones():
    with np.load(FILE) as archive:
        assert archive["images"].shape == (1797, 8, 8)
        assert archive["images"].max() == 16
        assert archive["images"][0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
        assert np.bincount(archive["labels"]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert FILE.stat().st_size < 100_000


def test_digits_split():
    splits = load("digits")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1167, 130, 500)
    assert splits.image_shape == (1, 8, 8)
    assert splits.num_classes == 10
    assert set(np.unique(splits.train.images)) == {value * 255 // 16 for value in range(17)}
    assert "CC BY 4.0" in splits.note
    assert "10.24432/C50P49" in splits.note
    counts = np.bincount(splits.test.labels)
    assert counts.min() >= 48
    assert counts.max() <= 51
    # the test set is the same on every machine and in every version
    digest = hashlib.sha256(np.ascontiguousarray(splits.test.images).tobytes()).hexdigest()
    assert digest[:16] == "5b8666b83d2249d3"


def test_digits_test_set_does_not_depend_on_the_seed():
    first, last = load("digits", seed=0), load("digits", seed=1)
    np.testing.assert_array_equal(first.test.images, last.test.images)
    assert not np.array_equal(first.validation.images, last.validation.images)


def test_same_seed_same_split():
    first, last = load("digits", seed=5), load("digits", seed=5)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, part).images, getattr(last, part).images)
        np.testing.assert_array_equal(getattr(first, part).labels, getattr(last, part).labels)
    assert (first.mean, first.std) == (last.mean, last.std)


def test_no_image_is_in_two_parts():
    images = np.arange(300, dtype=np.uint16).view(np.uint8).reshape(300, 1, 1, 2)  # each one its own number
    splits = from_arrays(images, np.arange(300) % 7, subset_percent=0.5)
    numbers = [
        np.ascontiguousarray(getattr(splits, part).images).view(np.uint16).ravel()
        for part in ("train", "validation", "test")
    ]
    assert len(np.unique(np.concatenate(numbers))) == sum(map(len, numbers))
    assert [len(part) for part in numbers] == [108, 24, 60]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
def test_stratified(labels, fraction, seed):
    labels = np.array(labels)
    first, second = carve.stratified(labels, fraction, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(len(labels)))
    assert len(second) == round(len(labels) * fraction)
    for label in np.unique(labels):
        assert abs((labels[second] == label).sum() - (labels == label).sum() * fraction) <= 1
    np.testing.assert_array_equal(second, carve.stratified(labels, fraction, seed=seed)[1])


def test_subset_is_of_the_training_images_only_and_the_same_for_every_seed():
    whole, part = load("digits"), load("digits", subset_percent=0.1)
    assert len(part.train) == 117
    np.testing.assert_array_equal(whole.validation.images, part.validation.images)
    np.testing.assert_array_equal(part.train.images, whole.train.take(carve.subset(1167, 0.1, seed=230)).images)


def test_statistics_are_those_of_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 5, 4), dtype=np.uint8)
    mean, std = channel_stats(ImageSet(pixels, np.zeros(50, np.int64)))
    np.testing.assert_allclose(mean, (pixels / 255).mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (pixels / 255).std(axis=(0, 2, 3)), rtol=1e-12)


def test_statistics_over_chunks_and_of_constant_channels(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 2, 5, 4), dtype=np.uint8)
    pixels[:, 1] = 51
    images = ImageSet(pixels, np.zeros(50, np.int64))
    whole = channel_stats(images)
    assert (whole[0][1], whole[1][1]) == (0.2, 1.0)
    monkeypatch.setattr("sdb.data.stats.CHUNK_BYTES", 7 * 2 * 5 * 4)
    assert channel_stats(images) == whole


def test_rows_look_like_the_copy(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    chosen = np.array([7, 3, 3, 19, 0])
    rows, copy = select(mapped, chosen), array[chosen]
    assert isinstance(rows, Rows)
    assert (rows.shape, rows.dtype, rows.ndim, rows.nbytes, len(rows)) == (
        (copy.shape, copy.dtype, copy.ndim, copy.nbytes, len(copy))
    )
    for index in (
        2,
        -1,
        slice(1, 4),
        slice(None, None, -1),
        [4, 0, 0],
        np.array([True, False, True, True, False]),
    ):
        np.testing.assert_array_equal(rows[index], copy[index])
    np.testing.assert_array_equal(np.asarray(rows), copy)
    np.testing.assert_array_equal(np.asarray(rows, dtype=np.float32), copy.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(select(rows, np.array([4, 1]))), copy[[4, 1]])
    assert not isinstance(select(array, chosen), Rows)
    with pytest.raises(IndexError):
        rows[5]


def test_image_sets_say_what_is_wrong():
    good = np.zeros((2, 1, 4, 4), np.uint8)
    with pytest.raises(DataError, match="uint8"):
        ImageSet(good.astype(np.float32), np.zeros(2, np.int64))
    with pytest.raises(DataError, match="int64"):
        ImageSet(good, np.zeros(3, np.int64))
    part = ImageSet(good, np.array([0, 2]))
    with pytest.raises(DataError, match=r"label 2 is outside 0..1"):
        Splits("x", part, part, part, ("a", "b"), (0.0,), (1.0,))


def test_too_few_images_for_every_part():
    with pytest.raises(DataError, match="no validation images are left"):
        from_arrays(np.zeros((4, 1, 2, 2), np.uint8), np.zeros(4, int), validation_fraction=0.1)


def test_names_are_in_plain_sight():
    assert list(DATASETS) == ["digits", "cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "folder"]
