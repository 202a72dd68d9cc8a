"""Random patterns: stealing without any image, from the classes that the victim names.

Pixels drawn apart from each other look to a network like one class or two. Smooth patterns, coarse noise of several
scales added up, reach all of its classes, and enough of its borders for a student to learn them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import payable
from sdb.audit.attacks.knockoff import asked_about, in_parts
from sdb.audit.attacks.victim import Interface, Victim
from sdb.data import Batch

# Sides of the coarse random maps that are enlarged and added up to a smooth pattern.
COARSE = (2, 3, 4, 6, 8)


def patterns(count: int, image_shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    """Smooth random images, uint8 (count, C, H, W), of random scale, contrast and brightness."""
    channels, height, width = image_shape
    total = torch.zeros(count, channels, height, width)
    for side in COARSE:
        coarse = torch.randn(count, channels, side, side, generator=draw)
        fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
        total += torch.rand(count, 1, 1, 1, generator=draw) * fine
    total /= total.flatten(1).std(dim=1).clamp_min(1e-6).view(-1, 1, 1, 1)
    contrast = 1 + 6 * torch.rand(count, 1, 1, 1, generator=draw)
    brightness = torch.randn(count, 1, 1, 1, generator=draw)
    return as_pixels((contrast * total + brightness).sigmoid())


def as_pixels(images: Tensor) -> Tensor:
    """Images in [0, 1] to uint8, the nearest."""
    return (255 * images).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class RandomPatterns(Attack):
    """Ask about smooth random patterns, learn the classes that the victim names.

    Attributes:
        queries: asked at most; fewer where the budget is smaller.
        batch_size: images per step.
        passes: over all answers.
    """

    name = "random_patterns"
    needs = Interface.LABELS
    uses = frozenset({"no_images"})
    summary = "Without any image and from top-1 answers alone: a student of smooth random patterns"
    source = "ours; random queries: Tramer et al., USENIX Security 2016, there uniform"
    control = 0.7

    queries: int = 100_000
    batch_size: int = 256
    passes: int = 4

    def brief(self) -> RandomPatterns:
        """With fewer queries."""
        return replace(self, queries=40_000)

    def extended(self) -> RandomPatterns:
        """With ten times the queries."""
        return replace(self, queries=10 * self.queries)

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask about every pattern, learn the answers."""
        draw = torch.Generator().manual_seed(attacker.seed(self.name))
        shown = patterns(payable(victim, self.queries), victim.image_shape, draw).to(attacker.device)
        named = asked_about(victim, shown).labels()
        transfer = in_parts(
            shown, attacker, parts=attacker.settings.epochs // self.passes, batch_size=self.batch_size
        )

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"cross_entropy": losses.cross_entropy(logits, named[batch.index])}

        found = torch.bincount(named, minlength=victim.num_classes)
        return Stolen(attacker.learn(attacker.new_student(), transfer, loss), details={"named": found.tolist()})
