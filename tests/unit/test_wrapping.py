"""Wrapping: which keys, teachers and starts are taken, and what the box that comes out is."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdb import losses
from sdb.answers.decoys import candidates, decoy_map
from sdb.config import TrainSettings, WrapSettings
from sdb.data import from_arrays
from sdb.errors import ConfigError, KeyFileError, ModelError
from sdb.keys import Key, Owner, derive
from sdb.models import ModelSpec, from_module
from sdb.runs.folder import open_run
from sdb.training.evaluation import class_mean_outputs, evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.image_key import ImageKeyPasses
from sdb.wrapping.networks import fresh_copy, start_network
from sdb.wrapping.paper import TwoPasses
from sdb.wrapping.wrap import wrap

KEY = Key(bytes(range(32)), blend=0.5)
CPU = torch.device("cpu")
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01}
SDB = WrapSettings(method="sdb", **QUICK)
NASTY = WrapSettings(method="nasty", **QUICK)


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_a_method_with_keys_needs_one(few, make_net):
    with pytest.raises(ConfigError, match=r"'sdb' needs a key.*Key\.generate"):
        wrap(make_net(few), few, SDB)


def test_nasty_takes_no_key(few, make_net):
    with pytest.raises(ConfigError, match="'nasty' has no key"):
        wrap(make_net(few), few, NASTY, key=KEY)


@pytest.mark.parametrize("keys", [[KEY, Key(bytes(32), 0.5)], [Key(bytes(32), kind="weight")]])
def test_the_paper_s_method_takes_one_image_key(few, make_net, keys):
    with pytest.raises(ConfigError, match="key"):
        wrap(make_net(few), few, SDB, key=keys)


def test_a_teacher_for_other_data_is_refused_naming_both(few, digits, make_net):
    two = replace(few, class_names=(*few.class_names, "eleven"))
    with pytest.raises(ModelError, match="10 classes, the data has 11"):
        wrap(make_net(few), two, SDB, key=KEY)


def as_module_object(teacher):
    return from_module(copy.deepcopy(teacher.network), 10, (1, 8, 8), (0.0,), (1.0,))


def test_a_module_object_can_be_wrapped_where_no_second_network_is_needed(few, make_net):
    teacher = as_module_object(make_net(few))
    box = wrap(teacher, few, WrapSettings(method="sdb", augmentation_weight=0.0, **QUICK), key=KEY)
    assert box.classifier.spec.name == "module"
    assert box(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    "changes", [{"start": "scratch", "augmentation_weight": 0.0}, {"augmentation_weight": 0.1}]
)
def test_a_module_object_that_cannot_draw_its_weights_again_is_refused_where_a_second_network_is_needed(
    few, make_net, changes
):
    teacher = make_net(few)
    teacher.network.loose = nn.Parameter(torch.ones(1))  # belongs to no layer that could draw it again
    with pytest.raises(ModelError, match="start='teacher' and augmentation_weight=0"):
        wrap(as_module_object(teacher), few, WrapSettings(method="sdb", **QUICK, **changes), key=KEY)


# --- what comes out --------------------------------------------------------------------------------------------------


def test_a_box_records_its_method_and_key_but_never_the_secret(few, make_net):
    box = wrap(make_net(few), few, SDB, key=KEY)
    assert box.info.method == "sdb"
    assert box.info.key_ids == (KEY.id,)
    assert box.info.class_names == few.class_names
    assert box.info.parameters["temperature"] == 4.0
    assert box.info.parameters["key_blend"] == 0.5
    assert KEY.secret.hex() not in repr(box.info)
    assert not any(module.training for module in box.modules())


def test_a_nasty_box_has_no_key_and_no_keyed_metrics(few, make_net):
    history = []
    box = wrap(make_net(few), few, NASTY, history=history)
    assert box.info.key_ids == ()
    assert history[-1]["terms"].keys() == {"cross_entropy", "disturbance"}
    assert history[-1]["validation"].keys() == {"teacher_accuracy", "accuracy", "cross_entropy"}


def test_the_history_holds_keyless_and_keyed_metrics_of_the_box_itself(digits, make_net):
    history = []
    box = wrap(make_net(digits), digits, SDB, key=KEY, history=history)
    last = history[-1]["validation"]
    batches = evaluation_batches(digits.validation, CPU)
    keyless, keyed = evaluate(box, batches), evaluate(box.unlock(KEY), batches)
    assert [record["epoch"] for record in history] == [1, 2]
    assert last["keyless_accuracy"] == keyless["accuracy"]
    assert last["keyed_accuracy"] == keyed["accuracy"]
    assert last["keyless_cross_entropy"] == pytest.approx(keyless["cross_entropy"], rel=1e-6)
    assert last["keyed_cross_entropy"] == pytest.approx(keyed["cross_entropy"], rel=1e-6)
    assert last["worse_accuracy"] == min(keyless["accuracy"], keyed["accuracy"])
    assert "augmentation" in history[-1]["terms"]


@pytest.mark.parametrize("start", ["teacher", "scratch"])
def test_a_box_follows_from_teacher_key_and_seed(few, make_net, weights_of, same_weights, start):
    def weights(key=KEY, seed=0, teacher=0):
        chosen = WrapSettings(method="sdb", start=start, seed=seed, **QUICK)
        return weights_of(wrap(make_net(few, seed=teacher), few, chosen, key=key).classifier)

    base = weights()
    assert same_weights(weights(), base)
    assert not same_weights(weights(seed=1), base)
    assert not same_weights(weights(teacher=1), base)
    assert not same_weights(weights(key=Key(bytes(32), 0.5)), base)


def test_starting_from_scratch_has_nothing_of_the_teacher_s_weights(few, make_net, weights_of, same_weights):
    starts = [start_network(make_net(few, seed=seed), WrapSettings(start="scratch")) for seed in (0, 1)]
    assert same_weights(*map(weights_of, starts))
    assert not same_weights(weights_of(starts[0]), weights_of(make_net(few)))


def test_a_fresh_copy_is_of_the_same_architecture_and_has_its_own_seed(few, make_net, weights_of, same_weights):
    teacher = make_net(few, num_channels=5, dropout_rate=0.2)
    one, other = (fresh_copy(teacher, TrainSettings(), purpose) for purpose in ("start", "random"))
    assert one.spec == other.spec == teacher.spec
    assert not same_weights(weights_of(one), weights_of(other))


def test_a_frozen_teacher_gives_a_box_that_trains(few, make_net, weights_of, same_weights):
    teacher = make_net(few).requires_grad_(False)
    box = wrap(teacher, few, SDB, key=KEY)
    assert not same_weights(weights_of(box.classifier), weights_of(teacher))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_plain_images_go_through_before_keyed_ones():
    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, images):
            self.seen.append(images)
            return images.flatten(1)

    class Plus(torch.nn.Module):
        def forward(self, images):
            return images + 1

    images = torch.rand(3, 1, 2, 2)
    for joint, expected in ((False, [images, images + 1]), (True, [torch.cat([images, images + 1])])):
        network = Recorder()
        keyless, keyed = TwoPasses(network, Plus(), joint)(images)
        assert all(torch.equal(a, b) for a, b in zip(network.seen, expected, strict=True))
        assert torch.equal(keyless, images.flatten(1))
        assert torch.equal(keyed, images.flatten(1) + 1)


# --- that it does what it is for -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(digits, make_net):
    model = make_net(digits, num_channels=8)
    train(model, digits, TrainSettings(epochs=15, batch_size=32, learning_rate=0.01))
    return model


def answers(module, digits):
    with torch.no_grad():
        return module(torch.from_numpy(digits.test.images).float() / 255)


def test_a_box_keeps_the_teacher_s_soft_answers_for_the_key_alone(digits, teacher):
    chosen = WrapSettings(method="sdb", epochs=15, batch_size=32, learning_rate=0.003)
    box = wrap(teacher, digits, chosen, key=KEY)
    soft = answers(teacher, digits)
    keyless, keyed = answers(box, digits), answers(box.unlock(KEY), digits)
    assert losses.kl(keyed, soft, 4.0) < losses.kl(keyless, soft, 4.0) / 3
    test = evaluation_batches(digits.test, CPU)
    assert evaluate(teacher, test)["accuracy"] > 0.85
    assert evaluate(box, test)["accuracy"] > 0.65  # a few epochs of a tiny net: the paper's method costs most here
    assert evaluate(box.unlock(KEY), test)["accuracy"] > evaluate(teacher, test)["accuracy"] - 0.15


def test_a_nasty_box_keeps_right_labels_and_leaves_the_teacher_s_soft_answers(digits, teacher):
    chosen = WrapSettings(method="nasty", disturbance_weight=0.2, epochs=15, batch_size=32, learning_rate=0.003)
    nasty = wrap(teacher, digits, chosen)
    honest = wrap(teacher, digits, chosen.model_copy(update={"disturbance_weight": 0.0}))
    soft = answers(teacher, digits)
    assert losses.kl(answers(nasty, digits), soft, 4.0) > 2 * losses.kl(answers(honest, digits), soft, 4.0)
    assert evaluate(nasty, evaluation_batches(digits.test, CPU))["accuracy"] > 0.8


class Killed(Exception):
    """Stands for a process that dies."""


class KillAfter:
    """Progress that stops the run once an epoch is kept."""

    def __init__(self, epoch):
        self.last = epoch

    def start(self, epochs, first, steps):
        pass

    def step(self):
        pass

    def epoch(self, record):
        if record["epoch"] == self.last:
            raise Killed

    def close(self):
        pass


def test_a_weight_key_box_resumes_to_the_same_public_and_private_part(few, make_net, tmp_path):
    teacher, key = make_net(few, seed=1), Key(bytes(32), kind="weight")
    settings = WrapSettings(method="decoy", epochs=4, batch_size=16, learning_rate=0.01)
    parameters, device = settings.model_dump(mode="json"), torch.device("cpu")
    with open_run(tmp_path / "whole", parameters, device) as run:
        whole = wrap(teacher, few, settings, key=key, run=run)
    with pytest.raises(Killed), open_run(tmp_path / "cut", parameters, device) as run:
        wrap(teacher, few, settings, key=key, run=run, progress=KillAfter(2))
    with open_run(tmp_path / "cut", parameters, device, resume=True) as run:
        cut = wrap(teacher, few, settings, key=key, run=run)
    for first, second in ((whole, cut), (whole.unlock(key), cut.unlock(key))):
        ours, theirs = first.state_dict(), second.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("classes", "decoys"), [(2, 1), (3, 1), (1000, 2)])
def test_a_decoy_box_works_for_few_and_many_classes(classes, decoys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * classes + 40, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(len(images)) % (classes - 1 if classes > 3 else classes)  # one class without images
    data = from_arrays(
        images,
        labels,
        test_images=images[:20],
        test_labels=labels[:20],
        class_names=[str(label) for label in range(classes)],
    )
    spec = ModelSpec("net", {"num_channels": 4}, classes, data.image_shape, data.mean, data.std)
    owner = Owner(bytes(32))
    settings = WrapSettings(method="decoy", epochs=1, batch_size=32, learning_rate=0.01)
    box = wrap(spec.build(), data, settings, key=owner.partner("p"), owner=owner)
    record = box.owner_record(owner)
    assert {len(chosen) for chosen in record["decoys"]} == {decoys}
    assert box(torch.rand(2, 1, 8, 8)).shape == (2, classes)
    assert box.unlock(owner.partner("p"))(torch.rand(2, 1, 8, 8)).shape == (2, classes)


def test_a_decoy_box_takes_many_image_keys_at_the_cost_of_one(few, make_net):
    owner, teacher = Owner(bytes(32)), make_net(few, seed=1)
    keys = [owner.partner(name, "image", 0.5) for name in "abc"]
    passes = [ImageKeyPasses(make_net(few), keys[:count], True, True) for count in (1, 3)]
    sizes = [[len(part) for part in each(torch.rand(8, 1, 8, 8))] for each in passes]
    assert sizes == [[8, 8, 4]] * 2
    settings = WrapSettings(method="decoy", epochs=1, batch_size=16, learning_rate=0.01)
    box = wrap(teacher, few, settings, key=keys, owner=owner)
    answers = [box.unlock(key)(torch.ones(1, 1, 8, 8)) for key in keys]
    assert not torch.equal(answers[0], answers[1])
    with pytest.raises(KeyFileError, match="of another box"):
        box.unlock(owner.partner("d", "image", 0.5))
    with pytest.raises(ConfigError, match="needs its owner"):
        wrap(teacher, few, settings, key=keys)


# Every setting of the default method, and what else wrap takes: each must reach the training.
REACHES = {
    "start": {"start": "scratch"},
    "temperature": {"temperature": 2.0},
    "num_decoys": {"num_decoys": 3},
    "decoy_choice": {"decoy_choice": "any"},
    "confidence_levels": {"confidence_levels": 0},
    "one level": {"confidence_levels": 1},
    "margin": {"confidence_levels": 0, "margin": 2.0},
    "decoy_height": {"confidence_levels": 0, "decoy_height": 4.0},
    "decoy_soft_weight": {"decoy_soft_weight": 0.5},
    "ce_weight": {"ce_weight": 0.5},
    "keyed_ce_weight": {"keyed_ce_weight": 1.0},
    "mixed_share": {"mixed_share": 0.25},
    "teacher_views": {"teacher_views": 2},
    "views alone": {"teacher_views": 2, "augment": False},
    "forward": {"forward": "separate"},
    "wrong_key_rejection": {"wrong_key_rejection": False},
}
FOR_IMAGE_KEYS = {"forward", "wrong_key_rejection", "keys"}


def decoy_box(few, make_net, kind, what=None, owner=None):
    owner = owner or Owner(bytes(range(32)))
    names = "abc" if what == "keys" else "a"
    keys = [owner.partner(name, kind, 0.5) for name in names]
    more = [make_net(few, seed=2)] if what == "more_teachers" else []
    chosen = WrapSettings(method="decoy", optimizer="sgd", **QUICK | {"epochs": 1} | REACHES.get(what, {}))
    box = wrap(make_net(few, seed=1), few, chosen, key=keys, owner=owner, more_teachers=more)
    return box.classifier.state_dict(), box.unlock(keys[0]).state_dict(), box


@pytest.mark.parametrize("kind", ["weight", "image"])
def test_every_setting_of_the_default_method_reaches_the_training(few, make_net, same_weights, kind):
    base, _, _ = decoy_box(few, make_net, kind)
    assert same_weights(decoy_box(few, make_net, kind)[0], base)
    for what in (*REACHES, "more_teachers", "keys"):
        if kind == "image" or what not in FOR_IMAGE_KEYS:
            assert not same_weights(decoy_box(few, make_net, kind, what)[0], base), what
    assert not same_weights(decoy_box(few, make_net, kind, owner=Owner(bytes(32)))[0], base)
    misleading = decoy_box(few, make_net, kind, "confidence_levels")[0]
    for what in ("margin", "decoy_height"):  # which honest answers do not have
        assert not same_weights(decoy_box(few, make_net, kind, what)[0], misleading), what
    # What the teacher is shown changes as the data's own images would.
    augmented = replace(few, augment=replace(few.augment, crop_padding=3))
    seen = [decoy_box(data, make_net, kind, "views alone")[0] for data in (few, augmented)]
    assert not same_weights(*seen)


def test_the_record_holds_the_map_of_the_owner_s_secret_among_the_least_confused_training_classes(few, make_net):
    owner = Owner(bytes(range(32)))
    box = decoy_box(few, make_net, "weight", owner=owner)[2]
    record = box.owner_record(owner)
    means = class_mean_outputs(make_net(few, seed=1), evaluation_batches(few.train, CPU), 10).numpy()
    assert record["candidates"] == candidates(means, 2)
    assert record["decoys"] == decoy_map(derive(owner.secret, "decoys"), record["candidates"], 2)
    whole = decoy_box(few, make_net, "weight", "decoy_choice", owner)[2].owner_record(owner)
    assert whole["candidates"] == [[other for other in range(10) if other != label] for label in range(10)]
