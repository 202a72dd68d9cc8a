"""What a guard may be given as a model, as a function that is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sdb.errors import ModelError


def function_of(model: Any) -> Callable[..., Any]:
    """A callable as it is, or an estimator's `predict_proba`.

    Raises:
        ModelError: it is neither.
    """
    if callable(model):
        return model
    if hasattr(model, "predict_proba"):
        return model.predict_proba
    kind = type(model).__name__
    raise ModelError(
        f"{kind} has no predict_proba and is no function: give a function to outputs (N, classes), or an estimator "
        "that says probabilities, such as scikit-learn's CalibratedClassifierCV around yours"
    )


def classes_of(model: Any) -> np.ndarray | None:
    """The classes that an estimator was fitted with, in the order of its outputs; None for other models."""
    holder = getattr(model, "__self__", model)  # an estimator's predict_proba
    classes = getattr(holder, "classes_", None)
    try:
        found = None if classes is None else np.asarray(classes)
    except ValueError:  # of several outputs, which are refused later
        return None
    return found if found is not None and found.ndim == 1 else None
