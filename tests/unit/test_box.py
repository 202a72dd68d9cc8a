"""Boxes: what is loaded is what was saved, anything else is refused, and no key is inside."""

import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes
from torch import nn

from sdb.box.box import MANIFEST, WEIGHTS, Box, BoxInfo, is_box
from sdb.box.boxfile import write_box_files
from sdb.config import WrapSettings
from sdb.errors import CheckpointError, KeyFileError, ModelError, SDBError, StorageError
from sdb.keys import Key
from sdb.models import ModelSpec, from_module
from sdb.wrapping.wrap import wrap

KEY = Key(bytes(range(100, 132)), blend=0.5)
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
REFUSED = (CheckpointError, ModelError)


@pytest.fixture(scope="module")
def box(few, make_net):
    return wrap(
        make_net(few), few, WrapSettings(method="sdb", epochs=1, batch_size=16, learning_rate=0.01), key=KEY
    )


@pytest.fixture(scope="module")
def nasty(few, make_net):
    return wrap(make_net(few), few, WrapSettings(method="nasty", epochs=1, batch_size=16, learning_rate=0.01))


@pytest.fixture(params=["model.box", "model.zip"])
def path(request, tmp_path):
    return tmp_path / request.param


def read_files(path):
    """The files of a box by name, folder or archive."""
    if path.is_dir():
        return {p.name: p.read_bytes() for p in path.iterdir()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_files(path, files, **how):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", **how) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)


def manifest_of(path):
    return json.loads(read_files(path)[MANIFEST])


def forge(path, changes=(), weights=None, drop=()):
    """Write the manifest again as an author who means harm would: with changes, and every digest right."""
    files = read_files(path)
    manifest = {k: v for k, v in (json.loads(files.pop(MANIFEST)) | dict(changes)).items() if k not in drop}
    del manifest["sdb_box"], manifest["files"], manifest["sha256"]
    if weights is not None:
        files[WEIGHTS] = weights
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_box_files(path, manifest, files)


def same_box(first, second):
    assert second.info == first.info
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# --- round trip ------------------------------------------------------------------------------------------------------


def test_a_loaded_box_is_the_saved_one_bit_for_bit(path, box):
    box.save(path)
    loaded = Box.load(path)
    same_box(box, loaded)
    assert loaded.classifier.spec == box.classifier.spec
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), box(IMAGES))
        assert torch.equal(loaded.unlock(KEY)(IMAGES), box.unlock(KEY)(IMAGES))


def test_saving_the_same_box_twice_gives_the_same_bytes(tmp_path, box):
    for suffix in (".box", ".zip"):
        box.save(tmp_path / f"a{suffix}")
        Box.load(tmp_path / f"a{suffix}").save(tmp_path / f"b{suffix}")
        assert read_files(tmp_path / f"a{suffix}") == read_files(tmp_path / f"b{suffix}")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_folder_and_archive_hold_the_same_files(tmp_path, box):
    box.save(tmp_path / "a.box")
    box.save(tmp_path / "a.zip")
    assert read_files(tmp_path / "a.box") == read_files(tmp_path / "a.zip")


