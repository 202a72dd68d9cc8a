"""Calibration against a slow loop, and at its extremes."""

import numpy as np
import pytest
import torch

from sdb.training.evaluation import calibration, evaluation_batches


def slow(probabilities, labels, bins=15):
    confidence, answer = probabilities.max(1), probabilities.argmax(1)
    total = 0.0
    for number in range(bins):
        inside = [
            i
            for i, value in enumerate(confidence)
            if number <= value * bins < number + 1 or (number == bins - 1 and value == 1)
        ]
        if inside:
            right = sum(answer[i] == labels[i] for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(right - sum(confidence[i] for i in inside) / len(inside))
    return total, confidence.mean()


def test_calibration_equals_a_loop_over_bins(digits, make_net):
    model = make_net(digits).eval()
    found = calibration(model, evaluation_batches(digits.test, "cpu"))
    with torch.no_grad():
        images = torch.from_numpy(np.asarray(digits.test.images)).float() / 255
        probabilities = model(images).softmax(1).double().numpy()
    error, confidence = slow(probabilities, digits.test.labels)
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert found["confidence"] == pytest.approx(confidence, abs=1e-6)


def test_a_certain_and_always_wrong_model_has_error_one(digits):
    class Wrong(torch.nn.Module):
        def forward(self, images):
            return torch.nn.functional.one_hot(torch.full((len(images),), 11), 12).float() * 1e4

    found = calibration(Wrong(), evaluation_batches(digits.test, "cpu"))
    assert found == {name: pytest.approx(1.0) for name in ("calibration_error", "confidence", "brier")}
