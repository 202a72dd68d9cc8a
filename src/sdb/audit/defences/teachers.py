"""Defences that train another teacher in place of the one there is, from scratch and as long."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.defences.defence import Defence, Defended, Parts, tensors_of
from sdb.audit.defences.losses import cluster_terms
from sdb.config import FitSettings, TrainSettings
from sdb.data import Batch, Splits
from sdb.models import Classifier, device_of
from sdb.models.checkpoint import load_weights
from sdb.runtime import choose_device
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import Step, fit, train, train_batches
from sdb.wrapping.networks import fresh_copy, frozen


@dataclass(frozen=True, kw_only=True)
class Trained(Defence):
    """Base of these: the teacher's architecture, trained from the same fresh weights whatever the defence."""

    file = "weights.safetensors"

    @abstractmethod
    def fit(self, network: Classifier, teacher: Classifier, data: Splits, settings: FitSettings) -> None:
        """Train the fresh network in place."""

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Parts:
        """Train."""
        network = fresh_copy(teacher, settings, "defence").to(choose_device(settings.device))
        self.fit(network, teacher, data, settings)
        return network.state_dict()

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The network."""
        network = copy.deepcopy(teacher)
        load_weights(network, tensors_of(parts), self.title)
        network = frozen(network, device_of(teacher))
        return Defended(network, None, network, seconds=record["seconds"])


def fit_with(network: Classifier, step: Step, data: Splits, settings: FitSettings) -> None:
    """Train a network in place with loss terms of its own, as `sdb.training.loop.train` does with cross-entropy."""
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
class LabelSmoothed(Trained):
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
        train(network, data, TrainSettings(**fitted, label_smoothing=self.smoothing), progress=False)


@dataclass(frozen=True, kw_only=True)
class ClusterCollapse(Trained):
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
        "after the abstract of CMIM (arXiv 2507.00012), whose weights we have not seen; CMI estimated as in MCMI"
    )

    cluster_weight: float = 10.0
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
        attacker = (members.t() @ outputs) / counts.clamp_min(1).unsqueeze(1)  # (temperatures, K, K)
        kept = torch.where(present, torch.where(self._seen, self.memory, 0.0), 1.0).unsqueeze(1)
        self.table = kept * self.table + (1 - kept) * attacker
        self._seen = self._seen | present
