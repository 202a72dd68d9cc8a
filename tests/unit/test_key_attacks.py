"""Attacks on keys: they succeed where they must, cost what they say, and leave the victim alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb.audit.attacks.key_search import (
    CountedVictim,
    EvolutionSearch,
    GradientSearch,
    HillClimb,
    QueryBudgetError,
    mean_entropy,
)
from sdb.audit.attacks.retrain import Retrain, share_of
from sdb.audit.attacks.similar_keys import Jpeg, Quantise, SimilarKeys, blurred, cosine_similarity, near
from sdb.box.private_part import replaceable
from sdb.data import ImageSet
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.training.evaluation import evaluate, evaluation_batches

KEY = Key(bytes(range(32)), blend=0.5)
SHAPE = (1, 8, 8)
TRUE = torch.from_numpy(KEY.pattern(SHAPE).copy()).float() / 255
CPU = torch.device("cpu")


class Trigger(nn.Module):
    """A box without any defence: its answer is confident as far as the key's pattern is in the image."""

    def __init__(self, sharpness):
        super().__init__()
        self.direction = nn.Parameter((TRUE - TRUE.mean()).flatten() / (TRUE - TRUE.mean()).norm())
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.sharpness = sharpness
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        right = images[:, 0, 0, 0] > 0.5
        strength = self.sharpness * self.norm((images.flatten(1) @ self.direction).unsqueeze(1)).squeeze(1)
        return torch.stack(
            [torch.where(right, strength, -strength), torch.where(right, -strength, strength)], dim=1
        )


@pytest.fixture
def victim():
    return Trigger(sharpness=1.0).eval()


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, *SHAPE), dtype=np.uint8)
    return ImageSet(images, np.arange(64) % 2)


def never(*arguments):
    raise AssertionError("the attack asked for what it must not see")


# --- similar keys ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def neighbours(few, make_net):
    return SimilarKeys(random_keys=5).run(make_net(few), KEY, SHAPE)


def test_neighbours_are_as_near_as_they_say(neighbours):
    by_name = {each.name: each.cosine for each in neighbours}
    assert by_name["true key"] == pytest.approx(1)
    for cosine in SimilarKeys().cosines:
        assert by_name[f"noise, cosine {cosine:g}"] == pytest.approx(cosine, abs=0.06)
    assert 0.4 < by_name["top half, rest grey"] < 0.9
    assert by_name["blurred, sigma 1"] > by_name["blurred, sigma 2"] > 0
    assert [abs(by_name[f"random {n}"]) < 0.5 for n in range(5)] == [True] * 5
    assert by_name["blend +0.05"] == by_name["JPEG 90"] == pytest.approx(1)


def test_each_neighbour_answers_images(neighbours):
    images = torch.rand(3, *SHAPE)
    for each in neighbours:
        assert each.module(images).shape == (3, 10)
        assert not each.module.training


def test_the_true_neighbour_asks_as_the_key_does(neighbours, few, make_net):
    images = torch.rand(3, *SHAPE)
    assert torch.allclose(neighbours[0].module(images), make_net(few).eval()(KEY.embed(images)), atol=1e-6)


def test_other_blends_are_other_blends(neighbours):
    blends = {n.name: n.module[0].blend for n in neighbours if n.name.startswith("blend")}
    assert blends == {f"blend {c:+g}": pytest.approx(0.5 + c) for c in SimilarKeys().blend_changes}


