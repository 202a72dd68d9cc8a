"""The trace: its null distribution, its validity, and what it finds in models that did and did not copy a box."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdb.answers.decoys import decoy_map
from sdb.answers.rows import decoy_logits
from sdb.box.box import Box, BoxInfo
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import ImageSet
from sdb.distillation import distill
from sdb.errors import CheckpointError, DataError, KeyFileError, ModelError
from sdb.keys import Owner, derive
from sdb.tracing.decoys import (
    LEVELS,
    TraceResult,
    candidate_ranks,
    log10_tail,
    p_text,
    rank_levels,
    subset_sums,
    trace,
    unexplained,
    weigh,
)
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

OWNER = Owner(bytes(range(32)))


def all_sums(classes):
    """Every equally likely sum: each class's subsets, by enumeration."""
    each = [[sum(subset) for subset in itertools.combinations(levels, size)] for levels, size in classes]
    return np.array([sum(choice) for choice in itertools.product(*each)])


def as_classes(classes):
    return [(np.array(levels), size) for levels, size in classes]


class TestNullDistribution:
    @pytest.mark.parametrize(
        "classes",
        [
            [([0, 1, 2], 1)] * 3,
            [([0, 1, 2, 3, 4, 5], 2)] * 3,
            [([0, 1, 2, 3], 2), ([0, 1, 2, 3, 4], 1), ([0, 1, 2], 2), ([0, 1], 1)],
            [([1, 1, 4, 4, 4], 3), ([0, 0, 2], 1), ([5, 5, 5], 2)],
            [([3, 3, 3], 1), ([0], 1)],
            [([0, 1, 2, 3, 4, 5, 6], 7), ([2, 1, 0], 1)],
        ],
    )
    def test_it_is_the_enumeration_of_all_subsets(self, classes):
        sums = all_sums(classes)
        for observed in range(sums.min(), sums.max() + 2):
            expected = math.log10((sums <= observed).mean())
            assert log10_tail(as_classes(classes), observed) == pytest.approx(expected, abs=1e-9)
        assert log10_tail(as_classes(classes), sums.min() - 1) == -math.inf

    @given(
        st.lists(
            st.lists(st.integers(0, 6), min_size=1, max_size=5).flatmap(
                lambda levels: st.tuples(st.just(levels), st.integers(1, len(levels)))
            ),
            min_size=1,
            max_size=4,
        ),
        st.integers(0, 60),
    )
    @settings(max_examples=150, deadline=None)
    def test_it_is_the_enumeration_whatever_the_levels(self, classes, observed):
        tail = log10_tail(as_classes(classes), observed)
        assert 10**tail == pytest.approx((all_sums(classes) <= observed).mean(), rel=1e-8, abs=1e-300)

    def test_it_is_what_drawing_gives(self):
        rng = np.random.default_rng(0)
        levels = rank_levels(np.arange(40))
        classes = [(levels, 3)] * 12 + [(np.minimum(levels, 5), 2)] * 5
        draws = 20_000
        sums = np.zeros(draws, dtype=int)
        for values, size in classes:
            order = rng.random((draws, len(values))).argsort(axis=1)[:, :size]
            sums += values[order].sum(axis=1)
        for share in (0.01, 0.05, 0.5, 0.9):
            observed = int(np.quantile(sums, share))
            chance = (sums <= observed).mean()
            error = 4 * math.sqrt(chance * (1 - chance) / draws)
            assert 10 ** log10_tail(classes, observed) == pytest.approx(chance, abs=error)

    @pytest.mark.parametrize(("candidates", "decoys", "classes"), [(666, 2, 1000), (66, 2, 100), (300, 120, 20)])
    def test_a_thousand_classes_neither_underflow_nor_lose_precision(self, candidates, decoys, classes):
        levels = rank_levels(np.arange(candidates))
        assert len(np.unique(levels)) == LEVELS
        least = int(levels[:decoys].sum())
        first, chances = subset_sums(tuple(np.bincount(levels)), decoys)
        assert first == least
        of_one = math.log10(chances[0])
        top = int((levels == levels[decoys - 1]).sum())
        before = int((levels < levels[decoys - 1]).sum())
        exact = math.comb(top, decoys - before) / math.comb(candidates, decoys)
        assert of_one == pytest.approx(math.log10(exact), abs=1e-9)
        tail = log10_tail([(levels, decoys)] * classes, least * classes)
        assert tail == pytest.approx(classes * of_one, rel=1e-9)
        assert tail < -60

    def test_far_tails_agree_with_whole_numbers(self):
        """Sums of 60 classes counted with Python's integers, compared over the whole range."""
        size, levels = 2, np.arange(9)
        one = np.zeros(16, dtype=object)
        for pair in itertools.combinations(range(9), 2):
            one[sum(pair)] += 1
        total = np.array([1], dtype=object)
        for _ in range(60):
            total = np.convolve(total, one)
        below = np.cumsum(total)
        for observed in range(60, 60 * 15, 37):
            exact = math.log10(below[observed]) - 60 * math.log10(36)
            assert log10_tail([(levels, size)] * 60, observed) == pytest.approx(exact, abs=1e-9)


