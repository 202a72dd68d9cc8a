"""The only thing an attack sees of what it attacks: an interface that answers, counts and refuses.

A victim hands out exactly one declared kind of answer. `Answers` says which, so that nothing is ever taken for what it
is not: logits that went through a softmax twice have made defences look strong that were not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.errors import ConfigError

BATCH = 512
# What a probability of zero is taken for where its logarithm is needed.
SMALLEST = 1e-7


class Interface(IntEnum):
    """What a thief gets for an image, from least to most."""

    LABELS = 0
    TOP_K = 1
    PROBABILITIES = 2
    LOGITS = 3
    WEIGHTS = 4


class QueryBudgetError(ConfigError):
    """A victim was asked for more images than its budget allows."""


class InterfaceError(ConfigError):
    """An attack needs more than the victim gives."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a victim said to N images.

    Attributes:
        kind: LABELS, TOP_K, PROBABILITIES or LOGITS.
        values: labels int64 (N,); else float32 (N, K): probabilities, of which TOP_K has zeros beyond the k largest, or
            logits.
        num_classes: K.
    """

    kind: Interface
    values: Tensor
    num_classes: int

    def labels(self) -> Tensor:
        """The classes that the victim names, int64 (N,)."""
        return self.values if self.kind is Interface.LABELS else self.values.argmax(dim=1)

    def scores(self) -> Tensor:
        """Numbers (N, K) whose softmax at temperature T is the soft output at that temperature, whatever the kind.

        Logits are themselves, probabilities their logarithms. What a top-k answer leaves out shares the mass that is
        left; a label is a certain answer.
        """
        if self.kind is Interface.LOGITS:
            return self.values
        if self.kind is Interface.LABELS:
            return F.one_hot(self.values, self.num_classes).float().clamp_min(SMALLEST).log()
        shares = self.values
        if self.kind is Interface.TOP_K:
            hidden = shares == 0
            left = (1 - shares.sum(dim=1, keepdim=True)).clamp_min(0) / hidden.sum(dim=1, keepdim=True).clamp_min(
                1
            )
            shares = torch.where(hidden, left, shares)
        return shares.clamp_min(SMALLEST).log()

    def take(self, index: Tensor) -> Answers:
        """The answers at some positions."""
        return Answers(self.kind, self.values[index], self.num_classes)


class Victim:
    """A model behind an interface.

    Args:
        module: images (N, C, H, W) in [0, 1] to logits (N, K).
        interface: what is given away.
        num_classes: K.
        image_shape: (C, H, W).
        top_k: classes that a TOP_K answer names.
        budget: images it answers at most; none for no limit. With the weights at hand nobody counts.
        network: what a thief who has the weights has; only with interface WEIGHTS.

    Attributes:
        queries: images answered so far.
    """

    def __init__(
        self,
        module: nn.Module,
        interface: Interface,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        top_k: int = 3,
        budget: int | None = None,
        network: nn.Module | None = None,
    ) -> None:
        if budget is not None and budget < 1:
            raise ConfigError(f"budget: {budget} queries; give at least one, or none for no limit")
        self.interface, self.num_classes, self.image_shape = interface, num_classes, image_shape
        self.top_k, self.budget, self.queries = top_k, budget, 0
        self._module = module.eval()
        self._network = network

    def ask(self, images: Tensor) -> Answers:
        """Answer images (N, C, H, W) in [0, 1], without gradient.

        Raises:
            QueryBudgetError: they are more than the budget still allows; none of them is answered.
        """
        if self.interface is not Interface.WEIGHTS:
            if self.budget is not None and self.queries + len(images) > self.budget:
                raise QueryBudgetError(
                    f"{self.queries} of {self.budget} queries are spent, {len(images)} more are asked"
                )
            self.queries += len(images)
        with torch.no_grad():
            parts = [self._module(part).float() for part in images.split(BATCH)]
            logits = torch.cat(parts) if parts else torch.empty(0, self.num_classes, device=images.device)
        return self._answer(logits)

    def left(self) -> int | None:
        """Queries that the budget still allows; None for no limit."""
        if self.budget is None or self.interface is Interface.WEIGHTS:
            return None
        return self.budget - self.queries

    def network(self) -> nn.Module:
        """The network itself, for a thief who was shipped it; not to be changed, copy it.

        Raises:
            InterfaceError: this victim does not give its weights.
        """
        if self.interface is not Interface.WEIGHTS or self._network is None:
            raise InterfaceError(f"this victim gives {self.interface.name.lower()}, not its weights")
        return self._network

    def require(self, needed: Interface) -> None:
        """Refuse an attack that needs more than there is.

        Raises:
            InterfaceError: naming both.
        """
        if self.interface < needed:
            raise InterfaceError(f"needs {needed.name.lower()}, the victim gives {self.interface.name.lower()}")

    def _answer(self, logits: Tensor) -> Answers:
        kind = min(self.interface, Interface.LOGITS)
        if kind is Interface.LABELS:
            return Answers(kind, logits.argmax(dim=1), self.num_classes)
        if kind is Interface.LOGITS:
            return Answers(kind, logits, self.num_classes)
        shares = logits.softmax(dim=1)
        if kind is Interface.TOP_K:
            best = shares.topk(min(self.top_k, self.num_classes), dim=1)
            shares = torch.zeros_like(shares).scatter(1, best.indices, best.values)
        return Answers(Interface(kind), shares, self.num_classes)
