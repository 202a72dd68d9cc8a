"""The loss terms of the trained defences, as pure functions of logits (N, K), beside those in `sdb.losses`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def sparse(logits: Tensor, top_k: int) -> Tensor:
    """Logits (N, K) with all but each image's `top_k` largest at minus infinity."""
    best = logits.topk(min(top_k, logits.shape[1]), dim=1)
    return torch.full_like(logits, -torch.inf).scatter(1, best.indices, best.values)


def predictive_divergence(output: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Exponential predictive divergence of softened softmaxes: sum_c exp(q_c) (q_c - p_c), mean over the batch.

    p is the softmax of `output`, q of `target`, which may hold minus infinities. Linear in p: it pulls mass towards
    the classes with the larger q and is no distance.

    Source: Yilmaz and Keles, 2024 (arXiv 2403.05181); its code reaches the same sum by a KL divergence with logarithmic
    targets that is given probabilities.
    """
    p, q = (F.softmax(logits / temperature, dim=1) for logits in (output, target))
    return (q.exp() * (q - p)).sum(dim=1).mean()


def cluster_terms(
    logits: Tensor,
    labels: Tensor,
    centroids: Tensor,
    *,
    temperatures: Sequence[float],
    cluster_weight: float,
) -> dict[str, Tensor]:
    """Cross-entropy, and outputs drawn to one answer a class at several temperatures.

    CE(z, y) + cluster_weight mean_i T_i^2 KL(S(z / T_i) || Q_y^i), means over the batch and over the temperatures.

    Args:
        logits: (N, K).
        labels: int64 (N,).
        centroids: (number of temperatures, K, K), probabilities: row y of the i-th is the class's mean output at T_i.
        temperatures: T_i.
        cluster_weight: of the second term.

    Source: CMIM (arXiv 2507.00012) after its abstract; the estimate of the conditional mutual information from
    distances to a class's centroid: Ye et al., ICLR 2024 (arXiv 2401.08732, which maximises it). That T_i^2 evens out
    the temperatures, and one weight for all, are ours.
    """
    terms = {"cross_entropy": F.cross_entropy(logits, labels)}
    distances = []
    for temperature, table in zip(temperatures, centroids, strict=True):
        log_p = F.log_softmax(logits / temperature, dim=1)
        log_q = table[labels].clamp_min(torch.finfo(table.dtype).tiny).log()
        distances.append(temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
    return terms | {"cluster": cluster_weight * torch.stack(distances).mean()}
