"""Files that an earlier sdb wrote still open, and to the same thing; artifacts/made_with.txt says what made them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sdb.box.box import Box
from sdb.errors import KeyFileError
from sdb.keys import Key, Owner
from sdb.models.checkpoint import load_classifier
from sdb.report import write_report
from sdb.report.files import load_claim

OLD = Path(__file__).parent / "artifacts"
EXPECTED = json.loads((OLD / "expected.json").read_text())
# One forward of a small network in float32: kernels differ in the order of their sums, not by more.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.load(OLD / "images.npy")).float() / 255


@pytest.fixture
def secret(tmp_path):
    """A secret's file as its owner has it: git does not keep mode 0600."""

    def copy(name):
        path = Path(shutil.copy(OLD / name, tmp_path / name))
        path.chmod(0o600)
        return path

    return copy


def logits(module, images):
    with torch.no_grad():
        return module(images)


def test_a_weight_key_and_its_box(images, secret):
    key, box = Key.load(secret("weight-key.json")), Box.load(OLD / "weight-box")
    assert (key.id, key.kind, key.scope) == (EXPECTED["weight_key_id"], "weight", "hospital")
    assert list(box.info.class_names) == EXPECTED["class_names"]
    assert torch.equal(logits(box, images), torch.tensor(EXPECTED["weight_box_keyless"]))
    torch.testing.assert_close(
        logits(box.unlock(key), images), torch.tensor(EXPECTED["weight_box_keyed"]), **CLOSE
    )


def test_an_image_key_and_its_zipped_box(images, secret):
    key, box = Key.load(secret("image-key.json")), Box.load(OLD / "image-box.zip")
    assert (key.id, key.kind, key.blend) == (EXPECTED["image_key_id"], "image", EXPECTED["image_key_blend"])
    assert int(key.pattern((1, 8, 8)).sum()) == EXPECTED["image_key_pattern_sum"]
    torch.testing.assert_close(logits(box, images), torch.tensor(EXPECTED["image_box_keyless"]), **CLOSE)
    torch.testing.assert_close(logits(box.unlock(key), images), torch.tensor(EXPECTED["image_box_keyed"]), **CLOSE)
    assert box.owner_record(Owner.of(key))["decoys"] == EXPECTED["image_box_owner_record"]


def test_owner_files_plain_and_encrypted(secret):
    plain = Owner.load(secret("owner.json"))
    hidden = Owner.load(secret("owner-encrypted.json"), passphrase=EXPECTED["passphrase"])
    assert plain.id == hidden.id == EXPECTED["owner_id"]
    assert plain.partner("hospital", "weight").id == EXPECTED["weight_key_id"]
    assert Box.load(OLD / "weight-box").owner_record(plain)["decoys"] == EXPECTED["decoys"]
    with pytest.raises(KeyFileError):
        Owner.load(secret("owner-encrypted.json"), passphrase="close sesame")


def test_a_run_folder_and_its_checkpoints(images):
    for path in (OLD / "teacher-run", OLD / "teacher-run" / "last.safetensors"):
        classifier = load_classifier(path)
        torch.testing.assert_close(logits(classifier, images), torch.tensor(EXPECTED["teacher"]), **CLOSE)
    assert load_classifier(OLD / "teacher-run" / "best.safetensors").num_classes == 10


def test_an_audit_claim_and_a_demo_record(tmp_path):
    claim = load_claim(OLD / "claim.json")
    assert {row.name for row in claim.attacks} == {"labels", "distil"}
    assert any(cell.attack == "distil" for cell in claim.cells)
    record = json.loads((OLD / "demo-record.json").read_text())
    write_report(record, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(row["label"] in page for row in record["rows"])
