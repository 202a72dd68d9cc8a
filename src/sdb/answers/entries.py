"""Entries of a ledger of ties: what they say, their digests, and queries as bytes."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sdb.errors import ConfigError, DataError
from sdb.runtime import json_text

MOST_DAYS = 36_500
LARGEST = 1 << 30  # bytes of a query
_KINDS = (int, str | None, *(int | None,) * 5, *(bytes | None,) * 3, bytes, bytes)
# JSON may hold halves of characters.
TEXT = ("utf-8", "surrogatepass")
# One input of a classifier: an image or another array, text, bytes, or several of these by name.
Query = Any


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
        if not 1 <= self.days <= MOST_DAYS:
            raise ConfigError(
                f"days: {self.days}; queries are kept for 1 to {MOST_DAYS} days, or not at all (--digests)"
            )
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


def query_bytes(query: Query) -> bytes:
    """A query without loss: an image, or whatever else a classifier was asked.

    Images are float32 (C, H, W); pixels that came from bytes are kept as bytes. Other arrays are kept as they are,
    little-endian; so are text, bytes, and several of these by name. The SHA-256 of this is what an entry names a query
    by, so the same query gives the same bytes on every platform.

    Raises:
        DataError: it is something else.
    """
    if isinstance(query, str):
        return b"text\n" + query.encode(*TEXT)
    if isinstance(query, bytes):
        return b"bytes\n" + query
    if isinstance(query, Mapping):
        parts = [each for name, value in query.items() for each in (name.encode(*TEXT), query_bytes(value))]
        return b"named\n" + b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    values = np.asarray(query)
    if not values.ndim and isinstance(values.item(), str | bytes):
        return query_bytes(values.item())
    if values.dtype.kind not in "fiub":
        raise DataError(f"a query of {values.dtype} cannot be kept: numbers, text and bytes can")
    if values.dtype == np.float32 and values.ndim == 3:
        with np.errstate(invalid="ignore"):
            pixels = np.rint(values * 255).astype(np.uint8)
        values = pixels if np.array_equal(pixels / np.float32(255), values) else values.astype("<f4")
        head = values.dtype.str
    else:
        values = values.astype(values.dtype.newbyteorder("<"))
        head = f"array {values.dtype.str}"
    return " ".join([head, *map(str, values.shape)]).encode() + b"\n" + np.ascontiguousarray(values).tobytes()


def query_of(data: bytes) -> Query:
    """The query that `query_bytes` wrote."""
    head, _, values = data.partition(b"\n")
    kind, *shape = head.decode().split(" ")
    if kind == "text":
        return values.decode(*TEXT)
    if kind == "bytes":
        return values
    if kind == "named":
        parts, begin = [], 0
        while begin < len(values):
            size = int.from_bytes(values[begin : begin + 8], "big")
            parts.append(values[begin + 8 : begin + 8 + size])
            begin += 8 + size
        return {name.decode(*TEXT): query_of(value) for name, value in zip(parts[::2], parts[1::2], strict=True)}
    if kind == "array":
        form = np.dtype(shape.pop(0))
        if form.kind not in "fiub":
            raise ValueError(f"values of type {form}")
        return np.frombuffer(values, form).reshape([int(each) for each in shape])
    if kind not in ("|u1", "<f4"):
        raise ValueError(f"values of type {kind!r}")
    image = np.frombuffer(values, kind).reshape([int(each) for each in shape])
    return image / np.float32(255) if kind == "|u1" else image.astype(np.float32)


def unpacked(data: bytes, digest: bytes | None) -> Query | None:
    """The query of this digest that was compressed; None where it is another one, or none at all."""
    try:
        stream = zlib.decompressobj()
        raw = stream.decompress(data, LARGEST)
        if stream.eof and hashlib.sha256(raw).digest() == digest:
            return query_of(raw)
    except (zlib.error, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        pass  # whoever writes a ledger's file may seal what he likes
    return None


def is_whole(row: Sequence[Any]) -> bool:
    """Whether a row of a ledger's file has values of the kinds that an entry has."""
    kinds = all(isinstance(value, each) for value, each in zip(row, _KINDS, strict=True))
    return kinds and (row[1] is None or None not in row[2:9])


def digest_of(entry: Entry) -> bytes:
    """Of all that an entry says but its encrypted query, salted."""
    fields: dict[str, Any] = {
        name: getattr(entry, name) for name in ("account", "cell", "first", "second", "answer", "day")
    }
    text = json_text(fields | {"query": (entry.query or b"").hex()}, sort_keys=True)
    return hashlib.sha256((entry.salt or b"") + text.encode()).digest()
