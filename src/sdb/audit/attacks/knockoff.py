"""Knockoff Nets: stealing with images of another kind, chosen at random or by what they bring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, StudentLoss, TransferSet
from sdb.audit.attacks.budget import payable
from sdb.audit.attacks.victim import BATCH, Answers, Interface, Victim
from sdb.data import Batch
from sdb.errors import ConfigError
from sdb.models import Classifier


def in_parts(pixels: Tensor, attacker: Attacker, *, parts: int, batch_size: int) -> TransferSet:
    """A transfer set of images that were asked about once each; an epoch of training is one part of them.

    Args:
        pixels: uint8 (M, C, H, W), in random order; the last few are left out where they do not divide.
        attacker: whose seed and device.
        parts: at least 1; fewer where a part would not fill a batch.
        batch_size: images per step.
    """
    parts = max(1, min(parts, len(pixels) // batch_size))
    count = len(pixels) // parts * parts
    targets = torch.zeros(count, dtype=torch.long, device=attacker.device)
    size = min(batch_size, count // parts)
    seed, device = attacker.seed("parts"), attacker.device
    return TransferSet(pixels[:count].to(device), targets, parts, size, seed, device)


def asked_about(victim: Victim, pixels: Tensor) -> Answers:
    """The victim's answers to images uint8 (M, C, H, W), which may be too many to be float32 all at once."""
    parts = [victim.ask(part.float() / 255) for part in pixels.split(BATCH)]
    return Answers(parts[0].kind, torch.cat([part.values for part in parts]), victim.num_classes)


def soft_labels(scores: Tensor, temperature: float) -> StudentLoss:
    """The victim's soft outputs and nothing else."""

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"soft": losses.kd_term(logits, scores[batch.index], batch.labels, temperature=temperature)}

    return loss


@dataclass(frozen=True, kw_only=True)
class KnockoffRandom(Attack):
    """Ask about images of another kind, learn the answers.

    Attributes:
        images: asked about at most; fewer where there are no more, or the budget is smaller.
        temperature: of the soft outputs; 1 in the paper, where 4 teaches more.
        passes: over the images in training; more than there are epochs count as one each.
    """

    name = "knockoff_random"
    needs = Interface.TOP_K
    uses = frozenset({"proxy"})
    summary = "A student of the victim's soft outputs on images of another kind, chosen at random, without labels"
    source = "Orekondy et al., CVPR 2019 (arXiv 1812.02766), random strategy"
    control = 0.5

    images: int = 50_000
    temperature: float = 4.0
    passes: int = 8

    def brief(self) -> Self:
        """With fewer images."""
        return replace(self, images=min(self.images, 10_000))

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Choose, ask, distil."""
        victim.require(self.needs)
        pool = attacker.transfer(attacker.proxy)
        count = payable(victim, min(self.images, len(pool.pixels)))
        order = torch.randperm(len(pool.pixels), generator=torch.Generator().manual_seed(attacker.seed(self.name)))
        pixels = pool.pixels[order[:count].to(pool.device)]
        scores = asked_about(victim, pixels).scores()
        student = self.learnt(attacker, pixels, scores)
        return Stolen(student, details={"images": count})

    def learnt(self, attacker: Attacker, pixels: Tensor, scores: Tensor) -> Classifier:
        """A fresh student of images uint8 (M, C, H, W) in random order and the scores (M, K) that they got."""
        parts = attacker.settings.epochs // self.passes
        transfer = in_parts(pixels, attacker, parts=parts, batch_size=attacker.settings.batch_size)
        return attacker.learn(attacker.new_student(), transfer, soft_labels(scores, self.temperature))


class Bandit:
    """Which kind of image to ask about next: a gradient bandit whose preferences follow rewards.

    Args:
        kinds: int (M,), the kind of each image of the pool.
        window: rewards that the baseline is the mean of.
        seed: of the choices.

    Attributes:
        preferences: one for each kind; their softmax is the policy.

    Source: Sutton and Barto, section 2.8, with the step 1 / (times chosen), as Orekondy et al. have it.
    """

    def __init__(self, kinds: np.ndarray, window: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        names, kinds = np.unique(kinds, return_inverse=True)
        # Images of each kind that are left, in random order.
        self.left = [list(self.rng.permutation(np.flatnonzero(kinds == kind))) for kind in range(len(names))]
        self.preferences = np.zeros(len(names))
        self.chosen = np.zeros(len(names), dtype=int)
        self.window = window
        self.rewards: list[float] = []

    def policy(self) -> np.ndarray:
        """Probability of each kind; kinds of which nothing is left have none."""
        weights = np.exp(self.preferences - self.preferences.max())
        weights *= [bool(images) for images in self.left]
        return weights / weights.sum()

    def choose(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (count,) in the pool, no image twice, and their kinds."""
        kinds = np.empty(count, dtype=int)
        rows = np.empty(count, dtype=int)
        for number in range(count):
            kinds[number] = kind = int(self.rng.choice(len(self.left), p=self.policy()))
            rows[number] = self.left[kind].pop()
        return rows, kinds

    def learn(self, kinds: np.ndarray, rewards: np.ndarray) -> None:
        """Take the rewards of what was chosen, one after the other."""
        for kind, reward in zip(kinds, rewards, strict=True):
            baseline = float(np.mean(self.rewards[-self.window :])) if self.rewards else 0.0
            self.rewards.append(float(reward))
            self.chosen[kind] += 1
            weights = np.exp(self.preferences - self.preferences.max())
            step = (reward - baseline) / self.chosen[kind]
            self.preferences -= step * weights / weights.sum()
            self.preferences[kind] += step


