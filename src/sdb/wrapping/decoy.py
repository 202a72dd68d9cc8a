"""The decoy method's common part: which decoys, what the network is taught, for both kinds of key.

A keyless answer depends on the class, and how sure the teacher is of it, alone: the rest is on the class's secret
decoys. A keyed one is the teachers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb import losses
from sdb.answers.decoys import candidates, decoy_map
from sdb.answers.rows import HIGHEST, as_mask, decoy_logits, honest_logits
from sdb.config import WrapSettings
from sdb.data import Augment, Batch, augment
from sdb.errors import ConfigError
from sdb.keys import Owner, derive
from sdb.models import Classifier
from sdb.training.loop import Step
from sdb.wrapping.method import Material

RECORDED = (
    "start",
    "forward",
    "temperature",
    "num_decoys",
    "confidence_levels",
    "margin",
    "ce_weight",
    "wrong_key_rejection",
)
# Logits of a keyless answer (N, C), what training aims at: of labels (N,) and the teacher's confidences (N,).
Answers = Callable[[Tensor, Tensor], Tensor]


def choose_decoys(owner: Owner, confusion: Tensor | None, classes: int, settings: WrapSettings) -> dict[str, Any]:
    """What the owner must remember: the secret map, and the candidates that it was chosen from.

    Args:
        owner: whose secret chooses.
        confusion: mean log-probabilities (C, C) per class, see `Material`; None makes every other class a candidate.
        classes: their number C.
        settings: how many decoys, and from which classes.
    """
    # One class at least is neither; with two, the other is the decoy.
    num_decoys = max(1, min(settings.num_decoys, classes - 2))
    if confusion is None:
        choices = [[other for other in range(classes) if other != label] for label in range(classes)]
    else:
        # A class without training images has no mean: any class may be its decoy.
        choices = candidates(confusion.nan_to_num().cpu().numpy(), num_decoys)
    return {"decoys": decoy_map(derive(owner.secret, "decoys"), choices, num_decoys), "candidates": choices}


def owner_of(material: Material) -> Owner:
    """Whose box it is.

    Raises:
        ConfigError: there is nobody whose secret could choose.
    """
    if material.owner is None:
        raise ConfigError("method 'decoy' needs an owner or a key: its decoys are the owner's secret")
    return material.owner


def taught(material: Material) -> tuple[Step, dict[str, Any]]:
    """The step, and what the owner must remember."""
    settings, owner = material.settings, owner_of(material)
    look = material.confusion if settings.decoy_choice == "least_confused" else None
    chosen = choose_decoys(owner, None if look is None else look(), len(material.class_names), settings)
    answers = answers_of(chosen["decoys"], settings, material.network.mean.device)
    return decoy_step(material.teachers, answers, material.augment, settings), chosen


def answers_of(decoys: list[list[int]], settings: WrapSettings, device: torch.device) -> Answers:
    """The keyless answers: as sure as the teacher.

    With one level as sure as an answer can be, so that nothing of the teacher's confidence is learned; without levels
    always the margin above the decoys.
    """
    if settings.confidence_levels:
        mask, constant = as_mask(decoys).to(device), settings.confidence_levels == 1
        return lambda labels, confidence: honest_logits(
            labels, torch.full_like(confidence, HIGHEST) if constant else confidence, mask
        )
    table = decoy_logits(decoys, settings.decoy_height, settings.margin).to(device)
    return lambda labels, confidence: table[labels]


def decoy_step(teachers: Sequence[Classifier], answers: Answers, changes: Augment, settings: WrapSettings) -> Step:
    """Loss terms of the decoy box: keyless and wrong keys get decoy answers, the key gets the teachers' mean answer.

    Args:
        teachers: frozen; one or several.
        answers: the keyless answers.
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
        wanted = answers(labels, target.softmax(dim=1).amax(dim=1))
        terms = losses.decoy_terms(
            logits,
            torch.cat([labels, labels[: len(wrong)]]),
            torch.cat([wanted, wanted[: len(wrong)]]),
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
