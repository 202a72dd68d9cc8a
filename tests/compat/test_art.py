"""Other people's attacks: ART's, through its own classes, against our victims. Runs where the extra `art` is."""

import numpy as np
import pytest
import torch

pytest.importorskip("art")

from sdb.audit.attacks.art import Copycat, Knockoff, behind
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.victim import Interface, QueryBudgetError, Victim
from sdb.audit.proxy import letters
from sdb.config import FitSettings, TrainSettings, WrapSettings
from sdb.keys import Key
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

SETTINGS = {"batch_size": 32, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def teacher(digits, make_net):
    made = make_net(digits, num_channels=8)
    train(made, digits, TrainSettings(epochs=25, **SETTINGS))
    return made


@pytest.fixture(scope="module")
def box(teacher, digits):
    return wrap(teacher, digits, WrapSettings(epochs=15, **SETTINGS), key=Key.generate())


@pytest.fixture
def attacker(digits, make_net):
    return Attacker(
        digits.train,
        digits.validation,
        letters(233, (1, 8, 8), 0),
        digits.augment,
        lambda: make_net(digits, num_channels=8),
        lambda: make_net(digits, num_channels=8),
        FitSettings(epochs=20, **SETTINGS),
    )


def victim(module, interface=Interface.LOGITS, **changes):
    return Victim(module, interface, num_classes=10, image_shape=(1, 8, 8), **changes)


def score(model, digits):
    return evaluate(model, evaluation_batches(digits.test, torch.device("cpu")))["accuracy"]


def test_art_sees_exactly_what_the_victim_gives(box, digits):
    asked = victim(box)
    pixels = np.array(digits.test.images[:20], np.float32) / 255
    given = behind(asked, torch.device("cpu")).predict(pixels)
    np.testing.assert_allclose(given, box(torch.from_numpy(pixels)).detach().numpy(), rtol=1e-4, atol=1e-4)
    assert asked.queries == 20


@pytest.mark.parametrize("interface", [Interface.LABELS, Interface.LOGITS])
def test_copycat_copies_a_box_by_its_top_1_answers(box, digits, attacker, interface):
    asked = victim(box, interface)
    stolen = Copycat().run(asked, attacker)
    assert asked.queries == len(digits.train)
    assert score(stolen.student, digits) > 0.7


def test_knockoff_learns_something_from_letters(teacher, digits, attacker):
    asked = victim(teacher)
    stolen = Knockoff().run(asked, attacker)
    assert asked.queries == 233
    assert score(stolen.student, digits) > 0.2


def test_the_same_twice_and_numpys_own_stream_is_left_alone(box, digits, attacker, weights_of, same_weights):
    np.random.seed(5)
    expected = np.random.rand(3)
    np.random.seed(5)
    first = Copycat().run(victim(box), attacker).student
    assert np.array_equal(np.random.rand(3), expected)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = Copycat().run(victim(box), attacker).student
    assert same_weights(weights_of(first), weights_of(second))


def test_a_budget_holds_for_art_too(box, attacker):
    asked = victim(box, budget=50)
    stolen = Copycat().run(asked, attacker)
    assert stolen.details["images"] == asked.queries == 50
    with pytest.raises(QueryBudgetError):
        Copycat().run(asked, attacker)
