"""The layers of a stack: one kernel for the layers of K networks.

Between these layers the K networks are like more images: activations are (N * K, ...), image by image and within an
image network by network, so whatever treats images one by one (activations, pooling, dropout, joining channels) needs
no change. A layer with weights looks at the same memory as (N, K * channels, ...), without a copy: a convolution is one
of K times as many groups, batch norm one over K times as many channels, a linear layer one batched product.

torch.vmap would do for any layer, but it parts batch norm from its scale and shift, runs convolutions in float32 under
autocast, and costs milliseconds of Python in each forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.errors import ModelError


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors along a new first axis, row by row whatever the layout of each."""
    return torch.stack([tensor.detach().contiguous() for tensor in tensors])


class StackedLayer(nn.Module):
    """Layers of one kind, their parameters and buffers stacked under their own names.

    Args:
        layers: one of each network, alike but for their values.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        super().__init__()
        self.size = len(layers)
        for name, first in layers[0].named_parameters(recurse=False):
            values = stacked([getattr(layer, name) for layer in layers])
            self.register_parameter(name, nn.Parameter(values, requires_grad=first.requires_grad))
        for name, _ in layers[0].named_buffers(recurse=False):
            self.register_buffer(name, stacked([getattr(layer, name) for layer in layers]))

    def side_by_side(self, x: Tensor) -> Tensor:
        """(N * K, C, ...) as (N, K * C, ...)."""
        return x.unflatten(0, (-1, self.size)).flatten(1, 2)

    def one_by_one(self, x: Tensor) -> Tensor:
        """(N, K * C, ...) as (N * K, C, ...)."""
        return x.unflatten(1, (self.size, -1)).flatten(0, 1)


class StackedConvolution(StackedLayer):
    """Convolutions with zero padding: (N * K, I, H, W) to (N * K, O, H', W')."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__(layers)
        first = layers[0]
        if first.bias is None:
            self.bias = None
        self.stride, self.padding, self.dilation = first.stride, first.padding, first.dilation
        self.groups = self.size * first.groups

    def forward(self, x: Tensor) -> Tensor:
        """All convolutions as one."""
        bias = None if self.bias is None else self.bias.flatten()
        shape = self.stride, self.padding, self.dilation, self.groups
        return self.one_by_one(F.conv2d(self.side_by_side(x), self.weight.flatten(0, 1), bias, *shape))


class StackedNorm(StackedLayer):
    """Batch norms with scale, shift and running statistics: (N * K, C, ...) to the same."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__(layers)
        self.momentum, self.eps = layers[0].momentum, layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        """All norms as one, each over its own network's images."""
        if self.training:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            self.side_by_side(x),
            self.running_mean.view(-1),  # views: updated in place
            self.running_var.view(-1),
            self.weight.flatten(),
            self.bias.flatten(),
            self.training,
            self.momentum or 0.0,
            self.eps,
        )
        return self.one_by_one(y)


class StackedLinear(StackedLayer):
    """Linear layers: (N * K, ..., I) to (N * K, ..., O)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__(layers)
        if layers[0].bias is None:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """One batched product."""
        parted = x.unflatten(0, (-1, self.size)).transpose(0, 1)  # (K, N, ..., I)
        rows, weight = parted.flatten(1, -2), self.weight.transpose(1, 2)
        y = torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), rows, weight)
        return y.unflatten(1, parted.shape[1:-1]).transpose(0, 1).flatten(0, 1)


def _no_padding_but_zeros(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros"


def _usual(norm: nn.BatchNorm2d) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


# A layer's class -> its stacked form, and which layers of the class have one.
KINDS: dict[type, tuple[type[StackedLayer], Callable[[Any], bool]]] = {
    nn.Conv2d: (StackedConvolution, _no_padding_but_zeros),
    nn.BatchNorm1d: (StackedNorm, _usual),
    nn.BatchNorm2d: (StackedNorm, _usual),
    nn.Linear: (StackedLinear, lambda layer: True),
}


def stack_layers(network: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Put the stacked form of the networks' layers in the place of one network's own.

    Args:
        network: a copy of the first, changed in place.
        networks: all of them, of one architecture.

    Raises:
        ModelError: a layer with weights has no stacked form.
    """
    made: dict[nn.Module, StackedLayer] = {}  # a layer that is used in two places stays one
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if layer in made:
            network.set_submodule(name, made[layer])
            continue
        form, fits = KINDS.get(type(layer), (None, None))
        if form is not None and fits is not None and fits(layer):
            made[layer] = form([each.get_submodule(name) for each in networks])
            network.set_submodule(name, made[layer])
        elif any(True for _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))):
            raise ModelError(
                f"{name}: {type(layer).__name__} has no stacked form here (convolutions, batch norms and linear layers "
                "have one): train these students one after the other"
            )
    if len(list(network.parameters())) != len(list(networks[0].parameters())):
        raise ModelError("two layers share a weight: train these students one after the other")
