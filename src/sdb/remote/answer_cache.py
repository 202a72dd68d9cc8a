"""Answers that were paid for, kept in one SQLite file: written before they are used, and safe at a kill -9."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdb.errors import CheckpointError, StorageError
from sdb.runtime import DATABASE_LIMIT, check_regular

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    scope BLOB NOT NULL, image BLOB NOT NULL, logits BLOB NOT NULL, PRIMARY KEY (scope, image)
) WITHOUT ROWID
"""


class AnswerCache:
    """Logits by the hash of the image, for one asker and one model.

    Args:
        path: the file, mode 0600 since a partner's answers are knowledge; opened at first use. None: in memory.
        scope: 16 bytes that stand for the asker and the model.
    """

    def __init__(self, path: Path | None, scope: bytes) -> None:
        self.path = path
        self._scope = scope
        self._opened: sqlite3.Connection | None = None

    def find(self, images: Sequence[bytes], num_classes: int) -> dict[bytes, np.ndarray]:
        """The answers that are there, float32 (classes,), by image.

        Raises:
            CheckpointError: the file is damaged.
        """
        found: dict[bytes, np.ndarray] = {}
        with self._database() as database:
            for image in images:
                row = database.execute(
                    "SELECT logits FROM answers WHERE scope = ? AND image = ?", (self._scope, image)
                ).fetchone()
                if row is None:
                    continue
                if len(row[0]) != 4 * num_classes:
                    raise sqlite3.DatabaseError("an answer of another length")
                found[image] = np.frombuffer(row[0], dtype="<f4").astype(np.float32)
        return found

    def keep(self, answers: Mapping[bytes, np.ndarray]) -> None:
        """Write answers; when this returns they outlive the process.

        Raises:
            StorageError: the disk is full.
        """
        rows = [(self._scope, image, logits.astype("<f4").tobytes()) for image, logits in answers.items()]
        with self._database() as database, database:
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)

    def count(self) -> int:
        """How many answers there are."""
        with self._database() as database:
            return database.execute("SELECT count(*) FROM answers WHERE scope = ?", (self._scope,)).fetchone()[0]

    @contextlib.contextmanager
    def _database(self) -> Generator[sqlite3.Connection]:
        try:
            if self._opened is None:
                self._opened = self._open()
            yield self._opened
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"cannot write {self.path}: {error}; free space, or see that no other run uses it"
            ) from None
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror or error}") from None
        except sqlite3.DatabaseError as error:
            raise CheckpointError(
                f"{self.path} is damaged ({error}); restore it from a copy, or remove it and pay for its answers again"
            ) from None

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, 0o600))
            check_regular(self.path, DATABASE_LIMIT)
        database = sqlite3.connect(":memory:" if self.path is None else self.path)
        # With a write-ahead log a commit is one append: quick, and whole or absent after a kill.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(SCHEMA)
        return database