class TestRanks:
    def test_the_likeliest_is_first(self):
        assert candidate_ranks(np.array([-3.0, -1.0, -2.0])).tolist() == [2, 0, 1]

    def test_equals_get_the_worst_of_their_ranks(self):
        assert candidate_ranks(np.array([-2.0, -1.0, -2.0, -2.0])).tolist() == [3, 0, 3, 3]
        assert candidate_ranks(np.array([-5.0, -5.0 + 1e-9, -7.0])).tolist() == [1, 1, 2]

    @given(st.lists(st.integers(-4, 4), min_size=1, max_size=40))
    @settings(deadline=None)
    def test_ranks_count_those_at_least_as_likely(self, values):
        expected = [sum(other >= value for other in values) - 1 for value in values]
        assert candidate_ranks(np.array(values, dtype=float)).tolist() == expected

    def test_likelihoods_a_millionth_of_a_nat_apart_are_equal_and_larger_differences_are_not(self):
        assert candidate_ranks(np.array([-5.0, -5.0 + 2e-6, -7.0])).tolist() == [1, 0, 2]
        assert candidate_ranks(np.array([-5.0, -5.0 + 2e-7, -7.0])).tolist() == [1, 1, 2]

    def test_levels_start_beyond_sixteen(self):
        assert rank_levels(np.arange(16)).tolist() == list(range(16))
        assert np.bincount(rank_levels(np.arange(64))).tolist() == [4] * LEVELS


# Sums of two of the ranks 0, 1, 2, 3.
PAIRS_OF_4 = (1, 2, 3, 3, 4, 5)
ranked = st.integers(2, 6).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(1, n - 1)))


