"""Tokens: shown once, kept as a hash, found again."""

import hashlib
import sqlite3
import stat
import threading

import pytest

from sdb.errors import ConfigError, KeyFileError
from sdb.service.watch import Limits, TokenFile
from sdb.service.watch.tokens import TokenExpiredError, find, seconds_of

KEY_ID = "0123456789abcdef" * 2


@pytest.fixture
def tokens(tmp_path):
    return TokenFile(tmp_path / "tokens.db", create=True)


def test_a_token_is_found_and_nothing_else_is(tokens):
    anna, bert = tokens.add("anna", KEY_ID, "labels", Limits(images_day=3)), tokens.add("bert")
    rows = tokens.rows()
    assert find(anna, rows).principal.name == "anna" and find(bert, rows).principal.name == "bert"
    assert find(anna, rows).principal.partner == KEY_ID and find(anna, rows).principal.answers == "labels"
    assert find(anna, rows).limits == Limits(images_day=3) and find(bert, rows).limits is None
    for wrong in ("", "sdb_", anna[:-1], anna + "x", anna.upper(), "\udcff", "a" * 10_000):
        assert find(wrong, rows) is None


def test_the_file_holds_the_hash_and_not_the_token_and_is_its_owners(tokens):
    token = tokens.add("anna")
    content = tokens.path.read_bytes()
    assert token.encode() not in content and token.removeprefix("sdb_").encode() not in content
    assert hashlib.sha256(token.encode()).digest() in content
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    shown = tokens.rows()[0].public()
    assert "digest" not in shown and token not in str(shown) and token not in repr(tokens.rows())


def test_a_token_lasts_as_long_as_was_said(tokens):
    short, long = tokens.add("short", lasts=60.0), tokens.add("long")
    rows = tokens.rows()
    until = find(short, rows).created + 60
    assert find(short, rows).expires == until and find(long, rows).expires is None
    find(short, rows).check_time(until - 1e-3)
    find(long, rows).check_time(until + 1e12)
    for late in (until, until + 1e9):
        with pytest.raises(TokenExpiredError, match=r"expired on \d{4}-\d\d-\d\dT.*owner"):
            find(short, rows).check_time(late)
    assert [row.public()["expires"] is None for row in rows] == [False, True]
    assert tokens.rows()[0].public()["expires"] > tokens.rows()[0].public()["created"]


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3_600), ("90d", 7_776_000), ("8w", 4_838_400)])
def test_a_time_is_a_number_and_a_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "90", "0d", "-1d", "1.5d", "90 d", "٩d", "9y", "1dd", "1d\n", "99999999w"]
)
def test_other_times_are_refused(text):
    with pytest.raises(ConfigError, match="such as 12h"):
        seconds_of(text)


OLD = """CREATE TABLE tokens (
    name TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, partner TEXT NOT NULL, answers TEXT, limits TEXT,
    created REAL NOT NULL, revoked REAL)"""


def test_a_file_from_before_tokens_could_expire_is_read_and_written(tmp_path):
    path, digest = tmp_path / "old.db", hashlib.sha256(b"sdb_old").digest()
    with sqlite3.connect(path) as connection:
        connection.execute(OLD)
        row = ("anna", digest, KEY_ID, "labels", '{"burst": 7}', 1e9, None)
        connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    path.chmod(0o400)  # a server only reads
    old = find("sdb_old", TokenFile(path).rows())
    assert (old.principal.name, old.limits.burst, old.expires) == ("anna", 7, None)
    path.chmod(0o600)
    for _ in range(2):
        writer = TokenFile(path, create=True)
    token = writer.add("bert", lasts=60.0)
    rows = TokenFile(path).rows()
    assert find("sdb_old", rows) == old and find(token, rows).expires > 1e9
    writer.revoke("anna")
    assert find("sdb_old", writer.rows()).revoked is not None


def test_tokens_are_256_bits_and_differ(tokens):
    made = {tokens.add(f"user{number}") for number in range(20)}
    assert len(made) == 20 and all(len(token) == len("sdb_") + 43 for token in made)


def test_a_revoked_token_stays_revoked_and_its_name_stays_taken(tokens):
    tokens.add("anna")
    tokens.revoke("anna")
    assert tokens.rows()[0].revoked is not None
    with pytest.raises(ConfigError, match="no valid token"):
        tokens.revoke("anna")
    with pytest.raises(ConfigError, match="already"):
        tokens.add("anna")


@pytest.mark.parametrize("name", ["", "anonymous", "*", "a b", "-a", "a" * 65, "a\n", "é"])
def test_names_that_counts_or_logs_could_not_hold_are_refused(tokens, name):
    with pytest.raises(ConfigError, match="token name"):
        tokens.add(name)
    assert tokens.rows() == []


def test_an_unknown_policy_or_key_id_is_refused(tokens):
    with pytest.raises(ConfigError, match="logits, probabilities"):
        tokens.add("anna", answers="everything")
    with pytest.raises(ConfigError, match="sdb key show"):
        tokens.add("anna", partner="secret")


def test_a_missing_or_other_file_is_refused(tmp_path):
    with pytest.raises(KeyFileError, match="sdb token new"):
        TokenFile(tmp_path / "none.db")
    other = tmp_path / "other.db"
    other.write_text("not a database, but longer than the header of one " * 10)
    with pytest.raises(KeyFileError, match="token file"):
        TokenFile(other)
    with sqlite3.connect(tmp_path / "empty.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(KeyFileError, match="no such table"):
        TokenFile(tmp_path / "empty.db")


def test_a_row_with_damaged_limits_is_refused(tokens):
    tokens.add("anna", limits=Limits(rate=1.0))
    with sqlite3.connect(tokens.path) as connection:
        connection.execute("UPDATE tokens SET limits = '{\"rate\": -1}'")
    with pytest.raises(KeyFileError, match="damaged"):
        tokens.rows()


def test_a_damaged_time_is_refused(tokens):
    tokens.add("anna", lasts=60.0)
    with sqlite3.connect(tokens.path) as connection:
        connection.execute("UPDATE tokens SET expires = 'never'")
    with pytest.raises(KeyFileError, match="damaged"):
        tokens.rows()


def test_a_reader_needs_no_write_access(tokens):
    tokens.add("anna")
    tokens.path.chmod(0o400)
    folder = tokens.path.parent
    folder.chmod(0o500)
    try:
        assert TokenFile(tokens.path).rows()[0].principal.name == "anna"
    finally:
        folder.chmod(0o700)


def test_many_writers_lose_nothing(tokens):
    def add(number):
        tokens.add(f"user{number}")

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens.rows()) == 8
