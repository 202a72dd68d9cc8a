"""An attacker and what it attacks, small: shared by the tests of attacks."""

from __future__ import annotations

import pytest
import torch

from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.victim import Interface, Victim
from sdb.config import FitSettings, TrainSettings
from sdb.losses import kl
from sdb.training.loop import train

FIT = {"batch_size": 32, "optimizer": "adam", "learning_rate": 3e-3, "device": "cpu"}


@pytest.fixture(scope="session")
def attacker_of(make_net):
    """A function from a data set to an attacker's means; width is the student's, other changes go to `Attacker`."""

    def make(data, *, epochs=3, seed=0, width=4, **changes):
        given = {
            "train": data.train,
            "validation": data.validation,
            "proxy": data.validation,
            "augment": data.augment,
            "new_student": lambda seed=0: make_net(data, seed=seed, num_channels=width),
            "new_network": lambda seed=7: make_net(data, seed=seed, num_channels=8),
            "settings": FitSettings(epochs=epochs, seed=seed, **FIT),
            "views": 2,
        }
        return Attacker(**given | changes)

    return make


@pytest.fixture(scope="session")
def victim_of():
    """A function from a module and a data set to a victim; the network is the module, where the weights are given."""

    def make(module, data, interface=Interface.PROBABILITIES, **changes):
        network = module if interface is Interface.WEIGHTS else None
        shape, classes = data.image_shape, data.num_classes
        return Victim(module, interface, num_classes=classes, image_shape=shape, network=network, **changes)

    return make


@pytest.fixture(scope="session")
def small_teacher(digits, make_net):
    """A teacher of 8 channels on a fifth of the digits; right about 9 times in 10."""
    teacher = make_net(digits, seed=3, num_channels=8)
    train(teacher, digits, TrainSettings(epochs=25, **FIT))
    teacher.zero_grad(set_to_none=True)
    return teacher.eval()


@pytest.fixture(scope="session")
def distance_of(digits):
    """A function from two modules to the mean KL of their answers to test images at T=4, in nats."""
    pixels = torch.from_numpy(digits.test.images.copy()).float() / 255

    @torch.no_grad()
    def distance(truth, module):
        return float(kl(truth(pixels), module(pixels), 4.0))

    return distance


@pytest.fixture(scope="session")
def accuracy_of(digits):
    """A function from a module to its accuracy on test images."""
    pixels = torch.from_numpy(digits.test.images.copy()).float() / 255
    labels = torch.from_numpy(digits.test.labels)

    @torch.no_grad()
    def accuracy(module):
        return float((module.eval()(pixels).argmax(dim=1) == labels).double().mean())

    return accuracy
