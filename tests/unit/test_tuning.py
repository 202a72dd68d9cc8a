"""The accuracy budget: who is chosen, and what is said when nobody fits. Real boxes, real thieves, tiny."""

import pytest

from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.keys import Key
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.tuning import Search, wrap_within_budget
from sdb.wrapping.wrap import wrap

FIT = {"batch_size": 32, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(digits, make_net):
    teacher = make_net(digits, seed=1)
    train(teacher, digits, TrainSettings(epochs=15, **FIT))
    return teacher


def choose(digits, make_net, teacher, budget, ladder, epochs=4):
    key = Key(bytes(32), kind="weight")
    tried = []

    def make_box(settings):
        tried.append(settings)
        return wrap(teacher, digits, settings, key=key)

    choice = wrap_within_budget(
        make_box,
        teacher,
        key,
        digits,
        WrapSettings(epochs=epochs, **FIT),
        lambda: make_net(digits, seed=2),
        DistillSettings(epochs=3, **FIT),
        budget=budget,
        ladder=ladder,
    )
    return choice, tried


def test_among_those_within_the_budget_the_worst_thief_wins(digits, make_net, trained):
    ladder = [{"margin": 1.0, "ce_weight": 0.3}, {"margin": 3.0, "ce_weight": 3.0}]
    choice, tried = choose(digits, make_net, trained, budget=0.99, ladder=ladder)
    assert [settings.margin for settings in tried] == [1.0, 3.0]
    assert choice.met and "within the accuracy budget of 99 points" in choice.sentence()
    thieves = [trial.thief for trial in choice.trials]
    assert None not in thieves and choice.trial.thief == min(thieves)
    validation = evaluation_batches(digits.validation, "cpu")
    assert choice.trial.keyless == evaluate(choice.box, validation)["accuracy"]


def test_a_budget_that_cannot_be_met_is_said_with_the_shortfall(digits, make_net, trained):
    ladder = [{"start": "scratch", "margin": 0.0}, {"start": "scratch", "margin": 1.0}]
    choice, _ = choose(digits, make_net, trained, budget=0.0, ladder=ladder, epochs=1)
    assert not choice.met
    assert choice.trial.loss == min(trial.loss for trial in choice.trials) > 0
    assert all(trial.thief is None for trial in choice.trials)
    assert f"{100 * choice.trial.loss:.2f} points over it" in choice.sentence()


def test_a_search_proposes_within_its_ranges_and_the_same_for_the_same_seed(digits, make_net, trained):
    pytest.importorskip("optuna", reason="the extra `tune` is not installed")
    found = []
    for _ in range(2):
        choice, tried = choose(digits, make_net, trained, 0.99, Search(trials=3, seed=0, budget=0.99), epochs=1)
        assert len(choice.trials) == 3
        found.append([trial.changes for trial in choice.trials])
        assert all(0.5 <= settings.margin <= 4 and 0.1 <= settings.ce_weight <= 5 for settings in tried)
    assert found[0] == found[1]
