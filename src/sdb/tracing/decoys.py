"""Tracing: does a suspect carry a box's mark?

    result = trace(suspect, box, owner, data)
    result.p_value, result.marked, result.sentence()

A student that copied the soft outputs of a decoy box holds the box's decoys likelier than they would be otherwise. So
the decoys of each class are ranked among the classes that could have been chosen, by the suspect's mean log-probability
over images of that class, and the ranks are summed. A model made without the box knows nothing of the secret choice, a
uniform draw; under that hypothesis the sum's distribution is known exactly, whatever the model and however its outputs
tie: it follows by counting subsets, with no approximation and no model trained for comparison.

What a trace cannot show:

- innocence. A student that copied labels only carries no mark, nor does one that trained on for long enough.
- guilt to others, by itself. Anyone who can ask the box can read its decoys and could put them into a model, and an
  owner could try secrets until one fits a model that is there already. The p-value speaks to a third party only where
  the box (its `owner_id` and sealed record) was deposited somewhere before the suspect appeared, and for one trace: who
  tests many suspects divides the threshold by their number.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor, nn

from sdb.box.box import Box
from sdb.data import ImageSet, Splits
from sdb.errors import DataError, ModelError
from sdb.keys import Owner
from sdb.models import Classifier, check, compare_class_names, device_of
from sdb.models.checkpoint import check_fits
from sdb.training.evaluation import class_mean_outputs, evaluation_batches

# A suspect is said to carry the mark below this.
THRESHOLD_LOG10_P = -6.0
# Ranks among more candidates than this are rounded down to as many levels: counting stays cheap, and stays exact.
LEVELS = 16
# About the logarithm of the least probability that float32 can hold; an interface that rounds to 0 is read as this.
LEAST_LOG_PROBABILITY = -100.0
# Differences below a millionth of a nat are rounding, which must not break ties differently on another machine.
DECIMALS = 6
# Beyond this the tilted distribution sits on its least value, to the last bit.
MOST_TILT = 60.0


@dataclass(frozen=True, slots=True)
class ClassTrace:
    """One class's part in a trace.

    Attributes:
        label: the class.
        name: of the class.
        images: of this class that the suspect was asked about.
        candidates: classes that could have been its decoys.
        decoys: how many were chosen.
        chosen: the decoys, where the owner asked to see them; else empty.
        ranks: of the decoys among the candidates, 0 the likeliest, in the same order; else empty.
    """

    label: int
    name: str
    images: int
    candidates: int
    decoys: int
    chosen: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TraceResult:
    """What a trace found.

    Attributes:
        statistic: sum of the decoys' rank levels; small where the suspect holds the decoys likely.
        expected: its mean for a model made without the box.
        log10_p: logarithm of `p_value`, exact also where that underflows.
        p_value: probability of such a sum or a smaller one for a model made without the box.
        found: decoys that stand first among their class's candidates.
        total: decoys of all classes that had images.
        images: that the suspect was asked about.
        least_log10_p: what a perfect mark would give here; with few classes this does not reach the threshold.
        table: one row a class that had images.
    """

    statistic: int
    expected: float
    log10_p: float
    p_value: float
    found: int
    total: int
    images: int
    least_log10_p: float
    table: tuple[ClassTrace, ...]

    @property
    def marked(self) -> bool:
        """Whether the suspect carries the mark: p below 1e-6."""
        return self.log10_p < THRESHOLD_LOG10_P

    def sentence(self) -> str:
        """The result for people."""
        facts = f"{self.found} of {self.total} decoys stand first, p = {p_text(self.log10_p)}"
        if self.marked:
            return f"The suspect carries this owner's mark: {facts} for a model made without the box."
        if self.least_log10_p == 0:
            return (
                "No mark can be found: in this box every possible decoy is one (two classes), so none is secret."
            )
        if self.least_log10_p >= THRESHOLD_LOG10_P:
            return (
                f"No mark found ({facts}), and none can be: with these classes even a perfect copy has "
                f"p = {p_text(self.least_log10_p)}, and the threshold is {p_text(THRESHOLD_LOG10_P)}."
            )
        return f"No mark found ({facts}), which does not show innocence: a label-only copy carries none."

    def lines(self) -> list[str]:
        """A short table for people; the decoys are in it only where the owner asked for them."""
        return [
            f"log10 p      {self.log10_p:.1f}, marked below {THRESHOLD_LOG10_P:g}",
            f"decoys       {self.found} of {self.total} stand first among their class's candidates",
            f"rank sum     {self.statistic}, {self.expected:.1f} expected without the box",
            f"images       {self.images} of {len(self.table)} classes",
            *(
                f"{row.name:<12} decoys {row.chosen}, ranks {row.ranks} of {row.candidates}"
                for row in self.table
                if row.chosen
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values; the decoys are in it only where the owner asked for them."""
        values = asdict(self)
        rows = [{n: v for n, v in row.items() if v != ()} for row in values.pop("table")]
        return {"marked": self.marked, "threshold_log10_p": THRESHOLD_LOG10_P} | values | {"table": rows}


