"""What thieves make of the answers that their accounts were told: which images they learn, and by which labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sdb.answers.levels import fit as fit_levels
from sdb.answers.ties import log_probabilities
from sdb.audit.marks.mark_seed import MarkSeed, answered, logits_of, sure_of
from sdb.audit.marks.thieves import Thief
from sdb.models import Classifier

# Trains a thief's network on some of its images, int64 (M,), by labels (M,); kept under a name.
Learn = Callable[[np.ndarray, np.ndarray, str], Classifier]
# Of the detector's weights: how strongly they are held near 0, and steps of Newton's method.
RIDGE, NEWTON = 1.0, 25


def lesson(
    seed: MarkSeed,
    thief: Thief,
    images: np.ndarray,
    told: list[np.ndarray],
    logits: np.ndarray,
    rng: np.random.Generator,
    learn: Learn,
) -> tuple[np.ndarray, np.ndarray]:
    """Which of its images a thief learns, int64 (M,), and by which labels, int64 (M,).

    Args:
        seed: what it stands on.
        thief: what it does.
        images: that it asked about, uint8 (N, C, H, W).
        told: what each account was told, int64 (N,) each; accounts after the first may have asked about fewer.
        logits: the model's own, which a thief does not see, (N, C); for the level of confidence that goes with a label.
        rng: the thief's own.
        learn: trains a network for the thief's own use.
    """
    everything, labels, what = np.arange(len(images)), told[0].copy(), thief.labels
    if what == "half its own":
        mine = rng.random(len(labels)) < 0.5
        labels[mine] = np.asarray(seed.pool.labels)[: len(images)][mine]
    elif what.startswith("drops ") and what[6:].isdecimal():
        _, sure = sure_of(learn(everything, labels, "first"), images)
        everything = surest(sure, int(what[6:]) / 100)
    elif what == "drops the lowest level":
        everything = np.flatnonzero(levels_of(seed, logits) > 0)
    elif what == "one at random":
        labels = np.where(rng.random(len(labels)) < 0.5, told[0], told[1])
    elif what == "majority":
        labels = majority(told, logits.shape[1])
    elif what in ("drops disagreements", "relabels disagreements"):
        agreed = told[0] == told[1]
        everything = np.flatnonzero(agreed)
        if what.startswith("relabels"):
            named, _ = sure_of(learn(everything, labels[agreed], "first"), images)
            labels, everything = np.where(agreed, labels, named), np.arange(len(images))
    elif what.startswith("estimates "):
        labels = without_ties(images, labels, told[1], learn, int(what[10:]) / 100)
    return everything, labels[everything]


def surest(sure: np.ndarray, share: float) -> np.ndarray:
    """All but a share of the least sure, int64 (M,), from confidences (N,)."""
    return np.flatnonzero(sure >= np.quantile(sure, share))


def majority(told: list[np.ndarray], classes: int) -> np.ndarray:
    """The commonest of several answers int64 (N,); of equally common ones the smallest class."""
    counts = sum(np.eye(classes, dtype=int)[each] for each in told)
    return np.asarray(counts).argmax(axis=1)


def levels_of(seed: MarkSeed, logits: np.ndarray) -> np.ndarray:
    """The levels int64 (N,) of a box that answers with two of them, edges from validation images."""
    held, labels = answered(seed.model, seed.own.validation)
    classes = logits.shape[1]
    decoys = [[(label + 1) % classes, (label + 2) % classes] for label in range(classes)]
    rows = fit_levels(torch.from_numpy(held), torch.from_numpy(labels), decoys, levels=2).rows
    return rows.level(torch.from_numpy(logits))[1].numpy()


def without_ties(
    images: np.ndarray, labels: np.ndarray, others: np.ndarray, learn: Learn, recall: float
) -> np.ndarray:
    """An account's labels int64 (N,), with those of likely ties replaced by the thief's own guess.

    Where two accounts differ is a tie, and half of the ties are found so. What sets these images apart for the thief's
    own networks (trained on other images) is learned and looked for in all images; the likely ties are then named by a
    network that has learned from none of them.

    Args:
        images: uint8 (N, C, H, W).
        labels: what the first account was told, int64 (N,).
        others: what the second was told about the first M of them, int64 (M,).
        learn: see `Learn`.
        recall: share of the answers that differ which the detector must find; about as many of all ties it finds.

    Source: ours; the thief that is told of ties and cells, and lacks only the coins.
    """
    differ = labels[: len(others)] != others
    if not differ.any():
        return labels
    agreed = np.ones(len(labels), bool)
    agreed[: len(others)] = ~differ
    fold, clues = np.arange(len(labels)) % 2, np.empty((len(labels), 0))
    for part in (0, 1):
        which = np.flatnonzero(agreed & (fold != part))
        network = learn(which, labels[which], f"fold-{part}")
        found = clues_of(logits_of(network, images[fold == part]))
        clues = np.empty((len(labels), found.shape[1])) if not clues.shape[1] else clues
        clues[fold == part] = found
    scores = detector(clues[: len(others)], differ, clues)
    likely = scores >= np.quantile(scores[: len(others)][differ], 1 - recall)
    likely[: len(others)] |= differ
    which = np.flatnonzero(~likely)
    named, _ = sure_of(learn(which, labels[which], "first"), images)
    return np.where(likely, named, labels)


def clues_of(logits: np.ndarray) -> np.ndarray:
    """What may tell a tie, float64 (N, 3 or less): how far the second, third and fourth class are behind the first."""
    logs = -np.sort(-log_probabilities(logits), axis=1)[:, :4]
    return logs[:, :1] - logs[:, 1:]


def detector(clues: np.ndarray, ties: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Scores float64 (N,), higher where a tie is likelier: logistic regression on standardised clues.

    Args:
        clues: of images for which it is known, (M, K).
        ties: whether they are ties, bool (M,).
        asked: clues of the images that are asked about, (N, K).
    """
    mean, spread = clues.mean(axis=0), clues.std(axis=0) + 1e-9

    def columns(values: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(values)), (values - mean) / spread])

    known, weights = columns(clues), np.zeros(clues.shape[1] + 1)
    for _ in range(NEWTON):
        chance = 1 / (1 + np.exp(-np.clip(known @ weights, -30, 30)))
        slope = known.T @ (chance - ties) + RIDGE * weights
        bend = (known * (chance * (1 - chance))[:, None]).T @ known + RIDGE * np.eye(len(weights))
        weights = weights - np.linalg.solve(bend, slope)
    return columns(asked) @ weights
