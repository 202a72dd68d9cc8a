"""Files from outside: only regular ones, of bounded size, and JSON of one meaning, whoever reads them."""

import errno
import json
import os
import pwd
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdb import config
from sdb.audit.archive import Folder
from sdb.audit.defences.defence import read_done
from sdb.box.box import Box
from sdb.box.signing import SigningKey, read_public, sign_box, verify_box
from sdb.data import parquet
from sdb.data.image_cache import ImageCache
from sdb.data.listing import Listing
from sdb.errors import ConfigError, SDBError
from sdb.keys import Key, Owner
from sdb.models.bare import read_reference
from sdb.models.checkpoint import load_classifier, read_tensors
from sdb.models.pretrained import normalisation_beside
from sdb.remote.answer_cache import AnswerCache
from sdb.report.files import load_claim
from sdb.runtime import JSON_LIMIT, check_regular, expand, open_regular, parse_json, read_bytes
from sdb.service.watch.limits import LimitSet
from sdb.service.watch.profile import Profile
from sdb.service.watch.store import SqliteStore
from sdb.service.watch.tokens import TokenFile

# Every reader of a path that a user names, and what the path's last part must be called, if anything.
READERS = {
    "box": (Box.load, "a.box"),
    "box archive": (Box.load, "a.zip"),
    "manifest": (lambda path: Box.load(path.parent), "box.json"),
    "signed box": (lambda path: verify_box(path, SigningKey.generate().public), "a.box"),
    "box to sign": (lambda path: sign_box(path, SigningKey.generate()), "a.zip"),
    "key": (Key.load, "key.json"),
    "owner": (Owner.load, "owner.json"),
    "signing key": (SigningKey.load, "signing.json"),
    "public key": (read_public, "signing.pub"),
    "checkpoint": (read_tensors, "last.safetensors"),
    "teacher": (load_classifier, "teacher.safetensors"),
    "run's teacher": (lambda path: load_classifier(path.parent), "last.safetensors"),
    "reference's checkpoint": (read_reference, "best_model.tar"),
    "bare weights": (read_reference, "bare.safetensors"),
    "reference's teacher": (
        lambda path: load_classifier(path, model_name="net", num_classes=10, image_shape=(1, 8, 8)),
        "best_model.tar",
    ),
    "parameters": (config.read_json, "params.json"),
    "claim": (load_claim, "claim.json"),
    "limits": (LimitSet.load, "limits.json"),
    "profile": (Profile.load, "profile.json"),
    "tokens": (TokenFile, "tokens.db"),
    "tokens to make": (lambda path: TokenFile(path, create=True), "tokens.db"),
    "counts": (SqliteStore, "watch.db"),
    "answers": (lambda path: AnswerCache(path, b"x" * 16).find([b"y"], 10), "answers.db"),
    "audit's cell": (
        lambda path: Folder(path.parent.parent.parent).result("seed-0/references/references"),
        "seed-0/references/references.json",
    ),
    "image": (lambda path: Listing(path.parent, ["1.png"], np.zeros(1)).read(0), "1.png"),
    "parquet's image": (lambda path: parquet._read(path, "row 3"), "1.png"),
    "defence": (lambda path: read_done(path.parent), "defence.json"),
}
# What these readers look for by `is_file`, and take for missing where it is a pipe.
PARTS = {"preprocessor": (lambda path: normalisation_beside(path.parent, 3), "preprocessor_config.json")}


@pytest.fixture(autouse=True)
def no_hang():
    """Whoever waits for a pipe is woken and fails."""

    def wake(*_):
        raise TimeoutError("waited for a file")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def place_of(tmp_path, name):
    path = tmp_path / "place" / name
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path, name):
    read, last = READERS[name]
    path = place_of(tmp_path, last)
    os.mkfifo(path, 0o600)
    with pytest.raises(SDBError):  # a hang without the check: nobody writes to it
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(SDBError):
        read(path)


@pytest.mark.parametrize("name", READERS | PARTS)
def test_a_sparse_file_of_100_gigabytes_is_refused_unread(tmp_path, name):
    read, last = (READERS | PARTS)[name]
    path = place_of(tmp_path, last)
    path.touch(mode=0o600)
    os.truncate(path, 100_000_000_000)
    with pytest.raises(SDBError) as refused:
        read(path)
    assert "100,000,000,000 bytes, and at most " in str(refused.value)


MADE_WHERE_MISSING = ("tokens to make", "counts", "answers")


def test_a_name_that_no_file_has_is_refused_in_words(tmp_path):
    for name, (read, last) in READERS.items():
        if "/" in last or name in MADE_WHERE_MISSING:
            continue
        for path in (tmp_path / "missing" / last, tmp_path / f"null\0byte{last}"):
            with pytest.raises(SDBError):
                read(path)


