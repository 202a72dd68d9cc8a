"""Weights as training loops leave them, fitted to a network's own names; and whether they are numbers at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

# Under what name a checkpoint of someone's training loop holds its weights, the likeliest first.
STATE_DICTS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "shadow"),
)
DEEPEST = 4  # dictionaries in dictionaries
# What is put before the names: by DataParallel, torch.compile, Lightning modules, averages of weights.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
# What an average of weights counts beside them.
COUNTERS = ("n_averaged", "num_updates", "updates", "step", "decay")
BATCHES = "num_batches_tracked"  # of batch norm; torch did not keep it before 0.4.1, and others do not


def state_dict_in(content: Any) -> dict[str, Tensor] | None:
    """The tensors by name in what a checkpoint holds, the innermost under a usual name; None where there are none."""
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            return None
        inner = (content[name] for name in STATE_DICTS if isinstance(content.get(name), Mapping) and content[name])
        found = next(inner, None)
        if found is None:
            break
        content = found
    # A loop that keeps its epoch among the weights keeps plain numbers or text.
    kept = {name: value for name, value in content.items() if not isinstance(value, (int, float, str, type(None)))}
    if not kept or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in kept.items()):
        return None
    return kept


def fitted(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given weights under a network's own names where only usual prefixes and counters stand between them.

    Args:
        own: the network's state dict.
        given: as a training loop left them; what does not fit stays as it is, for `check_weights` to name.
    """
    found = _without_counters(own, given)
    while found and not found.keys() & own.keys():
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in found)), None)
        if prefix is None:
            return dict(given)
        found = _without_counters(own, {name.removeprefix(prefix): tensor for name, tensor in found.items()})
    absent = {name: tensor for name, tensor in own.items() if name not in found and name.endswith(BATCHES)}
    return found | absent


def _without_counters(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in given.items()
        if name in own or tensor.numel() != 1 or name not in COUNTERS
    }


def not_finite(module: nn.Module) -> str | None:
    """The first parameter or buffer that holds NaN or an infinity; a buffer may hold -inf, as masks do."""
    # One number for all of them is quick; which one it is takes a look at each.
    parameters = [
        (name, each.detach())
        for name, each in module.named_parameters()
        if each.numel() and not each.is_meta and (each.is_floating_point() or each.is_complex())
    ]
    largest = get_total_norm([each for _, each in parameters], norm_type=torch.inf)
    if not bool(torch.isfinite(largest)):
        return next(name for name, each in parameters if not bool(torch.isfinite(each).all()))
    for name, tensor in module.named_buffers():
        if (
            not tensor.is_meta and tensor.is_floating_point() and not bool((tensor < torch.inf).all())
        ):  # nor is NaN
            return name
    return None


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights are; the CPU where it has none."""
    tensor: Tensor | None = next(module.parameters(), None)
    return torch.device("cpu") if tensor is None else tensor.device
