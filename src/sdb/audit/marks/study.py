"""A study of the mark: thieves of one model, seed by seed, piece by piece; what is finished is never done again.

result = study(MarkSubject(model, data, Owner.generate()), MarkSettings(thieves=("labels", "flips")))
print(result["sentence"])
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil, log10
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from sdb.answers.ties import BUDGET, TieCost, Ties, fit_tau
from sdb.audit.archive import Archive, Memory
from sdb.audit.marks.mark_seed import NETWORKS, MarkSeed, answered, logits_of
from sdb.audit.marks.measure import facts, lacks, thief_row
from sdb.audit.marks.thieves import QUICK, THIEVES, check_thieves
from sdb.config import Settings
from sdb.data import ImageSet, Splits
from sdb.errors import ConfigError
from sdb.keys import Owner
from sdb.report.mark_words import markdown, sentence
from sdb.runs.tasks import OnProgress, one_thread
from sdb.runtime import derive_seed, environment
from sdb.tracing.ties import THRESHOLD_LOG10_P

FACTS, TIES = "facts", "ties"
# Labels that a thief asks for, and steps of its training at least, so that networks of few images learn too.
QUERIES, STEPS, EPOCHS, BATCH = 2000, 320, 20, 128
# Accounts that a trace corrects for where a thief asked by one: its own and the control.
FEWEST_ACCOUNTS = 2

Whole = Annotated[int, Field(ge=1)]


class MarkSettings(Settings):
    """What thieves do against the mark of a model's labels, and how much."""

    thieves: tuple[str, ...] = QUICK
    """Names, see `sdb.audit.marks.thieves.THIEVES`."""
    queries: Annotated[int, Field(ge=20)] | None = None
    """Images that a thief asks about; none: 2,000, or all there are."""
    seeds: Whole = 1
    """Number of seeds; each has its own images, networks and coins."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The first of them."""
    budget: Annotated[float, Field(ge=0, le=0.1)] = BUDGET
    """Accuracy that ties may cost, a fraction of all answers."""
    epochs: Whole | None = None
    """Of thieves; none: 20, and more where images are few, until there are 320 steps."""
    pool: Literal["test", "left_out"] = "test"
    """Which images thieves ask about. test: half of the test images, the other half measures accuracy. left_out:
    training images that the run's subset_percent left out."""
    student_model: str = "net"
    """Architecture of thieves, where a thief does not bring another one."""
    student_args: dict[str, Any] = Field(default_factory=lambda: dict(NETWORKS["net"][1]))
    """Its arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class MarkSubject:
    """Whose mark is studied.

    Attributes:
        model: from images in [0, 1] to logits: a teacher, or a box's network; not changed.
        data: the owner's. Validation images choose the margin of ties, test images measure.
        owner: whose secret the ties follow from.
        box_id: public name of the box; "" where the model is none.
        left_out: training images that the model has not learned from.
    """

    model: nn.Module
    data: Splits
    owner: Owner
    box_id: str = ""
    left_out: ImageSet | None = None


def tie_cost(subject: MarkSubject, settings: MarkSettings, archive: Archive) -> TieCost:
    """What counts as a tie, from validation images; kept, so that all pieces have the same."""
    if not archive.has(TIES):
        cost = fit_tau(*answered(subject.model, subject.data.validation), settings.budget)
        archive.keep(TIES, asdict(cost) | {"seconds": 0.0})
    kept = archive.result(TIES)
    return TieCost(**{name: kept[name] for name in TieCost.__dataclass_fields__})


def mark_seed(
    subject: MarkSubject, settings: MarkSettings, cost: TieCost, seed: int, archive: Archive
) -> MarkSeed:
    """What thieves of one seed stand on.

    Raises:
        ConfigError: there are not so many images to ask about.
    """
    rng, data = np.random.default_rng(derive_seed(seed, "pool")), subject.data
    source = data.test if settings.pool == "test" else subject.left_out
    if source is None or not len(source):
        raise ConfigError("pool left_out: the run left out no training images (subset_percent); take pool test")
    order = rng.permutation(len(source))
    if settings.pool == "test":
        half = len(order) // 2
        data, order = replace(data, test=source.take(order[half:])), order[:half]
    pool = source.take(order)
    queries = min(QUERIES, len(pool)) if settings.queries is None else settings.queries
    if queries > len(pool):
        raise ConfigError(f"queries: {queries}; there are {len(pool)} images to ask about: ask for fewer")
    epochs = settings.epochs or max(EPOCHS, ceil(STEPS / ceil(queries / BATCH)))
    ties = Ties.of(subject.owner.secret, subject.box_id, cost.tau)
    networks = NETWORKS | {"net": (settings.student_model, settings.student_args)}
    given = (data, pool, subject.model, ties, subject.owner, archive, seed, queries, epochs, networks)
    return MarkSeed(*given, prefix=f"{seed} ")


def coins_of(seed: MarkSeed) -> int:
    """How many coins an account sees that asks about a thief's images once."""
    found = seed.ties.find(logits_of(seed.model, seed.images(seed.queries)))
    return len(np.unique(np.column_stack([found.cells, found.pairs]), axis=0))


