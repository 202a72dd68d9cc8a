"""A guard around any classifier that already answers: from labelled examples, without training.

    guard = sdb.guard(model, (inputs, labels), owner=owner, partners=("hospital",))
    guard = sdb.guard(None, (outputs, labels), owner=owner)

What a guard is stands in `sdb.answers.guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdb.answers.compact import CompactRows
from sdb.answers.decoys import decoy_map, unlike
from sdb.answers.guard import Guard, GuardInfo, as_outputs, kind_of, logits_of
from sdb.answers.levels import FOLDS, Steps, find
from sdb.answers.models import classes_of, function_of
from sdb.answers.ties import BUDGET, fit_tau, levels_with_ties, log_probabilities
from sdb.errors import ConfigError, DataError, ModelError
from sdb.keys import Key, Owner, derive
from sdb.models.onnx_file import open_onnx
from sdb.training.evaluation import honesty_of

LEVELS, BITS, DECOYS = 2, 1.2, 2
MOST_CLASSES = 10_000
BATCH = 256
Model = Callable[..., Any]


def guard(
    model: Model | Path | str | None,
    calibration: tuple[Any, Any],
    *,
    owner: Owner | None = None,
    key: Key | None = None,
    partners: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    confidence_levels: int = LEVELS,
    confidence_bits: float = BITS,
    num_decoys: int = DECOYS,
    tie_budget: float = BUDGET,
    outputs: bool = False,
    version: str | None = None,
) -> Guard:
    """Make a guard: everyone gets the class and an honest confidence, partners the model's own outputs.

    Args:
        model: any callable from inputs to outputs (N, C), probabilities or logits; an object with `predict_proba`; the
            path of an ONNX file; None for a calibration by outputs.
        calibration: inputs that the model has not learned from, and their labels (N,): numbers of classes, names of
            classes, or of an estimator with numbers as classes these. Inputs are an array, a list
            of whatever the model takes a list of, or a dictionary of either by name.
        owner: whose guard it is; decoys follow from the owner's secret.
        key: of a partner, in place of `owner` where there is one partner.
        partners: names, for whose keys (`owner.partner(name)`) the guard opens.
        class_names: in label order; by default the model's own (`config.id2label`, `classes_`), or numbers.
        confidence_levels: that keyless answers tell, at most; fewer where the examples cannot tell them apart.
        confidence_bits: that an answer may say beyond its class, on average.
        num_decoys: classes per class that get what is left of an answer.
        tie_budget: accuracy that ties may cost where they are used, a fraction of all answers.
        outputs: the calibration holds outputs, not inputs, also where there is a model.
        version: of the model, where a server says it: answers of another version are then refused.

    Raises:
        ConfigError: neither owner nor key, or a number is out of range.
        DataError: labels and examples do not fit each other.
        ModelError: the outputs are no classifier's: not (N, C), not finite, independent scores, or one class.
        MissingExtraError: onnxruntime is not installed.
    """
    whose = Owner.of(key) if owner is None and key is not None else owner
    if whose is None or (owner is not None and key is not None):
        raise ConfigError("whose guard is it? Give owner=, or key= where there is one partner")
    model = as_model(model)
    if model is None and not outputs and not hasattr(calibration[0], "shape"):
        raise ConfigError("a guard without a model is calibrated by outputs (N, C) and labels (N,)")
    names = _names(model, class_names)
    given, labels = calibration
    answers = as_outputs(given, names) if outputs or model is None else asked(model, given, names)
    logits, labels, gives = _checked(answers, _numbered(labels, classes_of(model), names))
    classes = logits.shape[1]
    names = names or tuple(map(str, range(classes)))
    if len(names) != classes:
        raise ConfigError(f"class_names: {len(names)} for {classes} classes")
    keys = (key,) if key else tuple(whose.partner(name) for name in partners)
    named, sure = logits.argmax(axis=1), np.exp(logits.max(axis=1))
    count = min(num_decoys, classes - 1)
    steps = find(sure, named, labels, classes, levels=confidence_levels, bits=confidence_bits)
    measured = {f"teacher_{name}": value for name, value in honesty_by(sure, named == labels).items()} | {
        "bits": steps.bits
    }
    expected = _cross_fitted(sure, named, labels, classes, confidence_levels, confidence_bits)
    measured |= {f"keyless_{name}": value for name, value in honesty_by(expected, named == labels).items()}
    ties = fit_tau(logits, labels, tie_budget)
    if ties.tau:
        right = levels_with_ties(logits, labels, ties.tau, steps.edges)
        measured |= {f"level_{n}_with_ties": value for n, value in enumerate(right.tolist(), 1) if value == value}
    info = GuardInfo(
        gives,
        names,
        whose.id,
        tuple(each.id for each in keys),
        len(labels),
        measured,
        steps.levels,
        ties,
        {} if version is None else {"version": version},
    )
    return Guard(info, _rows(steps, decoys_of(whose, info.id, np.exp(logits), count)), model)


def as_model(model: Any) -> Any:
    """What is asked, as a function: an ONNX file by its path, an estimator's `predict_proba`; None stays None.

    Raises:
        ModelError: it is nothing that can be asked.
        MissingExtraError: onnxruntime is not installed.
    """
    if model is None:
        return None
    return by_onnx(Path(model)) if isinstance(model, str | Path) else function_of(model)


def decoys_of(owner: Owner, guard_id: str, shares: np.ndarray, count: int) -> np.ndarray:
    """The decoys of a guard's classes, int64 (C, K), by the owner's secret, among the classes that are unlike.

    Args:
        owner: of the guard.
        guard_id: its name.
        shares: probabilities (N, C) of its calibration.
        count: K.
    """
    named, classes = shares.argmax(axis=1), shares.shape[1]
    secret = derive(owner.secret, f"guard/{guard_id}")
    choices = (unlike(shares[named == label].sum(axis=0), label, count) for label in range(classes))
    return np.array(decoy_map(secret, choices, count), dtype=np.int64)


def asked(model: Model, inputs: Any, class_names: tuple[str, ...] = ()) -> np.ndarray:
    """What a model gives for inputs, (N, C), asked in batches.

    Args:
        model: what is asked.
        inputs: as `guard` takes them.
        class_names: see `as_outputs`.

    Raises:
        DataError: there are no inputs, or inputs of different lengths.
        ModelError: the model fails.
    """
    parts = []
    for batch in _batches(inputs):
        try:
            parts.append(as_outputs(_quietly(model, batch), class_names))
        except ModelError:
            raise
        except Exception as error:  # anybody's code
            raise ModelError(f"the model fails on these inputs: {type(error).__name__}: {error}") from error
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) != 1:
        raise ModelError(f"the model gave outputs of shapes {sorted(shapes)} for batches of examples")
    return np.concatenate(parts)


def _quietly(model: Model, batch: Any) -> Any:
    """Ask once; a module of torch in evaluation mode, without gradients."""
    if not isinstance(model, torch.nn.Module):
        return model(**batch) if isinstance(batch, Mapping) else model(batch)

    def tensor(value: Any) -> Any:
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    training = model.training
    with torch.inference_mode():
        model.eval()
        found = (
            model(**{n: tensor(v) for n, v in batch.items()})
            if isinstance(batch, Mapping)
            else model(tensor(batch))
        )
    model.train(training)
    return found


def _batches(inputs: Any) -> Iterator[Any]:
    columns = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
    sizes = {len(column) for column in columns}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"inputs: of lengths {sorted(sizes)}; give as many of each, and at least one")
    for begin in range(0, sizes.pop(), BATCH):
        if isinstance(inputs, Mapping):
            yield {name: column[begin : begin + BATCH] for name, column in inputs.items()}
        else:
            yield inputs[begin : begin + BATCH]


def _names(model: Any, given: Sequence[str] | None) -> tuple[str, ...]:
    """Class names: those given, or the model's own; empty where nobody says them."""
    if given is not None:
        return tuple(map(str, given))
    holder = getattr(model, "model", model)  # a pipeline of transformers
    labels = getattr(getattr(holder, "config", None), "id2label", None)
    if isinstance(labels, Mapping):
        return tuple(str(labels[index]) for index in sorted(labels))
    classes = classes_of(model)
    return () if classes is None else tuple(map(str, classes.tolist()))


