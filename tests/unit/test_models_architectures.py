"""Every architecture: its size, its shapes, its parameter names and its gradients."""

import re

import pytest
import torch
from torch import nn

from sdb.errors import ModelError
from sdb.models import MODELS, build

# Trainable parameters of the reference code's networks at 10 and 100 classes, 3x32x32 images.
COUNTS = {
    "resnet18": (11_173_962, 11_220_132),
    "resnet34": (21_282_122, 21_328_292),
    "resnet50": (23_520_842, 23_705_252),
    "preresnet20": (272_282, 278_132),
    "preresnet32": (466_714, 472_564),
    "preresnet44": (683_162, 706_292),
    "preresnet56": (868_634, 891_764),
    "preresnet110": (1_703_258, 1_726_388),
    "densenet121": (6_956_298, 7_048_548),
    "densenet161": (26_482_378, 26_681_188),
    "densenet169": (12_493_322, 12_643_172),
    "resnext29": (34_426_698, 34_518_948),
    "mobilenetv2": (2_254_090, 2_369_380),
    "shufflenetv2": (1_268_646, 1_360_896),
    "net": (357_514, 369_124),
    "mlp": (1_841_162, 1_887_332),
}

# The parameter names of the reference code, read from its model/*.py: checkpoints load only under these.
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
BOTH = r"(weight|bias)"
NAMES = {
    "resnet18": rf"conv1\.weight|bn1\.{NORM}|linear\.{BOTH}"
    rf"|layer[1-4]\.[01]\.(conv[12]\.weight|bn[12]\.{NORM}|shortcut\.0\.weight|shortcut\.1\.{NORM})",
    "resnet50": rf"conv1\.weight|bn1\.{NORM}|linear\.{BOTH}"
    rf"|layer[1-4]\.[0-5]\.(conv[123]\.weight|bn[123]\.{NORM}|shortcut\.0\.weight|shortcut\.1\.{NORM})",
    "preresnet20": rf"conv1\.weight|bn\.{NORM}|fc\.{BOTH}"
    rf"|layer[1-3]\.[0-2]\.(conv[12]\.weight|bn[12]\.{NORM}|downsample\.0\.weight)",
    "preresnet56": rf"conv1\.weight|bn\.{NORM}|fc\.{BOTH}"
    rf"|layer[1-3]\.[0-8]\.(conv[123]\.weight|bn[123]\.{NORM}|downsample\.0\.weight)",
    "densenet121": rf"conv1\.weight|linear\.{BOTH}|features\.(bn\.{NORM}"
    rf"|(dense_block_layer_[012]|dense_block3)\.bottle_neck_layer_\d+"
    rf"\.bottle_neck\.([25]\.weight|[03]\.{NORM})"
    rf"|transition_layer_[012]\.down_sample\.(0\.{NORM}|1\.weight))",
    "resnext29": rf"conv_1_3x3\.weight|bn_1\.{NORM}|classifier\.{BOTH}"
    rf"|stage_[123]\.stage_[123]_bottleneck_[012]\."
    rf"(conv_(reduce|conv|expand)\.weight|(bn|bn_reduce|bn_expand)\.{NORM}"
    rf"|shortcut\.(shortcut_conv\.weight|shortcut_bn\.{NORM}))",
    "mobilenetv2": rf"pre\.(0\.{BOTH}|1\.{NORM})|conv1\.(0\.{BOTH}|1\.{NORM})|conv2\.{BOTH}"
    rf"|(stage[17]|stage[2-6]\.[0-3])\.residual\.([036]\.{BOTH}|[147]\.{NORM})",
    "shufflenetv2": rf"pre\.(0\.{BOTH}|1\.{NORM})|conv5\.(0\.{BOTH}|1\.{NORM})|fc\.{BOTH}"
    rf"|stage[234]\.[0-7]\.residual\.([035]\.{BOTH}|[146]\.{NORM})"
    rf"|stage[234]\.0\.shortcut\.([02]\.{BOTH}|[13]\.{NORM})",
    "net": rf"conv[123]\.{BOTH}|bn[123]\.{NORM}|fc1\.{BOTH}|fcbn1\.{NORM}|fc2\.{BOTH}",
    "mlp": rf"fc[123]\.{BOTH}",
}

