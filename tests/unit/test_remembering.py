"""A module that answers the same batch once."""

import torch
from torch import nn

from sdb.audit.remembering import Remembering


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.asked = nn.Parameter(torch.ones(1)), 0

    def forward(self, images):
        self.asked += 1
        return images.flatten(1)[:, :2] * self.weight


def test_the_same_batch_is_answered_once():
    module = Remembering(inner := Counting()).eval()
    images = torch.rand(3, 1, 2, 2)
    with torch.no_grad():
        first = module(images)
        assert torch.equal(module(images.clone()), first)
        assert inner.asked == 1
        assert torch.equal(module(images[:2]), first[:2])
        assert torch.equal(module(images.double())[:, :2], images.double().flatten(1)[:, :2])
        assert torch.equal(module(images.bfloat16()), images.bfloat16().flatten(1)[:, :2])
        assert inner.asked == 4


def test_what_it_gave_cannot_be_changed():
    module = Remembering(Counting()).eval()
    images = torch.rand(3, 1, 2, 2)
    with torch.no_grad():
        given = module(images).clone()
        module(images).zero_()
        assert torch.equal(module(images), given)


def test_gradients_and_training_go_through():
    module = Remembering(inner := Counting()).eval()
    images = torch.rand(3, 1, 2, 2)
    for _ in range(2):
        assert module(images).requires_grad
    with torch.no_grad():
        module.train()
        module(images)
        module(images)
    assert inner.asked == 4


def test_other_shapes_of_the_same_bytes_are_other_batches():
    module = Remembering(Counting()).eval()
    with torch.no_grad():
        assert module(torch.zeros(2, 1, 2, 2)).shape == (2, 2)
        assert module(torch.zeros(1, 2, 2, 2)).shape == (1, 2)
