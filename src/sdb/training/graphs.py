"""A training step recorded once as a CUDA graph and replayed: most of a small network's step on a GPU is launches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdb.data import Batch

# Steps before the recording, so that the optimizer has its state and libraries have chosen their algorithms.
WARM_UP = 3


class GraphedStep:
    """A whole step, forward to optimizer, replayed on batches of the shape of the first.

    Only for a step that does the same on every batch: nothing in it may be drawn by, counted in or read back to Python.
    The optimizer is fused, and its learning rate becomes a tensor, which later rates are written into.

    Args:
        step: a batch to loss terms by name, after which the weights have moved; it begins by dropping all gradients.
        optimizer: that the step uses.
        device: the GPU.
    """

    def __init__(
        self, step: Callable[[Batch], dict[str, Tensor]], optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self._step = step
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if "capturable" in group:
                group["capturable"] = True
        self._beside = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._taken = 0
        self._batch: Batch | None = None
        self._terms: dict[str, Tensor] = {}

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Do the step; the terms are overwritten by the next call."""
        if self._batch is None:
            self._batch = Batch(*(field.clone() for field in batch))
        if _form(batch) != _form(self._batch):
            return self._step(batch)
        self._taken += 1
        if self._taken <= WARM_UP:
            here = torch.cuda.current_stream()
            self._beside.wait_stream(here)
            with torch.cuda.stream(self._beside):
                terms = self._step(batch)
            here.wait_stream(self._beside)
            return terms
        for own, given in zip(self._batch, batch, strict=True):
            own.copy_(given)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._terms = self._step(self._batch)
        self._graph.replay()
        return self._terms


def _form(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    return [(field.shape, field.dtype) for field in batch]
