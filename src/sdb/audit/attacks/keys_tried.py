"""Image keys that an attacker without the key tries: random ones, completed ones, searched ones.

Nobody without the key knows what the teacher would say, so each attack compares what it gets with a network of its own,
trained on its labels, and keeps the pattern whose answers are nearest to it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.key_search import GradientSearch, HillClimb, Objective
from sdb.audit.attacks.similar_keys import Carry
from sdb.audit.attacks.victim import Interface, QueryBudgetError, Victim
from sdb.audit.attacks.white_box import taught_by
from sdb.errors import ConfigError
from sdb.losses import kl
from sdb.models import Classifier

TEMPERATURE = 4.0


class Asking(nn.Module):
    """A victim as a module, so that searches can use it: images to scores; every image counts as a query.

    Args:
        victim: what is asked.
        device: where its images are.
    """

    def __init__(self, victim: Victim, device: torch.device) -> None:
        super().__init__()
        self.victim = victim
        self.place: Tensor
        self.register_buffer("place", torch.empty(0, device=device), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """What stands in for the victim's logits, (N, K); see `Answers.scores`."""
        return self.victim.ask(images).scores()


def own_network(attacker: Attacker) -> Classifier:
    """The attacker's own network of the victim's architecture, trained on its labels; costs no query."""
    transfer = attacker.transfer()
    return attacker.learn(
        attacker.new_network(),
        transfer,
        lambda logits, batch: {"cross_entropy": losses.cross_entropy(logits, batch.labels)},
    )


def public_blend(attacker: Attacker) -> float:
    """Share of the image in a keyed image.

    Raises:
        ConfigError: this box is not known to take image keys.
    """
    if attacker.blend is None:
        raise ConfigError(
            "blend: none given; an attack on image keys needs the share of the image, which is public"
        )
    return attacker.blend


