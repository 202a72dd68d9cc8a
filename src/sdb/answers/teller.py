"""Answers near ties: each account by its own coins, and what was told kept in a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sdb.answers.compact import CompactRows
from sdb.answers.entries import Query
from sdb.answers.ledger import Ledger
from sdb.answers.ties import FixedRows, Ties


class Queries(Protocol):
    """The queries of a request, by rows int64 (M,)."""

    def __getitem__(self, rows: np.ndarray, /) -> Sequence[Query] | np.ndarray: ...


@dataclass(frozen=True, slots=True, eq=False)
class Teller:
    """Answers queries for accounts.

    Attributes:
        ties: of the box that is served.
        ledger: keeps what accounts are told; None keeps nothing, and then nobody can be traced.
        rows: what the keyless box or guard answers in place of its network's logits; None where it answers these.
    """

    ties: Ties
    ledger: Ledger | None
    rows: FixedRows | CompactRows | None

    def answers(self, account: str, queries: Queries, logits: np.ndarray, *, keyless: bool) -> np.ndarray:
        """What an account is told, float32 (N, C).

        Args:
            account: its id, `NOBODY` for all who have no token.
            queries: what was asked, N of them, such as images (N, C, H, W); only those of ties are taken from it.
            logits: what the network says of them.
            keyless: whether a box's rows stand in place of its logits.
        """
        told = self.ties.answer(logits, account, self.rows if keyless else None)
        if self.ledger is not None and account and len(told.classes):
            self.ledger.put(account, queries[told.found.rows], told.found, told.classes)
        return told.answers
