"""The ledger of ties: what is kept, what cannot be changed unseen, what is erased."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdb.answers.entries import Terms, query_bytes, query_of
from sdb.answers.ledger import Ledger
from sdb.answers.ties import Found, Ties
from sdb.errors import CheckpointError, ConfigError, DataError, StorageError
from sdb.keys import Owner
from sdb.keys.sealing import public_of, seal_to, unseal_with

OWNER = Owner(bytes(range(32)))
TIES = Ties.of(OWNER.secret, "box", 0.1)
TERMS = Terms("box", TIES.id, TIES.tau, public_of(OWNER.queries_key).hex(), created=1_700_000_000)
SHAPE = (1, 4, 4)


def told(cells, account="a"):
    """Images, ties in these cells, and what an account is told there."""
    found = Found(
        np.arange(len(cells)), np.tile([2, 5], (len(cells), 1)), np.full(len(cells), 2), np.array(cells, np.int64)
    )
    images = np.stack([np.full(SHAPE, cell % 256 / np.float32(255), np.float32) for cell in cells])
    return account, images, found, TIES.coins(account, found)


@pytest.fixture
def path(tmp_path):
    Ledger.create(tmp_path / "ledger.db", TERMS).close()
    return tmp_path / "ledger.db"


def filled(path, *requests):
    ledger = Ledger(path, writing=True)
    for request in requests:
        ledger.put(*request)
    ledger.close()
    return Ledger(path)


def test_what_was_told_is_read_again(path):
    ledger = filled(path, told([3, 7]), told([9], "b"))
    assert path.stat().st_mode & 0o777 == 0o600
    entries = ledger.entries()
    assert [(entry.number, entry.account, entry.cell) for entry in entries] == [
        (1, "a", 3),
        (2, "a", 7),
        (3, "b", 9),
    ]
    for entry in entries:
        assert (entry.first, entry.second) == (2, 5)
        assert entry.answer == (2 if TIES.coin(entry.account, entry.cell, 2, 5) else 5)
        assert (ledger.query(entry, OWNER.queries_key) == np.full(SHAPE, entry.cell / np.float32(255))).all()
    assert ledger.entries("b") == entries[2:]
    assert ledger.verify() == entries[-1].head
    assert ledger.terms == TERMS


def test_a_cell_is_kept_once_for_each_account(path):
    """Also over restarts: its first query is the one that a suspect is asked."""
    filled(path, told([3, 3]), told([3]), told([3], "b")).close()
    ledger = filled(path, told([3]), told([4]))
    assert [(entry.account, entry.cell) for entry in ledger.entries()] == [("a", 3), ("b", 3), ("a", 4)]
    ledger.verify()


def test_of_a_request_what_is_new_is_kept(path):
    assert [entry.cell for entry in filled(path, told([3]), told([3, 8])).entries()] == [3, 8]


def test_who_was_erased_begins_anew(path, monkeypatch):
    """Also in the server that erased it."""
    ledger = Ledger(path, writing=True)
    ledger.put(*told([3]))
    ledger._flush()
    assert ledger.erase("a") == 1
    ledger.put(*told([3]))
    ledger.close()
    assert [entry.account for entry in Ledger(path).entries()] == [None, "a"]
    Ledger(path).verify()


def test_queries_are_for_the_owner_alone(path):
    ledger = filled(path, told([200]))
    (entry,) = ledger.entries()
    assert query_bytes(told([200])[1][0])[-16:] not in path.read_bytes()
    with pytest.raises(CheckpointError, match="query of entry 1 does not open"):
        ledger.query(entry, Owner.generate().queries_key)
    for sealed in (entry.sealed[:-1] + b"x", b"", entry.sealed[:20]):
        with pytest.raises(CheckpointError, match="does not open"):
            ledger.query(replace(entry, sealed=sealed), OWNER.queries_key)


def test_another_query_in_its_place_is_seen(path):
    """Sealed as it should be: whoever writes the file has the public key."""
    ledger = filled(path, told([1]))
    (entry,) = ledger.entries()
    context = {"ledger": TERMS.ties_id, "digest": entry.digest.hex()}
    sealed = seal_to(bytes.fromhex(TERMS.public), b"other", context)
    with pytest.raises(DataError, match="not the one that its digest names"):
        ledger.query(replace(entry, sealed=sealed), OWNER.queries_key)


ALTERATIONS = [
    "UPDATE entries SET answer = 7 - answer WHERE number = 2",
    "UPDATE entries SET account = 'c' WHERE number = 2",
    "UPDATE entries SET day = day - 1 WHERE number = 2",
    "UPDATE entries SET cell = 77 WHERE number = 2",
    "UPDATE entries SET first = 1 WHERE number = 2",
    "UPDATE entries SET second = 6 WHERE number = 2",
    "UPDATE entries SET query = x'00' WHERE number = 2",
    "UPDATE entries SET salt = x'00' WHERE number = 2",
    "UPDATE entries SET digest = x'00' WHERE number = 2",
    "DELETE FROM entries WHERE number = 2",
    "DELETE FROM entries WHERE number = 1",
    "INSERT INTO entries SELECT 9, 'z', cell, first, second, answer, day, salt, query, sealed, digest, head "
    "FROM entries WHERE number = 2",
    "UPDATE entries SET number = number + 10",
    # Values of another kind than sdb writes.
    *(f"UPDATE entries SET {name} = x'00' WHERE number = 2" for name in ("account", "cell", "answer")),
    *(
        f"UPDATE entries SET {name} = 'text' WHERE number = 2"
        for name in ("salt", "query", "sealed", "digest", "head")
    ),
    "UPDATE entries SET answer = NULL WHERE number = 2",
]


@pytest.mark.parametrize("statement", ALTERATIONS)
def test_an_alteration_is_seen(path, statement):
    filled(path, told([1, 2, 3])).close()
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    with pytest.raises(DataError, match="was altered"):
        Ledger(path).verify()


@pytest.mark.parametrize(
    "content",
    [
        "'[]'",
        "'" + "[" * 100_000 + "'",
        """replace(content, '"tau": 0.1', '"tau": "abc"')""",
        """replace(content, '"tau": 0.1', '"tau": null')""",
        'replace(content, \'"public": "\', \'"public": "x\')',
        "x'00ff'",
        "NULL || ''",
    ],
)
def test_altered_terms_are_one_error(path, content):
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        try:
            connection.execute(f"UPDATE meta SET content = {content}")
        except sqlite3.IntegrityError:
            connection.execute("DELETE FROM meta")
    with pytest.raises(StorageError, match="no ledger, or a damaged one"):
        Ledger(path)


@pytest.mark.parametrize(
    "raw",
    [
        b"array nosuch 1\nx",
        b"array\n",
        b"named\n" + b"\0" * 7 + b"\x09named\nab",
        b"|u1 9 9\nx",
        b"|u1 a\nx",
        b"text\n\xff",
        b"",
    ],
)
def test_a_sealed_query_that_is_none_is_one_error(path, raw):
    """Whoever writes the file has the public key, and may choose the digest too."""
    ledger = filled(path, told([1]))
    entry = replace(ledger.entries()[0], query=hashlib.sha256(raw).digest())
    context = {"ledger": TERMS.ties_id, "digest": entry.digest.hex()}
    sealed = seal_to(bytes.fromhex(TERMS.public), zlib.compress(raw), context)
    with pytest.raises(DataError, match="not the one that its digest names"):
        ledger.query(replace(entry, sealed=sealed), OWNER.queries_key)


def test_an_account_is_erased_to_its_digests(path):
    ledger = filled(path, told([1, 2]), told([77], "secret name"))
    digests, head = [entry.digest for entry in ledger.entries()], ledger.verify()
    salt = ledger.entries("secret name")[0].salt
    assert ledger.erase("secret name") == 1
    ledger.close()
    assert b"secret name" not in path.read_bytes()
    assert salt not in path.read_bytes()
    ledger = Ledger(path)
    assert ledger.verify() == head
    assert [entry.digest for entry in ledger.entries()] == digests
    gone = ledger.entries()[2]
    assert {getattr(gone, name) for name in ("account", "cell", "answer", "day", "salt", "query", "sealed")} == {
        None
    }
    assert ledger.erase("secret name") == 0


def test_queries_expire(path):
    ledger = filled(path, told([1]))
    today = ledger.entries()[0].day
    assert ledger.expire(today + TERMS.days) == 0
    assert ledger.expire(today + TERMS.days + 1) == 1
    (entry,) = ledger.entries()
    assert entry.sealed is None
    assert entry.answer in (2, 5)
    ledger.verify()
    with pytest.raises(DataError, match="is not kept"):
        ledger.query(entry, OWNER.queries_key)


def test_where_queries_are_kept_elsewhere_their_digests_name_them(tmp_path):
    Ledger.create(tmp_path / "l.db", replace(TERMS, keep_queries=False)).close()
    request = told([8])
    (entry,) = filled(tmp_path / "l.db", request).entries()
    assert entry.sealed is None
    assert entry.query == hashlib.sha256(query_bytes(request[1][0])).digest()


def test_over_the_cap_a_random_query_gives_way(tmp_path):
    """Each has the same chance, whenever it was asked."""
    kept = np.zeros(40)
    for trial in range(60):
        path = tmp_path / f"{trial}.db"
        Ledger.create(path, replace(TERMS, cap=10)).close()
        ledger = Ledger(path, writing=False)
        for begin in range(0, 40, 8):
            with ledger._transaction() as connection:
                from sdb.answers.ledger import _Told

                asked = _Told(*told(range(begin, begin + 8)))
                ledger._add(connection, asked, [query_bytes(each) for each in asked.queries])
        entries = ledger.entries()
        assert sum(entry.sealed is not None for entry in entries) == 10
        ledger.verify()
        ledger.close()
        kept += [entry.sealed is not None for entry in entries]
    assert len(entries) == 40
    # 15 expected each, standard error 3.4; the four quarters 150 each, standard error 9.
    assert np.abs(kept.reshape(4, 10).sum(axis=1) - 150).max() < 45


def test_the_first_of_two_queries_stays_half_of_the_time(tmp_path):
    path = tmp_path / "one.db"
    Ledger.create(path, replace(TERMS, cap=1)).close()
    accounts = [f"account {number}" for number in range(60)]
    ledger = filled(path, *(told([cell], account) for cell in (0, 1) for account in accounts))
    first = sum(entry.sealed is not None for entry in ledger.entries()[:60])
    assert 12 < first < 48  # 30 expected, standard error 3.9
    ledger.close()


def test_a_full_queue_drops_and_counts(path, monkeypatch):
    monkeypatch.setattr("sdb.answers.ledger.MOST_WAITING", 2)
    monkeypatch.setattr("sdb.answers.ledger.FLUSH_SECONDS", 60)
    ledger = Ledger(path, writing=True)
    for cell in range(5):
        ledger.put(*told([cell]))
    assert ledger.dropped == 3
    ledger.close()
    assert len(Ledger(path).entries()) == 2


WRITER = """
import sys, time
import numpy as np
from sdb.answers.ledger import Ledger
from sdb.answers.ties import Found

