"""The least time that a training step can take on a device: its operations and bytes over what the device can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

LEAVES = (nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)


def work_of(network: nn.Module, images: Tensor) -> dict[str, float]:
    """Operations (two for a multiplication and an addition) and bytes of one forward of a network.

    Bytes: every weighted layer and every normalisation reads its input and writes its output once, in the given type;
    activations, additions and pooling are taken to cost nothing, as if they were fused.
    """
    moved = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved
        moved += (inputs[0].numel() + output.numel()) * images.element_size()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, LEAVES)]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {"operations": float(counter.get_total_flops()), "bytes": float(moved)}


def step_floor(
    trained: dict[str, float], frozen: list[dict[str, float]], images_trained: float, peak: dict[str, float]
) -> dict[str, Any]:
    """The floor of a step: what is trained three times (forward and two products backward), frozen networks once.

    Args:
        trained: `work_of` of the trained network on one batch.
        frozen: of the networks that only answer.
        images_trained: how many batches go through the trained network in a step.
        peak: of the device, see `measure_peak`.
    """
    operations = 3 * images_trained * trained["operations"] + sum(each["operations"] for each in frozen)
    moved = 3 * images_trained * trained["bytes"] + sum(each["bytes"] for each in frozen)
    seconds = {"operations": operations / peak["operations_a_second"], "bytes": moved / peak["bytes_a_second"]}
    return {
        "operations": operations,
        "bytes": moved,
        "ms_by_operations": 1e3 * seconds["operations"],
        "ms_by_bytes": 1e3 * seconds["bytes"],
        "ms": 1e3 * max(seconds.values()),
    }


def measure_peak(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device does at best: a large product of matrices, and a large copy (read and written)."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.rand(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.rand(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    product = best_of(lambda: left @ right, device)
    copy = best_of(lambda: target.copy_(source), device)
    return {
        "operations_a_second": 2 * size**3 / product,
        "bytes_a_second": 2 * source.numel() * source.element_size() / copy,
    }


def best_of(call: Callable[[], Any], device: torch.device, times: int = 8) -> float:
    """Seconds of the fastest of several calls."""
    return min(seconds_of(call, device) for _ in range(times))


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, with all that it started on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
