"""Students of guarded models: what a thief trains on texts, tables or anything else.

A student is made by a function from a seed, so that the students of a pair begin alike:

    lambda seed: MyStudent(seed)                               # fit(inputs, targets, weights), predict(inputs)
    lambda seed: RandomForestClassifier(random_state=seed)     # an estimator: fit(X, y, sample_weight=), predict(X)
    lambda seed: MyNetwork()                                   # a torch module; how long it learns: `module_student`

Those that are built in are in `sdb.audit.guard_learners`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sdb.audit.guard_networks import LEARNING_RATE, fit_network, scores_of, take
from sdb.errors import ModelError

# Shares of a class below this get no copy of their example.
SMALLEST_SHARE = 1e-3
# Of a network that comes without `module_student`.
EPOCHS = 60


class Student(Protocol):
    """What learns, and then answers."""

    def fit(self, inputs: Any, targets: np.ndarray, weights: np.ndarray, /) -> Any:
        """Learn from N examples: probabilities float64 (N, C), and how much each example counts, float64 (N,)."""

    def predict(self, inputs: Any, /) -> Any:
        """Labels int (N,), or scores (N, C) of which the highest counts."""


# From a seed to a student, an estimator or a network.
NewStudent = Callable[[int], Any]


def module_student(
    network: Callable[[int], nn.Module], *, epochs: int = EPOCHS, learning_rate: float = LEARNING_RATE
) -> NewStudent:
    """A kind of student that is a network: AdamW, one cycle of the learning rate, soft cross-entropy.

    Args:
        network: a fresh one by a seed; torch's own is set to it before. It takes a batch of the inputs (several by
            name) as tensors, in float32 where they are floating-point numbers, and gives logits (B, C).
        epochs: of all examples.
        learning_rate: the highest of the cycle.
    """
    return lambda seed: ModuleStudent(network(seed), seed, epochs, learning_rate)


class ModuleStudent:
    """A network as a student; see `module_student`."""

    def __init__(
        self, network: nn.Module, seed: int, epochs: int = EPOCHS, learning_rate: float = LEARNING_RATE
    ) -> None:
        self.network, self.seed, self.epochs, self.learning_rate = network, seed, epochs, learning_rate

    def fit(self, inputs: Any, targets: np.ndarray, weights: np.ndarray) -> None:
        """Learn; the loss is the weighted mean of the cross-entropies with the targets."""
        soft, counts = torch.from_numpy(targets).float(), torch.from_numpy(weights).float()

        def loss(logits: Tensor, at: Tensor) -> Tensor:
            if logits.shape != soft[at].shape:
                raise ModelError(
                    f"student: the network gave {tuple(logits.shape)}; {tuple(soft[at].shape)} is needed: a logit for "
                    "each class"
                )
            return (counts[at] * nn.functional.cross_entropy(logits, soft[at], reduction="none")).mean()

        fit_network(self.network, _tensors(inputs), loss, self.epochs, self.seed, self.learning_rate)

    def predict(self, inputs: Any) -> np.ndarray:
        """Logits (N, C)."""
        return scores_of(self.network, _tensors(inputs)).numpy()


class TableStudent(ModuleStudent):
    """The same of a table, whose columns are brought to mean 0 and deviation 1 by the examples that it learns from."""

    def fit(self, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Learn the columns' means and deviations, then the rest."""
        spread = inputs.std(axis=0)
        self.mean, self.spread = inputs.mean(axis=0), np.where(spread > 0, spread, 1.0)
        super().fit(self._scaled(inputs), targets, weights)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Logits (N, C)."""
        return super().predict(self._scaled(inputs))

    def _scaled(self, inputs: np.ndarray) -> np.ndarray:
        return (inputs - self.mean) / self.spread


def copies(targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Soft targets for whoever takes one label per example: each example once per class, counting as much as its share.

    Shares below `SMALLEST_SHARE` are left out; the others of their example grow, so that it counts as much as before.

    Args:
        targets: probabilities (N, C).
        weights: of examples, (N,).

    Returns:
        Of each copy: its example int64 (M,), its class int64 (M,), how much it counts float64 (M,).
    """
    examples, classes = np.nonzero(targets >= SMALLEST_SHARE)
    shares = targets[examples, classes]
    kept = np.bincount(examples, shares, minlength=len(targets))
    return examples, classes, weights[examples] * shares / kept[examples]


