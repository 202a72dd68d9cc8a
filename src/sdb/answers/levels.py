"""Levels of confidence: how a box that answers with fixed rows says, honestly, how sure it is.

From held-out images: where the edges between levels lie, and how often the network is right at each level. More levels
say more to everybody, also to a thief; what they say beyond the class is bounded in bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdb.answers.rows import Rows, as_mask, honest_logits
from sdb.errors import ConfigError, ModelError

# From fewer held-out images than this nothing is learned about levels.
FEWEST = 30
# Of the held-out images that a level holds.
SMALLEST = 10
# A class gets edges of its own from this many images that are given its name.
ENOUGH = 300
# What the regression, or the level over all classes, says counts as this many images.
PRIOR = 30
# The same for what a level says of its classes, by how much these differ.
STRENGTHS = (PRIOR, 3, 10, 100)
# By how much a further level must lower the Brier score, a share of it.
GAIN = 0.02
# A likelihood ratio that chance exceeds in 1 of 20 cases; confidences nearer 0 and 1 than this are taken to be there.
CLEAR, CLOSEST = 3.84, 1e-6
# Of the regression: a little pull to zero, and Newton steps of at most 1.
RIDGE, STEPS = 1e-2, 40
# Places at which edges may lie, by rank of confidence.
PLACES = 64
MOST_LEVELS = 8
FOLDS = 5
# No confidence is above this: the edge to a level that a class does not use.
NEVER = 2.0


@dataclass(frozen=True, slots=True)
class Level:
    """What held-out images show of a level, over all classes.

    Attributes:
        images: how many got an answer of this level.
        accuracy: share of them whose class is right, a fraction.
        low, high: its 95 % interval (Clopper-Pearson).
    """

    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Rows with what is known of them.

    Attributes:
        rows: what the box answers.
        levels: from the least sure to the surest.
        bits: what an answer says beyond its class, H(level | class) on the held-out images.
    """

    rows: Rows
    levels: tuple[Level, ...]
    bits: float