def trace(
    suspect: nn.Module,
    box: Box,
    owner: Owner,
    data: Splits | ImageSet,
    *,
    reference: nn.Module | None = None,
    reveal: bool = False,
    other_class_names: bool = False,
) -> TraceResult:
    """Look for the mark of a box in a suspect.

    Args:
        suspect: images in [0, 1] to logits or log-probabilities (N, classes); wrap a remote model in a module.
        box: the decoy box that may have been copied.
        owner: whose box it is.
        data: any labelled images of the task; of `Splits` the test images, because a thief may have learnt the
            training images by heart, and then says least of the other classes there.
        reference: a model that was made without the secret, best the teacher: its outputs are scaled and subtracted,
            so that which classes look alike does not count. Never a box, opened or not, nor a partner's model, which
            may have learnt of the secret.
        reveal: also put the decoys into the table. They are the owner's secret.
        other_class_names: data, suspect and reference may call the box's classes otherwise, in the same order.

    Raises:
        KeyFileError: the owner is another's.
        CheckpointError: the box has no record (methods "sdb", "nasty"), or it was altered.
        ModelError: the suspect does not answer such images with that many classes, or not with numbers; or classes go
            by other names.
        DataError: there are no images, or labels are out of range.
    """
    record = box.owner_record(owner)
    classes = len(box.info.class_names)
    images = data.test if isinstance(data, Splits) else data
    if isinstance(data, Splits):
        names = data.class_names, other_class_names
        check_fits(box.classifier, "the box", data.num_classes, data.image_shape, *names)
    for name, model in (("the suspect", suspect), ("the reference", reference)):
        inner = model.classifier if isinstance(model, Box) else model
        if isinstance(inner, Classifier):
            own, given = inner.class_names, box.info.class_names
            compare_class_names(own, given, name, other_class_names=other_class_names)
    means, counts = class_log_means(suspect, images, classes, "the suspect")
    if reference is not None:
        expected, _ = class_log_means(reference, images, classes, "the reference")
        means = unexplained(means, expected, record["candidates"], counts)
    seen = np.flatnonzero(counts)
    ranks = {c: candidate_ranks(means[c, record["candidates"][c]]) for c in seen}
    table = []
    for c in seen:
        decoys, candidates = record["decoys"][c], record["candidates"][c]
        row = ClassTrace(int(c), box.info.class_names[c], int(counts[c]), len(candidates), len(decoys))
        if reveal:
            of_decoys = tuple(int(ranks[c][candidates.index(decoy)]) for decoy in decoys)
            row = ClassTrace(row.label, row.name, row.images, row.candidates, row.decoys, tuple(decoys), of_decoys)
        table.append(row)
    return weigh(
        [ranks[c] for c in seen],
        [np.isin(record["candidates"][c], record["decoys"][c]) for c in seen],
        int(counts.sum()),
        tuple(table),
    )


