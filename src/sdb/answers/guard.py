"""A guard: what is answered in place of a classifier's outputs, without its weights and without training.

    guard = sdb.guard(model, (inputs, labels), owner=owner)     # `sdb.wrapping.guarded`
    guard(inputs)                                               # anyone: the class, an honest level, decoys
    guard.unlock(key)(inputs)                                   # a partner: the model's own outputs
    guard.save("model.guard"); Guard.load("model.guard", model=model)

A guard works on outputs; inputs are passed through unseen. It protects where the owner runs the model and others ask
it. Who holds the model needs no guard's leave: for weights that are handed out, `sdb.wrap` makes a box.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from sdb.answers.compact import CompactRows
from sdb.answers.levels import Level
from sdb.answers.models import function_of
from sdb.answers.ties import TieCost, Ties
from sdb.errors import CheckpointError, ConfigError, KeyFileError, ModelError, RunExistsError
from sdb.runtime import JSON_LIMIT, WEIGHTS_LIMIT, json_text, parse_json, read_bytes, write_atomic

if TYPE_CHECKING:
    from sdb.keys import Key, Owner

VERSION = 1
MANIFEST, ROWS, SIGNATURE = "guard.json", "rows.safetensors", "signature.json"
Gives = Literal["logits", "probabilities"]
# Outputs are taken for probabilities where they are in [0, 1] and sum to 1 up to this: half precision, and rounding.
SUM_SLACK = 1e-2
# Probabilities below this count as this where logarithms are taken.
SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class GuardInfo:
    """What a guard says of itself; all of it is public.

    Attributes:
        gives: what the model's outputs are, and so the guard's.
        class_names: in label order.
        owner_id: one-way id of the owner, see `Owner.id`.
        key_ids: one-way ids of the keys whose holders get the model's own outputs.
        examples: how many labelled examples it was made from.
        measured: on these, fractions: teacher_ and keyless_ accuracy, calibration_error and brier, each example
            answered by rows that were found without it; and bits: what an answer says beyond its class.
        levels: of confidence, from the least sure.
        ties: what near ties would cost, see `sdb.answers.ties`; a margin of 0 where too few examples say.
        model: its version, where it is known: answers of another are refused.
        id: random name of this guard.
    """

    gives: Gives
    class_names: tuple[str, ...]
    owner_id: str
    key_ids: tuple[str, ...]
    examples: int
    measured: Mapping[str, float]
    levels: tuple[Level, ...]
    ties: TieCost
    model: Mapping[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: os.urandom(16).hex())


class Guard:
    """Answers in place of a model's outputs.

    Args:
        info: what it says of itself.
        rows: what it answers.
        model: a function to outputs (N, C), or an estimator with `predict_proba`; None where outputs come from
            elsewhere.

    Raises:
        ModelError: the model is nothing that can be asked.
    """

    def __init__(self, info: GuardInfo, rows: CompactRows, model: Any = None) -> None:
        self.info, self.rows = info, rows
        self.model = None if model is None else function_of(model)

    def __call__(self, *inputs: Any, **named: Any) -> np.ndarray:
        """What anyone is told about inputs, float (N, C): passed to the model as they are.

        Raises:
            ConfigError: the guard has no model.
            ModelError: the model's outputs are not what it was calibrated with.
        """
        return self.answer(self._asked()(*inputs, **named))

    def answer(self, outputs: Any) -> np.ndarray:
        """What anyone is told in place of a model's outputs, of their kind and type.

        Args:
            outputs: float (N, C), arrays or tensors.

        Raises:
            ModelError: they are not what the guard was calibrated with.
        """
        given = as_outputs(outputs, self.info.class_names)
        return self.answer_by(self.rows, given)

    def answer_by(self, rows: CompactRows, outputs: np.ndarray) -> np.ndarray:
        """The same by other rows of this guard, such as `flat`; no logarithm of each value is taken."""
        self.check(outputs)
        named, best = outputs.argmax(axis=1), outputs.max(axis=1).astype(np.float64)
        if self.info.gives == "probabilities":
            sure = best / outputs.sum(axis=1, dtype=np.float64)
            return rows.shares(named, sure).astype(outputs.dtype)
        sure = 1 / np.exp(outputs.astype(np.float64) - best[:, None]).sum(axis=1)
        return rows.answers(named, sure).astype(outputs.dtype)

    def check(self, outputs: np.ndarray) -> None:
        """Refuse outputs that are not what the guard was calibrated with.

        Raises:
            ModelError: saying what they are.
        """
        classes = len(self.info.class_names)
        if outputs.ndim != 2 or outputs.shape[1] != classes:
            raise ModelError(f"the model gave {outputs.shape}; this guard was made for (N, {classes})")
        if not np.isfinite(outputs.sum(dtype=np.float64)):
            raise ModelError("the model gave NaN or infinity")
        # Few logits may look like probabilities by chance, and small ones like scores.
        kind = kind_of(outputs) if len(outputs) else self.info.gives
        if kind != self.info.gives and (self.info.gives == "probabilities" or (kind and len(outputs) > 1)):
            raise ModelError(f"the model gave {kind or 'scores that do not sum to 1'}, not {self.info.gives}")

    def told(self, logs: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Log-probabilities (N, C) as the model's kind of outputs."""
        if self.info.gives == "logits":
            return logs.astype(dtype)
        shares = np.exp(logs)
        return (shares / shares.sum(axis=1, keepdims=True)).astype(dtype)

    @property
    def flat(self) -> CompactRows:
        """Rows of one level: each class with its mean accuracy over the levels, for who is told labels alone."""
        shares = np.array([max(level.images, 1) for level in self.info.levels], dtype=np.float64)
        told = (self.rows.told @ (shares / shares.sum()))[:, None].astype(np.float32)
        return CompactRows(self.rows.edges[:, :0], told, self.rows.decoys)

    def ties(self, owner: Owner) -> Ties:
        """How near ties are answered, account by account; a server needs nothing else of the owner's.

        Raises:
            KeyFileError: another owner's guard.
            ConfigError: too few examples were near a tie to know what ties cost.
        """
        if owner.id != self.info.owner_id:
            raise KeyFileError(
                f"guard {self.info.id[:8]} is of owner {self.info.owner_id[:8]}, not {owner.id[:8]}"
            )
        if not self.info.ties.tau:
            raise ConfigError(
                f"{self.info.examples} examples show too few near ties to know what they cost: calibrate with more; "
                "without ties, copies of labels carry no mark"
            )
        return Ties.of(owner.secret, self.info.id, self.info.ties.tau)

    def unlock(self, key: Key) -> Callable[..., Any]:
        """The model itself, for a partner.

        Raises:
            KeyFileError: the guard does not open for this key.
            ConfigError: the guard has no model.
        """
        if key.id not in self.info.key_ids:
            raise KeyFileError(f"key {key.id[:8]} does not open guard {self.info.id[:8]}: ask its owner for one")
        return self._asked()

    def _asked(self) -> Callable[..., Any]:
        if self.model is None:
            raise ConfigError("this guard has no model: Guard.load(path, model=...), or answer(outputs)")
        return self.model

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the guard as a folder: what it says of itself and what it answers; nothing of the model.

        Raises:
            RunExistsError: there is something already, and `overwrite` is false.
            StorageError: it cannot be written.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise RunExistsError(f"{path} exists; choose another name, or overwrite it")
        rows = to_bytes({each.name: getattr(self.rows, each.name) for each in fields(self.rows)})
        body = {"sdb_guard": VERSION} | asdict(self.info) | {"rows": hashlib.sha256(rows).hexdigest()}
        path.mkdir(parents=True, exist_ok=True)
        (path / SIGNATURE).unlink(missing_ok=True)  # of what is replaced
        write_atomic(path / ROWS, rows)
        write_atomic(path / MANIFEST, json_text(body, indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: Path | str, model: Any = None) -> Self:
        """Read a guard.

        Args:
            path: the folder.
            model: what it answers for.

        Raises:
            CheckpointError: missing, damaged, altered or of a newer version.
        """
        path = Path(path)
        try:
            body = parse_json(read_bytes(path / MANIFEST, JSON_LIMIT))
            if body.get("sdb_guard") != VERSION:
                raise CheckpointError(
                    f"{path}: guard version {body.get('sdb_guard')!r}, this sdb reads {VERSION}: update sdb"
                )
            info, rows = _info(body), read_bytes(path / ROWS, WEIGHTS_LIMIT)
            if hashlib.sha256(rows).hexdigest() != body["rows"]:
                raise ValueError(f"{ROWS} was altered")
            guard = cls(info, CompactRows(**from_bytes(rows)), model)
            if guard.rows.classes != len(info.class_names) or guard.rows.levels != len(info.levels):
                raise ValueError("its rows are for other classes or levels")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no guard is there; sdb guard new makes one") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: damaged guard ({error}); restore it from a copy") from None
        return guard

    def summary(self) -> str:
        """Lines for people, without a line break at the end."""
        info, rows = self.info, self.rows
        lines = [
            f"Guard {info.id[:8]}: {rows.classes} classes, {info.gives}, opens for {len(info.key_ids)}",
            f"{'':20}{'model':>15}{'without a key':>15}",
        ]
        for row, title in (
            ("accuracy", "accuracy"),
            ("calibration_error", "calibration error"),
            ("brier", "Brier score"),
        ):
            values = (info.measured[f"{column}_{row}"] for column in ("teacher", "keyless"))
            lines.append(f"{title:20}" + "".join(f"{100 * value:13.1f} %" for value in values))
        lines.append(f"measured on {info.examples:,} examples")
        lines.append(
            f"An answer without a key tells the class and one of {rows.levels} levels of confidence "
            f"({info.measured['bits']:.2f} bits beyond top-1 on average, {math.log2(rows.levels):.2f} at most)."
        )
        lines += [
            f"  level {number} of {rows.levels}: right in {100 * level.accuracy:.1f} % of {level.images:,} examples "
            f"(95 % interval {100 * level.low:.1f} % to {100 * level.high:.1f} %)" + self._with_ties(number)
            for number, level in enumerate(info.levels, 1)
        ]
        if info.ties.tau:
            lines.append(
                f"Ties, where they are used: {100 * info.ties.share:.2f} % of answers, which cost "
                f"{100 * info.ties.cost:.2f} points of accuracy."
            )
        else:
            lines.append(
                "Ties: too few examples near a tie to know what they cost; copies of labels carry no mark."
            )
        return "\n".join(lines)

    def _with_ties(self, level: int) -> str:
        right = self.info.measured.get(f"level_{level}_with_ties")
        return "" if right is None else f", with ties in {100 * right:.1f} %"


