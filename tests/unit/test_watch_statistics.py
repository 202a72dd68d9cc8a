"""The statistics against known values and known distributions."""

import numpy as np
import pytest

from sdb.service.watch.statistics import (
    largest_gap,
    shapiro_francia,
    textures,
    thumbnails,
    traits,
    without_outliers,
)

UNIT = np.linspace(0.0, 1.0, 101)


def test_w_of_three_values_by_hand():
    """Three scores are (-a, 0, a), so W' is (x3 - x1)^2 over twice the sum of squares, whatever a is."""
    assert shapiro_francia(np.array([0.0, 0.0, 1.0])) == pytest.approx(0.75)
    assert shapiro_francia(np.array([3.0, 1.0, 2.0])) == pytest.approx(1.0)
    assert shapiro_francia(np.array([0.0, 1.0, 4.0])) == pytest.approx(16 / (2 * 26 / 3))


def test_w_is_the_same_for_any_unit_and_origin_and_nothing_for_equal_values():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    assert shapiro_francia(values) == pytest.approx(shapiro_francia(1e-3 * values - 40.0), rel=1e-6)
    assert shapiro_francia(np.full(50, 0.3)) == 0.0


def royston_critical(count):
    """1 - W' that a normal sample exceeds once in twenty times: Royston, Statistics in Medicine 12 (1993) 181."""
    u = np.log(count)
    v = np.log(u)
    mean, deviation = -1.2725 + 1.0521 * (v - u), 1.0308 - 0.26758 * (v + 2 / u)
    return np.exp(mean + 1.6449 * deviation)


@pytest.mark.parametrize("count", [40, 128])
def test_normal_samples_are_rejected_as_often_as_the_published_approximation_says(count):
    generator = np.random.default_rng(1)
    rejected = [1 - shapiro_francia(generator.normal(5, 2, count)) > royston_critical(count) for _ in range(2_000)]
    assert 0.037 < np.mean(rejected) < 0.063  # 5 % within 2.7 standard errors


def test_other_samples_are_rejected():
    generator = np.random.default_rng(2)
    for sample in (generator.exponential(size=(50, 128)), generator.choice([0.1, 0.9], (50, 128))):
        assert all(1 - shapiro_francia(row) > royston_critical(128) for row in sample)


def test_outliers_go_and_the_rest_stays():
    values = np.append(np.random.default_rng(3).normal(size=100), 50.0)
    assert len(without_outliers(values)) == 100 and len(without_outliers(np.ones(9))) == 9


def test_the_gap_of_distributions_by_hand():
    assert largest_gap(np.array([0.5]), UNIT) == pytest.approx(0.5)
    assert largest_gap(np.array([0.9, 0.95]), UNIT) == pytest.approx(0.9)
    assert largest_gap(np.array([0.1, 0.2]), UNIT) == pytest.approx(0.8)
    assert largest_gap(np.full(10, 2.0), UNIT) == pytest.approx(1.0)
    even = (np.arange(1_000) + 0.5) / 1_000
    assert largest_gap(even, UNIT) == pytest.approx(0.0005)


def test_the_gap_of_equal_distributions_shrinks_as_kolmogorov_says():
    generator = np.random.default_rng(4)
    gaps = [largest_gap(generator.random(128), UNIT) for _ in range(500)]
    assert np.mean(np.array(gaps) > 1.358 / np.sqrt(128)) < 0.09  # 5 %


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 21, 17), (1, 4, 30), (1, 1, 1)])
def test_thumbnails_are_small_means_and_linear(shape):
    images = np.random.default_rng(5).random((6, *shape)).astype(np.float32)
    small = traits(images, np.zeros((6, 3))).small
    assert small.shape == (6, min(8, shape[1]) * min(8, shape[2]))
    assert small.min() >= 0 and small.max() <= 1
    grey, other = images.mean(axis=1), images[::-1].mean(axis=1)
    assert np.allclose(thumbnails(grey + 2 * other), thumbnails(grey) + 2 * thumbnails(other), atol=1e-5)
    if shape[1] % 8 == 0 and shape[2] % 8 == 0:
        assert np.allclose(small.mean(axis=1), images.mean(axis=(1, 2, 3)), atol=1e-5)


def test_texture_is_of_neighbours():
    board = np.indices((6, 6)).sum(axis=0) % 2
    assert textures(np.stack([board, np.ones((6, 6))]).astype(np.float32)) == pytest.approx([1.0, 0.0])
    assert textures(np.ones((2, 1, 1), np.float32)).tolist() == [0.0, 0.0]


def test_confidence_is_the_largest_probability_however_large_the_logits():
    logits = np.array([[0.0, np.log(3.0)], [1e4, 1e4], [-1e4, 1e4]], dtype=np.float32)
    found = traits(np.zeros((3, 1, 2, 2), np.float32), logits)
    assert found.confidence == pytest.approx([0.75, 0.5, 1.0]) and found.predicted.tolist() == [1, 0, 1]
