"""Keys: the pattern is a pure function of the secret, files are safe, and the secret never leaks."""

import copy
import hashlib
import hmac
import json
import logging
import os
import pickle
import resource
import stat
import time
import traceback

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb import runtime
from sdb.errors import ConfigError, KeyFileError
from sdb.keys import Key, Owner, derive

SECRET = bytes(range(32))
KEY = Key(SECRET)
GOLDEN_ID = "8e1479f16f5bbc9416f039d75329a17c"
GOLDEN_PATTERN = "15a33cb033c79fde18f78d84c197c88b"
secrets = st.binary(min_size=32, max_size=32)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 16), st.integers(1, 16))


def hkdf(secret, info, length):
    """RFC 5869 with SHA-256 and no salt, from hmac alone."""
    pseudo_random = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    result, block, number = b"", b"", 1
    while len(result) < length:
        block = hmac.new(pseudo_random, block + info + bytes([number]), hashlib.sha256).digest()
        result, number = result + block, number + 1
    return result[:length]


# --- pattern ---------------------------------------------------------------------------------------------------------


def test_pattern_and_id_of_a_fixed_secret_are_pinned():
    # Bytes that files and boxes out there depend on: if this fails, keys of the past open nothing any more.
    assert KEY.id == GOLDEN_ID
    assert KEY.pattern((1, 2, 8)).tobytes().hex() == GOLDEN_PATTERN


@given(secrets, shapes)
@settings(max_examples=40, deadline=None)
def test_pattern_is_shake_256_of_a_seed_derived_by_hkdf(secret, shape):
    seed = hkdf(secret, "sdb/1/pattern/{}x{}x{}".format(*shape).encode(), 32)
    expected = hashlib.shake_256(seed).digest(shape[0] * shape[1] * shape[2])
    pattern = Key(secret).pattern(shape)
    assert pattern.dtype == np.uint8
    assert pattern.shape == shape
    assert pattern.tobytes() == expected


