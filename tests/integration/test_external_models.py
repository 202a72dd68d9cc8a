"""Networks named `package.module:factory`, and those of transformers, without any download."""

import sys

import pytest
import torch
from torch import nn

from sdb.errors import ModelError
from sdb.models import ModelSpec, build

MEAN, STD = (0.5,) * 3, (0.25,) * 3

SOURCE = """
from torch import nn

COUNT = 3

class Head(nn.Module):
    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.fc(x.mean((2, 3)))

def other_name(n_classes):
    return Head(n_classes)

def by_keywords(**kwargs):
    return Head(**kwargs)

def not_a_module():
    return "weights"

def broken():
    return 1 / 0
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's on the path; its name."""
    (tmp_path / "user_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_networks"
    sys.modules.pop("user_networks", None)


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers")


def outputs(network: nn.Module) -> int:
    """Number of logits of a `Head`."""
    return len(network.state_dict()["fc.weight"])


class TestFactories:
    def test_gets_num_classes_by_name(self, user_module):
        network = build(f"{user_module}:Head", num_classes=7, arguments={"scale": 2.0})
        assert (outputs(network), network.scale) == (7, 2.0)

    def test_an_argument_wins(self, user_module):
        assert outputs(build(f"{user_module}:Head", num_classes=7, arguments={"num_classes": 9})) == 9

    @pytest.mark.parametrize(
        ("factory", "argument"), [("other_name", "n_classes"), ("by_keywords", "num_classes")]
    )
    def test_other_ways_to_say_it_go_through_arguments(self, user_module, factory, argument):
        network = build(f"{user_module}:{factory}", num_classes=7, arguments={argument: 7})
        assert outputs(network) == 7
        with pytest.raises(ModelError, match=rf"{factory} failed with TypeError.*arguments given: none"):
            build(f"{user_module}:{factory}", num_classes=7)

    def test_refused_without_importing(self, user_module):
        with pytest.raises(ModelError, match="not allowed here"):
            build(f"{user_module}:Head", num_classes=7, allow_factory=False)
        spec = ModelSpec(f"{user_module}:Head", {}, 7, (3, 8, 8), MEAN, STD)
        with pytest.raises(ModelError, match="not allowed here"):
            spec.build(allow_factory=False)
        assert user_module not in sys.modules

    def test_spec_builds_and_tries_it(self, user_module):
        classifier = ModelSpec(f"{user_module}:Head", {}, 7, (3, 8, 8), MEAN, STD).build()
        assert classifier(torch.rand(2, 3, 8, 8)).shape == (2, 7)
        with pytest.raises(ModelError, match=r"returned \(2, 9\), expected \(2, 7\)"):
            ModelSpec(f"{user_module}:Head", {"num_classes": 9}, 7, (3, 8, 8), MEAN, STD).build()

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [
            ("Heads", "has no Heads; nearest: Head"),
            ("COUNT", "is a int: name something that can be called"),
            ("not_a_module", "returned a str"),
            ("broken", "failed with ZeroDivisionError"),
        ],
    )
    def test_bad_factories(self, user_module, attribute, message):
        with pytest.raises(ModelError, match=message):
            build(f"{user_module}:{attribute}", num_classes=7)

    def test_unknown_argument(self, user_module):
        with pytest.raises(ModelError, match=r"unexpected keyword argument 'width'.*arguments given: width"):
            build(f"{user_module}:Head", num_classes=7, arguments={"width": 3})

    def test_missing_module(self):
        with pytest.raises(ModelError, match="cannot import no_such_package"):
            build("no_such_package.models:Head", num_classes=7)

    @pytest.mark.parametrize("name", [":Head", "module:", "a:b:c", ".relative:Head", "a b:c", "../x:y"])
    def test_malformed_names(self, name):
        with pytest.raises(ModelError, match=r"package\.module:factory"):
            build(name, num_classes=7)


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "config"),
        [
            (
                "ViTForImageClassification",
                {
                    "image_size": 16,
                    "patch_size": 4,
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                },
            ),
            (
                "ResNetForImageClassification",
                {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
            ),
        ],
    )
    def test_from_a_configuration(self, transformers, name, config):
        spec = ModelSpec(f"transformers:{name}", {"config": config}, 7, (3, 16, 16), MEAN, STD)
        classifier = ModelSpec.from_json(spec.to_json()).build()
        logits = classifier(torch.rand(4, 3, 16, 16))
        assert logits.shape == (4, 7)
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        assert all(parameter.grad is not None for parameter in classifier.parameters())

    def test_wrong_image_size_is_caught_on_building(self, transformers):
        config = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        spec = ModelSpec("transformers:ViTForImageClassification", {"config": config}, 7, (3, 16, 16), MEAN, STD)
        with pytest.raises(ModelError, match=r"fails on images of shape .*\(3, 16, 16\)"):
            spec.build()

    @pytest.mark.parametrize("arguments", [{"hidden_size": 16}, {"config": {"hidden_size": "wide"}}])
    def test_bad_arguments(self, transformers, arguments):
        with pytest.raises(ModelError, match="hidden_size"):
            build("transformers:ViTForImageClassification", num_classes=7, arguments=arguments)