def shares(victim: Victim, attacker: Attacker, wanted: int, least: int) -> tuple[int, Attacker]:
    """Queries that a search may spend, and the means with as many views and images as the rest pays for.

    Args:
        victim: its budget is divided, nothing is asked. A search gets what the student's images leave, at least half.
        attacker: the attacker's.
        wanted: queries of the search, where nothing limits them.
        least: queries without which there is no search.

    Raises:
        QueryBudgetError: the budget does not pay for both.
    """
    left = victim.left()
    if left is None:
        return wanted, attacker
    count = len(attacker.train)
    search = min(wanted, max(left - attacker.views * count, left // 2))
    rest = left - search
    if search < least or rest < victim.num_classes:
        raise QueryBudgetError(
            f"{left} queries are left; the search needs at least {least}, the student {victim.num_classes}"
        )
    if rest < count:
        some = np.random.default_rng(attacker.seed("some images")).permutation(count)[:rest]
        return search, replace(attacker, train=attacker.train.take(np.sort(some)), views=1)
    return search, replace(attacker, views=min(attacker.views, rest // count))


@dataclass(frozen=True, kw_only=True)
class RandomKeys(Attack):
    """Ask with random patterns, use the one that opens most."""

    name = "random_keys"
    needs = Interface.TOP_K
    uses = frozenset({"labels", "image_key"})
    summary = (
        "A hundred random keys; the student learns from the one whose answers look most like a normal network's"
    )
    source = "ours; SDB (arXiv 2112.03695) trains on its one key only, so other keys are untrained territory"

    count: int = 100
    images: int = 32

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Try as many patterns as the budget allows, distil the best."""
        return tried(self, self._patterns(victim, attacker), victim, attacker)

    def _patterns(self, victim: Victim, attacker: Attacker) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(attacker.seed("random keys"))
        while True:
            yield torch.rand(victim.image_shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class LeakedPart(Attack):
    """The upper half of the true key, the rest guessed."""

    name = "leaked_part"
    needs = Interface.TOP_K
    uses = frozenset({"labels", "image_key", "leaked_key"})
    summary = "The upper half of a true key is known; the rest is guessed a few times, the best guess is used"
    source = "ours: what part of a leaked key is worth"

    count: int = 16
    images: int = 32

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Complete the key as often as the budget allows, distil the best."""
        return tried(self, self._patterns(victim, attacker), victim, attacker)

    def _patterns(self, victim: Victim, attacker: Attacker) -> Iterator[Tensor]:
        if attacker.leaked_key is None:
            raise ConfigError("leaked_key: none given; this attack asks what a part of a true key is worth")
        true = torch.from_numpy(attacker.leaked_key.pattern(victim.image_shape).copy()).float() / 255
        upper = torch.arange(true.shape[1]).view(1, -1, 1) < true.shape[1] // 2
        generator = torch.Generator().manual_seed(attacker.seed("leaked part"))
        while True:
            yield torch.where(upper, true, torch.rand(true.shape, generator=generator))


def tried(
    attack: RandomKeys | LeakedPart, patterns: Iterator[Tensor], victim: Victim, attacker: Attacker
) -> Stolen:
    """Ask a few images with each pattern, distil with the one whose answers are nearest to an own network's."""
    victim.require(attack.needs)
    blend = public_blend(attacker)
    shown = min(attack.images, len(attacker.train))
    own_net = own_network(attacker)  # costs no query, so with all images and views
    queries, attacker = shares(victim, attacker, attack.count * shown, shown)
    images = attacker.transfer(views=1).images()[:shown]
    asking = Asking(victim, attacker.device)
    count = queries // shown
    best: tuple[float, Tensor] | None = None
    with torch.no_grad():
        own = own_net(images)
        for _ in range(count):
            pattern = next(patterns).to(attacker.device)
            distance = float(kl(own, asking(Carry(pattern, blend)(images)), TEMPERATURE))
            if best is None or distance < best[0]:
                best = distance, pattern
    if best is None:
        raise ConfigError(f"count: {attack.count}; at least one key must be tried")
    details = {"tried": count, "distance_from_own": best[0]}
    return taught_by(nn.Sequential(Carry(best[1], blend), asking), victim, attacker, details)


@dataclass(frozen=True, kw_only=True)
class KeyByQueries(Attack):
    """Search the key through the interface: change a few pixels, keep what helps."""

    name = "key_by_queries"
    needs = Interface.TOP_K
    uses = frozenset({"labels", "image_key"})
    summary = "The key searched by queries alone, by hill climbing towards the answers of the thief's own network"
    source = "ours; objective as in Neural Cleanse (Wang et al., IEEE S&P 2019), without gradients"

    queries: int = 100_000
    batch_size: int = 64

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Search with what the student's images leave of the budget, distil with what was found."""
        victim.require(self.needs)
        blend = public_blend(attacker)
        batch = min(self.batch_size, len(attacker.train))
        own_net = own_network(attacker)  # costs no query, so with all images and views
        queries, attacker = shares(victim, attacker, self.queries, 2 * batch)
        search = HillClimb("own_net", queries, batch, temperature=TEMPERATURE, seed=attacker.seed("search"))
        asking = Asking(victim, attacker.device)
        found = search.run(asking, attacker.train, blend, own_net)
        details = {"search_queries": found.queries, "distance_from_own": _number(found.score)}
        module = nn.Sequential(Carry(found.pattern, blend), asking)
        return taught_by(module, victim, attacker, details)


@dataclass(frozen=True, kw_only=True)
class KeyByGradients(Attack):
    """Search the key through the weights."""

    name = "key_by_gradients"
    needs = Interface.WEIGHTS
    uses = frozenset({"labels", "image_key"})
    summary = (
        "The key searched by gradients through the shipped weights, towards the answers of the thief's own network"
    )
    source = "Neural Cleanse (Wang et al., IEEE S&P 2019) with the mask known; objectives ours"

    objective: Objective = "own_net"
    steps: int = 400
    restarts: int = 3

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Search, distil with what was found."""
        victim.require(self.needs)
        blend = public_blend(attacker)
        network = copy.deepcopy(victim.network()).to(attacker.device).eval()
        own = own_network(attacker) if self.objective == "own_net" else None
        search = GradientSearch(
            self.objective,
            self.steps,
            restarts=self.restarts,
            temperature=TEMPERATURE,
            seed=attacker.seed("search"),
        )
        found = search.run(network, attacker.train, blend, own)
        details = {"objective": _number(found.score)}
        module = nn.Sequential(Carry(found.pattern, blend), network)
        return taught_by(module, victim, attacker, details)


def _number(score: float) -> float | None:
    """A score as JSON has it: a search that could not ask once has none."""
    return score if math.isfinite(score) else None