def test_what_may_be_read_is_read(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path, 5) == read_bytes(tmp_path / "link", 5) == b"12345"
    assert check_regular(path, 5) == 5
    with open_regular(path, 5) as file:
        assert file.read() == b"12345"
    os.mkfifo(tmp_path / "pipe")
    for limit, place, number in (
        (5, tmp_path / "pipe", errno.EINVAL),
        (4, path, errno.EFBIG),
        (5, tmp_path, errno.EISDIR),
        (5, tmp_path / "b", errno.ENOENT),
    ):
        with pytest.raises(OSError) as refused:
            read_bytes(place, limit)
        assert refused.value.errno == number


# --- JSON ------------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64) + 1, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_json_means_what_the_library_says(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped)
    assert parse_json(text) == parse_json(text.encode()) == parse_json(text, finite=False) == json.loads(text)


AMBIGUOUS = {
    "twice": b'{"a": 1, "a": 1}',
    "twice, inside": b'[{"b": {"a": 1, "c": 2, "a": 3}}]',
    "twice, escaped": b'{"a": 1, "\\u0061": 2}',
    "half a pair": b'["\\ud800"]',
    "half a pair as a name": b'{"\\udfff": 1}',
    "half a pair, in capitals": b'{"a": ["\\uDC80x"]}',
    "deep": b"[" * 70 + b"]" * 70,
    "deep objects": b'{"a":' * 70 + b"1" + b"}" * 70,
    "deeper than any stack": b"[" * 10**6,
    "an integer of thousands of digits": b"9" * 5000,
    "an integer of 65 bits": str(2**64).encode(),
    "not UTF-8": b'"\xff"',
    "UTF-16": '"a"'.encode("utf-16"),
    "nothing": b"",
}
NOT_FINITE = {name: name.encode() for name in ("NaN", "Infinity", "-Infinity", "1e999", "[-1e999]")}


@pytest.mark.parametrize("name", AMBIGUOUS | NOT_FINITE)
def test_json_of_two_meanings_is_refused(name):
    with pytest.raises(ValueError):
        parse_json((AMBIGUOUS | NOT_FINITE)[name])
    if name in NOT_FINITE:
        parse_json(NOT_FINITE[name], finite=False)
    else:
        with pytest.raises(ValueError):
            parse_json(AMBIGUOUS[name], finite=False)


@pytest.mark.parametrize(
    "name", ["manifest", "key", "owner", "signing key", "parameters", "claim", "limits", "profile"]
)
def test_readers_refuse_such_json_in_words(tmp_path, name):
    read, last = READERS[name]
    path = place_of(tmp_path, last)
    for data in AMBIGUOUS.values():
        path.touch(mode=0o600)
        path.write_bytes(data)
        with pytest.raises(SDBError):
            read(path)


def test_parameters_named_twice_are_refused_by_name(tmp_path):
    (tmp_path / "params.json").write_text('{"epochs": 1, "epochs": 100}')
    with pytest.raises(ConfigError, match="'epochs' is given twice"):
        config.load(tmp_path, "train")


def test_limits_are_what_is_said(tmp_path):
    path = tmp_path / "params.json"
    path.write_bytes(b"{}" + b" " * (JSON_LIMIT - 2))
    assert config.read_json(path) == {}
    path.write_bytes(b"{}" + b" " * (JSON_LIMIT - 1))
    with pytest.raises(ConfigError, match=r"16,777,217 bytes, and at most 16,777,216"):
        config.read_json(path)


# --- no home ---------------------------------------------------------------------------------------------------------


def nobody():
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return next(number for number in range(54321, 60000) if number not in taken)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user without an account")
def test_without_home_and_account_images_are_decoded_into_memory():
    code = """
import numpy as np, sdb.runtime, os
from sdb.data import image_cache
from sdb.data.source import Decoding, Part
assert not sdb.runtime.has_home()
images, labels = np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4), np.array([0, 1, 0])
part = Part((), {}, lambda: Decoding(3, iter([(images, labels)])))
kept = image_cache.ImageCache()
got = kept.images("x", part)
assert np.array_equal(got.images, images) and np.array_equal(got.labels, labels)
assert kept.stats(got)
assert not os.path.exists("~")
try:
    sdb.runtime.expand("~/data")
except sdb.errors.ConfigError as error:
    print(error)
"""
    number = nobody()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        user=number,
        group=number,
        extra_groups=[],
        cwd="/",
    )
    assert (done.returncode, done.stdout) == (
        0,
        "~/data: ~ stands for a home folder, and there is none; give the whole path\n",
    ), done.stderr
    assert "SDB_CACHE" in done.stderr


def test_a_home_that_is_there_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SDB_CACHE", raising=False)
    assert ImageCache().folder == tmp_path / ".cache" / "sdb"
    assert expand("~/x") == tmp_path / "x"
    with pytest.raises(ConfigError, match="give the whole path"):
        expand("~nobody-of-this-name/x")
