"""The defences' losses and gradient redirection against slow float64 loops written from their equations."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdb.audit.defences.losses import cluster_terms, predictive_divergence, sparse
from sdb.audit.defences.redirection import hold_top, redirect, redirection
from sdb.models import build

N, K = 4, 5
TEMPERATURES = (1.0, 3.0)


def logits(seed, count=N, classes=K, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)


def softmax(row, temperature=1.0):
    top = max(row)
    powers = [math.exp((value - top) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def slow_divergence(output, target, temperature):
    total = 0.0
    for z, t in zip(output, target, strict=True):
        p, q = softmax(z, temperature), softmax(t, temperature)
        for c in range(len(p)):
            total += math.exp(q[c]) * (q[c] - p[c])
    return total / len(output)


@pytest.mark.parametrize("temperature", [1.0, 6.0])
def test_predictive_divergence(temperature):
    output, target = logits(1), sparse(logits(2), 2)
    slow = slow_divergence(output.tolist(), target.tolist(), temperature)
    assert float(predictive_divergence(output, target, temperature)) == pytest.approx(slow, rel=1e-12)


def test_predictive_divergence_of_equals_is_zero_and_its_gradient_is_finite_at_absent_classes():
    output, target = logits(1).requires_grad_(True), sparse(logits(2), 2)
    assert float(predictive_divergence(target, target, 4.0)) == pytest.approx(0.0, abs=1e-15)
    (slope,) = torch.autograd.grad(predictive_divergence(output, target, 4.0), output)
    assert slope.isfinite().all()
    # Going down it moves mass to the class with the largest share of the target.
    best = target.argmax(dim=1)
    assert (slope.gather(1, best.unsqueeze(1)) < 0).all()


def test_sparse_keeps_the_largest_and_only_those():
    rows = logits(3)
    for row, kept in zip(rows.tolist(), sparse(rows, 2).tolist(), strict=True):
        second = sorted(row)[-2]
        assert kept == [value if value >= second else -math.inf for value in row]
    assert torch.equal(sparse(rows, K), rows)
    assert torch.equal(sparse(rows, K + 3), rows)


def test_cluster_terms():
    z, labels = logits(4), torch.tensor([0, 3, 3, 1])
    centroids = torch.stack([logits(5, K).softmax(dim=1), logits(6, K).softmax(dim=1)])
    terms = cluster_terms(z, labels, centroids, temperatures=TEMPERATURES, cluster_weight=0.7)
    cross_entropy, cluster = 0.0, 0.0
    for row, y in zip(z.tolist(), labels.tolist(), strict=True):
        cross_entropy -= math.log(softmax(row)[y])
        for i, temperature in enumerate(TEMPERATURES):
            p, q = softmax(row, temperature), centroids[i, y].tolist()
            distance = sum(p[c] * math.log(p[c] / q[c]) for c in range(K))
            cluster += temperature**2 * distance
    assert float(terms["cross_entropy"]) == pytest.approx(cross_entropy / N, rel=1e-12)
    assert float(terms["cluster"]) == pytest.approx(0.7 * cluster / N / len(TEMPERATURES), rel=1e-12)


def test_the_cluster_term_is_zero_where_all_images_of_a_class_are_answered_alike():
    answers, labels = logits(4, K), torch.tensor([0, 3, 3, 1])
    tables = torch.stack([(answers / temperature).softmax(dim=1) for temperature in TEMPERATURES])
    terms = cluster_terms(answers[labels], labels, tables, temperatures=TEMPERATURES, cluster_weight=1.0)
    assert float(terms["cluster"]) == pytest.approx(0.0, abs=1e-12)


# --- gradient redirection --------------------------------------------------------------------------------------------


def learner():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, K)]
    network = nn.Sequential(*body).double()
    network(torch.rand(16, 1, 4, 4, dtype=torch.float64))  # gives the norm statistics of its own
    return network.eval()


def test_the_value_of_a_class_is_what_its_mass_adds_to_the_gradient_along_all_ones():
    """By differentiating twice backwards, one image and one class at a time, as the source does for a batch."""
    network, images = learner(), torch.rand(N, 1, 4, 4, dtype=torch.float64)
    values = redirection(network, images)
    for image, row in zip(images, values, strict=True):
        answer = torch.full((K,), 1 / K, dtype=torch.float64, requires_grad=True)
        loss = -(answer * network(image.unsqueeze(0)).log_softmax(dim=1)[0]).sum()
        slopes = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        along = torch.stack([slope.sum() for slope in slopes]).sum()
        (slow,) = torch.autograd.grad(along, answer)
        torch.testing.assert_close(row, slow, rtol=1e-9, atol=1e-9)


def test_the_value_of_a_class_is_its_finite_difference():
    network, images, step = learner(), torch.rand(N, 1, 4, 4, dtype=torch.float64), 1e-6
    values = redirection(network, images)
    with torch.no_grad():
        ends = []
        for sign in (1, -2, 1):  # one step up, one step down, back
            for parameter in network.parameters():
                parameter += sign * step
            ends.append(network(images).log_softmax(dim=1))
    slow = -(ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(values, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["net", "mlp", "preresnet20", "shufflenetv2"])
def test_the_forward_pass_differentiates_real_architectures(name):
    torch.manual_seed(0)
    network = build(name, num_classes=K, image_shape=(3, 16, 16)).double().eval()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    answers = torch.zeros(2, K, dtype=torch.float64, requires_grad=True)
    loss = -(answers * network(images).log_softmax(dim=1)).sum()
    slopes = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    (slow,) = torch.autograd.grad(torch.stack([slope.sum() for slope in slopes]).sum(), answers)
    torch.testing.assert_close(redirection(network, images), slow, rtol=1e-6, atol=1e-6 * float(slow.abs().max()))


def test_values_leave_the_learner_as_it_was():
    network, images = learner(), torch.rand(N, 1, 4, 4, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    first = redirection(network, images)
    with torch.no_grad():
        assert torch.equal(first, redirection(network, images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    alone = torch.cat([redirection(network, image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(first, alone)


def corners(shares, budget):
    """The corners of what may be answered: one class receives, the others give in some order until it is spent."""
    for best in range(len(shares)):
        others = [c for c in range(len(shares)) if c != best]
        for order in itertools.permutations(others):
            answer, left = list(shares), budget / 2
            for donor in order:
                given_away = min(answer[donor], left)
                answer[donor] -= given_away
                answer[best] += given_away
                left -= given_away
            yield answer


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.7, 1.5, 2.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_move_is_the_best_of_all_corners(seed, budget):
    shares, values = logits(seed, 3, 4).softmax(dim=1), logits(seed + 50, 3, 4)
    moved = redirect(shares, values, budget)
    for before, row, value in zip(shares.tolist(), moved.tolist(), values.tolist(), strict=True):
        best = max(sum(v * y for v, y in zip(value, corner, strict=True)) for corner in corners(before, budget))
        assert sum(v * y for v, y in zip(value, row, strict=True)) == pytest.approx(best, abs=1e-12)


numbers = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(numbers, numbers, numbers, st.floats(0, 2))
def test_a_move_stays_allowed_and_nothing_allowed_is_better(row, value, other, budget):
    shares, values = torch.tensor([row]).double().softmax(dim=1), torch.tensor([value]).double()
    moved = redirect(shares, values, budget)
    assert (moved >= 0).all()
    assert float(moved.sum()) == pytest.approx(1.0)
    assert float((moved - shares).abs().sum()) <= budget + 1e-9
    # Any other answer, brought within the budget.
    answer = torch.tensor([other]).double().softmax(dim=1)
    away = float((answer - shares).abs().sum())
    allowed = shares + (answer - shares) * min(1.0, budget / away if away else 0.0)
    assert float((values * allowed).sum()) <= float((values * moved).sum()) + 1e-9
    top = shares.argmax(dim=1)
    held = hold_top(shares, moved, top)
    assert int(held.argmax(dim=1)) == int(top) or float(shares.topk(2).values.diff().abs()) < 1e-4
    assert float((held - shares).abs().sum()) <= budget + 1e-9
    assert float((values * held).sum()) >= float((values * shares).sum()) - 1e-9
