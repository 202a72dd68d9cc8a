"""Where budget counts and alerts outlive a server: a SQLite file, or Redis by URL.

Both add what was asked since the last time to what is kept, and say the sums, so that several servers share one store.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdb.errors import StorageError
from sdb.runtime import DATABASE_LIMIT, check_regular, json_text
from sdb.service.watch.counts import MAX_ALERTS, Cap, Count, Store

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS counts "
    "(name TEXT PRIMARY KEY, total INTEGER NOT NULL, day INTEGER NOT NULL, today INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS alerts (id INTEGER PRIMARY KEY AUTOINCREMENT, record TEXT NOT NULL)",
)
# A process that is still on yesterday adds to the total only.
_ADD = """INSERT INTO counts VALUES (:name, :total, :day, :today) ON CONFLICT(name) DO UPDATE SET
    total = total + excluded.total,
    today = CASE WHEN excluded.day > day THEN excluded.today
                 WHEN excluded.day = day THEN today + excluded.today ELSE today END,
    day = max(day, excluded.day)"""


class SqliteStore:
    """Counts and alerts in a SQLite file (WAL), safe for several threads and processes.

    Args:
        path: of the file; ":memory:" keeps nothing beyond the process.

    Raises:
        StorageError: it cannot be written, or is no such file.
    """

    decides = False  # each time would wait for the disk

    def __init__(self, path: Path | str) -> None:
        self._path, self._lock = str(path), threading.Lock()
        try:
            if self._path != ":memory:":
                Path(path).touch(mode=0o600)
                check_regular(Path(path), DATABASE_LIMIT)
            self._connection = sqlite3.connect(
                self._path, timeout=5, check_same_thread=False, isolation_level=None
            )
        except (sqlite3.Error, OSError) as error:
            raise _cannot(self._path, error) from error
        with self._transaction() as connection:
            for statement in _SCHEMA:
                connection.execute(statement)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A commit is on the disk when it returns: an alert outlives a power cut too.
            self._connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error as error:
            raise _cannot(self._path, error) from error

    def add(self, counts: Iterable[Count]) -> None:
        """Add to the counts, all or none."""
        rows = [{"name": c.name, "total": c.total, "day": c.day, "today": c.today} for c in counts]
        with self._transaction() as connection:
            connection.executemany(_ADD, rows)

    def take(self, images: int, day: int, caps: Sequence[Cap]) -> tuple[bool, list[Count]]:
        """Not there, see `decides`."""
        raise NotImplementedError

    def counts(self, day: int) -> dict[str, Count]:
        """The counts by name; `today` is 0 where the row is of an earlier day."""
        with self._transaction() as connection:
            found = connection.execute("SELECT name, day, total, today FROM counts").fetchall()
        return {
            name: Count(name, max(day, last), total, today if last >= day else 0)
            for name, last, total, today in found
        }

    def keep_alert(self, record: dict[str, Any]) -> None:
        """Keep an alert; it is on the disk when this returns."""
        with self._transaction() as connection:
            last = connection.execute("INSERT INTO alerts (record) VALUES (?)", (json_text(record),)).lastrowid
            connection.execute("DELETE FROM alerts WHERE id <= ?", ((last or 0) - MAX_ALERTS,))

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are kept, oldest first."""
        with self._transaction() as connection:
            found = connection.execute("SELECT record FROM alerts ORDER BY id").fetchall()
        try:
            return [json.loads(record) for (record,) in found]
        except ValueError as error:
            raise _cannot(self._path, error) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise _cannot(self._path, error) from error
                raise


def open_store(place: Path | str | None) -> Store:
    """A store by its place: a path, a redis:// or rediss:// URL, or None for this process's memory.

    Raises:
        StorageError: it cannot be reached or written, or is a URL of another kind.
        MissingExtraError: a URL is given and the extra `redis` is not installed.
    """
    if place is None:
        return SqliteStore(":memory:")
    if str(place).startswith(("redis://", "rediss://")):
        from sdb.service.watch.redis_store import RedisStore

        return RedisStore(str(place))
    scheme, is_url, _ = str(place).partition("://")
    if is_url:  # only the scheme is said: the rest may hold a password
        raise StorageError(
            f"{scheme}:// is no store: give the path of a SQLite file, or a redis:// or rediss:// URL"
        )
    return SqliteStore(place)


def _cannot(path: str, error: Exception) -> StorageError:
    return StorageError(
        f"{path}: cannot be used to keep counts and alerts ({error}); free space or give another file"
    )
