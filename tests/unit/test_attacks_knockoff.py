"""Knockoff: the bandit, its rewards, and how the answered images are learnt."""

import numpy as np
import pytest
import torch

from sdb.audit.attacks.knockoff import Bandit, KnockoffAdaptive, KnockoffRandom, in_parts, rewards_of
from sdb.audit.proxy import letters
from sdb.errors import ConfigError

KINDS = np.arange(60) % 3


def test_no_image_is_chosen_twice():
    bandit = Bandit(KINDS, 5, seed=0)
    rows, kinds = (np.concatenate(pair) for pair in zip(*(bandit.choose(20) for _ in range(3)), strict=True))
    assert sorted(rows) == list(range(60))
    assert np.array_equal(KINDS[rows], kinds)


def test_what_is_rewarded_is_chosen_more():
    bandit = Bandit(KINDS, 25, seed=0)
    for _ in range(3):
        _, kinds = bandit.choose(10)
        bandit.learn(kinds, (kinds == 1).astype(float))
    assert bandit.policy().argmax() == 1
    assert bandit.policy()[1] > 0.4
    assert bandit.policy().sum() == pytest.approx(1)


def test_a_kind_that_is_used_up_is_not_chosen():
    bandit = Bandit(np.array([0, 1, 1, 1]), 5, seed=0)
    bandit.preferences[:] = [50.0, 0.0]
    _, kinds = bandit.choose(1)
    assert kinds[0] == 0
    assert bandit.policy().tolist() == [0.0, 1.0]


def test_the_step_of_a_preference_is_that_of_the_gradient_bandit():
    bandit = Bandit(KINDS, 25, seed=0)
    bandit.learn(np.array([2]), np.array([0.9]))
    assert np.allclose(bandit.preferences, [-0.3, -0.3, 0.6])
    policy = bandit.policy()
    bandit.learn(np.array([2]), np.array([0.4]))  # baseline 0.9, chosen twice
    assert np.allclose(bandit.preferences, [-0.3, -0.3, 0.6] - 0.25 * (np.array([0, 0, 1]) - policy))


def test_rewards_are_those_of_a_slow_loop():
    draw = torch.Generator().manual_seed(0)
    answers = torch.randn(5, 4, generator=draw).softmax(1)
    before, student = torch.randn(4, generator=draw).softmax(0), torch.randn(5, 4, generator=draw)
    for row, answer, logits in zip(rewards_of(answers, before, student), answers, student, strict=True):
        ranked = sorted(answer.tolist(), reverse=True)
        diversity = sum(max(0.0, float(answer[k] - before[k])) for k in range(4))
        loss = -sum(float(answer[k] * logits.log_softmax(0)[k]) for k in range(4))
        assert row.tolist() == pytest.approx([ranked[0] - ranked[1], diversity, loss], abs=1e-5)


def test_each_pass_sees_each_image_once(few, attacker_of):
    pixels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    transfer = in_parts(pixels, attacker_of(few), parts=5, batch_size=10)
    seen = [int(value) for epoch in range(5) for batch in transfer.epoch(epoch) for value in batch.index]
    assert sorted(seen) == list(range(100))
    assert len(in_parts(pixels, attacker_of(few), parts=50, batch_size=40)) == 1
    assert in_parts(pixels[:7], attacker_of(few), parts=3, batch_size=40).batch_size == 7


def test_they_ask_as_often_as_they_are_told(few, small_teacher, attacker_of, victim_of):
    attacker = attacker_of(few, epochs=1, proxy=letters(50, few.image_shape, 0))
    for attack in (KnockoffRandom(images=40), KnockoffAdaptive(images=40, rounds=3)):
        victim = victim_of(small_teacher, few)
        stolen = attack.run(victim, attacker)
        assert victim.queries == stolen.details["images"] == 40


def test_without_rounds_nothing_can_be_chosen(few, small_teacher, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="rounds: 0"):
        KnockoffAdaptive(rounds=0).run(victim_of(small_teacher, few), attacker_of(few))