def test_an_archive_unpacked_by_another_program_is_a_box(tmp_path, box):
    box.save(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    same_box(box, Box.load(tmp_path / "unpacked"))


def test_a_box_says_what_it_is(path, box, few):
    box.save(path)
    manifest = manifest_of(path)
    assert manifest["method"] == "sdb"
    assert manifest["class_names"] == list(few.class_names)
    assert manifest["key_ids"] == [KEY.id]
    assert manifest["parameters"]["key_blend"] == 0.5
    assert ModelSpec.from_json(manifest["model"]) == box.classifier.spec
    assert manifest["files"] == {WEIGHTS: hashlib.sha256(read_files(path)[WEIGHTS]).hexdigest()}


def test_a_box_is_recognised(path, box, tmp_path):
    box.save(path)
    assert is_box(path)
    assert not is_box(tmp_path)
    assert not is_box(tmp_path / "nothing")


def test_a_normalisation_travels_with_the_box(path, box, few):
    box.save(path)
    loaded = Box.load(path)
    torch.testing.assert_close(loaded.classifier.mean.flatten(), torch.tensor(few.mean))
    torch.testing.assert_close(loaded.classifier.std.flatten(), torch.tensor(few.std))


# --- keys ------------------------------------------------------------------------------------------------------------


def test_unlocking_is_asking_with_keyed_images(box):
    with torch.no_grad():
        torch.testing.assert_close(box.unlock(KEY)(IMAGES), box(KEY.embed(IMAGES)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(box.unlock(KEY)(IMAGES), box(IMAGES), atol=1e-3)


@pytest.mark.parametrize(
    "foreign", [Key(bytes(32), blend=0.5), Key(KEY.secret, blend=0.9), Key(KEY.secret, 0.5, "weight")], ids=repr
)
def test_a_foreign_key_is_refused(box, foreign):
    with pytest.raises(KeyFileError, match="another box") as caught:
        box.unlock(foreign)
    assert foreign.secret.hex() not in str(caught.value)


def test_anybody_may_try_a_key_and_gets_what_its_pattern_gives(box):
    foreign = Key(bytes(32), blend=0.5)
    with torch.no_grad():
        torch.testing.assert_close(box.attempt(foreign)(IMAGES), box(foreign.embed(IMAGES)), rtol=1e-4, atol=1e-5)


def test_a_nasty_box_has_no_keys(path, nasty):
    nasty.save(path)
    loaded = Box.load(path)
    assert loaded.info.key_ids == ()
    with pytest.raises(KeyFileError, match="has no keys"):
        loaded.unlock(KEY)


def test_nothing_of_the_key_is_in_the_files(path, box):
    box.save(path)
    files = read_files(path)
    raw = b"".join(files.values()) + (path.read_bytes() if path.is_file() else b"")
    pattern = KEY.pattern((1, 8, 8)).tobytes()
    offset = 0.5 * torch.from_numpy(KEY.pattern((1, 8, 8)).copy()).float() / 255
    secrets = {
        "secret": KEY.secret,
        "pattern": pattern[:16],
        "offset": offset.numpy().tobytes()[:32],
        "half of the secret": KEY.secret[:16],
    }
    for name, secret in secrets.items():
        for spelling in (secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode()):
            assert spelling not in raw, name
    assert KEY.id.encode() in raw  # the control: the search does find what is there


def test_nothing_of_the_key_is_in_the_state_of_an_unlocked_box(box):
    assert "offset" not in " ".join(box.unlock(KEY).state_dict())
    assert KEY.secret.hex() not in repr(box.unlock(KEY))
    assert KEY.secret.hex() not in repr(box)


# --- tampering -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory, box):
    folder = tmp_path_factory.mktemp("saved")
    box.save(folder / "a.box")
    box.save(folder / "a.zip")
    return folder


def refused(path):
    with pytest.raises(REFUSED):
        Box.load(path)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_flipped_byte_in_any_file_is_refused_or_changes_nothing(saved, box, tmp_path_factory, data):
    files = read_files(saved / "a.box")
    name = data.draw(st.sampled_from(sorted(files)))
    damaged = bytearray(files[name])
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "a.box"
    write_files(path, files | {name: bytes(damaged)})
    try:
        loaded = Box.load(path)
    except REFUSED:
        return
    assert name == MANIFEST  # there, one blank for another is the same manifest
    same_box(box, loaded)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_of_an_archive_is_refused_or_changes_nothing(saved, box, tmp_path_factory, data):
    damaged = bytearray((saved / "a.zip").read_bytes())
    # Half of the draws go to the directory at the end, where the archive's own fields are.
    last = data.draw(st.booleans())
    place = data.draw(st.integers(len(damaged) - 200 if last else 0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("flipped") / "a.zip"
    path.write_bytes(damaged)
    try:
        loaded = Box.load(path)
    except REFUSED:
        return
    same_box(box, loaded)


@pytest.mark.parametrize("flip", [1, 32, 64, 128])
def test_every_byte_of_an_archive_s_directory_may_be_flipped(saved, box, tmp_path, flip):
    whole = (saved / "a.zip").read_bytes()
    path = tmp_path / "a.zip"
    for place in [*range(60), *range(len(whole) - 180, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            loaded = Box.load(path)
        except REFUSED:
            continue
        same_box(box, loaded)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(saved, tmp_path_factory, data):
    files = read_files(saved / "a.box")
    name = data.draw(st.sampled_from(sorted(files)))
    end = data.draw(st.integers(0, len(files[name]) - 2))
    path = tmp_path_factory.mktemp("cut") / "a.box"
    write_files(path, files | {name: files[name][:end]})
    refused(path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_archive_is_refused(saved, tmp_path_factory, data):
    whole = (saved / "a.zip").read_bytes()
    path = tmp_path_factory.mktemp("cut") / "a.zip"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(path)


@pytest.mark.parametrize("name", [MANIFEST, WEIGHTS])
def test_a_missing_file_is_refused_by_name(path, box, name):
    box.save(path)
    write_files(path, {n: data for n, data in read_files(path).items() if n != name})
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Box.load(path)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "weights.safetensors.bak", "code.py"])
def test_a_file_that_the_manifest_does_not_name_is_refused(path, box, name):
    box.save(path)
    write_files(path, read_files(path) | {name: b"x"})
    with pytest.raises(CheckpointError, match=f"{name} is not part"):
        Box.load(path)


def test_a_folder_inside_a_box_is_refused(tmp_path, box):
    box.save(tmp_path / "a.box")
    (tmp_path / "a.box" / "inner").mkdir()
    refused(tmp_path / "a.box")


def test_a_name_that_leads_out_of_the_box_is_refused(path, box, tmp_path):
    (tmp_path / "outside").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    for name in ("../outside", str(tmp_path / "outside"), "a/../../outside", "a/b", ".."):
        box.save(path, overwrite=True)
        files = read_files(path)
        manifest = json.loads(files[MANIFEST])
        manifest["files"][name] = digest
        extra = {name: b"x"} if path.suffix == ".zip" else {}
        write_files(path, _with_digest(manifest) | {WEIGHTS: files[WEIGHTS]} | extra)
        with pytest.raises(CheckpointError, match=r"plain file name|is not part of this box"):
            Box.load(path)


def _with_digest(manifest):
    from sdb.box.boxfile import _digest

    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return {MANIFEST: json.dumps(body | {"sha256": _digest(body)}).encode()}


def test_a_compressed_archive_is_refused(tmp_path, box):
    box.save(tmp_path / "a.zip")
    write_files(tmp_path / "a.zip", read_files(tmp_path / "a.zip"), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="not compressed"):
        Box.load(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_names_a_file_twice_is_refused(tmp_path, box):
    box.save(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(WEIGHTS, archive.read(WEIGHTS))
    refused(tmp_path / "a.zip")


def test_a_manifest_that_is_too_large_is_refused(path, box):
    box.save(path)
    files = read_files(path)
    write_files(path, files | {MANIFEST: files[MANIFEST] + b" " * 2**24})
    with pytest.raises(CheckpointError, match=r"16,7\d\d,\d\d\d bytes, and at most 16,777,216"):
        Box.load(path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b"9" * 5000], ids=range(9)
)
def test_a_manifest_that_is_no_manifest_is_refused(path, box, text):
    box.save(path)
    write_files(path, read_files(path) | {MANIFEST: text})
    refused(path)


FIELDS = (
    "sdb_box",
    "id",
    "method",
    "parameters",
    "class_names",
    "key_kind",
    "key_ids",
    "slots",
    "owner_id",
    "model",
    "files",
    "sha256",
)


OTHER_VALUES = [None, 7, 1.5, "text", [], {}, [1], {"a": 1}, ["x"] * 10, [[]] * 10]


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in FIELDS for v in OTHER_VALUES if (n, v) != ("slots", {})], ids=repr
)
def test_a_field_of_another_value_is_refused(saved, tmp_path, name, value):
    files = read_files(saved / "a.box")
    manifest = json.loads(files[MANIFEST])
    assert manifest[name] != value
    write_files(tmp_path / "a.box", files | {MANIFEST: json.dumps(manifest | {name: value}).encode()})
    refused(tmp_path / "a.box")


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_left_out_is_refused(saved, tmp_path, name):
    files = read_files(saved / "a.box")
    manifest = json.loads(files[MANIFEST])
    del manifest[name]
    write_files(tmp_path / "a.box", files | {MANIFEST: json.dumps(manifest).encode()})
    refused(tmp_path / "a.box")


WRONG_TYPES = {
    "id": [None, 7, [], {}],
    "method": [None, 7, [], {}],
    "parameters": [None, 7, "x", []],
    "class_names": [None, 7, "0123456789", {}, [1] * 10, [None] * 10, [[]] * 10, ["x"] * 9],
    "key_kind": [None, 7, []],
    "key_ids": [None, 7, "x", {}, [1], [[]], [None]],
    "slots": [None, 7, "x", [], {"a": 1}, {"a": None}],
    "owner_id": [None, 7, []],
    "model": [None, 7, "net", [], {}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values], ids=repr
)
def test_a_field_of_the_wrong_type_is_refused_though_every_digest_is_right(saved, tmp_path, name, value):
    write_files(tmp_path / "a.box", read_files(saved / "a.box"))
    forge(tmp_path / "a.box", {name: value})
    refused(tmp_path / "a.box")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_forged_model_description_is_refused_or_fits(saved, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("forged") / "a.box"
    write_files(path, read_files(saved / "a.box"))
    model = manifest_of(path)["model"]
    name = data.draw(st.sampled_from(sorted(model)))
    number = st.integers(-2, 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    scalar = st.none() | st.booleans() | number | st.text(max_size=6)
    value = data.draw(
        scalar | st.lists(scalar, max_size=4) | st.dictionaries(st.text(max_size=5), scalar, max_size=2)
    )
    if model[name] == value:
        return
    forge(path, {"model": model | {name: value}})
    try:
        loaded = Box.load(path)
    except REFUSED:
        return
    # Only what leaves the weights as they are may pass: the record of how pictures become pixels.
    assert name in ("mean", "std", "arguments", "pictures")
    assert loaded.classifier.spec is not None


def test_weights_of_another_architecture_are_refused(saved, tmp_path, few, make_net):
    write_files(tmp_path / "a.box", read_files(saved / "a.box"))
    forge(tmp_path / "a.box", weights=to_bytes(dict(make_net(few, "mlp").state_dict())))
    with pytest.raises(CheckpointError, match="another architecture"):
        Box.load(tmp_path / "a.box")


@pytest.mark.parametrize("weights", [b"", b"x", b"\x00" * 100])
def test_weights_that_are_none_are_refused(saved, tmp_path, weights):
    write_files(tmp_path / "a.box", read_files(saved / "a.box"))
    forge(tmp_path / "a.box", weights=weights)
    with pytest.raises(CheckpointError, match="safetensors"):
        Box.load(tmp_path / "a.box")


@pytest.mark.parametrize("version", [2, 0, "1", None, [1]])
def test_another_version_says_so(saved, tmp_path, version):
    files = read_files(saved / "a.box")
    manifest = json.loads(files[MANIFEST]) | {"sdb_box": version}
    write_files(tmp_path / "a.box", _with_digest(manifest) | {WEIGHTS: files[WEIGHTS]})
    with pytest.raises(CheckpointError, match="this sdb reads 1"):
        Box.load(tmp_path / "a.box")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"no archive")])
def test_what_is_no_box_is_refused(path, make):
    make(path)
    refused(path)


# --- code ------------------------------------------------------------------------------------------------------------


def linear(num_classes):
    """A factory, as a user may have one."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


@pytest.fixture
def factory_box(monkeypatch, tmp_path, few):
    (tmp_path / "factory_of_a_user.py").write_text(
        "from pathlib import Path\nfrom torch import nn\nPath(__file__).with_suffix('.ran').touch()\n"
        "def linear(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "factory_of_a_user", raising=False)
    spec = ModelSpec("factory_of_a_user:linear", {}, 10, few.image_shape, few.mean, few.std)
    return Box(spec.build(), BoxInfo("nasty", {}, few.class_names))


def test_a_factory_runs_only_when_it_is_allowed(path, factory_box, tmp_path, monkeypatch):
    factory_box.save(path)
    mark = tmp_path / "factory_of_a_user.ran"
    mark.unlink()
    monkeypatch.delitem(sys.modules, "factory_of_a_user")
    with pytest.raises(ModelError, match="not allowed"):
        Box.load(path)
    assert not mark.exists()
    same_box(factory_box, Box.load(path, network="factory_of_a_user:linear"))
    assert mark.exists()


def test_a_box_around_a_module_object_is_loaded_into_an_instance_that_the_caller_makes(path, few):
    module = from_module(linear(10), 10, few.image_shape, few.mean, few.std)
    box = Box(module, BoxInfo("nasty", {}, few.class_names))
    box.save(path)
    with pytest.raises(ModelError, match=r"Sequential.*network=Net\(\)"):
        Box.load(path)
    same_box(box, Box.load(path, network=linear(10)))
    with pytest.raises(SDBError, match="another architecture|returned"):
        Box.load(path, network=linear(9))
    with pytest.raises(SDBError, match="another architecture"):
        Box.load(path, network=nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 10)))
    with pytest.raises(ModelError, match="give an nn.Module"):
        Box.load(path, network=nn.Linear)


@pytest.mark.parametrize("count", [0, 9, 11])
def test_a_class_name_for_each_class(few, make_net, count):
    with pytest.raises(ModelError, match=f"{count} class names for 10 classes"):
        Box(make_net(few), BoxInfo("nasty", {}, ("x",) * count))


def test_two_boxes_have_two_names(few, make_net):
    names = {Box(make_net(few), BoxInfo("nasty", {}, few.class_names)).info.id for _ in range(3)}
    assert len(names) == 3


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_box_is_not_overwritten_unless_told(path, box, nasty):
    box.save(path)
    with pytest.raises(CheckpointError, match="exists"):
        nasty.save(path)
    same_box(box, Box.load(path))
    nasty.save(path, overwrite=True)
    same_box(nasty, Box.load(path))
    assert list(path.parent.iterdir()) == [path]


def test_overwriting_never_takes_a_folder_that_is_no_box(tmp_path, box):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a box"):
        box.save(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_overwriting_never_takes_a_file_that_is_no_box(tmp_path, box):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(CheckpointError, match="not a box"):
        box.save(tmp_path / "notes", overwrite=True)
    assert (tmp_path / "notes").read_text() == "mine"


def test_saving_where_nothing_can_be_written_is_a_storage_error(tmp_path, box):
    (tmp_path / "file").write_text("mine")
    for name in ("model.box", "model.zip"):
        with pytest.raises(StorageError, match="cannot write"):
            box.save(tmp_path / "file" / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_save_that_fails_leaves_the_box_that_was_there(path, box, nasty, monkeypatch):
    box.save(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as on a disk that is full
        with pytest.raises(StorageError, match="cannot write"):
            nasty.save(path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    same_box(box, Box.load(path))
    assert list(path.parent.iterdir()) == [path]


def test_a_saved_box_can_be_read_by_others(path, box):
    box.save(path)
    files = [path, *(path.iterdir() if path.is_dir() else ())]
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


# --- hostile and odd places ------------------------------------------------------------------------------------------


HUGE = {
    "mlp": {"name": "mlp", "arguments": {}, "image_shape": [3, 16384, 16384]},  # hundreds of GB
    "net": {"arguments": {"num_channels": 4096}},
    "classes": {"name": "densenet161", "arguments": {}, "num_classes": 1_000_000},
    "beyond any memory": {"arguments": {"num_channels": 2**31}},
}


@pytest.mark.parametrize("name", HUGE)
def test_a_description_that_asks_for_more_than_the_weights_have_takes_no_memory(saved, tmp_path, name):
    write_files(tmp_path / "a.box", read_files(saved / "a.box"))
    model = manifest_of(tmp_path / "a.box")["model"] | HUGE[name]
    channels = model["image_shape"][0]
    model |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    names = [str(number) for number in range(model["num_classes"])]
    forge(tmp_path / "a.box", {"model": model, "class_names": names})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a.box")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB


def test_no_name_in_a_box_is_half_a_surrogate_pair(saved, tmp_path):
    for changes in (
        {"id": "\ud800"},
        {"method": "x\udfff"},
        {"owner_id": "\udc80"},
        {"class_names": ["\ud800", *"123456789"]},
        {"key_ids": ["\ud800"]},
        {"slots": {"\ud800": ""}},
        {"parameters": {"a": {"\ud800": 1}}},
    ):
        write_files(tmp_path / "a.box", read_files(saved / "a.box"))
        forge(tmp_path / "a.box", changes)
        with pytest.raises(CheckpointError, match="not Unicode"):
            Box.load(tmp_path / "a.box")
        shutil.rmtree(tmp_path / "a.box")


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_a_field_holds_the_box_answers_the_same_or_is_refused(saved, box, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fields") / "a.box"
    write_files(path, read_files(saved / "a.box"))
    name = data.draw(st.sampled_from([*FIELDS[1:-2], "another"]))
    forge(path, {name: data.draw(odd)})
    try:
        loaded = Box.load(path)
    except REFUSED:
        return
    assert torch.equal(loaded(IMAGES), box(IMAGES))
    # Whatever else it says can be written and read again, and opens for the key, or says why not.
    loaded.save(path, overwrite=True)
    assert Box.load(path).info == loaded.info
    try:
        loaded.unlock(KEY)(IMAGES)
    except REFUSED:
        pass
    except KeyFileError:
        assert name in ("key_ids", "key_kind")


def test_a_folder_that_is_replaced_can_be_read_at_any_time(tmp_path, box, nasty):
    path = tmp_path / "a.box"
    box.save(path)
    code = (
        "import sys; from sdb.box.box import Box\n"
        "first, second, path = Box.load(sys.argv[1]), Box.load(sys.argv[2]), sys.argv[3]\n"
        "print('ready', flush=True)\n"
        "while True: first.save(path, overwrite=True); second.save(path, overwrite=True)\n"
    )
    box.save(tmp_path / "1.box")
    nasty.save(tmp_path / "2.box")
    names = [str(tmp_path / name) for name in ("1.box", "2.box", "a.box")]
    writer = subprocess.Popen([sys.executable, "-c", code, *names], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "ready\n"
        methods = [Box.load(path).info.method for _ in range(60)]
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
    assert set(methods) <= {box.info.method, nasty.info.method}
