"""API tokens: who asks. A token is shown once and kept as a hash.

A token is 256 bits from the operating system, so nobody guesses one, and the file holds its SHA-256. A slow hash, as
passwords need, would add nothing: there is no list of likely tokens to try, and every request would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdb.errors import ConfigError, KeyFileError, SDBError, StorageError
from sdb.runtime import check_regular, json_text
from sdb.service.watch.limits import Limits

ANONYMOUS_NAME = "anonymous"
ANSWERS = ("logits", "probabilities", "top_k", "labels")
# Every digest is compared for every request, so their number is bounded (10,000 take about a millisecond).
MAX_TOKENS = 10_000
TOKENS_LIMIT = 2**26  # bytes of a file, which is read as a whole; that many tokens take a tenth
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SCHEMA = """CREATE TABLE IF NOT EXISTS tokens (
    name TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, partner TEXT NOT NULL, answers TEXT, limits TEXT,
    created REAL NOT NULL, revoked REAL, expires REAL)"""
SECONDS = {"h": 3_600, "d": 86_400, "w": 604_800}
LONGEST = 100 * 366 * SECONDS["d"]


class TokenExpiredError(SDBError, PermissionError):
    """A token whose time is over."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: as the token table has it, or "anonymous".
        partner: the id of the partner's key that this principal holds, "" for none.
        answers: logits, probabilities, top_k or labels in place of the server's policy; None for the server's.
        account: id by which its answers are marked, see `account_of`; "" for none.
    """

    name: str
    partner: str = ""
    answers: str | None = None
    account: str = ""


ANONYMOUS = Principal(ANONYMOUS_NAME)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token as the file has it, without the token.

    Attributes:
        principal: whom it stands for.
        digest: SHA-256 of the token, 32 bytes.
        limits: in place of the server's, or None.
        created: seconds since 1970.
        revoked: seconds since 1970, or None where it is not.
        expires: seconds since 1970, or None for never.
    """

    principal: Principal
    digest: bytes
    limits: Limits | None
    created: float
    revoked: float | None
    expires: float | None = None

    def check_time(self, now: float) -> None:
        """Refuse a token whose time is over.

        Raises:
            TokenExpiredError: saying since when.
        """
        if self.expires is not None and now >= self.expires:
            raise TokenExpiredError(f"the token expired on {_iso(self.expires)}: ask the owner for a new one")

    def public(self) -> dict[str, Any]:
        """What may be shown: everything but the digest."""
        principal = self.principal
        return {
            "name": principal.name,
            "partner": principal.partner,
            "answers": principal.answers,
            "account": principal.account,
            "limits": None if self.limits is None else asdict(self.limits),
            "created": _iso(self.created),
            "revoked": None if self.revoked is None else _iso(self.revoked),
            "expires": None if self.expires is None else _iso(self.expires),
        }