def _numbered(labels: Any, fitted: np.ndarray | None, names: tuple[str, ...]) -> np.ndarray:
    """Labels as numbers of classes, where they are the names of classes, or numbers that an estimator was fitted with.

    Raises:
        DataError: a label is no class.
    """
    given = np.asarray(labels)
    text = given.dtype.kind in "US" or (
        given.dtype.kind == "O" and all(isinstance(each, str) for each in given.flat)
    )
    if text and names:
        known: list[Any] = list(names)
    elif fitted is not None and fitted.dtype.kind in "iufb" and given.dtype.kind in "iufb":
        known = fitted.tolist()
    else:
        return given
    places = {name: place for place, name in enumerate(known)}
    asked = given.astype(str) if text else given
    if strange := sorted(set(asked.ravel().tolist()) - places.keys()):
        raise DataError(f"labels: {strange[0]!r} is no class of the model's: {', '.join(map(str, known[:12]))}")
    return np.array([places[each] for each in asked.ravel().tolist()], np.int64).reshape(given.shape)


def _checked(outputs: np.ndarray, labels: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Log-probabilities, labels and what the outputs are."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise ModelError(
            f"outputs {outputs.shape}: a guard answers for classifiers, (N, C) with at least 2 classes; one number "
            "per input is a regression, or give both classes' probabilities"
        )
    if outputs.shape[1] > MOST_CLASSES:
        raise ModelError(f"outputs {outputs.shape}: a guard takes up to {MOST_CLASSES:,} classes")
    if not np.isfinite(outputs).all():
        raise ModelError(
            "outputs: NaN or infinity among the calibration's; leave out what the model cannot answer"
        )
    gives = kind_of(outputs)
    if gives is None:
        raise ModelError(
            "outputs: scores in [0, 1] that do not sum to 1, as independent labels have them; a guard answers for "
            "models whose classes exclude each other"
        )
    return log_probabilities(logits_of(outputs, gives)), as_labels(labels, *outputs.shape), gives


