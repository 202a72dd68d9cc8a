"""Near ties: what counts as one, whose coin decides, what that costs, and that all platforms agree."""

from __future__ import annotations

import hashlib
import hmac
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.answers.rows import Rows
from sdb.answers.ties import (
    NOBODY,
    STEPS,
    WIDEST,
    FixedRows,
    Ties,
    cells_of,
    cost_of,
    fit_tau,
    levels_with_ties,
    log_probabilities,
    margins_of,
)
from sdb.errors import ConfigError, KeyFileError, ModelError
from sdb.keys import Owner, derive

SECRET = bytes(range(32))
TIES = Ties.of(SECRET, "box", 0.2)


def near(count, classes=10, seed=0, spread=0.3):
    """Logits whose two best classes are close together."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, classes)).astype(np.float32)
    rows = np.arange(count)
    best = np.argsort(-logits, axis=1)[:, :2]
    logits[rows, best[:, 0]] = 5
    logits[rows, best[:, 1]] = 5 - rng.uniform(0, spread, count)
    return logits


def test_a_tie_is_a_margin_below_tau():
    logits = near(500, spread=2.0)
    found = TIES.find(logits)
    p = torch.from_numpy(logits).double().softmax(dim=1).sort(dim=1, descending=True).values
    assert found.rows.tolist() == torch.nonzero(p[:, 0] - p[:, 1] < 0.2).flatten().tolist()
    assert 0 < len(found.rows) < 500
    best = np.sort(np.argsort(-logits[found.rows], axis=1)[:, :2], axis=1)
    assert (found.pairs == best).all()
    assert (found.best == logits[found.rows].argmax(axis=1)).all()


def test_golden_vectors():
    """Coins, cells and ids are the same on every platform and in every version."""
    logits = (np.arange(80).reshape(8, 10) * 7 % 11).astype(np.float32)
    logits[np.arange(8), np.arange(8)] = 14
    logits[np.arange(8), np.arange(8) + 1] = 13.9
    found = TIES.find(logits)
    assert found.rows.tolist() == list(range(8))
    assert found.cells.tolist() == GOLDEN["cells"]
    assert TIES.coins("a" * 32, found).tolist() == GOLDEN["coins"]
    assert TIES.coins(NOBODY, found).tolist() == GOLDEN["nobody"]
    assert TIES.id == GOLDEN["id"]


GOLDEN = {
    "cells": [578, 754, 930, 1106, 434, 130, 306, 402],
    "coins": [0, 2, 3, 4, 5, 5, 7, 7],
    "nobody": [0, 1, 2, 3, 5, 6, 7, 7],
    "id": "6bc08e2b90d83dc2bea892d0ccb50af3",
}


def test_a_coin_is_a_bit_of_hmac_over_length_prefixed_fields():
    message = b""
    for field in (b"box", b"account", b"7", b"2", b"10"):
        message += len(field).to_bytes(4, "big") + field
    digest = hmac.new(derive(SECRET, "ties/box"), message, hashlib.sha256).digest()
    assert TIES.coin("account", 7, 2, 10) == bool(digest[0] & 1)


def test_fields_do_not_run_into_each_other():
    """Another split of the same characters is another coin; so is each field, in half of the cases."""
    coins = np.array([TIES.coin("a", cell, 1, 2) for cell in range(2000)])
    for other in (
        [TIES.coin("b", cell, 1, 2) for cell in range(2000)],
        [TIES.coin("a", cell, 1, 3) for cell in range(2000)],
        [TIES.coin("a", cell, 2, 2) for cell in range(2000)],
        [TIES.coin("a", cell + 5000, 1, 2) for cell in range(2000)],
        [Ties.of(SECRET, "other", 0.2).coin("a", cell, 1, 2) for cell in range(2000)],
        [Ties.of(bytes(32), "box", 0.2).coin("a", cell, 1, 2) for cell in range(2000)],
    ):
        assert abs((coins == np.array(other)).mean() - 0.5) < 0.06  # five standard errors
    assert abs(coins.mean() - 0.5) < 0.06


def test_an_account_is_told_its_coins_and_everything_else_as_it_is():
    logits = near(400, spread=2.0)
    told = TIES.answer(logits, "account")
    assert (told.answers[told.found.rows].argmax(axis=1) == told.classes).all()
    coins = TIES.coins("account", told.found)
    assert (told.classes == coins).all()
    assert 0.3 < (coins == told.found.best).mean() < 0.7
    rest = np.setdiff1d(np.arange(400), told.found.rows)
    assert (told.answers[rest] == logits[rest]).all()
    # The two keep what they had together, and the told one leads by a nat; nothing else changes.
    rows, other = told.found.rows, told.found.pairs.sum(axis=1) - told.classes
    changed = np.zeros(logits.shape, bool)
    changed[rows, told.classes] = changed[rows, other] = True
    assert (told.answers == logits)[~changed].all()
    assert told.answers[rows, told.classes] - told.answers[rows, other] == pytest.approx(1, abs=1e-4)
    before, after = (np.exp(each.astype(np.float64)).sum(axis=1) for each in (logits, told.answers))
    assert after == pytest.approx(before, rel=1e-5)
    assert not np.may_share_memory(told.answers, logits)


def test_a_box_s_rows_name_the_class_of_the_coin():
    """Away from ties they are what the box itself answers, bit for bit."""
    torch.manual_seed(0)
    rows = torch.rand(10, 3, 10) + 3 * torch.eye(10).unsqueeze(1)
    edges = torch.rand(10, 2).sort(dim=1).values
    module = Rows(rows, edges)
    logits = near(400, spread=3.0)
    told = TIES.answer(logits, "account", FixedRows(rows.numpy(), edges.numpy()))
    expected = module(torch.from_numpy(logits)).numpy()
    rest = np.setdiff1d(np.arange(400), told.found.rows)
    assert (told.answers[rest] == expected[rest]).all()
    assert (told.answers[told.found.rows].argmax(axis=1) == told.classes).all()
    turned = told.classes != told.found.best
    assert turned.any()
    assert (told.answers[told.found.rows[~turned]] == expected[told.found.rows[~turned]]).all()


@given(
    st.integers(2, 12).flatmap(
        lambda classes: st.lists(
            st.lists(st.floats(-30, 30, width=32), min_size=classes, max_size=classes), min_size=1, max_size=8
        )
    ),
    st.floats(0, WIDEST),
)
@settings(max_examples=60, deadline=None)
def test_properties(values, tau):
    """One image's answer depends on itself alone; cells are in range; the class told is one of the two best."""
    logits = np.array(values, dtype=np.float32)
    ties = Ties.of(SECRET, "box", tau)
    told = ties.answer(logits, "account")
    assert (told.found.cells >= 0).all()
    assert (told.found.cells < logits.shape[1] ** 2 * STEPS).all()
    assert (told.found.pairs[:, 0] < told.found.pairs[:, 1]).all()
    assert ((told.classes[:, None] == told.found.pairs).sum(axis=1) == 1).all()
    for index in range(len(logits)):
        alone = ties.answer(logits[index : index + 1], "account")
        assert (alone.answers[0] == told.answers[index]).all()


