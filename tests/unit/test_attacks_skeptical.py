"""Skeptical students: where the heads sit, and that the victim reaches nothing above the middle one."""

import pytest
import torch
from torch import nn

from sdb.audit.attacks.skeptical import Headed, Skeptical, pooled, stages
from sdb.models import from_module

ARCHITECTURES = ["net", "mlp", "resnet18", "preresnet20", "mobilenetv2", "shufflenetv2"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_fit_any_architecture(name, few, make_net, weights_of, same_weights):
    student = make_net(few, name)
    before = weights_of(student)
    found = stages(student)
    assert found and student.network not in found
    headed = Headed(student, [found[0], found[-1]])
    logits = headed(torch.rand(3, *few.image_shape))
    assert logits.shape == (3, 3, 10)
    assert torch.equal(logits[0], student(torch.rand(0, *few.image_shape))) or logits[0].isfinite().all()
    headed.release()
    assert same_weights(weights_of(student), before)
    assert not any(module._forward_hooks for module in student.modules())


def test_the_stages_of_net_are_its_maps_in_order(few, make_net):
    network = make_net(few).network
    assert stages(make_net(few))[0].__class__ is nn.Conv2d
    names = {module: name for name, module in network.named_modules()}
    student = make_net(few)
    names = {module: name for name, module in student.network.named_modules()}
    assert [names[module] for module in stages(student)] == ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3"]


def test_a_network_in_one_piece_gets_its_heads_within(few):
    inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
    student = from_module(nn.Sequential(inner), 10, few.image_shape, few.mean, few.std)
    assert stages(student) == [inner[0], inner[1], inner[2]]


def test_features_of_every_rank_become_vectors():
    assert pooled(torch.rand(2, 5, 4, 4)).shape == (2, 20)
    assert pooled(torch.rand(2, 5, 1, 1)).shape == (2, 5)
    assert pooled(torch.rand(2, 7, 6)).shape == (2, 6)
    assert pooled(torch.rand(2, 6)).shape == (2, 6)


def test_the_victim_reaches_the_lower_stages_only(few, make_net):
    student = make_net(few)
    headed = Headed(student, [student.network.bn2, student.network.bn3])
    _, shallow, _ = headed(torch.rand(4, *few.image_shape))
    shallow.square().sum().backward()
    assert student.network.conv1.weight.grad.abs().sum() > 0
    for above in (student.network.conv3, student.network.fc1, student.network.fc2):
        assert above.weight.grad is None or not above.weight.grad.any()


def test_in_the_quiet_epochs_the_victim_is_not_heard(
    few, make_net, small_teacher, attacker_of, victim_of, weights_of, same_weights
):
    attacker = attacker_of(few, epochs=2)
    students = [
        Skeptical(delay=delay).run(victim_of(victim, few), attacker).student
        for delay in (1.0, 0.0)
        for victim in (small_teacher, make_net(few, seed=9).eval())
    ]
    deaf, also_deaf, first, second = map(weights_of, students)
    assert same_weights(deaf, also_deaf)
    assert not same_weights(first, second)


def test_it_says_where_its_heads_were(few, small_teacher, attacker_of, victim_of):
    stolen = Skeptical().run(victim_of(small_teacher, few), attacker_of(few, epochs=1))
    assert stolen.details["heads"] == ["network.bn2", "network.bn3"]
