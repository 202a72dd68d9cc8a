"""A thief that learns from its own guesses about images that it has no answer for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import SMOOTHING, labels_for
from sdb.audit.attacks.victim import Interface, Victim
from sdb.data import Batch


class Strongly(nn.Module):
    """A student that sees each batch three times: as it is, blended within the batch, and these blends disturbed.

    Returns the logits of all three, one after the other.
    """

    def __init__(self, student: nn.Module, noise: float, hole: float) -> None:
        super().__init__()
        self.student, self.noise, self.hole = student, noise, hole

    def forward(self, images: Tensor) -> Tensor:
        """Logits (3 N, K)."""
        share = 0.5 + 0.5 * torch.rand(len(images), 1, 1, 1, device=images.device)
        weak = share * images + (1 - share) * images[torch.randperm(len(images), device=images.device)]
        strong = (weak + self.noise * torch.randn_like(weak)).clamp(0, 1)
        return self.student(torch.cat([images, weak, cut_out(strong, self.hole)]))


def cut_out(images: Tensor, share: float) -> Tensor:
    """Images (N, C, H, W) with a square hole at a random place; its side is a share of the image's.

    Source: DeVries and Taylor, arXiv 1708.04552 (Cutout).
    """
    count, _, height, width = images.shape
    side = max(1, round(share * min(height, width)))
    top, left = (torch.randint(size - side + 1, (count, 1), device=images.device) for size in (height, width))
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    hole = in_rows.unsqueeze(2) & in_columns.unsqueeze(1)
    return images.masked_fill(hole.unsqueeze(1), 0.5)


@dataclass(frozen=True, kw_only=True)
class FixMatch(Attack):
    """Copy top-1 answers, and be consistent where the student is sure of itself.

    What it has no answer for are blends of its own images: what the student says of a blend, where it is sure, is what
    it must say of the same blend with noise and a hole.

    Attributes:
        sure: confidence from which a guess counts.
        weight: of the guesses.
        noise: standard deviation of the disturbance, of pixels in [0, 1].
        hole: side of the hole, a share of the image's.
    """

    name = "fixmatch"
    needs = Interface.LABELS
    uses = frozenset({"labels"})
    summary = "Copies top-1 answers; where it is sure of a blend, it must say the same of a disturbed one"
    source = "Sohn et al., NeurIPS 2020 (FixMatch); unlabelled images are blends (Zhang et al., ICLR 2018)"

    sure: float = 0.8
    weight: float = 0.5
    noise: float = 0.1
    hole: float = 0.3

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, learn answers and guesses together."""
        transfer = affordable(victim, attacker)
        labels = labels_for(self, transfer, transfer.ask(victim))

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            plain, weak, strong = logits.chunk(3)
            confidence, guess = weak.detach().softmax(dim=1).max(dim=1)
            each = F.cross_entropy(strong, guess, reduction="none")
            return {
                "cross_entropy": losses.cross_entropy(plain, labels[batch.index], SMOOTHING),
                "consistency": self.weight * (each * (confidence >= self.sure)).mean(),
            }

        student = attacker.new_student()
        around = Strongly(student, self.noise, self.hole)
        return Stolen(attacker.learn(student, transfer, loss, forward=around))
