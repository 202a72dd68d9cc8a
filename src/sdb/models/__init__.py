"""Architectures by name, and what turns them into classifiers of pixels.

    network = build("resnet18", num_classes=10)                       # normalised images -> logits
    spec = ModelSpec("net", {"num_channels": 16}, 10, (1, 8, 8), mean=(0.3,), std=(0.4,))
    classifier = spec.build()                                         # pixels in [0, 1] -> logits
    classifier = from_module(my_network, 10, (3, 32, 32), mean, std)  # a module made elsewhere

Names are those of the reference code; the state dicts of its checkpoints load into `build(name, ...)`.
"""

import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Self

from torch import nn

from sdb.errors import ModelError
from sdb.models.classifier import Classifier, check, check_normalisation, check_sizes, from_module
from sdb.models.densenet import DenseNet
from sdb.models.external import from_factory
from sdb.models.mlp import MLP
from sdb.models.mobilenetv2 import MobileNetV2
from sdb.models.net import Net
from sdb.models.preresnet import PreResNet
from sdb.models.resnet import BasicBlock, Bottleneck, ResNet
from sdb.models.resnext import ResNeXt
from sdb.models.shufflenetv2 import ShuffleNetV2

__all__ = ["MODELS", "MODEL_DEFAULTS", "Classifier", "ModelSpec", "build", "check", "from_module"]

# Every factory takes num_classes and image_shape, and the arguments that MODEL_DEFAULTS lists for it.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "preresnet20": partial(PreResNet, 20),
    "preresnet32": partial(PreResNet, 32),
    "preresnet44": partial(PreResNet, 44),
    "preresnet56": partial(PreResNet, 56),
    "preresnet110": partial(PreResNet, 110),
    "densenet121": partial(DenseNet, (6, 12, 24, 16), 32),
    "densenet161": partial(DenseNet, (6, 12, 36, 24), 48),
    "densenet169": partial(DenseNet, (6, 12, 32, 32), 32),
    "resnext29": partial(ResNeXt, 29, 8),
    "mobilenetv2": MobileNetV2,
    "shufflenetv2": ShuffleNetV2,
    "net": Net,
    "mlp": MLP,
}

# The variable that names the factories that a file may call, package.module:factory, with a comma between.
TRUSTED = "SDB_TRUSTED_FACTORIES"

# The arguments that each architecture accepts, with the reference's defaults; one not listed accepts none.
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "net": {"num_channels": 32, "dropout_rate": 0.0},
}


def build(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    arguments: Mapping[str, Any] | None = None,
    allow_factory: bool = True,
) -> nn.Module:
    """Build a network that maps normalised images (N, C, H, W) to logits (N, num_classes).

    Args:
        name: a key of `MODELS`, or `package.module:factory` (see `sdb.models.external`).
        num_classes: number of logits, at least 2.
        image_shape: (C, H, W) of one image.
        arguments: for a name in `MODELS`, those that `MODEL_DEFAULTS` lists; for a factory, its own.
        allow_factory: whether `package.module:factory` may import and run code; False for a name that comes
            from a file, and then only the factories that SDB_TRUSTED_FACTORIES names may.

    Raises:
        ModelError: unknown name or argument, or a factory that is refused or fails.
    """
    check_sizes(num_classes, image_shape)
    arguments = dict(arguments or {})
    if ":" in name:
        trusted = {each.strip() for each in os.environ.get(TRUSTED, "").split(",")}
        if not allow_factory and name not in trusted:
            raise ModelError(
                f"model name {name!r} comes from a file and would import and run code, which is not allowed here: if "
                f"you trust that factory with any arguments, set {TRUSTED}={name} (several: a comma between)"
            )
        return from_factory(name, num_classes, arguments)
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=3)
        hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        raise ModelError(
            f"unknown model {name!r}: {hint}choices are {', '.join(MODELS)}, or package.module:factory"
        )
    defaults = MODEL_DEFAULTS.get(name, {})
    if unknown := sorted(arguments.keys() - defaults.keys()):
        raise ModelError(
            f"{name} does not take {', '.join(unknown)}: its arguments are {', '.join(defaults) or 'none'}"
        )
    return MODELS[name](num_classes=num_classes, image_shape=image_shape, **defaults | arguments)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that is needed to build a classifier again, as plain data.

    Attributes:
        name: a key of `MODELS`, or `package.module:factory`.
        arguments: what `build` takes as arguments; JSON values only.
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.
        mean, std: per channel, of pixels in [0, 1].

    Raises:
        ModelError: a field is of the wrong type or out of range; the message names it.
    """

    name: str
    arguments: dict[str, Any]
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ModelError(f"name is {self.name!r}: give the name of a model")
        if not isinstance(self.arguments, dict) or not all(isinstance(key, str) for key in self.arguments):
            raise ModelError(f"arguments is {self.arguments!r}: give a mapping from names to values")
        for field in ("image_shape", "mean", "std"):
            value = getattr(self, field)
            if not isinstance(value, (tuple, list)):
                raise ModelError(f"{field} is {value!r}: give a list of numbers")
        check_sizes(self.num_classes, self.image_shape)
        check_normalisation(self.mean, self.std, channels=self.image_shape[0])
        # Plain Python numbers, whatever NumPy gave, so that the JSON round trip is exact.
        object.__setattr__(self, "num_classes", int(self.num_classes))
        for field, kind in (("image_shape", int), ("mean", float), ("std", float)):
            object.__setattr__(self, field, tuple(kind(value) for value in getattr(self, field)))
        try:
            plain = json.loads(json.dumps(self.arguments, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ModelError(f"arguments cannot be written as JSON ({error}): give plain values") from error
        # A copy: the caller's dictionary may change, the spec may not.
        object.__setattr__(self, "arguments", plain)

    def build(self, allow_factory: bool = True) -> Classifier:
        """Build the classifier, with fresh weights; one from a factory is tried on two images.

        Args:
            allow_factory: as in `build`; pass False for a spec that comes from someone else's file.

        Raises:
            ModelError: the network cannot be built, or does not map such images to `num_classes` logits.
        """
        network = build(
            self.name,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            arguments=self.arguments,
            allow_factory=allow_factory,
        )
        if self.name in MODELS:
            classifier = Classifier(network, self.mean, self.std, self.num_classes, self.image_shape)
        else:
            classifier = from_module(network, self.num_classes, self.image_shape, self.mean, self.std)
        classifier.spec = self
        return classifier

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gives.

        Raises:
            ModelError: a field is missing, unknown, of the wrong type or out of range; the message names it.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict):
            raise ModelError(f"the model's description is a {type(value).__name__}: give an object")
        if missing := [name for name in names if name not in value]:
            raise ModelError(f"the model's description lacks {', '.join(missing)}")
        if unknown := sorted(value.keys() - set(names)):
            raise ModelError(
                f"the model's description has unknown fields {', '.join(unknown)}: it takes {', '.join(names)}"
            )
        return cls(**value)
