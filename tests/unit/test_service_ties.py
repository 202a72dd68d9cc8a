"""Who is told what near ties by a service, and what is kept of it."""

from __future__ import annotations

import numpy as np
import pytest

from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.teller import Teller
from sdb.answers.ties import NOBODY, FixedRows, Ties
from sdb.keys import Owner
from sdb.keys.sealing import public_of

OWNER = Owner(bytes(range(32)))
TIES = Ties.of(OWNER.secret, "box", 0.2)
ROWS = FixedRows(np.eye(10, dtype=np.float32)[:, None] * 2, np.zeros((10, 0), np.float32))


@pytest.fixture
def teller(tmp_path):
    Ledger.create(tmp_path / "l.db", Terms("box", TIES.id, TIES.tau, public_of(OWNER.queries_key).hex())).close()
    teller = Teller(TIES, Ledger(tmp_path / "l.db", writing=True), ROWS)
    yield teller
    teller.ledger.close()


def asked():
    """Five images, every second one a tie of classes 3 and 7."""
    logits = np.zeros((5, 10), np.float32)
    logits[:, 3], logits[:, 7] = 9, 2
    logits[::2, 7] = 8.99
    logits[:, 0] = np.arange(5)  # so that the ties are in several cells
    return np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1) / np.float32(255), logits


def kept(teller):
    teller.ledger._flush()
    return teller.ledger.entries()


def test_keyless_answers_are_rows_and_a_partner_s_are_its_own_logits(teller):
    images, logits = asked()
    keyless = teller.answers("a", images, logits, keyless=True)
    assert (np.sort(keyless, axis=1)[:, :-1] == 0).all()
    keyed = teller.answers("a", images, logits, keyless=False)
    tied = teller.ties.find(logits).rows
    rest = np.setdiff1d(np.arange(len(logits)), tied)
    assert len(tied)
    assert (keyed[rest] == logits[rest]).all()
    assert (keyed[tied] != logits[tied]).any(axis=1).all()
    assert (keyed.argmax(axis=1) == keyless.argmax(axis=1)).all()
    assert (keyless.argmax(axis=1)[1::2] == 3).all()


def test_ties_alone_are_kept_with_their_own_images(teller):
    images, logits = asked()
    told = teller.answers("a", images, logits, keyless=True).argmax(axis=1)
    entries = kept(teller)
    assert entries
    for entry in entries:
        (query,) = teller.ledger.query(entry, OWNER.queries_key).ravel()
        index = round(float(query) * 255)
        assert index % 2 == 0
        assert entry.answer == told[index]
        assert entry.account == "a"


def test_of_nobody_nothing_is_kept(teller):
    teller.answers(NOBODY, *asked(), keyless=True)
    assert kept(teller) == []


def test_where_nothing_is_a_tie_nothing_is_kept(teller):
    images, logits = asked()
    answers = teller.answers("a", images[1::2], logits[1::2], keyless=False)
    assert (answers == logits[1::2]).all()
    assert kept(teller) == []
