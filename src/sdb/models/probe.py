"""Trying a network on a few random images, so that what does not fit is refused before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sdb.errors import ModelError
from sdb.models.weights import device_of

# A twin is built from this state of torch's generator, whatever the first network was built from.
TWIN_SEED = 0x7E57


def settled(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network itself, in float32 and with the sizes of its lazy layers known.

    Taken out of what was put around it (DataParallel, torch.compile, an average of weights): the run decides on those.

    Raises:
        ModelError: it keeps something that a file of plain tensors cannot hold, or a lazy layer fails.
    """
    while True:
        around = isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel))
        inner = network.module if around else getattr(network, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        network = inner
    # In torch's default type, as `build` makes networks; `to` would also make complex buffers real.
    network.double() if torch.get_default_dtype() == torch.float64 else network.float()
    if any(nn.parameter.is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        with _mode(network, training=False), torch.no_grad():
            _run(network, torch.zeros(2, *image_shape, device=device_of(network)), image_shape)
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(
                f"the network keeps extra state ({name}: {type(value).__name__}), and weights are kept as tensors "
                "only: let get_extra_state return a tensor, or make it a buffer"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise ModelError(
                f"the network's {name} is a sparse or quantised tensor, and weights are kept as plain ones: use "
                ".to_dense() or .dequantize()"
            )
    return network


def logits_of(output: Any, num_classes: int) -> Tensor:
    """The logits (N, num_classes) in what a network returned, where it is clear which they are.

    They are the tensor itself; `.logits` of an output object; "logits" of a dictionary, or its only tensor of that
    shape; the first of a tuple (what follows is auxiliary, or features); the only tensor of that shape in a list.

    Raises:
        ModelError: saying what came back.
    """
    found = None
    if isinstance(output, Tensor):
        found = output
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = output.logits
    elif isinstance(output, Mapping):
        found = output["logits"] if "logits" in output else _only([*output.values()], num_classes)
    elif isinstance(output, tuple) and output:
        found = output[0]
    elif isinstance(output, list):
        found = _only(output, num_classes)
    if isinstance(found, Tensor):
        if found.dim() == 2 and found.shape[1] == num_classes:
            return found
        if found.dim() == 1 and found.shape[0] == num_classes:
            return found.unsqueeze(0)  # `.squeeze()` took the batch axis of a lone image
    raise ModelError(
        f"the network returned {_described(output)}, and logits (N, {num_classes}) are expected: return them, alone or "
        "first in a tuple, or build it for this number of classes (a factory may need it among its arguments)"
    )


def _only(values: list[Any], num_classes: int) -> Any:
    fitting = [value for value in values if isinstance(value, Tensor) and value.shape[1:] == (num_classes,)]
    return fitting[0] if len(fitting) == 1 else None


def _described(output: Any) -> str:
    """What came back, by types and shapes; never by values."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        parts = [f"{name}: {_described(value)}" for name, value in output.items()]
    elif isinstance(output, (tuple, list)):
        parts = [_described(value) for value in output]
    else:
        return type(output).__name__
    return f"{type(output).__name__} [{', '.join(parts)}]"


def check(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> None:
    """Send two random images and a lone one through a model, leaving modes, statistics and random state as they were.

    Args:
        model: maps pixels (N, C, H, W) to logits (N, num_classes).
        image_shape: (C, H, W) of one image.
        num_classes: the number of logits expected.
        device: where the model is.

    Raises:
        ModelError: the model fails on such images, its output is not (N, num_classes), or it gives probabilities.
    """
    with undisturbed(model, training=False):
        for count in (2, 1):
            ask(model, count, image_shape, num_classes, device)


def ask(
    model: nn.Module, count: int, image_shape: tuple[int, int, int], num_classes: int, device: torch.device | str
) -> None:
    """Send `count` random images through a model in the mode that it is in; see `check`, which looks after the rest."""
    output = _run(model, probes(count, image_shape, device), image_shape)
    if not isinstance(output, Tensor) or output.shape != (count, num_classes):
        raise ModelError(
            f"for images of shape {(count, *image_shape)} the model returned {_described(output)}, expected "
            f"{(count, num_classes)}: build it for this number of classes (a factory may need it among its arguments), "
            "or make it a classifier with sdb.from_module"
        )
    _refuse_probabilities(output)


def probes(count: int, image_shape: tuple[int, int, int], device: torch.device | str) -> Tensor:
    """Random images (count, C, H, W) in [0, 1], always the same."""
    # A generator of its own: checking a model must not change what is drawn after it.
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(count, *image_shape, generator=generator, device="cpu").to(device)


def needs_company(network: Callable[[Tensor], Any], pixels: Tensor, num_classes: int) -> bool:
    """Whether a network in eval mode drops the batch axis of a lone image, or fails on it.

    Args:
        network: from normalised images to its output, known to work on several.
        pixels: one normalised image (1, C, H, W).
        num_classes: number of logits.
    """
    try:
        output = network(pixels)
        found = output if isinstance(output, Tensor) else logits_of(output, num_classes)
    except Exception:  # the network may be anyone's; with company it works, so that is what it gets
        return True
    return found.shape != (1, num_classes)


def check_steady(model: nn.Module, twin: nn.Module | None, pixels: Tensor) -> None:
    """Refuse a model whose answers its weights do not settle.

    Args:
        model: a classifier, in whatever mode.
        twin: built anew in the same way, to get the model's weights; None where it cannot be built again.
        pixels: images (N, C, H, W) in [0, 1].

    Raises:
        ModelError: asked again in eval mode it answers otherwise, or its twin does.
    """
    if pixels.is_meta:
        return
    with undisturbed(model, training=False):
        first, second = model(pixels), model(pixels)
        if not _alike(first, second):
            raise ModelError(
                "the network answers the same images differently in eval mode: use nn.Dropout, or "
                "F.dropout(x, training=self.training), so that nothing is random there"
            )
    if twin is None:
        return
    try:
        twin.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"the factory builds another network each time, so its weights do not load: {error}"
        ) from None
    with torch.no_grad(), undisturbed(twin.to(pixels.device), training=False):
        if not _alike(first, twin(pixels)):
            raise ModelError(
                "the factory's network with the same weights answers otherwise when it is built again, so a file of "
                "its weights would not be this network: make its random tensors parameters or persistent buffers"
            )


def _alike(first: Tensor, second: Tensor) -> bool:
    # Kernels may add in another order from call to call; what is random differs by far more.
    room = 1e-3 * float(first.abs().max()) + 1e-6
    return bool(torch.allclose(first, second, rtol=1e-2, atol=room, equal_nan=True))


def _refuse_probabilities(output: Tensor) -> None:
    if output.is_meta:
        return
    rows = output.detach().float()
    if bool((rows >= 0).all()) and bool(((rows.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ModelError(
            "the model returns probabilities (its rows are not negative and sum to one), and logits are expected: "
            "leave its softmax out, or return log_softmax"
        )


@contextlib.contextmanager
def undisturbed(model: nn.Module, training: bool) -> Generator[None]:
    """A model in a mode, without gradients; modes, buffers and torch's random state are put back."""
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()} if training else {}
    with _mode(model, training), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
        yield
        for name, buffer in model.named_buffers():
            if name in kept and kept[name].shape == buffer.shape:  # one of another shape is a cache
                buffer.copy_(kept[name])


@contextlib.contextmanager
def _mode(model: nn.Module, training: bool) -> Generator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in modes.items():
            module.training = was


def _run(model: nn.Module, pixels: Tensor, image_shape: tuple[int, int, int]) -> Any:
    try:
        return model(pixels)
    except ModelError:
        raise
    # The network may be anyone's and may raise anything; the cause keeps its traceback.
    except Exception as error:
        mode = "in training mode " if model.training else ""
        raise ModelError(
            f"the model fails {mode}on images of shape (C, H, W) = {image_shape}: {type(error).__name__}: {error}: "
            "give it images of the shape it was made for, or build it for this shape"
        ) from error