def test_cells_do_not_see_which_of_the_two_is_ahead():
    """Else a copy of an image on the other side of the tie would have another coin."""
    logits = near(200)
    found = TIES.find(logits)
    turned = logits.copy()
    a, b = found.pairs.T
    rows = found.rows
    turned[rows, a], turned[rows, b] = logits[rows, b], logits[rows, a]
    assert (TIES.find(turned).cells == found.cells).all()
    assert len(set(found.cells.tolist())) > 20


def test_a_cell_is_the_set_of_the_next_two_and_the_chance_of_the_first():
    """Against a slow loop."""
    logits = near(100)
    logs, found = log_probabilities(logits), TIES.find(logits)
    for row, pair, cell in zip(found.rows, found.pairs, found.cells, strict=True):
        rest = sorted((c for c in range(10) if c not in pair), key=lambda c: -logs[row, c])
        low, high = sorted(rest[:2])
        assert cell == (low * 10 + high) * STEPS + int(-logs[row, rest[0]] / 2)


def test_three_classes_have_a_cell_for_each_step():
    logs = log_probabilities(np.array([[1.0, 1.0, -0.5], [1.0, 1.0, -3.0], [1.0, 1.0, -400.0]]))
    cells = cells_of(logs, np.array([[0, 1]] * 3))
    assert cells.tolist() == [(2 * 3 + 2) * STEPS + step for step in (1, 2, STEPS - 1)]


