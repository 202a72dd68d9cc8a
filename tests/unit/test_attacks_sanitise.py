"""What the cleaning of soft outputs keeps and what it throws away."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdb import losses
from sdb.audit.attacks.sanitise import (
    SecondPeakRemoved,
    TargetAgainstRest,
    TopKOnly,
    class_means,
    clipped,
    peaks_removed,
    top_k_kept,
)
from sdb.errors import ConfigError

SCORES = st.integers(0, 10**6).map(
    lambda seed: 4 * torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=25, deadline=None)
@given(scores=SCORES, k=st.integers(1, 6))
def test_the_top_k_stay_and_the_others_share(scores, k):
    before, after = scores.softmax(dim=1), top_k_kept(scores, k).exp()
    assert torch.allclose(after.sum(dim=1), torch.ones(7), atol=1e-5)
    order = before.argsort(dim=1, descending=True)
    assert torch.allclose(after.gather(1, order[:, :k]), before.gather(1, order[:, :k]), atol=1e-6)
    rest = after.gather(1, order[:, k:])
    assert torch.equal(rest, rest[:, :1].expand_as(rest)) if k < 6 else rest.numel() == 0
    assert torch.equal(after.argmax(dim=1), before.argmax(dim=1))


@settings(max_examples=25, deadline=None)
@given(scores=SCORES, margin=st.floats(0.1, 20))
def test_nothing_lies_below_the_margin(scores, margin):
    after = clipped(scores, margin)
    assert (after.amax(dim=1) - after.amin(dim=1) <= margin + 1e-5).all()
    kept = scores >= scores.amax(dim=1, keepdim=True) - margin
    assert torch.equal(after[kept], scores[kept])
    assert torch.equal(clipped(after, margin), after)


@settings(max_examples=25, deadline=None)
@given(scores=SCORES, count=st.integers(1, 4))
def test_peaks_come_down_to_the_mean_of_the_others(scores, count):
    after = peaks_removed(scores, count)
    for row, cleaned in zip(scores, after, strict=True):
        order = row.argsort(descending=True)
        floor = row[order[1 + count :]].mean()
        assert torch.allclose(cleaned[order[1 : 1 + count]], floor.expand(count), atol=1e-5)
        assert cleaned[order[0]] == row[order[0]]
        assert torch.equal(cleaned[order[1 + count :]], row[order[1 + count :]])


@settings(max_examples=25, deadline=None)
@given(scores=SCORES, classes=st.lists(st.integers(0, 5), min_size=7, max_size=7))
def test_class_means_are_those_of_a_slow_loop(scores, classes):
    slow = [
        sum(scores[other] for other in range(7) if classes[other] == mine) / classes.count(mine)
        for mine in classes
    ]
    assert torch.allclose(class_means(scores, torch.tensor(classes)), torch.stack(slow), atol=1e-5)


def test_target_against_rest_is_dkd_without_the_rest(
    few, small_teacher, attacker_of, victim_of, weights_of, same_weights
):
    attacker = attacker_of(few, epochs=2)
    stolen = TargetAgainstRest().run(victim_of(small_teacher, few), attacker)
    transfer = attacker.transfer()
    scores = transfer.ask(victim_of(small_teacher, few)).scores()

    def loss(logits, batch):
        soft = losses.dkd_term(
            logits, scores[batch.index], batch.labels, temperature=4.0, target_weight=1.0, rest_weight=0.0
        )
        return {"target": soft, "labels": losses.cross_entropy(logits, batch.labels)}

    student = attacker.learn(attacker.new_student(), transfer, loss)
    assert same_weights(weights_of(student), weights_of(stolen.student))


class Rearranged(nn.Module):
    """A teacher whose answers about the classes other than the first are in another order."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        logits = self.teacher(images)
        return torch.cat([logits[:, :1], logits[:, 1:].roll(1, dims=1)], dim=1)


def test_target_against_rest_does_not_look_among_the_rest(few, small_teacher, attacker_of, victim_of, distance_of):
    """Where the target is always the first class, the order of the others changes nothing."""
    attacker = attacker_of(few, epochs=20)
    attacker = replace(attacker, train=replace(few.train, labels=0 * few.train.labels))
    modules = (small_teacher, Rearranged(small_teacher))
    students = [TargetAgainstRest().run(victim_of(module, few), attacker).student for module in modules]
    others = [TopKOnly().run(victim_of(module, few), attacker).student for module in modules]
    assert 100 * distance_of(*students) < distance_of(*others)


@pytest.mark.parametrize("attack", [TopKOnly(k=0), SecondPeakRemoved(peaks=0), SecondPeakRemoved(peaks=9)])
def test_impossible_parameters_are_refused(attack, few, small_teacher, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="k: 0|peaks: "):
        attack.run(victim_of(small_teacher, few), attacker_of(few))
