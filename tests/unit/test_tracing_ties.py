"""Tracing by ties: who is named, by which exact p, and what cannot be done to it unseen."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from math import comb, log10

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.ties import NOBODY, Found, Ties
from sdb.errors import ConfigError, DataError, KeyFileError, ModelError
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.tracing.ties import AccountTies, Commitment, TieTrace, log10_tail, trace_ties

OWNER = Owner(bytes(range(32)))
TIES = Ties.of(OWNER.secret, "box", 0.1)
TERMS = Terms("box", TIES.id, TIES.tau, public_of(OWNER.queries_key).hex())
PRIVATE = OWNER.queries_key
CELLS = 60


def image(account, cell):
    """Names the account and the cell it was asked for."""
    return np.array([ord(account) - ord("a"), cell, 0, 0], np.float32).reshape(1, 2, 2) / np.float32(255)


def fill(path, accounts, cells=CELLS, terms=TERMS):
    Ledger.create(path, terms).close()
    ledger = Ledger(path, writing=True)
    for account in accounts:
        number = np.arange(cells)
        found = Found(number, np.tile([2, 5], (cells, 1)), np.full(cells, 2), number)
        images = np.stack([image(account or "z", cell) for cell in number])
        ledger.put(account, images, found, TIES.coins(account, found))
    ledger.close()
    return Ledger(path)


@pytest.fixture
def ledger(tmp_path):
    return fill(tmp_path / "ledger.db", "abc")


class Copy:
    """A suspect that answers what an account was told, `faithful` of its cells; the others by coins of its own."""

    def __init__(self, account, faithful=CELLS, classes=(2, 5)):
        self.account, self.faithful, self.classes, self.asked = account, faithful, classes, 0

    def __call__(self, images):
        self.asked += len(images)
        cells = np.rint(images[:, 0, 0, 1] * 255).astype(int)
        own = [TIES.coin(self.account, int(cell), 2, 5) for cell in cells]
        free = [Ties.of(bytes(32), "x", 0.1).coin("x", int(cell), 2, 5) for cell in cells]
        told = np.where(cells < self.faithful, own, free)
        return np.where(told, *self.classes)


def test_a_copy_names_its_account_and_no_other(ledger):
    result = trace_ties(Copy("b"), [ledger], TIES, PRIVATE)
    assert [each.account for each in result.named] == ["b"]
    best = result.accounts[0]
    assert (best.told, best.asked, best.usable, best.hits) == (60, 60, 60, 60)
    assert best.log10_p == pytest.approx(-60 * log10(2))
    assert best.corrected_log10_p == pytest.approx(-60 * log10(2) + log10(3))
    assert all(each.corrected_log10_p > -3 for each in result.accounts[1:])
    assert "learned from the answers of account Bob: it agrees with 60 of 60" in result.sentence({"b": "Bob"})
    assert "p = 2.6e-18" in result.sentence()
    assert result.questions == 180
    assert not result.lodged
    rows = result.to_json({"b": "Bob"})["accounts"]
    assert (rows[0]["name"], rows[0]["named"], rows[1]["named"]) == ("Bob", True, False)
    json.dumps(rows)


def test_both_of_two_colluders_are_named(ledger):
    """Half of the cells from each."""

    def both(images):
        cells = np.rint(images[:, 0, 0, 1] * 255).astype(int)
        return np.where(cells % 2, Copy("a")(images), Copy("b")(images))

    assert {each.account for each in trace_ties(both, [ledger], TIES, PRIVATE).accounts[:2]} == {"a", "b"}


def test_an_independent_model_is_not_named(ledger):
    result = trace_ties(Copy("a", faithful=0), [ledger], TIES, PRIVATE)
    assert not result.named
    assert "No account is named" in result.sentence()
    assert "does not show innocence" in result.sentence()


def test_what_says_neither_class_is_nothing_to_test(ledger):
    result = trace_ties(Copy("a", classes=(7, 8)), [ledger], TIES, PRIVATE)
    assert [each.usable for each in result.accounts] == [0, 0, 0]
    assert result.sentence().startswith("Nothing to test: it answers neither class")
    constant = trace_ties(lambda images: np.full(len(images), 2), [ledger], TIES, PRIVATE)
    assert all(each.usable == CELLS for each in constant.accounts)
    assert not constant.named


def test_an_account_without_ties_is_nothing_to_test(tmp_path):
    empty = fill(tmp_path / "empty.db", "")
    result = trace_ties(Copy("a"), [empty], TIES, PRIVATE)
    assert (result.accounts, result.questions) == ((), 0)
    assert result.sentence().startswith("Nothing to test: no account was told a tie")


def test_nobody_is_never_tested(tmp_path):
    """Its coins are everybody's who has no token."""
    ledger = fill(tmp_path / "l.db", ["a", NOBODY])
    result = trace_ties(Copy("a"), [ledger], TIES, PRIVATE)
    assert [each.account for each in result.accounts] == ["a"]


