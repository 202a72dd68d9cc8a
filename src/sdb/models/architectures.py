"""Architectures by name. Names are those of the reference code, whose checkpoints load into `build(name, ...)`."""

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from sdb.errors import ModelError
from sdb.models.densenet import DenseNet
from sdb.models.external import from_factory
from sdb.models.mlp import MLP
from sdb.models.mobilenetv2 import MobileNetV2
from sdb.models.net import Net
from sdb.models.preresnet import PreResNet
from sdb.models.resnet import BasicBlock, Bottleneck, ResNet
from sdb.models.resnext import ResNeXt
from sdb.models.shufflenetv2 import ShuffleNetV2
from sdb.models.sizes import check_sizes

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
            from a file alone.

    Raises:
        ModelError: unknown name or argument, or a factory that is refused or fails.
    """
    check_sizes(num_classes, image_shape)
    arguments = dict(arguments or {})
    if ":" in name:
        if not allow_factory:
            raise ModelError(
                f"model name {name!r} comes from a file and would import and run code, which is not allowed here: if "
                f"you trust that factory with any arguments, name it: --network {name} (in Python network={name!r}, in "
                f"the parameters of a run teacher_model)"
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
