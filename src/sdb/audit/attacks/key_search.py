"""Searching an image key: a pattern that makes a box answer as if it had been opened.

Nobody who searches knows the teacher's answers, so each objective is a guess at what open answers look like: confident
(`entropy`), like those of a network of the attacker's own (`own_net`), or right (`labels`). With the weights, gradients
lead the search; without, every look costs queries (one query is one image).

Source: the search of a trigger by gradients is Neural Cleanse's (Wang et al., IEEE S&P 2019) with the mask known; NES
with antithetic pairs: Ilyas et al., ICML 2018 (arXiv 1804.08598).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.attacks.similar_keys import Carry
from sdb.audit.attacks.victim import QueryBudgetError
from sdb.data import ImageSet
from sdb.errors import ConfigError
from sdb.losses import cross_entropy, kl

Objective = Literal["entropy", "own_net", "labels"]
# Standard deviation of the noise that a search starts from, in the sigmoid's argument.
START_SCALE = 1.0
# A point of a search is kept, to be looked at afterwards, whenever its queries have grown by so much.
TRAIL_GROWTH = 1.25


class CountedVictim(nn.Module):
    """A victim behind an interface: answers images and counts them.

    Args:
        module: images (N, C, H, W) to logits.
        budget: images it answers at most; none for no limit.
    """

    def __init__(self, module: nn.Module, budget: int | None = None) -> None:
        super().__init__()
        self.module, self.budget, self.queries = module, budget, 0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), without gradient.

        Raises:
            QueryBudgetError: these images are more than the budget still allows; none of them is answered.
        """
        if self.budget is not None and self.queries + len(images) > self.budget:
            raise QueryBudgetError(
                f"{self.queries} of {self.budget} queries are spent, {len(images)} more are asked"
            )
        self.queries += len(images)
        return self.module(images)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        pattern: (C, H, W) in [0, 1].
        score: its objective, lower is better; the attack chose by this.
        queries: images that the victim answered, all restarts together.
        trail: (queries, pattern) from the start on; with restarts, of the one that won, its own queries alone.
    """

    pattern: Tensor
    score: float
    queries: int
    trail: tuple[tuple[int, Tensor], ...] = ()


@dataclass(frozen=True, slots=True)
class GradientSearch:
    """White box: Adam on a pattern in [0, 1], through the network.

    Attributes:
        objective: what open answers are taken to look like.
        steps: of Adam.
        batch_size: images per step.
        learning_rate: Adam's, on the argument of a sigmoid.
        restarts: starts from other noise; the best by the objective over all images wins.
        temperature: of `own_net`.
        seed: of starts and batches.
    """

    objective: Objective = "entropy"
    steps: int = 400
    batch_size: int = 256
    learning_rate: float = 0.1
    restarts: int = 3
    temperature: float = 4.0
    seed: int = 0

    def run(self, network: nn.Module, images: ImageSet, blend: float, own_net: nn.Module | None = None) -> Found:
        """Search; the network's weights are left alone.

        Args:
            network: the box's network, with its weights.
            images: the attacker's; their labels are used by objective "labels" only.
            blend: of the key, which is public.
            own_net: the attacker's own, for objective "own_net".

        Raises:
            ConfigError: objective "own_net" without one.
        """
        # A copy in eval mode: the victim's weights, statistics and gradients stay as they are.
        network = copy.deepcopy(network).eval().requires_grad_(False)
        pixels, goal, generator = _begin(self, network, images, own_net)
        best: Found | None = None
        spent = 0
        for _ in range(self.restarts):
            start = START_SCALE * torch.randn(pixels.shape[1:], generator=generator)
            argument = start.to(pixels.device).requires_grad_()
            optimizer = torch.optim.Adam([argument], lr=self.learning_rate)
            before = spent
            trail = _Trail(argument.detach().sigmoid())
            for _ in range(self.steps):
                index = torch.randperm(len(pixels), generator=generator)[: self.batch_size].to(pixels.device)
                loss = goal(network(Carry(argument.sigmoid(), blend)(pixels[index])), index)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                spent += len(index)
                trail.note(spent - before, argument.detach().sigmoid())
            pattern = argument.detach().sigmoid()
            everything = torch.arange(len(pixels), device=pixels.device)
            with torch.no_grad():
                score = float(goal(network(Carry(pattern, blend)(pixels)), everything))
            spent += len(pixels)
            if best is None or score < best.score:
                best = Found(pattern, score, 0, trail.to(spent - before, pattern))
        if best is None:
            raise ConfigError("restarts: 0, at least one is needed")
        return Found(best.pattern, best.score, spent, best.trail)


@dataclass(frozen=True, slots=True)
class EvolutionSearch:
    """Black box: natural evolution strategies (NES) with antithetic pairs.

    Attributes:
        objective: as in `GradientSearch`.
        queries: budget, in images.
        batch_size: images that a pattern is tried on; fresh ones each step.
        pairs: antithetic pairs of patterns per step; a step costs 2 * pairs * batch_size queries.
        sigma: how far the tried patterns lie from the current one.
        learning_rate: Adam's, on the pattern.
        temperature: of `own_net`.
        seed: of starts, directions and batches.
    """

    objective: Objective = "own_net"
    queries: int = 200_000
    batch_size: int = 16
    pairs: int = 20
    sigma: float = 0.1
    learning_rate: float = 0.02
    temperature: float = 4.0
    seed: int = 0

    def run(self, victim: nn.Module, images: ImageSet, blend: float, own_net: nn.Module | None = None) -> Found:
        """Search until the budget is spent; arguments as in `GradientSearch.run`, the victim gives outputs only."""
        victim = CountedVictim(victim, self.queries)
        pixels, goal, generator = _begin(self, victim, images, own_net)
        pattern = torch.rand(pixels.shape[1:], generator=generator).to(pixels.device)
        optimizer = torch.optim.Adam([pattern], lr=self.learning_rate)
        cost = 2 * self.pairs * min(self.batch_size, len(pixels))
        trail = _Trail(pattern)
        score = float("nan")
        while victim.queries + cost <= self.queries:
            index = torch.randperm(len(pixels), generator=generator)[: self.batch_size].to(pixels.device)
            directions = torch.randn(self.pairs, *pattern.shape, generator=generator).to(pixels.device)
            tried = torch.cat([pattern + self.sigma * directions, pattern - self.sigma * directions]).clamp(0, 1)
            shown = torch.cat([Carry(each, blend)(pixels[index]) for each in tried])
            answers = victim(shown).split(len(index))
            scores = torch.stack([goal(answer, index) for answer in answers])
            score = float(scores.mean())
            up, down = scores.chunk(2)
            weights = (up - down).view(-1, *[1] * pattern.ndim)
            pattern.grad = (weights * directions).mean(dim=0) / (2 * self.sigma)
            optimizer.step()
            pattern.clamp_(0, 1)
            trail.note(victim.queries, pattern)
        return Found(pattern, score, victim.queries, trail.to(victim.queries, pattern))


@dataclass(frozen=True, slots=True)
class HillClimb:
    """Black box: change a few pixels, keep the change where the objective falls.

    Attributes:
        objective: as in `GradientSearch`.
        queries: budget, in images.
        batch_size: images that every pattern is tried on, the same all along; a try costs so many queries.
        share: of the pixels that one try changes.
        patience: tries without success after which the batch is drawn anew.
        temperature: of `own_net`.
        seed: of starts, changes and batches.
    """

    objective: Objective = "own_net"
    queries: int = 200_000
    batch_size: int = 64
    share: float = 0.05
    patience: int = 100
    temperature: float = 4.0
    seed: int = 0

    def run(self, victim: nn.Module, images: ImageSet, blend: float, own_net: nn.Module | None = None) -> Found:
        """Search until the budget is spent; arguments as in `GradientSearch.run`, the victim gives outputs only."""
        victim = CountedVictim(victim, self.queries)
        pixels, goal, generator = _begin(self, victim, images, own_net)

        def draw() -> Tensor:
            return torch.randperm(len(pixels), generator=generator)[: self.batch_size].to(pixels.device)

        def score_of(pattern: Tensor) -> float:
            return float(goal(victim(Carry(pattern, blend)(pixels[index])), index))

        index, since = draw(), 0
        cost = len(index)
        pattern = torch.rand(pixels.shape[1:], generator=generator).to(pixels.device)
        trail = _Trail(pattern)
        score = score_of(pattern) if self.queries >= cost else float("nan")
        while victim.queries + cost <= self.queries:
            if since == self.patience:
                index, since = draw(), 0
                score = score_of(pattern)
                continue
            changed = torch.rand(pattern.shape, generator=generator) < self.share
            values = torch.rand(pattern.shape, generator=generator)
            tried = torch.where(changed.to(pattern.device), values.to(pattern.device), pattern)
            value = score_of(tried)
            since += 1
            if value < score:
                pattern, score, since = tried, value, 0
            trail.note(victim.queries, pattern)
        return Found(pattern, score, victim.queries, trail.to(victim.queries, pattern))


class _Trail:
    """Points of a search, kept whenever its queries have grown enough."""

    def __init__(self, start: Tensor) -> None:
        self.points = [(0, start.clone())]

    def note(self, queries: int, pattern: Tensor) -> None:
        if queries >= TRAIL_GROWTH * self.points[-1][0]:
            self.points.append((queries, pattern.clone()))

    def to(self, queries: int, pattern: Tensor) -> tuple[tuple[int, Tensor], ...]:
        return (*self.points, (queries, pattern))


def _begin(
    search: GradientSearch | EvolutionSearch | HillClimb,
    network: nn.Module,
    images: ImageSet,
    own_net: nn.Module | None,
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor], torch.Generator]:
    """Pixels in [0, 1] where the network is, the objective, the generator of all that is random."""
    place = next(chain(network.parameters(), network.buffers()), torch.empty(0))
    pixels = torch.from_numpy(np.array(images.images)).to(place.device).float() / 255
    labels = torch.from_numpy(np.array(images.labels)).to(place.device)
    goal = _goal(search.objective, search.temperature, labels, pixels, own_net)
    return pixels, goal, torch.Generator().manual_seed(search.seed)


def _goal(
    objective: Objective, temperature: float, labels: Tensor, pixels: Tensor, own_net: nn.Module | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective as a function of logits (N, classes) and of which images they answer (N,); lower is better."""
    if objective == "entropy":
        return lambda logits, index: mean_entropy(logits)
    if objective == "labels":
        return lambda logits, index: cross_entropy(logits, labels[index])
    if objective != "own_net":
        raise ConfigError(f"objective: {objective!r} is none of entropy, own_net, labels")
    if own_net is None:
        raise ConfigError("objective 'own_net' needs a network of the attacker's own: give own_net")
    with torch.no_grad():
        own = own_net.eval()(pixels)  # of plain images, once
    return lambda logits, index: kl(own[index], logits, temperature)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of softmax outputs (N, classes), in nats."""
    logs = F.log_softmax(logits, dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()
