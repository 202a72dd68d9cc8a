"""Queries that an owner keeps outside the ledger, by their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from sdb.answers.entries import Query, query_bytes
from sdb.errors import DataError


def read_queries(path: Path) -> Iterator[Query]:
    """The queries of a file, one after the other.

    Args:
        path: .npy, an array whose rows are queries, such as images (N, C, H, W) in float32 in [0, 1] or in uint8, or
            .jsonl, a JSON text a line.

    Raises:
        DataError: it cannot be read, or is of another kind.
    """
    try:
        if path.suffix == ".npy":
            # Mapped, not read: a service's queries may be more than memory holds.
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(rows, np.ndarray) or not rows.size or not rows.ndim or rows.dtype.kind not in "fiub":
                raise ValueError("no array of numbers whose rows are queries")
            yield from rows
            return
        if path.suffix == ".jsonl":
            number = 0
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        query = json.loads(line)
                    except (ValueError, RecursionError):
                        query = None
                    if not isinstance(query, str):
                        raise ValueError(f"line {number} is no JSON text")
                    yield query
            if not number:
                raise ValueError("it is empty")
            return
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as queries ({error})") from None
    raise DataError(f"{path}: give queries as .npy, one a row, or as .jsonl, a JSON text a line")


def find_queries(queries: Iterable[Query], digests: Collection[bytes]) -> dict[bytes, Query]:
    """Those of the queries that digests name, by digest.

    Images of bytes are looked for as they are and as the fractions that a server of images was asked.
    """
    found: dict[bytes, Query] = {}
    for query in queries:
        forms = [query]
        if isinstance(query, np.ndarray) and query.dtype == np.uint8 and query.ndim == 3:
            forms.append(query / np.float32(255))
        for form in forms:
            digest = hashlib.sha256(query_bytes(form)).digest()
            if digest in digests:
                found[digest] = np.array(form) if isinstance(form, np.ndarray) else form
    return found
