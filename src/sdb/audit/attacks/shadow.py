"""Undoing a defence whose method is known: by making it again, or by knowing what it puts in.

The attacker makes teachers and defended versions of its own (shadows), for which it knows both answers, learns the way
back from one to the other, and takes it from the victim's answers. Decoys differ from owner to owner, so the way back
must not depend on which class is which: `BY_CLASS` treats all classes alike and sees each beside what the victim
says on average. A thief who knows decoys needs no shadow: decoys stand out in the class means (`DecoysRemoved`),
and what is no class mean is all that can be knowledge (`Deviations`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.decoys_removed import ByClass
from sdb.audit.attacks.distil import Recipe, distilled
from sdb.audit.attacks.keys_tried import Asking
from sdb.audit.attacks.victim import BATCH, Interface, Victim
from sdb.errors import ConfigError
from sdb.losses import kl

STEP_SIZE, LEARNING_RATE = 256, 3e-3


class WayBack(nn.Module):
    """From a defended model's answer to logits of what the teacher may have said, as in D-DAE.

    Sees the answer at the temperature and which class it names.

    Args:
        num_classes: K.
        temperature: T of answers and of what is learnt.
    """

    def __init__(self, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.layers = nn.Sequential(
            nn.Linear(2 * num_classes, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, num_classes),
        )

    def forward(self, logs: Tensor, told: ByClass, prior: Tensor) -> Tensor:
        """Logits (N, K) from log-probabilities (N, K), what is told on average and what own teachers say on average."""
        del told, prior
        named = F.one_hot(logs.argmax(dim=1), logs.shape[1]).to(logs)
        return self.layers(torch.cat([(logs / self.temperature).softmax(dim=1), named], dim=1))


class WayBackByClass(nn.Module):
    """The same for every class: what is said of it, the mean of that, the deviation, own teachers' mean, is it named.

    Renaming classes renames its answer, so it holds for owners with other decoys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)
        )

    def forward(self, logs: Tensor, told: ByClass, prior: Tensor) -> Tensor:
        """Arguments as for `WayBack`."""
        named = logs.argmax(dim=1)
        deviations = told.deviations(logs, named).clamp(-5, 5)
        is_named = F.one_hot(named, logs.shape[1]).to(logs)
        seen = torch.stack([logs / 8, told.mean[named] / 8, deviations, prior[named] / 8, is_named], dim=2)
        return 8 * self.layers(seen).squeeze(2)


class Undone(nn.Module):
    """A victim and the way back behind it: images to logits."""

    def __init__(self, asking: nn.Module, way_back: nn.Module, told: ByClass, prior: Tensor) -> None:
        super().__init__()
        self.asking, self.way_back, self.told = asking, way_back, told
        self.prior: Tensor
        self.register_buffer("prior", prior)

    def forward(self, images: Tensor) -> Tensor:
        """What the teacher may have said, (N, K)."""
        return self.way_back(self.asking(images).log_softmax(dim=1), self.told, self.prior)


@dataclass(frozen=True, slots=True)
class _Shadow:
    """One pair of the attacker's own: what the defended model says, what it says on average, what the teacher says."""

    logs: Tensor
    told: ByClass
    truth: Tensor
    prior: Tensor


