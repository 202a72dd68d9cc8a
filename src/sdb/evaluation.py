"""How good a model's probabilities are, beside how often it is right: calibration, and the confidence a user sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdb.data import Batches


@torch.no_grad()
def calibration(model: nn.Module, batches: Batches, bins: int = 15) -> dict[str, float]:
    """Expected calibration error and mean confidence, fractions, over all images.

    The error is the mean over images of |accuracy - confidence| of the image's bin of confidence, bins of equal width.

    Source: Guo et al., ICML 2017 (arXiv 1706.04599), equation 3, with 15 bins.
    """
    training = model.training
    model.eval()
    confidences, corrects = [], []
    for batch in batches.epoch(0):
        confidence, answer = model(batch.images).float().softmax(dim=1).max(dim=1)
        confidences.append(confidence.cpu())
        corrects.append((answer == batch.labels).float().cpu())
    model.train(training)
    confidence, correct = torch.cat(confidences), torch.cat(corrects)
    return {"calibration_error": _error(confidence, correct, bins), "confidence": float(confidence.mean())}


def _error(confidence: Tensor, correct: Tensor, bins: int) -> float:
    """Sum over bins of |sum of correct - sum of confidence|, over the number of images."""
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins).index_add_(0, place, correct - confidence)
    return float(gaps.abs().sum() / len(confidence))
