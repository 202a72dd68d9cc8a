"""What there is to steal, and what is stolen: students in one regime, trained in pairs.

A regime is how many labelled images a thief has, and how many more without labels. A pair is one draw of them with one
student seed, and a student for each way to learn: without a victim or from its top-1 answers (together the bar), from
the unprotected teacher's soft answers (what is at stake), from a box's answers in ways that a thief may try, with the
key. Ways are compared pair by pair, so the luck of draw and seed cancels. Among equal ways the best of many is chosen
on the thief's own validation images; test images only measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.distil import SMOOTHING, Labels, Recipe, distilled
from sdb.audit.attacks.level_thieves import BY_FILTER, BY_TARGETS, LevelThief
from sdb.audit.attacks.victim import Interface, Victim
from sdb.config import FitSettings
from sdb.data import Batch, Splits
from sdb.errors import ConfigError
from sdb.models import Classifier
from sdb.report.pairs import Scores
from sdb.runtime import derive_seed
from sdb.training.evaluation import evaluate, evaluation_batches

# Of a thief's labelled images those that it keeps to choose its settings.
VALIDATION_SHARE = 0.2
FEW_PER_CLASS = 15
# Distillation as papers do it.
USUAL = "soft answers, T=4, with labels"
# A way to learn: a student of the attacker's.
Way = Callable[[Attacker], nn.Module]


@dataclass(frozen=True, slots=True)
class Regime:
    """What a thief has.

    Attributes:
        labelled: images with labels; a fifth of them, at least one per class, is for choosing settings.
        unlabelled: further images that it can only ask about.
    """

    labelled: int
    unlabelled: int = 0

    def held(self, classes: int) -> int:
        """How many of the labelled images are for choosing settings."""
        return max(classes, round(VALIDATION_SHARE * self.labelled))

    def learners(self, classes: int) -> int:
        """From how many images a student learns."""
        return self.labelled + self.unlabelled - self.held(classes)


def few_images(data: Splits) -> Regime:
    """The regime of a thief with few images, fifteen per class: soft answers are worth most there."""
    return Regime(min(FEW_PER_CLASS * data.num_classes, len(data.train)))


def attacker_of(
    data: Splits, regime: Regime, new_student: Callable[[object], Classifier], settings: FitSettings, pair: int
) -> Attacker:
    """A thief of a regime; images, student and order are the pair's own.

    Args:
        data: whose training images it draws from.
        regime: how many.
        new_student: a fresh student for a purpose, the same weights for the same one.
        settings: how students are trained.
        pair: number of the pair.

    Raises:
        ConfigError: there are not so many images, or too few for one of each class to learn from and one to choose by.
    """
    images, classes = data.train, data.num_classes
    wanted = regime.labelled + regime.unlabelled
    if wanted > len(images):
        raise ConfigError(
            f"labelled and unlabelled: {regime.labelled} and {regime.unlabelled}; there are {len(images)} training "
            "images: ask for fewer"
        )
    held = regime.held(classes)
    if regime.labelled < 2 * classes:
        raise ConfigError(f"labelled: {regime.labelled}; at least {2 * classes} are needed for {classes} classes")
    rng = np.random.default_rng(derive_seed(settings.seed, "pair", pair))
    order = rng.permutation(len(images))
    # One image of each class first: nobody steals a class of which he has never seen an example.
    labels = images.labels[order]
    first = np.array([np.flatnonzero(labels == c)[0] for c in range(classes) if (labels == c).any()])
    order = np.concatenate([order[first], np.delete(order, first)])
    train, validation, more = np.split(order[:wanted], [regime.labelled - held, regime.labelled])
    seeded = settings.model_copy(update={"seed": derive_seed(settings.seed, "student", pair)})
    return Attacker(
        train=images.take(train),
        validation=images.take(validation),
        proxy=images.take(train[:1]),
        augment=data.augment,
        new_student=lambda purpose="student": new_student((purpose, pair)),
        new_network=lambda purpose="network": new_student((purpose, pair)),
        settings=seeded,
        unlabelled=np.asarray(images.take(more).images) if len(more) else None,
    )


def alone(attacker: Attacker, smoothing: float = 0.0, network: Classifier | None = None) -> Classifier:
    """A student, or another network, of the thief's labels."""

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": losses.cross_entropy(logits, batch.labels, smoothing)}

    return attacker.learn(
        network or attacker.new_student(), attacker.transfer(attacker.train), loss, same_each_step=True
    )