def coins_needed() -> int:
    """The fewest coins by which an account can be named that is tested beside a control."""
    return ceil((-THRESHOLD_LOG10_P + log10(FEWEST_ACCOUNTS)) / log10(2))


def place_of(seed: int, piece: str) -> str:
    """Where a piece's result is kept."""
    return f"seed-{seed}/results/{piece}"


def pieces_of(settings: MarkSettings) -> list[tuple[int, str]]:
    """All pieces of a study: the facts of each seed, and its thieves.

    Raises:
        ConfigError: a name is no thief's.
    """
    check_thieves(settings.thieves)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    return [(seed, piece) for seed in seeds for piece in (FACTS, *dict.fromkeys(settings.thieves))]


def do_piece(seed: MarkSeed, piece: str) -> None:
    """Do a piece and keep its result."""
    started = time.perf_counter()
    if piece == FACTS:
        result = facts(seed)
    else:
        reason = lacks(seed, THIEVES[piece])
        result = {"skipped": reason} if reason else thief_row(seed, piece, THIEVES[piece])
    seed.archive.keep(place_of(seed.seed, piece), result | {"seconds": time.perf_counter() - started})


def study(
    subject: MarkSubject,
    settings: MarkSettings | None = None,
    on_progress: OnProgress = lambda done, total, name: None,
    archive: Archive | None = None,
) -> dict[str, Any]:
    """Let thieves steal the labels of a model, and look for the mark in their networks, in this process.

    Args:
        subject: the model, its data and its owner.
        settings: which thieves, and how much they ask.
        on_progress: is told of every finished piece.
        archive: where pieces are kept, and not done again; None keeps them for this call alone.

    Returns:
        The result as JSON values, see `result_of`.

    Raises:
        ConfigError: a name is no thief's, or there are not so many images.
        ModelError: the model's answers are not finite logits.
    """
    settings = settings or MarkSettings()
    archive, pieces = archive or Memory(), pieces_of(settings)
    with one_thread():
        cost = tie_cost(subject, settings, archive)
        seeds = {seed: mark_seed(subject, settings, cost, seed, archive) for seed, _ in pieces}
        coins = least_coins(seeds)
        if coins >= coins_needed():
            for number, (seed, piece) in enumerate(pieces, 1):
                if not archive.has(place_of(seed, piece)):
                    do_piece(seeds[seed], piece)
                on_progress(number, len(pieces), f"{seed} {piece}")
    return result_of(settings, cost, coins, seeds, archive)


def least_coins(seeds: Mapping[int, MarkSeed]) -> int:
    """The fewest coins of an account over the seeds."""
    return min(coins_of(seed) for seed in seeds.values())


def result_of(
    settings: MarkSettings, cost: TieCost, coins: int, seeds: Mapping[int, MarkSeed], archive: Archive
) -> dict[str, Any]:
    """What a study found, JSON values.

    ties: as `TieCost`; coins: that a plain thief's account saw, the fewest of the seeds; seeds: for each its facts and
    its thieves' rows, see `thief_row`; sentence and markdown: the same for people.
    """
    rows: dict[str, Any] = {}
    for seed in seeds:
        done = {
            piece: archive.result(place_of(seed, piece))
            for piece in (FACTS, *THIEVES)
            if archive.has(place_of(seed, piece))
        }
        if FACTS in done:
            rows[str(seed)] = {FACTS: done.pop(FACTS), "thieves": done}
    one = next(iter(seeds.values()))
    found: dict[str, Any] = {
        "kind": "marks",
        "environment": environment(),
        "settings": settings.model_dump(mode="json"),
        "data": {
            "name": one.own.name,
            "pool": len(one.pool),
            "validation": len(one.own.validation),
            "test": len(one.own.test),
        },
        "queries": one.queries,
        "epochs": one.epochs,
        "ties": asdict(cost),
        "coins": {"seen": coins, "needed": coins_needed()},
        "threshold_log10_p": THRESHOLD_LOG10_P,
        "seeds": rows,
    }
    return found | {"sentence": sentence(found), "markdown": markdown(found)}
