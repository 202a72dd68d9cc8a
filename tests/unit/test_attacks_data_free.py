"""The data-free attack's parts."""

import pytest
import torch
from torch import nn

from sdb.audit.attacks.data_free import LATENT, DataFree, Generator, centred
from sdb.audit.attacks.random_patterns import patterns
from sdb.audit.attacks.victim import Interface, Victim
from sdb.errors import ConfigError

SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 9, 13)]


@pytest.mark.parametrize("shape", SHAPES)
def test_patterns_and_generator_fit_any_image(shape):
    made = [patterns(20, shape, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert made[0].dtype == torch.uint8 and made[0].shape == (20, *shape)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert made[0].float().std() > 30
    images = Generator(shape, 8)(torch.randn(5, LATENT))
    assert images.shape == (5, *shape)
    assert images.min() >= 0 and images.max() <= 1


def test_patterns_are_smoother_than_noise():
    made = patterns(200, (1, 16, 16), torch.Generator().manual_seed(0)).float()
    across = (made[..., 1:] - made[..., :-1]).square().mean()
    assert across < 0.5 * 2 * made.var(dim=(1, 2, 3)).mean()  # 2 var for neighbours that are independent


def test_logits_and_probabilities_are_the_same_after_centring():
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(centred(logits), centred(logits.softmax(1).log()), atol=1e-5)
    assert torch.allclose(centred(logits + 7), logits - logits.mean(1, keepdim=True), atol=1e-5)


class Linear(nn.Module):
    def __init__(self, seed):
        super().__init__()
        weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def test_the_disagreement_points_where_it_grows():
    module, student = Linear(0), Linear(1)
    victim = Victim(module, Interface.LOGITS, num_classes=10, image_shape=(1, 4, 4))
    image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    many = image.expand(4000, -1, -1, -1)
    answers = centred(victim.ask(many).scores())
    directions = DataFree()._disagreement(victim, student, many, answers, torch.Generator().manual_seed(3))
    assert torch.allclose(directions.flatten(1).norm(dim=1), torch.ones(4000), atol=1e-4)
    true = image.clone().requires_grad_()
    (slope,) = torch.autograd.grad((centred(student(true)) - centred(module(true))).abs().sum(), true)
    assert nn.functional.cosine_similarity(directions.mean(0).flatten(), slope.flatten(), dim=0) > 0.9
    assert module.weight.grad is None and student.weight.grad is None


def test_queries_stay_within_what_was_said(few, small_teacher, attacker_of, victim_of):
    victim = victim_of(small_teacher, few)
    stolen = DataFree(queries=1000, batch_size=64, width=8).run(victim, attacker_of(few, epochs=1))
    assert 1000 - 3 * 64 < victim.queries <= 1000
    assert stolen.details["images"] == 600 + 2 * 64 * 2


def test_a_share_is_a_share(few, small_teacher, attacker_of, victim_of):
    with pytest.raises(ConfigError, match="pattern_share: 0"):
        DataFree(pattern_share=0.0).run(victim_of(small_teacher, few), attacker_of(few))
