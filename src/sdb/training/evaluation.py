"""How good a model's probabilities are, beside how often it is right: calibration, and the confidence a user sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdb.data import Batches, ImageSet, LoaderBatches, LoaderSet
from sdb.errors import ConfigError
from sdb.runtime import world
from sdb.training.repeated_views import images_at_once


@torch.no_grad()
def calibration(model: nn.Module, batches: Batches | LoaderBatches, bins: int = 15) -> dict[str, float]:
    """How honest a model's confidence is, see `honesty`, over all images."""
    return honesty(*answers_to(model, batches), bins)


@torch.no_grad()
def answers_to(model: nn.Module, batches: Batches | LoaderBatches) -> tuple[Tensor, Tensor]:
    """A model's logits (N, C) and the labels (N,) of all images, on the CPU, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    logits, labels = [], []
    for batch in batches.epoch(0):
        logits.append(model(batch.images).float().cpu())
        labels.append(batch.labels.cpu())
    model.train(training)
    return torch.cat(logits), torch.cat(labels)


def honesty(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """Expected calibration error, Brier score of the top-1 confidence and its mean, fractions.

    The error is the mean over images of |accuracy - confidence| of the image's bin of confidence, bins of equal width;
    the Brier score is the mean of (confidence - right)^2, with right 1 or 0.

    Args:
        logits: (N, C).
        labels: int64 (N,).
        bins: of confidence.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), equation 3, with 15 bins; Brier, 1950.
    """
    confidence, answer = logits.float().softmax(dim=1).max(dim=1)
    return honesty_of(confidence, (answer == labels).float(), bins)


def honesty_of(confidence: Tensor, correct: Tensor, bins: int = 15) -> dict[str, float]:
    """The same of confidences (N,), with 1 where an answer is right and 0 where not, of the same type (N,)."""
    return {
        "calibration_error": _error(confidence, correct, bins),
        "confidence": float(confidence.mean()),
        "brier": float((confidence - correct).square().mean()),
    }


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> list[dict[str, float]]:
    """The bins of `honesty` that hold images: mean confidence and accuracy, fractions, and the number of images."""
    confidence, answer = logits.float().softmax(dim=1).max(dim=1)
    correct = (answer == labels).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    return [
        {
            "confidence": float(confidence[place == each].mean()),
            "accuracy": float(correct[place == each].mean()),
            "images": int((place == each).sum()),
        }
        for each in place.unique().tolist()
    ]


def separation(logits: Tensor, labels: Tensor) -> float:
    """The chance that a right answer is surer than a wrong one (AUROC of the confidence); 1 where none is wrong.

    Ties count half.

    Source: Hendrycks and Gimpel, ICLR 2017 (arXiv 1610.02136).
    """
    confidence, answer = logits.double().softmax(dim=1).max(dim=1)
    right = answer == labels
    hits, misses = int(right.sum()), int((~right).sum())
    if not hits or not misses:
        return 1.0
    _, place, counts = confidence.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    ranks = (ends - (counts.double() - 1) / 2)[place]  # from 1; equal ones share their mean
    return float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * misses))


def measured(models: Mapping[str, nn.Module | None], batches: Batches | LoaderBatches) -> dict[str, float]:
    """What each model that is there does, fractions, and the number of images.

    The names are those given, followed by _accuracy, _calibration_error, _brier and _auroc; and "images".
    """
    result: dict[str, float] = {}
    for name, model in models.items():
        if model is not None:
            model.eval()  # and left so: what is measured is finished, and parts of it are shared
            result[f"{name}_accuracy"] = evaluate(model, batches)["accuracy"]
            answers = answers_to(model, batches)
            honest = honesty(*answers)
            result |= {f"{name}_{score}": honest[score] for score in ("calibration_error", "brier")}
            result[f"{name}_auroc"] = separation(*answers)
    return result | {"images": float(len(batches.images))}


def _error(confidence: Tensor, correct: Tensor, bins: int) -> float:
    """Sum over bins of |sum of correct - sum of confidence|, over the number of images."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=correct.dtype).index_add_(0, place, correct - confidence)
    return float(gaps.abs().sum() / len(confidence))


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches | LoaderBatches) -> dict[str, float]:
    """Accuracy (a fraction) and mean cross-entropy over all images, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64)
    for batch in batches.epoch(0):
        logits = model(batch.images).float()
        correct = (logits.argmax(dim=1) == batch.labels).sum()
        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        part = torch.stack(
            [correct.double(), loss.double(), torch.full_like(loss, len(logits), dtype=torch.float64)]
        )
        totals = totals.to(part.device) + part
    model.train(training)
    if world().size > 1:
        dist.all_reduce(totals)
    correct, loss, count = totals.tolist()
    if count == 0:
        raise ConfigError("there are no images to evaluate on")
    return {"accuracy": correct / count, "cross_entropy": loss / count}


@torch.no_grad()
def class_mean_outputs(model: nn.Module, batches: Batches | LoaderBatches, num_classes: int) -> Tensor:
    """Mean log-probabilities (C, C) of a model: row c is the mean over images with label c; NaN for a class without.

    Means of logarithms keep the order of the unlikely classes, which a confident model's probabilities lose.
    """
    training = model.training
    model.eval()
    sums, counts = torch.zeros(num_classes, num_classes, dtype=torch.float64), torch.zeros(num_classes)
    for batch in batches.epoch(0):
        logs = nn.functional.log_softmax(model(batch.images).double(), dim=1).cpu()
        sums.index_add_(0, batch.labels.cpu(), logs)
        counts += torch.bincount(batch.labels.cpu(), minlength=num_classes)
    model.train(training)
    if world().size > 1:
        dist.all_reduce(sums)
        dist.all_reduce(counts)
    return sums / counts.unsqueeze(1)


@overload
def evaluation_batches(images: ImageSet, device: torch.device, shared: bool = True) -> Batches: ...
@overload
def evaluation_batches(images: LoaderSet, device: torch.device, shared: bool = True) -> LoaderBatches: ...
def evaluation_batches(
    images: ImageSet | LoaderSet, device: torch.device, shared: bool = True
) -> Batches | LoaderBatches:
    """All images in order, unaugmented; this process's share of them, or all. A loader's as the loader gives them."""
    if isinstance(images, LoaderSet):
        return LoaderBatches(images, device, batch_size=images_at_once(images))
    if not shared:
        return Batches(images, images_at_once(images), device=device)
    place = world()
    batch_size = max(1, images_at_once(images) // place.size) * place.size
    return Batches(images, batch_size, device=device, rank=place.rank, world_size=place.size)
