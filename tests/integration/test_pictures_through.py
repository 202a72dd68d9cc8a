"""From files to a served box: the choices by which pictures became pixels go along and are obeyed."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

from sdb import config
from sdb.box.box import Box
from sdb.config import Pictures
from sdb.errors import ConfigError
from sdb.export import describe
from sdb.models.checkpoint import load_classifier
from sdb.runs.jobs import evaluate_job, train_job, wrap_job
from sdb.runs.resolve import described_data
from sdb.service import create_app
from sdb.service.images import read_picture

CHOICES = {"background": "#000000", "fit": "stretch", "turn": False, "filter": "bilinear"}
RUN = {
    "dataset": "folder",
    "data_root": "",
    "model_name": "net",
    "model_args": {"num_channels": 4},
    "image_size": 16,
    "epochs": 1,
    "batch_size": 16,
    "device": "cpu",
}
HOW = {"resume": False, "overwrite": False, "progress": None}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Cut-outs whose hidden colour would give another picture than their background, a teacher and its box."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        for name in ("lying", "standing"):
            (folder / "set" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (16, 24, 4), dtype=np.uint8)
                pixels[..., 3] = 0
                shape = (slice(6, 10), slice(2, 22)) if name == "lying" else (slice(2, 14), slice(10, 14))
                pixels[(*shape, 3)] = 255
                Image.fromarray(pixels).save(folder / "set" / part / name / f"{number}.png")
    base = RUN | {"data_root": str(folder / "set"), "pictures": CHOICES}
    train_job(folder / "teacher", config.validate(base, "train", "test"), **HOW)
    wrap = base | {"teacher": str(folder / "teacher")}
    wrap_job(folder / "wrap", config.validate(wrap, "wrap", "test"), **HOW)
    return folder


def test_the_choices_are_recorded_from_the_parameters_to_the_box(place):
    assert json.loads((place / "teacher/params.resolved.json").read_text())["pictures"] == CHOICES
    assert load_classifier(place / "teacher").pictures == Pictures(**CHOICES)
    assert json.loads((place / "wrap/box/box.json").read_text())["model"]["pictures"] == CHOICES
    box = Box.load(place / "wrap/box")
    assert box.classifier.pictures == Pictures(**CHOICES)
    assert describe(box)["pictures"] == CHOICES


def test_what_is_served_is_what_was_evaluated(place):
    for path in ("teacher", "wrap"):
        model = create_app(place / path).state.service.model
        assert model.pictures == Pictures(**CHOICES)
        right, asked = 0, []
        for label, name in enumerate(("lying", "standing")):
            for file in sorted((place / "set/test" / name).iterdir(), key=lambda f: f.name):
                pixels, changes = read_picture(file.read_bytes(), model.image_shape, model.pictures)
                assert changes[0] == "transparency laid on #000000"
                asked.append(pixels)
                right += int(model.variants[""](pixels).argmax()) == label
        told = evaluate_job(place / path, key_file=None, dataset=None, data_root=None, device="cpu")
        assert right / len(asked) == pytest.approx(next(iter(told.values())))


def test_a_model_takes_its_choices_to_data_that_say_none(place):
    """The box alone, beside no run folder, still reads a data set as its training data were read."""
    box = Box.load(place / "wrap/box")
    data = described_data(place / "set", "folder", place / "set", box)
    assert data.pictures == Pictures(**CHOICES)


def test_a_teacher_of_other_pictures_is_told_of(place, tmp_path, caplog):
    other = RUN | {"data_root": str(place / "set"), "teacher": str(place / "teacher"), "method": "nasty"}
    with caplog.at_level(logging.WARNING):
        wrap_job(tmp_path / "wrap", config.validate(other, "wrap", "test"), **HOW)
    assert "learned from pictures that became pixels in another way" in caplog.text
    assert Box.load(tmp_path / "wrap/box").classifier.pictures == Pictures()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"fitt": "crop"}, r"pictures: unknown fitt: expected background, fit, turn, filter"),
        ({"fit": "squash"}, r"pictures: fit 'squash': expected crop or stretch"),
        ({"background": "white"}, r"pictures: background 'white': expected a colour as #rrggbb"),
        ({"turn": 1}, r"pictures: turn 1: expected true or false"),
        ("crop", r"pictures: a str, expected an object"),
    ],
)
def test_choices_that_do_not_exist_are_named(value, told):
    with pytest.raises(ConfigError, match=told):
        config.validate(RUN | {"pictures": value}, "train", "test")
