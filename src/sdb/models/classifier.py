"""A network and its normalisation as one module: pixels in [0, 1] in, logits out; and its description as plain data."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdb.config import DEFAULT_PICTURES, Pictures, read_pictures
from sdb.errors import ConfigError, ModelError
from sdb.models.architectures import MODELS, build
from sdb.models.probe import TWIN_SEED, ask, check_steady, logits_of, needs_company, probes, settled, undisturbed
from sdb.models.sizes import check_normalisation, check_sizes, warn_of_scale
from sdb.models.weights import device_of
from sdb.runtime import json_text

# How far pixels may lie outside [0, 1] before somebody is told: what float32 arithmetic costs, and more.
ROOM = 1e-3

log = logging.getLogger("sdb")

# Name in a `ModelSpec` of a network that came as a module object.
MODULE = "module"


def class_of(network: nn.Module) -> str:
    """Full name of a network's class, for the record."""
    return f"{type(network).__module__}.{type(network).__qualname__}"


class Classifier(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] to logits (N, num_classes).

    The state dict holds `network.*`, `mean` and `std`, so whoever has the weights has the normalisation too.

    Args:
        network: takes normalised images, returns logits, or what holds them clearly (see `logits_of`). It is used as
            it is, in float32; DataParallel and the like around it are taken off.
        mean: per channel, of pixels in [0, 1].
        std: per channel, the deviation.
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.

    Attributes:
        spec: how to build it again; of a network that came as a module object, what is known of it.
        class_names: of the data that it was trained on, in label order; empty where they are not known.
        company: in eval mode, the network gets one image more than it is asked about, since it fails on a lone one
            (`.squeeze()` takes the batch axis too).

    Raises:
        ModelError: a size is out of range, mean or std does not hold one usable number per channel, or the network
            holds what no file of plain tensors can.
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
        warn_of_scale(tuple(mean), tuple(std))
        network = settled(network, image_shape)
        # Channels-last kernels write no transposed copies and pool whole vectors; outputs follow the weights' layout.
        self.network = network.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))
        self.num_classes = int(num_classes)
        self.image_shape = (int(image_shape[0]), int(image_shape[1]), int(image_shape[2]))
        self.spec = ModelSpec(
            MODULE, {"class": class_of(network)}, num_classes, image_shape, tuple(mean), tuple(std)
        )
        self.class_names: tuple[str, ...] = ()
        self.company = False
        self._looks, self._told = True, False

    def learns_from(self, class_names: tuple[str, ...], pictures: Pictures | None) -> None:
        """Record the classes and pictures of the data; pictures of which nobody says anything change nothing."""
        self.class_names = class_names
        if pictures is not None:
            self.spec = replace(self.spec, pictures=pictures)

    @property
    def pictures(self) -> Pictures:
        """How pictures become pixels for this model; the defaults where nobody said."""
        return self.spec.pictures or DEFAULT_PICTURES

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise pixels (N, C, H, W) in [0, 1] and return logits (N, num_classes).

        Raises:
            ModelError: these are no float images of that many channels in a batch, or the network returns no logits.
        """
        if pixels.dim() != 4 or pixels.shape[1] != self.image_shape[0] or not pixels.is_floating_point():
            self._refuse(pixels)
        if self._looks and not _recorded(pixels):
            self._look(pixels)
        company = self.company and not self.training
        if company:
            pixels = torch.cat([pixels, pixels[:1]])
        output = self.network((pixels - self.mean) / self.std)
        logits = logits_of(output, self.num_classes)
        return logits[:-1] if company else logits

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode or back; the next pixels are looked at again."""
        self._looks = not self._told
        return super().train(mode)

    def _refuse(self, pixels: Tensor) -> None:
        shape, channels = tuple(pixels.shape), self.image_shape[0]
        given = f"images are {shape} of {str(pixels.dtype).removeprefix('torch.')}"
        expected = f"expected a batch (N, {channels}, H, W) of float pixels in [0, 1]"
        if not pixels.is_floating_point():
            raise ModelError(f"{given}, {expected}: use images.float() / 255 where they count from 0 to 255")
        if pixels.dim() == 3:
            raise ModelError(f"{given}, {expected}: use image.unsqueeze(0) for one image")
        raise ModelError(f"{given}, {expected}")

    def _look(self, pixels: Tensor) -> None:
        """Warn, once, of pixels outside [0, 1]."""
        # A look waits for the device, and a training step has no time: there, only the first since train() or eval().
        self._looks = not self.training and pixels.device.type == "cpu"
        if not pixels.numel() or pixels.is_meta or torch.jit.is_tracing():
            return
        try:
            low, high = (float(value) for value in pixels.detach().aminmax())
        except RuntimeError:
            return  # inside torch.func's transforms a tensor has no value to read
        if low >= -ROOM and high <= 1 + ROOM:
            return
        self._looks, self._told = False, True
        remedy = "divide them by 255" if high > 16 else "leave a normalisation of your own out, it has its own"
        log.warning(
            "a classifier was given pixels from %.3g to %.3g, and takes them in [0, 1]: %s", low, high, remedy
        )