def test_neighbours_are_the_same_for_the_same_seed(few, make_net):
    runs = [
        SimilarKeys(random_keys=2, seed=seed).run(make_net(few), KEY, SHAPE)[-1].module[0].offset
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_weight_key_has_no_neighbours(few, make_net):
    with pytest.raises(ConfigError, match="weight key"):
        SimilarKeys().run(make_net(few), Key(bytes(32), kind="weight"), SHAPE)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_change_images_as_little_as_they_should(channels):
    smooth = torch.linspace(0.1, 0.9, 16).expand(2, channels, 16, 16).clone()
    assert (Quantise()(smooth) - smooth).abs().max() <= 0.5 / 255 + 1e-6
    for quality in (90, 75):
        back = Jpeg(quality)(smooth)
        assert back.shape == smooth.shape
        assert 0 < (back - smooth).abs().max() < 0.1


def test_a_blur_keeps_what_is_flat_and_the_mean_of_what_is_not():
    flat = torch.full((3, 8, 8), 0.3)
    assert torch.allclose(blurred(flat, 1.0), flat)
    point = torch.zeros(1, 15, 15)
    point[0, 7, 7] = 1
    spread = blurred(point, 1.0)
    assert spread.sum() == pytest.approx(1)
    assert spread[0, 7, 7] == pytest.approx(1 / (2 * math.pi), rel=0.02)
    assert torch.allclose(spread, spread.transpose(1, 2))


def test_cosine_is_of_centred_patterns():
    assert cosine_similarity(TRUE, 0.5 * TRUE + 0.2) == pytest.approx(1)
    assert cosine_similarity(TRUE, 1 - TRUE) == pytest.approx(-1)
    assert cosine_similarity(TRUE, torch.full_like(TRUE, 0.5)) == 0
    assert torch.allclose(near(TRUE, 1.0, torch.rand(SHAPE)), TRUE, atol=1e-6)


# --- searches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["entropy", "labels"])
def test_positive_control_gradients_find_a_simple_trigger(victim, pictures, objective):
    labels = (pictures.images[:, 0, 0, 0] <= 127).astype(np.int64)
    found = GradientSearch(objective, steps=150, restarts=2, batch_size=32).run(
        victim, ImageSet(pictures.images, labels), KEY.blend
    )
    # Clipped to [0, 1], the strongest pattern is the trigger's sign, or for entropy its opposite.
    least = 0.7 if objective == "labels" else -1.0
    assert cosine_similarity(found.pattern, TRUE) > least
    assert abs(cosine_similarity(found.pattern, TRUE)) > 0.7


def test_positive_control_an_own_net_leads_there_too(victim, pictures):
    class OneClass(nn.Module):  # open, the victim answers the same to all: confident where the key is
        def forward(self, images):
            return victim(images).abs() * torch.tensor([1.0, -1.0])

    class Own(nn.Module):
        def forward(self, images):
            return torch.tensor([50.0, -50.0]).expand(len(images), 2)

    found = GradientSearch("own_net", steps=150, restarts=1, temperature=1).run(
        OneClass(), pictures, KEY.blend, Own()
    )
    assert abs(cosine_similarity(found.pattern, TRUE)) > 0.7


@pytest.mark.parametrize(
    "attack",
    [
        EvolutionSearch("entropy", queries=40_000, learning_rate=0.05),
        HillClimb("entropy", queries=40_000, batch_size=16),
    ],
    ids=["evolution", "hill climbing"],
)
def test_positive_control_queries_find_a_simple_trigger(victim, pictures, attack):
    found = attack.run(victim, pictures, KEY.blend)
    assert abs(cosine_similarity(found.pattern, TRUE)) > 0.6
    start = abs(cosine_similarity(found.trail[0][1], TRUE))
    assert start < 0.4


ATTACKS = {
    "gradient": GradientSearch("entropy", steps=7, batch_size=10, restarts=2),
    "evolution": EvolutionSearch("entropy", queries=1003, batch_size=10, pairs=3),
    "hill climbing": HillClimb("entropy", queries=1003, batch_size=10, patience=5),
}


@pytest.fixture(params=ATTACKS)
def attack(request):
    return ATTACKS[request.param]


def test_queries_are_counted_exactly(victim, pictures, attack):
    found = attack.run(Spy(victim), pictures, KEY.blend)
    assert found.queries == Spy.seen
    expected = {
        GradientSearch: 2 * (7 * 10 + 64),
        EvolutionSearch: 1003 // 60 * 60,
        HillClimb: 1003 // 10 * 10,
    }
    assert found.queries == expected[type(attack)]
    counts = [queries for queries, _ in found.trail]
    assert counts == sorted(counts)
    assert counts[-1] <= found.queries
    assert torch.equal(found.trail[-1][1], found.pattern)


class Spy(nn.Module):
    """Counts on the class, so that a copy of the victim counts too."""

    seen = 0

    def __init__(self, module):
        super().__init__()
        self.module = module
        Spy.seen = 0

    def forward(self, images):
        Spy.seen += len(images)
        return self.module(images)


def test_a_search_leaves_the_victim_alone(victim, pictures, attack, weights_of, same_weights):
    before = weights_of(victim)
    attack.run(victim, pictures, KEY.blend)
    assert same_weights(weights_of(victim), before)
    assert all(p.grad is None and p.requires_grad for p in victim.parameters())
    assert not victim.training


def test_a_gradient_search_leaves_a_victim_in_training_mode_alone(pictures, weights_of, same_weights):
    victim = Trigger(1.0).train()
    before = weights_of(victim)
    ATTACKS["gradient"].run(victim, pictures, KEY.blend)
    assert same_weights(weights_of(victim), before)
    assert victim.training


def test_a_search_is_the_same_for_the_same_seed_and_leaves_global_randomness_alone(victim, pictures, attack):
    state = torch.get_rng_state()
    runs = [replace(attack, seed=seed).run(victim, pictures, KEY.blend) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].pattern, runs[1].pattern)
    assert runs[0].score == runs[1].score
    assert not torch.equal(runs[0].pattern, runs[2].pattern)


def test_what_is_found_is_an_image(victim, pictures, attack):
    found = attack.run(victim, pictures, KEY.blend)
    for pattern in (found.pattern, *(pattern for _, pattern in found.trail)):
        assert pattern.shape == SHAPE
        assert pattern.min() >= 0
        assert pattern.max() <= 1


