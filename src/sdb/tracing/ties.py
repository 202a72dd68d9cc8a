"""Tracing by ties: which account's answers did a suspect learn from?

    commitment = Commitment.of(ledger)                    # lodged before the suspect is asked
    result = trace_ties(suspect, [ledger], ties, private, commitment)
    print(result.sentence())

At each tie that an account was told, the suspect is asked the query that was kept. Where it answers one of the two
classes, it agrees with the account's coin or not: one vote a cell and pair. A model that is independent of the secret
agrees in half of the cases, whatever it has learned from whomever, so the number of agreements is binomial, exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from sdb.answers.entries import Entry, Query
from sdb.answers.ledger import Ledger
from sdb.answers.ties import NOBODY, Ties
from sdb.errors import ConfigError, DataError, KeyFileError, ModelError, SDBError
from sdb.models import device_of
from sdb.runtime import SECRET_LIMIT, json_text, parse_json, read_bytes, write_atomic
from sdb.tracing.decoys import p_text
from sdb.tracing.kept import find_queries

# An account is named below this, after correction for the number of accounts.
THRESHOLD_LOG10_P = -6.0
VERSION = 1
BATCH = 256
Suspect = nn.Module | Callable[[Any], np.ndarray]


@dataclass(frozen=True, slots=True)
class Commitment:
    """What is fixed before a suspect is asked; its digest can be lodged with a third party, or time-stamped.

    Attributes:
        box_id: of the box.
        ties_id: binds the secret and the margin.
        entries: how many there are.
        head: of the chain of entries, 64 hexadecimal digits.
    """

    box_id: str
    ties_id: str
    entries: int
    head: str

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """That of a ledger as it is now, after going through all of it.

        Raises:
            DataError: the ledger was altered.
        """
        entries = ledger.verified()
        return cls(ledger.terms.box_id, ledger.terms.ties_id, len(entries), ledger.head_of(entries).hex())

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_atomic(path, json_text({"sdb_commitment": VERSION} | asdict(self), indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it.

        Raises:
            DataError: missing, damaged, or of a newer version.
        """
        try:
            content = parse_json(read_bytes(path, SECRET_LIMIT))
            if content.pop("sdb_commitment") == VERSION and type(content["entries"]) is int:
                return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise DataError(f"{path}: no commitment, or of a newer version; sdb ledger commit makes one")

    @property
    def digest(self) -> str:
        """SHA-256, 64 hexadecimal digits."""
        return hashlib.sha256(json_text(asdict(self), sort_keys=True).encode()).hexdigest()

    def check(self, ledger: Ledger) -> list[Entry]:
        """The entries that it covers.

        Raises:
            DataError: it is of another ledger, or entries were changed, added or taken away before its end.
        """
        entries = ledger.verified()[: self.entries]
        own = (ledger.terms.box_id, ledger.terms.ties_id, len(entries), ledger.head_of(entries).hex())
        if own != (self.box_id, self.ties_id, self.entries, self.head):
            raise DataError(f"{ledger.path}: is not the ledger that was committed to, or was altered since")
        return entries


@dataclass(frozen=True, slots=True)
class AccountTies:
    """One account's part in a trace.

    Attributes:
        account: its id.
        told: ties that it was told.
        asked: those of them that the suspect was asked about.
        usable: those where the suspect answered one of the two classes.
        hits: those where it answered what the account was told.
        log10_p: logarithm of the chance of so many hits for a model that is independent of the secret.
        corrected_log10_p: the same, corrected for the number of accounts (Holm).
    """

    account: str
    told: int
    asked: int
    usable: int
    hits: int
    log10_p: float
    corrected_log10_p: float

    @property
    def named(self) -> bool:
        """Whether the suspect learned from this account's answers: corrected p below 1e-6."""
        return self.corrected_log10_p < THRESHOLD_LOG10_P


