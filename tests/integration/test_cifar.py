"""CIFAR-10 as the hub has it (parquet), from params.json: train, wrap, distil, and load what they leave."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import sdb.data
from sdb.box.box import Box
from sdb.keys import Key
from sdb.models.checkpoint import load_classifier
from sdb.runs.jobs import test_accuracy as accuracy_on_test_images

# Decoding 60,000 pictures takes a while.
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def data_root():
    """The folder that holds cifar10/."""
    for root in filter(None, (os.environ.get("SDB_DATA"), SHARED)):
        if list(Path(root).glob("cifar10/train-*.parquet")):
            return Path(root).absolute()
    pytest.skip(f"CIFAR-10 parquet is neither in {SHARED}/cifar10 nor in the folder named by SDB_DATA")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data_root, quick_sdb, write_params):
    """A teacher, its box, a thief and a partner; 900 training images, the whole test set."""
    pytest.importorskip("pyarrow")
    place = tmp_path_factory.mktemp("cifar")
    small = {"dataset": "cifar10", "data_root": str(data_root), "subset_percent": 0.02, "num_channels": 8}
    write_params(place / "teacher", **small, epochs=2)
    write_params(place / "box", **small, epochs=1, teacher="teacher", method="sdb", key_blend=0.5, allowed_loss=1)
    write_params(place / "thief", **small, epochs=1, teacher="box", kd_temperature=4)
    write_params(place / "partner", **small, epochs=1, teacher="box", key="box/key.json")
    for command, name in (("train", "teacher"), ("wrap", "box"), ("distill", "thief"), ("distill", "partner")):
        done = quick_sdb(command, name, cwd=place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def data(data_root):
    return sdb.data.load("cifar10", root=data_root)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_classifiers_load_with_the_accuracy_of_their_run(runs, data):
    for name in ("teacher", "thief", "partner"):
        model = load_classifier(runs / name, num_classes=10, image_shape=(3, 32, 32))
        assert accuracy_on_test_images(model, data) == result(runs / name)["accuracy"]


def test_the_box_loads_with_the_accuracy_of_its_run(runs, data):
    box = Box.load(runs / "box" / "box")
    assert box.info.class_names == data.class_names
    assert box.info.class_names[0] == "airplane"
    assert accuracy_on_test_images(box, data) == result(runs / "box")["keyless"]
    keyed = box.unlock(Key.load(runs / "box" / "key.json"))
    assert accuracy_on_test_images(keyed, data) == result(runs / "box")["keyed"]


def test_students_saw_the_box_they_were_meant_to_see(runs):
    box = result(runs / "box")
    assert result(runs / "thief")["teacher"] == box["keyless"]
    assert result(runs / "partner")["teacher"] == box["keyed"]


def test_better_than_chance(runs):
    assert result(runs / "teacher")["accuracy"] > 0.13


def test_evaluate_finds_the_data_that_the_run_used(runs, quick_sdb):
    done = quick_sdb("evaluate", "teacher", cwd=runs)
    assert json.loads(done.stdout)["accuracy"] == result(runs / "teacher")["accuracy"]


@pytest.mark.slow
def test_a_residual_network(tmp_path, data_root, data, quick_sdb, write_params):
    """preresnet20 with the reference's schedule: batch norm, SGD, augmentation."""
    pytest.importorskip("pyarrow")
    write_params(
        tmp_path / "run",
        model_name="preresnet20",
        num_channels=None,
        dataset="cifar10",
        data_root=str(data_root),
        subset_percent=0.004,
        epochs=1,
        schedule=[60, 120, 160],
        gamma=0.2,
        learning_rate=0.1,
    )
    done = quick_sdb("train", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_classifier(tmp_path / "run")
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_282
    assert accuracy_on_test_images(model, data) == result(tmp_path / "run")["accuracy"]