class EstimatorStudent:
    """An estimator of scikit-learn's kind as a student: soft targets become weighted copies, see `copies`."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, inputs: Any, targets: np.ndarray, weights: np.ndarray) -> None:
        """Learn."""
        examples, classes, counts = copies(targets, weights)
        # Some estimators want labels without gaps.
        self.present, labels = np.unique(classes, return_inverse=True)
        self.estimator.fit(take(inputs, examples), labels, sample_weight=counts)

    def predict(self, inputs: Any) -> np.ndarray:
        """Labels (N,)."""
        return self.present[np.asarray(self.estimator.predict(inputs)).astype(np.int64)]


def fitted(new: NewStudent, inputs: Any, targets: np.ndarray, weights: np.ndarray, seed: int) -> Student:
    """A student that has learned; torch's random numbers are the seed's meanwhile, and put back.

    Raises:
        ModelError: it is no student, or its `fit` fails.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            student = _as_student(new(seed), seed)
            student.fit(inputs, targets, weights)
        except ModelError:
            raise
        except Exception as error:  # anybody's code
            raise ModelError(
                f"student: it fails to learn: {type(error).__name__}: {error}; it needs fit(inputs, targets, "
                "weights), or fit(X, y, sample_weight=) as scikit-learn's estimators have it"
            ) from error
    return student


def named_by(student: Student, inputs: Any, count: int, classes: int) -> np.ndarray:
    """The classes that a student names, int64 (N,).

    Args:
        student: what is asked.
        inputs: of N = `count` examples.
        count: N.
        classes: C.

    Raises:
        ModelError: it fails, or gives something else.
    """
    try:
        found = np.asarray(student.predict(inputs))
    except Exception as error:  # anybody's code
        raise ModelError(f"student: predict fails: {type(error).__name__}: {error}; mend the student") from error
    needed = f"give labels ({count},) or scores ({count}, {classes})"
    if found.shape == (count, classes) and found.dtype.kind in "fiu":
        if not np.isfinite(found).all():
            raise ModelError(f"student: predict gave NaN or infinity; {needed}, all finite")
        return found.argmax(axis=1)
    whole = found.shape == (count,) and found.dtype.kind in "fiu" and (found == np.floor(found)).all()
    if not whole:
        raise ModelError(f"student: predict gave {found.dtype} {found.shape}; {needed}")
    if count and (found.min() < 0 or found.max() >= classes):
        raise ModelError(
            f"student: predict gave labels {found.min():g} to {found.max():g}; classes are 0 to {classes - 1}"
        )
    return found.astype(np.int64)


def _as_student(made: Any, seed: int) -> Student:
    if isinstance(made, nn.Module):
        return ModuleStudent(made, seed)
    if not (callable(getattr(made, "fit", None)) and callable(getattr(made, "predict", None))):
        raise ModelError(
            f"student: the function gave a {type(made).__name__}; it must give an object with fit(inputs, targets, "
            "weights) and predict(inputs), an estimator, or an nn.Module"
        )
    # Estimators say what they are by `get_params`; others that take one label per example by the name of a parameter.
    if hasattr(made, "get_params") or "sample_weight" in inspect.signature(made.fit).parameters:
        return EstimatorStudent(made)
    return made


def _tensors(inputs: Any) -> Any:
    """Arrays as tensors, floating-point numbers in float32; everything else as it is."""
    if isinstance(inputs, Mapping):
        return {name: _tensors(column) for name, column in inputs.items()}
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiub":
        inputs = torch.from_numpy(np.ascontiguousarray(inputs))
    is_real = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return inputs.float() if is_real else inputs