def test_two_classes_have_one_cell():
    found = TIES.find(np.array([[1.0, 1.01], [2.0, 1.99]], np.float32))
    assert found.cells.tolist() == [0, 0]


@pytest.mark.parametrize(
    "logits", [np.full((2, 3), np.nan), np.array([[1.0, np.inf]]), np.ones((2, 1)), np.ones(4)]
)
def test_answers_that_have_no_ties_are_refused(logits):
    with pytest.raises(ModelError, match="finite answers"):
        TIES.find(logits)


@pytest.mark.parametrize("tau", [0.5, -0.1, float("nan")])
def test_a_margin_out_of_range_is_refused(tau):
    with pytest.raises(ConfigError, match=f"tau: {tau}"):
        Ties(SECRET, "box", tau)


def calibrated(count, seed=0, lead=1.0):
    """Logits of two classes, and labels whose odds follow the margin, times `lead`."""
    rng = np.random.default_rng(seed)
    margin = rng.uniform(0, 1, count)
    p = (1 + margin) / 2
    swap = rng.random(count) < 0.5
    logits = np.log(np.stack([np.where(swap, 1 - p, p), np.where(swap, p, 1 - p)], axis=1))
    first = rng.random(count) < (1 + lead * margin) / 2
    return logits, np.where(swap, ~first, first).astype(int) ^ 1, margin


@pytest.mark.parametrize("lead", [1.0, 0.5])
def test_the_margin_that_is_chosen_costs_the_budget(lead):
    """Half of the mean lead over all images, which is known here."""
    logits, labels, margin = calibrated(20_000, lead=lead)
    cost = fit_tau(logits, labels, budget=0.005)
    true = lead * margin[margin < cost.tau].sum() / 2 / len(margin)
    assert 0.003 < true <= 0.0055
    assert cost.low <= true <= cost.high
    assert cost.cost == pytest.approx(true, rel=0.15)
    assert cost.share == (margin < cost.tau).mean()
    # What both coins really cost, counted on these images.
    assert cost == cost_of(logits, labels, cost.tau)


def test_the_cost_is_what_coins_take():
    """Against answers counted one by one, over many accounts."""
    logits, labels, _ = calibrated(20_000, seed=3)
    logits = np.concatenate([logits, np.full((len(logits), 3), -9.0)], axis=1)
    ties = Ties.of(SECRET, "box", 0.3)
    before = (logits.argmax(axis=1) == labels).mean()
    after = [(ties.answer(logits, str(account)).answers.argmax(axis=1) == labels).mean() for account in range(20)]
    cost = cost_of(logits, labels, 0.3)
    assert before - np.mean(after) == pytest.approx(cost.cost, abs=0.004)


def test_levels_with_ties_are_as_answers_show_them():
    """Against answers counted one by one, over many accounts; the lowest level has the ties and loses by them."""
    logits, labels, _ = calibrated(5_000, seed=3)
    rng = np.random.default_rng(0)
    logits = np.concatenate([logits, rng.normal(-7, 1, (len(logits), 3))], axis=1)
    edges = np.array([[0.6, 0.9], [0.7, 0.8], *[[0.6, 0.9]] * 3], np.float32)
    rows = np.stack([np.eye(5, dtype=np.float32) * (level + 1) for level in range(3)], axis=1)
    ties, counts = Ties.of(SECRET, "box", 0.3), np.zeros((3, 2))
    for account in range(40):
        told = ties.answer(logits, str(account), FixedRows(rows, edges)).answers
        level = np.rint(told.max(axis=1)).astype(int) - 1
        counts += np.stack([np.bincount(level), np.bincount(level, told.argmax(axis=1) == labels)], axis=1)
    with_ties = levels_with_ties(logits, labels, 0.3, edges)
    assert with_ties == pytest.approx(counts[:, 1] / counts[:, 0], abs=0.005)
    without = levels_with_ties(logits, labels, 0.0, edges)
    assert with_ties[0] < without[0] - 0.03
    assert with_ties[2] == without[2]
    assert np.isnan(levels_with_ties(logits, labels, 0.3, np.full((5, 1), 2.0))[1])


