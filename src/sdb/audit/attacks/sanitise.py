"""Soft outputs cleaned of what a defence may have put into them, then distilled.

A defence that keeps the top-1 answer can only lie about the others. Each of these throws away, in another way, what it
may have lied about.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import Recipe, distilled, labels_for
from sdb.audit.attacks.victim import SMALLEST, Interface, InterfaceError, Victim
from sdb.data import Batch
from sdb.errors import ConfigError

PLAIN = Recipe()
# The published code multiplies the soft term by its weight twice.
AVERAGERS = Recipe(soft_weight=0.81, label_weight=0.1)


def top_k_kept(scores: Tensor, k: int) -> Tensor:
    """Log-probabilities (N, K) in which the k likeliest classes keep theirs and the others share what is left."""
    shares = scores.softmax(dim=1)
    best = shares.topk(min(k, shares.shape[1]), dim=1)
    rest = shares.scatter(1, best.indices, 0.0).sum(dim=1, keepdim=True) / max(shares.shape[1] - k, 1)
    return rest.expand_as(shares).scatter(1, best.indices, best.values).clamp_min(SMALLEST).log()


def clipped(scores: Tensor, margin: float) -> Tensor:
    """Scores (N, K) in which none lies more than `margin` below the highest of its image."""
    return scores.maximum(scores.amax(dim=1, keepdim=True) - margin)


def peaks_removed(scores: Tensor, count: int) -> Tensor:
    """Scores (N, K) in which the `count` classes after the first get the mean of those that come after them."""
    ranked = scores.argsort(dim=1, descending=True)
    peaks, others = ranked[:, 1 : 1 + count], ranked[:, 1 + count :]
    floor = scores.gather(1, others).mean(dim=1, keepdim=True)
    return scores.scatter(1, peaks, floor.expand_as(peaks))


def class_means(scores: Tensor, classes: Tensor) -> Tensor:
    """For each row of scores (N, K) the mean over all rows of its class; classes int64 (N,)."""
    count = int(classes.max()) + 1
    sums = scores.new_zeros(count, scores.shape[1]).index_add_(0, classes, scores)
    return (sums / torch.bincount(classes, minlength=count).clamp_min(1).unsqueeze(1))[classes]


@dataclass(frozen=True, kw_only=True)
class Sanitised(Attack):
    """Base of attacks that change the victim's scores and then distil; a subclass says how in `cleaned`."""

    needs = Interface.TOP_K
    uses = frozenset({"labels"})

    recipe: Recipe = PLAIN

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Scores (N, K) to better ones; labels int64 (N,) stand for the right classes."""
        raise NotImplementedError(f"{type(self).__name__} cleans nothing")

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, clean, distil."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        answers = transfer.ask(victim)
        labels = labels_for(self, transfer, answers)
        return Stolen(distilled(attacker, transfer, self.cleaned(answers.scores(), labels), self.recipe, labels))


@dataclass(frozen=True, kw_only=True)
class TopKOnly(Sanitised):
    """Keep the likeliest classes only."""

    name = "top_k_only"
    summary = "Distillation of the k likeliest classes; the others share what is left"
    source = "what a top-k service would give; the sweep of research/defences-and-attacks.md, 2.2"

    k: int = 2

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Keep k."""
        if self.k < 1:
            raise ConfigError(f"k: {self.k}; at least one class is kept")
        return top_k_kept(scores, self.k)


@dataclass(frozen=True, kw_only=True)
class Clip(Sanitised):
    """Raise what lies far below the top."""

    name = "clip"
    summary = "Distillation of logits of which none lies further than a margin below the highest"
    source = "research/defences-and-attacks.md, 2.2 (logit clipping)"

    margin: float = 6.0

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Clip."""
        return clipped(scores, self.margin)


@dataclass(frozen=True, kw_only=True)
class SecondPeakRemoved(Sanitised):
    """Take away the peaks that a defence puts beside the right class."""

    name = "second_peak_removed"
    summary = "Distillation after the class beside the likeliest is brought down to the level of the others"
    source = "research/defences-and-attacks.md, 2.2; against the wrong peak that Nasty Teacher's students show"

    peaks: int = 1

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Remove."""
        if not 1 <= self.peaks <= scores.shape[1] - 2:
            raise InterfaceError(
                f"peaks: {self.peaks}; of {scores.shape[1]} classes 1 to {scores.shape[1] - 2} can go"
            )
        return peaks_removed(scores, self.peaks)


@dataclass(frozen=True, kw_only=True)
class TargetAgainstRest(Attack):
    """Learn how sure the victim is, nothing of what else it considers."""

    name = "target_against_rest"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = (
        "Distillation of the right class against all others together; what lies among the others is not looked at"
    )
    source = "the target term of Zhao et al., CVPR 2022 (arXiv 2203.08679), eq. 7, alone"

    temperature: float = 4.0
    target_weight: float = 1.0
    label_weight: float = 1.0

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask for every view, learn the target term and the labels."""
        victim.require(self.needs)
        transfer = affordable(victim, attacker)
        scores = transfer.ask(victim).scores()

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            target = losses.dkd_term(
                logits,
                scores[batch.index],
                batch.labels,
                temperature=self.temperature,
                target_weight=self.target_weight,
                rest_weight=0.0,
            )
            return {"target": target, "labels": self.label_weight * losses.cross_entropy(logits, batch.labels)}

        return Stolen(attacker.learn(attacker.new_student(), transfer, loss))


@dataclass(frozen=True, kw_only=True)
class Averager(Sanitised):
    """Replace each answer by the mean over all images with the same label; `UNLABELLED_AVERAGER`: top-1 answer."""

    name: str = "averager"
    uses: frozenset[str] = frozenset({"labels"})
    summary: str = "Distillation of each class's mean answer, by the thief's labels"
    source: str = (
        "Averager Student, ICLR 2023 Tiny Papers (rkevser/AveragerStudent); means over the whole set, not a batch"
    )
    recipe: Recipe = AVERAGERS

    def cleaned(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Average by label."""
        return class_means(scores, labels)


UNLABELLED_AVERAGER = Averager(
    name="averager_unlabelled",
    uses=frozenset(),
    summary="Distillation of the mean answer of each class that the victim names, without any labels",
    source="as averager; the grouping by the victim's own top-1 is ours",
)
