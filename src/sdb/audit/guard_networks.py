"""Small networks for students of texts and tables, and the loop that trains a network on few examples."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Of n-grams; index 0 fills up.
HASHES = 2**13
BATCH, LEARNING_RATE = 64, 0.005
# Examples that are answered at a time.
AT_ONCE = 1024
# From logits (B, C) and which examples they are of, int64 (B,), to a number.
Loss = Callable[[Tensor, Tensor], Tensor]


def hashed(texts: Sequence[Any], longest: int = 512) -> Tensor:
    """Indices of the words, pairs of words and parts of words (3 and 4 characters) of each text.

    Args:
        texts: str or bytes, whose bytes are taken for characters.
        longest: indices of a text at most; words come first.

    Returns:
        int64 (N, L) with L up to `longest`, from 1 to `HASHES` - 1; 0 fills up.
    """
    rows = []
    for text in texts:
        words = (text.decode("latin-1") if isinstance(text, bytes) else str(text)).lower().split()
        parts = words + [" ".join(pair) for pair in itertools.pairwise(words)]
        padded = f" {' '.join(words)} "
        parts += [f"#{padded[at : at + size]}" for size in (3, 4) for at in range(len(padded) - size + 1)]
        rows.append([1 + zlib.crc32(part.encode()) % (HASHES - 1) for part in parts[:longest]])
    found = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
    for row, codes in enumerate(rows):
        found[row, : len(codes)] = torch.tensor(codes)
    return found


class NgramNetwork(nn.Module):
    """A bag of n-grams, one hidden layer.

    Args:
        width: of the layer.
        classes: C.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(HASHES, width, mode="mean", padding_idx=0, sparse=True)
        self.rest = nn.Sequential(nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, classes))

    def forward(self, indices: Tensor) -> Tensor:
        """Logits (N, C) of what `hashed` gave."""
        return self.rest(10 * self.words(indices))


def dense(columns: int, width: int, classes: int) -> nn.Sequential:
    """A network of a table's columns: two hidden layers."""
    hidden = [nn.Linear(columns, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, classes))


def take(inputs: Any, rows: Any) -> Any:
    """Some examples of an array, a tensor, a list, a data frame, or a dictionary of these by name."""
    if isinstance(inputs, Mapping):
        return {name: take(column, rows) for name, column in inputs.items()}
    if hasattr(inputs, "iloc"):
        return inputs.iloc[np.asarray(rows)]
    return inputs[rows] if hasattr(inputs, "shape") else [inputs[row] for row in rows]


def size_of(inputs: Any) -> int:
    """How many examples there are."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, Mapping) else len(inputs)


def fit_network(
    network: nn.Module, inputs: Any, loss: Loss, epochs: int, seed: int, rate: float = LEARNING_RATE
) -> nn.Module:
    """The network after training, in evaluation mode: AdamW, one cycle of the rate, small batches of few examples.

    Args:
        network: takes a batch of the inputs; several of these by name.
        inputs: of N examples, see `take`.
        loss: of a batch.
        epochs: of all examples.
        seed: of their order.
        rate: the highest of the cycle.
    """
    count = size_of(inputs)
    batch = min(BATCH, max(8, count // 8))
    generator = torch.Generator().manual_seed(seed)
    # Few rows of a sparse embedding are in a batch.
    bags = [
        each
        for part in network.modules()
        if getattr(part, "sparse", False)
        for each in part.parameters(recurse=False)
    ]
    rest = [each for each in network.parameters() if not any(each is bag for bag in bags)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, rate)] if rest else []
    optimizers += [torch.optim.SparseAdam(bags, rate)] if bags else []
    steps = epochs * len(_batches(torch.arange(count), batch))
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, rate, steps, cycle_momentum=False) for each in optimizers
    ]
    network.train()
    for _ in range(epochs):
        for at in _batches(torch.randperm(count, generator=generator), batch):
            network.zero_grad()
            loss(_logits(network, take(inputs, at)), at).backward()
            for each in (*optimizers, *schedules):
                each.step()
    return network.eval()


def _batches(order: Tensor, batch: int) -> list[Tensor]:
    """Cut an order; one example that is left alone joins the batch before it, since batch norm cannot do with one."""
    parts = list(order.split(batch))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.inference_mode()
def scores_of(network: nn.Module, inputs: Any) -> Tensor:
    """What a network gives, (N, C)."""
    rows = np.arange(size_of(inputs))
    parts = (rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE))
    return torch.cat([_logits(network, take(inputs, part)) for part in parts])


def _logits(network: nn.Module, batch: Any) -> Tensor:
    found = network(**batch) if isinstance(batch, Mapping) else network(batch)
    return getattr(found, "logits", found)
