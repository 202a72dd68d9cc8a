"""Networks as people write them: they go all the way, or are refused by name before anything is trained."""

import copy
import logging
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdb.box.box import Box
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import ModelError
from sdb.export import export
from sdb.keys import Key
from sdb.models import Classifier, ModelSpec, from_module
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

SHAPE, CLASSES = (1, 8, 8), 10
HERE = __name__


class Base(nn.Module):
    def __init__(self, num_classes=CLASSES):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, num_classes)

    def features(self, x):
        return F.relu(self.bn(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def changed(change, name):
    """A network that does something to the logits, the features and its training mode."""
    return type(
        name,
        (Base,),
        {"forward": lambda self, x: change(self.fc(self.features(x)), self.features(x), self.training)},
    )


class Output:
    def __init__(self, **named):
        self.__dict__ |= named


class Squeezed(Base):
    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn(self.conv(x))), 1).squeeze())


class SqueezedInside(Base):
    """Fails on a lone image, since there is no second axis."""

    def forward(self, x):
        features = F.adaptive_avg_pool2d(F.relu(self.bn(self.conv(x))), 1).squeeze()
        return self.fc(torch.cat([features, -features], dim=1)[:, :8])


class Lazy(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.conv, self.bn, self.fc = nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(num_classes)


class Tied(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.more, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.more.weight
        self.alias = self.bn

    def features(self, x):
        return self.again(F.relu(self.more(self.bn(self.conv(x))))).mean((2, 3))


class TiedWithoutNorm(nn.Module):
    def __init__(self, num_classes=CLASSES):
        super().__init__()
        self.one, self.two, self.fc = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, num_classes)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.fc(F.relu(self.two(F.relu(self.one(x.flatten(1))))))


class Parametrised(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.fc = nn.utils.parametrizations.weight_norm(self.fc)


class InPlace(Base):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Masked(Base):
    """With a buffer that is not finite on purpose, as masks of attention are, and one that is not kept."""

    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.register_buffer("mask", torch.full((8,), -torch.inf))
        self.register_buffer("scale", torch.ones(1), persistent=False)
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.ones(2)))


class TensorState(Base):
    steps = 3

    def get_extra_state(self):
        return torch.tensor(self.steps)

    def set_extra_state(self, state):
        self.steps = int(state)


