"""Levels of confidence: where edges lie, what is true at each level, what an answer says beyond its class."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.answers.levels import (
    FEWEST,
    GAIN,
    PRIOR,
    SMALLEST,
    chances,
    clopper_pearson,
    cross_fitted,
    edges_of,
    find,
    fit,
)
from sdb.answers.rows import as_mask, honest_logits
from sdb.errors import ConfigError, ModelError

TEN = [[(c + 1) % 10, (c + 4) % 10] for c in range(10)]


def world(count=1000, classes=10, seed=0, spread=2.5, right=None):
    """Logits whose confidence is honest: the label is drawn from them; or is right in given places."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    if right is not None:
        named = logits.argmax(dim=1)
        labels = torch.where(torch.as_tensor(right), named, (named + 1) % classes)
    return logits, labels


# --- rows ------------------------------------------------------------------------------------------------------------


@given(
    classes=st.integers(2, 12),
    accuracy=st.floats(0, 1),
    data=st.data(),
)
def test_a_class_stands_first_and_its_decoys_keep_a_hundredth(classes, accuracy, data):
    label = data.draw(st.integers(0, classes - 1))
    others = [c for c in range(classes) if c != label]
    most = max(1, min(3, classes - 2))
    chosen = data.draw(st.lists(st.sampled_from(others), min_size=1, max_size=most, unique=True))
    decoys = [chosen if c == label else [(c + 1) % classes] for c in range(classes)]
    logits = honest_logits(torch.tensor([label]), torch.tensor([accuracy], dtype=torch.float64), as_mask(decoys))[
        0
    ]
    shares = logits.softmax(dim=0)
    assert logits.isfinite().all()
    assert logits.float().argmax() == label and shares[others].max() < shares[label]
    # A share that is at least chance and at most 99 % is told as it is.
    if 1 / classes * math.exp(0.001) <= accuracy <= 0.99:
        assert shares[label].item() == pytest.approx(accuracy, abs=1e-9)
    assert shares[chosen].sum() >= 0.0099 * (len(chosen) > 0)
    free = [c for c in others if c not in chosen]
    if free and accuracy > 0.5:
        assert shares[chosen].min() > shares[free].max()


def test_a_row_is_the_formula():
    accuracy = 0.9
    shares = honest_logits(torch.tensor([3]), torch.tensor([accuracy], dtype=torch.float64), as_mask(TEN))[0].exp()
    wanted = [(1 - accuracy) * 0.001 / 7] * 10
    wanted[3], wanted[4], wanted[7] = accuracy, 0.1 * 0.999 / 2, 0.1 * 0.999 / 2
    torch.testing.assert_close(shares, torch.tensor(wanted).double())


# --- edges -----------------------------------------------------------------------------------------------------------


def slow_edges(sure, guess, levels):
    """The best partition by trying all, of sorted confidences without ties."""

    def score(ends):
        total = 0.0
        for a, b in itertools.pairwise(ends):
            mean = sum(guess[a:b]) / (b - a)
            total += sum(p - 2 * p * mean + mean * mean for p in guess[a:b])
        return total / len(guess)

    best = (score([0, len(sure)]), [0, len(sure)])
    for number in range(2, levels + 1):
        options = [
            [0, *cuts, len(sure)]
            for cuts in itertools.combinations(range(SMALLEST, len(sure) - SMALLEST + 1), number - 1)
        ]
        fitting = [ends for ends in options if all(b - a >= SMALLEST for a, b in itertools.pairwise(ends))]
        found = min(((score(ends), ends) for ends in fitting), default=best)
        if found[0] < (1 - GAIN) * best[0]:
            best = found
    return [(sure[end - 1] + sure[end]) / 2 for end in best[1][1:-1]]


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_edges_are_those_of_the_best_partition(levels, seed):
    rng = np.random.default_rng(seed)
    sure = np.sort(rng.random(45)).astype(np.float32)
    guess = np.sort(rng.random(45)) if seed else (sure > 0.4).astype(float) * 0.6 + 0.3
    found = edges_of(sure, guess, levels, math.inf)
    np.testing.assert_allclose(found, slow_edges(sure.astype(float), guess, levels), rtol=1e-6)