def test_a_cell_in_two_ledgers_is_one_vote(ledger, tmp_path):
    second = fill(tmp_path / "second.db", "ad")
    suspect = Copy("a")
    result = trace_ties(suspect, [ledger, second], TIES, PRIVATE)
    assert suspect.asked == result.questions == 4 * CELLS
    assert {each.account: each.usable for each in result.accounts} == dict.fromkeys("abcd", CELLS)
    # Where the first has no query any more, the second's is asked.
    ledger.expire(10**6)
    again = {each.account: each for each in trace_ties(Copy("a"), [ledger, second], TIES, PRIVATE).accounts}
    assert (again["a"].asked, again["b"].asked, again["b"].told) == (CELLS, 0, CELLS)


def test_the_accounts_that_are_tested_are_those_corrected_for(ledger):
    result = trace_ties(Copy("b"), [ledger], TIES, PRIVATE, accounts=["b"])
    assert [each.account for each in result.accounts] == ["b"]
    assert result.accounts[0].corrected_log10_p == result.accounts[0].log10_p


def test_a_budget_draws_what_follows_from_the_commitment(ledger):
    """The same whenever it is asked; another after a further entry."""
    asked = []

    def suspect(images):
        asked.extend(images.reshape(len(images), -1).tolist())
        return np.full(len(images), 2)

    trace_ties(suspect, [ledger], TIES, PRIVATE, budget=10)
    trace_ties(suspect, [ledger], TIES, PRIVATE, budget=10)
    assert asked[:10] == asked[10:]
    assert len(asked) == 20
    assert len({each[0] for each in asked}) > 1  # of several accounts
    everything = fill(ledger.path.with_name("more.db"), "abcd")
    trace_ties(suspect, [everything], TIES, PRIVATE, budget=10)
    assert asked[20:] != asked[:10]


def test_what_was_committed_is_what_counts(ledger, tmp_path):
    commitment = Commitment.of(ledger)
    commitment.save(tmp_path / "c.json")
    assert Commitment.load(tmp_path / "c.json") == commitment
    writing = Ledger(ledger.path, writing=True)
    found = Found(np.arange(1), np.array([[2, 5]]), np.array([2]), np.array([99]))
    writing.put("e", image("e", 99)[None], found, TIES.coins("e", found))
    writing.close()
    result = trace_ties(Copy("b"), [ledger], TIES, PRIVATE, commitments=[commitment])
    assert {each.account for each in result.accounts} == {"a", "b", "c"}
    assert result.lodged
    assert "lodged before" in "\n".join(result.lines())
    assert {each.account for each in trace_ties(Copy("b"), [ledger], TIES, PRIVATE).accounts} == set("abce")
    # Erasure after it changes neither the chain nor what it says.
    ledger.erase("c")
    again = trace_ties(Copy("b"), [ledger], TIES, PRIVATE, commitments=[commitment])
    assert {each.account for each in again.accounts} == {"a", "b"}


@pytest.mark.parametrize(
    "changes", [{"entries": 179}, {"head": "0" * 64}, {"ties_id": "0" * 32}, {"entries": 500}]
)
def test_another_commitment_is_refused(ledger, changes):
    commitment = replace(Commitment.of(ledger), **changes)
    with pytest.raises(DataError, match="not the ledger that was committed to"):
        trace_ties(Copy("b"), [ledger], TIES, PRIVATE, commitments=[commitment])


def test_answers_that_do_not_follow_from_the_secret_are_refused(tmp_path):
    """An owner, or whoever breaks into a server, adds what fits a suspect."""
    Ledger.create(tmp_path / "l.db", TERMS).close()
    ledger = Ledger(tmp_path / "l.db", writing=True)
    found = Found(np.arange(1), np.array([[2, 5]]), np.array([2]), np.array([1]))
    ledger.put("a", image("a", 1)[None], found, 7 - TIES.coins("a", found))
    ledger.close()
    with pytest.raises(DataError, match="entry 1 does not follow from the secret"):
        trace_ties(Copy("a"), [Ledger(tmp_path / "l.db")], TIES, PRIVATE)


@pytest.mark.parametrize(
    ("suspect", "said"),
    [
        (nn.Linear(3, 10), "fails on queries"),
        (lambda images: np.full(len(images), 0.5), "one class per query"),
        (lambda images: np.zeros((len(images), 10), int), "one class per query"),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 10).requires_grad_(False)), "NaN"),
    ],
)
def test_a_suspect_that_cannot_be_asked(ledger, suspect, said):
    if isinstance(suspect, nn.Sequential):
        suspect[1].weight.fill_(torch.nan)
    with pytest.raises(ModelError, match=said):
        trace_ties(suspect, [ledger], TIES, PRIVATE)


