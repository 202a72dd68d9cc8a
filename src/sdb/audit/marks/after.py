"""What thieves do with a trained network to lose a mark: distil it again, tune, prune, round, move its boundaries."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sdb.answers.ties import log_probabilities
from sdb.audit.marks.mark_seed import MarkSeed, labelled, logits_of, sure_of
from sdb.audit.marks.service import changed
from sdb.audit.marks.thieves import CROPS, Thief
from sdb.models import Classifier
from sdb.runtime import derive_seed
from sdb.training.loop import train

TUNED = 1000  # true labels that a thief has, who tunes with them
# WRK: share of the images that are moved, by how much of the range of pixels, for one target class at a time.
MOVED, PUSH, TOGETHER = 0.2, 0.15, 128
# Of a smoothed consensus: copies, and standard deviation of their noise, of 255.
COPIES, BLUR = 8, 12


def after(seed: MarkSeed, row: str, thief: Thief, student: Classifier, images: np.ndarray) -> Classifier:
    """What a thief's network becomes; the one that was given is not changed.

    Args:
        seed: what the thief stands on.
        row: its name.
        thief: what it does.
        student: its trained network.
        images: that it asked about, uint8 (N, C, H, W).
    """
    if thief.after.startswith("again"):
        seen = np.asarray(seed.pool.images[-len(images) :]) if thief.after.endswith("others") else images
        data = labelled(seen, sure_of(student, seen)[0], seed.own)
        return seed.trained(f"{row}-again", thief.network, data, seed.settings(seed.epochs))
    student = copy.deepcopy(student)
    if thief.after == "tuned":
        few = labelled(np.asarray(seed.pool.images[-TUNED:]), seed.pool.labels[-TUNED:], seed.own)
        train(student, few, seed.settings(10, learning_rate=0.001), progress=False)
    elif thief.after.startswith("boundaries"):
        _, _, how = thief.after.partition(", ")
        move_boundaries(seed, row, student, images, how)
    elif thief.after == "pruned":
        prune(student)
    elif thief.after == "quantised":
        quantise(student)
    return student.cpu().eval()


@torch.no_grad()
def prune(network: nn.Module) -> None:
    """Set the smaller half of each layer's weights to 0, in place; biases and norms stay."""
    for weights in (each for each in network.parameters() if each.dim() > 1):
        weights[weights.abs() < weights.abs().median()] = 0


@torch.no_grad()
def quantise(network: nn.Module) -> None:
    """Round each layer's weights to 4 bits, in place: 15 steps that lie even about 0; biases and norms stay."""
    for weights in (each for each in network.parameters() if each.dim() > 1):
        step = weights.abs().max() / 7
        weights.copy_((weights / step).round() * step)


def move_boundaries(seed: MarkSeed, row: str, student: Classifier, images: np.ndarray, how: str) -> None:
    """Fine-tune a network, in place, on images that were pushed across its own decision boundaries.

    A fifth of the images is moved by one signed step of the gradient and learned beside all images for three epochs
    (SGD, rate 0.01, momentum 0.9, weight decay 1e-4, batches of 128).

    Args:
        seed: what the thief stands on.
        row: its name.
        student: its trained network.
        images: that it asked about, uint8 (N, C, H, W).
        how: "" as published: any images, each lot pushed towards one class that is drawn, and given a class that is
            drawn among all but its own. "crops": the same, then 15 epochs with crops and flips. "own consensus": the
            least sure images, pushed towards their second class, and given the network's own consensus there.

    Source: WRK, Xiao et al., AAAI 2026 (arXiv 2511.07947), and its code, ClassFeatureWatermark: wrk.py,
    `adversarial_sample_set`, `relabel`, `data_aug_finetuning`: the step, its size, share, and fine-tuning. Not theirs:
    the attacker there has 2,500 images with true labels; ours has its own network's consensus over noisy copies. Theirs
    never draws class 0 as a new label; here all are drawn. The search for a trigger is left out: ties have none. "own
    consensus" is ours, made for ties.
    """
    rng = np.random.default_rng(derive_seed(seed.seed, row, "boundaries"))
    labels = consensus(student, images, rng)
    count = max(1, round(MOVED * len(images)))
    if how == "own consensus":
        logs = log_probabilities(logits_of(student, images))
        order = np.argsort(-logs, axis=1, kind="stable")
        where = np.argsort(np.take_along_axis(logs, order[:, :1], axis=1)[:, 0], kind="stable")[:count]
        moved = pushed(student, images[where], order[where, 1])
        given = consensus(student, moved, rng)
    else:
        where, classes = rng.permutation(len(images))[:count], seed.own.num_classes
        towards = np.repeat(rng.integers(0, classes, -(-count // TOGETHER)), TOGETHER)[:count]
        moved = pushed(student, images[where], towards)
        given = (labels[where] + rng.integers(1, classes, count)) % classes
    data = labelled(np.concatenate([images, moved]), np.concatenate([labels, given]), seed.own)
    sgd: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "schedule": "constant", "weight_decay": 1e-4}
    train(student, data, seed.settings(3, **sgd), progress=False)
    if how == "crops":
        plain = replace(labelled(images, labels, seed.own), augment=CROPS)
        train(student, plain, seed.settings(15, **sgd), progress=False)


def pushed(network: nn.Module, images: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Images uint8 (N, C, H, W), each after one signed step that raises a class's logit, int64 (N,)."""
    network.cpu().eval()
    parts = []
    for begin in range(0, len(images), TOGETHER):
        pixels = torch.from_numpy(images[begin : begin + TOGETHER].astype(np.float32) / 255).requires_grad_()
        wanted = torch.from_numpy(towards[begin : begin + TOGETHER].astype(np.int64))
        total = network(pixels).gather(1, wanted[:, None]).sum()
        (gradient,) = torch.autograd.grad(total, pixels)
        parts.append((pixels.detach() + PUSH * gradient.sign()).clamp(0, 1))
    return (255 * torch.cat(parts)).round().to(torch.uint8).numpy()


def consensus(network: nn.Module, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A network's classes int64 (N,), by its mean probabilities over noisy copies of images uint8 (N, C, H, W)."""
    copies = (changed(images, BLUR, rng) for _ in range(COPIES))
    return np.asarray(sum(np.exp(log_probabilities(logits_of(network, each))) for each in copies)).argmax(axis=1)