ledger = Ledger(sys.argv[1], writing=True)
for cell in range(30):
    ledger.put(sys.argv[2], np.zeros((1, 1, 2, 2), np.float32), Found(
        np.array([0]), np.array([[2, 5]]), np.array([2]), np.array([cell])), np.array([5]))
    time.sleep(0.03)
ledger.close()
"""


def test_several_processes_write_one_chain(path):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, account]) for account in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    ledger = Ledger(path)
    ledger.verify()
    assert len(ledger.entries("a")) == len(ledger.entries("b")) == 30
    assert {entry.account for entry in ledger.entries()[:30]} == {"a", "b"}  # they did write at the same time


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no ledger; make one"),
        (b"", "no ledger, or a damaged one"),
        (b"nothing" * 100, "no ledger, or a damaged"),
    ],
)
def test_what_is_no_ledger_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "x.db").write_bytes(content)
    with pytest.raises(StorageError, match=said):
        Ledger(tmp_path / "x.db")


def test_a_newer_or_truncated_ledger_is_refused(path, tmp_path):
    filled(path, told(range(60))).close()
    (tmp_path / "cut.db").write_bytes(path.read_bytes()[:9000])
    with pytest.raises((StorageError, DataError)):
        Ledger(tmp_path / "cut.db").verify()
    with sqlite3.connect(path) as connection:
        connection.execute("""UPDATE meta SET content = replace(content, '"sdb_ledger": 1', '"sdb_ledger": 2')""")
    with pytest.raises(StorageError, match="ledger version 2"):
        Ledger(path)


def test_a_ledger_is_not_overwritten(path):
    with pytest.raises(StorageError, match="is not overwritten"):
        Ledger.create(path, TERMS)


@pytest.mark.parametrize("changes", [{"days": 0}, {"cap": 0}])
def test_terms_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        replace(TERMS, **changes)


@given(arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)))
def test_queries_are_kept_without_loss(image):
    assert (query_of(query_bytes(image)) == image).all()


@given(arrays(np.uint8, (3, 2, 2)))
def test_pixels_are_kept_as_bytes(pixels):
    image = pixels / np.float32(255)
    assert len(query_bytes(image)) == len(b"|u1 3 2 2\n") + 12
    assert (query_of(query_bytes(image)) == image).all()


def test_sealing_is_for_one_key_one_context_and_fresh_each_time():
    private = OWNER.queries_key
    sealed = seal_to(public_of(private), b"data", {"a": 1})
    assert unseal_with(private, sealed, {"a": 1}, "x") == b"data"
    assert sealed != seal_to(public_of(private), b"data", {"a": 1})
    with pytest.raises(CheckpointError):
        unseal_with(private, sealed, {"a": 2}, "x")
    with pytest.raises(CheckpointError):
        unseal_with(bytes(32), sealed, {"a": 1}, "x")


class Unkeepable:
    """A query that nothing can write."""

    def __array__(self, dtype=None, copy=None):
        raise OverflowError


@pytest.mark.parametrize("query", [None, Unkeepable(), np.array([None, 1], dtype=object)])
def test_a_query_that_cannot_be_kept_ends_nothing(path, query, caplog):
    """What a client sends must not stop the ledger for all others."""
    ledger = Ledger(path, writing=True)
    account, _, found, classes = told([3])
    ledger.put(account, [query], found, classes)
    ledger.put(*told([5], "b"))
    wait_for(lambda: len(ledger.entries()) == 1)
    ledger.put(*told([6], "b"))
    ledger.put(*told([3]))  # the same place with one that can be
    ledger.close()
    assert [(entry.account, entry.cell) for entry in Ledger(path).entries()] == [("b", 5), ("b", 6), ("a", 3)]
    assert ledger.dropped == 1
    assert "ties that were told are not kept (a query that cannot be kept" in caplog.text


def test_halves_of_characters_are_kept(path):
    """As JSON may hold them, in texts and in names."""
    for query in ("\ud800", {"\udfff": "a"}):
        assert query_of(query_bytes(query)) == query
    ledger = Ledger(path, writing=True)
    account, _, found, classes = told([3])
    ledger.put(account, ["\ud800"], found, classes)
    ledger.close()
    (entry,) = Ledger(path).entries()
    assert Ledger(path).query(entry, OWNER.queries_key) == "\ud800"


def test_what_could_not_be_written_is_tried_when_it_is_told_again(path):
    ledger = Ledger(path, writing=True)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    ledger._connection.execute("PRAGMA busy_timeout = 10")
    ledger.put(*told([3]))
    wait_for(lambda: ledger.dropped == 1)
    other.execute("COMMIT")
    other.close()
    ledger.put(*told([3]))
    ledger.close()
    assert [entry.cell for entry in Ledger(path).entries()] == [3]


def test_who_was_erased_by_another_process_begins_anew(path):
    server = Ledger(path, writing=True)
    server.put(*told([3]))
    wait_for(lambda: len(server.entries()) == 1)
    assert Ledger(path).erase("a") == 1
    wait_for(lambda: not server._seen.get("a"))
    server.put(*told([3]))
    server.close()
    assert [entry.account for entry in Ledger(path).entries()] == [None, "a"]


def test_an_erasure_that_is_still_in_the_log_is_said(path):
    ledger = Ledger(path, writing=True)
    ledger.put(*told([3]))
    wait_for(lambda: len(ledger.entries()) == 1)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchone()
    with pytest.raises(StorageError, match="was erased is in its log"):
        ledger.erase("a")
    reader.close()
    assert ledger.erase("a") == 0
    assert (path.parent / "ledger.db-wal").stat().st_size == 0
    ledger.close()


def wait_for(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