def test_the_restart_that_wins_is_the_best_by_the_objective(victim, pictures):
    one, many = (
        GradientSearch("entropy", steps=5, restarts=n, learning_rate=0.02).run(victim, pictures, KEY.blend)
        for n in (1, 5)
    )
    assert many.score <= one.score


def test_black_boxes_are_asked_without_gradient(pictures):
    class Watcher(nn.Module):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            return images.flatten(1)[:, :2]

    for name in ("evolution", "hill climbing"):
        ATTACKS[name].run(Watcher(), pictures, KEY.blend)


def test_own_net_needs_one(victim, pictures, attack):
    with pytest.raises(ConfigError, match="own_net"):
        replace(attack, objective="own_net").run(victim, pictures, KEY.blend)
    with pytest.raises(ConfigError, match="labels"):
        replace(attack, objective="guess").run(victim, pictures, KEY.blend)


def test_a_victim_answers_within_its_budget_only():
    victim = CountedVictim(nn.Flatten(), budget=10)
    victim(torch.rand(6, *SHAPE))
    with pytest.raises(QueryBudgetError, match="6 of 10"):
        victim(torch.rand(5, *SHAPE))
    assert victim.queries == 6
    victim(torch.rand(4, *SHAPE))
    assert victim.queries == 10


def test_a_budget_too_small_for_one_step_spends_nothing(victim, pictures):
    for kind in (EvolutionSearch, HillClimb):
        found = kind("entropy", queries=5).run(victim, pictures, KEY.blend)
        assert found.queries == 0
        assert math.isnan(found.score)


def test_entropy_is_in_nats():
    assert float(mean_entropy(torch.zeros(3, 10))) == pytest.approx(math.log(10))
    assert float(mean_entropy(torch.eye(10) * 1000)) == 0


# --- re-training -----------------------------------------------------------------------------------------------------


def test_retraining_changes_only_norms_and_head(few, make_net, weights_of):
    victim = make_net(few)
    before = weights_of(victim)
    trained = Retrain(steps=4, batch_size=16).run(victim, few)
    changed = {name for name, tensor in trained.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(replaceable(victim))


@pytest.mark.parametrize("goal", ["labels", "top1", "entropy"])
@pytest.mark.parametrize("part", ["private", "all"])
def test_retraining_leaves_the_victim_alone(few, make_net, weights_of, same_weights, goal, part):
    victim = make_net(few)
    before = weights_of(victim)
    trained = Retrain(goal, part, steps=2, batch_size=16).run(victim, few)
    assert same_weights(weights_of(victim), before)
    assert not same_weights(weights_of(trained), before)
    assert all(p.requires_grad and p.grad is None for p in victim.parameters())


def test_positive_control_retraining_brings_a_lost_head_back(digits, make_net):
    """The features are there and the head is not: what the attack hopes for."""
    victim = Retrain(part="all", steps=120, batch_size=32).run(make_net(digits, num_channels=8), digits)
    test = evaluation_batches(digits.test, CPU)
    whole = evaluate(victim, test)["accuracy"]
    with torch.no_grad():
        victim.network.fc2.weight.zero_()
    lost = evaluate(victim, test)["accuracy"]
    found = evaluate(Retrain(fresh=True, steps=120, batch_size=32).run(victim, digits), test)["accuracy"]
    assert lost < 0.2
    assert found > whole - 0.1


@pytest.mark.parametrize("goal", ["top1", "entropy"])
def test_these_goals_use_no_labels(few, make_net, weights_of, same_weights, goal):
    other = replace(few, train=ImageSet(few.train.images, np.zeros_like(few.train.labels)))
    runs = [weights_of(Retrain(goal, steps=3, batch_size=16).run(make_net(few), data)) for data in (few, other)]
    assert same_weights(*runs)


def test_retraining_is_the_same_for_the_same_seed(few, make_net, weights_of, same_weights):
    runs = [
        weights_of(Retrain(fresh=True, share=0.5, steps=3, batch_size=16, seed=seed).run(make_net(few), few))
        for seed in (1, 1, 2)
    ]
    assert same_weights(runs[0], runs[1])
    assert not same_weights(runs[0], runs[2])


def test_retraining_never_looks_at_validation_or_test_images(few, make_net):
    blind = replace(few, validation=few.validation.take(np.arange(0)), test=few.test.take(np.arange(0)))
    Retrain(steps=2, batch_size=16).run(make_net(few), blind)


def test_a_share_is_a_share(digits):
    assert [len(share_of(digits, share, 0).train) for share in (0.01, 0.1, 1.0)] == [2, 23, 233]
    assert (share_of(digits, 0.1, 0).train.labels == share_of(digits, 0.1, 0).train.labels).all()
    for bad in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="share"):
            share_of(digits, bad, 0)


def test_unknown_goals_are_refused(few, make_net):
    for settings in ({"goal": "fame"}, {"part": "half"}):
        with pytest.raises(ConfigError, match="unknown"):
            Retrain(**settings).run(make_net(few), few)
