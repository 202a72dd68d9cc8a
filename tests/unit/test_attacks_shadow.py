"""Undoing decoys: by shadows, and by knowing that there are decoys."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdb.answers.rows import decoy_logits
from sdb.audit.attacks.decoys_removed import ByClass, DecoysRemoved, Deviations, decoys_in, without
from sdb.audit.attacks.shadow import BY_CLASS, ShadowRecovery, WayBack, WayBackByClass
from sdb.audit.attacks.victim import Interface, QueryBudgetError
from sdb.config import TrainSettings
from sdb.errors import ConfigError
from sdb.losses import kl
from sdb.training.loop import train


class Decoyed(nn.Module):
    """A leaky box: decoys of this owner, and a part of the teacher's answer."""

    def __init__(self, teacher, seed, leak=0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        decoys = [(torch.randperm(9, generator=generator)[:2] + c + 1).remainder(10).tolist() for c in range(10)]
        self.teacher, self.peaks, self.leak, self.decoys = teacher, decoy_logits(decoys, 8.0, 1.0), leak, decoys

    def forward(self, images):
        logits = self.teacher(images)
        return self.leak * (logits - logits.mean(dim=1, keepdim=True)) + self.peaks[logits.argmax(dim=1)]


@pytest.fixture(scope="module")
def shadow(digits, make_net):
    """Own teachers, made once; their boxes have other decoys than the victim's."""
    made = {}

    def make(images, seed):
        if seed not in made:
            teacher = make_net(digits, seed=seed % 1000, num_channels=8)
            settings = TrainSettings(
                epochs=12, batch_size=32, optimizer="adam", learning_rate=3e-3, device="cpu", seed=seed % 1000
            )
            train(teacher, replace(digits, train=images), settings)
            made[seed] = teacher.eval(), Decoyed(teacher, seed)
        return made[seed]

    return make


def test_positive_control_a_leaky_box_is_undone_for_any_decoys(
    digits, small_teacher, shadow, attacker_of, victim_of, distance_of, weights_of, same_weights
):
    box, before = Decoyed(small_teacher, 1), weights_of(small_teacher)
    attacker = attacker_of(digits, epochs=2, shadow=shadow)
    by_class, plain = (
        distance_of(small_teacher, attack.run(victim_of(box, digits), attacker).recovered)
        for attack in (replace(BY_CLASS, steps=400), ShadowRecovery(steps=400))
    )
    keyless = distance_of(small_teacher, box)
    assert by_class < 0.4 * keyless
    # Learnt class by class, the way back would be for the shadows' decoys, not for this owner's.
    assert by_class < plain
    assert same_weights(weights_of(small_teacher), before)


def test_positive_control_a_defence_that_is_the_same_for_all_is_undone(
    digits, small_teacher, shadow, attacker_of, victim_of, distance_of
):
    def flat(module):
        return nn.Sequential(module, Scaled())

    class Scaled(nn.Module):
        def forward(self, logits):
            return 0.2 * logits

    def same(images, seed):
        teacher, _ = shadow(images, seed)
        return teacher, flat(teacher)

    for attack in (ShadowRecovery(steps=400), replace(BY_CLASS, steps=400)):
        box = flat(small_teacher)
        stolen = attack.run(victim_of(box, digits), attacker_of(digits, epochs=2, shadow=same))
        assert distance_of(small_teacher, stolen.recovered) < 0.8 * distance_of(small_teacher, box)


@pytest.mark.parametrize(
    "attack", [ShadowRecovery(steps=10), replace(BY_CLASS, steps=10)], ids=lambda attack: attack.name
)
def test_shadows_are_behind_the_same_interface_and_cost_no_queries(
    few, small_teacher, attacker_of, victim_of, attack
):
    def make(images, seed):
        assert len(images) == len(few.train)
        return small_teacher, Decoyed(small_teacher, seed)

    state = torch.get_rng_state()
    for interface in (Interface.TOP_K, Interface.PROBABILITIES, Interface.LOGITS):
        runs = []
        for seed in (1, 1, 2) if interface is Interface.TOP_K else (1,):
            victim = victim_of(Decoyed(small_teacher, 1), few, interface, budget=100)
            stolen = attack.run(victim, attacker_of(few, epochs=1, seed=seed, shadow=make))
            assert victim.queries == 96
            runs.append(stolen.details["shadow_distance"])
        if len(runs) > 1:
            assert runs[0] == runs[1] != runs[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_budget_holds(few, small_teacher, attacker_of, victim_of):
    attacker = attacker_of(
        few, epochs=1, shadow=lambda images, seed: (small_teacher, Decoyed(small_teacher, seed))
    )
    victim = victim_of(small_teacher, few, budget=50)
    ShadowRecovery(steps=10).run(victim, attacker)
    assert victim.queries <= 50
    with pytest.raises(QueryBudgetError):
        ShadowRecovery().run(victim_of(small_teacher, few, budget=5), attacker)


def test_it_must_be_known_how_the_defence_is_made(few, small_teacher, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="shadow"):
        ShadowRecovery().run(victim_of(small_teacher, few), attacker_of(few))
    attacker = attacker_of(few, shadow=lambda images, seed: (small_teacher, small_teacher))
    with pytest.raises(ConfigError, match="two"):
        ShadowRecovery(shadows=1).run(victim_of(small_teacher, few), attacker)


def test_by_class_renamed_classes_rename_the_answer():
    logs, prior = torch.randn(50, 6).log_softmax(dim=1), torch.randn(6, 6)
    way_back, order = WayBackByClass(), torch.randperm(6)
    renamed = logs[:, order]
    same = way_back(renamed, ByClass(renamed, renamed.argmax(dim=1)), prior[order][:, order])
    assert torch.allclose(same, way_back(logs, ByClass(logs, logs.argmax(dim=1)), prior)[:, order], atol=1e-5)
    assert WayBack(6, 4.0)(logs, None, None).shape == (50, 6)


def test_means_and_deviations_by_class():
    logs = torch.tensor([[0.0, -2.0, -4.0], [0.0, -4.0, -4.0], [-3.0, 0.0, -1.0]])
    told = ByClass(logs, torch.tensor([0, 0, 1]))
    assert torch.equal(told.mean, torch.tensor([[0.0, -3.0, -4.0], [-3.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(told.std[0], torch.tensor([0.0, 1.0, 0.0]))
    deviations = told.deviations(logs, torch.tensor([0, 0, 1]))
    assert torch.equal(deviations, torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


# --- decoys removed --------------------------------------------------------------------------------------------------


def test_decoys_are_found_exactly(digits, small_teacher):
    box = Decoyed(small_teacher, 1, leak=0.1)
    with torch.no_grad():
        logs = box(torch.from_numpy(digits.train.images.copy()).float() / 255).log_softmax(dim=1)
    found = decoys_in(ByClass(logs, logs.argmax(dim=1)), near=3.0)
    assert [row.nonzero().flatten().tolist() for row in found] == [sorted(row) for row in box.decoys]


def test_a_class_that_is_never_named_has_no_decoys():
    logs = torch.tensor([[0.0, -1.0, -9.0]])
    assert decoys_in(ByClass(logs, torch.tensor([0])), 3.0).nonzero().tolist() == [[0, 1]]


def test_a_decoy_gets_what_the_other_wrong_classes_get():
    logs = torch.tensor([[-0.5, -1.0, -6.0, -8.0], [-0.5, -1.0, -2.0, -3.0]])
    decoys = torch.tensor([[False, True, False, False], [False, True, True, True]])
    assert torch.equal(without(logs, decoys)[0], torch.tensor([-0.5, -7.0, -6.0, -8.0]))
    # With nobody else there, the least of all.
    assert torch.equal(without(logs, decoys)[1], torch.tensor([-0.5, -3.0, -3.0, -3.0]))


def test_positive_control_a_leaky_box_is_bare_without_its_decoys(
    digits, small_teacher, attacker_of, victim_of, distance_of
):
    box = Decoyed(small_teacher, 1, leak=0.2)
    attacker = attacker_of(digits, epochs=15, width=8)
    raw, removed = (
        attack.run(victim_of(box, digits), attacker) for attack in (DecoysRemoved(near=0.0), DecoysRemoved())
    )
    assert raw.details["removed"] == 0
    assert removed.details["removed"] == 20
    keyless = distance_of(small_teacher, box)
    assert distance_of(small_teacher, raw.recovered) == pytest.approx(keyless, rel=1e-3)
    assert distance_of(small_teacher, removed.recovered) < 0.7 * keyless
    assert distance_of(small_teacher, removed.student) < 0.8 * distance_of(small_teacher, raw.student)


def test_deviations_keep_what_differs_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 4, generator=generator)
    mean = torch.tensor([[0.0, -1.0, -9.0, -5.0], [-4.0, 0.0, -7.0, -1.0]])
    named = torch.arange(40) % 2
    one, two = (
        Deviations().cleaned(0.1 * noise + offset[named], named) for offset in (mean, mean * torch.tensor([1.0]))
    )
    assert torch.allclose(one, two)
    # Adding to a wrong class's mean changes nothing; the softmax's normalisation is all that moves.
    shifted = Deviations().cleaned(0.1 * noise + (mean - torch.tensor([0.0, 0.0, 2.0, 0.0]))[named], named)
    assert torch.allclose(one, shifted, atol=0.3)
    assert torch.equal(one.argmax(dim=1), named)
    assert float(kl(one, shifted, 4.0)) < 0.01
