"""Two attacks of ours that stand where HTC and SCM (Jandial et al., ECCV 2022) would: their form could not be read.

They follow what is known of the ideas (raised entropy; a sequence of contrasted students), carry names of their own,
and say nothing about how well the published attacks do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdb.attacks.attack import Attack, Stolen
from sdb.attacks.budget import affordable
from sdb.attacks.distil import Recipe, distilled
from sdb.attacks.means import Means, TransferSet
from sdb.attacks.victim import BATCH, Interface, Victim
from sdb.errors import ConfigError
from sdb.models import Classifier

HOT = Recipe(temperature=20.0, soft_weight=0.5, label_weight=0.5)
EVEN = Recipe(soft_weight=0.5, label_weight=0.5)


def mixed_with_uniform(scores: Tensor, temperature: float, share: float) -> Tensor:
    """Scores (N, K) whose softmax at a temperature is that of the given ones, mixed with a share of uniform."""
    soft = (scores / temperature).softmax(dim=1)
    return temperature * ((1 - share) * soft + share / scores.shape[1]).log()


@dataclass(frozen=True, kw_only=True)
class EntropyRaised(Attack):
    """Distil soft outputs that were made softer still.

    Attributes:
        uniform: share of the uniform distribution in the target.
        recipe: temperature and weights; the mixing is done at its temperature.
    """

    name = "entropy_raised"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = "Distillation at a high temperature of targets mixed with the uniform distribution, with labels"
    source = "ours; a stand-in, not HTC (Jandial et al., ECCV 2022), whose form could not be read"

    uniform: float = 0.2
    recipe: Recipe = HOT

    def run(self, victim: Victim, means: Means) -> Stolen:
        """Ask for every view, mix, distil."""
        victim.require(self.needs)
        if not 0 < self.uniform < 1:
            raise ConfigError(f"uniform: {self.uniform}; a share between 0 and 1 is expected")
        transfer = affordable(victim, means)
        scores = mixed_with_uniform(transfer.ask(victim).scores(), self.recipe.temperature, self.uniform)
        return Stolen(distilled(means, transfer, scores, self.recipe, transfer.targets))


def contrasted(scores: Tensor, student: Tensor, contrast: float) -> Tensor:
    """The victim's scores (N, K) moved towards a student's, and beyond it where contrast is above 1."""
    told, learnt = scores.log_softmax(dim=1), student.log_softmax(dim=1)
    return told + contrast * (learnt - told)


@dataclass(frozen=True, kw_only=True)
class SequentialContrast(Attack):
    """A sequence of students, each of the victim's answers corrected by what the one before it made of them.

    Attributes:
        rounds: students after the first.
        contrast: how far the correction goes: 1 is the student's own answer.
        recipe: how each learns.
    """

    name = "sequential_contrast"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = (
        "Students in sequence; each learns the victim's answers corrected by (student - victim) of the one before"
    )
    source = "ours; a stand-in, not SCM (Jandial et al., ECCV 2022), whose form could not be read"

    rounds: int = 2
    contrast: float = 1.5
    recipe: Recipe = EVEN

    def run(self, victim: Victim, means: Means) -> Stolen:
        """Ask once for every view, train the students, keep the best on the validation images."""
        victim.require(self.needs)
        if self.rounds < 1:
            raise ConfigError(f"rounds: {self.rounds}; at least one is needed")
        transfer = affordable(victim, means)
        told = scores = transfer.ask(victim).scores()
        students: list[Classifier] = []
        for number in range(self.rounds + 1):
            if number:
                scores = contrasted(told, _logits(students[-1], transfer), self.contrast)
            students.append(distilled(means, transfer, scores, self.recipe, transfer.targets))
        validation = [means.score(student) for student in students]
        chosen = validation.index(max(validation))
        return Stolen(students[chosen], details={"chosen": chosen, "validation": validation})


@torch.no_grad()
def _logits(student: nn.Module, transfer: TransferSet) -> Tensor:
    return torch.cat([student(part) for part in transfer.images().split(BATCH)])
