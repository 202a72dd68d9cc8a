"""What is said of a teacher before it is wrapped."""

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdb.config import TrainSettings, WrapSettings
from sdb.data import from_arrays
from sdb.keys import Key
from sdb.models import from_module
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.teachers import warn_of_teacher
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
QUICK = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-4}


@pytest.fixture(scope="module")
def teacher(digits, make_net):
    model = make_net(digits, "mlp")
    train(model, digits, TrainSettings(epochs=20, batch_size=32, learning_rate=0.003, augment=False))
    assert evaluate(model, evaluation_batches(digits.validation, CPU))["accuracy"] > 0.8
    return model


def with_other(teacher, mean, std):
    """The same network, with pixels normalised in another way."""
    other = copy.deepcopy(teacher)
    other.mean.fill_(mean)
    other.std.fill_(std)
    return other


def said_of(caplog, teacher, data, **named):
    caplog.clear()
    warn_of_teacher(teacher.eval(), data, **named)
    return [record.getMessage() for record in caplog.records]


def test_nothing_is_said_of_a_good_teacher(caplog, digits, teacher, weights_of, same_weights):
    before = weights_of(teacher)
    assert said_of(caplog, teacher, digits) == []
    assert same_weights(weights_of(teacher), before)


@pytest.mark.parametrize("train", [False, True])
def test_looking_changes_neither_modes_nor_weights_nor_random_state(
    caplog, digits, make_net, weights_of, same_weights, train
):
    model = make_net(digits, dropout_rate=0.3).train(train)
    before, state = weights_of(model), torch.get_rng_state()
    warn_of_teacher(model, digits)
    assert caplog.records
    assert {module.training for module in model.modules()} == {train}
    assert same_weights(weights_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("mean", "std"), [(8.0, 0.2), (-3.0, 1.0), (0.5, 5.0)])
def test_a_teacher_without_the_data_s_normalisation_is_named_with_what_it_would_be(
    caplog, digits, teacher, mean, std
):
    (said,) = said_of(caplog, with_other(teacher, mean, std), digits, name="teacher 2 of 3")
    own, better = (
        evaluate(model, evaluation_batches(digits.validation, CPU))["accuracy"]
        for model in (with_other(teacher, mean, std), teacher)
    )
    assert said.startswith(
        f"teacher 2 of 3 is right about {100 * own:.1f} % of the validation images; normalised by mean ("
    )
    assert f"std ({digits.std[0]:.4g}) (the data's own), it would be about {100 * better:.1f} %" in said
    assert "preprocessor_config.json with image_mean and image_std" in said


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.0, 1 / 255)])
def test_other_usual_normalisations_are_found_too(caplog, digits, make_net, mean, std):
    """The network was trained on pixels of that kind, and is wrapped with the data's own mean and deviation."""
    model = make_net(replace(digits, mean=(mean,), std=(std,)), "mlp")
    train(model, digits, TrainSettings(epochs=20, batch_size=32, learning_rate=0.003, augment=False))
    far = with_other(model, 3.0, 0.1)
    (said,) = said_of(caplog, far, digits)
    assert "it would be about" in said
    assert said_of(caplog, model, digits) == []


def test_a_teacher_at_chance_is_named(caplog, digits, make_net):
    (said,) = said_of(caplog, make_net(digits, "mlp"), digits)
    assert "no better than chance" in said
    assert said.startswith("the teacher is right about")


def test_chance_is_the_largest_class_s_share(caplog, make_net):
    images = np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)
    labels = (np.arange(200) % 10 == 0).astype(np.int64)
    data = from_arrays(images, labels, test_images=images, test_labels=labels, class_names=["most", "few"])

    class Always(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(torch.tensor([2.0, -3.0]))

        def forward(self, images):
            return self.scores + 0 * images.flatten(1)[:, :2]

    always = from_module(Always(), 2, data.image_shape, data.mean, data.std)
    assert evaluate(always, evaluation_batches(data.validation, CPU))["accuracy"] > 0.8
    (said,) = said_of(caplog, always, data)
    assert "no better than chance" in said


def test_wrapping_says_it_once_and_goes_on(caplog, digits, teacher):
    caplog.set_level(logging.WARNING)
    key = Key(bytes(32), kind="weight")
    wrap(with_other(teacher, -3.0, 1.0), digits, WrapSettings(**QUICK), key=key)
    assert sum("it would be about" in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    far = with_other(teacher, -3.0, 1.0)
    wrap(teacher, digits, WrapSettings(**QUICK), key=key, more_teachers=[far])
    said = [record.getMessage() for record in caplog.records if "it would be about" in record.getMessage()]
    assert len(said) == 1 and said[0].startswith("teacher 2 of 2")
