"""Defences that change answers: the promise of the top-1, off switches, and formulas."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from sdb.audit.defences import DEFENCES
from sdb.audit.defences.key_switch import FixedAnswers
from sdb.audit.defences.outputs import SMALLEST, ReversedAnswers, RoundedAnswers, SparseAnswers, keep_top
from sdb.audit.defences.redirection import RedirectedAnswers, redirection


class Says(nn.Module):
    """A teacher whose logits are its images."""

    def forward(self, images):
        return images.flatten(1)


rows = st.lists(st.floats(-12, 12, width=32), min_size=5, max_size=5)
CHANGES = {
    "rounded, 2": lambda: RoundedAnswers(Says(), 2),
    "rounded, 0": lambda: RoundedAnswers(Says(), 0),
    "reverse sigmoid": lambda: ReversedAnswers(Says(), 1.0, 0.1),
    "reverse sigmoid, steep": lambda: ReversedAnswers(Says(), 1.0, 1.0),
    "reverse sigmoid, strong": lambda: ReversedAnswers(Says(), 3.0, 0.5),
    "stingy": lambda: SparseAnswers(Says(), 2),
}


@settings(max_examples=80, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), st.sampled_from(sorted(CHANGES)))
def test_the_top_class_is_kept_and_answers_are_probabilities(values, name):
    logits = torch.tensor(values)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    assume(bool((first - second > 1e-4).all()))
    answers = CHANGES[name]()(logits.view(len(values), 1, 1, 5))
    assert answers.dtype == torch.float32
    assert torch.equal(answers.argmax(dim=1), logits.argmax(dim=1))
    assert torch.equal(answers.softmax(dim=1).argmax(dim=1), logits.argmax(dim=1))
    assert answers.isfinite().all()
    torch.testing.assert_close(answers.exp().sum(dim=1), torch.ones(len(values)), atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_switched_off_a_defence_gives_the_teachers_probabilities(values):
    logits = torch.tensor([values])
    images = logits.view(1, 1, 1, 5)
    first, second = logits.topk(2, dim=1).values[0]
    assume(first - second > 1e-4)
    plain = logits.softmax(dim=1)
    for off in (RoundedAnswers(Says(), 12), ReversedAnswers(Says(), 0.0, 0.1), SparseAnswers(Says(), 5)):
        torch.testing.assert_close(off(images).softmax(dim=1), plain, atol=10 * SMALLEST, rtol=1e-5)


def test_keep_top_swaps_and_lifts_out_of_ties():
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]])
    kept = keep_top(shares.double(), torch.tensor([2, 1, 0, 1]))
    torch.testing.assert_close(kept[0], torch.tensor([0.2, 0.3, 0.5]).double())
    assert kept[1, 0] < kept[1, 1] < kept[1, 0] + 2e-4
    torch.testing.assert_close(kept[2], torch.tensor([0.5, 0.3, 0.2]).double())
    assert kept[3].tolist() == [0.0, 1.0, 0.0]


def test_rounded_probabilities_have_few_decimals():
    logits = torch.tensor([[0.70, 0.20, 0.06, 0.04]]).log()
    answers = RoundedAnswers(Says(), 1)(logits.view(1, 1, 1, 4)).exp()
    # 0.7 + 0.2 + 0.1 + 0.0
    torch.testing.assert_close(answers[0], torch.tensor([0.7, 0.2, 0.1, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("strength", "steepness"), [(0.3, 0.1), (1.0, 0.1), (0.2, 1.0)])
def test_reverse_sigmoid_is_its_formula(strength, steepness):
    values = [2.0, 0.5, -1.0, -6.0]
    powers = [math.exp(value) for value in values]
    shares = [power / sum(powers) for power in powers]
    bent = [
        max(0.0, p - strength * (1 / (1 + math.exp(-steepness * math.log(p / (1 - p)))) - 0.5)) for p in shares
    ]
    wanted = torch.tensor([value / sum(bent) for value in bent])
    answers = ReversedAnswers(Says(), strength, steepness)(torch.tensor(values).view(1, 1, 1, 4)).exp()[0]
    torch.testing.assert_close(answers, wanted, atol=1e-6, rtol=0)
    assert shares[3] < answers[3]  # what was unlikely looks likelier


def test_reverse_sigmoid_survives_a_teacher_without_doubts():
    answers = ReversedAnswers(Says(), 1.0, 0.1)(torch.tensor([200.0, 0.0, -200.0]).view(1, 1, 1, 3))
    assert answers.isfinite().all()
    assert int(answers.argmax()) == 0


def test_stingy_answers_hold_the_largest_logits_alone():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    answers = SparseAnswers(Says(), 2)(logits.view(1, 1, 1, 4)).exp()[0]
    torch.testing.assert_close(answers[:2], torch.tensor([3.0, 2.0]).softmax(dim=0))
    assert (answers[2:] <= SMALLEST * 1.001).all()


@pytest.mark.parametrize(("classes", "wanted"), [(3, 1), (10, 2), (100, 10), (200, 20)])
def test_stingy_takes_the_published_share_of_the_classes(make_net, few, classes, wanted):
    from sdb.models import ModelSpec

    teacher = ModelSpec("mlp", {}, classes, few.image_shape, few.mean, few.std).build()
    defended = DEFENCES["stingy"].open(teacher, {}, {"seconds": 0.0})
    assert (defended.interface, defended.top_k) == ("top_k", wanted)


def redirected(logits, budget):
    torch.manual_seed(0)
    surrogate = nn.Sequential(
        nn.Flatten(), nn.Linear(logits.shape[1], 6), nn.Tanh(), nn.Linear(6, logits.shape[1])
    )
    answers = RedirectedAnswers(Says(), surrogate, budget)(logits.view(len(logits), 1, 1, -1))
    return answers, redirection(surrogate, logits.view(len(logits), 1, 1, -1))


@pytest.mark.parametrize("budget", [0.0, 0.3, 1.0])
def test_redirected_answers_spend_their_budget_and_no_more(budget):
    logits = 10 * nn.functional.one_hot(torch.arange(5)).float() + torch.rand(5, 5)  # a confident teacher
    answers, values = redirected(logits, budget)
    plain = logits.softmax(dim=1)
    moved = (answers.exp() - plain).abs().sum(dim=1)
    assert torch.equal(answers.argmax(dim=1), logits.argmax(dim=1))
    # Where the top class is the best to move to there is no room.
    spent = values.argmax(dim=1) != logits.argmax(dim=1)
    assert spent.any()
    torch.testing.assert_close(moved[spent], torch.full_like(moved[spent], budget), atol=2e-3, rtol=0)
    assert (moved <= budget + 1e-4).all()
    assert ((answers.exp() * values).sum(dim=1) >= (plain * values).sum(dim=1) - 1e-4).all()


@settings(max_examples=50, deadline=None)
@given(rows, st.floats(0, 2))
def test_redirected_answers_keep_the_top_class(values, budget):
    logits = torch.tensor([values])
    first, second = logits.topk(2, dim=1).values[0]
    assume(first - second > 1e-4)
    answers, _ = redirected(logits, budget)
    assert int(answers.argmax()) == int(logits.argmax())
    assert float(answers.exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_fixed_answers_depend_on_the_class_alone():
    answers = torch.arange(25.0).view(5, 5)
    images = torch.randn(40, 1, 1, 5)
    given_away = FixedAnswers(Says(), answers)(images)
    assert torch.equal(given_away, answers[images.flatten(1).argmax(dim=1)])