def weigh(
    ranks: Sequence[np.ndarray], chosen: Sequence[np.ndarray], images: int = 0, table: tuple[ClassTrace, ...] = ()
) -> TraceResult:
    """The statistic and its exact p-value.

    Args:
        ranks: for each class its candidates' ranks, see `candidate_ranks`.
        chosen: for each class which candidates are its decoys, bool.
        images: for the record.
        table: for the record.
    """
    levels = [rank_levels(each) for each in ranks]
    sizes = [int(mask.sum()) for mask in chosen]
    statistic = sum(int(level[mask].sum()) for level, mask in zip(levels, chosen, strict=True))
    log10_p = log10_tail(list(zip(levels, sizes, strict=True)), statistic)
    untied = [(rank_levels(np.arange(len(each))), size) for each, size in zip(ranks, sizes, strict=True)]
    best = sum(int(level[:size].sum()) for level, size in untied)
    return TraceResult(
        statistic=statistic,
        expected=float(sum(level.mean() * size for level, size in zip(levels, sizes, strict=True))),
        log10_p=log10_p,
        p_value=10.0**log10_p,
        found=sum(int((each[mask] < size).sum()) for each, mask, size in zip(ranks, chosen, sizes, strict=True)),
        total=sum(sizes),
        images=images,
        least_log10_p=log10_tail(untied, best),
        table=table,
    )


class _Floored(nn.Module):
    """A model whose log-probabilities end at a floor, so that one rounded to zero does not drown all others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logs = nn.functional.log_softmax(self.model(images).double(), dim=1)
        return logs.clamp_min(LEAST_LOG_PROBABILITY)


def class_log_means(model: nn.Module, images: ImageSet, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A model's mean log-probabilities (C, C), row c over the images of class c, and the number of images (C,).

    Raises:
        ModelError, DataError: see `trace`.
    """
    if not len(images):
        raise DataError("there are no labelled images to ask the suspect about")
    if images.labels.min() < 0 or images.labels.max() >= classes:
        raise DataError(f"label {images.labels.max()} is outside 0..{classes - 1}: the box has {classes} classes")
    inner = model.classifier if isinstance(model, Box) else model
    shape: tuple[int, int, int] = tuple(images.images.shape[1:])  # ty: ignore[invalid-assignment]
    if isinstance(inner, Classifier) and inner.num_classes != classes:
        raise ModelError(f"{name} was made for {inner.num_classes} classes, the box for {classes}")
    if isinstance(inner, Classifier):
        check_fits(inner, name, classes, shape)
    device = device_of(model)
    check(model, shape, classes, device)
    modes = {module: module.training for module in model.modules()}
    means = class_mean_outputs(_Floored(model), evaluation_batches(images, device), classes).numpy()
    for module, training in modes.items():
        module.training = training
    counts = np.bincount(images.labels, minlength=classes)
    if np.isnan(means[counts > 0]).any():
        raise ModelError(f"{name} answers with NaN; it is broken, or its outputs are not logits")
    return means, counts


def unexplained(
    means: np.ndarray, expected: np.ndarray, candidates: Sequence[Sequence[int]], counts: np.ndarray
) -> np.ndarray:
    """What a reference leaves unexplained of a suspect's outputs (C, C).

    A suspect may be much surer or less sure than the reference, so the reference is scaled by least squares over all
    candidates of all classes with images. The scale knows the candidates, never the choice among them, so the p-value
    stays exact.
    """
    both = [(means[c, candidates[c]], expected[c, candidates[c]]) for c in np.flatnonzero(counts)]
    centred = [(own - own.mean(), other - other.mean()) for own, other in both]
    square = sum(float(other @ other) for _, other in centred)
    scale = sum(float(own @ other) for own, other in centred) / square if square > 0 else 0.0
    return means - max(0.0, scale) * expected


def candidate_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of candidates, 0 the largest value; equals all get the worst of their ranks, never the owner's favour."""
    rounded = np.round(values, DECIMALS)
    ordered = np.sort(rounded)
    return len(values) - 1 - np.searchsorted(ordered, rounded, side="left")


def rank_levels(ranks: np.ndarray) -> np.ndarray:
    """Ranks rounded down to at most `LEVELS` levels."""
    return ranks if len(ranks) <= LEVELS else ranks * LEVELS // len(ranks)


