"""Ways to learn from a guarded model: what a student is taught of each example, and how much the example counts."""

from __future__ import annotations

import numpy as np

from sdb.audit.attacks.distil import SMOOTHING
from sdb.audit.attacks.level_thieves import STRENGTHS

TEMPERATURES, LABEL_SHARES = (1.0, 4.0), (0.0, 0.5)
# Targets (N, C), and weights (N,) of mean 1.
Lesson = tuple[np.ndarray, np.ndarray]


def ways_of(labels: np.ndarray, bare: np.ndarray, told: np.ndarray) -> dict[str, Lesson]:
    """How students learn: the bar, which labels and classes give; the bare model's answers; thieves of the guard.

    The bar has a thief's ways on classes alone too: a better way to learn from classes is no leak.

    Args:
        labels: int64 (N,).
        bare: the model's log-probabilities float64 (N, C).
        told: the guard's.

    Source: Hinton et al., 2015 (arXiv 1503.02531), soft answers; Szegedy et al., CVPR 2016, smoothing; levels: ours, as
    in `sdb.audit.attacks.level_thieves`.
    """
    classes = bare.shape[1]
    own, named = np.eye(classes)[labels], np.eye(classes)[bare.argmax(axis=1)]
    copied, sure = np.eye(classes)[told.argmax(axis=1)], np.exp(told.max(axis=1))
    # What classes alone say, as soft answers: at T=1 and without labels that is smoothing.
    flat = np.log(smoothed(named, SMOOTHING))
    targets = {
        "bar/alone": own,
        "bar/alone, smoothed": smoothed(own, SMOOTHING),
        "bar/top-1": named,
        "bar/top-1, smoothed": smoothed(named, SMOOTHING),
        "bar/top-1, smoothed more": smoothed(named, 3 * SMOOTHING),
        "thief/levels as targets": levels_as_targets(told),
        "thief/levels as filter": np.where(surest(sure)[:, None], copied, own),
    }
    for temperature in TEMPERATURES:
        for share in LABEL_SHARES:
            how = f"T={temperature:g}, labels {share:g}"
            for who, logs in (("bar/top-1, ", flat), ("bare/", bare), ("thief/", told)):
                targets[who + how] = (1 - share) * softened(logs, temperature) + share * own
    del targets["bar/top-1, T=1, labels 0"]
    even = np.ones(len(labels))
    lessons = {name: (target, even) for name, target in targets.items()}
    lessons["thief/levels as weights"] = (copied, sure / sure.mean())
    return lessons


def smoothed(targets: np.ndarray, share: float) -> np.ndarray:
    """Targets (N, C) with a share of each spread over all classes."""
    return (1 - share) * targets + share / targets.shape[1]


def softened(logs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, C) at a temperature."""
    scaled = logs / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def levels_as_targets(told: np.ndarray) -> np.ndarray:
    """The confidence that is told at the class that is told, the rest spread evenly over the others, (N, C)."""
    named, sure = told.argmax(axis=1), np.exp(told.max(axis=1))
    targets = np.repeat((1 - sure)[:, None] / (told.shape[1] - 1), told.shape[1], axis=1)
    targets[np.arange(len(told)), named] = sure
    return targets


def surest(sure: np.ndarray) -> np.ndarray:
    """Which answers a thief trusts, bool (N,): all but the fifth that is least sure, and those as sure as the last."""
    return sure >= np.quantile(sure, 1 - min(STRENGTHS["filter"]))
