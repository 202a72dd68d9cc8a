"""Attacks with the weights: they bring back what is only hidden, copy features, and leave the victim alone."""

import copy
from dataclasses import replace

import pytest
import torch

from sdb.audit.attacks.victim import Interface, InterfaceError
from sdb.audit.attacks.white_box import (
    FROM_LABELS,
    Features,
    FineTuned,
    FreshHead,
    Pruned,
    WithFeatures,
    pruned,
)
from sdb.box.private_part import head_of
from sdb.errors import ConfigError

ATTACKS = {
    attack.name: attack
    for attack in (
        FineTuned(steps=4),
        Pruned(steps=4),
        FreshHead(steps=4),
        replace(FROM_LABELS, steps=4),
        Features(),
    )
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture
def headless(small_teacher):
    """The teacher without its head: all that its features know, and nothing said."""
    network = copy.deepcopy(small_teacher)
    with torch.no_grad():
        network.network.fc2.weight.mul_(0.01)
    return network


def test_the_victim_stays_as_it_is(few, small_teacher, attacker_of, victim_of, attack, weights_of, same_weights):
    before = weights_of(small_teacher)
    hooks = [len(module._forward_pre_hooks) for module in small_teacher.modules()]
    attack.run(victim_of(small_teacher, few, Interface.WEIGHTS), attacker_of(few, epochs=1))
    assert same_weights(weights_of(small_teacher), before)
    assert all(p.requires_grad and p.grad is None for p in small_teacher.parameters())
    assert not small_teacher.training
    assert [len(module._forward_pre_hooks) for module in small_teacher.modules()] == hooks


def test_the_same_seed_steals_the_same(
    few, small_teacher, attacker_of, victim_of, attack, weights_of, same_weights
):
    state = torch.get_rng_state()
    victim = victim_of(small_teacher, few, Interface.WEIGHTS)
    runs = [weights_of(attack.run(victim, attacker_of(few, epochs=1, seed=s)).student) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_they_need_the_weights(few, small_teacher, attacker_of, victim_of, attack):
    with pytest.raises(InterfaceError, match="weights"):
        attack.run(victim_of(small_teacher, few, Interface.LOGITS), attacker_of(few))


@pytest.mark.parametrize(
    "attack", [replace(FROM_LABELS, steps=150), FineTuned(steps=150), Pruned(share=0.3, steps=150)]
)
def test_positive_control_a_lost_head_comes_back(
    digits, headless, small_teacher, attacker_of, victim_of, distance_of, accuracy_of, attack
):
    stolen = attack.run(victim_of(headless, digits, Interface.WEIGHTS), attacker_of(digits))
    assert accuracy_of(stolen.recovered) > 0.85
    assert distance_of(small_teacher, stolen.recovered) < 0.5 * distance_of(small_teacher, headless)


def test_positive_control_top1_answers_are_enough_for_a_head(
    digits, small_teacher, attacker_of, victim_of, distance_of, accuracy_of
):
    victim = copy.deepcopy(small_teacher)
    with torch.no_grad():  # right answers that say nothing else
        victim.network.fc2.weight.mul_(30)
        victim.network.fc2.bias.mul_(30)
    recovered = (
        FreshHead(steps=150).run(victim_of(victim, digits, Interface.WEIGHTS), attacker_of(digits)).recovered
    )
    assert accuracy_of(recovered) > 0.85
    assert distance_of(small_teacher, recovered) < 0.5 * distance_of(small_teacher, victim)


def test_positive_control_features_teach(digits, headless, attacker_of, victim_of, accuracy_of):
    """The head is gone, the student learns all the same, and its features foretell the network's."""
    attacker = attacker_of(digits, epochs=20, width=8)
    victim = victim_of(headless, digits, Interface.WEIGHTS)
    student = Features(weight=10.0).run(victim, attacker).student
    assert accuracy_of(student) > 0.8
    plain = Features(weight=0.0).run(victim, attacker).student
    assert unexplained(student, headless, digits) < unexplained(plain, headless, digits)


@torch.no_grad()
def unexplained(student, network, data):
    """Share of the network's feature variance that is no linear function of the student's, on test images."""
    pixels = torch.from_numpy(data.test.images.copy()).float() / 255
    own, target = (WithFeatures(each).eval()(pixels)[:, 10:] for each in (student, network))
    own = torch.cat([own, torch.ones(len(own), 1)], dim=1)
    rest = target - own @ torch.linalg.lstsq(own, target).solution
    return float(rest.square().sum() / (target - target.mean(dim=0)).square().sum())


def test_features_are_what_goes_into_the_head(few, make_net):
    network = make_net(few).eval()
    images = torch.rand(3, *few.image_shape)
    logits, features = WithFeatures(network)(images).split([10, head_of(network).in_features], dim=1)
    assert torch.equal(logits, network(images))
    assert torch.allclose(head_of(network)(features), logits, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_pruning_removes_its_share_of_the_smallest(few, make_net, share):
    network = make_net(few)
    for (name, before), after in zip(network.named_parameters(), pruned(network, share).parameters(), strict=True):
        gone = (after == 0) & (before != 0)
        if before.ndim > 1:
            assert int(gone.sum()) == pytest.approx(share * before.numel(), abs=1), name
            assert not gone.any() or before[gone].abs().max() <= before[~gone].abs().min()
        else:
            assert not gone.any()


def test_a_share_of_all_is_refused(few, small_teacher, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="share"):
        Pruned(share=1.0).run(victim_of(small_teacher, few, Interface.WEIGHTS), attacker_of(few))