@dataclass(frozen=True, slots=True)
class TieTrace:
    """What a trace by ties found.

    Attributes:
        accounts: those that were told ties, the smallest p first.
        questions: that the suspect was asked.
        committed: digest of what was fixed before.
        lodged: whether that is the owner's, rather than made for this trace.
    """

    accounts: tuple[AccountTies, ...]
    questions: int
    committed: str
    lodged: bool

    @property
    def named(self) -> tuple[AccountTies, ...]:
        """The accounts whose answers the suspect learned from."""
        return tuple(each for each in self.accounts if each.named)

    def sentence(self, names: dict[str, str] | None = None) -> str:
        """The result for people.

        Args:
            names: of accounts by id.
        """
        usable = sum(each.usable for each in self.accounts)
        if not self.questions or not usable:
            why = (
                "no account was told a tie that can be asked" if not self.questions else "it answers neither class"
            )
            return f"Nothing to test: {why}. This says nothing about the suspect."
        if not self.named:
            best = self.accounts[0]
            most = max(self.accounts, key=lambda each: each.usable)
            if math.log10(len(self.accounts)) - most.usable * math.log10(2) >= THRESHOLD_LOG10_P:
                return (
                    f"Nothing could be shown: with {most.usable} usable ties of an account at most, and "
                    f"{len(self.accounts)} accounts, even a perfect copy would not be named. This says nothing about "
                    "the suspect."
                )
            return (
                f"No account is named: the nearest agrees in {best.hits} of {best.usable} ties, p = "
                f"{p_text(best.corrected_log10_p)} after correction for {len(self.accounts)} accounts. This does not "
                "show innocence: docs/tracing.md says what removes the mark."
            )
        said = [
            f"The suspect learned from the answers of account {_name(each.account, names)}: it agrees with "
            f"{each.hits} of {each.usable} secret coins of that account, and a model that did not would do so with p = "
            f"{p_text(each.corrected_log10_p)} (binomial, corrected for {len(self.accounts)} accounts)."
            for each in self.named
        ]
        return " ".join(said)

    def lines(self, names: dict[str, str] | None = None) -> list[str]:
        """A short table for people, one line an account, the smallest p first; see `sentence`."""
        fixed = "lodged before" if self.lodged else "made for this trace; sdb ledger commit fixes one before"
        told = sum(each.told for each in self.accounts)
        left = f" of {told} ties; of the others the query is not at hand, or the budget ended"
        head = [
            f"questions    {self.questions}{left if self.questions < told else ''}",
            f"commitment   {self.committed[:16]} ({fixed})",
            f"{'account':<16} {'told':>6} {'asked':>6} {'usable':>6} {'hits':>6} {'log10 p':>8} {'corrected':>9}",
        ]
        return head + [
            f"{_name(each.account, names):<16} {each.told:6} {each.asked:6} {each.usable:6} {each.hits:6} "
            f"{each.log10_p:8.1f} {each.corrected_log10_p:9.1f}"
            for each in self.accounts
        ]

    def to_json(self, names: dict[str, str] | None = None) -> dict[str, Any]:
        """The result as JSON values; see `sentence`."""
        rows = [
            {"name": _name(each.account, names)} | asdict(each) | {"named": each.named} for each in self.accounts
        ]
        values = {"threshold_log10_p": THRESHOLD_LOG10_P, "questions": self.questions}
        return values | {"commitment": self.committed, "lodged": self.lodged, "accounts": rows}


@dataclass(frozen=True, slots=True, eq=False)
class _Vote:
    account: str
    answer: int
    other: int
    query: Query


def trace_ties(
    suspect: Suspect,
    ledgers: Sequence[Ledger],
    ties: Ties,
    private: bytes,
    *,
    commitments: Sequence[Commitment] = (),
    accounts: Sequence[str] = (),
    budget: int | None = None,
    kept: Iterable[Query] = (),
) -> TieTrace:
    """Ask a suspect about the ties that accounts were told.

    Args:
        suspect: a module from images float32 (N, C, H, W) in [0, 1] to logits, or a function to classes int (N,) from
            what accounts asked: an array (N, ...) where all queries are arrays of one shape, else a list of queries.
        ledgers: of all servers; a cell that is in several counts once.
        ties: the box's.
        private: the owner's key for queries, `Owner.queries_key`.
        commitments: one per ledger, lodged before; entries after it do not count. Without, one is made now.
        accounts: ids of those to test, chosen before; none for all. The account of nobody is never tested.
        budget: questions at most. Which are asked follows from the commitments' digests, so nobody can choose.
        kept: queries that the ledgers name by digest alone, among any others; see `read_queries`.

    Raises:
        ConfigError: the budget is no number above 0, commitments are not one per ledger, or no ledger names any of the
            queries that are given.
        KeyFileError: a ledger is of other ties.
        DataError: a ledger was altered, or an answer in it does not follow from the secret.
        ModelError: the suspect takes other images, or answers with NaN or no class.
    """
    if budget is not None and budget < 1:
        raise ConfigError(f"budget: {budget}; give at least 1 question")
    if commitments and len(commitments) != len(ledgers):
        raise ConfigError(f"commitments: {len(commitments)} for {len(ledgers)} ledgers; give one per ledger")
    for ledger in ledgers:
        if ledger.terms.ties_id != ties.id:
            raise KeyFileError(
                f"{ledger.path}: is of other ties than {ties.id[:8]}: of another box, owner or margin"
            )
    fixed = list(commitments) or [Commitment.of(ledger) for ledger in ledgers]
    digest = hashlib.sha256("".join(each.digest for each in fixed).encode()).hexdigest()
    told: dict[tuple[str, int, int, int], list[tuple[Ledger, Entry]]] = {}
    for ledger, commitment in zip(ledgers, fixed, strict=True):
        for entry in commitment.check(ledger):
            if entry.account in (None, NOBODY) or (accounts and entry.account not in accounts):
                continue
            place = (entry.account, entry.cell, entry.first, entry.second)
            follows = entry.answer == (entry.first if ties.coin(*place) else entry.second)
            if not follows or not 0 <= entry.first < entry.second:
                raise DataError(f"{ledger.path}: entry {entry.number} does not follow from the secret")
            told.setdefault(place, []).append((ledger, entry))
    elsewhere = _elsewhere(kept, [entry for entries in told.values() for _, entry in entries])
    # Of a cell that is in several ledgers the first query that is at hand.
    askable = {
        place: (ledger, entry)
        for place, entries in told.items()
        for ledger, entry in reversed(entries)
        if entry.sealed is not None or (entry.query or b"") in elsewhere
    }
    votes = []
    for place in _drawn(list(askable), digest, budget):
        ledger, entry = askable[place]
        query = elsewhere[entry.query or b""] if entry.sealed is None else ledger.query(entry, private)
        votes.append(_Vote(place[0], entry.answer, entry.first + entry.second - entry.answer, query))
    given = np.concatenate([*_ask(suspect, [vote.query for vote in votes]), np.empty(0, np.int64)])
    hits = given == np.array([vote.answer for vote in votes])
    usable = hits | (given == np.array([vote.other for vote in votes]))
    rows = []
    for account in sorted({place[0] for place in told}):
        own = np.array([vote.account == account for vote in votes], dtype=bool)
        count, found = int((usable & own).sum()), int((hits & own).sum())
        number = sum(place[0] == account for place in told)
        rows.append(AccountTies(account, number, int(own.sum()), count, found, log10_tail(found, count), 0.0))
    return TieTrace(_corrected(rows), len(votes), digest, bool(commitments))