@given(secrets, shapes, st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_no_global_random_state_has_a_part_in_the_pattern(secret, shape, state):
    first = Key(secret).pattern(shape)
    np.random.seed(state)
    torch.manual_seed(state)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    np.testing.assert_array_equal(Key(secret).pattern(shape), first)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_pattern_values_are_uniform():
    counts = np.bincount(KEY.pattern((3, 128, 128)).ravel(), minlength=256)
    expected = counts.sum() / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 370  # 255 degrees of freedom: mean 255, standard deviation 23


def test_patterns_of_other_shapes_and_secrets_are_unrelated():
    large = KEY.pattern((1, 64, 64)).ravel()
    others = {
        "smaller": KEY.pattern((1, 32, 32)).ravel(),
        "turned": KEY.pattern((1, 128, 32)).ravel(),
        "one bit of the secret": Key(bytes([1]) + SECRET[1:]).pattern((1, 64, 64)).ravel(),
    }
    for name, other in others.items():
        size = min(len(large), len(other))
        assert np.mean(large[:size] == other[:size]) < 0.02, name
        assert abs(np.corrcoef(large[:size], other[:size])[0, 1]) < 0.1, name


def test_the_pattern_follows_from_the_secret_alone_and_the_id_from_all():
    others = [Key(SECRET, blend=0.5), Key(SECRET, scope="hospital")]
    for other in others:
        np.testing.assert_array_equal(other.pattern((1, 8, 8)), KEY.pattern((1, 8, 8)))
    assert len({key.id for key in (KEY, *others, Key(SECRET, kind="weight"))}) == 4


def test_generated_keys_differ_whatever_the_seeds():
    made = []
    for _ in range(3):
        np.random.seed(0)
        torch.manual_seed(0)
        made.append(Key.generate())
    assert len({key.secret for key in made}) == 3
    assert len({key.id for key in made}) == 3
    assert all(len(key.secret) == 32 for key in made)


def test_a_generated_key_is_of_the_recommended_kind_unless_another_is_named():
    assert [Key.generate().kind, Key.generate("weight").kind, Key.generate("image").kind] == ["weight"] * 2 + [
        "image"
    ]
    key = Key.generate("image", blend=0.5, scope="hospital")
    assert (key.blend, key.scope) == (0.5, "hospital")
    with pytest.raises(ConfigError, match=r"key kind 0\.5"):
        Key.generate(0.5)


@given(secrets)
@settings(max_examples=40, deadline=None)
def test_an_id_is_32_hexadecimal_digits_derived_under_its_own_label(secret):
    assert Key(secret).id == hkdf(secret, b"sdb/1/id/image/0.9/", 16).hex()
    assert len(bytes.fromhex(Key(secret).id)) == 16
    assert Key(secret).id not in (secret.hex(), hashlib.sha256(secret).hexdigest()[:32])


@given(secrets, st.text(max_size=20), st.text(max_size=20), st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_derived_bytes_follow_the_standard_and_differ_by_label(secret, first, second, length):
    assert derive(secret, first, length) == hkdf(secret, f"sdb/1/{first}".encode(), length)
    assert (derive(secret, first) == derive(secret, second)) == (first == second)


# --- embedding -------------------------------------------------------------------------------------------------------


@given(secrets, st.floats(0.01, 1.0), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_keyed_image_is_the_blend_of_image_and_pattern(secret, blend, seed):
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    keyed = Key(secret, blend).embed(images)
    pattern = Key(secret).pattern((3, 4, 5))
    for n, c, h, w in np.ndindex(2, 3, 4, 5):
        expected = blend * float(images[n, c, h, w]) + (1 - blend) * int(pattern[c, h, w]) / 255
        assert float(keyed[n, c, h, w]) == pytest.approx(expected, abs=1e-12)


@given(st.floats(0.0, 1.0, exclude_min=True), st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_keyed_images_are_still_images(blend, value):
    images = torch.full((1, 3, 16, 16), value)
    keyed = Key(SECRET, blend).embed(images)
    assert keyed.shape == images.shape
    assert keyed.dtype == images.dtype
    assert keyed.min() >= 0
    assert keyed.max() <= 1


def test_embedding_changes_neither_the_images_nor_their_gradient_path():
    images = torch.rand(2, 1, 4, 4, requires_grad=True)
    before = images.detach().clone()
    Key(SECRET, 0.5).embed(images).sum().backward()
    assert torch.equal(images.detach(), before)
    torch.testing.assert_close(images.grad, torch.full_like(images, 0.5))


@pytest.mark.parametrize("blend", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_a_blend_out_of_range_is_refused(blend):
    with pytest.raises(ConfigError, match="key_blend"):
        Key(SECRET, blend)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(length):
    with pytest.raises(ConfigError, match=f"32 bytes, this one has {length}"):
        Key(bytes(length))


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'image' nor 'weight'"):
        Key(SECRET, kind="sound")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return tmp_path / "key.json"


def rewrite(path, **changes):
    """Change fields of a key file; None removes one."""
    body = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in body.items() if value is not None}))


@given(secrets, st.floats(0.001, 1.0), st.sampled_from(["image", "weight"]), st.text(max_size=20))
@settings(max_examples=20, deadline=None)
def test_a_saved_key_loads_as_itself(tmp_path_factory, secret, blend, kind, scope):
    path = tmp_path_factory.mktemp("keys") / "deep" / "key.json"
    Key(secret, blend, kind, scope).save(path)
    assert Key.load(path) == Key(secret, blend, kind, scope)


def test_a_key_file_is_its_owner_s_alone_and_says_what_it_is(path):
    previous = os.umask(0)
    try:
        KEY.save(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    body = json.loads(path.read_text())
    assert (body["sdb_key"], body["kind"], body["id"], body["blend"]) == (1, "image", KEY.id, 0.9)
    assert [p.name for p in path.parent.iterdir()] == ["key.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_a_key_file_that_others_can_touch_is_refused(path, mode):
    KEY.save(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        Key.load(path)


def test_a_key_file_is_not_overwritten_unless_told(path):
    KEY.save(path)
    with pytest.raises(KeyFileError, match="exists"):
        Key.generate().save(path)
    assert Key.load(path) == KEY
    other = Key.generate()
    other.save(path, overwrite=True)
    assert Key.load(path) == other


def test_a_missing_key_file_is_named(path):
    with pytest.raises(KeyFileError, match=r"key\.json"):
        Key.load(path)


def test_a_folder_is_not_a_key_file(tmp_path):
    with pytest.raises(KeyFileError, match="cannot read"):
        Key.load(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "0" * 32},
        {"secret": "0" * 64},
        {"blend": 0.8},
        {"scope": "somebody else"},
        {"scope": 5},
        {"kind": "weight"},
    ],
    ids=str,
)
def test_an_altered_field_is_refused(path, changes):
    KEY.save(path)
    rewrite(path, **changes)
    with pytest.raises(KeyFileError, match="altered"):
        Key.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": None},
        {"id": None},
        {"blend": None},
        {"kind": None},
        {"sdb_key": None},
        {"secret": "00"},
        {"secret": "not hexadecimal"},
        {"secret": 5},
        {"blend": "much"},
        {"blend": 0},
        {"blend": 1.5},
        {"blend": 10**400},
        {"blend": float("nan")},
        {"blend": []},
        {"id": 7},
        {"sdb_key": 2},
        {"sdb_key": "1"},
        {"kind": "owner"},
        {"kind": []},
        {"scope": None},
        {"scope": "\ud800"},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_a_key_file_with_a_wrong_field_is_refused(path, changes):
    KEY.save(path)
    rewrite(path, **changes)
    with pytest.raises(KeyFileError):
        Key.load(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"key"', "{}", "[" * 100_000, "\ufeff{}"], ids=range(9)
)
def test_what_is_not_a_key_file_is_refused(path, text):
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError):
        Key.load(path)


def test_a_newer_version_says_to_update(path):
    KEY.save(path)
    rewrite(path, sdb_key=2)
    with pytest.raises(KeyFileError, match="update sdb"):
        Key.load(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_key_file_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("keys") / "key.json"
    KEY.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
    with pytest.raises(KeyFileError):
        Key.load(path)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_never_gives_another_key(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("keys") / "key.json"
    KEY.save(path)
    damaged = bytearray(path.read_bytes())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    try:
        loaded = Key.load(path)
    except KeyFileError:
        return
    assert loaded == KEY


# --- the secret stays secret -----------------------------------------------------------------------------------------


def leaks(text):
    """Whether a text holds the secret in any usual spelling."""
    spellings = (
        SECRET.hex(),
        SECRET.hex().upper(),
        repr(SECRET)[2:-1],
        str(list(SECRET))[1:-1],
        SECRET.decode("latin-1"),
    )
    return any(spelling in text for spelling in spellings)


def test_the_check_for_leaks_finds_them():
    assert leaks(repr(SECRET))
    assert leaks(f"x{SECRET.hex()}x")
    assert leaks(str(list(SECRET)))


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format, lambda key: f"{[key]}"])
def test_no_text_of_a_key_holds_the_secret(show):
    assert not leaks(show(KEY))


def test_a_logged_key_does_not_show_the_secret(caplog):
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("parameters %s %r", {"key": KEY}, KEY)
    assert "Key(" in caplog.text
    assert not leaks(caplog.text)


def test_no_error_of_a_damaged_key_file_holds_the_secret(path):
    KEY.save(path)
    whole = path.read_text()
    damages = [
        whole[:-3],
        whole.replace('"image"', '"other"'),
        whole.replace("0.9", "9"),
        whole.replace(KEY.id, "0" * 32),
        whole.replace('"blend"', '"blond"'),
        whole.replace(SECRET.hex(), SECRET.hex() + "0"),
        whole.replace(SECRET.hex(), SECRET.hex() + "00"),
    ]
    for damage in damages:
        path.write_text(damage)
        with pytest.raises(KeyFileError) as caught:
            Key.load(path)
        shown = "".join(traceback.format_exception(caught.value))
        again = pickle.loads(pickle.dumps(caught.value))
        for text in (str(caught.value), repr(caught.value), shown, "".join(traceback.format_exception(again))):
            assert not leaks(text)


def test_a_key_cannot_be_changed_and_copies_are_equal():
    with pytest.raises(AttributeError):
        KEY.blend = 0.1
    assert copy.deepcopy(KEY) == KEY


# --- hostile files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    path = tmp_path_factory.mktemp("encrypted") / "key.json"
    before = os.environ.get("SDB_SCRYPT_LOG_N")
    os.environ["SDB_SCRYPT_LOG_N"] = "4"
    try:
        KEY.save(path, passphrase="correct")
    finally:
        del os.environ["SDB_SCRYPT_LOG_N"]
        if before is not None:
            os.environ["SDB_SCRYPT_LOG_N"] = before
    return path.read_text()


@pytest.mark.parametrize(
    "costs",
    [
        *({"log_n": value} for value in (19, 20, 2**40, 0, -1, 4.0, True, "4", None, [4])),
        *({"r": value} for value in (16, 2**30, 0, 8.0, "8", None)),
        *({"p": value} for value in (2, 4, 2**30, 0, True, None)),
        *({"salt": value} for value in ("", "0", "zz", 7, None, "00 00")),
    ],
    ids=str,
)
def test_a_file_cannot_ask_for_more_work_than_ours_do(path, encrypted, costs):
    body = json.loads(encrypted)
    body["scrypt"] |= costs
    path.touch(mode=0o600)
    path.write_text(json.dumps(body))
    started = time.process_time()
    with pytest.raises(KeyFileError):
        Key.load(path, passphrase="correct")
    assert time.process_time() - started < 10  # 114 s before it was bounded
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2**21  # KiB; it was 2 GiB


@pytest.mark.parametrize("constant", ["Infinity", "NaN", "1e999"])
def test_an_infinite_cost_is_refused(path, encrypted, constant):
    path.touch(mode=0o600)
    path.write_text(encrypted.replace('"log_n": 4', f'"log_n": {constant}'))
    assert constant in path.read_text()
    with pytest.raises(KeyFileError, match="not an sdb key file"):
        Key.load(path, passphrase="correct")


def test_an_encrypted_file_may_be_read_by_others_a_plain_one_must_not_be_made_so(path, encrypted, monkeypatch):
    path.write_text(encrypted)
    path.chmod(0o777)
    assert Key.load(path, passphrase="correct") == KEY
    path.unlink()
    made = runtime.write_atomic
    monkeypatch.setattr(
        "sdb.keys.keyfile.write_atomic", lambda p, data, mode: made(p, data, 0o777)
    )  # as vfat shows it
    with pytest.raises(KeyFileError, match="keeps no permissions"):
        KEY.save(path)
    assert not path.exists()


@pytest.mark.parametrize("wanted", ["19", "0", "-1", "x", "", "1e3"])
def test_no_file_is_written_that_would_not_be_read(path, monkeypatch, wanted):
    monkeypatch.setenv("SDB_SCRYPT_LOG_N", wanted)
    with pytest.raises(ConfigError, match="SDB_SCRYPT_LOG_N"):
        KEY.save(path, passphrase="x")


def test_a_passphrase_that_is_not_utf8_is_its_bytes(path, monkeypatch):
    monkeypatch.setenv("SDB_SCRYPT_LOG_N", "4")
    KEY.save(path, passphrase=os.fsdecode(b"caf\xe9"))
    assert Key.load(path, passphrase=os.fsdecode(b"caf\xe9")) == KEY
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        Key.load(path, passphrase="caf\u00e9")


@pytest.mark.parametrize("kind", ["image", "weight"])
@pytest.mark.parametrize("blend", [0, -1, 1.5, 7, float("nan"), float("inf"), "0.9", None, [], 10**400])
def test_a_blend_out_of_range_is_refused_for_every_kind(path, kind, blend):
    with pytest.raises(ConfigError, match="key_blend"):
        Key(KEY.secret, blend, kind)
    Key(KEY.secret, 0.5, kind).save(path)
    rewrite(path, blend=blend)
    with pytest.raises(KeyFileError):
        Key.load(path)


@pytest.mark.parametrize("text", ["\ud800", "x\udcff", 7, None, b"x"], ids=repr)
def test_a_scope_or_a_partner_that_is_no_text_is_refused(text):
    with pytest.raises(ConfigError):
        Key(KEY.secret, scope=text)
    with pytest.raises(ConfigError):
        Owner(KEY.secret).partner(text)


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(
        ["\ud800", "weight", "image", "owner", "0" * 32, "0" * 64, 1, 1.0, 2**64, 10**5000 // 10**4990]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_a_field_holds_the_file_means_the_same_or_is_refused(tmp_path_factory, encrypted, data):
    place = tmp_path_factory.mktemp("fields")
    KEY.save(place / "plain.json")
    Owner(KEY.secret).save(place / "owner.json")
    (place / "encrypted.json").touch(mode=0o600)
    (place / "encrypted.json").write_text(encrypted)
    name, load, meant = data.draw(
        st.sampled_from(
            [
                ("plain.json", Key.load, KEY),
                ("owner.json", Owner.load, Owner(KEY.secret)),
                ("encrypted.json", lambda path: Key.load(path, passphrase="correct"), KEY),
            ]
        )
    )
    body = json.loads((place / name).read_text())
    inside = body["scrypt"] if "scrypt" in body and data.draw(st.booleans()) else body
    field = data.draw(st.sampled_from([*sorted(inside), "another"]))
    if data.draw(st.booleans()):
        inside[field] = data.draw(odd)
    else:
        inside.pop(field, None)
    (place / name).write_text(json.dumps(body))
    try:
        loaded = load(place / name)
    except KeyFileError:
        return
    assert loaded == meant
