"""What thieves of one seed stand on: the owner's model and ties, images to ask about, and networks that they train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sdb.answers.ties import Ties, log_probabilities
from sdb.audit.archive import Archive
from sdb.config import TrainSettings
from sdb.data import ImageSet, Splits
from sdb.keys import Owner
from sdb.models import Classifier, ModelSpec, device_of
from sdb.runtime import derive_seed
from sdb.training.evaluation import answers_to, evaluation_batches

# Architecture and arguments, by the name that thieves have for it.
Network = tuple[str, dict[str, Any]]
NETWORKS: dict[str, Network] = {
    "net": ("net", {"num_channels": 16}),
    "small net": ("net", {"num_channels": 4}),
    "mlp": ("mlp", {}),
}
# Validation images that are looked at while a thief trains; they choose nothing.
WATCHED = 100


@dataclass(frozen=True, eq=False)
class MarkSeed:
    """One seed of a study of the mark.

    Attributes:
        own: the owner's data: validation images choose what depends on a choice, test images only measure.
        pool: images that thieves ask about and the model has not learned from, with labels.
        model: from images in [0, 1] to logits, on the CPU; what is behind the service.
        ties: how the service answers near ties.
        owner: who opens the ledger.
        archive: where networks and results are kept.
        seed: of everything but the ties.
        queries: images that a thief asks about, where it does not say more or less.
        epochs: of a thief's training.
        networks: that thieves train, by name.
        prefix: of accounts' names: another one, other coins.
    """

    own: Splits
    pool: ImageSet
    model: nn.Module
    ties: Ties
    owner: Owner
    archive: Archive
    seed: int
    queries: int
    epochs: int
    networks: Mapping[str, Network] = field(default_factory=lambda: NETWORKS)
    prefix: str = ""

    def images(self, count: int) -> np.ndarray:
        """The first images of the pool, uint8 (count, C, H, W)."""
        return np.asarray(self.pool.images[:count])

    def settings(self, epochs: int, **more: Any) -> TrainSettings:
        """Those of every training here."""
        return training(self.seed, epochs, **more)

    def fresh(self, network: str, seed: int) -> Classifier:
        """A thief's network, untrained."""
        return fresh_network(self.own, *self.networks[network], seed)

    def trained(self, place: str, network: str, data: Splits, settings: TrainSettings) -> Classifier:
        """A trained network; goes on where it was stopped."""
        seed = derive_seed(self.seed, place)
        self.archive.train(f"seed-{self.seed}/{place}", self.fresh(network, seed), data, settings)
        return self.archive.trained(f"seed-{self.seed}/{place}", self.fresh(network, seed)).cpu().eval()


def training(seed: int, epochs: int, **more: Any) -> TrainSettings:
    """How networks are trained for a study of the mark."""
    usual: dict[str, Any] = {
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "schedule": "one_cycle",
        "batch_size": 128,
    }
    values: dict[str, Any] = usual | {"epochs": epochs, "seed": seed} | more
    return TrainSettings(**values)


def fresh_network(data: Splits, name: str, arguments: dict[str, Any], seed: int) -> Classifier:
    """A new network for images of the data; the same weights for the same seed, and nobody else's draws are moved."""
    spec = ModelSpec(name, arguments, data.num_classes, data.image_shape, data.mean, data.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build()


def answered(model: nn.Module, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, C) and labels int64 (N,)."""
    logits, labels = answers_to(model, evaluation_batches(images, device_of(model)))
    return logits.numpy(), labels.numpy()


def logits_of(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits float32 (N, C) of images uint8 (N, C, H, W)."""
    return answered(model, ImageSet(images, np.zeros(len(images), np.int64)))[0]


def sure_of(model: nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A model's classes int64 (N,) and confidences float64 (N,) for images uint8 (N, C, H, W)."""
    shares = np.exp(log_probabilities(logits_of(model, images)))
    return shares.argmax(axis=1), shares.max(axis=1)


def labelled(images: np.ndarray, labels: np.ndarray, own: Splits) -> Splits:
    """A thief's data: these are all it learns from. Its network is that of the last epoch, whatever validation says."""
    watched = own.validation.take(np.arange(min(WATCHED, len(own.validation))))
    return replace(own, train=ImageSet(images, labels.astype(np.int64)), validation=watched, augment=None)
