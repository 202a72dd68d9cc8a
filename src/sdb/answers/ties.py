"""Keyed ties: where the two best classes are nearly tied, a secret coin of the account decides which one is answered.

Either answer is about as good there. A copy that learned an account's answers repeats that account's coins, even where
it saw labels only; a model that is independent of the secret agrees with a coin in one of two cases, exactly,
however much it agrees with the teacher. `sdb.tracing.ties` has the test.

The coin belongs to a cell, a coarse code of the network's own log-probabilities, so that slightly changed copies of an
image get the same answer, and asking again does not wash the coin out. All arithmetic that decides is in float64 and on
integers, so that the same logits get the same answers on every platform.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from sdb.answers.compact import CompactRows
from sdb.errors import ConfigError, KeyFileError, ModelError
from sdb.keys import check_secret, derive
from sdb.keys.keyfile import read_secret, write_secret
from sdb.keys.keys import check_id

# Accuracy that ties may cost, a fraction of all answers.
BUDGET = 0.001
# Margins above this are no ties, whatever the budget: who reads a class expects the better one.
WIDEST = 0.3
# From fewer held-out images, or fewer of them within the widest margin, nothing is learned about ties.
FEWEST, FEWEST_NEAR = 300, 30
# What is taken for the first class's lead per margin before any image is seen: 1 for an honest network, less for one
# that is too sure. It counts as much as an estimate of this standard error.
LEAD, LEAD_ERROR = 1.0, 0.3
# By how much, in nats, the class of the coin stands before the other in soft answers that keep the network's own.
LEAN = 1.0
# Of a cell's code: width of a step of log-probability, and how many steps there are.
STEP, STEPS = 2.0, 16
# The account of all who have no token: a copy of its answers names nobody.
NOBODY = ""


@dataclass(frozen=True, slots=True)
class TieCost:
    """What ties cost, from held-out images.

    Attributes:
        tau: the margin of probabilities below which two classes tie, in [0, 0.3]; 0 for no ties.
        share: of the images that are ties, a fraction.
        cost: accuracy lost, a fraction of all answers, the mean of both coins.
        low, high: its 95 % interval.
        images: how many images it was found on.
    """

    tau: float
    share: float
    cost: float
    low: float
    high: float
    images: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The ties among N answers.

    Attributes:
        rows: which of the answers are ties, int64 (M,).
        pairs: the two classes of each, the smaller first, int64 (M, 2).
        best: the class that the network itself puts first, int64 (M,).
        cells: the code of each, int64 (M,), see `cells_of`.
    """

    rows: np.ndarray
    pairs: np.ndarray
    best: np.ndarray
    cells: np.ndarray


_EMPTY = np.empty(0, dtype=np.int64)
_EMPTY.setflags(write=False)
_NONE = Found(_EMPTY, np.empty((0, 2), dtype=np.int64), _EMPTY, _EMPTY)


