"""Entries of a ledger of ties: what they say, their digests, and queries as bytes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sdb.errors import ConfigError
from sdb.runtime import json_text


@dataclass(frozen=True, slots=True)
class Terms:
    """What a ledger is of, fixed when it is made.

    Attributes:
        box_id: public name of the box.
        ties_id: one-way name of the ties' secret and margin, see `Ties.id`.
        tau: the margin, see `Ties`.
        public: the owner's public key for queries, 64 hexadecimal digits.
        keep_queries: whether queries are kept, encrypted; else only their digests.
        days: how long queries are kept.
        cap: entries with queries per account; beyond it a random one gives way.
        created: seconds since 1970, whole.
    """

    box_id: str
    ties_id: str
    tau: float
    public: str
    keep_queries: bool = True
    days: int = 365
    cap: int = 5000
    created: int = 0

    def __post_init__(self) -> None:
        if self.days < 1:
            raise ConfigError(f"days: {self.days}; queries are kept for at least 1 day, or not at all (--digests)")
        if self.cap < 1:
            raise ConfigError(f"cap: {self.cap}; keep at least 1 query per account")

    @property
    def head(self) -> bytes:
        """Where the chain begins."""
        return hashlib.sha256(json_text(asdict(self), sort_keys=True).encode()).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What an account was told at a tie.

    Attributes:
        number: place in the chain, from 1.
        account: whose it is; None after erasure, and so are all but the last two.
        cell, first, second: where, see `sdb.answers.ties.Found`.
        answer: the class that was told.
        day: since 1970.
        salt: of the digest.
        query: SHA-256 of the query, see `query_bytes`.
        sealed: the query, encrypted; None where it is not kept.
        digest: of all this but the encrypted query.
        head: of the chain up to here.
    """

    number: int
    account: str | None
    cell: int
    first: int
    second: int
    answer: int
    day: int
    salt: bytes | None
    query: bytes | None
    sealed: bytes | None
    digest: bytes
    head: bytes


def query_bytes(image: np.ndarray) -> bytes:
    """A query (C, H, W) without loss: its type and shape, then its values, pixels that came from bytes as bytes.

    Its SHA-256 is what an entry names it by, so the same pixels give the same bytes on every platform.
    """
    pixels = np.rint(image * 255).astype(np.uint8)
    same = np.array_equal(pixels / np.float32(255), image)
    values = pixels if same else image.astype("<f4")
    head = " ".join([values.dtype.str, *map(str, values.shape)])
    return head.encode() + b"\n" + np.ascontiguousarray(values).tobytes()


def image_of(data: bytes) -> np.ndarray:
    """The image float32 (C, H, W) in [0, 1] that `query_bytes` wrote."""
    head, _, values = data.partition(b"\n")
    kind, *shape = head.decode().split(" ")
    if kind not in ("|u1", "<f4"):
        raise ValueError(f"values of type {kind!r}")
    image = np.frombuffer(values, kind).reshape([int(each) for each in shape])
    return image / np.float32(255) if kind == "|u1" else image.astype(np.float32)


def digest_of(entry: Entry) -> bytes:
    """Of all that an entry says but its encrypted query, salted."""
    fields: dict[str, Any] = {
        name: getattr(entry, name) for name in ("account", "cell", "first", "second", "answer", "day")
    }
    text = json_text(fields | {"query": (entry.query or b"").hex()}, sort_keys=True)
    return hashlib.sha256((entry.salt or b"") + text.encode()).digest()
