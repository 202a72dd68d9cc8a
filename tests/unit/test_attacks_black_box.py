"""Every attack that only asks: it works where it must, is the same twice, counts, refuses, and sees what it says.

A new attack is one row of ATTACKS.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb.audit.attacks import ATTACKS as ALL
from sdb.audit.attacks import edges
from sdb.audit.attacks.averaging import AugmentedAverage, BlendAverage, NoiseAverage
from sdb.audit.attacks.data_free import DataFree
from sdb.audit.attacks.distil import FULL, Distil, Recipe, TunedDistil
from sdb.audit.attacks.edges import EdgeWalking, MarginQueries
from sdb.audit.attacks.gradient_aligned import GradientAligned
from sdb.audit.attacks.knockoff import KnockoffAdaptive, KnockoffRandom
from sdb.audit.attacks.random_patterns import RandomPatterns
from sdb.audit.attacks.sanitise import (
    UNLABELLED_AVERAGER,
    Averager,
    Clip,
    SecondPeakRemoved,
    TargetAgainstRest,
    TopKOnly,
)
from sdb.audit.attacks.semi_supervised import FixMatch
from sdb.audit.attacks.skeptical import Skeptical
from sdb.audit.attacks.victim import Interface, InterfaceError, QueryBudgetError
from sdb.audit.proxy import letters
from sdb.data import from_arrays
from sdb.errors import ConfigError

# The attack, small where it is large, and what it asks for each of the attacker's images and views; None where it has
# a number of its own.
ATTACKS = [
    (TopKOnly(), 1),
    (Clip(), 1),
    (SecondPeakRemoved(), 1),
    (TargetAgainstRest(), 1),
    (Averager(), 1),
    (UNLABELLED_AVERAGER, 1),
    (AugmentedAverage(queries=2), 2),
    (NoiseAverage(queries=2, strengths=(0.05,)), 2),
    (BlendAverage(queries=2, strengths=(0.2,)), 2),
    (Skeptical(), 1),
    (GradientAligned(), 1),
    (FixMatch(), 1),
    (MarginQueries(pool=4), None),
    (EdgeWalking(walks=4, steps=3), None),
    (KnockoffRandom(images=2000, passes=5), None),
    (KnockoffAdaptive(images=1500, rounds=4, passes=6), None),
    (RandomPatterns(queries=6000, batch_size=64), None),
    (DataFree(queries=6000, batch_size=64, width=8), None),
]
NAMES = [attack.name for attack, _ in ATTACKS]
BLACK_BOX = pytest.mark.parametrize("attack", [attack for attack, _ in ATTACKS], ids=NAMES)


class Counting(nn.Module):
    """A module that counts the images it sees."""

    def __init__(self, module):
        super().__init__()
        self.module, self.seen = module, 0

    def forward(self, images):
        self.seen += len(images)
        return self.module(images)


@pytest.fixture(scope="module")
def own(digits, attacker_of):
    """Means with which students of the teacher do well."""
    return attacker_of(digits, epochs=20, width=8, proxy=letters(1500, digits.image_shape, 0))


@pytest.fixture(scope="module")
def reference(digits, small_teacher, own, victim_of, accuracy_of):
    """Accuracy of the student of the unprotected teacher."""
    return accuracy_of(Distil().run(victim_of(small_teacher, digits, Interface.LOGITS), own).student)


@pytest.fixture
def scanty(few, attacker_of):
    """48 images, two epochs."""
    return attacker_of(few, epochs=2, proxy=letters(60, few.image_shape, 0))


def short(attack):
    """The attack as small as it goes."""
    return replace(attack, queries=900) if isinstance(attack, DataFree | RandomPatterns) else attack


def test_a_bare_class_of_a_blend_counts_as_the_first_student_trusts_it():
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        student[1].weight.copy_(torch.tensor([[20.0], [0.0]]))
        student[1].bias.copy_(torch.tensor([-9.0, 0.0]))
    found = edges.trust_of(student, pixels, torch.tensor([0, 1, 0]))
    second = 1 / (1 + math.exp(20 * 100 / 255 - 9))
    assert found.tolist() == pytest.approx([0.5, second, 0.99], abs=1e-6)
    assert 0.5 < second < 0.99


def test_who_tells_a_class_and_one_confidence_for_it_tells_no_doubt():
    named = torch.tensor([0, 0, 1, 1])
    assert not edges.tells_doubt(torch.tensor([0.9, 0.9, 0.8, 0.8]), named)
    assert edges.tells_doubt(torch.tensor([0.9, 0.9, 0.8, 0.7]), named)


@BLACK_BOX
def test_positive_control(attack, digits, small_teacher, own, reference, victim_of, accuracy_of):
    """Less than an audit asks for: these students learn from a sixth of the images, or a tenth of the queries."""
    stolen = attack.run(victim_of(small_teacher, digits, Interface.LOGITS), own)
    share = (accuracy_of(stolen.student) - 0.1) / (reference - 0.1)
    assert share > (0.75 if "labels" in attack.uses else 0.6) * attack.control
    assert not stolen.student.training


@BLACK_BOX
@pytest.mark.parametrize("interface", [Interface.TOP_K, Interface.PROBABILITIES, Interface.LOGITS])
def test_it_works_with_all_that_it_says_it_works_with(attack, interface, few, small_teacher, scanty, victim_of):
    stolen = short(attack).run(victim_of(small_teacher, few, interface), scanty)
    assert all(torch.isfinite(tensor).all() for tensor in stolen.student.state_dict().values())


@pytest.mark.parametrize("name", ["distil", "distil_unlabelled", "averager", "averager_unlabelled"])
def test_who_has_no_labels_learns_the_same_whatever_they_are(
    name, few, small_teacher, scanty, victim_of, weights_of, same_weights
):
    attack = ALL[name]
    wrong = replace(scanty, train=replace(scanty.train, labels=(scanty.train.labels + 1) % few.num_classes))
    victims = [victim_of(small_teacher, few, Interface.LOGITS) for _ in range(2)]
    students = [attack.run(*each).student for each in zip(victims, (scanty, wrong), strict=True)]
    assert same_weights(*map(weights_of, students)) == ("labels" not in attack.uses)


@BLACK_BOX
def test_twice_the_same_and_nothing_is_changed(
    attack, few, small_teacher, scanty, victim_of, weights_of, same_weights
):
    before, state = weights_of(small_teacher), torch.random.get_rng_state()
    images = scanty.train.images.copy()
    students = [short(attack).run(victim_of(small_teacher, few), scanty).student for _ in range(2)]
    assert same_weights(weights_of(students[0]), weights_of(students[1]))
    assert same_weights(weights_of(small_teacher), before)
    assert not any(parameter.grad is not None for parameter in small_teacher.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(scanty.train.images, images)
    # Nothing of the attack stays on the student.
    assert weights_of(students[0]).keys() == weights_of(scanty.new_student()).keys()
    assert not any(module._forward_hooks for module in students[0].modules())


@pytest.mark.parametrize(("attack", "each"), ATTACKS, ids=NAMES)
def test_queries_are_counted_and_the_budget_holds(attack, each, few, small_teacher, scanty, victim_of):
    module = Counting(small_teacher)
    victim = victim_of(module, few)
    short(attack).run(victim, scanty)
    assert victim.queries == module.seen > 0
    if each is not None:
        assert victim.queries == each * scanty.views * len(scanty.train)
    limited = victim_of(module, few, budget=70)
    short(attack).run(limited, scanty)
    assert 0 < limited.queries <= 70
    poor = victim_of(module, few, budget=3)
    with pytest.raises(QueryBudgetError, match="one .*for each class"):
        short(attack).run(poor, scanty)
    assert poor.queries == 0


@BLACK_BOX
def test_a_victim_that_names_classes_only_is_enough_or_refused(attack, few, small_teacher, scanty, victim_of):
    victim = victim_of(small_teacher, few, Interface.LABELS)
    if attack.needs is Interface.LABELS:
        short(attack).run(victim, scanty)
        return
    with pytest.raises(InterfaceError):
        attack.run(victim, scanty)
    assert victim.queries == 0


@BLACK_BOX
def test_it_uses_only_what_it_says(attack, few, small_teacher, scanty, victim_of, weights_of, same_weights):
    other = scanty
    if "labels" not in attack.uses:
        train = replace(scanty.train, labels=(scanty.train.labels + 1) % 10)
        validation = replace(scanty.validation, labels=(scanty.validation.labels + 1) % 10)
        other = replace(other, train=train, validation=validation)
    if "proxy" in attack.uses or "no_images" in attack.uses:
        nothing = few.train.take(np.arange(0))
        other = replace(other, train=nothing, validation=nothing)
    if "proxy" not in attack.uses:
        other = replace(other, proxy=few.train.take(np.arange(0)))
    students = [short(attack).run(victim_of(small_teacher, few), attacker).student for attacker in (scanty, other)]
    assert same_weights(*(weights_of(student) for student in students))


def test_with_two_classes_a_thief_leaves_out_losses_that_teach_nothing_and_says_so(
    make_net, attacker_of, victim_of
):
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(40) % 2
    data = from_arrays(images, labels, test_images=images, test_labels=labels, class_names=["cat", "dog"])
    victim, attacker = victim_of(make_net(data), data), attacker_of(data, epochs=1)
    stolen = TunedDistil(recipes=FULL).run(victim, attacker)
    empty = {str(recipe) for recipe in FULL if recipe.loss == "standardised_kd"}
    assert stolen.details["left_out"].keys() == empty
    assert "two classes" in " ".join(stolen.details["left_out"].values())
    assert stolen.details["validation"].keys() == {str(recipe) for recipe in FULL} - empty
    alone = Recipe("standardised_kd", 2.0, 9.0, 1.0)
    for attack in (TunedDistil(recipes=(alone,)), Distil(recipe=alone)):
        with pytest.raises(ConfigError, match="teaches"):
            attack.run(victim, attacker)


def test_with_more_classes_no_loss_is_left_out(few, small_teacher, attacker_of, victim_of):
    stolen = TunedDistil().run(victim_of(small_teacher, few), attacker_of(few, epochs=1))
    assert stolen.details.keys() == {"chosen", "validation"}