def test_arguments_that_contradict_each_other(ledger):
    with pytest.raises(ConfigError, match="budget: 0"):
        trace_ties(Copy("a"), [ledger], TIES, PRIVATE, budget=0)
    with pytest.raises(ConfigError, match="one per ledger"):
        trace_ties(Copy("a"), [ledger], TIES, PRIVATE, commitments=[Commitment.of(ledger)] * 2)
    with pytest.raises(KeyFileError, match="of other ties"):
        trace_ties(Copy("a"), [ledger], Ties.of(OWNER.secret, "box", 0.2), PRIVATE)


@given(st.integers(0, 200), st.data())
def test_the_tail_is_exact(votes, data):
    hits = data.draw(st.integers(0, votes))
    exact = sum((Fraction(comb(votes, k), 2**votes) for k in range(hits, votes + 1)), Fraction(0))
    assert log10_tail(hits, votes) == pytest.approx(log10(exact.numerator) - log10(exact.denominator), abs=1e-9)


def test_the_correction_is_holm_s():
    from sdb.tracing.ties import _corrected

    rows = [
        AccountTies(name, 9, 9, 9, 9, value, 0.0)
        for name, value in zip("abcd", (-1.0, -9.0, -2.0, -2.0), strict=True)
    ]
    found = {each.account: each.corrected_log10_p for each in _corrected(rows)}
    assert found["b"] == pytest.approx(-9 + log10(4))
    assert found["c"] == pytest.approx(-2 + log10(3))
    assert found["d"] == pytest.approx(-2 + log10(3))  # not below the one before
    assert found["a"] == pytest.approx(-1)


def test_innocents_are_named_as_often_as_p_says():
    """One model against 3,000 accounts: p below 10^-k in about 10^-k of the cases, never beyond a binomial interval."""
    suspect = np.array([Ties.of(bytes(32), "x", 0.1).coin("x", cell, 2, 5) for cell in range(CELLS)])
    values = []
    for account in range(3000):
        coins = np.array([TIES.coin(str(account), cell, 2, 5) for cell in range(CELLS)])
        values.append(log10_tail(int((coins == suspect).sum()), CELLS))
    for power, most in ((1, 350), (2, 46), (3, 10)):  # four standard errors above 300, 30 and 3
        assert (np.array(values) < -power).sum() <= most
    assert (np.array(values) < -1).sum() >= 150  # and p is not far too large either


def test_no_account_is_a_result_too():
    assert TieTrace((), 0, "0" * 64, True).named == ()


def test_a_ledger_may_grow_while_it_is_committed_to(tmp_path):
    """A server goes on writing: a commitment is of one moment."""
    Ledger.create(tmp_path / "busy.db", TERMS).close()

    def serve():
        with closing(Ledger(tmp_path / "busy.db", writing=True)) as server:
            for cell in range(150):
                pair = np.array([[2, 5]])
                found = Found(np.array([0]), pair, pair[:, 0], np.array([cell]))
                server.put("b", np.stack([image("b", cell)]), found, TIES.coins("b", found))
                time.sleep(0.01)

    server, reader = threading.Thread(target=serve), Ledger(tmp_path / "busy.db")
    server.start()
    sizes = set()
    while server.is_alive():
        commitment = Commitment.of(reader)
        sizes.add(len(commitment.check(reader)))
    server.join()
    reader.close()
    assert len(sizes) > 2


@pytest.fixture
def bare(tmp_path):
    """A ledger of digests alone."""
    return fill(tmp_path / "bare.db", "abc", terms=replace(TERMS, keep_queries=False))


def asked(accounts="abc"):
    return [image(account, cell) for account in accounts for cell in range(CELLS)]


def test_the_result_is_that_of_a_ledger_that_kept_them(bare, tmp_path):
    assert not trace_ties(Copy("b"), [bare], TIES, PRIVATE).questions
    result = trace_ties(Copy("b"), [bare], TIES, PRIVATE, kept=asked())
    whole = trace_ties(Copy("b"), [fill(tmp_path / "whole.db", "abc")], TIES, PRIVATE)
    assert result.accounts == whole.accounts
    assert result.named[0].account == "b"


def test_some_of_them_are_asked_and_the_rest_is_said(bare):
    result = trace_ties(Copy("b"), [bare], TIES, PRIVATE, kept=asked("b")[:45])
    best = result.accounts[0]
    assert (best.account, best.told, best.asked) == ("b", CELLS, 45)
    assert "questions    45 of 180 ties; of the others the query is not at hand" in result.lines()[0]
    assert result.questions == 45


