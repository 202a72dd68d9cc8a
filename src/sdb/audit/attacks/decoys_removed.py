"""Undoing decoys by knowing the method: what a class gets on average is the owner's, the rest may be the teacher's.

Decoys stand out in the mean answer of each class, so they can be found and taken away (`DecoysRemoved`). And where
answers depend on the class alone up to what training left over, that rest is all that can be knowledge (`Deviations`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import Recipe, distilled
from sdb.audit.attacks.keys_tried import Asking
from sdb.audit.attacks.sanitise import Sanitised
from sdb.audit.attacks.victim import Interface, Victim

# A standard deviation below this is none, in nats.
STILL = 1e-3


class ByClass(nn.Module):
    """Mean and standard deviation of log-probabilities (N, K) for each named class; (K, K) each, zero without images.

    Args:
        logs: log-probabilities.
        named: the class that stands for each image, int64 (N,).
    """

    def __init__(self, logs: Tensor, named: Tensor) -> None:
        super().__init__()
        one_hot = F.one_hot(named, logs.shape[1]).to(logs)  # (N, K)
        counts = one_hot.sum(dim=0).clamp_min(1).unsqueeze(1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", one_hot.t() @ logs / counts)
        deviations = (logs - self.mean[named]).square()
        self.register_buffer("std", (one_hot.t() @ deviations / counts).sqrt())

    def deviations(self, logs: Tensor, named: Tensor) -> Tensor:
        """How far each number is from its class mean, in standard deviations; zero where nothing varies."""
        std = self.std[named]
        return torch.where(std < STILL, 0.0, (logs - self.mean[named]) / std.clamp_min(STILL))


@dataclass(frozen=True, kw_only=True)
class DecoysRemoved(Attack):
    """Find each class's decoys by the means of the answers, give them what the other classes get."""

    name = "decoys_removed"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = (
        "Wrong classes that are nearly tied with the right one on average are found and removed before distilling"
    )
    source = "ours, adaptive against decoys; second-peak removal per class in place of per image"

    near: float = 3.0

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, remove what is on average less than `near` nats below the named class, distil."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        logs = transfer.ask(victim).scores().log_softmax(dim=1)
        named = logs.argmax(dim=1)
        decoys = decoys_in(ByClass(logs, named), self.near)
        student = distilled(attacker, transfer, without(logs, decoys[named]), Recipe(), transfer.targets)
        bare = Bare(Asking(victim, attacker.device), decoys)
        return Stolen(student, bare, {"removed": int(decoys.sum())})


class Bare(nn.Module):
    """A victim without its decoys: images to log-probabilities."""

    def __init__(self, asking: nn.Module, decoys: Tensor) -> None:
        super().__init__()
        self.asking = asking
        self.decoys: Tensor
        self.register_buffer("decoys", decoys)

    def forward(self, images: Tensor) -> Tensor:
        """What the victim says, less its decoys, (N, K)."""
        logs = self.asking(images).log_softmax(dim=1)
        return without(logs, self.decoys[logs.argmax(dim=1)])


def decoys_in(told: ByClass, near: float) -> Tensor:
    """Which classes (column) are, on average, less than `near` nats below a named class (row); bool (K, K)."""
    right = told.mean.diagonal().unsqueeze(1)
    same = torch.eye(len(told.mean), dtype=torch.bool, device=told.mean.device)
    seen = told.mean.abs().sum(dim=1, keepdim=True) > 0  # a class that was never named has no means
    return (right - told.mean < near) & ~same & seen


def without(logs: Tensor, decoys: Tensor) -> Tensor:
    """Log-probabilities (N, K) whose decoys, bool (N, K), get the mean of the image's other wrong classes."""
    wrong = ~decoys & ~F.one_hot(logs.argmax(dim=1), logs.shape[1]).bool()
    count = wrong.sum(dim=1, keepdim=True)
    least = logs.amin(dim=1, keepdim=True)
    others = torch.where(count > 0, (logs * wrong).sum(dim=1, keepdim=True) / count.clamp_min(1), least)
    return torch.where(decoys, others, logs)


@dataclass(frozen=True, kw_only=True)
class Deviations(Sanitised):
    """Throw the class means away and magnify what is left."""

    name = "deviations"
    summary = "What the answers say of a class on average is thrown away, how images differ from it is magnified"
    source = "ours, adaptive against answers that depend on the class alone; the opposite of Averager Student"

    height: float = 8.0
    scale: float = 1.5

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """A fixed height for the named class, `scale` nats for each standard deviation."""
        logs = scores.log_softmax(dim=1)
        named = logs.argmax(dim=1)
        differing = ByClass(logs, named).deviations(logs, named).clamp(-3, 3)
        return self.height * F.one_hot(named, logs.shape[1]).to(logs) + self.scale * differing
