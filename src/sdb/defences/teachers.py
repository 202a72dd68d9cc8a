"""Defences that train another teacher in place of the one there is, from scratch and as long."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.checkpoint import load_weights, read_tensors, write_tensors
from sdb.config import FitSettings, TrainSettings
from sdb.data import Batch, ImageSet, Splits
from sdb.defences.defence import Defence, Defended, device_of
from sdb.defences.losses import cluster_terms, predictive_divergence, sparse
from sdb.losses import cross_entropy
from sdb.models import Classifier
from sdb.runtime import choose_device
from sdb.training import EVALUATION_BATCH, Step, evaluate, evaluation_batches, fit, train, train_batches
from sdb.wrapping import fresh_copy, frozen

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Trained(Defence):
    """Another network of the teacher's architecture, trained from the same fresh weights whatever the defence."""

    @abstractmethod
    def fit(self, network: Classifier, teacher: Classifier, data: Splits, settings: FitSettings) -> None:
        """Train the fresh network in place."""

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings, folder: Path) -> None:
        """Train and save."""
        network = fresh_copy(teacher, settings, "defence").to(choose_device(settings.device))
        self.fit(network, teacher, data, settings)
        write_tensors(folder / WEIGHTS, network.state_dict(), {"defence": self.name})

    def open(self, teacher: Classifier, folder: Path, record: dict[str, Any]) -> Defended:
        """The network."""
        network = copy.deepcopy(teacher)
        load_weights(network, read_tensors(folder / WEIGHTS)[0], folder / WEIGHTS)
        network = frozen(network, device_of(teacher))
        return Defended(network, None, network, seconds=record["seconds"])


def fit_with(network: Classifier, step: Step, data: Splits, settings: FitSettings) -> None:
    """Train a network in place with loss terms of its own, as `sdb.training.train` does with cross-entropy."""
    device = device_of(network)
    validation = evaluation_batches(data.validation, device)
    fit(
        network,
        step,
        train_batches(data, settings, device),
        settings,
        evaluate=lambda: evaluate(network, validation),
        monitor="accuracy",
    )


@dataclass(frozen=True, kw_only=True)
class LabelSmoothed(_Trained):
    """A teacher trained with smoothed labels: what tight clusters alone do.

    Attributes:
        smoothing: mass of the labels that is spread over all classes.
    """

    name = "label_smoothed"
    title = "label-smoothed teacher"
    summary = "A teacher trained with label smoothing, known to teach worse"
    source = "Mueller et al., NeurIPS 2019 (arXiv 1906.02629)"

    smoothing: float = 0.1

    def fit(self, network: Classifier, teacher: Classifier, data: Splits, settings: FitSettings) -> None:
        """Plain training with smoothed labels."""
        fitted = {name: getattr(settings, name) for name in FitSettings.model_fields}
        train(network, data, TrainSettings(**fitted, label_smoothing=self.smoothing))


@dataclass(frozen=True, kw_only=True)
class ClusterCollapse(_Trained):
    """A teacher whose answers depend on the class alone as far as training can bring them there.

    Attributes:
        cluster_weight: how hard answers are drawn to their class's centroid.
        temperatures: at which they are.
        memory: share of the old centroid that a batch leaves.
    """

    name = "cmi"
    title = "cluster collapse (CMIM-style)"
    summary = (
        "A teacher trained so that all images of a class get nearly the same soft answer, at every temperature"
    )
    source = (
        "after the abstract of CMIM (arXiv 2507.00012), whose weights are not public; MCMI's estimate of the CMI"
    )

    cluster_weight: float = 1.0
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    memory: float = 0.9

    def fit(self, network: Classifier, teacher: Classifier, data: Splits, settings: FitSettings) -> None:
        """Cross-entropy and the distance to centroids that follow the network."""
        centroids = Centroids(data.num_classes, self.temperatures, self.memory, device_of(network))

        def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
            logits = forward(batch.images).float()
            centroids.update(logits.detach(), batch.labels)
            return cluster_terms(
                logits,
                batch.labels,
                centroids.table,
                temperatures=self.temperatures,
                cluster_weight=self.cluster_weight,
            )

        fit_with(network, step, data, settings)


class Centroids:
    """Each class's mean soft output at each temperature, followed over the batches.

    Args:
        num_classes: K.
        temperatures: of the outputs.
        memory: share of the old mean that a batch with images of the class leaves.
        device: of the table.

    Attributes:
        table: (number of temperatures, K, K), probabilities; uniform for a class not seen yet.
    """

    def __init__(
        self, num_classes: int, temperatures: Sequence[float], memory: float, device: torch.device
    ) -> None:
        self.temperatures, self.memory = temperatures, memory
        self.table = torch.full((len(temperatures), num_classes, num_classes), 1 / num_classes, device=device)
        self._seen = torch.zeros(num_classes, dtype=torch.bool, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Move the centroids of the classes in a batch; a class's first batch sets its centroid."""
        members = F.one_hot(labels, self.table.shape[1]).to(logits.dtype)  # (N, K)
        counts = members.sum(dim=0)
        present = counts > 0
        outputs = torch.stack([(logits / temperature).softmax(dim=1) for temperature in self.temperatures])
        means = (members.t() @ outputs) / counts.clamp_min(1).unsqueeze(1)  # (temperatures, K, K)
        kept = torch.where(present, torch.where(self._seen, self.memory, 0.0), 1.0).unsqueeze(1)
        self.table = kept * self.table + (1 - kept) * means
        self._seen = self._seen | present


@dataclass(frozen=True, kw_only=True)
class AdversarialSparse(_Trained):
    """A teacher drawn towards its own sparse answers to adversarial versions of its images.

    share T^2 EPD(S(z / T), S(sparse(f(x_adv)) / T)) + (1 - share) CE(z, y), f the network itself in eval mode, no
    gradient through it; x_adv from projected gradient ascent on the plain teacher, in pixels in [0, 1], made once. An
    image and its adversarial version go through the same crop and rotation.

    Attributes:
        share: of the divergence; the labels have the rest.
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

    share: float = 0.05
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
            images, adversarial = batch.images.chunk(2, dim=1)
            forward.eval()
            with torch.no_grad():
                target = sparse(forward(adversarial).float(), self.top_k)
            forward.train()
            logits = forward(images).float()
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
    for start in range(0, len(images), EVALUATION_BATCH):
        part = images.take(np.arange(start, min(start + EVALUATION_BATCH, len(images))))
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