@dataclass(frozen=True, kw_only=True)
class ShadowRecovery(Attack):
    """Wrap models of one's own, learn to undo it, undo it on the victim's answers.

    Attributes:
        shadows: models of one's own.
        steps: of learning the way back.
        temperature: of answers and of what is learnt.
        by_class: a way back that holds for any owner's decoys, see `WayBackByClass`.
    """

    needs = Interface.TOP_K
    uses = frozenset({"labels", "shadow"})

    name: str = "shadow_recovery"
    summary: str = (
        "The thief wraps its own models, learns to undo the defence, and undoes it on the victim's answers"
    )
    source: str = "D-DAE (Chen et al., IEEE S&P 2023), as in Yoruko-Tang/ModelGuard, with whole boxes as shadows"
    shadows: int = 2
    steps: int = 800
    temperature: float = 4.0
    by_class: bool = False

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Make shadows, learn the way back, distil what it says of the victim's answers.

        Raises:
            ConfigError: it is not known how to make the defence, or there are too few shadows.
        """
        victim.require(self.needs)
        if attacker.shadow is None:
            raise ConfigError("shadow: none given; this attack needs to know how the defence is made")
        if self.shadows < 2:
            raise ConfigError(f"shadows: {self.shadows}; at least two, so that one says what the other does not")
        transfer = affordable(victim, attacker)
        images, labels = transfer.images(), transfer.targets
        logs = transfer.ask(victim).scores().log_softmax(dim=1)
        pairs = [
            self._shadow(victim, attacker, images, labels, attacker.shadow, number)
            for number in range(self.shadows)
        ]
        priors = torch.stack([pair.prior for pair in pairs])
        way_back = self._way_back(victim.num_classes, attacker.seed("way back")).to(attacker.device)
        loss = self._learn(way_back, pairs, priors, attacker.seed("steps"))
        told = ByClass(logs, logs.argmax(dim=1))
        prior = priors.mean(dim=0)
        with torch.no_grad():
            scores = way_back(logs, told, prior)
        student = distilled(attacker, transfer, scores, Recipe(), labels)
        undone = Undone(Asking(victim, attacker.device), way_back, told, prior)
        return Stolen(student, undone, {"shadow_distance": loss})

    def _way_back(self, num_classes: int, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return WayBackByClass() if self.by_class else WayBack(num_classes, self.temperature)

    @torch.no_grad()
    def _shadow(
        self,
        victim: Victim,
        attacker: Attacker,
        images: Tensor,
        labels: Tensor,
        make: Callable[..., tuple[nn.Module, nn.Module]],
        number: int,
    ) -> _Shadow:
        with torch.enable_grad():
            teacher, defended = make(attacker.train, attacker.seed(self.name, number))
        # Behind the victim's interface, so that both kinds of answer are alike.
        same = Victim(
            defended,
            min(victim.interface, Interface.LOGITS),
            num_classes=victim.num_classes,
            image_shape=victim.image_shape,
            top_k=victim.top_k,
        )
        logs = same.ask(images).scores().log_softmax(dim=1)
        truth = torch.cat([teacher.eval()(part).float() for part in images.split(BATCH)])
        return _Shadow(
            logs, ByClass(logs, logs.argmax(dim=1)), truth, ByClass(truth.log_softmax(dim=1), labels).mean
        )

    def _learn(self, way_back: nn.Module, pairs: list[_Shadow], priors: Tensor, seed: int) -> float:
        """Train the way back on all shadows in turn; the last steps' mean distance to the teachers, in nats."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(way_back.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        last = torch.zeros(())
        for step in range(self.steps):
            number = step % len(pairs)
            pair = pairs[number]
            # Its own teacher's means would give a shadow's answer away; the victim's teacher is not among them either.
            prior = (priors.sum(dim=0) - priors[number]) / (len(pairs) - 1)
            index = torch.randperm(len(pair.logs), generator=generator)[:STEP_SIZE].to(pair.logs.device)
            loss = kl(pair.truth[index], way_back(pair.logs[index], pair.told, prior), self.temperature)
            optimizer.zero_grad(set_to_none=True)
            (self.temperature**2 * loss).backward()
            optimizer.step()
            schedule.step()
            if step >= self.steps - len(pairs):
                last = last + loss.detach().cpu() / len(pairs)
        way_back.eval().requires_grad_(False)
        return float(last)


BY_CLASS = ShadowRecovery(
    name="shadow_by_class",
    summary="The same, learnt so that it holds whichever classes the owner's decoys are",
    source="ours, adaptive against decoys: a way back that is equivariant to renaming classes",
    by_class=True,
)
