"""Shared by all tests: one thread, and data and networks small enough that training takes a fraction of a second."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

import sdb.data
from sdb.models import Classifier, ModelSpec
from sdb.training.repeated_views import FixedViews

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """A fifth of the digits: 233 training, 130 validation and 500 test images."""
    return sdb.data.load("digits", subset_percent=0.2)


@pytest.fixture(scope="session")
def few(digits):
    """48 training, 40 validation and 40 test images, all ten classes among them."""
    first = np.arange(48), np.arange(40), np.arange(40)
    train, validation, test = (
        part.take(at) for part, at in zip((digits.train, digits.validation, digits.test), first, strict=True)
    )
    return replace(digits, train=train, validation=validation, test=test)


@pytest.fixture(scope="session")
def make_net():
    """A function that builds a classifier for a data set, the same weights whenever the seed is the same."""

    def make(data, name="net", seed=0, **arguments):
        if name == "net":
            arguments = {"num_channels": 4} | arguments
        spec = ModelSpec(name, arguments, data.num_classes, data.image_shape, data.mean, data.std)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return spec.build()

    return make


@pytest.fixture(scope="session")
def weights_of():
    """A function that copies a module's state dict, so that it can be compared later."""

    def copy(module):
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    return copy


@pytest.fixture(scope="session")
def same_weights():
    """A function that says whether two state dicts are equal, bit for bit."""

    def same(first, second):
        return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    return same


@pytest.fixture
def in_float64(monkeypatch):
    """Classifiers that a test builds have float64 weights and get float64 images; all that follows is float64 too.

    Training makes much of a rounding error (three steps of a small residual network make 8e-3 of 1e-7), so in float32
    two ways to compute the same thing agree only on processors that happen to round alike. In float64 they end within
    1e-8 of each other.
    """

    def doubled(epoch):
        def batches(self, *given, **named):
            for batch in epoch(self, *given, **named):
                yield batch._replace(images=batch.images.double())

        return batches

    made = Classifier.__init__

    def build(self, *given, **named):
        made(self, *given, **named)
        self.double()

    monkeypatch.setattr(Classifier, "__init__", build)
    for kind in (sdb.data.Batches, FixedViews):
        monkeypatch.setattr(kind, "epoch", doubled(kind.epoch))
