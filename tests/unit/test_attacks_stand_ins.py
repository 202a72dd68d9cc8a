"""The stand-ins' arithmetic."""

import pytest
import torch

from sdb.attacks.stand_ins import EntropyRaised, SequentialContrast, contrasted, mixed_with_uniform
from sdb.errors import ConfigError

SCORES = 5 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_mixture_is_one_at_the_temperature(share):
    soft = (mixed_with_uniform(SCORES, 20.0, share) / 20).softmax(dim=1)
    assert torch.allclose(soft, (1 - share) * (SCORES / 20).softmax(dim=1) + share / 6, atol=1e-6)
    assert (torch.special.entr(soft).sum(1) > torch.special.entr((SCORES / 20).softmax(1)).sum(1)).all()


def test_contrast_goes_from_victim_to_student_and_beyond():
    student = SCORES.roll(1, dims=1)
    told, learnt = SCORES.log_softmax(1), student.log_softmax(1)
    assert torch.allclose(contrasted(SCORES + 3, student - 1, 0.0), told, atol=1e-5)
    assert torch.allclose(contrasted(SCORES, student, 1.0), learnt, atol=1e-5)
    assert torch.allclose(contrasted(SCORES, student, 2.0), 2 * learnt - told, atol=1e-5)


def test_the_best_student_of_the_sequence_is_kept(few, small_teacher, means_of, victim_of):
    means = means_of(few, epochs=2)
    victim = victim_of(small_teacher, few)
    stolen = SequentialContrast(rounds=2).run(victim, means)
    values = stolen.details["validation"]
    assert len(values) == 3
    assert means.score(stolen.student) == max(values) == values[stolen.details["chosen"]]
    assert victim.queries == 2 * len(few.train)


@pytest.mark.parametrize(
    "attack", [EntropyRaised(uniform=0.0), EntropyRaised(uniform=1.0), SequentialContrast(rounds=0)]
)
def test_impossible_parameters_are_refused(attack, few, small_teacher, means_of, victim_of):
    with pytest.raises(ConfigError, match="uniform: |rounds: "):
        attack.run(victim_of(small_teacher, few), means_of(few))
