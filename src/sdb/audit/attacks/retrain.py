"""Training the public part of a weight-key box again, by somebody who has its weights and some data.

The private part of such a box is encrypted, but the weights around it were trained to serve both. So the attack keeps
them and trains new norms and a new head (or everything) with labels, with the box's own top-1 answers for labels, or
towards confident answers. What it must beat is a network of the attacker's own, trained from scratch on the same
images: that needs no box.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sdb.audit.attacks.key_search import mean_entropy
from sdb.box.private_part import replaceable
from sdb.config import FitSettings
from sdb.data import Batch, Splits
from sdb.errors import ConfigError
from sdb.losses import cross_entropy
from sdb.models import Classifier
from sdb.runtime import choose_device, derive_seed
from sdb.training.loop import fit, train_batches


@dataclass(frozen=True, slots=True)
class Retrain:
    """White box, weight key: new norms and head around the box's own weights.

    Attributes:
        goal: labels; top1: the box's own answers for labels; entropy: confidence. The last two need no labels.
        part: private: what a key would put in place (norms, head); all: every weight.
        fresh: begin with newly initialised norms and head instead of the public ones.
        share: of the training images that the attacker has, drawn by the seed.
        steps: of Adam; epochs follow.
        batch_size: images per step.
        learning_rate: Adam's at the start.
        seed: of the share, order and initialisation.
        device: where it trains.
    """

    goal: Literal["labels", "top1", "entropy"] = "labels"
    part: Literal["private", "all"] = "private"
    fresh: bool = False
    share: float = 1.0
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    device: str = "auto"

    def run(self, network: Classifier, data: Splits) -> Classifier:
        """A re-trained copy; the victim is left alone.

        Args:
            network: the box's public network.
            data: the attack uses its share of the training images only.

        Raises:
            ConfigError: the goal or part is unknown.
        """
        if self.goal not in ("labels", "top1", "entropy") or self.part not in ("private", "all"):
            raise ConfigError(
                f"goal {self.goal!r} or part {self.part!r} is unknown: labels, top1 or entropy; private or all"
            )
        device = choose_device(self.device)
        copied = copy.deepcopy(network).to(device)
        public = copy.deepcopy(copied).eval().requires_grad_(False)
        if self.fresh:
            self._begin_anew(copied)
        trained = set(replaceable(copied))
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(self.part == "all" or name in trained)
        data = share_of(data, self.share, self.seed)
        batch_size = min(self.batch_size, len(data.train))
        epochs = max(1, round(self.steps / max(1, len(data.train) // batch_size)))
        settings = FitSettings(
            epochs=epochs,
            batch_size=batch_size,
            optimizer="adam",
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

        def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
            logits = forward(batch.images)
            if self.goal == "entropy":
                return {"entropy": mean_entropy(logits)}
            labels = public(batch.images).argmax(dim=1) if self.goal == "top1" else batch.labels
            return {"cross_entropy": cross_entropy(logits, labels)}

        # Its last epoch is taken: with so few images the attacker has none to choose by.
        fit(
            copied,
            step,
            train_batches(data, settings, device),
            settings,
            evaluate=lambda: {"nothing": 0.0},
            monitor="nothing",
        )
        return copied.requires_grad_(True)

    def _begin_anew(self, network: Classifier) -> None:
        names = {name.rpartition(".")[0] for name in replaceable(network)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "fresh"))
            for prefix, module in network.named_modules():
                if prefix in names and hasattr(module, "reset_parameters"):
                    module.reset_parameters()


def share_of(data: Splits, share: float, seed: int) -> Splits:
    """The same data with a random share of the training images, at least two.

    Raises:
        ConfigError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share: {share} is not in (0, 1]")
    if share == 1:
        return data
    count = max(2, round(share * len(data.train)))
    generator = np.random.default_rng(derive_seed(seed, "share"))
    return replace(data, train=data.train.take(np.sort(generator.permutation(len(data.train))[:count])))
