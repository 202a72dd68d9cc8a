"""Queries that an owner keeps outside the ledger: read from files, found by their digests."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from sdb.answers.entries import query_bytes
from sdb.errors import DataError
from sdb.tracing.kept import find_queries, read_queries


def digest(query):
    return hashlib.sha256(query_bytes(query)).digest()


def test_images_of_bytes_are_found_as_fractions_and_as_they_are():
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    as_asked, as_bytes = digest(pixels[0] / np.float32(255)), digest(np.arange(3, dtype=np.uint8))
    found = find_queries([*pixels, np.arange(3, dtype=np.uint8)], {as_asked, as_bytes})
    assert set(found) == {as_asked, as_bytes}
    assert found[as_asked].dtype == np.float32
    assert found[as_bytes].dtype == np.uint8


def test_files_of_queries(tmp_path):
    images = np.random.default_rng(0).random((3, 1, 2, 2), np.float32)
    np.save(tmp_path / "q.npy", images)
    assert [digest(each) for each in read_queries(tmp_path / "q.npy")] == [digest(each) for each in images]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, ["one", "two\nlines", "drei ü"])))
    assert list(read_queries(tmp_path / "q.jsonl")) == ["one", "two\nlines", "drei ü"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.png", b"", "give queries as .npy"),
        ("q.npy", b"nonsense", "cannot be read as queries"),
        ("q.npy", b"", "cannot be read as queries"),
        ("q.jsonl", b'"one"\n{"a": 1}\n', "line 2 is no JSON text"),
        ("q.jsonl", b'"one"\n\n', "line 2 is no JSON text"),
        ("q.jsonl", b"[" * 100_000, "line 1 is no JSON text"),
        ("q.jsonl", b"", "it is empty"),
        ("q.jsonl", b"\xff\xfe", "cannot be read as queries"),
        ("gone.npy", None, "cannot be read as queries"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_queries(tmp_path / name))


def test_code_in_a_file_of_arrays_is_not_run(tmp_path):
    np.save(tmp_path / "q.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read as queries"):
        list(read_queries(tmp_path / "q.npy"))


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array(3.0), np.zeros((2, 2), complex), np.array(["a"])])
def test_what_are_no_rows_of_numbers_is_refused(tmp_path, array):
    np.save(tmp_path / "q.npy", array)
    with pytest.raises(DataError, match=r"q\.npy: .*no array of numbers"):
        list(read_queries(tmp_path / "q.npy"))
    np.savez(tmp_path / "z.npz", array)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    with pytest.raises(DataError, match=r"z\.npy: .*no array of numbers"):
        list(read_queries(tmp_path / "z.npy"))
