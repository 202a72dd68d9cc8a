"""Asking about neighbours of an image and averaging: a defence that was trained on the images may end beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, TransferSet
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import Recipe, distilled
from sdb.audit.attacks.victim import SMALLEST, Interface, Victim
from sdb.data import Augment
from sdb.data import augment as augmentation
from sdb.errors import ConfigError
from sdb.models import Classifier

# For data that is not augmented in training: the smallest change that there is.
ONE_PIXEL = Augment(crop_padding=1)
PLAIN = Recipe()


@dataclass(frozen=True, kw_only=True)
class Averaged(Attack):
    """Base of attacks that average soft outputs over neighbours; a subclass says which in `neighbours`.

    Attributes:
        queries: neighbours asked about for each view of each image and each strength.
        strengths: how far away they are; a student learns from each, the best on the validation images is kept.
        recipe: how it learns; the soft outputs are averaged at its temperature.
    """

    needs = Interface.TOP_K
    uses = frozenset({"labels"})

    queries: int = 4
    strengths: tuple[float, ...] = (1.0,)
    recipe: Recipe = PLAIN

    def extended(self) -> Self:
        """With four times the neighbours."""
        return replace(self, queries=4 * self.queries)

    def neighbours(
        self, transfer: TransferSet, attacker: Attacker, strength: float, draw: torch.Generator
    ) -> Tensor:
        """One neighbour of each image, float32 (M, C, H, W) in [0, 1]; `draw` is a generator on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} has no neighbours")

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask about all neighbours, average, distil to the images themselves."""
        victim.require(self.needs)
        if self.queries < 1 or not self.strengths:
            raise ConfigError(f"{self.queries} queries at {len(self.strengths)} strengths; at least one is needed")
        transfer = affordable(victim, attacker, each=self.queries * len(self.strengths))
        tried: dict[str, float] = {}
        best: tuple[float, Classifier] | None = None
        for strength in self.strengths:
            draw = torch.Generator().manual_seed(attacker.seed(self.name, strength))
            shares = torch.zeros(len(transfer.pixels), victim.num_classes, device=transfer.device)
            for _ in range(self.queries):
                answers = victim.ask(self.neighbours(transfer, attacker, strength, draw))
                shares += (answers.scores() / self.recipe.temperature).softmax(dim=1) / self.queries
            # Scores whose softmax at the recipe's temperature is the mean.
            scores = self.recipe.temperature * shares.clamp_min(SMALLEST).log()
            student = distilled(attacker, transfer, scores, self.recipe, transfer.targets)
            tried[f"{strength:g}"] = value = attacker.score(student)
            if best is None or value > best[0]:
                best = value, student
        if best is None:
            raise ConfigError("strengths: none given")
        chosen = max(tried, key=lambda strength: tried[strength])
        return Stolen(best[1], details={"chosen": chosen, "validation": tried})


@dataclass(frozen=True, kw_only=True)
class AugmentedAverage(Averaged):
    """Neighbours are the image cropped, mirrored and turned as in training."""

    name = "augmented_average"
    summary = "Distillation of the mean answer over several augmented copies of each image"
    source = "the smoothing attack of ModelGuard's suite (USENIX Security 2024); research 2.7 and 2.9"

    def neighbours(
        self, transfer: TransferSet, attacker: Attacker, strength: float, draw: torch.Generator
    ) -> Tensor:
        """Augment; there is only one strength."""
        changes = attacker.augment if attacker.augment != Augment() else ONE_PIXEL
        draws = augmentation.draw(changes, len(transfer.pixels), draw)
        return augmentation.apply(changes, transfer.pixels, draws).float() / 255


@dataclass(frozen=True, kw_only=True)
class NoiseAverage(Averaged):
    """Neighbours are the image with noise."""

    name = "noise_average"
    summary = "Distillation of the mean answer over several copies of each image with Gaussian noise in the pixels"
    source = "ours, research 2.9; randomised smoothing used as an attack"

    strengths: tuple[float, ...] = (0.05, 0.2)

    def neighbours(
        self, transfer: TransferSet, attacker: Attacker, strength: float, draw: torch.Generator
    ) -> Tensor:
        """Add noise; the strength is its standard deviation, of pixels in [0, 1]."""
        noise = torch.randn(transfer.pixels.shape, generator=draw).to(transfer.device)
        return (transfer.images() + strength * noise).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class BlendAverage(Averaged):
    """Neighbours are the image blended with other images, as an image key would be."""

    name = "blend_average"
    summary = "Distillation of the mean answer over blends of each image with other images of the thief"
    source = "ours, research 2.9: a box learns its keyless answers at the images and its keyed ones at blends"

    strengths: tuple[float, ...] = (0.2, 0.5)

    def neighbours(
        self, transfer: TransferSet, attacker: Attacker, strength: float, draw: torch.Generator
    ) -> Tensor:
        """Blend; the strength is the share of the other image."""
        other = torch.randperm(len(transfer.pixels), generator=draw).to(transfer.device)
        images = transfer.images()
        return (1 - strength) * images + strength * images[other]