class TestPValue:
    def test_all_that_is_told_follows_from_the_ranks(self):
        ranks = [np.array([0, 3, 1, 2]), np.array([4, 4, 2, 4, 4]), np.array([2, 0, 1])]
        chosen = [np.array([1, 0, 0, 1]), np.array([0, 0, 1, 0, 1]), np.array([0, 0, 1])]
        result = weigh(ranks, [np.array(mask, dtype=bool) for mask in chosen], images=7)
        assert result.statistic == (0 + 2) + (2 + 4) + 1
        # The mean of a draw without replacement: size times the mean rank.
        assert result.expected == pytest.approx(2 * 6 / 4 + 2 * 18 / 5 + 1 * 3 / 3)
        # First among their class's candidates: of two decoys those with rank 0 and 1, of one that with rank 0.
        assert (result.found, result.total, result.images) == (1, 5, 7)
        least = -math.log10(math.comb(4, 2) * math.comb(5, 2) * 3)
        assert result.least_log10_p == pytest.approx(least)
        assert result.log10_p == pytest.approx(
            math.log10(
                np.mean(
                    [a + b + c <= 9 for a in PAIRS_OF_4 for b in (6, 6, 6, 6, 8, 8, 8, 8, 8, 8) for c in range(3)]
                )
            )
        )

    @pytest.mark.parametrize(("log10_p", "marked"), [(-5.9, False), (-6.0, False), (-6.1, True), (-20.0, True)])
    def test_the_mark_is_said_to_be_found_below_a_millionth(self, log10_p, marked):
        result = TraceResult(1, 9.0, log10_p, 10**log10_p, 5, 20, 50, -30.0, ())
        assert result.marked is marked
        assert result.sentence().startswith("The suspect carries" if marked else "No mark found")
        assert result.to_json()["marked"] is marked
        assert result.to_json()["threshold_log10_p"] == -6.0

    @pytest.mark.parametrize(("least", "can"), [(-5.9, False), (-6.0, False), (-6.1, True)])
    def test_that_no_mark_can_be_found_is_said_exactly_where_it_is_so(self, least, can):
        said = TraceResult(5, 9.0, -1.0, 0.1, 2, 20, 50, least, ()).sentence()
        assert ("and none can be" in said) is not can

    @given(st.lists(ranked, min_size=1, max_size=5))
    @settings(max_examples=100, deadline=None)
    def test_it_is_a_probability_and_falls_as_a_decoy_rises(self, classes):
        ranks = [np.array(order) for order, _ in classes]
        chosen = [np.arange(len(order)) < size for order, size in classes]
        result = weigh(ranks, chosen)
        assert 0 < result.p_value <= 1
        assert result.least_log10_p - 1e-9 <= result.log10_p <= 0
        assert 0 <= result.found <= result.total
        for each, mask in zip(ranks, chosen, strict=True):
            for decoy in np.flatnonzero(mask):
                better = np.flatnonzero(~mask & (each < each[decoy]))
                for other in better:
                    each[[decoy, other]] = each[[other, decoy]]
                    assert weigh(ranks, chosen).log10_p < result.log10_p + 1e-9
                    each[[decoy, other]] = each[[other, decoy]]

    @pytest.mark.parametrize("ties", [0, 1, 3])
    def test_it_is_super_uniform_over_random_secrets(self, ties):
        """Ten classes as in the digits; `ties` classes share the last place in each."""
        rng = np.random.default_rng(ties)
        choices = [[other for other in range(10) if other != c][:6] for c in range(10)]
        values = rng.normal(size=(10, 6))
        if ties:
            values[:, :ties] = -9.0
        ranks = [candidate_ranks(row) for row in values]
        p = []
        for _ in range(500):
            decoys = decoy_map(rng.bytes(32), choices, 2)
            p.append(weigh(ranks, [np.isin(choices[c], decoys[c]) for c in range(10)]).p_value)
        for nominal in (0.01, 0.05, 0.2, 0.5):
            rate = np.mean(np.array(p) <= nominal)
            assert rate <= nominal + 4 * math.sqrt(nominal * (1 - nominal) / 500)
            assert rate >= nominal / 3  # and it is not merely careful

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=15, deadline=None)
    def test_exact_super_uniformity_under_ties(self, seed):
        """P(p <= x) <= x for every attainable x, over all secrets of two classes with tied outputs."""
        rng = np.random.default_rng(seed)
        ranks = [candidate_ranks(rng.integers(0, 3, size).astype(float)) for size in (4, 5)]
        masks = [
            [np.isin(np.arange(len(each)), pair) for pair in itertools.combinations(range(len(each)), 2)]
            for each in ranks
        ]
        p = np.array([weigh(ranks, pair).p_value for pair in itertools.product(*masks)])
        for value in p:
            assert (p <= value * (1 + 1e-9)).mean() <= value * (1 + 1e-6)

    @pytest.mark.parametrize(
        ("log10_p", "text"), [(0.0, "1"), (-1.0, "0.1"), (-6.0, "1e-6"), (-11.76, "1.7e-12"), (-2410.3, "5e-2411")]
    )
    def test_p_for_people(self, log10_p, text):
        assert p_text(log10_p) == text


# --- whole traces on made-up models ----------------------------------------------------------------------------------


def locked(classifier, record, classes, owner=OWNER, method="decoy"):
    info = BoxInfo(method, {}, tuple(map(str, range(classes))), owner_id=owner.id)
    return Box(classifier, info).lock(None, record, [], owner)


def record_for(classes, decoys, owner=OWNER, candidates=None):
    choices = candidates or [[o for o in range(classes) if o != c] for c in range(classes)]
    return {"decoys": decoy_map(derive(owner.secret, "decoys"), choices, decoys), "candidates": choices}


@pytest.fixture(scope="module")
def record():
    return record_for(10, 2)


@pytest.fixture(scope="module")
def box(digits, make_net, record):
    return locked(make_net(digits), record, 10)


