"""Thieves of a box that answers by level: the level says which answers to trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, StudentLoss, TransferSet
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.victim import Answers, Interface, Victim
from sdb.data import Batch
from sdb.errors import ConfigError

Use = Literal["weights", "filter", "targets"]
# How strongly the level is used: powers of the weight, shares of answers that are kept, shares of the doubt.
STRENGTHS: dict[Use, tuple[float, ...]] = {"weights": (1.0, 3.0), "filter": (0.95, 0.8), "targets": (0.5, 1.0)}


@dataclass(frozen=True, kw_only=True)
class LevelThief(Attack):
    """Copy top-1 answers, and use the confidence that comes with each.

    weights: an answer counts as much as its confidence, to a power. filter: only the surest answers are learned.
    targets: what an answer lacks in confidence is spread over the other classes. How strongly is chosen on the thief's
    validation images. Images with labels keep these, whole.
    """

    needs = Interface.TOP_K

    use: Use = "weights"
    name: str = "level_weights"
    uses: frozenset[str] = frozenset({"labels"})
    summary: str = "Copy top-1 answers; the sure ones count more, by the confidence that the victim tells"
    source: str = "ours; confidence-weighted pseudo-labels as in Rizve et al., ICLR 2021 (arXiv 2101.06329)"

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, learn with each strength, keep the best."""
        victim.require(self.needs)
        if self.use not in STRENGTHS:
            raise ConfigError(f"use: {self.use!r} is none of {', '.join(STRENGTHS)}")
        transfer = affordable(victim, attacker)
        answers = transfer.ask(victim)
        students = {
            strength: attacker.learn(
                attacker.new_student(), transfer, self._loss(transfer, answers, strength), same_each_step=True
            )
            for strength in STRENGTHS[self.use]
        }
        tried = {strength: attacker.score(student) for strength, student in students.items()}
        chosen = max(tried, key=lambda strength: tried[strength])
        details = {"chosen": chosen, "validation": {f"{strength:g}": value for strength, value in tried.items()}}
        return Stolen(students[chosen], details=details)

    def _loss(self, transfer: TransferSet, answers: Answers, strength: float) -> StudentLoss:
        confidence, named = answers.scores().softmax(dim=1).max(dim=1)
        own = transfer.targets >= 0
        labels = torch.where(own, transfer.targets, named)
        # An answer that contradicts a label is wrong, however sure.
        sure = torch.where(own & (named != transfer.targets), 0.0, confidence)
        weights = torch.ones_like(sure)
        if self.use == "weights":
            weights = torch.where(own, 1.0, sure**strength)
        elif self.use == "filter":
            kept = sure >= torch.quantile(sure, 1 - strength)
            weights = (own | kept).to(sure.dtype)
        classes = answers.num_classes
        doubt = strength * (1 - confidence).clamp(0, 1) if self.use == "targets" else torch.zeros_like(sure)

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            place = batch.index
            target = torch.nn.functional.one_hot(labels[place], classes).to(logits.dtype)
            spread = doubt[place].to(logits.dtype).unsqueeze(1)
            target = (1 - spread) * target + spread * (1 - target) / (classes - 1)
            each = -(target * logits.log_softmax(dim=1)).sum(dim=1)
            weight = weights[place].to(logits.dtype)
            return {"cross_entropy": (weight * each).sum() / weight.sum().clamp_min(1e-6)}

        return loss


BY_FILTER = LevelThief(
    use="filter",
    name="level_filter",
    summary="Copy only the answers that the victim is sure of, beside the thief's own labels",
)
BY_TARGETS = LevelThief(
    use="targets",
    name="level_targets",
    summary="Copy top-1 answers with the doubt that the victim tells spread over the other classes",
)
