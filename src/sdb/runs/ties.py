"""Ties for a box on disk: what counts as one, found on validation images, and tracing by them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sdb.answers.entries import Terms
from sdb.answers.guard import MANIFEST, Guard
from sdb.answers.ledger import Ledger
from sdb.answers.ties import BUDGET, TieCost, Ties, fit_tau, levels_with_ties
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.errors import ConfigError, StorageError
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.models.checkpoint import check_fits
from sdb.runs.resolve import described_data
from sdb.runs.suspects import suspect_of
from sdb.runtime import choose_device
from sdb.tracing.kept import read_queries
from sdb.tracing.ties import Commitment, TieTrace, trace_ties
from sdb.training.evaluation import answers_to, evaluation_batches


def new_ledger(
    box_path: Path,
    *,
    out: Path,
    ties_file: Path,
    owner_file: Path,
    budget: float,
    keep_queries: bool,
    days: int,
    cap: int,
    dataset: str | None,
    data_root: Path | None,
    other_class_names: bool,
    network: str | None,
) -> tuple[TieCost, list[dict[str, float]]]:
    """Make the ties' secret and the ledger of a box or guard; see `sdb ledger new`.

    Returns what ties cost, and of each level of confidence how often its answers are right, `without` and `with_ties`.
    The same box has the same ties each time, so a file of them may be there: a second server's ledger goes with it.

    Raises:
        ConfigError: too few validation images, or too few of them near ties, to know what ties cost; or two classes;
            or a guard with what is for boxes.
        StorageError, KeyFileError: the ledger exists, or other ties; or one cannot be written.
    """
    if out.exists():
        raise StorageError(f"{out} exists; it is not overwritten: choose another name")
    owner = Owner.load(owner_file)
    if (box_path / MANIFEST).exists():
        guard = Guard.load(box_path)
        if budget != BUDGET or dataset is not None or network is not None:
            raise ConfigError(
                "--budget, --dataset, --network: what ties of a guard cost was found when it was made"
            )
        cost, ties, measured = guard.info.ties, guard.ties(owner), guard.info.measured
        _check_classes(guard.rows.classes)
        levels = [
            {"level": number, "without": level.accuracy, "with_ties": measured[f"level_{number}_with_ties"]}
            for number, level in enumerate(guard.info.levels, 1)
            if f"level_{number}_with_ties" in measured
        ]
    else:
        cost, ties, levels = _ties_of_box(
            box_path, owner, budget, dataset, data_root, other_class_names=other_class_names, network=network
        )
    public = public_of(owner.queries_key).hex()
    terms = Terms(ties.box_id, ties.id, ties.tau, public, keep_queries, days, cap, int(time.time()))
    if not ties_file.exists():
        ties.save(ties_file)
    elif Ties.load(ties_file).id != ties.id:
        raise StorageError(f"{ties_file} exists, and is of another box, owner or margin: choose another name")
    Ledger.create(out, terms).close()
    return cost, levels


def _ties_of_box(
    box_path: Path,
    owner: Owner,
    budget: float,
    dataset: str | None,
    data_root: Path | None,
    *,
    other_class_names: bool,
    network: str | None,
) -> tuple[TieCost, Ties, list[dict[str, float]]]:
    """What ties cost on validation images, the ties, and what they make of levels, see `new_ledger`."""
    model = load_model(box_path, network).eval()
    classifier = model.classifier if isinstance(model, Box) else model
    if isinstance(model, Box):
        model.check_owner(owner)
    _check_classes(classifier.num_classes)
    data = described_data(box_path, dataset, data_root, model)
    check_fits(classifier, box_path, data.num_classes, data.image_shape, data.class_names, other_class_names)
    batches = evaluation_batches(data.validation, torch.device("cpu"))
    logits, labels = (each.numpy() for each in answers_to(classifier, batches))
    cost = fit_tau(logits, labels, budget)
    if not cost.tau:
        raise ConfigError(
            f"{len(data.validation)} validation images show too few near ties to know what they cost: give more, or "
            "another --budget; without ties, copies of labels carry no mark"
        )
    ties = Ties.of(owner.secret, model.info.id if isinstance(model, Box) else "", cost.tau)
    if not isinstance(model, Box) or model.rows is None:
        return cost, ties, []
    edges = model.rows.edges.numpy()
    right = [levels_with_ties(logits, labels, tau, edges).tolist() for tau in (0.0, cost.tau)]
    levels = [
        {"level": number, "without": without, "with_ties": with_ties}
        for number, (without, with_ties) in enumerate(zip(*right, strict=True), 1)
        if without == without and with_ties == with_ties
    ]
    return cost, ties, levels


def _check_classes(classes: int) -> None:
    if classes < 3:
        raise ConfigError(
            "two classes have one cell, so an account has one coin and no trace can succeed: no ledger is made"
        )


def trace_ties_job(
    suspect: str,
    *,
    ledgers: Sequence[Path],
    commitments: Sequence[Path],
    owner_file: Path,
    accounts: Sequence[str],
    names: dict[str, str],
    budget: int | None,
    network: str | None,
    device: str,
    token_env: str | None,
    queries: Sequence[Path],
) -> TieTrace:
    """Ask a suspect about the ties of a box's accounts, see `trace_ties`; accounts also by `names`, which are by id.

    Raises:
        ConfigError: no ledger, or an account that is neither a token's name nor in a ledger.
    """
    if not ledgers:
        raise ConfigError("ledgers: none; give at least one")
    owner = Owner.load(owner_file)
    opened = [Ledger(path) for path in ledgers]
    known = {entry.account for ledger in opened for entry in ledger.entries()} | names.keys()
    ids = [{name: account for account, name in names.items()}.get(each, each) for each in accounts]
    if unknown := [given for given, account in zip(accounts, ids, strict=True) if account not in known]:
        raise ConfigError(f"--account {unknown[0]}: neither a token's name (--tokens) nor an id in the ledger")
    terms = opened[0].terms
    return trace_ties(
        suspect_of(suspect, network, choose_device(device), token_env),
        opened,
        Ties.of(owner.secret, terms.box_id, terms.tau),
        owner.queries_key,
        commitments=[Commitment.load(path) for path in commitments],
        accounts=ids,
        budget=budget,
        kept=itertools.chain.from_iterable(read_queries(path) for path in queries),
    )