def self_trained(attacker: Attacker) -> Classifier:
    """A student of the labels, and of the guesses of a first such student about the images without labels.

    Source: Lee, ICML workshop 2013 (pseudo-labels).
    """
    first = alone(attacker, SMOOTHING)
    transfer = attacker.transfer()
    with torch.no_grad():
        guesses = first(transfer.images()).argmax(dim=1)
    targets = torch.where(transfer.targets >= 0, transfer.targets, guesses)

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": losses.cross_entropy(logits, targets[batch.index], SMOOTHING)}

    return attacker.learn(attacker.new_student("second"), transfer, loss, same_each_step=True)


def victim_of(module: nn.Module, attacker: Attacker) -> Victim:
    """A module that answers with logits, without limit."""
    student = attacker.new_student()
    return Victim(module, Interface.LOGITS, num_classes=student.num_classes, image_shape=student.image_shape)


def bar_ways(victim: nn.Module, regime: Regime) -> dict[str, Way]:
    """What makes a student without any soft answer: the bar is the best of them."""
    ways: dict[str, Way] = {
        "alone": alone,
        "label smoothing": lambda attacker: alone(attacker, SMOOTHING),
        "top-1 answers": lambda attacker: Labels(smoothing=0.0).run(victim_of(victim, attacker), attacker).student,
        "top-1 answers, smoothed": lambda attacker: Labels().run(victim_of(victim, attacker), attacker).student,
    }
    return ways | ({"self-training": self_trained} if regime.unlabelled else {})


def soft_ways(module: nn.Module) -> dict[str, Way]:
    """Distillation of a module's soft answers: softened, as papers do it, and as they are."""

    def way(recipe: Recipe) -> Way:
        def student(attacker: Attacker) -> nn.Module:
            transfer = attacker.transfer()
            answers = transfer.ask(victim_of(module, attacker))
            labels = torch.where(transfer.targets >= 0, transfer.targets, answers.labels())
            return distilled(attacker, transfer, answers.scores(), recipe, labels)

        return student

    return {
        USUAL: way(Recipe()),
        "soft answers, T=1, with labels": way(Recipe(temperature=1.0, soft_weight=0.5, label_weight=0.5)),
    }


def thief_ways(module: nn.Module, regime: Regime) -> dict[str, Way]:
    """What a thief of a box may try: plain distillation, and the ways that use its levels of confidence.

    Who has a label for each image needs no level to know which answers to trust: only its doubt is left to learn.
    """

    def way(thief: LevelThief) -> Way:
        return lambda attacker: thief.run(victim_of(module, attacker), attacker).student

    levels = (LevelThief(), BY_FILTER, BY_TARGETS) if regime.unlabelled else (BY_TARGETS,)
    return soft_ways(module) | {f"levels as {thief.use}": way(thief) for thief in levels}


def measure(
    ways: Mapping[str, Way],
    data: Splits,
    attackers: Sequence[Attacker],
    on_pair: Callable[[int], None] = lambda done: None,
) -> dict[str, Scores]:
    """Train and score a student for each way and pair; the same pair's students begin alike and see the same images."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number, attacker in enumerate(attackers):
        test = evaluation_batches(data.test, attacker.device)
        for name, way in ways.items():
            student = way(attacker)
            found[name].append((evaluate(student, test)["accuracy"], attacker.score(student)))
        on_pair(number + 1)
    return {
        name: Scores(tuple(test for test, _ in pairs), tuple(own for _, own in pairs))
        for name, pairs in found.items()
    }