def log10_tail(classes: Sequence[tuple[np.ndarray, int]], observed: int) -> float:
    """Exact log10 of P(sum <= observed) where each class's decoys are a uniform draw among its candidates.

    The classes' distributions are convolved. So that tails far below the least float (with 1,000 classes p may be
    1e-2000) keep full precision, each is first multiplied by exp(-tilt * sum), with the tilt that puts the mean at what
    was observed; this is undone in the end. Tilting is an identity, so the result is exact but for rounding.

    Args:
        classes: for each the levels of its candidates, and how many of them are decoys.
        observed: the sum of the decoys' levels.
    """
    kinds = Counter((tuple(np.bincount(levels).tolist()), size) for levels, size in classes)
    least, spans = 0, []
    for (counts, size), repeats in kinds.items():
        first, chances = subset_sums(counts, size)
        least += first * repeats
        spans.append((chances, repeats))
    reach = observed - least  # of the sum above the least possible one
    if reach < 0:
        return -math.inf
    span = sum((len(chances) - 1) * repeats for chances, repeats in spans)
    if reach >= span:
        return 0.0
    tilt = _tilt(spans, reach)
    length = 1 << span.bit_length()
    spectrum, logarithm = np.ones(length // 2 + 1, dtype=complex), 0.0
    for chances, repeats in spans:
        tilted = chances * np.exp(-tilt * np.arange(len(chances)))
        mass = float(tilted.sum())
        logarithm += repeats * math.log(mass)
        spectrum *= np.fft.rfft(tilted / mass, length) ** repeats
    # The transform's error is absolute, a few 1e-16; the tail lies where the tilted distribution is largest.
    total = np.fft.irfft(spectrum, length)[: reach + 1].clip(min=0)
    tail = float((total * np.exp(tilt * (np.arange(len(total)) - reach))).sum())
    return min(0.0, (logarithm + tilt * reach + math.log(tail)) / math.log(10))


@lru_cache(maxsize=4096)
def subset_sums(counts: tuple[int, ...], size: int) -> tuple[int, np.ndarray]:
    """Distribution of the sum of levels over uniform subsets: the least sum, and the chances from there upwards.

    Args:
        counts: candidates of each level.
        size: of the subset.
    """
    # Weights C(m, c) p^c q^(m - c) instead of C(m, c): the same up to a constant, and they stay within a float's range.
    share = size / sum(counts)
    sums = np.zeros((size + 1, size * (len(counts) - 1) + 1))
    sums[0, 0] = 1.0
    for level, members in enumerate(counts):
        grown = np.zeros_like(sums)
        for taken in range(min(members, size) + 1):
            weight = math.comb(members, taken) * share**taken * (1 - share) ** (members - taken)
            shift = level * taken
            grown[taken:, shift:] += weight * sums[: size + 1 - taken, : sums.shape[1] - shift]
        sums = grown
    chances = sums[size]
    possible = np.flatnonzero(chances)
    chances = chances[possible[0] : possible[-1] + 1] / chances.sum()
    chances.flags.writeable = False  # it is cached
    return int(possible[0]), chances


def _tilt(spans: Sequence[tuple[np.ndarray, int]], reach: int) -> float:
    """The tilt, at least 0, at which the mean of the sum is `reach`, by bisection."""
    repeats = np.array([times for _, times in spans])
    steps = np.arange(max(len(chances) for chances, _ in spans))
    padded = np.stack([np.pad(chances, (0, len(steps) - len(chances))) for chances, _ in spans])

    def mean(tilt: float) -> float:
        tilted = padded * np.exp(-tilt * steps)
        return float(repeats @ ((tilted @ steps) / tilted.sum(axis=1)))

    if mean(0.0) <= reach:
        return 0.0
    low, high = 0.0, MOST_TILT
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > reach else (low, middle)
    return high


def p_text(log10_p: float) -> str:
    """A p-value for people, also where it is too small for a float."""
    if log10_p > -3:
        return f"{10.0**log10_p:.2g}"
    exponent = math.floor(log10_p)
    mantissa = f"{10.0 ** (log10_p - exponent):.1f}".removesuffix(".0")
    return f"1e{exponent + 1}" if mantissa == "10" else f"{mantissa}e{exponent}"
