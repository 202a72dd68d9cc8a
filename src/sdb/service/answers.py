"""How much of the model's answer is given away: a policy from logits, logits, down to the label alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdb.errors import ConfigError

TOP_K = 5
ANSWERS = ("logits", "probabilities", "top_k", "labels")


def check_answers(answers: str) -> None:
    """Refuse an unknown policy.

    Raises:
        ConfigError: naming the known ones.
    """
    if answers not in ANSWERS:
        raise ConfigError(f"answers is {answers!r}: choose one of {', '.join(ANSWERS)}")


def outputs(answers: str, num_classes: int) -> list[dict[str, Any]]:
    """The output tensors of a policy as the protocol's metadata has them; -1 stands for the number of images."""
    count = min(TOP_K, num_classes)
    return {
        "logits": [{"name": "logits", "datatype": "FP32", "shape": [-1, num_classes]}],
        "probabilities": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, num_classes]}],
        "top_k": [
            {"name": "top_k", "datatype": "INT64", "shape": [-1, count]},
            {"name": "top_k_probabilities", "datatype": "FP32", "shape": [-1, count]},
        ],
        "labels": [{"name": "labels", "datatype": "INT64", "shape": [-1]}],
    }[answers]


def answer(logits: np.ndarray, answers: str) -> dict[str, np.ndarray]:
    """The output tensors of a policy, by name.

    Args:
        logits: float32 (N, K).
        answers: the policy.

    Returns:
        What `outputs` describes; classes by falling probability, the first of equal ones first.
    """
    if answers == "logits":
        return {"logits": logits}
    if answers == "labels":
        return {"labels": logits.argmax(axis=1).astype(np.int64)}
    probabilities = softmax(logits)
    if answers == "probabilities":
        return {"probabilities": probabilities}
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP_K].astype(np.int64)
    return {"top_k": best, "top_k_probabilities": np.take_along_axis(probabilities, best, axis=1)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float32 (N, K) of logits (N, K)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
