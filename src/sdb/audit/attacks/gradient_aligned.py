"""A thief that weighs answers by what its own labels say of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, StudentLoss
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import SMOOTHING
from sdb.audit.attacks.victim import Interface, Victim
from sdb.data import Batch


@dataclass(frozen=True, kw_only=True)
class GradientAligned(Attack):
    """Learn most from the answers whose gradient agrees with that of the thief's own labels.

    A first student of the labels measures both: how its logits would change for an answer, and for labelled images of
    that class that it has not learned from. Answers that pull the other way count for nothing.

    Attributes:
        temperature: of the soft answers.
        sharpness: of the exponential tilt by the cosine of the two gradients.
    """

    name = "gradient_aligned"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = "Weighs each soft answer by how well its gradient agrees with that of the thief's own labels"
    source = "arXiv 2605.22737 (Distillation Game), exponential tilting; here the logits' gradient"

    temperature: float = 4.0
    sharpness: float = 2.0

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """A first student, weights, a student of weighted answers and labels."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        answers = transfer.ask(victim)
        smoothed: StudentLoss = lambda logits, batch: {  # noqa: E731
            "cross_entropy": losses.cross_entropy(logits, batch.labels, SMOOTHING)
        }
        labelled = attacker.transfer(attacker.train)
        first = attacker.learn(attacker.new_student(1), labelled, smoothed).eval()
        held = torch.from_numpy(np.array(attacker.validation.images)).to(attacker.device).float() / 255
        right = torch.from_numpy(np.array(attacker.validation.labels)).to(attacker.device)
        with torch.no_grad():
            soft = (answers.scores() / self.temperature).softmax(dim=1)
            wanted = first(held).softmax(dim=1) - F.one_hot(right, victim.num_classes)
            pulled = (first(transfer.images()) / self.temperature).softmax(dim=1) - soft
        weights = tilt(alignment(pulled, wanted, soft.argmax(dim=1), right), self.sharpness)
        known = torch.where(transfer.targets >= 0, transfer.targets, answers.labels())

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            weight = weights[batch.index]
            each = -(soft[batch.index] * (logits / self.temperature).log_softmax(dim=1)).sum(dim=1)
            return {
                "distillation": 0.9 * self.temperature**2 * (weight * each).sum() / weight.sum().clamp_min(1e-6),
                "cross_entropy": 0.1 * losses.cross_entropy(logits, known[batch.index]),
            }

        student = attacker.learn(attacker.new_student(), transfer, loss)
        return Stolen(student, details={"dropped": float((weights == 0).float().mean())})


def alignment(pulled: Tensor, wanted: Tensor, named: Tensor, right: Tensor) -> Tensor:
    """Cosine of each answer's gradient by the logits with the mean one of labelled images of its class, (N,).

    Args:
        pulled: gradients of answers by the logits, (N, K).
        wanted: gradients of labels by the logits, (M, K).
        named: the class of each answer, int64 (N,).
        right: the labels, int64 (M,).
    """
    sums = torch.zeros(wanted.shape[1], wanted.shape[1], dtype=wanted.dtype, device=wanted.device)
    mean = sums.index_add(0, right, wanted)  # direction alone counts
    return F.cosine_similarity(pulled, mean[named], dim=1)


def tilt(cosine: Tensor, sharpness: float) -> Tensor:
    """Weights exp(sharpness * cosine), and 0 where the cosine is negative."""
    return torch.where(cosine < 0, 0.0, (sharpness * cosine).exp())