class TokenFile:
    """A SQLite file of tokens; the command line writes it, a server reads it.

    Args:
        path: of the file.
        create: make it, readable by its owner alone, where it is missing.

    Raises:
        KeyFileError: it is missing, or no token file.
    """

    def __init__(self, path: Path | str, create: bool = False) -> None:
        self.path = Path(path)
        if create and not self.path.exists():
            try:
                self.path.touch(mode=0o600)
            except OSError as error:
                raise StorageError(f"cannot write {path}: {error.strerror}; choose another folder") from error
        try:
            check_regular(self.path, TOKENS_LIMIT)
        except FileNotFoundError:
            raise KeyFileError(
                f"{path}: no token file; make a first token: sdb token new NAME --tokens {path}"
            ) from None
        except OSError as error:
            raise KeyFileError(f"{path}: cannot be used as a token file: {error.strerror or error}") from None
        with self._open("rw" if create else "ro") as connection:
            if create:
                connection.execute(_SCHEMA)
                columns = {column[1] for column in connection.execute("PRAGMA table_info(tokens)")}
                if "expires" not in columns:  # made before tokens could expire
                    connection.execute("ALTER TABLE tokens ADD COLUMN expires REAL")
            connection.execute("SELECT name FROM tokens LIMIT 1")

    def add(
        self,
        name: str,
        partner: str = "",
        answers: str | None = None,
        limits: Limits | None = None,
        lasts: float | None = None,
    ) -> str:
        """Make a token; what is returned is written nowhere else.

        Args:
            name: who gets it.
            partner: id of the partner's key, "" for none.
            answers: policy in place of the server's.
            limits: in place of the server's.
            lasts: seconds until it expires; None for never.

        Raises:
            ConfigError: the name is taken, badly formed or reserved, the policy is unknown, or the file is full.
        """
        if not _NAME.fullmatch(name) or name == ANONYMOUS_NAME:
            raise ConfigError(
                f"token name {name!r}: give 1 to 64 letters, digits or . _ @ -, beginning with a letter or digit, "
                f"not {ANONYMOUS_NAME!r}"
            )
        if answers is not None and answers not in ANSWERS:
            raise ConfigError(f"answers: {answers!r} is none of {', '.join(ANSWERS)}")
        if partner and not re.fullmatch(r"[0-9a-f]{32}", partner):
            raise ConfigError(
                f"partner: {partner!r} is no key id (32 hexadecimal digits): sdb key show FILE has it"
            )
        token = f"sdb_{secrets.token_urlsafe(32)}"
        kept = None if limits is None else json_text(asdict(limits))
        now = time.time()
        expires = None if lasts is None else now + lasts
        with self._open("rw") as connection:
            if connection.execute("SELECT count(*) FROM tokens").fetchone()[0] >= MAX_TOKENS:
                raise ConfigError(f"{self.path} holds {MAX_TOKENS} tokens, which is the most; use another file")
            try:
                connection.execute(
                    "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
                    (name, digest_of(token), partner, answers, kept, now, expires),
                )
            except sqlite3.IntegrityError:
                # Its counts live on under the name, so a name is used once.
                raise ConfigError(f"{self.path} has a token {name!r} already; choose another name") from None
        return token

    def revoke(self, name: str) -> None:
        """Make a token invalid for good; a running server sees it within two seconds.

        Raises:
            ConfigError: there is no such token, or it is revoked already.
        """
        with self._open("rw") as connection:
            done = connection.execute(
                "UPDATE tokens SET revoked = ? WHERE name = ? AND revoked IS NULL", (time.time(), name)
            )
            if not done.rowcount:
                raise ConfigError(f"{self.path} has no valid token {name!r}: sdb token list --tokens {self.path}")

    def rows(self) -> list[TokenRow]:
        """All tokens, valid and revoked, in the order they were made.

        Raises:
            KeyFileError: the file is damaged.
        """
        with self._open("ro") as connection:
            # A file from before tokens could expire has one column less.
            found = connection.execute("SELECT * FROM tokens ORDER BY rowid").fetchall()
        try:
            return [
                TokenRow(
                    Principal(name, partner, answers, account_of(bytes(digest))),
                    bytes(digest),
                    None if limits is None else Limits(**json.loads(limits)),
                    created,
                    revoked,
                    *map(_seconds, expires),
                )
                for name, digest, partner, answers, limits, created, revoked, *expires in found
            ]
        except (ValueError, TypeError) as error:
            raise KeyFileError(f"{self.path}: damaged token file ({error}); restore a copy") from None

    @contextmanager
    def _open(self, mode: str) -> Generator[sqlite3.Connection]:
        # The plain rollback journal: a server may read from a read-only file system, which WAL does not allow.
        try:
            connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=5)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise KeyFileError(f"{self.path}: cannot be used as a token file ({error})") from error


def digest_of(token: str) -> bytes:
    """SHA-256 of a token, which is what is kept of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def account_of(digest: bytes) -> str:
    """Id of a token's account, 32 hexadecimal digits: random as the token is, and one-way."""
    return hashlib.sha256(b"sdb/1/account" + digest).hexdigest()[:32]


def seconds_of(text: str) -> float:
    """How long a time such as 12h, 90d or 8w is.

    Raises:
        ConfigError: another form, nothing, or more than a hundred years.
    """
    number, unit = text[:-1], text[-1:]
    seconds = int(number) * SECONDS[unit] if re.fullmatch(r"[0-9]{1,9}", number) and unit in SECONDS else 0
    if not 0 < seconds <= LONGEST:
        raise ConfigError(f"--expires {text!r}: give a number of hours, days or weeks, such as 12h, 90d or 8w")
    return float(seconds)


def find(token: str, rows: list[TokenRow]) -> TokenRow | None:
    """The row of a token, revoked ones too; every digest is compared, so the time says nothing about any of them."""
    digest = digest_of(token)
    found = None
    for row in rows:
        if hmac.compare_digest(row.digest, digest):
            found = row
    return found


def _seconds(value: object) -> float | None:
    if value is None or isinstance(value, float):
        return value
    raise ValueError("a time is no number")


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