class Half(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.half()


class Double(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.double()


class Spread(nn.DataParallel):
    def __init__(self, num_classes=CLASSES):
        super().__init__(Base(num_classes))


def averaged_and_compiled(num_classes=CLASSES):
    return torch.optim.swa_utils.AveragedModel(torch.compile(nn.DataParallel(Base(num_classes))))


Auxiliary = changed(lambda z, f, training: (z, -z, f) if training else z, "Auxiliary")
WithFeatures = changed(lambda z, f, _: (z, f), "WithFeatures")
Named = changed(lambda z, f, _: {"features": f, "logits": z}, "Named")
OnlyOne = changed(lambda z, f, _: {"features": f, "out": z, "loss": None}, "OnlyOne")
Object = changed(lambda z, f, _: Output(loss=None, logits=z), "Object")
Listed = changed(lambda z, f, _: [f, z], "Listed")
Logs = changed(lambda z, f, _: z.log_softmax(1), "Logs")

GOOD = [
    *(
        Base,
        Squeezed,
        SqueezedInside,
        Lazy,
        Tied,
        TiedWithoutNorm,
        Parametrised,
        InPlace,
        Masked,
        TensorState,
        Half,
    ),
    *(Double, Spread, averaged_and_compiled, Auxiliary, WithFeatures, Named, OnlyOne, Object, Listed, Logs),
]


class Stored(Base):
    """Extra state that no file of tensors holds."""

    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass


class Restless(Base):
    def forward(self, x):
        return self.fc(F.dropout(self.features(x), 0.5))


class Unkept(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.scale = torch.rand(1) + 0.5

    def forward(self, x):
        return super().forward(x * self.scale)


class Fickle(Base):
    """Of another shape each time it is built."""

    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        width = int(torch.randint(9, 10**6, ()))
        self.register_buffer("odd", torch.zeros(width))


class OnlyInEval(Base):
    def forward(self, x):
        if self.training:
            raise RuntimeError("I was frozen")
        return super().forward(x)


class Sparse(Base):
    def __init__(self, num_classes=CLASSES):
        super().__init__(num_classes)
        self.register_buffer("links", torch.eye(3).to_sparse())


# What is refused, with what the message must say; factories, where only a second build finds it out.
BAD = [
    (changed(lambda z, f, _: z.softmax(1), "Soft"), "returns probabilities.*log_softmax"),
    (
        changed(lambda z, f, training: (z.softmax(1), f) if training else z, "SoftInTraining"),
        "returns probabilities",
    ),
    (changed(lambda z, f, _: (f, z), "FeaturesFirst"), r"returned tuple \[\(2, 8\), \(2, 10\)\], and logits"),
    (changed(lambda z, f, _: [z, -z], "Exits"), r"returned list \[\(2, 10\), \(2, 10\)\]"),
    (changed(lambda z, f, _: {"a": z, "b": z}, "TwoNamed"), r"returned dict \[a: \(2, 10\), b: \(2, 10\)\]"),
    (changed(lambda z, f, _: z[:, :4], "Narrow"), r"returned \(2, 4\), and logits \(N, 10\)"),
    (changed(lambda z, f, _: None, "Nothing"), "returned NoneType"),
    (changed(lambda z, f, _: (), "Empty"), r"returned tuple \[\]"),
    (changed(lambda z, f, _: z[:, :, None, None], "Maps"), r"returned \(2, 10, 1, 1\)"),
    (changed(lambda z, f, _: z.mean(0, keepdim=True), "Mean"), r"returned \(1, 10\), expected \(2, 10\)"),
    (Stored, "extra state.*dict"),
    (Restless, r"differently in eval mode.*training=self\.training"),
    (OnlyInEval, "fails in training mode.*I was frozen"),
    (Sparse, "links is a sparse"),
]
BAD_FACTORIES = [(Unkept, "built again.*persistent buffers"), (Fickle, "another network each time")]
for each in (*GOOD, *(network for network, _ in (*BAD, *BAD_FACTORIES))):
    setattr(sys.modules[HERE], each.__name__, each)


def spec_of(factory):
    return ModelSpec(f"{HERE}:{factory.__name__}", {}, CLASSES, SHAPE, (0.3,), (0.4,))


def name_of(value):
    return value.__name__ if callable(value) else ""


@pytest.mark.parametrize("factory", GOOD, ids=name_of)
def test_a_network_goes_all_the_way(factory, few, tmp_path):
    short = {"epochs": 1, "batch_size": 16, "device": "cpu"}
    teacher = spec_of(factory).build()
    train(teacher, few, TrainSettings(**short))
    key = Key.generate()
    part = "whole" if factory in (Tied, TiedWithoutNorm, Parametrised, Masked, TensorState) else "thin"
    for private_part in {"thin", part}:
        box = wrap(teacher, few, WrapSettings(**short, private_part=private_part), key=key)
        box.save(tmp_path / private_part)
        loaded = Box.load(tmp_path / private_part, network=teacher.spec.name)
        with torch.no_grad():
            for count in (1, 3):
                images = torch.rand(count, *SHAPE)
                assert box(images).shape == (count, CLASSES)
                for one, two in ((box, loaded), (box.unlock(key), loaded.unlock(key))):
                    torch.testing.assert_close(one(images), two(images))
    student = spec_of(factory).build()
    distill(loaded, student, few, DistillSettings(**short), key=key)
    if factory in (Squeezed, SqueezedInside, WithFeatures):
        export(loaded, tmp_path / "network.pt2", "pt2")


@pytest.mark.parametrize(("factory", "says"), [*BAD, *BAD_FACTORIES], ids=name_of)
def test_another_is_refused_by_name_before_training(factory, says):
    with pytest.raises(ModelError, match=says):
        spec_of(factory).build()
    if (factory, says) in BAD:
        with pytest.raises(ModelError, match=says):
            from_module(factory(), CLASSES, SHAPE, (0.3,), (0.4,))


@pytest.mark.parametrize(
    "factory", [Base, Squeezed, Auxiliary, Tied, Parametrised, Masked, TensorState], ids=name_of
)
def test_trying_a_network_changes_nothing(factory):
    network = factory().train()
    network.fc.eval()
    before, mode = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    state = torch.get_rng_state()
    from_module(network, CLASSES, SHAPE, (0.3,), (0.4,))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == mode
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_trying_leaves_dropout_s_random_numbers_alone():
    torch.manual_seed(3)
    plain = spec_of(Base).build()
    after = torch.rand(3)
    torch.manual_seed(3)
    weights = Base()  # drawn from the same numbers as without any trial
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(weights.fc.weight, plain.network.fc.weight)


def test_lazy_layers_begin_as_their_seed_says():
    first, second = (_seeded(spec_of(Lazy)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def _seeded(spec):
    torch.manual_seed(5)
    return spec.build()


def test_half_and_double_weights_become_float32():
    for factory in (Half, Double):
        classifier = from_module(factory(), CLASSES, SHAPE, (0.3,), (0.4,))
        assert {tensor.dtype for tensor in classifier.parameters()} == {torch.float32}


def test_what_is_around_a_network_is_taken_off():
    assert type(spec_of(averaged_and_compiled).build().network) is Base


def test_the_first_of_several_is_the_logits():
    torch.manual_seed(0)
    base, images = Base().eval(), torch.rand(3, *SHAPE)
    expected = Classifier(base, (0.3,), (0.4,), CLASSES, SHAPE)(images)
    for factory in (Auxiliary, WithFeatures, Named, OnlyOne, Object, Listed, Squeezed):
        network = factory()
        network.load_state_dict(base.state_dict())
        classifier = from_module(network.eval(), CLASSES, SHAPE, (0.3,), (0.4,))
        torch.testing.assert_close(classifier(images), expected)
        torch.testing.assert_close(classifier(images[:1]), expected[:1])


# --- pixels and normalisation ----------------------------------------------------------------------------------------


@pytest.fixture
def classifier():
    return from_module(Base(), CLASSES, SHAPE, (0.3,), (0.4,)).eval()


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.rand(1, 8, 8), r"images are \(1, 8, 8\) of float32, expected a batch \(N, 1, H, W\).*unsqueeze"),
        (torch.rand(8, 8), r"images are \(8, 8\)"),
        (torch.rand(2, 3, 8, 8), r"images are \(2, 3, 8, 8\)"),
        (torch.rand(1, 2, 1, 8, 8), r"images are \(1, 2, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"of uint8.*images\.float\(\) / 255"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "of int64"),
    ],
    ids=["unbatched", "flat", "colours", "videos", "bytes", "integers"],
)
def test_what_is_no_batch_of_float_pixels_is_refused(classifier, images, says):
    with pytest.raises(ModelError, match=says):
        classifier(images)
    with pytest.raises(ModelError, match=says):
        classifier.train()(images)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x * 255, "divide them by 255"),
        (lambda x: (x - 0.5) / 0.25, "leave a normalisation of your own out"),
        (lambda x: x * torch.nan, "nan"),
    ],
    ids=["bytes", "normalised", "nan"],
)
def test_pixels_outside_are_told_of_once(classifier, caplog, change, says, count):
    images = torch.rand(count, *SHAPE)
    classifier(images)
    assert not caplog.records
    for _ in range(3):
        classifier(change(images))
        classifier.train().eval()
    assert len(caplog.records) == (count > 0)
    assert says in caplog.text or not count


def test_a_training_step_looks_at_no_pixels_but_the_first(classifier, caplog):
    images = torch.rand(2, *SHAPE)
    classifier.train()(images)
    classifier(images * 255)
    assert not caplog.records
    classifier.train()(images * 255)
    assert len(caplog.records) == 1


def test_a_look_is_not_in_the_way_of_transforms(classifier):
    images = torch.rand(3, 2, *SHAPE)
    together = torch.func.vmap(classifier)(images)
    torch.testing.assert_close(together, torch.stack([classifier(part) for part in images]))


@pytest.mark.parametrize(
    ("mean", "std", "warned"),
    [
        ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), True),
        ((0.5, 0.5, 0.5), (58.4, 57.1, 57.5), True),
        ((33.3, 33.3, 33.3), (1.0, 1.0, 1.0), True),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), False),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), False),
    ],
)
def test_a_normalisation_of_another_scale_is_told_of_once(mean, std, warned, caplog):
    caplog.set_level(logging.WARNING)
    spec = ModelSpec("mlp", {}, CLASSES, (3, 8, 8), mean, std)
    spec.build()
    spec.build()
    assert len(caplog.records) == warned
    assert ("divide both by 255" in caplog.text) == warned
