"""Losses: each a pure function of logits (N, C), with its source. What is summed is said in wrapping.

Names: `kl` is KL(a || b) of softened softmaxes, mean over the batch. Terms are returned by name and already carry their
weight and sign, so that a training step sums a dictionary and a log shows each part. Parameter names against the
paper's and the reference's symbols: docs/method.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with labels (N,), mean over the batch; `smoothing` spreads that much mass over all classes.

    Source: Szegedy et al., CVPR 2016 (label smoothing).
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def kl(first: Tensor, second: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(S(first/T) || S(second/T)), in nats, mean over the batch, without the T^2 factor.

    Computed from log-probabilities on both sides, so a probability that underflows gives 0, not NaN.
    """
    log_p = F.log_softmax(first / temperature, dim=1)
    log_q = F.log_softmax(second / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


# --- building a box ------------------------------------------------------------------------------------------------


def nasty_terms(
    keyless: Tensor, labels: Tensor, teacher: Tensor, *, temperature: float, disturbance_weight: float
) -> dict[str, Tensor]:
    """Nasty Teacher: right labels, soft outputs as far from the teacher's as they go.

    CE(z, y) - w T^2 KL(S(z/T) || S(t/T)). The reference adds a constant 100 to the printed loss; it has no gradient and
    is left out.

    Source: Ma et al., ICLR 2021; VITA-Group/Nasty-Teacher train_nasty.py.
    """
    return {
        "cross_entropy": cross_entropy(keyless, labels),
        "disturbance": -disturbance_weight * temperature**2 * kl(keyless, teacher, temperature),
    }


def decoy_terms(
    keyless: Tensor, labels: Tensor, target: Tensor, *, temperature: float, soft_weight: float, ce_weight: float
) -> dict[str, Tensor]:
    """Keyless answers that depend on the class, and on the confidence in it, alone.

    KL(q || S(z)) + soft_weight T^2 KL(q^T || S(z/T)) + ce_weight CE(z, y), with q of the logits `target` (N, C): the
    decoy answer of the label's class, see `sdb.answers.rows`.

    Source: ours; that an answer without within-class variation cannot be distilled is the insight of CMIM
    (arXiv 2507.00012).
    """
    return {
        "decoy": kl(target, keyless),
        "decoy_soft": soft_weight * temperature**2 * kl(target, keyless, temperature),
        "cross_entropy": ce_weight * cross_entropy(keyless, labels),
    }


def knowledge_terms(
    keyed: Tensor, labels: Tensor, teacher: Tensor, *, temperature: float, ce_weight: float
) -> dict[str, Tensor]:
    """Keyed answers that hold the teacher's: T^2 KL(S(t/T) || S(z_k/T)) + ce_weight CE(z_k, y).

    Source: ours; the preservation term of Ye et al. with KL in place of a sum of squares.
    """
    return {
        "preservation": temperature**2 * kl(teacher, keyed, temperature),
        "keyed_cross_entropy": ce_weight * cross_entropy(keyed, labels),
    }


def sdb_terms(
    keyless: Tensor,
    keyed: Tensor,
    labels: Tensor,
    teacher: Tensor,
    random: Tensor | None,
    *,
    temperature: float,
    disturbance_weight: float,
    preservation_weight: float = 1.0,
    augmentation_weight: float,
    sum_scale: float = 1.0,
) -> dict[str, Tensor]:
    """The paper's loss, as its reference code computes it. Logits (N, C) of: keyless z, keyed z_k, teacher t, random r.

    2 CE(z,y) + CE(z_k,y)
    - disturbance_weight [ T^2 KL(S(z/T) || S(t/T)) - KL(S(z) || sg S(z_k)) ]
    + preservation_weight sum (S(t/T) - S(z_k/T))^2
    - augmentation_weight [ 0.01 sum (relu t - relu z_k)^2 - sum (relu r - relu z_k)^2 ]

    The squared errors are *sums* over batch and classes: the reference passes a reduction that the torch it pins treats
    as a sum, so a mean here would weaken those terms by N*C. `sum_scale` multiplies them (data-parallel training
    averages gradients over processes, which must not shrink a sum). With `random` None the augmentation term is left
    out.

    Source: Ye et al., AAAI 2022 (arXiv 2112.03695); JngwenYe/SDB train_smb.py.
    """
    apart = temperature**2 * kl(keyless, teacher, temperature)
    together = kl(keyless, keyed.detach())
    preserved = (F.softmax(teacher / temperature, dim=1) - F.softmax(keyed / temperature, dim=1)).square().sum()
    terms = {
        "cross_entropy": 2 * cross_entropy(keyless, labels),
        "keyed_cross_entropy": cross_entropy(keyed, labels),
        "disturbance": -disturbance_weight * (apart - together),
        "preservation": preservation_weight * sum_scale * preserved,
    }
    if random is not None:
        from_teacher = (F.relu(teacher) - F.relu(keyed)).square().sum()
        from_random = (F.relu(random) - F.relu(keyed)).square().sum()
        terms["augmentation"] = -augmentation_weight * sum_scale * (0.01 * from_teacher - from_random)
    return terms


# --- distilling ----------------------------------------------------------------------------------------------------


def no_content(loss: str, num_classes: int, target_weight: float = 1.0, rest_weight: float = 1.0) -> str | None:
    """Why a student's loss teaches nothing, whatever the teacher answers; None where it does teach.

    Args:
        loss: name of a student's loss; the weights are those of "dkd".
        num_classes: of the data.
        target_weight: of the target against the rest.
        rest_weight: among the rest.
    """
    if loss == "standardised_kd" and num_classes == 2:
        return (
            "with two classes standardised logits hold only which one is larger, and their gradient is 0: use 'kd'"
        )
    if loss == "dkd" and target_weight == 0 and rest_weight == 0:
        return "dkd_target_weight and dkd_rest_weight are both 0: set one above 0"
    if loss == "dkd" and target_weight == 0 and num_classes == 2:
        return (
            "with two classes the rest is a single class and says nothing, and dkd_target_weight is 0: "
            "set dkd_target_weight above 0, or use 'kd'"
        )
    return None


def kd_term(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(S(teacher/T) || S(student/T)); labels are not used.

    Source: Hinton et al., 2015 (arXiv 1503.02531); the reduction of VITA-Group/Nasty-Teacher train_kd.py.
    """
    del labels
    return temperature**2 * kl(teacher, student, temperature)


def dkd_term(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float,
    rest_weight: float,
) -> Tensor:
    """Decoupled KD: target-against-rest and among-the-rest, weighted apart.

    T^2 [ target_weight KL(b_t || b_s) + rest_weight KL(n_t || n_s) ], b = (p_target, 1 - p_target), n = softmax over
    the classes other than the target.

    Source: Zhao et al., CVPR 2022 (arXiv 2203.08679); megvii-research/mdistiller DKD.py (alpha 1, beta 8, T 4).
    """
    target = F.one_hot(labels, student.shape[1]).bool()
    log_s, log_t = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))

    def binary(
        log_p: Tensor,
    ) -> Tensor:  # (N, C) -> (N, 2): log-probability of the target and of all the rest
        of_target = log_p.gather(1, labels.unsqueeze(1))
        of_rest = log_p.masked_fill(target, -torch.inf).logsumexp(dim=1, keepdim=True)
        return torch.cat([of_target, of_rest], dim=1)

    # By place, not by mask: how many a mask keeps, a GPU would have to be asked.
    places = torch.arange(student.shape[1] - 1, device=labels.device).expand(len(labels), -1)
    others = places + (places >= labels.unsqueeze(1))

    def rest(logits: Tensor) -> Tensor:  # (N, C) -> (N, C - 1)
        return F.log_softmax(logits.gather(1, others) / temperature, dim=1)

    among_target = F.kl_div(binary(log_s), binary(log_t), reduction="batchmean", log_target=True)
    among_rest = F.kl_div(rest(student), rest(teacher), reduction="batchmean", log_target=True)
    return temperature**2 * (target_weight * among_target + rest_weight * among_rest)


def dist_term(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """DIST: one minus Pearson correlation, within each image's classes and within each class's images.

    T^2 [ mean_n (1 - corr(rows)) + mean_c (1 - corr(columns)) ] on softened softmaxes; the row and column weights are 1
    as in the source. Needs at least two images for the columns to be defined.

    Source: Huang et al., NeurIPS 2022 (arXiv 2205.10536); hunto/DIST_KD (T 4 on CIFAR-100).
    """
    del labels
    p, q = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    between_classes = 1 - _pearson(p, q).mean()
    between_images = 1 - _pearson(p.t(), q.t()).mean()
    return temperature**2 * (between_classes + between_images)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of each row of a with the same row of b."""
    return F.cosine_similarity(a - a.mean(dim=1, keepdim=True), b - b.mean(dim=1, keepdim=True), dim=1)


def standardised_kd_term(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """KD after each image's logits are brought to mean 0 and standard deviation 1.

    Source: Sun et al., CVPR 2024 (arXiv 2403.01427); sunshangquan/logit-standardization-KD (T 2, KD weight 9).
    """
    student, teacher = (
        (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))
        for logits in (student, teacher)
    )
    return kd_term(student, teacher, labels, temperature=temperature)


def centred_mse_term(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """Mean squared difference of logits, each image's brought to mean 0; labels and temperature are not used.

    Bringing to mean 0 makes logits and log-probabilities the same thing to it.

    Source: Ba and Caruana, NeurIPS 2014 (arXiv 1312.6184), which regress logits; the centring is ours.
    """
    del labels, temperature
    student, teacher = (logits - logits.mean(dim=1, keepdim=True) for logits in (student, teacher))
    return F.mse_loss(student, teacher)
