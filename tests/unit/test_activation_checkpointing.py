"""Activation checkpointing: the same steps, bit for bit, with less kept between forward and backward."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn

from sdb.box.private_part import PrivatePart, has_norms
from sdb.config import WrapSettings
from sdb.data import Augment, Batch
from sdb.errors import ModelError
from sdb.keys import Key
from sdb.models import ModelSpec, build, from_module
from sdb.training.activation_checkpointing import checkpoint_activations, repeated_blocks
from sdb.wrapping.decoy import answers_of, decoy_step
from sdb.wrapping.image_key import ImageKeyPasses
from sdb.wrapping.weight_key import WeightKeyPasses

CLASSES = 5
VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.3,
    "attention_probs_dropout_prob": 0.3,
}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic"}
ARCHITECTURES = {
    "preresnet20": {},
    "resnet18": {},
    "mobilenetv2": {},
    "transformers:ViTForImageClassification": {"config": VIT},
    "transformers:ResNetForImageClassification": {"config": RESNET},
}


class Block(nn.Module):
    """Counts its forwards; dropout, and no norm."""

    def __init__(self, width=12):
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.drop(torch.tanh(self.linear(x)))


class Plain(nn.Module):
    """Two blocks between two linear layers; no normalisation, so a private part of it has adapters."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(3 * 16 * 16, 12)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.into(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def classifier(name, seed=0):
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "plain":
            return from_module(Plain(), CLASSES, (3, 16, 16), (0.5,) * 3, (0.5,) * 3)
        return ModelSpec(name, ARCHITECTURES[name], CLASSES, (3, 16, 16), (0.5,) * 3, (0.5,) * 3).build()


def batch(number):
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(6, 3, 16, 16, generator=generator)
    return Batch(images, torch.randint(0, CLASSES, (6,), generator=generator), torch.arange(6))


def steps(name, kind, checkpointed, autocast=False):
    """State after two steps with momentum, of the network and of what stands beside it."""
    network = classifier(name).train()
    teacher = classifier(name, seed=1).eval().requires_grad_(False)
    forward, beside = network, None
    if kind == "weight":
        torch.manual_seed(5)
        beside = PrivatePart(network).train()
        forward = WeightKeyPasses(network, beside)
    elif kind == "image":
        forward = ImageKeyPasses(network, [Key(bytes(range(32)))], joint=False, rejection=True)
    decoys = [[(c + 1) % CLASSES, (c + 2) % CLASSES] for c in range(CLASSES)]
    settings = WrapSettings()
    box_step = decoy_step([teacher], answers_of(decoys, settings, torch.device("cpu")), Augment(), settings)
    trained = [module for module in (network, beside) if module is not None]
    optimizer = torch.optim.SGD([p for module in trained for p in module.parameters()], lr=0.01, momentum=0.9)
    torch.manual_seed(3)

    def run():
        for number in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                given = batch(number)
                if kind == "plain":
                    loss = nn.functional.cross_entropy(network(given.images), given.labels)
                else:
                    loss = sum(box_step(forward, given).values())
            loss.backward()
            optimizer.step()

    if checkpointed:
        with checkpoint_activations(network):
            run()
    else:
        run()
    state = {f"{at}.{n}": t for at, module in enumerate(trained) for n, t in module.state_dict().items()}
    return state | {"random": torch.rand(1)}


