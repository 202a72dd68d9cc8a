"""With a protection switched off, what is left is plain training, bit for bit; and nobody else's things are touched."""

import copy

import pytest
import torch

from sdb.box.box import Embed
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.keys import Key
from sdb.training.loop import train
from sdb.training.repeated_views import asked
from sdb.wrapping.paper import TwoPasses, sdb_step
from sdb.wrapping.wrap import wrap

QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "optimizer": "sgd", "schedule": "cosine"}
KEY = Key(bytes(range(32)), blend=0.5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_nasty_without_disturbance_is_plain_training_from_the_teacher(
    few, make_net, weights_of, same_weights, dropout
):
    teacher = make_net(few, dropout_rate=dropout)
    box = wrap(teacher, few, WrapSettings(method="nasty", disturbance_weight=0.0, **QUICK))
    plain = copy.deepcopy(teacher)
    train(plain, few, TrainSettings(**QUICK))
    assert same_weights(weights_of(box.classifier), weights_of(plain))
    assert not same_weights(weights_of(box.classifier), weights_of(teacher))


def test_nasty_with_disturbance_is_not_plain_training(few, make_net, weights_of, same_weights):
    teacher = make_net(few)
    box = wrap(teacher, few, WrapSettings(method="nasty", disturbance_weight=0.04, **QUICK))
    plain = copy.deepcopy(teacher)
    train(plain, few, TrainSettings(**QUICK))
    assert not same_weights(weights_of(box.classifier), weights_of(plain))


def test_sdb_without_its_terms_is_three_cross_entropies_where_the_key_adds_nothing(
    few, make_net, in_float64, weights_of
):
    # 2 CE(z, y) + CE(z_k, y) with z = z_k is plain training with three times the loss.
    teacher = make_net(few, "mlp")
    off = {"disturbance_weight": 0.0, "preservation_weight": 0.0, "augmentation_weight": 0.0}
    shared = {**QUICK, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    box = wrap(teacher, few, WrapSettings(method="sdb", **off, **shared), key=Key(KEY.secret, blend=1.0))
    plain = copy.deepcopy(teacher)
    train(plain, few, TrainSettings(**{**shared, "learning_rate": 0.03}))
    torch.testing.assert_close(weights_of(box.classifier), weights_of(plain), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("joint", [True, False])
def test_a_key_of_blend_one_leaves_keyed_equal_to_keyless(few, make_net, joint):
    network = make_net(few).eval()
    network, images = network.double(), torch.rand(5, 1, 8, 8).double()
    passes = TwoPasses(network, Embed(Key(KEY.secret, blend=1.0), few.image_shape), joint)
    keyless, keyed = passes(images)
    torch.testing.assert_close(
        keyless, keyed, rtol=1e-12, atol=1e-12
    )  # a row may be rounded by its place in a batch
    other = TwoPasses(network, Embed(KEY, few.image_shape), joint)(images)
    assert not torch.equal(other[0], other[1])


def test_an_augmentation_of_weight_zero_needs_no_random_network(few, make_net):
    teacher = make_net(few).eval()
    without = sdb_step(asked(teacher), None, WrapSettings(method="sdb", augmentation_weight=0.0))
    off = sdb_step(
        asked(teacher), asked(make_net(few, seed=1).eval()), WrapSettings(method="sdb", augmentation_weight=0.0)
    )
    batch = _first_batch(few)
    passes = TwoPasses(make_net(few, seed=2).eval(), Embed(KEY, few.image_shape), True)
    totals = [sum(step(passes, batch).values()) for step in (without, off)]
    assert torch.equal(*totals)


def test_distilling_with_weight_zero_is_training_alone(few, make_net, weights_of, same_weights):
    student, alone = make_net(few, seed=1), make_net(few, seed=1)
    distill(make_net(few), student, few, DistillSettings(kd_weight=0.0, **QUICK))
    train(alone, few, TrainSettings(**QUICK))
    assert same_weights(weights_of(student), weights_of(alone))


def test_distilling_with_weight_zero_smooths_labels_as_training_does(few, make_net, weights_of, same_weights):
    student, alone = make_net(few, seed=1), make_net(few, seed=1)
    distill(make_net(few), student, few, DistillSettings(kd_weight=0.0, label_smoothing=0.1, **QUICK))
    train(alone, few, TrainSettings(label_smoothing=0.1, **QUICK))
    assert same_weights(weights_of(student), weights_of(alone))


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("method", ["sdb", "nasty"])
def test_wrapping_leaves_the_teacher_alone(few, make_net, weights_of, same_weights, method, mode):
    teacher = make_net(few).train(mode)
    before = weights_of(teacher)
    wrap(teacher, few, WrapSettings(method=method, **QUICK), key=KEY if method == "sdb" else None)
    assert same_weights(weights_of(teacher), before)
    assert all(module.training is mode for module in teacher.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("mode", [True, False])
def test_distilling_leaves_teacher_and_box_alone(few, make_net, weights_of, same_weights, mode):
    teacher = make_net(few).train(mode)
    before = weights_of(teacher)
    distill(teacher, make_net(few, seed=1), few, DistillSettings(**QUICK))
    box = wrap(teacher, few, WrapSettings(method="sdb", **QUICK), key=KEY)
    box_before = weights_of(box)
    distill(box, make_net(few, seed=1), few, DistillSettings(**QUICK), key=KEY)
    assert same_weights(weights_of(teacher), before)
    assert same_weights(weights_of(box), box_before)
    assert all(module.training is mode for module in teacher.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_training_wrapping_and_distilling_leave_the_global_random_state_alone(few, make_net):
    teacher, student = make_net(few, dropout_rate=0.3), make_net(few, seed=1, dropout_rate=0.3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(teacher, few, TrainSettings(**QUICK))
    box = wrap(teacher, few, WrapSettings(method="sdb", start="scratch", **QUICK), key=KEY)
    distill(box, student, few, DistillSettings(**QUICK))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_random_state_has_no_part_in_the_result(few, make_net, weights_of, same_weights):
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        box = wrap(
            make_net(few, dropout_rate=0.3), few, WrapSettings(method="sdb", start="scratch", **QUICK), key=KEY
        )
        results.append(weights_of(box.classifier))
    assert same_weights(*results)


def _first_batch(data):
    from sdb.data import Batches

    return next(Batches(data.train, 16).epoch(0))
