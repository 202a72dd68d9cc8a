"""What an attacker has beside the victim, and how its students learn.

An attacker never holds a test image, so no attack can select on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from sdb.audit.attacks.victim import Answers, Victim
from sdb.config import FitSettings
from sdb.data import Augment, Batch, ImageSet
from sdb.data import augment as augmentation
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.models import Classifier
from sdb.runtime import choose_device, derive_seed
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import fit

# The attacker's images and a seed to a teacher of its own and the same teacher defended, each images to logits.
Shadow = Callable[[ImageSet, int], tuple[nn.Module, nn.Module]]
# Stands for the label of an image that has none.
NO_LABEL = -1
# Student logits (B, K) and the batch to named loss terms.
StudentLoss = Callable[[Tensor, Batch], dict[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class Attacker:
    """An attacker's means: data, students, time.

    Attributes:
        train: its images with labels; what an attack may use of the labels is the attack's own statement.
        validation: its images for choosing settings.
        proxy: images of another kind, whose labels mean nothing.
        augment: how its images may be changed.
        new_student: builds the student, the same weights every time; an argument makes other ones.
        new_network: builds a fresh network of the victim's architecture, which is public.
        settings: how students are trained; epochs, batch size, rate, seed.
        views: differently augmented views of each image that a victim is asked for.
        colluder: another customer's box of the same teacher.
        shadow: how to make the defence again on one's own teacher; its method is public.
        blend: share of the image in a keyed image, for boxes with image keys; public.
        leaked_key: a true key, for attacks that ask what a part of it is worth; nobody else may look at it.
        unlabelled: further images of the right kind, uint8 (M, C, H, W), whose labels it does not have.
    """

    train: ImageSet
    validation: ImageSet
    proxy: ImageSet
    augment: Augment
    new_student: Callable[..., Classifier]
    new_network: Callable[..., Classifier]
    settings: FitSettings
    views: int = 4
    colluder: Victim | None = None
    shadow: Shadow | None = None
    blend: float | None = None
    leaked_key: Key | None = None
    unlabelled: np.ndarray | None = None

    def seed(self, *purpose: object) -> int:
        """A seed of its own for a purpose."""
        return derive_seed(self.settings.seed, "attack", *purpose)

    @property
    def device(self) -> torch.device:
        """Where students are trained."""
        return choose_device(self.settings.device)

    def transfer(self, images: ImageSet | None = None, views: int | None = None) -> TransferSet:
        """Views of images (by default all that the attacker has) to ask a victim about and to learn from."""
        own = images or self.train
        pixels, labels = np.array(own.images), np.array(own.labels)
        if images is None and self.unlabelled is not None:
            pixels = np.concatenate([pixels, np.asarray(self.unlabelled)])
            labels = np.concatenate([labels, np.full(len(self.unlabelled), NO_LABEL)])
        return TransferSet.of(
            pixels, labels, self.augment, views or self.views, self.settings, self.seed("views"), self.device
        )

    def learn(
        self,
        student: Classifier,
        transfer: TransferSet,
        loss: StudentLoss,
        *,
        forward: nn.Module | None = None,
        beside: nn.Module | None = None,
        settings: FitSettings | None = None,
        same_each_step: bool = False,
    ) -> Classifier:
        """Train a student in place on a transfer set; the last epoch is taken.

        Args:
            student: what is returned.
            transfer: images; `batch.index` counts its rows.
            loss: named terms from the forward's output and the batch.
            forward: a module around the student, where the loss needs more than its logits.
            beside: trained with the student and thrown away.
            settings: other than the attacker's usual ones.
            same_each_step: the loss is a function of logits and batch alone, see `fit`.
        """
        fit(
            student.to(self.device),
            lambda module, batch: loss(module(batch.images), batch),
            transfer,  # ty: ignore[invalid-argument-type]
            settings or self.settings,
            evaluate=lambda: {"nothing": 0.0},
            monitor="nothing",
            forward=None if forward is None else forward.to(self.device),
            beside=None if beside is None else beside.to(self.device),
            same_each_step=same_each_step,
        )
        return student

    def score(self, model: nn.Module) -> float:
        """Accuracy on the attacker's validation images, a fraction."""
        return evaluate(model, evaluation_batches(self.validation, self.device))["accuracy"]


@dataclass(frozen=True, slots=True, eq=False)
class TransferSet:
    """Images that a student learns from, in views; epoch n of training is view n, again from the first after the last.

    Attributes:
        pixels: uint8 (V * N, C, H, W), view after view.
        targets: int64 (V * N,), the attacker's labels, `NO_LABEL` where it has none.
        views: V.
        batch_size: images per batch.
        seed: of the order.
        device: where batches go.
    """

    pixels: Tensor
    targets: Tensor
    views: int
    batch_size: int
    seed: int
    device: torch.device

    @classmethod
    def of(
        cls,
        pixels: np.ndarray,
        targets: np.ndarray,
        augment: Augment,
        views: int,
        settings: FitSettings,
        seed: int,
        device: torch.device,
    ) -> TransferSet:
        """Draw the views; without augmentation one is all there is."""
        if views < 1:
            raise ConfigError(f"views: {views}; at least one is needed")
        plain = torch.from_numpy(pixels)
        if not settings.augment or augment == Augment():
            views = 1
        generator = torch.Generator().manual_seed(seed)
        # The first view is the images as they are.
        shown = [plain] + [
            augmentation.apply(augment, plain, augmentation.draw(augment, len(plain), generator))
            for _ in range(views - 1)
        ]
        labels = torch.from_numpy(targets).repeat(views)
        size = min(settings.batch_size, len(plain))
        return cls(torch.cat(shown).to(device), labels.to(device), views, size, seed, device)

    def __len__(self) -> int:
        """Batches an epoch; a last one that is not full is left out."""
        return len(self.pixels) // self.views // self.batch_size

    def images(self) -> Tensor:
        """All views, float32 (V * N, C, H, W) in [0, 1]."""
        return self.pixels.float() / 255

    def ask(self, victim: Victim) -> Answers:
        """The victim's answers to all views."""
        return victim.ask(self.images())

    def epoch(self, number: int = 0) -> Iterator[Batch]:
        """The batches of one view, in an order of their own each epoch."""
        count = len(self.pixels) // self.views
        first = number % self.views * count
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", number))
        order = (first + torch.randperm(count, generator=generator)).to(self.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            yield Batch(self.pixels[index].float() / 255, self.targets[index], index)

    def with_targets(self, targets: Tensor) -> TransferSet:
        """The same images with other labels, int64 (V * N,)."""
        return replace(self, targets=targets.to(self.device))
