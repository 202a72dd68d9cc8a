"""What is said of a teacher before it is wrapped: it is no better than chance, or sees pixels as it should not.

A network that was trained on normalised pixels and gets others still answers, only badly: its box would be as bad.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdb.data import LoaderSet, LoaderSplits, Splits
from sdb.models import Classifier
from sdb.runtime import world
from sdb.training.evaluation import evaluate, evaluation_batches

# By how much another normalisation must do better before it is named, a fraction of the images.
FAR = 0.10
# Images that other normalisations are tried on.
TRIED = 2000
# Normalisations that networks are often trained with, beside the data's own: mean and deviation of every channel.
USUAL = {"none": (0.0, 1.0), "to -1..1": (0.5, 0.5), "none, of pixels 0..255": (0.0, 1 / 255)}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

log = logging.getLogger(__name__)


class _Renormalised(nn.Module):
    """A classifier with another mean and deviation in place; the classifier itself is left alone."""

    def __init__(self, classifier: Classifier, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.classifier, self.tensors = classifier, dict(tensors)
        self.train(classifier.training)  # or it would leave the classifier in training mode

    def forward(self, images: Tensor) -> Tensor:
        return functional_call(self.classifier, self.tensors, (images,))


def warn_of_teacher(teacher: Classifier, data: Splits | LoaderSplits, name: str = "the teacher") -> float:
    """Say it where a teacher would do far better with another normalisation, or is no better than chance.

    Args:
        teacher: in eval mode, on its device.
        data: its validation images are asked about, once where the teacher is good.
        name: of the teacher, for the message.

    Returns:
        Its accuracy on the validation images, a fraction; 0 where there are none.
    """
    images = data.validation
    if not len(images):
        return 0.0
    device = teacher.mean.device
    accuracy = evaluate(teacher, evaluation_batches(data.validation, device))["accuracy"]
    said = None
    if accuracy < 1 - FAR:
        said = _normalisation_fault(teacher, data, accuracy)
    if said is None:
        counts = images.counts if isinstance(images, LoaderSet) else np.bincount(images.labels)
        chance = float(max(counts)) / len(images)
        if accuracy <= chance + 2 * (chance * (1 - chance) / len(images)) ** 0.5:
            said = (
                f"is right about {100 * accuracy:.1f} % of the validation images, and naming one class always about "
                f"{100 * chance:.1f} %: it is no better than chance, and its box will not be. Train it first, or check "
                "that its classes are in the data's order"
            )
    if said is not None and world().is_main:
        log.warning("%s %s", name, said)
    return accuracy


def _normalisation_fault(teacher: Classifier, data: Splits | LoaderSplits, accuracy: float) -> str | None:
    """What to say where another normalisation makes far more answers right."""
    device, channels = teacher.mean.device, data.image_shape[0]
    choices = {"the data's own": (data.mean, data.std)}
    choices |= {what: ((mean,) * channels, (std,) * channels) for what, (mean, std) in USUAL.items()}
    if channels == 3:
        choices["ImageNet's"] = IMAGENET
    images = data.validation
    few = images.first(TRIED) if isinstance(images, LoaderSet) else images.take(np.arange(len(images))[:TRIED])
    batches = evaluation_batches(few, device)
    found = {}
    for what, values in choices.items():
        tensors = {
            part: torch.tensor(numbers).to(teacher.mean).view_as(teacher.mean)
            for part, numbers in zip(("mean", "std"), values, strict=True)
        }
        if not all(torch.allclose(tensors[part], getattr(teacher, part)) for part in tensors):
            found[what] = evaluate(_Renormalised(teacher, tensors), batches)["accuracy"]
    best = max(found, key=lambda what: found[what], default=None)
    if best is None or found[best] < accuracy + FAR:
        return None
    mean, std = (", ".join(f"{value:.4g}" for value in part) for part in choices[best])
    return (
        f"is right about {100 * accuracy:.1f} % of the validation images; normalised by mean ({mean}), std ({std}) "
        f"({best}), it would be about {100 * found[best]:.1f} %: it was probably trained that way. Give these "
        "to sdb.wrap as mean= and std=, or put a preprocessor_config.json with image_mean and image_std beside its "
        "weights"
    )