CASES = [(name, kind) for name in [*ARCHITECTURES, "plain"] for kind in ("plain", "weight", "image")]
# The two largest are there once.
CASES = [(name, kind) for name, kind in CASES if name not in ("resnet18", "mobilenetv2") or kind == "weight"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_steps_are_the_same_bit_for_bit(name, kind, same_weights):
    assert same_weights(steps(name, kind, checkpointed=True), steps(name, kind, checkpointed=False))


@pytest.mark.parametrize("name", ["preresnet20", "transformers:ViTForImageClassification"])
def test_the_steps_are_the_same_in_bfloat16(name, same_weights):
    recomputed = steps(name, "weight", checkpointed=True, autocast=True)
    assert same_weights(recomputed, steps(name, "weight", checkpointed=False, autocast=True))
    assert not same_weights(recomputed, steps(name, "weight", checkpointed=False))


def test_the_private_parts_of_these_tests_are_of_both_kinds():
    assert not has_norms(classifier("plain"))
    assert PrivatePart(classifier("plain")).adapted
    assert has_norms(classifier("preresnet20"))


def kept(network, images):
    """Bytes that the graph of a forward holds, without the parameters."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    sizes = []

    def pack(tensor):
        sizes.append(0 if tensor.data_ptr() in own else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(images)
    return sum(sizes)


@pytest.mark.parametrize("name", ["preresnet20", "mobilenetv2", "transformers:ViTForImageClassification"])
def test_less_is_kept(name):
    network, images = classifier(name).train(), batch(0).images
    before = kept(network, images)
    with checkpoint_activations(network):
        assert kept(network, images) < before / 2
    assert kept(network, images) == before


def test_only_blocks_with_a_gradient_to_compute_run_twice():
    network, teacher = Plain(), Plain().requires_grad_(False)
    images = batch(0).images
    with checkpoint_activations(network):
        with torch.no_grad():
            teacher(images)
            network(images)
        assert [block.calls for block in (*network.blocks, *teacher.blocks)] == [1] * 4
        (network(images) - teacher(images)).sum().backward()
    assert [block.calls for block in network.blocks] == [3, 3]
    assert [block.calls for block in teacher.blocks] == [2, 2]


def test_a_network_in_use_can_be_copied_and_written():
    network = Plain()
    names, written = list(network.state_dict()), pickle.dumps(network)
    with checkpoint_activations(network):
        copied = copy.deepcopy(network)
        assert list(network.state_dict()) == names
        assert pickle.dumps(network) == written
        copied(batch(0).images).sum().backward()
        assert [block.calls for block in copied.blocks] == [1, 1]


@pytest.mark.parametrize("fails", [True, False])
def test_everything_is_undone(fails):
    class Heir(Block):
        """Inherits its forward."""

    network = nn.Sequential(Block(), Heir())
    own = Block.forward
    try:
        with checkpoint_activations(network):
            assert Block.forward is not own
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert Block.forward is own
    assert "forward" not in vars(Heir)


def test_contexts_that_end_in_another_order():
    first, second = Plain(), Plain()
    own = Block.forward
    contexts = [checkpoint_activations(network) for network in (first, second, first)]
    for context in contexts:
        context.__enter__()
    contexts[0].__exit__(None, None, None)
    for network in (first, second):
        network(batch(0).images).sum().backward()
        assert [block.calls for block in network.blocks] == [2, 2]
    contexts[1].__exit__(None, None, None)
    contexts[2].__exit__(None, None, None)
    assert Block.forward is own


def kinds(network):
    return Counter(type(block).__name__ for block in repeated_blocks(network))


def test_blocks_are_those_that_repeat():
    assert kinds(build("resnet18", num_classes=10)) == {"BasicBlock": 8}
    assert kinds(build("preresnet44", num_classes=10)) == {"PreBottleneck": 21}
    assert kinds(build("shufflenetv2", num_classes=10)) == {"Unit": 13, "DownUnit": 3}
    # Stages give way to their blocks, blocks do not give way to the convolutions in them.
    blocks = repeated_blocks(build("densenet121", num_classes=10))
    assert {type(block).__name__ for block in blocks} == {"DenseLayer", "Transition"}
    inside = [part for block in blocks for part in block.modules() if part is not block]
    assert not set(blocks) & set(inside)


def test_blocks_of_transformers_models():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[8, 8, 16, 16])
    assert kinds(transformers.ResNetForImageClassification(config)) == {"ResNetBasicLayer": 8}
    assert kinds(transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))) == {"ViTLayer": 3}


def test_a_network_without_blocks_is_refused():
    with (
        pytest.raises(ModelError, match="Net has no repeated blocks"),
        checkpoint_activations(
            ModelSpec("net", {"num_channels": 4}, CLASSES, (3, 16, 16), (0.5,) * 3, (0.5,) * 3).build()
        ),
    ):
        pass


def test_an_input_that_is_changed_in_place_is_refused():
    """It could not be computed again; torch says so."""

    class Hasty(Plain):
        def forward(self, x):
            x = self.into(x.flatten(1))
            y = self.blocks[0](x)
            x.add_(1)
            return self.head(x + y)

    network = Hasty()
    with checkpoint_activations(network), pytest.raises(RuntimeError, match="modified by an inplace operation"):
        network(batch(0).images).sum().backward()
