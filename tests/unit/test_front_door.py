"""A network of one's own: wrapped by a call or in a loop of one's own, summed up, saved, loaded, opened."""

import copy

import pytest
import torch
from torch import nn

import sdb
from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import ImageSet
from sdb.errors import CheckpointError, ConfigError, DataError, ModelError
from sdb.keys import Key, Owner
from sdb.wrapping.own_loop import Wrapping
from sdb.wrapping.wrap import wrap

SETTINGS = WrapSettings(epochs=2, batch_size=16, learning_rate=0.003, optimizer="adam", device="cpu")
WEIGHT = Owner(bytes(range(32))).partner("hospital")


class Pooled(nn.Module):
    """Takes images of any size."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().amax(dim=(2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Pooled()


def images_of(data, count=16):
    return torch.from_numpy(data.train.images[:count].copy()), torch.from_numpy(data.train.labels[:count])


@pytest.mark.parametrize("scale", [{}, {"mean": (0.3,), "std": (0.4,)}])
def test_a_module_is_wrapped_saved_and_loaded_into_an_instance(net, few, tmp_path, scale):
    before = copy.deepcopy(net.state_dict())
    box = wrap(net, few, SETTINGS, key=WEIGHT, **scale)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert box.classifier.mean.flatten().tolist() == pytest.approx(list(scale.get("mean", (0.0,))))
    box.save(tmp_path / "model.box")
    loaded = sdb.Box.load(tmp_path / "model.box", network=Pooled())
    pixels = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(pixels), box(pixels))
    assert torch.equal(loaded.unlock(WEIGHT)(pixels), box.unlock(WEIGHT)(pixels))
    assert loaded.info == box.info
    assert loaded.summary() == box.summary()


def test_the_summary_says_what_was_measured_and_what_is_told(net, few, digits, tmp_path):
    box = wrap(net, few, SETTINGS, key=WEIGHT)
    measured = box.info.measured
    for name in ("teacher", "keyless", "keyed"):
        assert 0 <= measured[f"{name}_accuracy"] <= 1
        assert 0 <= measured[f"{name}_calibration_error"] <= 1
    assert measured["images"] == len(few.validation)
    text = box.summary()
    assert f"{100 * measured['keyed_accuracy']:.1f} %" in text
    assert "0 bits beyond top-1" in text
    own = wrap(net, few, SETTINGS.model_copy(update={"fixed_answers": False}), key=WEIGHT)
    assert "not bounded" in own.summary()
    nasty = wrap(net, few, SETTINGS.model_copy(update={"method": "nasty"}))
    assert "keyed_accuracy" not in nasty.info.measured
    assert "key" not in nasty.summary().split("Promised")[1].split("Not")[0]


@pytest.mark.parametrize("value", [[], {"images": "many"}, {"images": float("nan")}, {"images": True}])
def test_measurements_that_are_none_are_refused(net, few, tmp_path, value):
    from sdb.box.info import measurements

    with pytest.raises(CheckpointError, match="measured must be finite numbers"):
        measurements(value, tmp_path)


@pytest.mark.parametrize("known", [True, False])
def test_a_loop_of_one_s_own_ends_in_a_box_like_any_other(net, few, tmp_path, known):
    shape = {"image_shape": few.image_shape} if known else {}
    wrapping = Wrapping(net, key=WEIGHT, num_classes=10, class_names=few.class_names, **shape)
    optimizer = torch.optim.Adam(wrapping.parameters(), lr=0.01)
    pixels, labels = images_of(few, 48)
    seen = []
    for _ in range(30):
        loss = sum(wrapping.losses(pixels, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert sum(seen[-5:]) < 0.95 * sum(seen[:5])
    box = wrapping.finish(few.validation)
    assert box.info.measured["images"] == len(few.validation)
    assert box.classifier.image_shape == few.image_shape
    box.save(tmp_path / "model.box")
    loaded = Box.load(tmp_path / "model.box", network=Pooled())
    floats = pixels.float() / 255
    assert torch.equal(loaded(floats), box(floats))
    assert torch.equal(loaded.unlock(WEIGHT)(floats), wrapping._method.keyed(floats))
    assert not any(module.training for module in box.modules())


def test_every_method_has_terms_in_a_loop_of_one_s_own(net, few):
    pixels, labels = images_of(few)
    terms = {}
    for name, key, settings in (
        ("weight", WEIGHT, WrapSettings()),
        ("image", Key(bytes(range(32)), 0.5), WrapSettings()),
        ("paper", Key(bytes(range(32)), 0.5), WrapSettings(method="sdb", augmentation_weight=0)),
        ("nasty", None, WrapSettings(method="nasty")),
    ):
        wrapping = Wrapping(net, key=key, num_classes=10, settings=settings)
        terms[name] = set(wrapping.losses(pixels, labels))
        box = wrapping.finish()
        assert box.info.measured == ({"bits": 0.0} if name == "weight" else {})
        assert box(torch.rand(2, *few.image_shape)).shape == (2, 10)
        if name in ("image", "paper"):  # the pattern is of the images' own size
            assert torch.equal(box.unlock(key)(torch.zeros(1, 1, 8, 8)), box(key.embed(torch.zeros(1, 1, 8, 8))))
    assert terms["weight"] == terms["image"] == {
        "decoy", "decoy_soft", "cross_entropy", "preservation", "keyed_cross_entropy"
    }  # fmt: skip
    assert "preservation" in terms["paper"]
    assert terms["nasty"] == {"cross_entropy", "disturbance"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.rand(4, 8, 8)}, r"\(N, C, H, W\)"),
        ({"labels": torch.zeros(3).long()}, r"labels \(3,\)"),
        ({"labels": torch.rand(4)}, "whole numbers"),
        ({"labels": torch.full((4,), 10)}, r"10 is outside 0\.\.9"),
    ],
)
def test_batches_that_do_not_do_are_refused(net, change, said):
    wrapping = Wrapping(net, key=WEIGHT, num_classes=10)
    batch = {"images": torch.rand(4, 1, 8, 8), "labels": torch.zeros(4).long()} | change
    with pytest.raises(DataError, match=said):
        wrapping.losses(**batch)


def test_networks_and_keys_that_do_not_do_are_refused_at_the_door(net, few, make_net, tmp_path):
    box = wrap(net, few, SETTINGS, key=WEIGHT)
    for network, given, error, said in (
        (box, {}, ConfigError, "a box already"),
        (nn.Flatten(), {}, ModelError, "no parameters"),
        (lambda images: images, {}, ModelError, "give an nn.Module"),
        (Pooled(classes=7), {}, ModelError, r"7|10"),
        (Pooled(channels=3), {}, ModelError, "fails on images"),
        (net, {"mean": (0.5,)}, ConfigError, "give both"),
        (make_net(few), {"mean": (0.5,), "std": (0.5,)}, ConfigError, "leave both out"),
        (net, {"key": b"secret"}, ConfigError, "give a Key"),
        (net, {"key": None}, ConfigError, "needs a key"),
    ):
        with pytest.raises(error, match=said) as caught:
            wrap(network, few, SETTINGS, **{"key": WEIGHT, **given})
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="class_names: 2 names for 10"):
        Wrapping(net, key=WEIGHT, num_classes=10, class_names=("a", "b"))
    with pytest.raises(ConfigError, match="image_shape"):
        Wrapping(nn.Sequential(nn.Flatten(), nn.Linear(77, 10)), key=WEIGHT, num_classes=10)


def test_a_shape_that_cannot_be_found_can_be_given(few):
    odd = nn.Sequential(nn.Flatten(), nn.Linear(77, 16), nn.ReLU(), nn.Linear(16, 10))
    wrapping = Wrapping(odd, key=WEIGHT, num_classes=10, image_shape=(1, 7, 11))
    wrapping.losses(torch.rand(4, 1, 7, 11), torch.arange(4))
    validation = ImageSet((torch.rand(6, 1, 7, 11) * 255).byte().numpy(), torch.arange(6).numpy())
    assert "6 validation images" in wrapping.finish(validation).summary()