@given(bits=st.floats(0.05, 3.0), levels=st.integers(1, 8), seed=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_no_more_is_told_than_is_allowed(bits, levels, seed):
    logits, labels = world(400, seed=seed, spread=1.5)
    fitted = fit(logits, labels, TEN, levels=levels, bits=bits)
    assert fitted.bits <= bits + 1e-9
    assert fitted.bits <= math.log2(fitted.rows.levels) + 1e-9
    assert fitted.rows.levels <= levels
    assert (fitted.rows.edges.diff(dim=1) > 0).all()
    assert sum(level.images for level in fitted.levels) == 400


def test_what_is_said_in_bits_is_the_entropy_of_the_level_given_the_class():
    logits, labels = world(2000, spread=1.2)
    fitted = fit(logits, labels, TEN, levels=3)
    named, level = fitted.rows.level(logits)
    counts = {}
    for pair in zip(named.tolist(), level.tolist(), strict=True):
        counts[pair] = counts.get(pair, 0) + 1
    of_class = {c: sum(n for (name, _), n in counts.items() if name == c) for c in range(10)}
    slow = -sum(n / 2000 * math.log2(n / of_class[name]) for (name, _), n in counts.items())
    assert fitted.bits == pytest.approx(slow)
    assert fitted.bits > 0.3


def test_a_level_says_how_often_it_is_right():
    logits, labels = world(20000, spread=2.0)
    fitted = fit(logits, labels, TEN, levels=4)
    new, theirs = world(20000, seed=1, spread=2.0)
    answers = fitted.rows(new)
    right = answers.argmax(dim=1) == theirs
    _, level = fitted.rows.level(new)
    assert fitted.rows.levels >= 3
    for number in range(3):  # the last is of one class alone
        here = level == number
        told = answers[here].softmax(dim=1).amax(dim=1).mean()
        assert right[here].float().mean().item() == pytest.approx(told.item(), abs=0.02)
    said = [row.accuracy for row in fitted.levels]
    assert said == sorted(said)
    assert sum(row.images for row in fitted.levels) == 20000
    assert all(row.low <= row.accuracy <= row.high for row in fitted.levels)


def test_a_class_with_many_images_has_edges_of_its_own():
    logits, labels = world(1500, classes=3, spread=1.5)
    few = fit(logits[:600], labels[:600], [[1], [2], [0]], levels=2).rows.edges
    many = fit(logits, labels, [[1], [2], [0]], levels=2).rows.edges
    assert len(few.unique()) == 1
    assert len(many.unique()) == 3


# --- few images, and extremes ----------------------------------------------------------------------------------------


def test_fewer_images_than_needed_are_one_level():
    logits, labels = world(FEWEST - 1)
    assert fit(logits, labels, TEN, levels=8).rows.levels == 1
    assert len(fit(logits, labels, TEN, levels=8).levels) == 1


def test_without_images_an_answer_is_a_guess():
    fitted = fit(torch.empty(0, 10), torch.empty(0, dtype=torch.int64), TEN, levels=4)
    torch.testing.assert_close(fitted.rows.rows.softmax(dim=2)[:, 0].diagonal(), torch.full((10,), 0.5))
    assert (fitted.levels[0].low, fitted.levels[0].high) == (0.0, 1.0)
    assert fitted.bits == 0


@pytest.mark.parametrize("right", [True, False])
def test_confidences_that_say_nothing_are_one_level(right):
    logits, labels = world(500, right=[right] * 500)
    fitted = fit(logits, labels, TEN, levels=4)
    assert fitted.rows.levels == 1
    assert fitted.levels[0].accuracy == right
    assert fitted.rows.rows.isfinite().all()
    assert torch.equal(fitted.rows.rows[:, 0].argmax(dim=1), torch.arange(10))


def test_chance_alone_seldom_makes_levels():
    made = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        p = chances(rng.random(300).astype(np.float32), (rng.random(300) < 0.9).astype(float))
        made += p.min() < p.max()
    assert made <= 14  # 2.5 % of 200, one side: more than 14 in less than 1 of 1,000 cases


@pytest.mark.parametrize("classes", [2, 1000])
def test_two_classes_and_a_thousand(classes):
    logits, labels = world(400, classes=classes, spread=3.0)
    decoys = [[(c + 1) % classes] for c in range(classes)]
    fitted = fit(logits, labels, decoys, levels=2, bits=1.2)
    assert torch.equal(fitted.rows(logits).argmax(dim=1), logits.argmax(dim=1))


def test_what_cannot_be_is_refused():
    logits, labels = world(100)
    with pytest.raises(ConfigError, match="confidence_levels: 9"):
        fit(logits, labels, TEN, levels=9)
    with pytest.raises(ConfigError, match="confidence_levels: 0"):
        fit(logits, labels, TEN, levels=0)
    with pytest.raises(ConfigError, match="confidence_bits: 0"):
        fit(logits, labels, TEN, levels=2, bits=0.0)
    with pytest.raises(ModelError, match="confidences: .*not finite"):
        fit(logits * torch.nan, labels, TEN, levels=2)


# --- what they are made from -----------------------------------------------------------------------------------------


def test_the_chances_are_those_of_the_regression():
    """Against plain gradient descent of the same sum."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.3, 0.99, 200).astype(np.float32)
    rights = (rng.random(200) < sure).astype(float)
    odds = np.log(sure.astype(float) / (1 - sure.astype(float)))
    x, weights = (odds - odds.mean()) / odds.std(), np.zeros(2)
    for _ in range(20000):
        p = 1 / (1 + np.exp(-(weights[0] * x + weights[1])))
        weights += 0.002 * (np.array([((rights - p) * x).sum(), (rights - p).sum()]) - 0.01 * weights)
    np.testing.assert_allclose(chances(sure, rights), 1 / (1 + np.exp(-(weights[0] * x + weights[1]))), atol=1e-5)


def test_separable_and_saturated_confidences_stay_finite():
    sure = np.array([0.2] * 40 + [1.0] * 60, np.float32)
    p = chances(sure, (sure > 0.5).astype(float))
    assert np.isfinite(p).all()
    assert p[0] < 0.1 and p[-1] > 0.9


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"), [(0, 10, 0, 0.308), (10, 10, 0.692, 1), (5, 10, 0.187, 0.813)]
)
def test_intervals_are_those_of_the_tables(hits, images, low, high):
    assert clopper_pearson(hits, images) == pytest.approx((low, high), abs=5e-4)


@given(images=st.integers(1, 200), data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_ends_of_an_interval_have_the_tails(images, data):
    hits = data.draw(st.integers(0, images))
    low, high = clopper_pearson(hits, images)

    def tail(share, counts):
        return sum(math.comb(images, k) * share**k * (1 - share) ** (images - k) for k in counts)

    assert hits == 0 or tail(low, range(hits, images + 1)) == pytest.approx(0.025, rel=1e-6)
    assert hits == images or tail(high, range(hits + 1)) == pytest.approx(0.025, rel=1e-6)


def test_an_image_s_own_label_does_not_show_in_its_cross_fitted_answer():
    logits, labels = world(200)
    before = cross_fitted(logits, labels, TEN, levels=2)
    changed = labels.clone()
    changed[7] = (changed[7] + 1) % 10
    after = cross_fitted(logits, changed, TEN, levels=2)
    assert torch.equal(before[7], after[7])
    assert not torch.equal(before, after)


def test_a_few_images_do_not_tell_classes_apart():
    """Both errors of ten answers are of one class: that may be luck, so a level counts for it as it usually does."""
    names = np.repeat(np.arange(5), 2)
    labels = np.where(names == 0, 5, names)
    found = find(np.full(10, 0.9), names, labels, 6, levels=1)
    common = (8 + PRIOR * 9 / 12) / (10 + PRIOR)
    assert found.told[0, 0] == pytest.approx(PRIOR * common / (2 + PRIOR))
    assert found.told[1:5, 0] == pytest.approx((2 + PRIOR * common) / (2 + PRIOR))
