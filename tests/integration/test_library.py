"""From Python, without files: a network of one's own, arrays, a key; and a transformers classifier."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import sdb.data
from sdb.box.box import Box
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import ConfigError, KeyFileError, ModelError, SDBError
from sdb.keys import Key
from sdb.models import ModelSpec, from_module
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
QUICK = {"batch_size": 32, "learning_rate": 0.01, "optimizer": "adam", "augment": False}


def stripes(count, seed):
    """Images of three classes, by where the bright stripe is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.integers(0, 60, (count, 1, 9, 9))
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 2] += 160
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def data():
    images, labels = stripes(300, seed=0)
    test_images, test_labels = stripes(120, seed=1)
    return sdb.data.from_arrays(
        images, labels, test_images=test_images, test_labels=test_labels, class_names=("top", "middle", "bottom")
    )


class OwnNetwork(nn.Module):
    """A network that this package has never heard of."""

    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width * 81, 3)

    def forward(self, images):
        return self.head(self.body(images).flatten(1))


def accuracy(model, data):
    return evaluate(model, evaluation_batches(data.test, CPU))["accuracy"]


def make(data, seed, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return from_module(OwnNetwork(width), 3, data.image_shape, data.mean, data.std)


@pytest.fixture(scope="module")
def teacher(data):
    model = make(data, seed=0)
    train(model, data, TrainSettings(epochs=4, **QUICK))
    return model


@pytest.fixture(scope="module")
def key():
    return Key.generate("image", blend=0.5)


@pytest.fixture(scope="module")
def box(teacher, data, key):
    settings = WrapSettings(
        method="sdb", start="teacher", augmentation_weight=0, disturbance_weight=0.05, epochs=4, **QUICK
    )
    return wrap(teacher, data, settings, key=key)


class TestOwnNetwork:
    def test_teacher_and_box(self, teacher, box, key, data):
        assert accuracy(teacher, data) > 0.95
        assert accuracy(box, data) > 0.9
        assert accuracy(box.unlock(key), data) > 0.9
        assert box.info.class_names == ("top", "middle", "bottom")

    def test_wrapping_leaves_the_teacher_alone(self, data, key, weights_of, same_weights):
        teacher = make(data, seed=3).eval()
        before = weights_of(teacher)
        wrap(teacher, data, WrapSettings(method="sdb", augmentation_weight=0, epochs=1, **QUICK), key=key)
        assert same_weights(before, weights_of(teacher))

    @pytest.mark.parametrize("keyed", [False, True])
    def test_students(self, box, key, data, keyed):
        student = make(data, seed=1, width=4)
        history = []
        distill(
            box, student, data, DistillSettings(epochs=4, **QUICK), key=key if keyed else None, history=history
        )
        assert len(history) == 4
        assert not student.training
        assert accuracy(student, data) > 0.8

    def test_a_thief_without_labels(self, box, data):
        student = make(data, seed=1, width=4)
        history = []
        distill(box, student, data, DistillSettings(epochs=2, labels=False, **QUICK), history=history)
        assert set(history[0]["terms"]) == {"distillation"}

    def test_any_module_is_a_teacher(self, teacher, data):
        student = make(data, seed=1, width=4)
        distill(nn.Sequential(teacher, nn.Identity()), student, data, DistillSettings(epochs=2, **QUICK))
        assert accuracy(student, data) > 0.5

    def test_the_same_seed_gives_the_same_student(self, box, data, weights_of, same_weights):
        students = [make(data, seed=1) for _ in range(2)]
        for student in students:
            distill(box, student, data, DistillSettings(epochs=1, **QUICK))
        assert same_weights(*map(weights_of, students))

    def test_keys(self, box, teacher, data):
        student = make(data, seed=1)
        with pytest.raises(KeyFileError, match="another box"):
            distill(box, student, data, DistillSettings(epochs=1, **QUICK), key=Key.generate())
        with pytest.raises(ConfigError, match="not one"):
            distill(teacher, student, data, DistillSettings(epochs=1, **QUICK), key=Key.generate())

    def test_a_file_without_an_instance_is_refused_with_the_remedy(self, box, tmp_path):
        box.save(tmp_path / "box")
        with pytest.raises(ModelError, match=r"no file can make again.*network=Net\(\)"):
            Box.load(tmp_path / "box")

    @pytest.mark.parametrize("change", [{"start": "scratch"}, {"augmentation_weight": 0.001}])
    def test_a_second_network_is_made_by_drawing_weights_again(self, teacher, key, data, change):
        settings = {"method": "sdb", "augmentation_weight": 0, "epochs": 1} | change
        box = wrap(teacher, data, WrapSettings(**settings, **QUICK), key=key)
        assert box(torch.rand(2, *data.image_shape)).isfinite().all()

    def test_other_data_is_refused(self, teacher, key, digits):
        with pytest.raises(ModelError, match=r"3 classes, the data has 10"):
            wrap(teacher, digits, WrapSettings(method="sdb", augmentation_weight=0, epochs=1, **QUICK), key=key)


class TestTransformers:
    CONFIG = {  # noqa: RUF012 - a constant
        "image_size": 8,
        "patch_size": 4,
        "num_channels": 1,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }

    def test_train_wrap_save_load(self, monkeypatch, tmp_path, few, key, weights_of, same_weights):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers")
        spec = ModelSpec(
            "transformers:ViTForImageClassification",
            {"config": self.CONFIG},
            few.num_classes,
            few.image_shape,
            few.mean,
            few.std,
        )
        teacher = spec.build()
        history = train(teacher, few, TrainSettings(epochs=1, **QUICK))
        assert len(history) == 1
        box = wrap(teacher, few, WrapSettings(method="sdb", disturbance_weight=0.05, epochs=2, **QUICK), key=key)
        assert not same_weights(weights_of(teacher), weights_of(box.classifier))

        for name in ("box", "box.zip"):
            box.save(tmp_path / name)
            with pytest.raises(SDBError, match=re.escape("would import and run code")):
                Box.load(tmp_path / name)
            loaded = Box.load(tmp_path / name, network=spec.name)
            assert same_weights(weights_of(box.classifier), weights_of(loaded.classifier))
            images = torch.rand(4, *few.image_shape)
            with torch.no_grad():
                assert torch.equal(box(images), loaded(images))
                assert torch.equal(box.unlock(key)(images), loaded.unlock(key)(images))
