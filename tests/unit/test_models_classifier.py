"""build's errors, the classifier of pixels, and its description."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sdb.errors import ModelError
from sdb.models import MODEL_DEFAULTS, MODELS, Classifier, ModelSpec, build, check, from_module

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SPEC = ModelSpec("net", {"num_channels": 4}, 5, (3, 8, 8), MEAN, STD)

# What a caller who computed them may hand over.
NUMPY_NUMBERS: dict[str, Any] = {
    "num_classes": np.int64(5),
    "image_shape": list(np.array([3, 8, 8])),
    "mean": list(np.array(MEAN, np.float32)),
    "std": list(np.array(STD)),
}


class TinyNet(nn.Module):
    """A user's own network, named in tests as a factory."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(self.bn(x).mean((2, 3)))


class TestBuild:
    def test_unknown_name_gets_the_nearest_and_all(self):
        with pytest.raises(ModelError, match="did you mean resnet18") as error:
            build("resnet19", num_classes=10)
        assert all(name in str(error.value) for name in MODELS)

    def test_a_name_like_no_other_still_gets_all(self):
        with pytest.raises(ModelError, match=r"unknown model 'zzz': choices are resnet18"):
            build("zzz", num_classes=10)

    def test_unknown_arguments_are_named(self):
        with pytest.raises(ModelError, match=r"net does not take channels, width: .* num_channels, dropout_rate"):
            build("net", num_classes=10, arguments={"width": 1, "channels": 2})
        with pytest.raises(ModelError, match="resnet18 does not take num_channels: its arguments are none"):
            build("resnet18", num_classes=10, arguments={"num_channels": 4})

    def test_defaults_are_for_known_names(self):
        assert MODEL_DEFAULTS.keys() <= MODELS.keys()

    @pytest.mark.parametrize("num_classes", [1, 0, -1, 2.0, True, "10", 10**30])
    def test_bad_num_classes(self, num_classes):
        with pytest.raises(ModelError, match="num_classes"):
            build("mlp", num_classes=num_classes)

    @pytest.mark.parametrize("image_shape", [(3, 32), (0, 8, 8), (3, 8.0, 8), (1, 8, 10**9)])
    def test_bad_image_shape(self, image_shape):
        with pytest.raises(ModelError, match="image_shape"):
            build("mlp", num_classes=10, image_shape=image_shape)