def from_module(
    module: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """Make a classifier from a network that the caller built, on the device it is on, after trying it.

    It is tried on two images and on one, in eval and in training mode, which leaves its modes, running statistics and
    random state as they were. The network itself becomes part of the classifier: half and double weights become
    float32, lazy layers get their sizes.

    Raises:
        ModelError: the network does not map such images to `num_classes` logits, gives probabilities, answers at random
            in eval mode, or holds what no file of plain tensors can.
    """
    if not isinstance(module, nn.Module):
        raise ModelError(f"the model is a {type(module).__name__}: give an nn.Module")
    classifier = _around(module, num_classes, image_shape, mean, std)
    _try(classifier, None)
    return classifier


def _around(
    module: nn.Module,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Classifier:
    """A classifier on the network's device."""
    with device_of(
        module
    ):  # only the normalisation is new; a module may be spread over devices, so it is not moved
        return Classifier(module, mean, std, num_classes, image_shape)


def _try(classifier: Classifier, twin: Classifier | None) -> None:
    """Refuse a classifier whose network does not do; find out whether it needs company. `twin`: see `check_steady`."""
    shape, classes, device = classifier.image_shape, classifier.num_classes, classifier.mean.device
    with undisturbed(classifier, training=False):
        ask(classifier, 2, shape, classes, device)
        lone = (probes(1, shape, device) - classifier.mean) / classifier.std
        classifier.company = needs_company(classifier.network, lone, classes)
        ask(classifier, 1, shape, classes, device)
    with undisturbed(classifier, training=True):
        ask(classifier, 2, shape, classes, device)
    if twin is not None:
        twin.company = classifier.company
    check_steady(classifier, twin, probes(2, shape, device))


def _plain(value: Any) -> Any:
    """Plain Python values of NumPy's and torch's numbers and arrays; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _as_json(value: Any) -> Any:
    if (plain := _plain(value)) is value:
        raise TypeError(f"a {type(value).__name__} is no JSON value")
    return plain


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that is needed to build a classifier again, as plain data.

    Attributes:
        name: a key of `MODELS`, or `package.module:factory`; or `MODULE`, where the network came as a module object,
            which no file can make again.
        arguments: what `build` takes as arguments; JSON values only. Of `MODULE`: the class's name, for people.
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.
        mean, std: per channel, of pixels in [0, 1].
        pictures: how the pictures that it learned from became pixels, so that others do as well; None where nobody
            said.

    Raises:
        ModelError: a field is of the wrong type or out of range; the message names it.
    """

    name: str
    arguments: dict[str, Any]
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: Pictures | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ModelError(f"name is {self.name!r}: give the name of a model")
        if not isinstance(self.arguments, dict) or not all(isinstance(key, str) for key in self.arguments):
            raise ModelError(f"arguments is {self.arguments!r}: give a mapping from names to values")
        for field in ("image_shape", "mean", "std"):
            value = _plain(getattr(self, field))
            if not isinstance(value, (tuple, list)):
                raise ModelError(f"{field} is {value!r}: give a list of numbers")
            object.__setattr__(self, field, tuple(map(_plain, value)))
        check_sizes(self.num_classes, self.image_shape)
        check_normalisation(self.mean, self.std, channels=self.image_shape[0])
        if self.pictures is not None:
            try:
                object.__setattr__(self, "pictures", read_pictures(self.pictures))
            except ConfigError as error:
                raise ModelError(f"pictures: {error}") from None
        # Plain Python numbers, whatever NumPy gave, so that the JSON round trip is exact.
        object.__setattr__(self, "num_classes", int(self.num_classes))
        for field, kind in (("image_shape", int), ("mean", float), ("std", float)):
            object.__setattr__(self, field, tuple(kind(value) for value in getattr(self, field)))
        try:
            plain = json.loads(json_text(self.arguments, default=_as_json))
        except (TypeError, ValueError) as error:
            raise ModelError(f"arguments cannot be written as JSON ({error}): give plain values") from error
        # A copy: the caller's dictionary may change, the spec may not.
        object.__setattr__(self, "arguments", plain)

    def build(self, allow_factory: bool = True, network: nn.Module | None = None) -> Classifier:
        """Build the classifier, with fresh weights; one from a factory, or a network given, is tried on a few images.

        Args:
            allow_factory: as in `build`; pass False for a spec that comes from someone else's file.
            network: in place of building one: of `MODULE`, an instance of its class.

        Raises:
            ModelError: the network cannot be built, or does not map such images to `num_classes` logits.
        """
        if network is not None:
            classifier = from_module(network, self.num_classes, self.image_shape, self.mean, self.std)
            classifier.spec = self
            return classifier
        if self.name == MODULE:
            raise ModelError(
                f"this holds a network of the class {self.arguments.get('class', 'unknown')}, which no file can make "
                "again: give an instance of it, network=..., as in Box.load(path, network=Net()); for a command, name "
                "a function that makes one: --network package.module:factory (in the parameters of a run "
                "teacher_model)"
            )
        classifier = self._made(allow_factory)
        if self.name not in MODELS:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(TWIN_SEED)
                twin = self._made(allow_factory)
            _try(classifier, twin)
        classifier.spec = self
        return classifier

    def _made(self, allow_factory: bool) -> Classifier:
        network = build(
            self.name,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            arguments=self.arguments,
            allow_factory=allow_factory,
        )
        return _around(network, self.num_classes, self.image_shape, self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `pictures` only where somebody said, as in files that are older than it."""
        values = json.loads(json_text(asdict(self)))
        if self.pictures is None:
            del values["pictures"]
        return values

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read what `to_json` gives.

        Raises:
            ModelError: a field is missing, unknown, of the wrong type or out of range; the message names it.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict):
            raise ModelError(f"the model's description is a {type(value).__name__}: give an object")
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        if missing := [name for name in needed if name not in value]:
            raise ModelError(f"the model's description lacks {', '.join(missing)}")
        if unknown := sorted(value.keys() - set(names)):
            raise ModelError(
                f"the model's description has unknown fields {', '.join(unknown)}: it takes {', '.join(names)}"
            )
        return cls(**value)


def _recorded(pixels: Tensor) -> bool:
    """Whether the forward is being compiled or recorded, when no pixel can be read."""
    return torch.compiler.is_compiling() or (pixels.is_cuda and torch.cuda.is_current_stream_capturing())