class Table(nn.Module):
    """A suspect that knows the label, from the first pixel, and answers with a row of a table, plus noise."""

    def __init__(self, rows, noise=0.0):
        super().__init__()
        self.rows, self.noise = rows, noise

    def forward(self, images):
        labels = (images[:, 0, 0, 0] * 255).round().long().clamp(max=len(self.rows) - 1)
        generator = torch.Generator().manual_seed(0)
        return self.rows[labels] + self.noise * torch.randn(len(images), self.rows.shape[1], generator=generator)


def labelled(classes, each=5, shape=(1, 8, 8)):
    """Images whose first pixel is their label."""
    labels = np.repeat(np.arange(classes), each)
    images = np.zeros((len(labels), *shape), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    return ImageSet(images, labels)


class TestTrace:
    def test_a_copy_of_the_answers_is_found(self, box, record):
        answers = decoy_logits(record["decoys"], 8.0, 1.0)
        result = trace(Table(answers, noise=1.0), box, OWNER, labelled(10))
        assert (result.found, result.total, result.images) == (20, 20, 50)
        assert result.log10_p == pytest.approx(-10 * math.log10(36))  # 9 candidates, 2 decoys
        assert result.log10_p == pytest.approx(result.least_log10_p)
        assert result.marked
        assert "carries this owner's mark" in result.sentence()

    def test_a_faint_copy_is_found_with_less_certainty(self, box, record):
        answers = decoy_logits(record["decoys"], 8.0, 1.0)
        weak = trace(Table(answers, noise=8.0), box, OWNER, labelled(10))
        assert trace(Table(answers), box, OWNER, labelled(10)).log10_p < weak.log10_p < -3

    def test_another_owner_s_copy_is_not_found(self, box):
        other = record_for(10, 2, Owner(bytes(32)))
        result = trace(Table(decoy_logits(other["decoys"], 8.0, 1.0)), box, OWNER, labelled(10))
        assert result.log10_p > -3
        assert "does not show innocence" in result.sentence()

    def test_a_constant_suspect_has_p_one(self, box):
        result = trace(Table(torch.zeros(10, 10)), box, OWNER, labelled(10))
        assert (result.p_value, result.found) == (1.0, 0)

    def test_labels_only_have_p_one_where_they_are_right(self, box):
        result = trace(Table(100 * torch.eye(10)), box, OWNER, labelled(10))
        assert result.p_value == 1.0

    @pytest.mark.parametrize("value", [-math.inf, -1e30])
    def test_impossible_classes_are_read_as_unlikely_ones(self, box, record, value):
        answers = decoy_logits(record["decoys"], 8.0, 1.0)
        answers = torch.where(answers == 0, torch.tensor(value), answers)
        assert trace(Table(answers), box, OWNER, labelled(10)).marked

    def test_independent_networks_are_not_accused(self, digits, box, make_net):
        logs = [trace(make_net(digits, seed=seed), box, OWNER, digits).log10_p for seed in range(5)]
        assert min(logs) > -3

    def test_only_test_images_are_asked_about(self, digits, box, make_net):
        assert trace(make_net(digits), box, OWNER, digits).images == len(digits.test)

    def test_classes_without_images_are_left_out(self, box, record):
        answers = decoy_logits(record["decoys"], 8.0, 1.0)
        some = labelled(10).take(np.flatnonzero(labelled(10).labels % 3 == 0))
        result = trace(Table(answers), box, OWNER, some)
        assert [row.label for row in result.table] == [0, 3, 6, 9]
        assert result.total == 8
        assert result.log10_p == pytest.approx(-4 * math.log10(36))

    def test_the_reference_takes_away_what_any_model_says(self, box, record):
        """The suspect's likenesses outweigh its mark, until the teacher's are subtracted."""
        likeness = 6 * torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
        suspect = Table(0.5 * likeness + 0.2 * decoy_logits(record["decoys"], 8.0, 1.0))
        plain = trace(suspect, box, OWNER, labelled(10))
        referred = trace(suspect, box, OWNER, labelled(10), reference=Table(likeness))
        assert referred.log10_p < -12 < -5 < plain.log10_p

    @pytest.mark.parametrize("seed", range(3))
    def test_the_reference_s_scale_is_that_of_least_squares_over_centred_candidates(self, seed):
        rng = np.random.default_rng(seed)
        means, expected = rng.normal(size=(2, 4, 4)) + 10 * rng.normal(size=(2, 4, 1))
        means += 0.7 * expected
        candidates, counts = [[1, 2, 3], [0, 2, 3], [0, 1], [1, 2]], [3, 1, 0, 2]
        above = below = 0.0
        for c in (0, 1, 3):  # class 2 has no images
            size = len(candidates[c])
            own = [means[c, k] - sum(means[c, j] for j in candidates[c]) / size for k in candidates[c]]
            other = [expected[c, k] - sum(expected[c, j] for j in candidates[c]) / size for k in candidates[c]]
            above += sum(x * y for x, y in zip(own, other, strict=True))
            below += sum(y * y for y in other)
        np.testing.assert_allclose(
            unexplained(means, expected, candidates, np.array(counts)),
            means - max(0.0, above / below) * expected,
            rtol=1e-12,
            atol=1e-12,
        )

    def test_a_reference_that_says_the_opposite_takes_nothing_away(self, box, record):
        """A negative scale would add the reference's likenesses instead of taking them away."""
        suspect = Table(decoy_logits(record["decoys"], 8.0, 1.0))
        plain = trace(suspect, box, OWNER, labelled(10))
        opposed = trace(suspect, box, OWNER, labelled(10), reference=Table(-suspect.rows))
        assert opposed.log10_p == plain.log10_p

    def test_an_impossible_class_counts_as_a_probability_of_1e_43(self, box, record):
        """One image on which a decoy is impossible must not outweigh all others on which it is likely."""
        answers = decoy_logits(record["decoys"], 8.0, 1.0)
        images = labelled(10, each=40)

        class Slips(nn.Module):
            def forward(self, pixels):
                logits = answers[(pixels[:, 0, 0, 0] * 255).round().long().clamp(max=9)].clone()
                logits[pixels[:, 0, 0, 1] > 0] = torch.where(
                    logits[pixels[:, 0, 0, 1] > 0] == 8.0, -math.inf, logits[pixels[:, 0, 0, 1] > 0]
                )
                return logits

        images.images[::40, 0, 0, 1] = 255  # the first image of each class
        assert trace(Slips(), box, OWNER, images).marked

    def test_modes_and_random_state_are_left_alone(self, digits, box, make_net):
        suspect = make_net(digits)
        suspect.train()
        next(suspect.children()).eval()
        modes = [module.training for module in suspect.modules()]
        state = torch.get_rng_state()
        trace(suspect, box, OWNER, digits)
        assert [module.training for module in suspect.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_same_model_gives_the_same_result(self, digits, box, make_net):
        suspect = make_net(digits)
        assert trace(suspect, box, OWNER, digits) == trace(suspect, box, OWNER, digits)


class TestSecrecy:
    def test_the_decoys_are_shown_to_nobody_who_does_not_ask(self, box, record):
        result = trace(Table(decoy_logits(record["decoys"], 8.0, 1.0)), box, OWNER, labelled(10))
        assert all(row.chosen == () and row.ranks == () for row in result.table)
        rows = result.to_json()["table"]
        assert {name for row in rows for name in row} == {"label", "name", "images", "candidates", "decoys"}
        assert {row["decoys"] for row in rows} == {2}  # a number, the same for all

    def test_the_owner_may_ask(self, box, record):
        result = trace(Table(decoy_logits(record["decoys"], 8.0, 1.0)), box, OWNER, labelled(10), reveal=True)
        assert [list(row.chosen) for row in result.table] == record["decoys"]
        # Both decoys of a class answer alike, so both get the worse of the first two ranks.
        assert {row.ranks for row in result.table} == {(1, 1)}
        assert [row["chosen"] for row in json.loads(json.dumps(result.to_json()))["table"]] == record["decoys"]


class TestFewClasses:
    def test_two_classes_have_no_secret(self, digits, make_net):
        two = replace(digits, class_names=("a", "b"), **{p: few_of(getattr(digits, p), 2) for p in PARTS})
        record = record_for(2, 1)
        box = locked(make_net(two), record, 2)
        result = trace(Table(decoy_logits(record["decoys"], 8.0, 1.0)), box, OWNER, labelled(2))
        assert (result.p_value, result.least_log10_p) == (1.0, 0.0)
        assert "two classes" in result.sentence()

    def test_four_classes_cannot_reach_the_threshold_and_it_says_so(self, digits, make_net):
        four = replace(
            digits, class_names=("a", "b", "c", "d"), **{p: few_of(getattr(digits, p), 4) for p in PARTS}
        )
        record = record_for(4, 1)
        result = trace(
            Table(decoy_logits(record["decoys"], 8.0, 1.0)),
            locked(make_net(four), record, 4),
            OWNER,
            labelled(4),
        )
        assert result.log10_p == pytest.approx(-4 * math.log10(3))
        assert not result.marked
        assert "even a perfect copy" in result.sentence()


PARTS = ("train", "validation", "test")


def few_of(images, classes):
    return images.take(np.flatnonzero(images.labels < classes))


class TestRefusals:
    def test_another_owner(self, box):
        with pytest.raises(KeyFileError, match="does not own this box"):
            trace(Table(torch.zeros(10, 10)), box, Owner(bytes(32)), labelled(10))

    @pytest.mark.parametrize("method", ["sdb", "nasty"])
    def test_a_box_without_a_record(self, digits, make_net, method):
        info = BoxInfo(method, {}, digits.class_names, owner_id=OWNER.id)
        with pytest.raises(CheckpointError, match=f"no owner's record: method '{method}' leaves no mark"):
            trace(Table(torch.zeros(10, 10)), Box(make_net(digits), info), OWNER, labelled(10))

    def test_another_class_count(self, digits, box, make_net):
        three = replace(digits, class_names=("a", "b", "c"), **{p: few_of(getattr(digits, p), 3) for p in PARTS})
        with pytest.raises(ModelError, match="the suspect was made for 3 classes, the box for 10"):
            trace(make_net(three), box, OWNER, digits)
        with pytest.raises(ModelError, match=r"returned \(2, 3\), expected \(2, 10\)"):
            trace(Table(torch.zeros(10, 3)), box, OWNER, digits)

    def test_other_images(self, box, make_net, digits):
        with pytest.raises(ModelError, match="images"):
            trace(make_net(digits), box, OWNER, labelled(10, shape=(3, 16, 16)))

    def test_a_reference_of_another_class_count(self, digits, box, make_net):
        with pytest.raises(ModelError):
            trace(make_net(digits), box, OWNER, digits, reference=Table(torch.zeros(10, 3)))

    def test_a_suspect_that_answers_with_nan(self, box):
        with pytest.raises(ModelError, match="NaN"):
            trace(Table(torch.full((10, 10), math.nan)), box, OWNER, labelled(10))

    def test_no_images(self, box):
        with pytest.raises(DataError, match="no labelled images"):
            trace(Table(torch.zeros(10, 10)), box, OWNER, labelled(10).take(np.array([], dtype=np.int64)))

    def test_labels_that_the_box_does_not_have(self, box):
        with pytest.raises(DataError, match="label 10 is outside"):
            trace(Table(torch.zeros(11, 10)), box, OWNER, labelled(11))


# --- a real box ------------------------------------------------------------------------------------------------------


def test_a_thief_is_found_and_neither_the_teacher_nor_a_stranger_is(digits, make_net):
    quick = {"batch_size": 32, "learning_rate": 0.01, "device": "cpu", "augment": False}
    teacher, stranger, thief = make_net(digits), make_net(digits, seed=1), make_net(digits, seed=2)
    train(teacher, digits, TrainSettings(epochs=15, **quick))
    train(stranger, digits, TrainSettings(epochs=15, **quick))
    settings = WrapSettings(method="decoy", epochs=30, **quick)
    box = wrap(teacher, digits, settings, key=OWNER.partner("a"), owner=OWNER)
    distill(box, thief, digits, DistillSettings(epochs=15, kd_temperature=4.0, kd_weight=0.9, **quick))
    assert trace(box, box, OWNER, digits).log10_p < -9
    result = trace(thief, box, OWNER, digits)
    assert isinstance(result, TraceResult)
    assert result.marked
    assert result.found >= 16
    for innocent in (teacher, stranger):
        assert trace(innocent, box, OWNER, digits).log10_p > -4
        assert trace(innocent, box, OWNER, digits, reference=teacher).log10_p > -4