def fit(
    logits: Tensor, labels: Tensor, decoys: Sequence[Sequence[int]], *, levels: int, bits: float = math.inf
) -> Fitted:
    """Find the levels of a network that minimise the Brier score of the confidence that is told.

    How often an answer of some confidence is right is estimated by a logistic regression on that confidence; where the
    images do not show that it matters, and with fewer than `FEWEST` images, there is one level. A level's accuracy is
    what was seen, with the regression as `PRIOR` more images; so is a class's at a level, with the level's accuracy as
    more or fewer images, by how much the classes differ.

    Args:
        logits: the network's own, (N, C), on images that it has not learned from.
        labels: int64 (N,).
        decoys: of each class, see `sdb.answers.decoys`.
        levels: at most so many, from 1.
        bits: what an answer may say beyond its class.

    Raises:
        ConfigError: `levels` or `bits` is out of range.
        ModelError: a confidence is not finite.
    """
    sure, names = (each.cpu().numpy() for each in logits.float().softmax(dim=1).max(dim=1))
    found = find(sure, names, labels.cpu().numpy(), len(decoys), levels=levels, bits=bits)
    told, mask, first = torch.from_numpy(found.told), as_mask(decoys), torch.arange(len(decoys))
    rows = torch.stack([honest_logits(first, each, mask).float() for each in told.T], dim=1)
    return Fitted(Rows(rows, torch.from_numpy(found.edges)), found.levels, found.bits)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Levels of confidence for each class.

    Attributes:
        edges: float32 (C, L - 1), increasing along a class: the confidences above which its next level begins.
        told: float64 (C, L), the accuracy that is told.
        levels: from the least sure to the surest.
        bits: as in `Fitted`.
    """

    edges: np.ndarray
    told: np.ndarray
    levels: tuple[Level, ...]
    bits: float


def find(
    sure: np.ndarray,
    names: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    levels: int,
    bits: float = math.inf,
) -> Steps:
    """Find the levels of answers, see `fit`.

    Args:
        sure: confidences of a network, or of anything else that classifies (N,).
        names: the classes that it names, int64 (N,).
        labels: the right ones, int64 (N,).
        classes: how many there are.
        levels: at most so many, from 1.
        bits: what an answer may say beyond its class.

    Raises:
        ConfigError, ModelError: as `fit`.
    """
    if not 1 <= levels <= MOST_LEVELS:
        raise ConfigError(f"confidence_levels: {levels}; give 1 to {MOST_LEVELS}")
    if not bits > 0:
        raise ConfigError(f"confidence_bits: {bits}; give a number above 0")
    if not np.isfinite(sure).all():
        raise ModelError("confidences: the network's answers to held-out images are not finite; train it again")
    rights = (names == labels).astype(np.float64)
    guess = chances(sure, rights)
    edges = np.tile(_padded(edges_of(sure, guess, levels, bits), levels), (classes, 1))
    for label in np.flatnonzero(np.bincount(names, minlength=classes) >= ENOUGH):
        own = names == label
        guess[own] = chances(sure[own], rights[own])
        edges[label] = _padded(edges_of(sure[own], guess[own], levels, bits), levels)
    used = 1 + int((edges < NEVER).sum(axis=1).max())
    table = edges[:, : used - 1].astype(np.float32)
    placed = (sure[:, None] > table[names]).sum(axis=1)
    told = np.empty((classes, used))
    for level in range(used):
        here = placed == level
        common = _accuracy(here.sum(), rights[here].sum(), guess[here].mean() if here.any() else 0.5)
        count = np.bincount(names[here], minlength=classes)
        hits = np.bincount(names[here], rights[here], minlength=classes)
        told[:, level] = _accuracy(count, hits, common, _strength(count, hits, common))
    shown = tuple(_level(rights[placed == level]) for level in range(used))
    return Steps(table, told, shown, _conditional_entropy(names, placed))


def chances(sure: np.ndarray, rights: np.ndarray) -> np.ndarray:
    """The chance of each answer to be right: a logistic regression on the log-odds of its confidence.

    All have the same chance where the images do not show that surer answers are right more often (likelihood ratio).

    Source: Platt, 1999.
    """
    count, mean = len(rights), (rights.sum() + 1) / (len(rights) + 2)
    same = np.full(count, mean)
    clipped = sure.astype(np.float64).clip(CLOSEST, 1 - CLOSEST)
    odds = np.log(clipped / (1 - clipped))
    if count < FEWEST or odds.std() == 0:
        return same
    x = np.stack([(odds - odds.mean()) / odds.std(), np.ones(count)], axis=1)
    weights = np.array([0.0, math.log(mean / (1 - mean))])
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (rights - p) - RIDGE * weights
        bend = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(2)
        step = np.linalg.solve(bend, slope)
        weights = weights + step * min(1.0, 1 / max(np.abs(step).max(), 1e-12))
    p = 1 / (1 + np.exp(-x @ weights))
    gain = 2 * (_likelihood(p, rights) - _likelihood(same, rights))
    return p if weights[0] > 0 and gain > CLEAR else same


def _likelihood(p: np.ndarray, rights: np.ndarray) -> float:
    p = p.clip(1e-12, 1 - 1e-12)
    return float((rights * np.log(p) + (1 - rights) * np.log1p(-p)).sum())


def edges_of(sure: np.ndarray, guess: np.ndarray, levels: int, bits: float) -> np.ndarray:
    """The edges between levels that minimise the expected Brier score, with at most `bits` of entropy.

    Args:
        sure: confidences (N,).
        guess: the chance of each to be right, see `chances`.
        levels: at most so many; a further one must take `GAIN` off the score.
        bits: of entropy at most.
    """
    order, count = np.argsort(sure, kind="stable"), len(sure)
    sure, guess = sure[order], guess[order]
    if count < 2 * SMALLEST or guess.min() == guess.max():
        return np.empty(0)
    wanted = np.unique(np.linspace(SMALLEST, count - SMALLEST, PLACES).round().astype(int))
    ends = np.array([0, *(cut for cut in wanted if sure[cut - 1] < sure[cut]), count])
    size, total = np.subtract.outer(ends, ends).T, np.concatenate([[0.0], guess.cumsum()])[ends]
    hits = np.subtract.outer(total, total).T
    with np.errstate(divide="ignore", invalid="ignore"):
        brier = np.where(size >= SMALLEST, hits * (1 - hits / size), np.inf) / count
        entropy = np.where(size > 0, -size / count * np.log2(size / count), 0.0)
    low, high = 0.0, 1.0  # a price of entropy, raised until the bound is kept
    path = _cheapest(brier, levels)
    if _told(ends[path]) > bits:
        for _ in range(40):
            price = (low + high) / 2
            kept = _told(ends[_cheapest(brier + price * entropy, levels)]) <= bits
            low, high = (low, price) if kept else (price, high)
        path = _cheapest(brier + high * entropy, levels)
    return np.array([(sure[end - 1].astype(np.float64) + sure[end]) / 2 for end in ends[path][1:-1]])


def _cheapest(cost: np.ndarray, levels: int) -> list[int]:
    """The path from the first to the last place in at most `levels` steps whose sum of costs is least."""
    total, backs, found = cost[0].copy(), [], (cost[0, -1], 1)
    for number in range(2, levels + 1):
        through = total[:, None] + cost
        backs.append(through.argmin(axis=0))
        total = through.min(axis=0)
        if total[-1] < (1 - GAIN) * found[0]:
            found = total[-1], number
    path = [len(cost) - 1]
    for back in reversed(backs[: found[1] - 1]):
        path.append(int(back[path[-1]]))
    return [0, *reversed(path)]


def _told(ends: np.ndarray) -> float:
    shares = np.diff(ends) / ends[-1]
    return float(-(shares * np.log2(shares)).sum())


def _padded(edges: np.ndarray, levels: int) -> np.ndarray:
    """`levels - 1` edges: those that there are, and ones that no confidence is above."""
    return np.concatenate([edges, NEVER + np.arange(levels - 1 - len(edges))])


def _accuracy(count: Any, hits: Any, prior: float, strength: int = PRIOR) -> Any:
    return (hits + strength * prior) / (count + strength)


def _strength(count: np.ndarray, hits: np.ndarray, prior: float) -> int:
    """As how many images a level's accuracy counts for its classes: the likeliest, the less the more they differ.

    `PRIOR` of them where the images do not show it (likelihood ratio): with ten images the likeliest is luck.

    Source: the beta-binomial likelihood of empirical Bayes; Skellam, Journal of the Royal Statistical Society B (1948).
    """

    def likelihood(strength: int) -> float:
        right, wrong = strength * prior, strength * (1 - prior)
        seen = sum(
            math.lgamma(h + right) + math.lgamma(n - h + wrong) - math.lgamma(n + strength)
            for n, h in zip(count.tolist(), hits.tolist(), strict=True)
            if n
        )
        classes = int(np.count_nonzero(count))
        return seen + classes * (math.lgamma(strength) - math.lgamma(right) - math.lgamma(wrong))

    best = max(STRENGTHS, key=likelihood)
    return best if 2 * (likelihood(best) - likelihood(PRIOR)) > CLEAR else PRIOR


def _level(rights: np.ndarray) -> Level:
    images, hits = len(rights), int(rights.sum())
    low, high = clopper_pearson(hits, images)
    return Level(images, hits / images if images else 0.0, low, high)


def _conditional_entropy(names: np.ndarray, placed: np.ndarray) -> float:
    """H(level | class) in bits."""
    total = 0.0
    for name in np.unique(names):
        counts = np.bincount(placed[names == name])
        shares = counts[counts > 0] / counts.sum()
        total -= counts.sum() / len(names) * float((shares * np.log2(shares)).sum())
    return max(0.0, total)


def clopper_pearson(hits: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share of which `hits` of `images` were seen; (0, 1) for none.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if not images:
        return 0.0, 1.0
    counts = np.arange(images + 1)
    ways = np.array([math.lgamma(each + 1) for each in counts])
    ways = ways[-1] - ways - ways[::-1]

    def chances(share: float) -> np.ndarray:
        return np.exp(ways + counts * math.log(share) + (images - counts) * math.log1p(-share))

    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _first(lambda share: chances(share)[hits:].sum() >= tail)
    high = 1.0 if hits == images else _first(lambda share: chances(share)[: hits + 1].sum() < tail)
    return low, high


def _first(found: Callable[[float], bool]) -> float:
    """The smallest share for which something holds that holds for all larger ones."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high


def cross_fitted(
    logits: Tensor, labels: Tensor, decoys: Sequence[Sequence[int]], *, levels: int, bits: float = math.inf
) -> Tensor:
    """Answers (N, C) from rows that were fitted without the image itself: what new images can expect.

    Args:
        logits: as in `fit`, like all others.
        labels: int64 (N,).
        decoys: of each class.
        levels: at most so many.
        bits: what an answer may say beyond its class.
    """
    answers = torch.empty_like(logits)
    for fold in range(FOLDS):
        own = torch.arange(len(logits)) % FOLDS == fold
        rows = fit(logits[~own], labels[~own], decoys, levels=levels, bits=bits).rows
        answers[own] = rows(logits[own])
    return answers
