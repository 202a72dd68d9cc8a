"""Batches: same pixels whenever, wherever and by however many processes they are asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.data import Augment, Batches, ImageSet, Rows
from sdb.data import augment as augmentation
from sdb.errors import ConfigError

EVERYTHING = Augment(crop_padding=2, flip=True, rotation=20.0)


def some_images(count=23, channels=3, height=8, width=6, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return ImageSet(pixels, np.arange(count, dtype=np.int64) % 5)


def everything(batches, epoch=0, start=0):
    return [torch.cat(tensors) for tensors in zip(*batches.epoch(epoch, start=start), strict=True)]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_values_labels_and_types():
    images = some_images()
    pixels, labels, index = everything(Batches(images, 4))
    assert pixels.dtype == torch.float32
    assert labels.dtype == index.dtype == torch.int64
    np.testing.assert_array_equal(index.numpy(), np.arange(23))
    np.testing.assert_array_equal(labels.numpy(), images.labels)
    np.testing.assert_array_equal(pixels.numpy(), images.images.astype(np.float32) / np.float32(255))


def test_an_epoch_is_a_function_of_seed_and_number():
    images = some_images()
    made = [Batches(images, 4, seed=s, shuffle=True, augment=EVERYTHING) for s in (3, 3, 4)]
    assert same(everything(made[0], 2), everything(made[1], 2))
    everything(made[0], 5)
    torch.manual_seed(0)
    assert same(everything(made[0], 2), everything(made[1], 2))
    assert not torch.equal(everything(made[0], 1)[2], everything(made[0], 2)[2])
    assert not torch.equal(everything(made[0], 2)[2], everything(made[2], 2)[2])


def test_augmentation_differs_between_epochs():
    batches = Batches(some_images(), 23, augment=EVERYTHING)
    assert not torch.equal(everything(batches, 0)[0], everything(batches, 1)[0])


def test_global_random_state_is_left_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1]
    everything(Batches(some_images(), 4, shuffle=True, augment=EVERYTHING))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_a_run_resumed_in_mid_epoch_sees_the_rest():
    batches = Batches(some_images(), 4, shuffle=True, augment=EVERYTHING)
    whole = list(batches.epoch(1))
    for start in range(len(batches)):
        for full, late in zip(whole[start:], batches.epoch(1, start=start), strict=True):
            assert same(full, late)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_each_image_exactly_once(batch_size, drop_last):
    batches = Batches(some_images(), batch_size, shuffle=True, drop_last=drop_last)
    got = list(batches.epoch(0))
    assert len(got) == len(batches)
    seen = torch.cat([batch.index for batch in got]).tolist() if got else []
    assert len(seen) == len(set(seen)) == (23 // batch_size * batch_size if drop_last else 23)


@pytest.mark.parametrize("resident", [True, False])
def test_processes_together_see_the_batch_of_one(resident):
    images = some_images()
    options = {"seed": 1, "shuffle": True, "augment": EVERYTHING, "resident": resident}
    alone = list(Batches(images, 6, **options).epoch(3))
    shares = [list(Batches(images, 6, rank=r, world_size=3, **options).epoch(3)) for r in range(3)]
    for whole, *parts in zip(alone, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert same(part, [tensor[rank::3] for tensor in whole])


@pytest.mark.parametrize("kind", ["array", "memmap", "rows"])
def test_streamed_equals_resident(tmp_path, kind):
    images = some_images()
    if kind != "array":
        np.save(tmp_path / "images.npy", images.images)
        mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
        images = ImageSet(mapped, images.labels)
        if kind == "rows":
            images = images.take(np.array([5, 3, 9, 22, 0, 1, 17]))
            assert isinstance(images.images, Rows)
    options = {"seed": 2, "shuffle": True, "augment": EVERYTHING}
    streamed, resident = (Batches(images, 4, resident=r, **options) for r in (False, True))
    assert same(everything(streamed, 1), everything(resident, 1))
    assert same(everything(streamed, 1, start=1), everything(resident, 1, start=1))


def test_leaving_an_epoch_early_leaves_no_reader_behind():
    import threading

    epoch = Batches(some_images(), 2, resident=False).epoch(0)
    next(epoch)
    epoch.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sdb-read")]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "world_size": 2}, "multiple of 2"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank 2"),
        ({"batch_size": 4, "seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range(options, word):
    with pytest.raises(ConfigError, match=word):
        Batches(some_images(), **options)


def slow_augment(augment, image, top, left, flip, degrees):
    """One image, one pixel at a time; uint8 (C, H, W)."""
    channels, height, width = image.shape
    p = augment.crop_padding
    padded = np.zeros((channels, height + 2 * p, width + 2 * p), np.uint8)
    padded[:, p : p + height, p : p + width] = image
    image = padded[:, top : top + height, left : left + width]
    if augment.flip and flip:
        image = image[:, :, ::-1]
    if augment.rotation:
        turned = np.zeros_like(image)
        angle = np.deg2rad(np.float64(degrees))
        for row in range(height):
            for column in range(width):
                y, x = row - (height - 1) / 2, column - (width - 1) / 2
                source_x = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2
                source_y = np.sin(angle) * x + np.cos(angle) * y + (height - 1) / 2
                r, c = round(source_y), round(source_x)
                if 0 <= r < height and 0 <= c < width:
                    turned[:, row, column] = image[:, r, c]
        image = turned
    return image


@settings(max_examples=60, deadline=None)
@given(
    padding=st.integers(0, 4),
    flip=st.booleans(),
    rotation=st.sampled_from([0.0, 15.0, 90.0]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)),
    seed=st.integers(0, 2**32),
)
def test_augmentation_equals_a_loop_over_pixels(padding, flip, rotation, size, seed):
    augment = Augment(crop_padding=padding, flip=flip, rotation=rotation)
    images = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    draws = augmentation.draw(augment, len(images), torch.Generator().manual_seed(seed))
    got = augmentation.apply(augment, torch.from_numpy(images), draws)
    rows = zip(images, *(drawn.tolist() for drawn in draws[:4]), strict=True)
    np.testing.assert_array_equal(got.numpy(), np.stack([slow_augment(augment, *row) for row in rows]))


@settings(max_examples=40, deadline=None)
@given(padding=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_crops_stay_in_the_padded_image(padding, seed):
    draws = augmentation.draw(Augment(crop_padding=padding), 200, torch.Generator().manual_seed(seed))
    for offsets in (draws.top, draws.left):
        assert offsets.min() >= 0
        assert offsets.max() <= 2 * padding
        assert len(offsets.unique()) > padding


def test_draws_are_spread_as_documented():
    draws = augmentation.draw(Augment(rotation=20.0), 20_000, torch.Generator().manual_seed(0))
    assert abs(draws.flip.float().mean() - 0.5) < 0.02
    assert -20 <= draws.degrees.min() < -19.9
    assert 19.9 < draws.degrees.max() <= 20
    assert abs(draws.degrees.mean()) < 0.5


def test_positive_angles_turn_anticlockwise():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 4] = 9  # right of the centre
    still = (torch.zeros(1, dtype=torch.long) for _ in range(3))
    quarter = augmentation.Draws(*still, torch.tensor([90.0]), torch.zeros(1, 0))
    turned = augmentation.apply(Augment(rotation=90.0), image, quarter)
    assert turned[0, 0, 0, 2] == 9  # above it
