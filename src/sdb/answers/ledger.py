"""The ledger: what each account was told on ties, so that a suspect can be asked the same later.

    ledger = Ledger.create("ledger.db", ties, public)     # once; a server opens it with Ledger(path)
    ledger.put(account, images, found, told)              # behind a request's back; on the disk within a second
    ledger.entries(), ledger.verify(), ledger.erase(account)

One entry for an account, a cell and a pair of classes: the answer, and the first query, encrypted to the owner's public
key, so that a server that is broken into gives no queries away. Entries form a chain of digests. Who holds an earlier
head of it sees that no entry before was added, changed or taken away since. Erasing leaves an entry's digest, which
says nothing: it is salted, and the salt is erased with the entry.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from sdb.answers.entries import Entry, Query, Terms, digest_of, is_whole, query_bytes, unpacked
from sdb.answers.ties import Found
from sdb.errors import DataError, StorageError
from sdb.keys.sealing import seal_to, unseal_with
from sdb.runtime import DATABASE_LIMIT, check_regular, json_text

LOGGER = logging.getLogger("sdb")
VERSION = 1
Place = tuple[int, int, int]
# An entry waits for this and for the batch before its own, which takes a millisecond an entry on a busy machine.
FLUSH_SECONDS = 0.25
DAY = 86_400
# Answers that wait to be written; beyond it they are counted as dropped, never waited for.
MOST_WAITING = 4096
_SCHEMA = (
    "CREATE TABLE meta (content TEXT NOT NULL)",
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, account TEXT, cell INTEGER, first INTEGER, second INTEGER, "
    "answer INTEGER, day INTEGER, salt BLOB, query BLOB, sealed BLOB, digest BLOB NOT NULL, head BLOB NOT NULL)",
    "CREATE UNIQUE INDEX places ON entries (account, cell, first, second)",
)
_FIELDS = "number, account, cell, first, second, answer, day, salt, query, sealed, digest, head"


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """Ties of one request."""

    account: str
    queries: Sequence[Query] | np.ndarray
    found: Found
    told: np.ndarray


def places_of(found: Found) -> list[Place]:
    """Where each tie is: cell and pair of classes."""
    return [(int(cell), int(a), int(b)) for cell, (a, b) in zip(found.cells, found.pairs, strict=True)]


class Ledger:
    """A SQLite file of entries (WAL), safe for several threads and processes.

    Args:
        path: of the file, which `create` makes.
        writing: start the thread that writes what `put` takes.

    Attributes:
        terms: what it is of.
        dropped: answers that were not kept, because too many waited or the file could not be written.

    Raises:
        StorageError: it is missing, damaged, of a newer version, or no ledger.
    """

    def __init__(self, path: Path | str, *, writing: bool = False) -> None:
        self.path, self.dropped = Path(path), 0
        try:
            check_regular(self.path, DATABASE_LIMIT)
            self._connection = sqlite3.connect(self.path, timeout=5, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA secure_delete = ON")
            content = json.loads(self._connection.execute("SELECT content FROM meta").fetchone()[0])
            if content.get("sdb_ledger") != VERSION:
                raise StorageError(
                    f"{path}: ledger version {content.get('sdb_ledger')!r}, this sdb reads {VERSION}: update sdb"
                )
            self.terms = Terms(**content["terms"])
            if not isinstance(self.terms.tau, float | int):
                raise ValueError(f"tau is {self.terms.tau!r}")
            bytes.fromhex(self.terms.public)
        except FileNotFoundError:
            raise StorageError(f"{path}: no ledger; make one: sdb ledger new") from None
        except (
            sqlite3.Error,
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{path}: no ledger, or a damaged one ({error}); restore a copy") from None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._seen: dict[str, set[Place]] = {}
        self._version, self._shrunk = 0, True
        self._waiting: queue.Queue[_Told] = queue.Queue(MOST_WAITING)
        self._thread = (
            threading.Thread(target=self._write_behind, name="sdb-ledger", daemon=True) if writing else None
        )
        if self._thread:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")  # what is written outlives a power cut
            self._see()
            self._thread.start()

    @classmethod
    def create(cls, path: Path | str, terms: Terms) -> Self:
        """Make an empty one, readable by its owner alone.

        Raises:
            StorageError: something is there already, or it cannot be written.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            connection = sqlite3.connect(path, isolation_level=None)
            for statement in _SCHEMA:
                connection.execute(statement)
            content = {"sdb_ledger": VERSION, "terms": asdict(terms)}
            connection.execute("INSERT INTO meta VALUES (?)", (json_text(content, sort_keys=True),))
            connection.close()
        except FileExistsError:
            raise StorageError(f"{path} exists; a ledger is not overwritten: choose another name") from None
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot write {path}: {error}; choose another folder") from error
        return cls(path)

    def put(self, account: str, queries: Sequence[Query] | np.ndarray, found: Found, told: np.ndarray) -> None:
        """Take ties that were answered; never blocks.

        Args:
            account: whose they are.
            queries: those of the ties, M of them, not to be changed afterwards; see `query_bytes`.
            found: the ties.
            told: the classes that were answered, int64 (M,).
        """
        seen = self._seen.setdefault(account, set())
        places = places_of(found)
        if all(place in seen for place in places):
            return
        seen.update(places)
        try:
            self._waiting.put_nowait(_Told(account, queries, found, told))
        except queue.Full:
            self._drop(account, places, "too many wait to be written")

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._thread and not self._stop.is_set():
            self._stop.set()
            self._thread.join()
        self._connection.close()

    def entries(self, account: str | None = None) -> list[Entry]:
        """The entries in their order; of one account, or of all, erased ones too."""
        where, values = ("", ()) if account is None else (" WHERE account = ?", (account,))
        found = self._rows(f"SELECT {_FIELDS} FROM entries{where} ORDER BY number", *values)  # noqa: S608 - names of ours
        for row in found:
            if not is_whole(row):
                raise DataError(f"{self.path}: entry {row[0]} was altered: restore a copy")
        return [Entry(*row) for row in found]

    def verify(self) -> bytes:
        """The head of the chain, after going through all of it.

        Raises:
            DataError: an entry was changed, added or taken away.
        """
        return self.head_of(self.verified())

    def head_of(self, entries: Sequence[Entry]) -> bytes:
        """The head of the chain after its first entries."""
        return entries[-1].head if entries else self.terms.head

    def verified(self) -> list[Entry]:
        """The entries of one moment, after going through the chain: a server may be adding others.

        Raises:
            DataError: an entry was changed, added or taken away.
        """
        head, entries = self.terms.head, self.entries()
        for number, entry in enumerate(entries, 1):
            head = hashlib.sha256(head + entry.digest).digest()
            whole = entry.account is None or digest_of(entry) == entry.digest
            if entry.number != number or entry.head != head or not whole:
                raise DataError(f"{self.path}: entry {entry.number} was altered, or one before it was taken away")
        return entries

    def query(self, entry: Entry, private: bytes) -> Query:
        """The query of an entry; an image is float32 (C, H, W) in [0, 1].

        Args:
            entry: of this ledger.
            private: the owner's private key for queries, 32 bytes.

        Raises:
            CheckpointError: it does not open: altered, or another owner's.
            DataError: it is not kept, or not what the entry's digest says.
        """
        if entry.sealed is None:
            raise DataError(f"{self.path}: the query of entry {entry.number} is not kept")
        context = {"ledger": self.terms.ties_id, "digest": entry.digest.hex()}
        data = unseal_with(private, entry.sealed, context, f"{self.path}: the query of entry {entry.number}")
        query = unpacked(data, entry.query)
        if query is not None:
            return query
        raise DataError(f"{self.path}: the query of entry {entry.number} is not the one that its digest names")

    def erase(self, account: str) -> int:
        """Forget an account: its entries keep their digests and nothing else. Returns how many there were."""
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE entries SET account = NULL, cell = NULL, first = NULL, second = NULL, answer = NULL, "
                "day = NULL, salt = NULL, query = NULL, sealed = NULL WHERE account = ?",
                (account,),
            ).rowcount
        self._seen.pop(account, None)
        self._shrink()
        return done

    def expire(self, today: int | None = None) -> int:
        """Delete the queries that are older than the terms allow. Returns how many there were."""
        today = int(time.time() // DAY) if today is None else today
        with self._transaction() as connection:
            done = connection.execute(
                "UPDATE entries SET sealed = NULL WHERE sealed IS NOT NULL AND day < ?", (today - self.terms.days,)
            ).rowcount
        if done or not self._shrunk:
            self._shrink()
        return done

    def _drop(self, account: str, places: list[Place], why: str) -> None:
        """Count what could not be kept; when it is told again it is tried again."""
        self._seen.get(account, set()).difference_update(places)
        if not self.dropped:
            LOGGER.warning("ledger %s: ties that were told are not kept (%s)", self.path.name, why)
        self.dropped += len(places)

    def _write_behind(self) -> None:
        expired = 0
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush()
            try:
                self._see()
                if (today := int(time.time() // DAY)) > expired:
                    self.expire(today)
                    expired = today
            except StorageError:
                pass  # tried again
        self._flush()

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._cannot(error) from None

    def _see(self) -> None:
        """Learn from the file which places are kept, where another process has changed it, as by erasing an account."""
        version = self._rows("PRAGMA data_version")[0][0]
        if version == self._version:
            return
        found: dict[str, set[Place]] = {}
        for account, *place in self._rows(
            "SELECT account, cell, first, second FROM entries WHERE account IS NOT NULL"
        ):
            found.setdefault(account, set()).add((place[0], place[1], place[2]))
        self._seen, self._version = found, version

    def _flush(self) -> None:
        batch = []
        while not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        if not batch:
            return
        kept = []
        for told in batch:
            try:
                kept.append((told, [query_bytes(told.queries[index]) for index in range(len(told.told))]))
            except Exception as error:
                self._drop(
                    told.account, places_of(told.found), f"a query that cannot be kept: {type(error).__name__}"
                )
        try:
            with self._transaction() as connection:
                for told, queries in kept:
                    self._add(connection, told, queries)
        except StorageError:
            for told, _ in kept:
                self._drop(told.account, places_of(told.found), "the file cannot be written")

    def _add(self, connection: sqlite3.Connection, told: _Told, queries: list[bytes]) -> None:
        day, terms = int(time.time() // DAY), self.terms
        last = connection.execute("SELECT number, head FROM entries ORDER BY number DESC LIMIT 1").fetchone()
        number, head = last or (0, terms.head)
        for index, (cell, (first, second)) in enumerate(zip(told.found.cells, told.found.pairs, strict=True)):
            place = (told.account, int(cell), int(first), int(second))
            if connection.execute(
                "SELECT 1 FROM entries WHERE account = ? AND cell = ? AND first = ? AND second = ?", place
            ).fetchone():
                continue
            data = queries[index]
            number += 1
            entry = Entry(
                number,
                *place,
                int(told.told[index]),
                day,
                os.urandom(16),
                hashlib.sha256(data).digest(),
                None,
                b"",
                b"",
            )
            digest = digest_of(entry)
            head = hashlib.sha256(head + digest).digest()
            sealed = None
            if terms.keep_queries and self._has_room(connection, told.account):
                sealed = seal_to(
                    bytes.fromhex(terms.public),
                    zlib.compress(data),
                    {"ledger": terms.ties_id, "digest": digest.hex()},
                )
            row = (number, *place, entry.answer, day, entry.salt, entry.query, sealed, digest, head)
            connection.execute(f"INSERT INTO entries ({_FIELDS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def _has_room(self, connection: sqlite3.Connection, account: str) -> bool:
        """Whether a further query of an account is kept: reservoir sampling, so that each has the same chance."""
        cap = self.terms.cap
        asked = connection.execute("SELECT count(*) FROM entries WHERE account = ?", (account,)).fetchone()[0]
        if asked < cap:
            return True
        if int.from_bytes(os.urandom(8), "big") % (asked + 1) >= cap:
            return False
        connection.execute(
            "UPDATE entries SET sealed = NULL WHERE number = (SELECT number FROM entries WHERE account = ? AND "
            "sealed IS NOT NULL ORDER BY random() LIMIT 1)",
            (account,),
        )
        return True

    def _shrink(self) -> None:
        """So that nothing that was erased stays in the file or its log."""
        self._shrunk = False
        with self._lock:
            try:
                # The rest secure_delete does.
                busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise self._cannot(error) from None
        if busy:
            raise StorageError(
                f"{self.path}: another process reads it, so what was erased is in its log ({self.path.name}-wal) "
                "still: erase again when that has ended"
            )
        self._shrunk = True

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._cannot(error) from error
                raise

    def _cannot(self, error: Exception) -> StorageError:
        return StorageError(f"{self.path}: cannot be used as a ledger ({error})")
