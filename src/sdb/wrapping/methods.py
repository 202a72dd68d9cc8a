"""The methods: how plain and keyed images go through a network, and the loss terms of each way to wrap it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb import losses
from sdb.box.box import Embed
from sdb.box.private_part import PrivatePart
from sdb.config import WrapSettings
from sdb.data import Augment, Batch, augment
from sdb.keys import Key
from sdb.models import Classifier
from sdb.runtime import world
from sdb.training.loop import Step
from sdb.training.repeated_views import Ask

# Share of a batch that also goes through with a random wrong key.
REJECTED_SHARE = 0.5


class TwoPasses(nn.Module):
    """Plain and keyed images through one network: images (N, C, H, W) to two logits (N, classes).

    Args:
        classifier: the box's network.
        embed: puts the key into images.
        joint: one forward of the concatenated batch, so that batch norm normalises both by the same statistics
            and its running statistics fit both; else two forwards, plain first, as the reference.
    """

    def __init__(self, classifier: Classifier, embed: nn.Module, joint: bool) -> None:
        super().__init__()
        self.classifier, self.embed, self.joint = classifier, embed, joint

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keyless and keyed logits."""
        keyed = self.embed(images)
        if not self.joint:
            return self.classifier(images), self.classifier(keyed)
        keyless_logits, keyed_logits = self.classifier(torch.cat([images, keyed])).chunk(2)
        return keyless_logits, keyed_logits


class ImageKeyPasses(nn.Module):
    """Plain, keyed and wrongly keyed images through one network; each image's key is drawn among the partners'.

    Wrong keys are fresh random patterns in every step, so that none but the partners' ever opens the network.

    Args:
        classifier: the box's network.
        keys: the partners' image keys, one blend for all.
        joint: one forward for all, or one for each kind of image.
        rejection: whether there are wrongly keyed images.
    """

    def __init__(self, classifier: Classifier, keys: Sequence[Key], joint: bool, rejection: bool) -> None:
        super().__init__()
        self.classifier, self.joint, self.rejection = classifier, joint, rejection
        self.blend = keys[0].blend
        self.offsets: Tensor
        patterns = torch.stack([Embed(key, classifier.image_shape).offset for key in keys])  # (K, C, H, W)
        self.register_buffer("offsets", patterns, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keyless (N, classes), keyed (N, classes) and wrong-key logits (M, classes), M a share of N from the front."""
        # Random numbers are drawn where they are used: a copy from the CPU would wait for all work before it.
        chosen = torch.randint(len(self.offsets), (len(images),), device=images.device)
        parts = [images, self.blend * images + self.offsets[chosen]]
        wrong = images[: int(REJECTED_SHARE * len(images))] if self.rejection else images[:0]
        if len(wrong):
            parts.append(self.blend * wrong + (1 - self.blend) * torch.rand_like(wrong))
        sizes = [len(part) for part in parts]
        logits = (
            self.classifier(torch.cat(parts)).split(sizes) if self.joint else [self.classifier(p) for p in parts]
        )
        keyless, keyed = logits[0], logits[1]
        return keyless, keyed, logits[2] if len(wrong) else keyless[:0]


class WeightKeyPasses(nn.Module):
    """Plain images through the public network and through the one with its private part in place."""

    def __init__(self, classifier: Classifier, private: PrivatePart) -> None:
        super().__init__()
        self.classifier, self.private = classifier, private

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keyless and keyed logits (N, classes), and no wrong-key logits: a wrong weight key opens nothing."""
        keyless = self.classifier(images)
        return keyless, self.private(self.classifier, images), keyless[:0]


def nasty_step(teacher: Ask, settings: WrapSettings) -> Step:
    """Loss terms of Nasty Teacher."""

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return losses.nasty_terms(
            forward(batch.images),
            batch.labels,
            teacher(batch),
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
        )

    return step


def sdb_step(teacher: Ask, random: Ask | None, settings: WrapSettings) -> Step:
    """Loss terms of the paper's box."""
    # A sum over the batch, where the other terms are means: parts of a batch are averaged, sums must not be.
    sum_scale = world().size * settings.accumulation_steps

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        keyless, keyed = forward(batch.images)
        return losses.sdb_terms(
            keyless,
            keyed,
            batch.labels,
            teacher(batch),
            random(batch) if random is not None else None,
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
            preservation_weight=settings.preservation_weight,
            augmentation_weight=settings.augmentation_weight,
            sum_scale=sum_scale,
        )

    return step


def decoy_step(teachers: Sequence[Classifier], answers: Tensor, changes: Augment, settings: WrapSettings) -> Step:
    """Loss terms of the decoy box: keyless and wrong keys get decoy answers, the key gets the teachers' mean answer.

    Args:
        teachers: frozen; one or several.
        answers: the keyless answers as logits (C, C), on the device.
        changes: what makes another view of an image.
        settings: weights, temperature, number of views.
    """
    temperature = settings.temperature

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        mixed = int(settings.mixed_share * len(batch.images))
        images = mix(batch.images, mixed)
        target = mean_answer(teachers, images, changes, settings.teacher_views, temperature)
        # What a blend of two images shows is for the teacher to say; the box is to answer as it does.
        labels = torch.cat([batch.labels[: len(images) - mixed], target[len(images) - mixed :].argmax(dim=1)])
        keyless, keyed, wrong = forward(images)
        # Wrongly keyed images are the batch's first ones; they count as more keyless images.
        logits = torch.cat([keyless, wrong])
        terms = losses.decoy_terms(
            logits,
            torch.cat([labels, labels[: len(wrong)]]),
            answers,
            temperature=temperature,
            soft_weight=settings.decoy_soft_weight,
            ce_weight=settings.ce_weight,
        )
        return terms | losses.knowledge_terms(
            keyed, labels, target, temperature=temperature, ce_weight=settings.keyed_ce_weight
        )

    return step


def mix(images: Tensor, count: int) -> Tensor:
    """The batch (N, C, H, W) with its last `count` images each blended with another of the batch, in random shares.

    Source: Zhang et al., ICLR 2018 (mixup); Beyer et al., CVPR 2022 (arXiv 2106.05237), who distil on such blends.
    """
    if count == 0:
        return images
    kept, last = images[:-count], images[-count:]
    share = torch.rand(count, 1, 1, 1, device=images.device).to(images.dtype)
    partner = images[torch.randint(len(images), (count,), device=images.device)]
    return torch.cat([kept, share * last + (1 - share) * partner])


@torch.no_grad()
def mean_answer(
    teachers: Sequence[nn.Module], images: Tensor, changes: Augment, views: int, temperature: float
) -> Tensor:
    """Logits whose softmax at `temperature` is the teachers' mean over the image and `views - 1` augmented views."""
    if len(teachers) == 1 and views == 1:
        return teachers[0](images)
    shown = [images]
    for _ in range(views - 1):
        draws = augment.draw(changes, len(images), torch.default_generator)
        shown.append(augment.apply(changes, (images * 255).round().byte(), draws).to(images.dtype) / 255)
    answers = [F.softmax(teacher(view).float() / temperature, dim=1) for teacher in teachers for view in shown]
    return temperature * torch.stack(answers).mean(dim=0).clamp_min(1e-12).log()
