"""Defences that leave the teacher as it is and change what is said: no training, and nothing left when weights leak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdb.audit.defences.defence import Defence, Defended, Parts
from sdb.audit.defences.losses import sparse
from sdb.models import Classifier, device_of
from sdb.wrapping.networks import frozen

# The logarithm of a probability of zero is taken of this instead.
SMALLEST = 1e-7
# Probabilities are tied that differ by less than this share, which float32 logarithms might lose; the right class then
# gets so much more than the other.
TIED, LEAD = 1e-5, 1e-4
# The odds of a probability nearer than this to 0 or 1 are taken at this distance.
EDGE = 1e-12
ONLY_OUTPUTS = "Only outputs change: whoever has the weights has the plain teacher."


class Changed(nn.Module):
    """A teacher whose probabilities are changed by `change`, and whose top-1 is kept.

    Args:
        teacher: images to logits.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def change(self, images: Tensor, logits: Tensor) -> Tensor:
        """Log-probabilities (N, K), float64, in place of the teacher's logits (N, K), float64."""
        raise NotImplementedError(f"{type(self).__name__} has no change")

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, K), float32, of images (N, C, H, W) in [0, 1]."""
        logits = self.teacher(images).double()
        return self.change(images, logits).float()


def keep_top(shares: Tensor, top: Tensor) -> Tensor:
    """Probabilities (N, K) with the largest at `top`, int64 (N,): swapped there, and raised a little where tied."""
    place = top.unsqueeze(1)
    largest, where = shares.max(dim=1, keepdim=True)
    own = shares.gather(1, place)
    kept = shares.scatter(1, where, own).scatter(1, place, largest)
    others = kept.scatter(1, place, -torch.inf).amax(dim=1, keepdim=True)
    clear = largest > others * (1 + TIED)
    return normalised(kept.scatter(1, place, torch.where(clear, largest, others + LEAD)))


def normalised(shares: Tensor) -> Tensor:
    """Non-negative numbers (N, K) as probabilities."""
    return shares / shares.sum(dim=1, keepdim=True)


class RoundedAnswers(Changed):
    """Probabilities with a few decimals."""

    def __init__(self, teacher: nn.Module, decimals: int) -> None:
        super().__init__(teacher)
        self.decimals = decimals

    def change(self, images: Tensor, logits: Tensor) -> Tensor:
        """Round; the top class stays on top."""
        rounded = logits.softmax(dim=1).round(decimals=self.decimals)
        return keep_top(rounded, logits.argmax(dim=1)).clamp_min(SMALLEST).log()


class ReversedAnswers(Changed):
    """Probabilities less a multiple of a sigmoid of their odds."""

    def __init__(self, teacher: nn.Module, strength: float, steepness: float) -> None:
        super().__init__(teacher)
        self.strength, self.steepness = strength, steepness

    def change(self, images: Tensor, logits: Tensor) -> Tensor:
        """Bend; the top class stays on top."""
        shares = logits.softmax(dim=1)
        odds = shares.clamp(EDGE, 1 - EDGE).logit()
        moved = shares - self.strength * (torch.sigmoid(self.steepness * odds) - 0.5)
        return keep_top(normalised(moved.clamp_min(SMALLEST)), logits.argmax(dim=1)).log()


class SparseAnswers(Changed):
    """The softmax over the k largest logits alone."""

    def __init__(self, teacher: nn.Module, top_k: int) -> None:
        super().__init__(teacher)
        self.top_k = top_k

    def change(self, images: Tensor, logits: Tensor) -> Tensor:
        """Take all but the largest away."""
        return sparse(logits, self.top_k).log_softmax(dim=1).clamp_min(torch.tensor(SMALLEST).log())


@dataclass(frozen=True, kw_only=True)
class Unprotected(Defence):
    """The teacher as it is."""

    name = "none"
    title = "unprotected"
    summary = "The plain teacher, with all its logits"
    source = "the control of every comparison"
    threat_note = "Nothing is defended."

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher."""
        network = frozen(teacher, device_of(teacher))
        return Defended(network, None, network, seconds=record["seconds"])


@dataclass(frozen=True, kw_only=True)
class LabelsOnly(Defence):
    """Only the top-1 class is named."""

    name = "labels_only"
    title = "labels only"
    summary = "The service names the class and nothing else"
    source = "Tramer et al., USENIX Security 2016 (arXiv 1609.02943), section 7"
    threat_note = "Users lose every probability, partners too. " + ONLY_OUTPUTS

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher behind a narrower interface."""
        network = frozen(teacher, device_of(teacher))
        return Defended(network, None, network, interface="labels", seconds=record["seconds"])


@dataclass(frozen=True, kw_only=True)
class Rounded(Defence):
    """Probabilities are rounded.

    Attributes:
        decimals: that are left.
    """

    name = "rounded"
    title = "rounded"
    summary = "Probabilities with few decimals"
    source = "Tramer et al., USENIX Security 2016 (arXiv 1609.02943), section 7"
    threat_note = ONLY_OUTPUTS

    decimals: int = 1

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher with rounding after it."""
        network = frozen(teacher, device_of(teacher))
        keyless = RoundedAnswers(network, self.decimals).eval()
        return Defended(keyless, None, network, seconds=record["seconds"])


@dataclass(frozen=True, kw_only=True)
class ReverseSigmoid(Defence):
    """Confident probabilities are pulled down and small ones up, so that their order misleads.

    p' = normalise(clip(p - strength (sigmoid(steepness logit(p)) - 1/2), 0)), and the top-1 is put back where lost.

    Attributes:
        strength: beta in the source.
        steepness: gamma in the source.
    """

    name = "reverse_sigmoid"
    title = "reverse sigmoid"
    summary = "Probabilities bent by a sigmoid so that unlikely classes look likely"
    source = "Lee et al., IEEE S&P Workshops 2019; ART ReverseSigmoid (beta 1, gamma 0.1)"
    threat_note = "The same map for every answer, which a thief who knows it largely undoes. " + ONLY_OUTPUTS

    strength: float = 1.0
    steepness: float = 0.1

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher with the sigmoid after it."""
        network = frozen(teacher, device_of(teacher))
        keyless = ReversedAnswers(network, self.strength, self.steepness).eval()
        return Defended(keyless, None, network, seconds=record["seconds"])


@dataclass(frozen=True, kw_only=True)
class Stingy(Defence):
    """Only the largest logits are given, and the softmax over them.

    Attributes:
        top_k: classes that are left; None for a fifth of them up to 10 classes and a tenth beyond, as the source.
    """

    name = "stingy"
    title = "stingy (top-k)"
    summary = "All but the few largest probabilities are withheld"
    source = "Ma et al., ICLR Workshop 2022 (Stingy Teacher): ratio 0.2 on CIFAR-10, 0.1 on CIFAR-100"
    threat_note = ONLY_OUTPUTS

    top_k: int | None = None

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher with all but the largest logits taken away."""
        network = frozen(teacher, device_of(teacher))
        classes = teacher.num_classes
        top_k = self.top_k or max(1, int((0.2 if classes <= 10 else 0.1) * classes))
        keyless = SparseAnswers(network, top_k).eval()
        return Defended(keyless, None, network, interface="top_k", top_k=top_k, seconds=record["seconds"])
