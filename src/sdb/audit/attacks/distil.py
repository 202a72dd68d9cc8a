"""Distillation as it is usually done, and tuned: the attacks every defence is held against first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, StudentLoss, TransferSet
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.victim import Answers, Interface, Victim
from sdb.data import Batch
from sdb.errors import ConfigError
from sdb.models import Classifier

# Of smoothed labels.
SMOOTHING = 0.1
LOSSES: dict[str, Callable[..., Tensor]] = {
    "kd": losses.kd_term,
    "dkd": partial(losses.dkd_term, target_weight=1.0, rest_weight=8.0),
    "dist": losses.dist_term,
    "standardised_kd": losses.standardised_kd_term,
    "mse": losses.centred_mse_term,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to distil.

    Attributes:
        loss: kd, dkd, dist, standardised_kd or mse.
        temperature: of the soft outputs; mse has none.
        soft_weight: of the distillation term.
        label_weight: of the cross-entropy with the attacker's labels, or the victim's where it has none.
    """

    loss: str = "kd"
    temperature: float = 4.0
    soft_weight: float = 0.9
    label_weight: float = 0.1

    def __str__(self) -> str:
        labels = f"+{self.label_weight:g} labels" if self.label_weight else ""
        temperature = "" if self.loss == "mse" else f" T={self.temperature:g}"
        return f"{self.soft_weight:g} {self.loss}{temperature}{labels}"


SHORT = (
    Recipe(temperature=1.0, soft_weight=0.5, label_weight=0.5),
    Recipe(temperature=20.0, soft_weight=0.5, label_weight=0.5),
    Recipe("dkd", 4.0, 1.0, 1.0),
    Recipe("standardised_kd", 2.0, 9.0, 1.0),
)
FULL = (
    *SHORT,
    *(Recipe("kd", temperature, 1 - share, share) for temperature in (1.0, 4.0, 20.0) for share in (0.1, 0.9)),
    Recipe("dist", 4.0, 2.0, 1.0),
    Recipe("mse", 1.0, 0.1, 1.0),
)


def soft_loss(scores: Tensor, recipe: Recipe, labels: Tensor) -> StudentLoss:
    """The loss of a student of soft outputs.

    Args:
        scores: (M, K), what stands in for the victim's logits for each image of the transfer set.
        recipe: loss, temperature, weights.
        labels: int64 (M,), what is taken for the right class.

    Raises:
        ConfigError: an unknown loss, or one that teaches nothing with so few classes.
    """
    if recipe.loss not in LOSSES:
        raise ConfigError(f"loss: {recipe.loss!r} is none of {', '.join(LOSSES)}")
    if why := losses.no_content(recipe.loss, scores.shape[1]):
        raise ConfigError(f"loss: {recipe.loss!r} teaches nothing here: {why}")
    term = LOSSES[recipe.loss]

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        right = labels[batch.index]
        soft = term(logits, scores[batch.index], right, temperature=recipe.temperature)
        result = {"distillation": recipe.soft_weight * soft}
        if recipe.label_weight:
            result["cross_entropy"] = recipe.label_weight * losses.cross_entropy(logits, right)
        return result

    return loss


def distilled(
    attacker: Attacker, transfer: TransferSet, scores: Tensor, recipe: Recipe, labels: Tensor
) -> Classifier:
    """A fresh student of soft outputs (M, K) for a transfer set of M images."""
    return attacker.learn(attacker.new_student(), transfer, soft_loss(scores, recipe, labels), same_each_step=True)


def labels_for(attack: Attack, transfer: TransferSet, answers: Answers) -> Tensor:
    """What stands for each image's class: the attacker's label where it has and uses one, else the victim's top-1."""
    named = answers.labels()
    return torch.where(transfer.targets >= 0, transfer.targets, named) if "labels" in attack.uses else named


@dataclass(frozen=True, kw_only=True)
class Labels(Attack):
    """Copy the victim's top-1 answers; no defence that keeps them can stop it."""

    name = "labels"
    needs = Interface.LABELS
    summary = "A student of the victim's top-1 answers on the thief's own images, without any labels"
    source = "Tramer et al., USENIX Security 2016; Orekondy et al., CVPR 2019 (argmax only)"

    smoothing: float = SMOOTHING

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, learn the answers with label smoothing."""
        transfer = affordable(victim, attacker)
        named = transfer.ask(victim).labels()
        loss: StudentLoss = lambda logits, batch: {  # noqa: E731
            "cross_entropy": losses.cross_entropy(logits, named[batch.index], self.smoothing)
        }
        return Stolen(attacker.learn(attacker.new_student(), transfer, loss, same_each_step=True))


@dataclass(frozen=True, kw_only=True)
class Distil(Attack):
    """Plain distillation, as the papers on undistillable teachers have it; or without labels, see `UNLABELLED`."""

    needs = Interface.TOP_K

    name: str = "distil"
    uses: frozenset[str] = frozenset({"labels"})
    summary: str = (
        "Plain distillation with the papers' settings: temperature 4, weight 0.9, the thief's labels 0.1"
    )
    source: str = "Hinton et al., 2015 (arXiv 1503.02531); settings: Ma et al., ICLR 2021"
    recipe: Recipe = Recipe()

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, distil."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        answers = transfer.ask(victim)
        labels = labels_for(self, transfer, answers)
        return Stolen(distilled(attacker, transfer, answers.scores(), self.recipe, labels))


UNLABELLED = Distil(
    name="distil_unlabelled",
    uses=frozenset(),
    summary="Pure distillation at temperature 4 of the victim's soft outputs, without any labels",
    source="Hinton et al., 2015 (arXiv 1503.02531), weight 1",
    recipe=Recipe(soft_weight=1.0, label_weight=0.0),
)


@dataclass(frozen=True, kw_only=True)
class TunedDistil(Attack):
    """Distillation whose loss, temperature and weights are chosen on the attacker's validation images."""

    name = "tuned_distil"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = "Distillation with the loss, temperature and weights that do best on the thief's validation images"
    source = "research protocol of the field's critics; losses: Zhao 2022 (DKD), Huang 2022 (DIST), Sun 2024"

    recipes: tuple[Recipe, ...] = SHORT

    def extended(self) -> TunedDistil:
        """With the long list of recipes."""
        return replace(self, recipes=FULL)

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask once for every view, train a student for each recipe that can teach something, keep the best."""
        victim.require(self.needs)
        without = {recipe: losses.no_content(recipe.loss, victim.num_classes) for recipe in self.recipes}
        left_out = {str(recipe): why for recipe, why in without.items() if why}
        transfer = affordable(victim, attacker)
        answers = transfer.ask(victim)
        scores, labels = answers.scores(), labels_for(self, transfer, answers)
        tried: dict[str, float] = {}
        best: tuple[float, Classifier] | None = None
        for recipe in (recipe for recipe, why in without.items() if not why):
            student = distilled(attacker, transfer, scores, recipe, labels)
            tried[str(recipe)] = value = attacker.score(student)
            if best is None or value > best[0]:
                best = value, student
        if best is None:
            raise ConfigError("recipes: none given, or none that teaches anything with so few classes")
        chosen = max(tried, key=lambda name: tried[name])
        details = {"chosen": chosen, "validation": tried}
        return Stolen(best[1], details=details | ({"left_out": left_out} if left_out else {}))
