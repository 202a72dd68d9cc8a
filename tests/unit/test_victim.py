"""A victim hands out exactly one kind of answer, counts, and refuses; a transfer set is a function of its seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdb.audit.attacks.attacker import Attacker, TransferSet
from sdb.audit.attacks.victim import Answers, Interface, InterfaceError, QueryBudgetError, Victim
from sdb.config import FitSettings
from sdb.data import Augment
from sdb.errors import ConfigError
from sdb.losses import cross_entropy

SHAPE = (1, 8, 8)


class Fixed(nn.Module):
    """Logits that are a linear function of the image."""

    def __init__(self, classes=5):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("weights", 4 * torch.randn(64, classes, generator=generator))

    def forward(self, images):
        return images.flatten(1) @ self.weights


def victim(interface, **changes):
    return Victim(Fixed(), interface, num_classes=5, image_shape=SHAPE, **changes)


def images(count=20):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("interface", list(Interface))
def test_each_interface_gives_its_own_kind_and_nothing_else(interface):
    shown, true = images(), Fixed()(images())
    answers = victim(interface).ask(shown)
    assert torch.equal(answers.labels(), true.argmax(dim=1))
    if interface is Interface.LABELS:
        assert answers.kind is Interface.LABELS
        assert answers.values.dtype == torch.int64
    elif interface is Interface.TOP_K:
        assert ((answers.values > 0).sum(dim=1) == 3).all()
        assert (answers.values.sum(dim=1) < 1 + 1e-6).all()
    elif interface is Interface.PROBABILITIES:
        torch.testing.assert_close(answers.values, true.softmax(dim=1))
    else:
        assert answers.kind is Interface.LOGITS
        assert torch.equal(answers.values, true)


@given(st.integers(0, 2**31), st.floats(0.5, 20))
def test_soft_outputs_are_the_same_whether_logits_or_probabilities_were_given(seed, temperature):
    """A second softmax anywhere would show here."""
    # Within what probabilities carry: below SMALLEST their logarithms are cut off, by design.
    logits = (3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double()).clamp(-6, 6)
    given_logits = Answers(Interface.LOGITS, logits, 4)
    given_shares = Answers(Interface.PROBABILITIES, logits.softmax(dim=1), 4)
    first, second = ((each.scores() / temperature).softmax(dim=1) for each in (given_logits, given_shares))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_what_a_top_k_answer_leaves_out_shares_the_mass_that_is_left():
    shares = torch.tensor([[0.6, 0.2, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    scores = Answers(Interface.TOP_K, shares, 4).scores().exp()
    torch.testing.assert_close(scores[0], torch.tensor([0.6, 0.2, 0.1, 0.1]))
    torch.testing.assert_close(scores[1, :2], torch.tensor([0.5, 0.5]))
    assert (scores[1, 2:] > 0).all()


def test_a_label_is_a_certain_answer():
    scores = Answers(Interface.LABELS, torch.tensor([2, 0]), 3).scores().softmax(dim=1)
    assert scores.max(dim=1).values.min() > 0.999
    assert scores.argmax(dim=1).tolist() == [2, 0]


def test_queries_are_counted_and_one_too_many_is_not_answered():
    each = victim(Interface.LOGITS, budget=25)
    each.ask(images(20))
    assert (each.queries, each.left()) == (20, 5)
    with pytest.raises(QueryBudgetError, match="20 of 25 queries are spent, 6 more"):
        each.ask(images(6))
    assert each.queries == 20
    each.ask(images(5))
    assert each.left() == 0


def test_nobody_counts_where_the_weights_are_at_hand():
    network = Fixed()
    each = Victim(network, Interface.WEIGHTS, num_classes=5, image_shape=SHAPE, budget=1, network=network)
    each.ask(images(20))
    assert each.left() is None
    assert each.network() is network


@pytest.mark.parametrize("interface", [each for each in Interface if each is not Interface.WEIGHTS])
def test_weights_are_given_to_nobody_else(interface):
    with pytest.raises(InterfaceError, match="not its weights"):
        victim(interface).network()


def test_an_attack_that_needs_more_is_told_so():
    with pytest.raises(InterfaceError, match="needs logits, the victim gives labels"):
        victim(Interface.LABELS).require(Interface.LOGITS)
    victim(Interface.LOGITS).require(Interface.TOP_K)


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ConfigError, match="at least one"):
        victim(Interface.LOGITS, budget=budget)


def transfer(few, views=3, seed=0, augment=None, batch_size=16):
    settings = FitSettings(batch_size=batch_size)
    changes = augment or Augment(crop_padding=1)
    pixels, labels = np.array(few.train.images), np.array(few.train.labels)
    return TransferSet.of(pixels, labels, changes, views, settings, seed, torch.device("cpu"))


def test_the_first_view_is_the_images_as_they_are(few):
    made = transfer(few)
    count = len(few.train)
    assert len(made.pixels) == 3 * count
    assert torch.equal(made.pixels[:count], torch.from_numpy(np.array(few.train.images)))
    assert not torch.equal(made.pixels[count : 2 * count], made.pixels[:count])
    assert torch.equal(made.targets, torch.from_numpy(np.array(few.train.labels)).repeat(3))


def test_views_follow_from_the_seed(few):
    assert torch.equal(transfer(few, seed=5).pixels, transfer(few, seed=5).pixels)
    assert not torch.equal(transfer(few, seed=5).pixels, transfer(few, seed=6).pixels)


def test_each_epoch_is_one_view_and_its_index_says_which_images(few):
    made, count = transfer(few), len(few.train)
    for epoch in range(5):
        batches = list(made.epoch(epoch))
        assert len(batches) == len(made) == count // 16
        index = torch.cat([batch.index for batch in batches])
        assert len(index.unique()) == len(index)
        assert ((index // count) == epoch % 3).all()
        for batch in batches:
            assert torch.equal((batch.images * 255).round().byte(), made.pixels[batch.index])
            assert torch.equal(batch.labels, made.targets[batch.index])


def test_without_augmentation_there_is_one_view(few):
    assert transfer(few, views=4, augment=Augment()).views == 1


def test_no_views_are_refused(few):
    with pytest.raises(ConfigError, match="at least one"):
        transfer(few, views=0)


def test_a_student_learns_the_same_twice(few, make_net, weights_of, same_weights):
    def student():
        attacker = Attacker(
            few.train,
            few.validation,
            few.train,
            Augment(crop_padding=1),
            lambda: make_net(few),
            lambda: make_net(few),
            FitSettings(epochs=2, batch_size=16, learning_rate=0.003),
        )
        made = attacker.transfer()
        loss = lambda logits, batch: {"cross_entropy": cross_entropy(logits, batch.labels)}  # noqa: E731
        return weights_of(attacker.learn(attacker.new_student(), made, loss))

    assert same_weights(student(), student())
    assert not same_weights(student(), weights_of(make_net(few)))