def test_others_are_not_asked(bare):
    """An owner cannot put questions that the account never sent."""
    more = [image("b", cell) + np.float32(1e-7) for cell in range(CELLS)]
    result = trace_ties(Copy("b"), [bare], TIES, PRIVATE, kept=[*more, *asked("a")])
    assert {each.account: each.asked for each in result.accounts} == {"a": CELLS, "b": 0, "c": 0}
    with pytest.raises(ConfigError, match="the ledger names none of those"):
        trace_ties(Copy("b"), [bare], TIES, PRIVATE, kept=more)


def test_of_several_bare_ledgers_the_query_at_hand_is_asked(tmp_path):
    """Whichever is named first."""
    terms = replace(TERMS, keep_queries=False)
    one, two = (fill(tmp_path / f"{name}.db", "b", terms=replace(terms, created=n)) for n, name in enumerate("xy"))
    whole = fill(tmp_path / "whole.db", "b", cells=20)
    for ledgers in ([one, two], [two, one], [one, whole], [whole, one]):
        assert trace_ties(Copy("b"), ledgers, TIES, PRIVATE, kept=asked("b")[:45]).questions == 45
    # A query that is kept goes before one that the owner brings.
    assert trace_ties(Copy("b"), [one, whole], TIES, PRIVATE).questions == 20


def test_a_pair_of_one_class_is_refused(tmp_path):
    """It would count as an agreement whatever the secret is."""
    Ledger.create(tmp_path / "ledger.db", TERMS).close()
    ledger = Ledger(tmp_path / "ledger.db", writing=True)
    found = Found(np.arange(3), np.full((3, 2), 4), np.full(3, 4), np.arange(3))
    ledger.put("b", np.stack([image("b", cell) for cell in range(3)]), found, np.full(3, 4))
    ledger.close()
    with pytest.raises(DataError, match="entry 1 does not follow from the secret"):
        trace_ties(Copy("b"), [Ledger(tmp_path / "ledger.db")], TIES, PRIVATE)


def test_too_few_ties_to_name_anybody_is_said(tmp_path):
    result = trace_ties(Copy("b"), [fill(tmp_path / "few.db", "b", cells=19)], TIES, PRIVATE)
    assert result.sentence().startswith(
        "Nothing could be shown: with 19 usable ties of an account at most, and 1 "
    )
    named = trace_ties(Copy("b"), [fill(tmp_path / "enough.db", "b", cells=20)], TIES, PRIVATE)
    assert named.named
    # Two accounts need a coin more.
    two = trace_ties(Copy("b"), [fill(tmp_path / "two.db", "ab", cells=20)], TIES, PRIVATE)
    assert not two.named
    assert two.sentence().startswith("Nothing could be shown")


def test_an_account_is_named_by_the_corrected_p():
    row = AccountTies("a", 21, 21, 21, 21, -6.3, -6.0)
    assert not row.named
    assert replace(row, corrected_log10_p=-6.01).named


def test_which_are_asked_follows_from_what_was_committed_to(ledger, tmp_path):
    """An owner who looks for kinder questions needs another ledger."""

    class Asked(Copy):
        def __call__(self, images):
            self.seen = {tuple(each.ravel().tolist()) for each in images}
            return super().__call__(images)

    first, again, other = Asked("b"), Asked("b"), Asked("b")
    trace_ties(first, [ledger], TIES, PRIVATE, budget=30)
    trace_ties(again, [ledger], TIES, PRIVATE, budget=30)
    trace_ties(other, [fill(tmp_path / "o.db", "abc", terms=replace(TERMS, created=5))], TIES, PRIVATE, budget=30)
    assert first.seen == again.seen
    assert first.seen != other.seen


@pytest.mark.parametrize("answer", [lambda x: x.flatten(1).argmax(1), lambda x: {"logits": x}, lambda x: x[9999]])
def test_what_a_suspect_breaks_is_one_error(ledger, answer):
    class Odd(nn.Module):
        def forward(self, images):
            return answer(images)

    with pytest.raises(ModelError, match="the suspect"):
        trace_ties(Odd(), [ledger], TIES, PRIVATE)


def test_the_tail_of_many_votes():
    """Exact where a slow sum is, and soon done where that takes minutes."""
    slow = sum(comb(300, k) for k in range(180, 301))
    assert log10_tail(180, 300) == pytest.approx(log10(slow) - 300 * log10(2), abs=1e-12)
    assert log10_tail(0, 0) == 0
    assert log10_tail(20_000, 40_000) == pytest.approx(log10(0.5), abs=0.01)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_suspect_with_one_broken_logit_is_broken(ledger, value):
    suspect = nn.Sequential(nn.Flatten(), nn.Linear(4, 10))
    with torch.no_grad():
        suspect[1].bias[7] = value
    with pytest.raises(ModelError, match="NaN or infinity"):
        trace_ties(suspect, [ledger], TIES, OWNER.queries_key)
