"""Averages over neighbours: what the neighbours are, and that it is the soft outputs that are averaged."""

import pytest
import torch
from torch import nn

from sdb.audit.attacks.averaging import AugmentedAverage, BlendAverage, NoiseAverage
from sdb.audit.attacks.distil import Distil
from sdb.data import Augment
from sdb.errors import ConfigError


@pytest.fixture
def attacker(few, attacker_of):
    return attacker_of(few, epochs=2)


def neighbours(attack, attacker, strength=1.0, seed=0):
    transfer = attacker.transfer()
    return transfer.images(), attack.neighbours(transfer, attacker, strength, torch.Generator().manual_seed(seed))


def test_noise_has_its_strength(attacker):
    images, noisy = neighbours(NoiseAverage(), attacker, 0.05)
    middling = (images > 0.3) & (images < 0.7)  # where nothing is cut off
    assert (noisy - images)[middling].std() == pytest.approx(0.05, rel=0.15)
    assert noisy.min() >= 0 and noisy.max() <= 1


def test_a_blend_has_its_share_of_another_image(attacker):
    images, blends = neighbours(BlendAverage(), attacker, 0.25)
    others = ((blends - 0.75 * images) / 0.25).flatten(1)
    nearest = torch.cdist(others, images.flatten(1)).min(dim=1).values
    assert nearest.max() < 0.01


@pytest.mark.parametrize("augment", [Augment(crop_padding=1), Augment()])
def test_augmented_copies_are_shifts(few, attacker_of, augment):
    images, moved = neighbours(AugmentedAverage(), attacker_of(few, augment=augment, views=1))
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    shifts = torch.stack([padded[..., y : y + 8, x : x + 8] for y in range(3) for x in range(3)])
    same = (shifts == moved).flatten(2).all(dim=2)
    assert same.any(dim=0).all()
    assert same.sum(dim=1).gt(0).sum() > 3


def test_without_noise_it_is_plain_distillation(few, small_teacher, attacker, victim_of, distance_of):
    still = NoiseAverage(strengths=(0.0,)).run(victim_of(small_teacher, few), attacker)
    plain = Distil().run(victim_of(small_teacher, few), attacker)
    assert distance_of(plain.student, still.student) < 1e-4


class Alternating(nn.Module):
    """Certain of the first class and of the second in turn."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return 8.0 * nn.functional.one_hot(torch.full((len(images),), self.calls % 2), 10).float()


def test_soft_outputs_are_averaged_at_the_temperature(few, attacker, victim_of, monkeypatch):
    learnt = {}

    def remember(attacker, transfer, scores, recipe, labels):
        learnt["soft"] = (scores / recipe.temperature).softmax(dim=1)
        return attacker.new_student()

    monkeypatch.setattr("sdb.audit.attacks.averaging.distilled", remember)
    NoiseAverage(queries=2, strengths=(0.1,)).run(victim_of(Alternating(), few), attacker)
    answers = torch.stack([8.0 * torch.eye(10)[0], 8.0 * torch.eye(10)[1]])
    expected = (answers.log_softmax(dim=1) / 4).softmax(dim=1).mean(dim=0)
    assert torch.allclose(learnt["soft"], expected.expand_as(learnt["soft"]), atol=1e-5)


def test_the_strength_that_is_best_on_validation_is_kept(few, small_teacher, attacker, victim_of):
    stolen = NoiseAverage(queries=1, strengths=(0.0, 0.1)).run(victim_of(small_teacher, few), attacker)
    values = stolen.details["validation"]
    assert values[stolen.details["chosen"]] == max(values.values()) == attacker.score(stolen.student)


@pytest.mark.parametrize("attack", [NoiseAverage(queries=0), BlendAverage(strengths=())])
def test_averages_of_nothing_are_refused(attack, few, small_teacher, attacker, victim_of):
    with pytest.raises(ConfigError, match="at least one"):
        attack.run(victim_of(small_teacher, few), attacker)
