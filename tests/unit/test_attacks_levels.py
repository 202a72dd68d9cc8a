"""Thieves that choose what they ask, or weigh what they hear: that they find what they look for."""

import numpy as np
import pytest
import torch
from torch import nn

from sdb.audit.attacks.edges import EdgeWalking, blends, doubtful, with_more
from sdb.audit.attacks.gradient_aligned import alignment, tilt
from sdb.audit.attacks.semi_supervised import cut_out
from sdb.audit.attacks.victim import Interface, Victim

EDGE = 0.37


class TwoLevels(nn.Module):
    """Class 0 whatever the image; sure where its mean is above an edge."""

    def forward(self, images):
        sure = torch.where(images.flatten(1).mean(dim=1) > EDGE, 0.98, 0.7)
        return torch.stack([sure, (1 - sure) / 2, (1 - sure) / 2], dim=1).log()


def victim(module, budget=None):
    return Victim(module, Interface.LOGITS, num_classes=3, image_shape=(1, 4, 4), budget=budget)


def flat(values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_walk_ends_on_the_edge(steps):
    images, asked = flat([0.0, 0.1, 0.9, 1.0]), victim(TwoLevels())
    answers = asked.ask(images)
    points, confidence, named = EdgeWalking(walks=8, steps=steps).walk(asked, images, answers, seed=0)
    assert len(points) == 2 and asked.queries == 4 + 2 * steps
    distance = points.flatten(1).mean(dim=1) - EDGE
    assert (
        (distance > 0) & (distance <= 1.0 / 2**steps + 1e-6)
    ).all()  # on the sure side, within a bisection's reach
    assert torch.allclose(confidence, torch.tensor((0.98 + 0.7) / 2))
    assert (named == 0).all()


class AnotherClassBelow(TwoLevels):
    """As before, but dark images are of another class, up to just below the edge."""

    def forward(self, images):
        logits = super().forward(images)
        mean = images.flatten(1).mean(dim=1, keepdim=True)
        return torch.where((mean > 0.2) & (mean <= EDGE), logits.roll(1, dims=1), logits)


def test_a_walk_that_ends_between_two_classes_is_no_edge():
    images, asked = flat([0.0, 0.1, 0.9, 1.0]), victim(AnotherClassBelow())
    points, confidence, named = EdgeWalking(walks=8, steps=9).walk(asked, images, asked.ask(images), seed=0)
    assert (len(points), len(confidence), len(named)) == (0, 0, 0)
    assert asked.queries == 4 + 2 * 9


def test_without_levels_or_queries_nobody_walks():
    sure, asked = flat([0.8, 0.9, 1.0]), victim(TwoLevels())
    points, *_ = EdgeWalking().walk(asked, sure, asked.ask(sure), seed=0)
    assert (len(points), asked.queries) == (0, 3)
    both, poor = flat([0.0, 1.0]), victim(TwoLevels(), budget=7)
    points, *_ = EdgeWalking(steps=6).walk(poor, both, poor.ask(both), seed=0)
    assert (len(points), poor.queries) == (0, 2)


def test_more_images_are_shared_out_among_the_views(few, attacker_of):
    transfer = attacker_of(few, epochs=1).transfer()
    own = len(transfer.pixels) // transfer.views
    more = torch.arange(2 * transfer.views + 1).byte().view(-1, 1, 1, 1).expand(-1, *transfer.pixels.shape[1:])
    both = with_more(transfer, more)
    assert len(both.pixels) == len(transfer.pixels) + 2 * transfer.views
    for view in range(transfer.views):
        part = slice(view * (own + 2), (view + 1) * (own + 2))
        assert torch.equal(both.pixels[part][:own], transfer.pixels[view * own : (view + 1) * own])
        assert both.pixels[part][own:, 0, 0, 0].tolist() == [2 * view, 2 * view + 1]
        assert both.targets[part][own:].tolist() == [-1, -1]


def test_doubt_is_spread_over_the_other_classes():
    found = doubtful(torch.tensor([2, 0]), torch.tensor([0.7, 1.0]), 4)
    assert torch.allclose(found, torch.tensor([[0.1, 0.1, 0.7, 0.1], [1.0, 0.0, 0.0, 0.0]]))


def test_blends_lie_between_two_images():
    found = blends(flat([0.0, 1.0]), 50, torch.Generator().manual_seed(0))
    assert found.shape == (50, 1, 4, 4)
    assert found.min() >= 0 and found.max() <= 1 and (found[:, 0, 0, 0] % 1 > 0).sum() > 5


def test_alignment_is_the_cosine_with_the_mean_gradient_of_the_class():
    draw = np.random.default_rng(0)
    pulled, wanted = draw.normal(size=(9, 3)), draw.normal(size=(12, 3))
    named, right = draw.integers(0, 3, 9), np.arange(12) % 3
    found = alignment(*map(torch.from_numpy, (pulled, wanted, named, right)))
    for value, gradient, label in zip(found.tolist(), pulled, named, strict=True):
        mean = sum(row for row, own in zip(wanted, right, strict=True) if own == label)
        cosine = gradient @ mean / np.sqrt(gradient @ gradient) / np.sqrt(mean @ mean)
        assert value == pytest.approx(cosine, abs=1e-9)
    weights = tilt(torch.tensor([-0.1, 0.0, 0.5]), 2.0)
    assert torch.allclose(weights, torch.tensor([0.0, 1.0, np.e]))


def test_a_hole_is_a_square_somewhere():
    found = cut_out(torch.zeros(40, 2, 8, 8), 0.25)
    holes = found == 0.5
    assert (holes.flatten(1).sum(dim=1) == 2 * 2 * 2).all()  # side 2, both channels
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert len({tuple(hole.flatten().tolist()) for hole in holes[:, 0]}) > 10