class TestClassifier:
    def test_normalises_then_runs_the_network(self):
        network = TinyNet(5).eval()
        classifier = Classifier(network, MEAN, STD, 5, (3, 8, 8)).eval()
        pixels = torch.rand(4, 3, 8, 8)
        normalised = torch.stack([(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
        torch.testing.assert_close(classifier(pixels), network(normalised))

    def test_state_holds_network_and_normalisation_only(self):
        classifier = SPEC.build()
        state = classifier.state_dict()
        assert state["mean"].shape == state["std"].shape == (1, 3, 1, 1)
        assert all(key in ("mean", "std") or key.startswith("network.") for key in state)

    def test_unwraps_logits(self):
        class Output:
            def __init__(self, logits):
                self.logits = logits

        class Wrapped(TinyNet):
            def forward(self, x):
                return Output(super().forward(x))

        assert from_module(Wrapped(5), 5, (3, 8, 8), MEAN, STD)(torch.rand(2, 3, 8, 8)).shape == (2, 5)

    @pytest.mark.parametrize(
        ("mean", "std", "field"),
        [
            ((0.5,), STD, "mean has 1"),
            (MEAN, (1.0,) * 4, "std has 4"),
            ((0.5, float("nan"), 0.5), STD, "mean holds nan"),
            ((0.5, float("inf"), 0.5), STD, "mean holds inf"),
            ((0.5, 10**400, 0.5), STD, "mean holds 1000"),
            (MEAN, (0.2, 0.0, 0.2), "std holds 0.0"),
            (MEAN, (0.2, True, 0.2), "std holds True"),
            (("0.5",) * 3, STD, "mean holds '0.5'"),
        ],
    )
    def test_bad_normalisation(self, mean, std, field):
        with pytest.raises(ModelError, match=field):
            Classifier(TinyNet(5), mean, std, 5, (3, 8, 8))

    def test_numpy_numbers_are_numbers(self):
        classifier = Classifier(TinyNet(5), **NUMPY_NUMBERS)
        assert json.dumps([classifier.num_classes, classifier.image_shape]) == "[5, [3, 8, 8]]"

    def test_copies_keep_the_spec(self):
        assert copy.deepcopy(SPEC.build()).spec == SPEC

    def test_exports_without_python_in_the_graph(self):
        classifier = SPEC.build().eval()
        pixels = torch.rand(3, 3, 8, 8)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(classifier, (pixels[:2],), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(pixels), classifier(pixels))


class TestCheck:
    def test_leaves_everything_as_it_was(self):
        model = TinyNet(5).train()
        model.fc.eval()  # a frozen part among training ones
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        check(model, (3, 8, 8), 5)
        assert torch.equal(torch.get_rng_state(), random_state)
        assert (model.training, model.bn.training, model.fc.training) == (True, True, False)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def test_restores_modes_after_a_failure(self):
        model = TinyNet(5).train()
        with pytest.raises(ModelError):
            check(model, (1, 8, 8), 5)
        assert model.training

    def test_wrong_channels(self):
        with pytest.raises(ModelError, match=r"fails on images of shape \(C, H, W\) = \(1, 8, 8\)"):
            check(build("resnet18", num_classes=5), (1, 8, 8), 5)

    def test_wrong_number_of_classes(self):
        with pytest.raises(ModelError, match=r"returned \(2, 5\), expected \(2, 6\)"):
            check(TinyNet(5), (3, 8, 8), 6)

    def test_output_that_is_no_tensor(self):
        class Listing(TinyNet):
            def forward(self, x):
                return [super().forward(x)]

        with pytest.raises(ModelError, match=r"returned list \[\(2, 5\)\], expected \(2, 5\)"):
            check(Listing(5), (3, 8, 8), 5)

    def test_from_module_wants_a_module(self):
        with pytest.raises(ModelError, match="is a function"):
            from_module(lambda x: x, 5, (3, 8, 8), MEAN, STD)  # ty: ignore[invalid-argument-type]

    def test_a_module_s_spec_names_its_class_and_builds_around_an_instance_only(self):
        made = from_module(TinyNet(5), 5, (3, 8, 8), MEAN, STD)
        assert made.spec.name == "module"
        assert made.spec.arguments["class"].endswith("TinyNet")
        assert ModelSpec.from_json(made.spec.to_json()) == made.spec
        with pytest.raises(ModelError, match="network="):
            made.spec.build()
        assert made.spec.build(network=TinyNet(5)).spec == made.spec


class TestModelSpec:
    def test_round_trip_through_text(self):
        spec = ModelSpec("net", {"num_channels": 4}, 5, (3, 8, 8), MEAN, STD)
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    def test_normalises_numpy_numbers_and_lists(self):
        spec = ModelSpec("net", {"num_channels": 4}, **NUMPY_NUMBERS)
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    def test_does_not_follow_the_callers_dictionary(self):
        arguments = {"num_channels": 4}
        spec = ModelSpec("net", arguments, 5, (3, 8, 8), MEAN, STD)
        arguments["num_channels"] = 8
        assert spec.arguments == {"num_channels": 4}

    def test_builds_what_it_says(self):
        classifier = SPEC.build(allow_factory=False)
        assert classifier.spec is SPEC
        assert classifier(torch.rand(2, 3, 8, 8)).shape == (2, 5)

    def test_weights_load_into_an_empty_build(self):
        # How a stranger's box is to be opened: no memory is taken before the weights are known to fit.
        source = SPEC.build().eval()
        with torch.device("meta"):
            copied = SPEC.build(allow_factory=False).eval()
        copied.load_state_dict(source.state_dict(), assign=True)
        pixels = torch.rand(2, 3, 8, 8)
        torch.testing.assert_close(copied(pixels), source(pixels))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", 3),
            ("name", ""),
            ("arguments", [1]),
            ("arguments", None),
            ("arguments", {"rate": float("nan")}),
            ("num_classes", 1),
            ("num_classes", "10"),
            ("num_classes", True),
            ("image_shape", [3, 8]),
            ("image_shape", [3, 8, -8]),
            ("image_shape", "388"),
            ("mean", 0.5),
            ("mean", [0.5]),
            ("mean", [0.5, None, 0.5]),
            ("std", [0.2, 0.0, 0.2]),
            ("std", None),
        ],
    )
    def test_from_json_names_the_bad_field(self, field, value):
        with pytest.raises(ModelError, match=field):
            ModelSpec.from_json(SPEC.to_json() | {field: value})

    @pytest.mark.parametrize("field", ["name", "arguments", "num_classes", "image_shape", "mean", "std"])
    def test_from_json_names_what_is_missing(self, field):
        value = SPEC.to_json()
        del value[field]
        with pytest.raises(ModelError, match=f"lacks {field}"):
            ModelSpec.from_json(value)

    def test_from_json_names_what_is_unknown(self):
        with pytest.raises(ModelError, match="unknown fields code"):
            ModelSpec.from_json(SPEC.to_json() | {"code": "import os"})

    @pytest.mark.parametrize("value", [None, [], "net"])
    def test_from_json_wants_an_object(self, value):
        with pytest.raises(ModelError, match="give an object"):
            ModelSpec.from_json(value)
