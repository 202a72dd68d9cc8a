"""Skeptical students: the victim's soft outputs reach a shallow head only, and the student keeps its own counsel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.victim import Interface, Victim
from sdb.data import Batch
from sdb.models import Classifier

# Side of the map that a head sees after pooling, where the map is larger.
POOLED = 2


def stages(student: Classifier) -> list[nn.Module]:
    """The modules of a student whose outputs are the stages of its features, in the order they run.

    These are feature maps (N, C, H, W) of the network's own children where there are two or more, else of any module
    within it, else any hidden vectors; the logits are none of them.
    """
    children = _outputs(student, list(student.network.children()))
    everything = _outputs(
        student, [module for module in student.network.modules() if module is not student.network]
    )
    for found in (children, everything):
        maps = [module for module, rank in found if rank == 4]
        if len(maps) > 1:
            return maps
    hidden = [module for module, _ in everything if not list(module.children())][:-1]
    return hidden or [student.network]


def _outputs(student: Classifier, modules: list[nn.Module]) -> list[tuple[nn.Module, int]]:
    """Which of these modules return a tensor of one row per image, and its number of axes, in the order they run."""
    seen: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == 2:
            seen[module] = output.ndim

    hooks = [module.register_forward_hook(note) for module in modules]
    _probe(student)
    for hook in hooks:
        hook.remove()
    return list(seen.items())


@torch.no_grad()
def _probe(student: Classifier) -> None:
    student.eval()
    student(torch.zeros(2, *student.image_shape, device=student.mean.device))


def pooled(features: Tensor) -> Tensor:
    """Feature maps or tokens to vectors (N, F)."""
    # What follows a norm is a ReLU in most networks; without it the mean of a map says little.
    if features.ndim == 4:
        side = min(POOLED, features.shape[2], features.shape[3])
        return F.adaptive_avg_pool2d(features.relu(), side).flatten(1)
    return features.relu() if features.ndim == 2 else features.mean(dim=1).flatten(1)


class Headed(nn.Module):
    """A student with linear heads on some of its stages.

    Args:
        student: whose logits come first.
        places: modules within it, one for each head.
    """

    def __init__(self, student: Classifier, places: list[nn.Module]) -> None:
        super().__init__()
        self.student = student
        self.features: dict[int, Tensor] = {}
        self.hooks = [place.register_forward_hook(self._keeper(number)) for number, place in enumerate(places)]
        _probe(student)
        widths = [pooled(self.features[number]).shape[1] for number in range(len(places))]
        device = student.mean.device
        self.heads = nn.ModuleList(nn.Linear(width, student.num_classes, device=device) for width in widths)

    def _keeper(self, number: int) -> Callable[..., None]:
        def keep(module: nn.Module, _: object, output: Tensor) -> None:
            self.features[number] = output

        return keep

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (1 + heads, N, K): the student's, then each head's."""
        logits = [self.student(images)]
        logits += [head(pooled(self.features[number])) for number, head in enumerate(self.heads)]
        return torch.stack(logits)

    def release(self) -> None:
        """Take the hooks off the student and forget the features."""
        for hook in self.hooks:
            hook.remove()
        self.features.clear()


@dataclass(frozen=True, kw_only=True)
class Skeptical(Attack):
    """A student of which only a shallow head listens to the victim.

    Attributes:
        temperature: of both soft terms.
        soft_weight: of the victim's soft outputs against the labels, at the middle head.
        late_weight: of the final head's soft outputs against the labels, at the late head.
        delay: share of the epochs before which the student learns from its labels alone.
    """

    name = "skeptical"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = "A student of the labels whose middle layers learn from the victim through a head of their own"
    source = (
        "Kundu et al., NeurIPS 2021 (Skeptical Students), train_kd_to_SD.py; linear heads in place of its blocks"
    )

    temperature: float = 4.0
    soft_weight: float = 0.9
    late_weight: float = 0.3
    delay: float = 20 / 180

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, train student and heads together, return the student without them."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        scores = transfer.ask(victim).scores()
        student = attacker.new_student().to(attacker.device)
        found = stages(student)
        middle, late = found[(2 * len(found) - 1) // 3], found[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(attacker.seed(self.name))
            headed = Headed(student, [middle, late])
        quiet = round(self.delay * attacker.settings.epochs) * len(transfer)
        steps = 0

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            nonlocal steps
            steps += 1
            final, shallow, deep = logits
            terms = {"final": losses.cross_entropy(final, batch.labels)}
            if steps <= quiet:
                return terms
            soft = losses.kd_term(shallow, scores[batch.index], batch.labels, temperature=self.temperature)
            # As published: no T^2 here, and the final head is not detached.
            own = losses.kl(final, deep, self.temperature)
            return terms | {
                "distillation": self.soft_weight * soft,
                "shallow": (1 - self.soft_weight) * losses.cross_entropy(shallow, batch.labels),
                "own": self.late_weight * own,
                "deep": (1 - self.late_weight) * losses.cross_entropy(deep, batch.labels),
            }

        try:
            attacker.learn(student, transfer, loss, forward=headed, beside=headed.heads)
        finally:
            headed.release()
        names = {module: name for name, module in student.named_modules()}
        return Stolen(student, details={"heads": [names[middle], names[late]]})
