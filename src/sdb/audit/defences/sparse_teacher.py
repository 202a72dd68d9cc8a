"""Adversarial sparse teacher: trained towards its own few-class answers to adversarial images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.defences.losses import predictive_divergence, sparse
from sdb.audit.defences.teachers import Trained, fit_with
from sdb.config import FitSettings
from sdb.data import Batch, ImageSet, Splits
from sdb.losses import cross_entropy
from sdb.models import Classifier, device_of
from sdb.training.repeated_views import images_at_once
from sdb.wrapping.networks import frozen


@dataclass(frozen=True, kw_only=True)
class AdversarialSparse(Trained):
    """A teacher drawn towards its own sparse answers to adversarial versions of its images.

    share T^2 EPD(S(z / T), S(sparse(f(x_adv)) / T)) + (1 - share) CE(z, y), f the network itself in eval mode, no
    gradient through it; x_adv from projected gradient ascent on the plain teacher, in pixels in [0, 1], made once. An
    image and its adversarial version go through the same crop and rotation.

    Attributes:
        share: of the divergence; the labels have the rest. The source's for CIFAR-100: its 0.05 for CIFAR-10 costs a
            small network two points on validation images.
        temperature: of both outputs.
        top_k: classes of a sparse answer.
        radius: largest change of a pixel.
        step_size: of the ascent.
        steps: of the ascent.
    """

    name = "adversarial_sparse"
    title = "adversarial sparse teacher"
    summary = "A teacher trained towards its own few-class answers to adversarial images"
    source = "Yilmaz and Keles, 2024 (arXiv 2403.05181): share 0.05, temperature 6, 2 classes, PGD-40 on CIFAR-10"

    share: float = 0.035
    temperature: float = 6.0
    top_k: int = 2
    radius: float = 0.3
    step_size: float = 0.01
    steps: int = 40

    def fit(self, network: Classifier, teacher: Classifier, data: Splits, settings: FitSettings) -> None:
        """Train on pairs of an image and its adversarial version."""
        attacked = frozen(teacher, device_of(network))
        paired = replace(
            data, train=with_adversarial(data.train, attacked, self.radius, self.step_size, self.steps)
        )

        def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
            images, moved = batch.images.chunk(2, dim=1)
            # With gradient first: under autocast weights are cast once, and a cast made without gradient has none.
            logits = forward(images).float()
            forward.eval()
            with torch.no_grad():
                target = sparse(forward(moved).float(), self.top_k)
            forward.train()
            divergence = predictive_divergence(logits, target, self.temperature)
            return {
                "adversarial": self.share * self.temperature**2 * divergence,
                "cross_entropy": (1 - self.share) * cross_entropy(logits, batch.labels),
            }

        fit_with(network, step, paired, settings)


def with_adversarial(
    images: ImageSet, network: Classifier, radius: float, step_size: float, steps: int
) -> ImageSet:
    """Images (N, 2C, H, W): each with its adversarial version as further channels, so that pairs stay together.

    The adversarial ones are rounded to 8 bits, as the images are.
    """
    device, pairs = device_of(network), []
    size = images_at_once(images)
    for start in range(0, len(images), size):
        part = images.take(np.arange(start, min(start + size, len(images))))
        plain = np.asarray(part.images)
        pixels = torch.from_numpy(plain.copy()).to(device).float() / 255
        labels = torch.from_numpy(part.labels.copy()).to(device)
        moved = adversarial(network, pixels, labels, radius, step_size, steps)
        pairs.append(np.concatenate([plain, (moved * 255).round().byte().cpu().numpy()], axis=1))
    return ImageSet(np.concatenate(pairs), images.labels)


def adversarial(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    radius: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Images (N, C, H, W) in [0, 1] moved by at most `radius` a pixel to where the network errs, still in [0, 1].

    Source: Madry et al., ICLR 2018 (arXiv 1706.06083), projected gradient ascent from the image itself.
    """
    moved = images.clone()
    lowest, highest = (images - radius).clamp_min(0), (images + radius).clamp_max(1)
    for _ in range(steps):
        moved.requires_grad_(True)
        with torch.enable_grad():
            loss = F.cross_entropy(network(moved), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, moved)
        moved = (moved.detach() + step_size * slope.sign()).clamp(lowest, highest)
    return moved.detach()