@dataclass(frozen=True, slots=True, eq=False)
class FixedRows:
    """The rows of a box as arrays, see `sdb.answers.rows.Rows`.

    Attributes:
        rows: float32 (C, L, C).
        edges: float32 (C, L - 1).
    """

    rows: np.ndarray
    edges: np.ndarray

    def answers(self, named: np.ndarray, sure: np.ndarray) -> np.ndarray:
        """The rows (N, C) of the classes that are named, at the level of the network's confidence in its best class."""
        return self.rows[named, (sure[:, None] > self.edges[named]).sum(axis=1)]


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What an account was told.

    Attributes:
        answers: float32 (N, C), whose largest value is at the class that is told; the logits themselves where nothing
            else is told.
        found: the ties among them.
        classes: what was told at these, int64 (M,).
    """

    answers: np.ndarray
    found: Found
    classes: np.ndarray


@dataclass(frozen=True, slots=True)
class Ties:
    """How a service answers near ties.

    Attributes:
        secret: 32 bytes for the ties of one box, see `of`; a server needs no other secret of the owner's.
        box_id: public name of the box.
        tau: the margin of probabilities below which two classes tie.
    """

    secret: bytes = field(repr=False)
    box_id: str
    tau: float

    def __post_init__(self) -> None:
        check_secret(self.secret)
        if not 0 <= self.tau <= WIDEST:
            raise ConfigError(f"tau: {self.tau!r}; give a margin from 0 to {WIDEST}")

    @property
    def id(self) -> str:
        """One-way name that binds the secret, the box and the margin, 32 hexadecimal digits; safe to publish."""
        return derive(self.secret, f"id/ties/{self.box_id}/{self.tau!r}", 16).hex()

    def save(self, path: Path | str) -> None:
        """Write the file that a server reads, readable by its owner alone.

        Raises:
            KeyFileError: it exists.
        """
        header = {"kind": "ties", "id": self.id, "scope": self.box_id, "tau": self.tau}
        write_secret(Path(path), header, self.secret, None)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read such a file.

        Raises:
            KeyFileError: missing, readable by others, damaged or altered, or another kind of secret.
        """
        header, secret = read_secret(Path(path))
        if header.get("kind") != "ties":
            raise KeyFileError(f"{path} is no file of ties: sdb ledger new makes one")
        try:
            ties = cls(secret, header["scope"], header["tau"])
        except (KeyError, TypeError, ConfigError) as error:
            raise KeyFileError(f"{path}: damaged file of ties ({error}); restore it from a copy") from None
        check_id(path, header, ties.id)
        return ties

    @classmethod
    def of(cls, owner_secret: bytes, box_id: str, tau: float) -> Self:
        """Those of an owner's box."""
        return cls(derive(owner_secret, f"ties/{box_id}"), box_id, tau)

    def find(self, logits: np.ndarray) -> Found:
        """The ties among a network's own answers.

        Args:
            logits: float (N, C), before rows or anything else that a box puts in their place.

        Raises:
            ModelError: the logits are not finite, or of fewer than two classes.
        """
        return self._find(log_probabilities(logits))

    def _find(self, logs: np.ndarray) -> Found:
        best, margins = margins_of(logs)
        rows = np.flatnonzero(margins < self.tau)
        if not len(rows):  # as most requests of one image
            return _NONE
        pairs = np.sort(best[rows], axis=1)
        return Found(rows, pairs, best[rows, 0], cells_of(logs[rows], pairs))

    def coins(self, account: str, found: Found) -> np.ndarray:
        """The class that an account is told at each tie, int64 (M,).

        Args:
            account: id of the account, `NOBODY` for all who have none.
            found: the ties.
        """
        if not len(found.rows):
            return found.best
        places = zip(found.cells.tolist(), *found.pairs.T.tolist(), strict=True)
        bits = np.array([self.coin(account, *place) for place in places], dtype=bool)
        return np.where(bits, found.pairs[:, 0], found.pairs[:, 1])

    def answer(self, logits: np.ndarray, account: str, rows: FixedRows | CompactRows | None = None) -> Told:
        """What an account is told.

        Args:
            logits: the network's own, (N, C).
            account: its id, `NOBODY` for all who have none.
            rows: what a box answers with in place of its network's logits; else the class that the coin says is put
                `LEAN` ahead of the other, and the two keep the probability that they had together. Students of soft
                answers learn that; they hardly notice two nearly equal classes that change places.
        """
        logs = log_probabilities(logits)
        found = self._find(logs)
        classes = self.coins(account, found)
        if rows is not None:
            named = logits.argmax(axis=1)
            named[found.rows] = classes
            return Told(rows.answers(named, np.exp(logs.max(axis=1))), found, classes)
        if found is _NONE:
            return Told(logits, found, classes)
        where, others = found.rows, found.pairs.sum(axis=1) - classes
        together = np.logaddexp(logits[where, classes], logits[where, others])
        answers = logits.copy()
        answers[where, classes] = together - np.log1p(np.exp(-LEAN))
        answers[where, others] = together - np.log1p(np.exp(LEAN))
        return Told(answers, found, classes)

    def coin(self, account: str, cell: int, first: int, second: int) -> bool:
        """Whether the first of two classes is answered in a cell."""
        return bool(coin_of(self.secret, self.box_id, account, cell, first, second))


def fit_tau(logits: np.ndarray, labels: np.ndarray, budget: float = BUDGET) -> TieCost:
    """The widest margin whose ties cost no more accuracy than a budget.

    Two classes at a margin of 0 are equally good, and the better one's lead is taken to grow in proportion to the
    margin. That needs one number, found by least squares over all margins up to the widest, with what is true of honest
    networks as prior; its standard error is added, so that the budget holds in five of six cases. Counting lost answers
    directly would need a hundred thousand images.

    Args:
        logits: a network's own, (N, C), on images that it has not learned from.
        labels: int64 (N,).
        budget: accuracy that may be lost, a fraction of all answers, the mean of both coins.

    Raises:
        ConfigError: the budget is not in [0, 0.1].
        ModelError: the logits are not finite, or of fewer than two classes.
    """
    if not 0 <= budget <= 0.1:
        raise ConfigError(f"tie_budget: {budget!r}; give a fraction of answers from 0 to 0.1, such as {BUDGET}")
    best, margins = margins_of(log_probabilities(logits))
    near = margins < WIDEST
    if len(labels) < FEWEST or near.sum() < FEWEST_NEAR:
        return TieCost(0.0, 0.0, 0.0, 0.0, 0.0, len(labels))
    slope, error = _slope(best[near], margins[near], labels[near])
    ordered = np.sort(margins[near])
    costs = (slope + error) * ordered.cumsum() / (2 * len(labels))
    fitting = int((costs <= budget).sum())
    if not fitting:
        return TieCost(0.0, 0.0, 0.0, 0.0, 0.0, len(labels))
    tau = WIDEST if fitting == len(ordered) else float(ordered[fitting - 1])
    return cost_of(logits, labels, tau)


