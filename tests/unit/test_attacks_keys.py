"""Keys tried and searched: they open what can be opened, within the budget, and never see the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb.audit.attacks.keys_tried import Asking, KeyByGradients, KeyByQueries, LeakedPart, RandomKeys, shares
from sdb.audit.attacks.similar_keys import Carry
from sdb.audit.attacks.victim import Interface, InterfaceError, QueryBudgetError
from sdb.config import WrapSettings
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.wrapping.wrap import wrap

KEY = Key(bytes(range(32)), blend=0.5)
ATTACKS = {
    "random_keys": RandomKeys(count=6, images=8),
    "leaked_part": LeakedPart(count=6, images=8),
    "key_by_queries": KeyByQueries(queries=200, batch_size=8),
    "key_by_gradients": KeyByGradients(steps=3, restarts=1),
}
BLACK_BOX = [name for name in ATTACKS if name != "key_by_gradients"]


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


@pytest.fixture(scope="module")
def box(digits, small_teacher):
    """A box with an image key and no wrong-key rejection: keys can be found, which is what controls need."""
    settings = WrapSettings(
        epochs=25, batch_size=32, optimizer="adam", learning_rate=3e-3, device="cpu", wrong_key_rejection=False
    )
    return wrap(small_teacher, digits, settings, key=KEY)


@pytest.fixture(scope="module")
def facts(box, small_teacher, distance_of):
    """KL to the teacher, keyless and keyed."""
    keyless, keyed = distance_of(small_teacher, box), distance_of(small_teacher, box.unlock(KEY))
    assert keyed < 0.6 * keyless
    return keyless, keyed


def closed(facts, distance):
    """Share of the way from keyless to keyed."""
    keyless, keyed = facts
    return (keyless - distance) / (keyless - keyed)


def test_positive_control_gradients_find_the_key(
    digits, box, facts, small_teacher, attacker_of, victim_of, distance_of
):
    victim = victim_of(box.classifier, digits, Interface.WEIGHTS)
    stolen = KeyByGradients(steps=150, restarts=1).run(victim, attacker_of(digits, epochs=25, blend=0.5))
    assert closed(facts, distance_of(small_teacher, stolen.recovered)) > 0.5


def test_positive_control_queries_find_the_key(
    digits, box, facts, small_teacher, attacker_of, victim_of, distance_of
):
    victim = victim_of(box, digits, Interface.LOGITS)
    attacker = attacker_of(digits, epochs=25, blend=0.5)
    few, many = (
        closed(facts, distance_of(small_teacher, KeyByQueries(queries=n).run(victim, attacker).recovered))
        for n in (256, 12_000)
    )
    assert many > 0.4
    assert many > few


def test_positive_control_half_a_key_opens_more_than_guesses(
    digits, box, facts, small_teacher, attacker_of, victim_of, distance_of
):
    attacker = attacker_of(digits, epochs=25, blend=0.5, leaked_key=KEY)
    victim = victim_of(box, digits, Interface.LOGITS)
    half, guessed = (
        closed(facts, distance_of(small_teacher, attack.run(victim, attacker).recovered))
        for attack in (LeakedPart(), RandomKeys(count=16))
    )
    assert half > 0.5
    assert half > guessed


def test_the_best_of_the_random_keys_is_used(few, attacker_of, victim_of):
    class Picky(nn.Module):  # opens for a bright first pixel; else all classes are the same to it
        def forward(self, images):
            first = images[:, 0, 0, 0]
            return 30 * (first > 0.9).float().unsqueeze(1) * torch.eye(10)[few_labels(images)]

    def few_labels(images):  # what each image shows, whatever is laid over it: by its last corner pixel
        return torch.arange(len(images)) % 10

    attacker = attacker_of(few, epochs=1, blend=0.5)
    stolen = RandomKeys(count=40, images=8).run(victim_of(Picky(), few), attacker)
    others = RandomKeys(count=1, images=8).run(victim_of(Picky(), few), attacker)
    assert stolen.details["distance_from_own"] <= others.details["distance_from_own"]
    assert stolen.details["tried"] == 40


@pytest.mark.parametrize("name", BLACK_BOX)
@pytest.mark.parametrize("budget", [80, 130, 10_000])
def test_the_budget_holds(few, small_teacher, attacker_of, victim_of, name, budget):
    victim = victim_of(small_teacher, few, budget=budget)
    ATTACKS[name].run(victim, attacker_of(few, epochs=1, blend=0.5, leaked_key=KEY))
    assert 0 < victim.queries <= budget


@pytest.mark.parametrize("name", BLACK_BOX)
def test_a_budget_for_nothing_is_refused_and_not_spent(few, small_teacher, attacker_of, victim_of, name):
    victim = victim_of(small_teacher, few, budget=12)
    with pytest.raises(QueryBudgetError):
        ATTACKS[name].run(victim, attacker_of(few, epochs=1, blend=0.5, leaked_key=KEY))
    assert victim.queries == 0


def test_a_budget_is_shared_between_search_and_student(few, small_teacher, attacker_of, victim_of):
    attacker = attacker_of(few)  # 48 images, 2 views
    for budget, wanted, expected in (
        (None, 500, (500, 48, 2)),
        (600, 500, (500, 48, 2)),
        (200, 500, (104, 48, 2)),
    ):
        search, rest = shares(victim_of(small_teacher, few, budget=budget), attacker, wanted, 8)
        assert (search, len(rest.train), rest.views) == expected
    search, rest = shares(victim_of(small_teacher, few, budget=150), attacker, 500, 8)
    assert (search, len(rest.train), rest.views) == (75, 48, 1)
    search, rest = shares(victim_of(small_teacher, few, budget=60), attacker, 500, 8)
    assert (search, len(rest.train), rest.views) == (30, 30, 1)


def test_the_same_seed_steals_the_same(
    few, small_teacher, attacker_of, victim_of, attack, weights_of, same_weights
):
    state = torch.get_rng_state()
    runs = []
    for seed in (1, 1, 2):
        victim = victim_of(small_teacher, few, max(attack.needs, Interface.LOGITS))
        attacker = attacker_of(few, epochs=1, seed=seed, blend=0.5, leaked_key=KEY)
        runs.append(weights_of(attack.run(victim, attacker).student))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_the_victim_stays_as_it_is(few, small_teacher, attacker_of, victim_of, attack, weights_of, same_weights):
    before = weights_of(small_teacher)
    victim = victim_of(small_teacher, few, max(attack.needs, Interface.LOGITS))
    attack.run(victim, attacker_of(few, epochs=1, blend=0.5, leaked_key=KEY))
    assert same_weights(weights_of(small_teacher), before)
    assert all(p.requires_grad and p.grad is None for p in small_teacher.parameters())


def test_only_a_leak_looks_at_the_leaked_key(few, small_teacher, attacker_of, victim_of, attack):
    class Untouchable:
        def pattern(self, shape):
            raise AssertionError("the attack looked at the true key")

    victim = victim_of(small_teacher, few, max(attack.needs, Interface.LOGITS))
    attacker = attacker_of(few, epochs=1, blend=0.5, leaked_key=Untouchable())
    if "leaked_key" in attack.uses:
        with pytest.raises(AssertionError, match="looked"):
            attack.run(victim, attacker)
        with pytest.raises(ConfigError, match="leaked_key"):
            attack.run(victim, replace(attacker, leaked_key=None))
    else:
        attack.run(victim, attacker)


def test_the_blend_must_be_known(few, small_teacher, attacker_of, victim_of, attack):
    victim = victim_of(small_teacher, few, max(attack.needs, Interface.LOGITS))
    with pytest.raises(ConfigError, match="blend"):
        attack.run(victim, attacker_of(few, epochs=1, leaked_key=KEY))


def test_labels_alone_are_too_little(few, small_teacher, attacker_of, victim_of, attack):
    with pytest.raises(InterfaceError):
        attack.run(victim_of(small_teacher, few, Interface.LABELS), attacker_of(few, blend=0.5, leaked_key=KEY))


def test_asking_counts_and_answers_as_the_victim(few, small_teacher, victim_of):
    victim = victim_of(small_teacher, few, budget=10)
    asking = Asking(victim, torch.device("cpu"))
    images = torch.from_numpy(np.array(few.test.images[:6])).float() / 255
    assert torch.allclose(asking(images).softmax(dim=1), small_teacher(images).softmax(dim=1), atol=1e-6)
    assert victim.queries == 6
    with pytest.raises(QueryBudgetError):
        nn.Sequential(Carry(torch.zeros(few.image_shape), 0.5), asking)(images)
