"""Batch norm estimated again: it mends what wrong statistics hide, and nothing else."""

import pytest
import torch

from sdb.audit.attacks.batch_norm import BatchNormAgain, estimated_again
from sdb.audit.attacks.victim import Interface, InterfaceError
from sdb.models import ModelSpec


@pytest.fixture
def spoilt(small_teacher, weights_of):
    """The teacher with running statistics of another world."""
    before = weights_of(small_teacher)
    with torch.no_grad():
        for name, buffer in small_teacher.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(3 * buffer.abs().mean())
            if name.endswith("running_var"):
                buffer.mul_(10)
    yield small_teacher
    small_teacher.load_state_dict(before)


def test_positive_control_statistics_alone_come_back(
    digits, spoilt, attacker_of, victim_of, accuracy_of, weights_of, same_weights
):
    before, lost = weights_of(spoilt), accuracy_of(spoilt)
    stolen = BatchNormAgain().run(victim_of(spoilt, digits, Interface.WEIGHTS), attacker_of(digits))
    assert accuracy_of(stolen.recovered) > max(0.8, lost + 0.2)
    assert stolen.details["chosen"] == min(
        stolen.details["cross_entropy"], key=stolen.details["cross_entropy"].get
    )
    assert same_weights(weights_of(spoilt), before)
    assert not spoilt.training
    changed = {
        n
        for n, t in stolen.recovered.state_dict().items()
        if not torch.equal(t, before[n]) and "num_batches" not in n
    }
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var"))}


def test_statistics_are_those_of_the_images(digits, small_teacher):
    images = torch.rand(600, *digits.image_shape)
    tuned = estimated_again(small_teacher, images)
    first = small_teacher.network.conv1((images - small_teacher.mean) / small_teacher.std)
    attacker = [part.mean(dim=(0, 2, 3)) for part in first.split(256)]
    assert torch.allclose(tuned.network.bn1.running_mean, torch.stack(attacker).mean(dim=0), atol=1e-5)
    assert tuned.network.bn1.momentum == small_teacher.network.bn1.momentum


def test_paler_images_have_less_variance(digits, small_teacher):
    images = torch.rand(100, *digits.image_shape)
    plain, pale = (estimated_again(small_teacher, images, contrast) for contrast in (1.0, 0.5))
    # Not a quarter: the border's zeros stay what they are.
    assert (pale.network.bn1.running_var < 0.5 * plain.network.bn1.running_var).all()


def test_without_batch_norm_there_is_nothing_to_do(few, attacker_of, victim_of):
    network = ModelSpec("mlp", {}, few.num_classes, few.image_shape, few.mean, few.std).build()
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        pytest.skip("this mlp has batch norm")
    with pytest.raises(InterfaceError, match="batch norm"):
        BatchNormAgain().run(victim_of(network, few, Interface.WEIGHTS), attacker_of(few))


def test_it_needs_the_weights(few, small_teacher, attacker_of, victim_of):
    with pytest.raises(InterfaceError, match="weights"):
        BatchNormAgain().run(victim_of(small_teacher, few, Interface.LOGITS), attacker_of(few))