def cost_of(logits: np.ndarray, labels: np.ndarray, tau: float) -> TieCost:
    """What ties of a margin cost on labelled images, see `fit_tau`; of few of them the interval is wide.

    Args:
        logits: a network's own, (N, C).
        labels: int64 (N,).
        tau: the margin.
    """
    best, margins = margins_of(log_probabilities(logits))
    tied, near = margins < tau, margins < WIDEST
    slope, error = _slope(best[near], margins[near], labels[near])
    unit = margins[tied].sum() / (2 * len(labels))
    low, high = (slope - 1.96 * error) * unit, (slope + 1.96 * error) * unit
    return TieCost(tau, float(tied.mean()), slope * unit, low, high, len(labels))


def levels_with_ties(logits: np.ndarray, labels: np.ndarray, tau: float, edges: np.ndarray) -> np.ndarray:
    """How often answers of each level of confidence are right where ties are told, float64 (L,); NaN for no answers.

    The mean of both coins: at a tie each of the two classes is told half of the time, at the level that it has then.

    Args:
        logits: a network's own, (N, C).
        labels: int64 (N,).
        tau: the margin of ties.
        edges: between levels, (C, L - 1), see `FixedRows`.
    """
    logs = log_probabilities(logits)
    best, margins = margins_of(logs)
    shares = np.where((margins < tau)[:, None], [0.5, 0.5], [1.0, 0.0])
    placed = (np.exp(logs.max(axis=1))[:, None, None] > edges[best]).sum(axis=2)
    levels = edges.shape[1] + 1
    told = np.bincount(placed.ravel(), shares.ravel(), levels)
    right = np.bincount(placed.ravel(), (shares * (best == labels[:, None])).ravel(), levels)
    return np.divide(right, told, out=np.full(levels, np.nan), where=told > 0)


def _slope(best: np.ndarray, margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """By how much the first class is right more often than the second, per margin, and its standard error."""
    lead = (best[:, 0] == labels).astype(float) - (best[:, 1] == labels)
    squares = (margins**2).sum()
    if squares == 0:
        return LEAD, LEAD_ERROR
    slope = (lead * margins).sum() / squares
    error = np.sqrt((margins**2 * (lead - slope * margins) ** 2).sum()) / squares
    own, prior = 1 / max(error, 1e-9) ** 2, 1 / LEAD_ERROR**2
    return float((slope * own + LEAD * prior) / (own + prior)), float((own + prior) ** -0.5)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms float64 (N, C) of a network's probabilities.

    Raises:
        ModelError: the logits are not finite, or of fewer than two classes.
    """
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ModelError(f"logits: {values.shape}: ties need finite answers (N, C) of at least two classes")
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def margins_of(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two likeliest classes (N, 2), the likelier one first, and by how much its probability is above the other's.

    Args:
        logs: log-probabilities (N, C).
    """
    best = np.argsort(-logs, axis=1, kind="stable")[:, :2]
    first, second = np.exp(np.take_along_axis(logs, best, axis=1)).T
    return best, first - second


def cells_of(logs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Codes of ties, int64 (M,): which two classes come next, as a set, and how likely the likelier of them is.

    Of the codes that were tried (benchmarks/tie_cells.py) this one has the most cells among those that changed copies
    of an image share. It does not see which of the pair is ahead.

    Args:
        logs: log-probabilities (M, C).
        pairs: the two best classes, int64 (M, 2).
    """
    classes = logs.shape[1]
    if classes < 3:
        return np.zeros(len(logs), dtype=np.int64)
    others = logs.copy()
    np.put_along_axis(others, pairs, -np.inf, axis=1)
    order = np.argsort(-others, axis=1, kind="stable")
    low, high = np.sort(order[:, [0, min(1, classes - 3)]], axis=1).T
    chance = np.take_along_axis(others, order[:, :1], axis=1)[:, 0]
    step = np.minimum(np.floor(-chance / STEP), STEPS - 1).astype(np.int64)
    return (low * classes + high) * STEPS + step


def coin_of(secret: bytes, box_id: str, account: str, cell: int, first: int, second: int) -> int:
    """The coin of one account in one cell, 0 or 1: a bit of HMAC-SHA256 over length-prefixed fields."""
    fields = (box_id.encode(), account.encode(), *(str(value).encode() for value in (cell, first, second)))
    message = b"".join(len(each).to_bytes(4, "big") + each for each in fields)
    return hmac.digest(secret, message, "sha256")[0] & 1
