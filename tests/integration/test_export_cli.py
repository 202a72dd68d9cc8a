"""export, sign, verify through the real command line, as a user has it."""

import json
import stat

import numpy as np
import pytest
import torch

import sdb.data
from sdb.box.box import Box
from sdb.keys import Key

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, write_params):
    """A weight-key box in a folder whose name nobody should learn, and a licence."""
    place = tmp_path_factory.mktemp("secret-project-of-anna")
    write_params(place / "teacher", learning_rate=0.01)
    write_params(place / "run", teacher="teacher", epochs=1, allowed_loss=1)
    for command, folder in (("train", "teacher"), ("wrap", "run")):
        done = quick_sdb(command, folder, cwd=place)
        assert done.returncode == 0, done.stderr
    (place / "LICENCE.txt").write_text("For evaluation only. © 2026\n", encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def answers(place):
    """The box's keyless and keyed logits on the whole test set, and the images."""
    images = torch.from_numpy(sdb.data.load("digits").test.images).float() / 255
    box = Box.load(place / "run/box")
    with torch.no_grad():
        return {"": box(images), "key": box.unlock(Key.load(place / "run/key.json"))(images), "images": images}


@pytest.mark.parametrize("to", ["onnx", "pt2"])
@pytest.mark.parametrize("key", ["", "key"])
def test_a_box_is_exported_and_runs_elsewhere(quick_sdb, place, answers, to, key):
    name = f"{to}-{key or 'open'}.{to}"
    keyed = ["--key", "run/key.json"] if key else []
    done = quick_sdb("export", "run", "--to", to, "--out", name, "--licence", "LICENCE.txt", *keyed, cwd=place)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == name and said["bytes"] == (place / name).stat().st_size
    assert said["metadata"]["licence"] == "For evaluation only. © 2026\n"
    assert ("Whoever has it can distil" in done.stderr) is bool(key)
    assert stat.S_IMODE((place / name).stat().st_mode) == (0o600 if key else 0o644)
    images = answers["images"]
    if to == "onnx":
        session = onnxruntime.InferenceSession(place / name, providers=["CPUExecutionProvider"])
        given = session.run(["logits"], {"image": images.numpy()})[0]
        assert session.get_modelmeta().custom_metadata_map["id"] == said["metadata"]["id"]
    else:
        given = torch.export.load(place / name).module()(images).detach().numpy()
    np.testing.assert_allclose(given, answers[key].numpy(), rtol=0, atol=1e-5)
    assert np.array_equal(given.argmax(1), answers[key].argmax(1).numpy())
    assert b"secret-project" not in (place / name).read_bytes()
    assert "Warning" not in done.stderr and "torchvision" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--to", "tflite", "--out", "x"], "expected one of onnx, pt2"),
        (["run", "--to", "pt2", "--out", "LICENCE.txt"], "add --overwrite"),
        (["run", "--to", "pt2", "--out", "run"], "is a folder"),
        (["absent", "--to", "pt2", "--out", "x"], "no such box"),
        (["teacher", "--to", "pt2", "--out", "x"], "not a box"),
        (["run", "--to", "pt2", "--out", "x", "--licence", "absent"], "--licence: cannot read absent"),
        (["run", "--to", "pt2", "--out", "x", "--key", "absent"], "cannot read key file absent"),
        (["run", "--to", "pt2", "--out", "x", "--key", "other.json"], "is of another box"),
    ],
)
def test_a_wrong_export_is_one_line_and_leaves_nothing(quick_sdb, place, arguments, says):
    if not (place / "other.json").exists():
        Key(bytes(32), kind="weight").save(place / "other.json")
    done = quick_sdb("export", *arguments, cwd=place)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert not (place / "x").exists() and (place / "LICENCE.txt").read_text().startswith("For evaluation")


def test_a_box_is_signed_and_verified(quick_sdb, place):
    assert quick_sdb("sign", "--new-key", "maker.key", cwd=place).returncode == 0
    assert quick_sdb("sign", "--new-key", "other.key", cwd=place).returncode == 0
    assert stat.S_IMODE((place / "maker.key").stat().st_mode) == 0o600
    unsigned = quick_sdb("verify", "run", "--public-key", "maker.key.pub", cwd=place)
    assert unsigned.returncode == 2 and "is not signed" in unsigned.stderr
    done = quick_sdb("sign", "run", "--signing-key", "maker.key", cwd=place)
    assert done.returncode == 0, done.stderr
    done = quick_sdb("verify", "run", "--public-key", "maker.key.pub", cwd=place)
    assert done.returncode == 0
    assert json.loads(done.stdout)["id"] == Box.load(place / "run/box").info.id
    other = quick_sdb("verify", "run/box", "--public-key", "other.key.pub", cwd=place)
    assert other.returncode == 2 and "is signed by" in other.stderr
    assert quick_sdb("evaluate", "run", "--key", "run/key.json", cwd=place).returncode == 0
    whole = (place / "run/box/box.json").read_bytes()
    (place / "run/box/box.json").write_bytes(whole + b"\n")
    altered = quick_sdb("verify", "run", "--public-key", "maker.key.pub", cwd=place)
    assert altered.returncode == 2 and "altered" in altered.stderr
    (place / "run/box/box.json").write_bytes(whole)


def test_a_signing_key_may_have_a_passphrase(quick_sdb, place):
    secret = {"SDB_PASSPHRASE": "correct horse", "SDB_SCRYPT_LOG_N": "10"}
    assert quick_sdb("sign", "--new-key", "locked.key", "--encrypt", cwd=place, env=secret).returncode == 0
    again = ["sign", "run", "--signing-key", "locked.key", "--overwrite"]
    wrong = quick_sdb(*again, cwd=place, env=secret | {"SDB_PASSPHRASE": "x"})
    assert wrong.returncode == 2 and "wrong passphrase" in wrong.stderr
    assert quick_sdb(*again, cwd=place, env=secret).returncode == 0
    assert quick_sdb("verify", "run", "--public-key", "locked.key.pub", cwd=place).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sign"], "--new-key FILE to make a key"),
        (["sign", "run"], "give BOX and --signing-key"),
        (["sign", "run", "--new-key", "k"], "leave BOX and --signing-key out"),
        (["sign", "run", "--signing-key", "run/key.json"], "does not hold a signing key"),
        (["sign", "run", "--signing-key", "twice.key", "--encrypt"], "belongs to --new-key"),
        (["sign", "--new-key", "twice.key"], "exists"),
        (["sign", "teacher", "--signing-key", "twice.key"], "not a box"),
        (["verify", "run", "--public-key", "twice.key"], "not the PEM"),
        (["verify", "absent", "--public-key", "twice.key.pub"], "no such box"),
    ],
)
def test_a_wrong_signing_is_one_line(quick_sdb, place, arguments, says):
    if not (place / "twice.key").exists():
        assert quick_sdb("sign", "--new-key", "twice.key", cwd=place).returncode == 0
    before = (place / "twice.key").read_bytes()
    done = quick_sdb(*arguments, cwd=place)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
    assert (place / "twice.key").read_bytes() == before