def test_the_budget_is_kept_where_it_is_not_known_well():
    """A standard error is added to what is expected."""
    logits, labels, _ = calibrated(600)
    cost = fit_tau(logits, labels, budget=0.005)
    error = (cost.high - cost.low) / (2 * 1.96)
    assert 0.004 < cost.cost + error <= 0.005
    assert error > 0.0005


def test_unlucky_images_do_not_open_the_margin():
    """Images on which the second class happens to be as good do not outweigh what honest networks are known for."""
    logits, _, _ = calibrated(400)
    second = np.argsort(logits, axis=1)[:, 0]
    labels = np.where(np.arange(400) % 2, second, logits.argmax(axis=1))  # no lead at all, as far as these show
    cost = fit_tau(logits, labels, budget=0.005)
    assert cost.tau < WIDEST
    assert cost.cost > 0.002


def test_of_few_images_nothing_is_learned():
    assert fit_tau(near(299), np.zeros(299, int), budget=0.1).tau == 0
    assert fit_tau(near(300), near(300).argmax(axis=1), budget=0.1).tau > 0


@pytest.mark.parametrize(("count", "learned"), [(29, False), (30, True)])
def test_of_few_images_near_ties_nothing_is_learned(count, learned):
    sure = np.zeros((500, 10), np.float32)
    sure[:, 3] = 20
    logits = np.concatenate([sure, near(count, spread=0.2)])
    assert (fit_tau(logits, logits.argmax(axis=1), budget=0.1).tau > 0) is learned


def test_what_is_as_wide_as_the_margin_is_no_tie():
    """The budget was found for what lies below it."""
    logits, labels, margin = calibrated(2000)
    tau = float(np.sort(margin)[100])
    assert cost_of(logits, labels, tau).share == pytest.approx((margin < tau - 1e-9).mean(), abs=1e-3)


@pytest.mark.parametrize("count", [0, 100, 400])
def test_without_images_near_ties_nothing_is_a_tie(count):
    logits = np.zeros((count, 10), np.float32)
    logits[:, 3] = 20
    assert fit_tau(logits, np.full(count, 3)).tau == 0


def test_a_budget_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="tie_budget: 5"):
        fit_tau(near(500), np.zeros(500, int), budget=5)


def test_a_teacher_whose_second_class_is_as_good_has_the_widest_margin():
    logits, labels, _ = calibrated(5000, lead=0.0)
    assert fit_tau(logits, labels, budget=0.01).tau == WIDEST


def test_margins_against_a_slow_loop():
    logits = near(50, spread=3)
    best, margins = margins_of(log_probabilities(logits))
    for row, (own, margin) in zip(logits.astype(float), zip(best, margins, strict=True), strict=True):
        shares = np.exp(row) / np.exp(row).sum()
        order = sorted(range(10), key=lambda c: -row[c])
        assert own.tolist() == order[:2]
        assert margin == pytest.approx(shares[order[0]] - shares[order[1]])


def test_the_file_of_ties_goes_there_and_back(tmp_path):
    TIES.save(tmp_path / "ties.json")
    assert Ties.load(tmp_path / "ties.json") == TIES
    assert (tmp_path / "ties.json").stat().st_mode & 0o777 == 0o600
    assert SECRET.hex() not in repr(TIES)
    with pytest.raises(KeyFileError, match="exists"):
        TIES.save(tmp_path / "ties.json")


@pytest.mark.parametrize("field", ["tau", "scope", "secret", "id"])
def test_an_altered_file_of_ties_is_refused(tmp_path, field):
    path = tmp_path / "ties.json"
    TIES.save(path)
    content = json.loads(path.read_text())
    content[field] = {"tau": 0.21, "scope": "b", "secret": "00" * 32, "id": "0" * 32}[field]
    path.write_text(json.dumps(content))
    with pytest.raises(KeyFileError, match="altered"):
        Ties.load(path)


def test_an_owner_s_file_is_no_file_of_ties(tmp_path):
    Owner.generate().save(tmp_path / "owner.json")
    with pytest.raises(KeyFileError, match="no file of ties"):
        Ties.load(tmp_path / "owner.json")