def rewards_of(answers: Tensor, before: Tensor, student: Tensor) -> Tensor:
    """Certainty, diversity and loss of answers, float (N, 3).

    Args:
        answers: the victim's probabilities (N, K).
        before: mean of its earlier answers (K,).
        student: logits (N, K) of the student so far.
    """
    first, second = answers.topk(2, dim=1).values.unbind(dim=1)
    diversity = (answers - before).clamp_min(0).sum(dim=1)
    loss = -(answers * student.log_softmax(dim=1)).sum(dim=1)
    return torch.stack([first - second, diversity, loss], dim=1)


@dataclass(frozen=True, kw_only=True)
class KnockoffAdaptive(KnockoffRandom):
    """Ask more about the kinds of proxy image that bring certain, varied, not yet learnt answers.

    Attributes:
        rounds: of choosing, asking and learning.
        window: rewards behind the baseline.
    """

    name = "knockoff_adaptive"
    summary = "As knockoff_random, asking more about the kinds of image whose answers are sure, varied and new"
    source = "Orekondy et al., CVPR 2019 (arXiv 1812.02766), adaptive strategy, all three rewards"
    control = 0.4

    images: int = 5_000
    passes: int = 15
    rounds: int = 10
    window: int = 25

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Choose by the bandit, ask, reward; then distil to a fresh student. The proxy's labels are the kinds."""
        victim.require(self.needs)
        if self.rounds < 1:
            raise ConfigError(f"rounds: {self.rounds}; at least one is needed")
        pool = attacker.transfer(attacker.proxy)
        count = payable(victim, min(self.images, len(pool.pixels)))
        bandit = Bandit(pool.targets.cpu().numpy(), self.window, attacker.seed(self.name))
        student = attacker.new_student().to(attacker.device).eval()
        once = attacker.settings.model_copy(update={"epochs": 1})
        pixels = pool.pixels[:0]
        scores = torch.empty(0, victim.num_classes, device=pool.device)
        for part in np.array_split(np.arange(count), min(self.rounds, count)):
            rows, kinds = bandit.choose(len(part))
            shown = pool.pixels[torch.from_numpy(rows).to(pool.device)]
            told = asked_about(victim, shown).scores()
            before = scores.softmax(dim=1).mean(dim=0) if len(scores) else torch.zeros_like(told[0])
            with torch.no_grad():
                guessed = torch.cat([student(some.float() / 255) for some in shown.split(BATCH)])
            rewards = rewards_of(told.softmax(dim=1), before, guessed)
            low, high = rewards.amin(dim=0), rewards.amax(dim=0)
            bandit.learn(kinds, ((rewards - low) / (high - low).clamp_min(1e-8)).mean(dim=1).cpu().numpy())
            pixels, scores = torch.cat([pixels, shown]), torch.cat([scores, told])
            so_far = in_parts(pixels, attacker, parts=1, batch_size=attacker.settings.batch_size)
            attacker.learn(student, so_far, soft_labels(scores, self.temperature), settings=once)
        # What is learnt last must not be what was chosen last.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(attacker.seed(self.name, "order")))
        order = order.to(pool.device)
        details = {"images": count, "kinds": len(bandit.chosen), "most_of_one_kind": int(bandit.chosen.max())}
        return Stolen(self.learnt(attacker, pixels[order], scores[order]), details=details)
