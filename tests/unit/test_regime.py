"""Students in pairs: who has which images, what the bar is, what a level tells a thief."""

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

from sdb.answers.rows import Rows, as_mask, honest_logits
from sdb.audit import regime as regimes
from sdb.audit.attacks.attacker import NO_LABEL
from sdb.audit.attacks.level_thieves import BY_FILTER, BY_TARGETS, LevelThief
from sdb.audit.attacks.victim import Interface, Victim
from sdb.audit.regime import Regime, attacker_of, bar_ways, measure, soft_ways
from sdb.config import FitSettings
from sdb.errors import ConfigError
from sdb.models import ModelSpec
from sdb.report.pairs import Gain, Scores, best, gain
from sdb.runtime import derive_seed

SETTINGS = FitSettings(epochs=3, batch_size=16, learning_rate=0.01, optimizer="adam")


def students(data):
    def made(purpose):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(0, *purpose))
            return ModelSpec("mlp", {}, data.num_classes, data.image_shape, data.mean, data.std).build()

    return made


def attacker(data, pair=0, settings=SETTINGS, **regime):
    return attacker_of(data, Regime(**regime), students(data), settings, pair)


def rows_of(images):
    return {image.tobytes() for image in np.asarray(images)}


def test_a_thief_s_images_are_apart_and_every_class_is_among_them(digits):
    own = attacker(digits, labelled=40, unlabelled=30)
    assert (len(own.train), len(own.validation), len(own.unlabelled)) == (30, 10, 30)
    parts = [rows_of(part) for part in (own.train.images, own.validation.images, own.unlabelled)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert set().union(*parts) <= rows_of(digits.train.images)
    assert set(own.train.labels) == set(digits.train.labels)


def test_pairs_have_images_and_students_of_their_own_and_are_the_same_twice(few):
    first, again, other = (attacker(few, pair, labelled=40) for pair in (0, 0, 1))
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.images, other.train.images)
    states = [next(iter(each.new_student().state_dict().values())) for each in (first, again, other)]
    weights = [next(each.new_student().parameters()) for each in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(states[0], states[1])


def test_images_without_labels_are_asked_about_and_have_none(digits):
    own = attacker(digits, labelled=40, unlabelled=30)
    transfer = own.transfer()
    count = len(transfer.targets) // transfer.views
    assert count == 60
    assert (transfer.targets.reshape(-1, count)[:, 30:] == NO_LABEL).all()
    assert (own.transfer(own.train).targets >= 0).all()


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "said"), [(10, 0, "labelled: 10; at least 20"), (40, 10**6, "ask for fewer")]
)
def test_too_few_and_too_many_images_are_refused(few, labelled, unlabelled, said):
    with pytest.raises(ConfigError, match=said):
        attacker(few, labelled=labelled, unlabelled=unlabelled)


def test_every_way_learns_and_self_training_needs_images_without_labels(digits, make_net):
    teacher = make_net(digits).eval()
    assert "self-training" not in bar_ways(teacher, Regime(40))
    ways = (
        bar_ways(teacher, Regime(40, 30))
        | soft_ways(teacher)
        | {f"thief: {name}": way for name, way in regimes.thief_ways(teacher, Regime(40, 30)).items()}
    )
    own = attacker(digits, labelled=40, unlabelled=30)
    scores = measure(ways, digits, [own])
    assert scores.keys() == ways.keys() and "self-training" in scores
    assert all(len(each.test) == len(each.validation) == 1 and 0 <= each.test[0] <= 1 for each in scores.values())
    assert measure(ways, digits, [attacker(digits, labelled=40, unlabelled=30)]) == scores


def test_the_best_is_chosen_by_validation_alone():
    scores = {
        "a": Scores((0.9, 0.9), (0.5, 0.6)),
        "b": Scores((0.1, 0.1), (0.7, 0.6)),
        "c": Scores((0.8, 0.8), (0.65, 0.65)),
    }
    assert best(scores, ["a", "b", "c"]) == "b"  # the first of equal ones
    assert best(scores, ["c", "b"]) == "c"


def test_a_gain_is_the_mean_of_the_pairs_differences():
    ours, theirs = Scores((0.9, 0.8, 0.85, 0.95), ()), Scores((0.8, 0.8, 0.8, 0.8), ())
    found = gain(ours, theirs)
    gaps = [0.1, 0.0, 0.05, 0.15]
    deviation = math.sqrt(sum((gap - fmean(gaps)) ** 2 for gap in gaps) / 3)
    assert found.value == pytest.approx(0.075)
    assert found.half == pytest.approx(3.182 * deviation / 2)
    assert found.error == pytest.approx(deviation / 2)
    assert not found.above
    assert found.lowest == 0
    assert Gain(0.08, 0.05, 3, 0.01, 0.0, 0.1).above and not Gain(0.08, 0.05, 2, 0.01, 0.0, 0.1).above


# --- what a level tells ----------------------------------------------------------------------------------------------


class Levelled(nn.Module):
    """Right about most images, wrong about some, which it says: sure of 99 % or of 40 %."""

    def __init__(self, data, wrong):
        super().__init__()
        decoys = as_mask([[(c + 1) % 10] for c in range(10)])
        first = torch.arange(10)
        rows = torch.stack([honest_logits(first, torch.full((10,), a), decoys) for a in (0.4, 0.99)], dim=1)
        self.rows = Rows(rows, torch.full((10, 1), 0.5))
        images = torch.from_numpy(np.array(data.train.images))
        self.known = {image.numpy().tobytes(): place for place, image in enumerate(images)}
        self.labels, self.wrong = torch.from_numpy(np.array(data.train.labels)), wrong

    def forward(self, images):
        places = [self.known[(image * 255).round().byte().numpy().tobytes()] for image in images]
        labels = torch.tensor([int(self.labels[place] + self.wrong[place]) % 10 for place in places])
        level = torch.tensor([int(not self.wrong[place]) for place in places])
        return self.rows.rows[labels, level]


@pytest.mark.parametrize("thief", [LevelThief(), BY_FILTER, BY_TARGETS], ids=lambda thief: thief.use)
def test_where_a_level_says_what_is_wrong_the_thief_gains_by_it(digits, thief):
    data = replace(digits, augment=replace(digits.augment, crop_padding=0, flip=False))
    wrong = np.random.default_rng(0).random(len(data.train)) < 0.3
    settings = FitSettings(epochs=15, batch_size=32, learning_rate=0.005, optimizer="adam")
    victim = Levelled(data, wrong)
    gaps = []
    for pair in range(2):
        own = attacker(data, pair, settings, labelled=40, unlabelled=180)
        ways = {
            "top-1": bar_ways(victim, Regime(40))["top-1 answers"],
            "levels": lambda attacker: thief.run(regimes.victim_of(victim, attacker), attacker).student,
        }
        scores = measure(ways, data, [own])
        gaps.append(scores["levels"].test[0] - scores["top-1"].test[0])
    assert fmean(gaps) > 0.03


def test_a_budget_is_kept(few, make_net):
    own = attacker(few, labelled=40)
    victim = Victim(
        make_net(few).eval(), Interface.LOGITS, num_classes=10, image_shape=few.image_shape, budget=len(own.train)
    )
    LevelThief().run(victim, own)
    assert victim.queries == len(own.train)