def _elsewhere(kept: Iterable[Query], entries: list[Entry]) -> dict[bytes, Query]:
    """The queries that only the owner has, by digest."""
    queries = iter(kept)
    first = next(queries, None)
    if first is None:
        return {}
    found = find_queries(
        itertools.chain([first], queries), {each.query for each in entries if each.query is not None}
    )
    if not found:
        raise ConfigError(
            "queries: the ledger names none of those that are given: they must be what accounts asked, to the last "
            "bit; images (N, C, H, W) in float32 in [0, 1] or uint8"
        )
    return found


def _name(account: str, names: dict[str, str] | None) -> str:
    return (names or {}).get(account, account[:8])


def log10_tail(hits: int, votes: int) -> float:
    """Exact log10 of the chance of `hits` or more in `votes` throws of a fair coin."""
    ways = term = 1
    for k in range(votes, hits, -1):  # each binomial coefficient from the one before
        term = term * k // (votes - k + 1)
        ways += term
    return min(0.0, math.log10(ways) - votes * math.log10(2))


def _corrected(rows: list[AccountTies]) -> tuple[AccountTies, ...]:
    """With p-values corrected by Holm's method, the smallest first."""
    ordered, worst, found = sorted(rows, key=lambda row: (row.log10_p, row.account)), -math.inf, []
    for index, row in enumerate(ordered):
        worst = min(0.0, max(worst, row.log10_p + math.log10(len(ordered) - index)))
        found.append(replace(row, corrected_log10_p=worst))
    return tuple(found)


def _drawn(
    places: list[tuple[str, int, int, int]], digest: str, budget: int | None
) -> list[tuple[str, int, int, int]]:
    """Those that are asked, in the order in which they are asked."""
    ordered = sorted(places, key=lambda place: hashlib.sha256(f"{digest} {place}".encode()).digest())
    return ordered if budget is None else ordered[:budget]


def _ask(suspect: Suspect, queries: list[Query]) -> Iterator[np.ndarray]:
    """The suspect's classes, by batches."""
    for begin in range(0, len(queries), BATCH):
        asked = _together(queries[begin : begin + BATCH])
        if isinstance(suspect, nn.Module) and not isinstance(asked, np.ndarray):
            raise ModelError(
                "the queries are no arrays of one shape: give a function from a list of them to classes"
            )
        try:
            given = _classes(suspect, asked) if isinstance(suspect, nn.Module) else np.asarray(suspect(asked))
        except SDBError:
            raise
        except Exception as error:  # it is somebody else's code
            shape = asked.shape[1:] if isinstance(asked, np.ndarray) else "that accounts sent"
            raise ModelError(f"the suspect fails on queries {shape}: {type(error).__name__}: {error}") from None
        if given.shape != (len(asked),) or not np.issubdtype(given.dtype, np.integer):
            raise ModelError(f"the suspect answers {given.dtype} {given.shape}: one class per query is needed")
        yield given.astype(np.int64)


def _together(queries: list[Query]) -> Any:
    """Queries as one array where they are arrays alike, else as they are."""
    first = queries[0]
    alike = isinstance(first, np.ndarray) and all(
        isinstance(each, np.ndarray) and each.shape == first.shape and each.dtype == first.dtype
        for each in queries
    )
    return np.stack(queries) if alike else queries


def _classes(suspect: nn.Module, images: np.ndarray) -> np.ndarray:
    training = suspect.training
    with torch.inference_mode():
        logits = suspect.eval()(torch.from_numpy(images).to(device_of(suspect)))
    suspect.train(training)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        form = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"the suspect answers with {form}: logits (N, C) are needed")
    if not logits.isfinite().all():
        raise ModelError("the suspect answers with NaN or infinity; it is broken")
    return logits.argmax(dim=1).cpu().numpy()
