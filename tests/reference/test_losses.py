"""Every loss against a slow float64 loop written from the equation in its docstring, and its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb import losses

N, C = 3, 5
CLASSES = range(C)


def logits(seed, count=N, classes=C, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)


def labels(seed=9, count=N, classes=C):
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


# --- the equations, one number at a time -----------------------------------------------------------------------------


def log_softmax(row, temperature=1.0):
    scaled = [value / temperature for value in row]
    top = max(scaled)
    log_sum = top + math.log(sum(math.exp(value - top) for value in scaled))
    return [value - log_sum for value in scaled]


def softmax(row, temperature=1.0):
    return [math.exp(value) for value in log_softmax(row, temperature)]


def slow_cross_entropy(rows, targets, smoothing=0.0):
    total = 0.0
    for row, target in zip(rows, targets, strict=True):
        log_p = log_softmax(row)
        for c in range(len(row)):
            wanted = (1 - smoothing) * (c == target) + smoothing / len(row)
            total -= wanted * log_p[c]
    return total / len(rows)


def slow_kl(first, second, temperature=1.0):
    total = 0.0
    for a, b in zip(first, second, strict=True):
        log_p, log_q = log_softmax(a, temperature), log_softmax(b, temperature)
        for c in range(len(a)):
            total += math.exp(log_p[c]) * (log_p[c] - log_q[c])
    return total / len(first)


def slow_sum_of_squares(first, second, change):
    total = 0.0
    for a, b in zip(first, second, strict=True):
        for left, right in zip(change(a), change(b), strict=True):
            total += (left - right) ** 2
    return total


def relu(row):
    return [max(0.0, value) for value in row]


def slow_pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)
    return covariance / math.sqrt(spread)


def standardise(row):
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    return [(value - mean) / (1e-7 + deviation) for value in row]


def close(tensor, number):
    assert tensor.ndim == 0
    assert float(tensor) == pytest.approx(number, rel=1e-10, abs=1e-12)


# --- cross-entropy and KL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_the_mean_over_the_batch(smoothing):
    z, y = logits(0), labels()
    close(losses.cross_entropy(z, y, smoothing), slow_cross_entropy(z.tolist(), y.tolist(), smoothing))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_is_the_mean_over_the_batch_in_nats(temperature):
    a, b = logits(1), logits(2)
    close(losses.kl(a, b, temperature), slow_kl(a.tolist(), b.tolist(), temperature))


def test_kl_is_not_symmetric_and_its_first_argument_weighs():
    a, b = torch.tensor([[4.0, 0.0, 0.0]]).double(), torch.tensor([[0.0, 0.0, 0.0]]).double()
    close(losses.kl(a, b), slow_kl(a.tolist(), b.tolist()))
    assert not torch.isclose(losses.kl(a, b), losses.kl(b, a))


rows = st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=4)


@given(rows, rows, st.floats(0.5, 30))
@settings(max_examples=60, deadline=None)
def test_kl_is_never_negative(first, second, temperature):
    count = min(len(first), len(second))
    a, b = (torch.tensor(part[:count], dtype=torch.float64) for part in (first, second))
    assert losses.kl(a, b, temperature) >= -1e-12


@given(rows, st.floats(-100, 100), st.floats(0.5, 30))
@settings(max_examples=60, deadline=None)
def test_kl_is_zero_for_logits_that_differ_by_a_constant(values, shift, temperature):
    a = torch.tensor(values, dtype=torch.float64)
    assert abs(losses.kl(a, a, temperature)) < 1e-12
    assert abs(losses.kl(a, a + shift, temperature)) < 1e-9


@given(rows, st.floats(-100, 100))
@settings(max_examples=60, deadline=None)
def test_kl_does_not_see_a_constant_added_to_an_image_s_logits(values, shift):
    a = torch.tensor(values, dtype=torch.float64)
    b = a.flip(1) * 0.5
    torch.testing.assert_close(losses.kl(a + shift, b), losses.kl(a, b), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses.kl(a, b + shift), losses.kl(a, b), rtol=1e-8, atol=1e-9)


# --- Nasty Teacher ---------------------------------------------------------------------------------------------------


def test_nasty_terms_are_cross_entropy_minus_the_weighted_kl():
    z, t, y = logits(0), logits(1), labels()
    terms = losses.nasty_terms(z, y, t, temperature=4.0, disturbance_weight=0.04)
    assert terms.keys() == {"cross_entropy", "disturbance"}
    close(terms["cross_entropy"], slow_cross_entropy(z.tolist(), y.tolist()))
    close(terms["disturbance"], -0.04 * 4.0**2 * slow_kl(z.tolist(), t.tolist(), 4.0))


def test_nasty_disturbance_pushes_away_from_the_teacher():
    z, t = logits(0).requires_grad_(), logits(1)
    term = losses.nasty_terms(z, labels(), t, temperature=4.0, disturbance_weight=1.0)["disturbance"]
    (gradient,) = torch.autograd.grad(term, z)
    assert losses.kl(z - 0.1 * gradient, t, 4.0) > losses.kl(z, t, 4.0)


# --- the paper's box -------------------------------------------------------------------------------------------------

WEIGHTS = {
    "temperature": 4.0,
    "disturbance_weight": 0.7,
    "preservation_weight": 1.3,
    "augmentation_weight": 0.01,
}


def sdb(z, z_k, t, r, **changes):
    return losses.sdb_terms(z, z_k, labels(), t, r, **(WEIGHTS | changes))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_sdb_terms_are_the_equation(temperature):
    z, z_k, t, r = (logits(seed) for seed in range(4))
    terms = sdb(z, z_k, t, r, temperature=temperature)
    z_, k_, t_, r_ = (x.tolist() for x in (z, z_k, t, r))
    apart = temperature**2 * slow_kl(z_, t_, temperature)
    together = slow_kl(z_, k_, 1.0)  # at temperature 1, without a factor
    assert terms.keys() == {
        "cross_entropy",
        "keyed_cross_entropy",
        "disturbance",
        "preservation",
        "augmentation",
    }
    close(terms["cross_entropy"], 2 * slow_cross_entropy(z_, labels().tolist()))
    close(terms["keyed_cross_entropy"], slow_cross_entropy(k_, labels().tolist()))
    close(terms["disturbance"], -0.7 * (apart - together))
    close(terms["preservation"], 1.3 * slow_sum_of_squares(t_, k_, lambda row: softmax(row, temperature)))
    from_teacher, from_random = slow_sum_of_squares(t_, k_, relu), slow_sum_of_squares(r_, k_, relu)
    close(terms["augmentation"], -0.01 * (0.01 * from_teacher - from_random))


def test_squared_errors_are_sums_and_cross_entropies_are_means():
    parts = [logits(seed) for seed in range(4)]
    twice = [torch.cat([part, part]) for part in parts]
    y = labels()
    once = losses.sdb_terms(parts[0], parts[1], y, parts[2], parts[3], **WEIGHTS)
    doubled = losses.sdb_terms(twice[0], twice[1], torch.cat([y, y]), twice[2], twice[3], **WEIGHTS)
    for name in ("cross_entropy", "keyed_cross_entropy", "disturbance"):
        torch.testing.assert_close(doubled[name], once[name])
    for name in ("preservation", "augmentation"):
        torch.testing.assert_close(doubled[name], 2 * once[name])


def test_the_teacher_s_share_of_the_augmentation_is_a_hundredth():
    z, z_k = logits(0), torch.zeros(N, C).double()
    t = torch.full((N, C), 10.0).double()
    nothing, same = torch.zeros(N, C).double(), t
    close(sdb(z, z_k, t, nothing, augmentation_weight=1.0)["augmentation"], -0.01 * 100.0 * N * C)
    close(sdb(z, z_k, nothing, same, augmentation_weight=1.0)["augmentation"], 100.0 * N * C)


def test_sum_scale_multiplies_the_sums_alone():
    parts = [logits(seed) for seed in range(4)]
    once, scaled = sdb(*parts), sdb(*parts, sum_scale=4.0)
    for name, value in once.items():
        factor = 4.0 if name in ("preservation", "augmentation") else 1.0
        torch.testing.assert_close(scaled[name], factor * value)


def test_without_a_random_network_there_is_no_augmentation():
    z, z_k, t = (logits(seed) for seed in range(3))
    assert "augmentation" not in sdb(z, z_k, t, None)


def test_disturbance_does_not_train_the_keyed_answer():
    z, z_k = logits(0).requires_grad_(), logits(1).requires_grad_()
    term = sdb(z, z_k, logits(2), logits(3))["disturbance"]
    gradient_z, gradient_k = torch.autograd.grad(term, (z, z_k), allow_unused=True)
    assert gradient_z.abs().max() > 0
    assert gradient_k is None or gradient_k.abs().max() == 0


def test_disturbance_pushes_keyless_away_from_the_teacher():
    z, t = logits(0).requires_grad_(), logits(2)
    term = sdb(z, z.detach(), t, None)["disturbance"]  # where keyless is keyed, only the push is left
    (gradient,) = torch.autograd.grad(term, z)
    assert losses.kl(z - 0.1 * gradient, t, 4.0) > losses.kl(z, t, 4.0)


def test_disturbance_pulls_keyless_to_keyed():
    z, z_k = logits(0).requires_grad_(), logits(1)
    term = sdb(z, z_k, z.detach(), None)["disturbance"]  # where keyless is the teacher, only the pull is left
    (gradient,) = torch.autograd.grad(term, z)
    assert losses.kl(z - 0.1 * gradient, z_k) < losses.kl(z, z_k)


def test_preservation_pulls_keyed_to_the_teacher_and_leaves_keyless_alone():
    z, z_k, t = logits(0).requires_grad_(), logits(1).requires_grad_(), logits(2)
    term = sdb(z, z_k, t, None)["preservation"]
    gradient_z, gradient_k = torch.autograd.grad(term, (z, z_k), allow_unused=True)
    assert gradient_z is None
    assert sdb(z, z_k - 0.1 * gradient_k, t, None)["preservation"] < term


def test_augmentation_pulls_keyed_to_the_random_network():
    z_k, r = logits(1).abs().requires_grad_(), logits(3).abs()
    term = sdb(logits(0), z_k, logits(2), r)["augmentation"]
    (gradient,) = torch.autograd.grad(term, z_k)
    assert (r - (z_k - gradient)).square().sum() < (r - z_k).square().sum()


@pytest.mark.parametrize(
    ("weight", "term"),
    [
        ("disturbance_weight", "disturbance"),
        ("preservation_weight", "preservation"),
        ("augmentation_weight", "augmentation"),
    ],
)
def test_each_term_goes_to_zero_with_its_weight(weight, term):
    parts = [logits(seed) for seed in range(4)]
    off, nearly, full = (sdb(*parts, **{weight: value}) for value in (0.0, 1e-9, 1.0))
    assert off[term] == 0
    torch.testing.assert_close(nearly[term], 1e-9 * full[term])
    for other in off.keys() - {term}:
        assert torch.equal(off[other], full[other])


# --- the decoy box ---------------------------------------------------------------------------------------------------


def test_decoy_terms_are_the_equation():
    z, y, answers = logits(0), labels(), logits(4)
    terms = losses.decoy_terms(z, y, answers, temperature=4.0, soft_weight=0.25, ce_weight=0.3)
    told = answers.tolist()
    assert terms.keys() == {"decoy", "decoy_soft", "cross_entropy"}
    close(terms["decoy"], slow_kl(told, z.tolist()))
    close(terms["decoy_soft"], 0.25 * 4.0**2 * slow_kl(told, z.tolist(), 4.0))
    close(terms["cross_entropy"], 0.3 * slow_cross_entropy(z.tolist(), y.tolist()))


def test_knowledge_terms_are_the_equation():
    z_k, t, y = logits(1), logits(2), labels()
    terms = losses.knowledge_terms(z_k, y, t, temperature=4.0, ce_weight=0.5)
    assert terms.keys() == {"preservation", "keyed_cross_entropy"}
    close(terms["preservation"], 4.0**2 * slow_kl(t.tolist(), z_k.tolist(), 4.0))
    close(terms["keyed_cross_entropy"], 0.5 * slow_cross_entropy(z_k.tolist(), y.tolist()))


# --- students --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kd_is_the_softened_kl_from_the_teacher_times_temperature_squared(temperature):
    s, t = logits(0), logits(1)
    expected = temperature**2 * slow_kl(t.tolist(), s.tolist(), temperature)
    close(losses.kd_term(s, t, labels(), temperature=temperature), expected)


def test_kd_gradient_keeps_its_size_as_the_temperature_grows():
    s, t = logits(0).requires_grad_(), logits(1)
    centred = (s - t) - (s - t).mean(dim=1, keepdim=True)
    limit = (centred / (N * C)).detach()  # Hinton et al., equation 4
    (gradient,) = torch.autograd.grad(losses.kd_term(s, t, labels(), temperature=1e4), s)
    torch.testing.assert_close(gradient, limit, rtol=1e-2, atol=1e-4)


def slow_dkd(student, teacher, targets, temperature, target_weight, rest_weight):
    total = 0.0
    for s, t, y in zip(student, teacher, targets, strict=True):
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        among_target = sum(a * math.log(a / b) for a, b in ((p_t[y], p_s[y]), (1 - p_t[y], 1 - p_s[y])))
        n_s, n_t = (softmax([v for c, v in enumerate(row) if c != y], temperature) for row in (s, t))
        among_rest = sum(a * math.log(a / b) for a, b in zip(n_t, n_s, strict=True))
        total += target_weight * among_target + rest_weight * among_rest
    return temperature**2 * total / len(student)


@pytest.mark.parametrize(("target_weight", "rest_weight"), [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_the_equation(temperature, target_weight, rest_weight):
    s, t, y = logits(0), logits(1), labels()
    given_weights = {"temperature": temperature, "target_weight": target_weight, "rest_weight": rest_weight}
    expected = slow_dkd(s.tolist(), t.tolist(), y.tolist(), temperature, target_weight, rest_weight)
    close(losses.dkd_term(s, t, y, **given_weights), expected)


@given(st.integers(0, 10_000), st.floats(1, 20), st.integers(0, C - 1))
@settings(max_examples=40, deadline=None)
def test_kd_is_dkd_whose_rest_weighs_what_the_teacher_leaves_to_the_rest(seed, temperature, target):
    s, t = logits(seed, count=1), logits(seed + 1, count=1)
    left = 1 - softmax(t[0].tolist(), temperature)[target]
    decoupled = losses.dkd_term(
        s, t, torch.tensor([target]), temperature=temperature, target_weight=1.0, rest_weight=left
    )
    whole = losses.kd_term(s, t, torch.tensor([target]), temperature=temperature)
    torch.testing.assert_close(decoupled, whole, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_the_equation(temperature):
    s, t = logits(0), logits(1)
    p = [softmax(row, temperature) for row in s.tolist()]
    q = [softmax(row, temperature) for row in t.tolist()]
    between_classes = sum(1 - slow_pearson(a, b) for a, b in zip(p, q, strict=True)) / N
    columns = [([row[c] for row in p], [row[c] for row in q]) for c in CLASSES]
    between_images = sum(1 - slow_pearson(a, b) for a, b in columns) / C
    expected = temperature**2 * (between_classes + between_images)
    close(losses.dist_term(s, t, labels(), temperature=temperature), expected)


def test_standardised_kd_is_kd_of_z_scores():
    s, t = logits(0), logits(1)
    z_scores = [[standardise(row) for row in part.tolist()] for part in (t, s)]
    expected = 2.0**2 * slow_kl(*z_scores, 2.0)
    close(losses.standardised_kd_term(s, t, labels(), temperature=2.0), expected)


@given(st.integers(0, 1000), st.floats(0.1, 10), st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_standardised_kd_does_not_see_scale_and_shift(seed, scale, shift):
    s, t = logits(seed), logits(seed + 1)
    one = losses.standardised_kd_term(s, t, labels(), temperature=2.0)
    other = losses.standardised_kd_term(scale * s + shift, t, labels(), temperature=2.0)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


STUDENT_TERMS = {
    "kd": lambda s, t, y: losses.kd_term(s, t, y, temperature=4.0),
    "dkd": lambda s, t, y: losses.dkd_term(s, t, y, temperature=4.0, target_weight=1.0, rest_weight=8.0),
    "dist": lambda s, t, y: losses.dist_term(s, t, y, temperature=4.0),
    "standardised_kd": lambda s, t, y: losses.standardised_kd_term(s, t, y, temperature=2.0),
}


@pytest.mark.parametrize("name", STUDENT_TERMS)
def test_a_student_that_answers_as_its_teacher_has_no_loss_and_no_gradient(name):
    s = logits(0).requires_grad_()
    term = STUDENT_TERMS[name](s, s.detach().clone(), labels())
    (gradient,) = torch.autograd.grad(term, s)
    assert abs(term) < 1e-9
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", STUDENT_TERMS)
def test_following_the_gradient_brings_a_student_nearer(name):
    s, t = logits(0).requires_grad_(), logits(1)
    term = STUDENT_TERMS[name](s, t, labels())
    (gradient,) = torch.autograd.grad(term, s)
    assert STUDENT_TERMS[name](s - 0.05 * gradient, t, labels()) < term


# --- all of them -----------------------------------------------------------------------------------------------------

ALL_TERMS = {
    "cross_entropy": lambda a, b, y: losses.cross_entropy(a, y, 0.1),
    "kl_first": lambda a, b, y: losses.kl(a, b, 4.0),
    "kl_second": lambda a, b, y: losses.kl(b, a, 4.0),
    "nasty": lambda a, b, y: sum(losses.nasty_terms(a, y, b, temperature=4.0, disturbance_weight=1.0).values()),
    "decoy": lambda a, b, y: sum(
        losses.decoy_terms(a, y, b, temperature=4.0, soft_weight=0.25, ce_weight=0.3).values()
    ),
    "knowledge": lambda a, b, y: sum(losses.knowledge_terms(a, y, b, temperature=4.0, ce_weight=0.5).values()),
    "sdb_keyless": lambda a, b, y: sum(losses.sdb_terms(a, b.flip(0), y, b, b.flip(1), **WEIGHTS).values()),
    "sdb_keyed": lambda a, b, y: sum(losses.sdb_terms(b, a, y, b, b.flip(1), **WEIGHTS).values()),
    **STUDENT_TERMS,
}


@pytest.mark.parametrize("name", sorted(ALL_TERMS.keys() - {"sdb_keyed"}))
def test_the_gradient_is_the_derivative(name):
    a, b = logits(5).requires_grad_(), logits(6)
    assert torch.autograd.gradcheck(lambda x: ALL_TERMS[name](x, b, labels()), a)


def test_the_gradient_of_the_keyed_terms_is_the_derivative():
    # Without the disturbance, whose use of the keyed logits has no gradient by design.
    a, b = logits(5).requires_grad_(), logits(6)
    assert torch.autograd.gradcheck(
        lambda x: sum(
            losses.sdb_terms(b, x, labels(), b, b.flip(1), **WEIGHTS | {"disturbance_weight": 0.0}).values()
        ),
        a,
    )


EXTREMES = {
    "one huge": [[1e4, 0.0, 0.0, -1e4], [0.0, 1e4, -1e4, 0.0]],
    "all huge": [[1e4, 1e4, -1e4, -1e4], [-1e4, 1e4, -1e4, 1e4]],
    "all equal": [[0.0, 0.0, 0.0, 0.0], [1e4, 1e4, 1e4, 1e4]],
}


@pytest.mark.parametrize("second", EXTREMES)
@pytest.mark.parametrize("first", EXTREMES)
@pytest.mark.parametrize("name", ALL_TERMS)
def test_extreme_logits_give_finite_losses_and_gradients(name, first, second):
    a, b = torch.tensor(EXTREMES[first], requires_grad=True), torch.tensor(EXTREMES[second]).flip(0)
    for target in ([0, 1], [3, 2]):
        term = ALL_TERMS[name](a, b, torch.tensor(target))
        (gradient,) = torch.autograd.grad(term, a)
        assert torch.isfinite(term)
        assert torch.isfinite(gradient).all()