def as_labels(labels: Any, count: int, classes: int) -> np.ndarray:
    """Labels int64 (N,) of N = `count` examples.

    Raises:
        DataError: they are of another form or number, or no classes.
    """
    given = np.asarray(labels)
    if given.dtype.kind not in "iu" or given.shape != (count,):
        raise DataError(f"labels: {given.dtype} {given.shape}; give {count} whole numbers, one per example")
    if count and (given.min() < 0 or given.max() >= classes):
        raise DataError(f"labels: {given.min()} to {given.max()}; classes are 0 to {classes - 1}")
    return given.astype(np.int64)


def _rows(steps: Steps, decoys: np.ndarray) -> CompactRows:
    return CompactRows(steps.edges, steps.told.astype(np.float32), decoys)


def _cross_fitted(
    sure: np.ndarray, named: np.ndarray, labels: np.ndarray, classes: int, levels: int, bits: float
) -> np.ndarray:
    """Confidences (N,) from levels that were found without the example itself: what new inputs can expect."""
    told, folds = np.empty(len(sure)), np.arange(len(sure)) % FOLDS
    for fold in np.unique(folds):
        own = folds == fold
        rest = own if own.all() else ~own  # of a single example there is no other
        steps = find(sure[rest], named[rest], labels[rest], classes, levels=levels, bits=bits)
        level = (sure[own].astype(np.float32)[:, None] > steps.edges[named[own]]).sum(axis=1)
        told[own] = steps.told[named[own], level]
    return told


def honesty_by(sure: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Accuracy, expected calibration error and Brier score of confidences (N,), fractions; `right` is bool (N,)."""
    found = honesty_of(torch.from_numpy(sure), torch.from_numpy(right.astype(np.float64)))
    kept = {name: found[name] for name in ("calibration_error", "brier")}
    return {"accuracy": float(right.mean())} | kept


def by_onnx(path: Path) -> Callable[..., Any]:
    """An ONNX file as a function: of one array, or of arrays by the names of its inputs, to its first output.

    Raises:
        ModelError: missing, or ONNX Runtime does not load it.
        MissingExtraError: onnxruntime is not installed.
    """
    session = open_onnx(path)
    first = session.get_inputs()[0].name

    def answers(*inputs: Any, **named: Any) -> Any:
        return session.run(None, named or {first: np.asarray(inputs[0])})[0]

    return answers
