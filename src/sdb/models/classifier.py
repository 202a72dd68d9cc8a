"""A network and its normalisation as one module: pixels in [0, 1] in, logits out; and its description as plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdb.errors import ModelError
from sdb.models.architectures import MODELS, build
from sdb.models.probe import check
from sdb.models.sizes import check_normalisation, check_sizes


class Classifier(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] to logits (N, num_classes).

    The state dict holds `network.*`, `mean` and `std`, so whoever has the weights has the normalisation too.

    Args:
        network: takes normalised images, returns logits or an output object that carries `.logits`.
        mean, std: per channel, of pixels in [0, 1].
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.

    Attributes:
        spec: how to build it again, or None when the network came as a module object.
        class_names: of the data that it was trained on, in label order; empty where they are not known.

    Raises:
        ModelError: a size is out of range, or mean or std does not hold one usable number a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        check_sizes(num_classes, image_shape)
        check_normalisation(mean, std, channels=image_shape[0])
        # Channels-last kernels write no transposed copies and pool whole vectors; outputs follow the weights' layout.
        self.network = network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.num_classes = int(num_classes)
        self.image_shape = (int(image_shape[0]), int(image_shape[1]), int(image_shape[2]))
        self.spec: ModelSpec | None = None
        self.class_names: tuple[str, ...] = ()

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W) in [0, 1] and return logits (N, num_classes)."""
        output = self.network((pixels - self.mean) / self.std)
        return output if isinstance(output, Tensor) else output.logits


def from_module(
    module: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """Make a classifier from a network that the caller built, on the device it is on, after trying it once.

    Raises:
        ModelError: the network does not map such images to `num_classes` logits.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model is a {type(module).__name__}: give an nn.Module")
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with device:  # only the normalisation is new; a module may be spread over devices, so it is not moved
        classifier = Classifier(module, mean, std, num_classes, image_shape)
    check(classifier, image_shape, num_classes, device)
    return classifier


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
