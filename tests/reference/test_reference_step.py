"""Our box against a literal copy of the reference's training step, on the same batches from the same weights.

The copy is written from train_smb.py as recorded in research/defences-and-attacks.md, section 0.1: images are blended
after normalisation, the plain forward comes before the keyed one, every term is spelt out, SGD by hand.

Trajectories are compared in float64: see the fixture.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from sdb.box.box import Embed
from sdb.config import WrapSettings
from sdb.keys import Key
from sdb.training.loop import train_batches
from sdb.wrapping.networks import random_network, start_network
from sdb.wrapping.paper import TwoPasses
from sdb.wrapping.wrap import wrap

KEY, KEY_HALF = Key(bytes(range(32)), blend=0.9), Key(bytes(range(32)), blend=0.5)
# Three steps make a difference 1e5 times larger, and float64 rounds at 1e-16: 1e-8 leaves three more digits of room.
TOLERANCE = 1e-8
SETTINGS = WrapSettings(
    method="sdb",
    epochs=1,
    batch_size=16,  # 48 images: 3 steps
    start="scratch",
    forward="separate",
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="constant",
    temperature=4.0,
    disturbance_weight=1.0,
    augmentation_weight=0.001,
)
T, LAMB, WEIGHT, ETA = 4.0, 0.9, 1.0, 0.001


def reference_loss(network, teacher, random, normalised, pattern, labels):
    """One batch of train_smb.py; networks take normalised images, `pattern` is the normalised key."""
    noisy = LAMB * normalised + (1 - LAMB) * pattern
    output = network(normalised)
    output_noisy = network(noisy)
    with torch.no_grad():
        normal, rand = teacher(normalised), random(normalised)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")
    square = torch.nn.MSELoss(reduction="sum")
    loss = 2 * F.cross_entropy(output, labels) + F.cross_entropy(output_noisy, labels)
    apart = divergence(F.log_softmax(normal / T, dim=1), F.softmax(output / T, dim=1)) * T * T
    together = divergence(F.log_softmax(output_noisy.detach(), dim=1), F.softmax(output, dim=1))
    loss = loss - WEIGHT * (apart - together)
    loss = loss + square(F.softmax(normal / T, dim=1), F.softmax(output_noisy / T, dim=1))
    near = 0.01 * square(F.relu(normal), F.relu(output_noisy))
    return loss - ETA * (near - square(F.relu(rand), F.relu(output_noisy)))


def sgd_step(parameters, velocities, gradients):
    with torch.no_grad():
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity.mul_(0.9).add_(gradient + 5e-4 * parameter)
            parameter.sub_(0.1 * velocity)


@pytest.mark.parametrize("name", ["net", "preresnet20"])
def test_three_steps_give_the_reference_s_weights(few, make_net, in_float64, name):
    teacher = make_net(few, name, seed=3).eval()
    box = wrap(teacher, few, SETTINGS, key=KEY)

    ours = start_network(teacher, SETTINGS).train()
    network, random = ours.network, random_network(teacher, SETTINGS).network
    # The box holds its key's share of a keyed image in float32; from there on the copy is float64 too.
    pattern = Embed(KEY, few.image_shape).offset.double() / (1 - LAMB)
    torch.testing.assert_close(pattern, torch.from_numpy(KEY.pattern(few.image_shape) / 255), rtol=0, atol=1e-6)
    pattern = (pattern - ours.mean) / ours.std
    parameters = list(network.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    steps = 0
    for batch in train_batches(few, SETTINGS, torch.device("cpu")).epoch(0):
        normalised = (batch.images - ours.mean) / ours.std
        loss = reference_loss(network, teacher.network, random, normalised, pattern, batch.labels)
        sgd_step(parameters, velocities, torch.autograd.grad(loss, parameters))
        steps += 1
    assert steps == 3
    start = start_network(teacher, SETTINGS).state_dict()
    assert all(tensor.dtype == torch.float64 for n, tensor in start.items() if n.endswith(".weight"))
    moved = max(float((tensor.double() - start[n]).abs().max()) for n, tensor in ours.state_dict().items())
    assert moved > 0.01
    torch.testing.assert_close(
        dict(box.classifier.state_dict()), dict(ours.state_dict()), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_the_random_network_is_neither_the_teacher_nor_the_start(few, make_net):
    teacher = make_net(few)
    networks = [teacher, start_network(teacher, SETTINGS), random_network(teacher, SETTINGS)]
    first = [network.network.conv1.weight.detach() for network in networks]
    assert not any(
        torch.equal(a, b) for a, b in ((first[0], first[1]), (first[0], first[2]), (first[1], first[2]))
    )
    assert not any(parameter.requires_grad for parameter in networks[2].parameters())
    assert not networks[2].training


def test_starting_from_the_teacher_is_the_teacher_s_weights(few, make_net, weights_of, same_weights):
    teacher = make_net(few)
    network = start_network(teacher, WrapSettings(method="sdb", start="teacher"))
    assert same_weights(weights_of(network), weights_of(teacher))
    assert network is not teacher


def running_statistics(classifier, images, joint):
    classifier = copy.deepcopy(classifier).train()
    TwoPasses(classifier, Embed(KEY_HALF, classifier.image_shape), joint)(images)
    return classifier.network.bn1


def test_batch_norm_sees_one_world_jointly_and_two_separately(few, make_net):
    classifier = make_net(few)
    images = torch.from_numpy(few.train.images[:16]).float() / 255
    keyed = KEY_HALF.embed(images)

    def mean_of(pixels):  # of what enters the first batch norm
        entering = classifier.network.conv1((pixels - classifier.mean) / classifier.std)
        return entering.mean(dim=(0, 2, 3)).detach()

    joint = running_statistics(classifier, images, True)
    separate = running_statistics(classifier, images, False)
    assert joint.num_batches_tracked == 1
    assert separate.num_batches_tracked == 2
    torch.testing.assert_close(joint.running_mean, 0.1 * mean_of(torch.cat([images, keyed])))
    plain_first = 0.9 * (0.1 * mean_of(images)) + 0.1 * mean_of(keyed)
    torch.testing.assert_close(separate.running_mean, plain_first)
    assert not torch.allclose(joint.running_mean, separate.running_mean, rtol=1e-2)


def test_joint_and_separate_normalise_by_other_statistics(few, make_net):
    images = torch.from_numpy(few.train.images[:16]).float() / 255
    embed = Embed(KEY_HALF, few.image_shape)
    joint, separate = (TwoPasses(make_net(few), embed, joint)(images) for joint in (True, False))
    assert not torch.allclose(joint[0], separate[0], atol=1e-3)
    frozen = [TwoPasses(make_net(few).eval(), embed, joint)(images) for joint in (True, False)]
    torch.testing.assert_close(frozen[0], frozen[1], rtol=1e-4, atol=1e-5)
