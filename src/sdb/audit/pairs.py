"""Pairs of an audit: the best of the grid's attacks, measured on fresh students against the bar, the teacher, the key.

The best of many equal attacks looks better than it is. So the grid, and a few more draws of images for those that do
well in it, only choose, on the thieves' validation images; then pairs measure: in each, other images and other
students, the same for every way to learn. Beside each attack on the box stands the same attack on nothing but the box's
classes: what that reaches is what top-1 gives to a better learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.distil import SMOOTHING
from sdb.audit.attacks.victim import Interface, InterfaceError, QueryBudgetError
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.defences.defence import Defence
from sdb.audit.regime import Way, bar_ways, soft_ways
from sdb.errors import ConfigError, ModelError, TrainingError
from sdb.report.audit_pairs import errors_of
from sdb.report.pairs import Scores
from sdb.runtime import derive_seed
from sdb.training.evaluation import evaluate, evaluation_batches

# Draws of images on which attacks are compared beside the grid's; those this far behind in the grid are left out.
DRAWS, NEAR_BEST = 2, 0.1
# Pairs are made so many at a time; then it is asked whether there are enough.
BATCH = 12
# Attacks with boxes of their own, or with images that they make up, take ten to a hundred times as long as others:
# short audits leave them to the grid.
COSTLY = frozenset({"shadow", "no_images"})
# Enough: each difference is known to this standard error, a fraction.
ENOUGH = 0.0025


def students_of_pair(
    audit_seed: AuditSeed, pair: int, target: str, attacks: Mapping[str, Attack], defences: dict[str, Defence]
) -> dict[str, Any]:
    """One pair's students: [test accuracy, validation accuracy] by way; or why an attack has none.

    Args:
        audit_seed: of the first seed.
        pair: its number, from 1.
        target: the defence that the audit is about.
        attacks: those that are measured, by name.
        defences: of the audit.
    """
    attacker, defended = audit_seed.means(pair), audit_seed.defended(target, defences)
    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    groups = {
        "bar": bar_ways(defended.keyless, audit_seed.regime),
        "bare": soft_ways(audit_seed.teacher),
        "partner": {} if defended.keyed is None else soft_ways(defended.keyed),
    }
    ways: dict[str, Way] = {
        f"{group}/{name}": way for group, found in groups.items() for name, way in found.items()
    }
    result: dict[str, Any] = {}
    for name, way in ways.items():
        student = way(attacker)
        result[name] = [evaluate(student, test)["accuracy"], attacker.score(student)]
    top1 = replace(defended, keyless=OnlyTop1(defended.keyless, audit_seed.data.num_classes))
    for name, attack in attacks.items():
        means = audit_seed.attacker(target, defences, attack, pair)
        # Who has the files learns from more than answers.
        victims = {"attack": defended} | ({} if attack.needs is Interface.WEIGHTS else {"top1": top1})
        for group, victim in victims.items():
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(derive_seed(audit_seed.seed, "pair", pair, name))
                    student = attack.run(audit_seed.victim(victim, attack), means).student.eval()
            except (InterfaceError, QueryBudgetError, ModelError, ConfigError, TrainingError) as error:
                result[f"{group}/{name}"] = str(error)
                continue
            result[f"{group}/{name}"] = [evaluate(student, test)["accuracy"], attacker.score(student)]
    return {"ways": result}


class OnlyTop1(nn.Module):
    """A victim that tells its classes and nothing else: one smoothed row per class, the same for everybody."""

    def __init__(self, module: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.module, self.num_classes = module, num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, C)."""
        named = one_hot(self.module(images).argmax(dim=1), self.num_classes).float()
        return ((1 - SMOOTHING) * named + SMOOTHING / self.num_classes).log()


def screened(
    audit_seed: AuditSeed, draw: int, target: str, attack: Attack, defences: dict[str, Defence]
) -> dict[str, Any]:
    """How good an attack's student is on validation images of another draw; None where the attack has none."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(audit_seed.seed, "screen", draw, attack.name))
            means = audit_seed.attacker(target, defences, attack, -draw)
            victim = audit_seed.victim(audit_seed.defended(target, defences), attack)
            return {"validation": means.score(attack.run(victim, means).student.eval())}
    except (InterfaceError, QueryBudgetError, ModelError, ConfigError, TrainingError):
        return {"validation": None}


def together(pairs: list[dict[str, Any]]) -> dict[str, Scores]:
    """The scores by way, of those that every pair has."""
    ways = [name for name in pairs[0]["ways"] if all(isinstance(pair["ways"][name], list) for pair in pairs)]
    return {name: Scores(*zip(*(tuple(pair["ways"][name]) for pair in pairs), strict=True)) for name in ways}


def enough(pairs: list[dict[str, Any]]) -> bool:
    """Whether every difference that the verdict needs is known well."""
    return len(pairs) >= BATCH and max(errors_of(together(pairs))) <= ENOUGH


def good(cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """Attacks that may be the best, with their validation accuracies: not far below the best of the grid.

    Args:
        cells: of the audited box by attack, one per seed.
    """
    done = {
        name: [each["validation"] for each in found]
        for name, found in cells.items()
        if all(each["status"] == "done" for each in found)
    }
    means = {name: fmean(found) for name, found in done.items()}
    return {name: found for name, found in done.items() if means[name] >= max(means.values()) - NEAR_BEST}


def strongest(validation: Mapping[str, list[float | None]], count: int) -> list[str]:
    """The attacks to measure, the best on validation images first; of equal ones the first."""
    means = {name: fmean(each for each in found if each is not None) for name, found in validation.items()}
    return sorted(means, key=lambda name: -round(means[name], 12))[:count]