# One small member of each family.
FAMILIES = (
    "resnet18",
    "resnet50",
    "preresnet20",
    "preresnet44",
    "densenet121",
    "resnext29",
    "mobilenetv2",
    "shufflenetv2",
    "net",
    "mlp",
)


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    # Threads that wait for each other on busy cores made this file eight times slower.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def test_every_name_is_counted():
    assert COUNTS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_are_the_references(name):
    for num_classes, expected in zip((10, 100), COUNTS[name], strict=True):
        with torch.device("meta"):  # no memory and no random numbers
            network = build(name, num_classes=num_classes)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected


@pytest.mark.parametrize("name", NAMES)
def test_parameter_names_are_the_references(name):
    with torch.device("meta"):
        names = build(name, num_classes=10).state_dict()
    assert [key for key in names if not re.fullmatch(NAMES[name], key)] == []


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("image_shape", [(3, 32, 32), (3, 64, 64), (1, 32, 32), (3, 24, 40)])
def test_maps_images_to_logits(name, image_shape):
    network = build(name, num_classes=7, image_shape=image_shape).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, *image_shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_takes_the_digits_of_8x8(name):
    network = build(name, num_classes=10, image_shape=(1, 8, 8)).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_reaches_every_parameter(name):
    network = build(name, num_classes=10, image_shape=(3, 16, 16)).train()
    nn.functional.cross_entropy(network(torch.rand(4, 3, 16, 16)), torch.arange(4)).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        # A bias before a norm has a gradient of zero by nature, so only weights are asked for more.
        assert key.endswith("bias") or parameter.grad.any(), key


@pytest.mark.parametrize("name", ["preresnet20", "resnext29"])
def test_convolutions_start_from_their_fan_out(name):
    network = build(name, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_shuffle_interleaves_the_two_branches():
    from sdb.models.shufflenetv2 import Unit

    unit = Unit(8).eval()
    x = torch.rand(2, 8, 4, 4)
    with torch.no_grad():
        out, convolved = unit(x), unit.residual(x[:, 4:])
    assert torch.equal(out[:, 0::2], x[:, :4])
    assert torch.equal(out[:, 1::2], convolved)


def test_mlp_logits_may_be_negative():
    # The reference's ReLU on the logits would leave a class without gradient.
    logits = build("mlp", num_classes=100)(torch.randn(8, 3, 32, 32))
    assert (logits < 0).any()


def test_net_width_and_dropout():
    narrow = build("net", num_classes=10, arguments={"num_channels": 4, "dropout_rate": 0.5})
    images = torch.rand(8, 3, 32, 32)
    assert len(narrow.state_dict()["fc1.weight"]) == 16
    assert not torch.equal(narrow(images), narrow(images))
    narrow.eval()
    assert torch.equal(narrow(images), narrow(images))


@pytest.mark.parametrize("name", ["net", "densenet121"])
def test_too_small_images_are_refused(name):
    with pytest.raises(ModelError, match="at least 8x8"):
        build(name, num_classes=10, image_shape=(3, 32, 7))


@pytest.mark.parametrize(
    "arguments",
    [{"num_channels": 0}, {"num_channels": 2.0}, {"num_channels": True}, {"num_channels": 10**9}],
)
def test_bad_width_is_refused(arguments):
    with pytest.raises(ModelError, match="num_channels"):
        build("net", num_classes=10, arguments=arguments)


@pytest.mark.parametrize("rate", [1.0, -0.1, "0.5", float("nan"), True])
def test_bad_dropout_is_refused(rate):
    with pytest.raises(ModelError, match="dropout_rate"):
        build("net", num_classes=10, arguments={"dropout_rate": rate})
