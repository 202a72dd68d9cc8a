"""Two customers: what differs between their boxes falls out, what is common stays."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdb.answers.rows import decoy_logits
from sdb.audit.attacks.collusion import TwoBoxes
from sdb.audit.attacks.victim import QueryBudgetError
from sdb.errors import ConfigError


class Peaked(nn.Module):
    """A box: the teacher's answer under decoys of this customer."""

    def __init__(self, teacher, shift):
        super().__init__()
        decoys = [[(c + shift) % 10, (c + shift + 1) % 10] for c in range(10)]
        self.teacher, self.peaks = teacher, decoy_logits(decoys, 12.0, 1.0)
        self.asked = []

    def forward(self, images):
        self.asked.append(images)
        logits = self.teacher(images)
        return 0.5 * logits + self.peaks[logits.argmax(dim=1)]


@pytest.fixture
def boxes(small_teacher):
    return Peaked(small_teacher, 1), Peaked(small_teacher, 5)


def test_positive_control_two_boxes_say_more_than_one(
    digits, boxes, small_teacher, attacker_of, victim_of, distance_of, weights_of, same_weights
):
    before = weights_of(small_teacher)
    victim, other = (victim_of(box, digits) for box in boxes)
    both = TwoBoxes().run(victim, attacker_of(digits, epochs=20, width=8, colluder=other))
    alone = TwoBoxes().run(victim, attacker_of(digits, epochs=20, width=8, colluder=victim))
    assert distance_of(small_teacher, both.student) < 0.7 * distance_of(small_teacher, alone.student)
    assert both.details["chosen"] in ("mean", "minimum")
    assert same_weights(weights_of(small_teacher), before)


def test_both_are_asked_the_same_and_all_is_counted(few, boxes, attacker_of, victim_of):
    victim, other = (victim_of(box, few) for box in boxes)
    stolen = TwoBoxes().run(victim, attacker_of(few, epochs=1, colluder=other))
    assert victim.queries == other.queries == stolen.details["colluder_queries"] == 2 * len(few.train)
    assert torch.equal(torch.cat(boxes[0].asked), torch.cat(boxes[1].asked))


def test_the_budget_holds(few, boxes, attacker_of, victim_of):
    attacker = attacker_of(few, epochs=1, colluder=victim_of(boxes[1], few, budget=1000))
    victim = victim_of(boxes[0], few, budget=60)
    TwoBoxes().run(victim, attacker)
    assert victim.queries <= 60
    with pytest.raises(QueryBudgetError):
        TwoBoxes().run(victim_of(boxes[0], few, budget=3), attacker)


def test_the_same_seed_steals_the_same(few, boxes, attacker_of, victim_of, weights_of, same_weights):
    attacker = attacker_of(few, epochs=1, colluder=victim_of(boxes[1], few))
    runs = [weights_of(TwoBoxes().run(victim_of(boxes[0], few), attacker).student) for _ in range(2)]
    assert same_weights(*runs)


def test_it_takes_two(few, boxes, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="colluder"):
        TwoBoxes().run(victim_of(boxes[0], few), replace(attacker_of(few), colluder=None))
