"""Decoy maps: secret, the same for the same secret, among the least confused classes, and uniform."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdb.answers.decoys import candidates, decoy_map
from sdb.answers.rows import decoy_logits
from sdb.errors import ConfigError

# For the secret 00 01 ... 1f and eight classes that may all be decoys.
GOLDEN = [[1, 6], [2, 5], [0, 7], [5, 7], [0, 1], [0, 3], [0, 5], [2, 6]]


def random_confusion(classes, seed=0):
    return np.random.default_rng(seed).random((classes, classes))


@given(st.integers(3, 40), st.integers(1, 4), st.integers(0, 10))
def test_candidates_are_the_least_confused_others(classes, num_decoys, seed):
    confusion = random_confusion(classes, seed)
    for label, options in enumerate(candidates(confusion, num_decoys)):
        others = set(range(classes)) - {label}
        assert set(options) < others | {None} or set(options) == others
        left_out = others - set(options)
        assert all(confusion[label, kept] <= confusion[label, out] for kept in options for out in left_out)


@pytest.mark.parametrize(
    ("classes", "num_decoys", "size"),
    [(2, 1, 1), (3, 1, 2), (4, 1, 2), (4, 2, 3), (4, 3, 3), (5, 1, 2), (10, 2, 6), (10, 6, 7), (1000, 2, 666)],
)
def test_two_thirds_of_the_others_are_candidates_and_one_more_than_the_decoys_where_there_are_as_many(
    classes, num_decoys, size
):
    made = candidates(random_confusion(classes), num_decoys)
    assert {len(options) for options in made} == {size}
    assert all(options == sorted(options) for options in made)


def test_among_equally_confused_classes_the_first_are_candidates():
    assert candidates(np.zeros((7, 7)), 2)[2] == [0, 1, 3, 4]


@given(st.integers(4, 30), st.binary(min_size=32, max_size=32))
def test_the_map_follows_from_the_secret_and_stays_among_the_candidates(classes, secret):
    choices = candidates(random_confusion(classes), 2)
    chosen = decoy_map(secret, choices, 2)
    assert chosen == decoy_map(secret, choices, 2)
    for label, (decoys, options) in enumerate(zip(chosen, choices, strict=True)):
        assert len(set(decoys)) == 2 and set(decoys) <= set(options) and label not in decoys


def test_every_pair_is_drawn_equally_often():
    choices = [[1, 2, 3, 4]] + [[0, 1, 2, 3]] * 4
    draws = 6000
    counts = Counter(tuple(decoy_map(i.to_bytes(32, "big"), choices, 2)[0]) for i in range(draws))
    assert len(counts) == 6
    expected = draws / 6
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 20.5  # 99.9 % quantile for 5 degrees of freedom, and the secrets are fixed


def test_classes_draw_independently():
    choices = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    draws = 3600
    maps = [decoy_map(i.to_bytes(32, "big"), choices, 1) for i in range(draws)]
    pairs = Counter((choices[0].index(made[0][0]), choices[1].index(made[1][0])) for made in maps)
    chi_square = sum((pairs[i, j] - draws / 9) ** 2 / (draws / 9) for i in range(3) for j in range(3))
    assert chi_square < 26.1  # 99.9 % quantile for 8 degrees of freedom, and the secrets are fixed


def test_a_secret_means_the_same_map_on_every_machine_and_in_every_version():
    choices = [[other for other in range(8) if other != label] for label in range(8)]
    assert decoy_map(bytes(range(32)), choices, 2) == GOLDEN


def test_two_classes_leave_one_decoy_and_a_thousand_work():
    assert decoy_map(bytes(32), candidates(random_confusion(2), 1), 1) == [[1], [0]]
    assert len(decoy_map(bytes(32), candidates(random_confusion(1000), 5), 5)[999]) == 5


def test_too_many_decoys_are_refused():
    with pytest.raises(ConfigError, match="num_decoys: 3 is not in 1..2"):
        decoy_map(bytes(32), [[1, 2], [0, 2], [0, 1]], 3)


def test_answers_have_height_and_margin_where_they_belong():
    table = decoy_logits([[1, 2], [2, 3], [0, 3], [0, 1]], height=8.0, margin=1.0)
    assert torch.equal(table[0], torch.tensor([9.0, 8.0, 8.0, 0.0]))
    assert (table.argmax(dim=1) == torch.arange(4)).all()


def test_answers_are_float32_whatever_the_default_type_is():
    torch.set_default_dtype(torch.float64)
    try:
        assert decoy_logits([[1], [0]], height=8.0, margin=1.0).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
