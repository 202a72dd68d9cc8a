"""One thief of labels, from its questions to the trace of its network; and what all thieves are compared with."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sdb.answers.ledger import Ledger
from sdb.answers.ties import cost_of, log_probabilities, margins_of
from sdb.audit.marks.after import TUNED, after
from sdb.audit.marks.lessons import lesson, majority
from sdb.audit.marks.mark_seed import MarkSeed, answered, labelled, sure_of
from sdb.audit.marks.service import Partner, Service, changed
from sdb.audit.marks.thieves import Thief
from sdb.config import DistillSettings, TrainSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.models import Classifier
from sdb.runtime import derive_seed
from sdb.tracing.ties import trace_ties

# Asks what the thief asks, and nobody learns its answers.
CONTROL = "control"
# The network that learned answers without ties, and what is known of the ties.
PLAIN = "without-ties"


def lacks(seed: MarkSeed, thief: Thief) -> str:
    """What the pool lacks for a thief, for people; empty where it is enough."""
    queries, held = thief.queries or seed.queries, len(seed.pool)
    needs = queries + {"again, others": queries, "tuned": TUNED}.get(thief.after, 0)
    return "" if held >= needs else f"needs {needs:,} images to ask about and to learn from, there are {held:,}"


def accuracy_of(model: nn.Module, own: Splits) -> float:
    """How often a model is right on test images, a fraction."""
    logits, labels = answered(model, own.test)
    return float((logits.argmax(axis=1) == labels).mean())


def thief_row(seed: MarkSeed, row: str, thief: Thief) -> dict[str, Any]:
    """Accuracy of a thief, and the trace of it.

    Args:
        seed: what it stands on.
        row: its name, from which its random numbers follow.
        thief: what it does.

    Returns:
        accuracy (a fraction of test images), learned (how many labels), and of the trace the accounts that it asked by
        and the control, each as `AccountTies`; or skipped, a reason, where nothing is left for it to learn.
    """
    own, images = seed.own, seed.images(thief.queries or seed.queries)
    accounts = [f"{seed.prefix}{row} {number}" for number in range(thief.accounts)]
    usual = seed.settings(max(1, round(thief.epochs * seed.epochs)), **dict(thief.settings))
    rng = np.random.default_rng(derive_seed(seed.seed, row))
    with tempfile.TemporaryDirectory() as folder:
        service = Service(seed, Path(folder) / "ledger.db")
        told, logits = _told(service, thief, images, accounts, rng)
        service.ledger.close()

        def learn(which: np.ndarray, labels: np.ndarray, name: str) -> Classifier:
            return seed.trained(f"{row}-{name}", thief.network, labelled(images[which], labels, own), usual)

        which, labels = lesson(seed, thief, images, told, logits, rng, learn)
        if len(which) < own.num_classes:
            return {"skipped": f"{len(which)} labels are left to learn from"}
        data = replace(labelled(images[which], labels, own), augment=thief.augment)
        if thief.labels == "soft":
            suspect = _of_soft_answers(seed, row, thief, accounts[0], data, usual)
        else:
            student = seed.trained(row, thief.network, data, usual)
            suspect = after(seed, row, thief, student, images) if thief.after else student
        ledger = Ledger(Path(folder) / "ledger.db")
        result = trace_ties(suspect, [ledger], seed.ties, seed.owner.queries_key)
        ledger.close()
    found = {each.account: asdict(each) for each in result.accounts}
    control = found.pop(seed.prefix + CONTROL, None)
    told_ties = {"accounts": list(found.values()), "control": control}
    return {"accuracy": accuracy_of(suspect, own), "learned": len(labels)} | told_ties


def _told(
    service: Service, thief: Thief, images: np.ndarray, accounts: list[str], rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """What a thief takes for each account's answers, int64 (N,) each, and the model's own logits (N, C)."""
    classes, control = service.seed.own.num_classes, service.seed.prefix + CONTROL
    if thief.copies > 1:
        asked = [
            service.ask(changed(images, thief.noise, rng), [*accounts, control])[0][accounts[0]]
            for _ in range(thief.copies)
        ]
        return [majority(asked, classes)], np.empty((0, classes))
    if thief.shared < 1:
        answers, logits = service.ask(images, [accounts[0], control])
        more, _ = service.ask(images[: round(thief.shared * len(images))], accounts[1:])
        return [(answers | more)[account] for account in accounts], logits
    answers, logits = service.ask(images, [*accounts, control])
    return [answers[account] for account in accounts], logits


def _of_soft_answers(
    seed: MarkSeed, row: str, thief: Thief, account: str, data: Splits, usual: TrainSettings
) -> nn.Module:
    """A student of what a partner's account is answered."""
    taught: dict[str, Any] = usual.model_dump() | {"kd_weight": 1.0, "ce_weight": 0.0}
    settings = DistillSettings(**{n: value for n, value in taught.items() if n in DistillSettings.model_fields})
    fresh = seed.fresh(thief.network, derive_seed(seed.seed, row))
    return distill(Partner(seed.model, seed.ties, account), fresh, data, settings, progress=False).cpu().eval()


def facts(seed: MarkSeed) -> dict[str, Any]:
    """What ties are and cost, and a thief of answers without ties; accuracies and shares are fractions."""
    own, ties = seed.own, seed.ties
    logits, labels = answered(seed.model, own.test)
    held, held_labels = answered(seed.model, own.validation)
    best, margins = margins_of(log_probabilities(logits))
    tied = margins < ties.tau
    lost = ((best[:, 0] == labels).astype(int) - (best[:, 1] == labels))[tied].sum() / (2 * len(labels))
    images = seed.images(seed.queries)
    data = labelled(images, sure_of(seed.model, images)[0], own)
    plain = seed.trained(PLAIN, "net", data, seed.settings(seed.epochs))
    return {
        "teacher": float((best[:, 0] == labels).mean()),
        "expected": asdict(cost_of(held, held_labels, ties.tau)),
        "tau": ties.tau,
        "share": float(tied.mean()),
        "cost": float(lost),
        "plain_thief": accuracy_of(plain, own),
    }
