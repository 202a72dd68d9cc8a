"""Activation checkpointing: the repeated blocks of a network forget what the backward pass needs, and compute it again.

    with checkpoint_activations(network):
        loss(network(images)).backward()

Memory for activations falls to one block's and the inputs of all; the price is about one more forward pass. The steps
are the same, for the recomputation gets what the first computation had: the same weights and buffers (a box's private
part is in place only during the forward, the backward comes after), the same random numbers, the same autocast. What
it writes to buffers, such as the running statistics of batch norm, goes to copies.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (arXiv 1604.06174); torch.utils.checkpoint.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sdb.errors import ModelError

# The blocks that are recomputed now, and the classes whose forward asks for it. Instances are left as they are, so that
# a copy or a file of a network never holds any of this, and a teacher of the same class runs as always.
_blocks: Counter[nn.Module] = Counter()
_forwards: dict[type[nn.Module], tuple[Callable[..., Any], bool]] = {}
_changing = threading.Lock()


@contextlib.contextmanager
def checkpoint_activations(module: nn.Module) -> Generator[None]:
    """Have the repeated blocks of a network recompute their activations in backward passes, until the context ends.

    Args:
        module: any network; see `repeated_blocks`. Nothing of it changes, and where there is no gradient to compute it
            runs as always.

    Raises:
        ModelError: it has no repeated blocks.
    """
    blocks = repeated_blocks(module)
    if not blocks:
        name = type(getattr(module, "network", module)).__name__
        raise ModelError(
            f"activation checkpointing: {name} has no repeated blocks (composite children of a Sequential or "
            "ModuleList) to recompute: leave it off"
        )
    with _changing:
        _blocks.update(blocks)
        for kind in {type(block) for block in blocks} - _forwards.keys():
            _forwards[kind] = kind.forward, "forward" in vars(kind)
            kind.forward = _asking(kind.forward)
    try:
        yield
    finally:
        with _changing:
            _blocks.subtract(blocks)
            for block in [block for block, times in _blocks.items() if times <= 0]:
                del _blocks[block]
            for kind in _forwards.keys() - {type(block) for block in _blocks}:
                forward, own = _forwards.pop(kind)
                if own:
                    kind.forward = forward
                else:
                    del kind.forward


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The modules to recompute: children of a Sequential or ModuleList that have children themselves.

    None lies in another. One with more than 1.5 sqrt(L) of the network's L leaves gives way to those inside it, so that
    stages of blocks give way to their blocks.
    """
    limit = 1.5 * math.sqrt(sum(1 for _ in _leaves(module)))

    def below(parent: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        for child in parent.children():
            listed = isinstance(parent, (nn.Sequential, nn.ModuleList))
            composite = any(True for _ in child.children()) and not isinstance(child, nn.ModuleList)
            inner = below(child)
            if listed and composite and (not inner or sum(1 for _ in _leaves(child)) <= limit):
                found.append(child)
            else:
                found += inner
        return found

    return list(dict.fromkeys(below(module)))  # a block that is used in two places comes once


def _leaves(module: nn.Module) -> Generator[nn.Module]:
    yield from (part for part in module.modules() if not any(True for _ in part.children()))


def _asking(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A class's forward that asks whether this instance is to be recomputed."""

    @functools.wraps(forward)
    def asking(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self not in _blocks or not torch.is_grad_enabled():
            return forward(self, *args, **kwargs)
        return _recomputed(self, forward, args, kwargs)

    return asking


def _recomputed(block: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a block under torch's checkpoint."""
    parameters = dict(block.named_parameters())
    buffers = {name: buffer.detach().clone() for name, buffer in block.named_buffers()}
    again = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal again
        if not again:
            again = True
            return forward(block, *args, **kwargs)
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        held = {f"block.{name}": tensor for name, tensor in (parameters | copies).items()}
        return functional_call(_Plain(block, forward), held, args, kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


class _Plain(nn.Module):
    """A block by its own forward, which does not ask again, and without its hooks, which have run."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self.inner = block, forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(self.block, *args, **kwargs)