def _info(body: dict[str, Any]) -> GuardInfo:
    """That of a manifest."""
    values = {each.name: body[each.name] for each in fields(GuardInfo)}
    values["levels"] = tuple(Level(**each) for each in values["levels"])
    values["ties"] = TieCost(**values["ties"])
    for name in ("class_names", "key_ids"):
        values[name] = tuple(values[name])
        if not all(isinstance(each, str) for each in values[name]):
            raise ValueError(f"{name} must hold text")
    if values["gives"] not in ("logits", "probabilities"):
        raise ValueError(f"gives is {values['gives']!r}")
    if not all(isinstance(each, float | int) for each in values["measured"].values()):
        raise ValueError("measured must hold numbers")
    return GuardInfo(**values)


def as_outputs(given: Any, class_names: tuple[str, ...] = ()) -> np.ndarray:
    """What a model gave, as an array of floating-point numbers.

    Args:
        given: an array, a tensor, a list; an object or dictionary with `logits`; a tuple of which the first counts;
            or, as pipelines of transformers give them, a list per input of all labels with their scores.
        class_names: in label order, for the last of these.

    Raises:
        ModelError: it is none of these.
    """
    first = given[0] if isinstance(given, tuple) and given else given
    outputs: Any = first.get("logits") if isinstance(first, Mapping) else getattr(first, "logits", first)
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], list) and isinstance(outputs[0][0], dict):
        outputs = [_by_label(each, class_names) for each in outputs]
    if isinstance(outputs, torch.Tensor):
        outputs = outputs.detach().cpu().float().numpy()
    try:
        values = np.asarray(outputs)
        return values if values.dtype.kind == "f" else values.astype(np.float64)
    except (TypeError, ValueError):
        kind = type(outputs).__name__
        raise ModelError(f"the model gave a {kind}: an array of outputs (N, classes) is needed") from None


def _by_label(scores: list[dict[str, Any]], class_names: tuple[str, ...]) -> list[float]:
    found: dict[str, Any] = {str(each.get("label")): each.get("score") for each in scores}
    if len(class_names) != len(found) or not found.keys() >= set(class_names):
        raise ModelError(
            f"the model gave {len(found)} labels that are not the {len(class_names)} class_names: ask a pipeline with "
            "top_k=None, and give class_names"
        )
    return [float(found[name]) for name in class_names]


def kind_of(outputs: np.ndarray) -> Gives | None:
    """What outputs (N, C) are; None for scores in [0, 1] that do not sum to 1, as independent labels have them."""
    inside = outputs.min() >= -SUM_SLACK and outputs.max() <= 1 + SUM_SLACK
    if not inside:
        return "logits"
    sums = outputs.sum(axis=1, dtype=np.float64)
    return "probabilities" if (np.abs(sums - 1) <= SUM_SLACK).all() else None


def logits_of(outputs: np.ndarray, gives: Gives) -> np.ndarray:
    """Logits float64 (N, C) of either kind of outputs."""
    values = outputs.astype(np.float64)
    return values if gives == "logits" else np.log(values.clip(SMALLEST))
