"""Where the mark of ties ends: thieves of labels, what they do against it, and what that costs them.

    python benchmarks/ties.py --data fashion_mnist --data-root DIR --seeds 3
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

Per seed: a teacher; a pool of images that it has not seen, which accounts ask about; thieves that learn the answers,
one row each; a trace of every thief by `sdb.tracing.ties`, with a further account that asked the same and that the
thief never saw as control. Then innocent models against thousands of secrets. Everything is kept in --work as it is
done, and a second call goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_images import RESULTS, fresh_network
from ties_page import markdown
from torch import nn

import sdb
from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.levels import fit as fit_levels
from sdb.answers.ties import Ties, cost_of, fit_tau, log_probabilities, margins_of
from sdb.audit.archive import Folder
from sdb.config import DistillSettings, TrainSettings
from sdb.data import Augment, ImageSet, Splits
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.models import Classifier
from sdb.runs.tasks import Where, Work, run
from sdb.runtime import derive_seed, environment, has_amx, write_atomic
from sdb.tracing.ties import log10_tail, trace_ties
from sdb.training.evaluation import answers_to, evaluate, evaluation_batches
from sdb.training.progress import ShowTasks

ROOT = Path(__file__).resolve().parent.parent
SECRETS, INNOCENTS = 10_000, 20
NOISY, CHANGED = 4, 16  # standard deviation of noise in copies, of 255
CONTROL = "control"


@dataclass(frozen=True)
class Case:
    """Sizes on one data set.

    Attributes:
        validation: share of the training images by which the margin of ties is chosen.
        pool: images that nobody but accounts has.
        teacher: architecture and arguments.
        epochs: of the teacher; thief_epochs: of thieves.
        augment: of the teacher.
        amx: whether the teacher is trained in bfloat16 where the processor multiplies it in hardware.
        thieves: architecture and arguments by name; the first is the usual one.
    """

    validation: float
    pool: int
    teacher: tuple[str, dict[str, Any]]
    epochs: int
    thief_epochs: int
    augment: Augment | None
    thieves: dict[str, tuple[str, dict[str, Any]]]
    amx: bool = False


NETS = {"net": ("net", {"num_channels": 16}), "small net": ("net", {"num_channels": 4}), "mlp": ("mlp", {})}
CROPS, FLIPS = Augment(crop_padding=4, flip=True), Augment(flip=True)
CASES = {
    "fashion_mnist": Case(1 / 6, 20_000, ("net", {"num_channels": 24}), 10, 20, None, NETS),
    "cifar10": Case(0.1, 20_000, ("preresnet20", {}), 20, 30, CROPS, NETS, amx=True),
}
TINY = Case(0.231, 400, ("net", {"num_channels": 8}), 4, 4, None, NETS)


@dataclass(frozen=True)
class Thief:
    """What a thief does.

    Attributes:
        queries: images that it asks about.
        network: one of the case's thieves.
        epochs: times as many as usual.
        accounts: that it asks by; each is asked everything.
        settings: of its training, beside the usual ones.
        augment: of its training.
        copies: changed copies of each image that it asks about, whose majority it takes.
        noise: in them; with much of it they are moved and mirrored too.
        labels: what it makes of the accounts' answers, see `LABELS`.
        after: what it does with the trained network, see `AFTER`.
    """

    queries: int = 10_000
    network: str = "net"
    epochs: float = 1
    accounts: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    augment: Augment | None = None
    copies: int = 1
    noise: int = 0
    labels: str = "as told"
    after: str = ""


SMOOTHED = (("label_smoothing", 0.1),)
THIEVES = {
    "labels": Thief(),
    "label smoothing": Thief(settings=SMOOTHED),
    "flips": Thief(augment=FLIPS),
    "smoothing, flips": Thief(settings=SMOOTHED, augment=FLIPS),
    "crops and flips": Thief(augment=CROPS),
    "crops and flips, 3 times the epochs": Thief(epochs=3, augment=CROPS),
    "smoothing, crops and flips": Thief(settings=SMOOTHED, augment=CROPS),
    "small net": Thief(network="small net"),
    "mlp": Thief(network="mlp"),
    "5,000 queries": Thief(5000),
    "2,000 queries": Thief(2000),
    "1,000 queries": Thief(1000),
    "2,000 queries, flips": Thief(2000, augment=FLIPS),
    "small net, flips": Thief(network="small net", augment=FLIPS),
    "a quarter of the epochs": Thief(epochs=0.25),
    "weight decay 0.5": Thief(settings=(("weight_decay", 0.5),)),
    "half its own labels": Thief(labels="half its own"),
    "drops the 10 % least sure": Thief(labels="drops 10"),
    "drops the 20 % least sure": Thief(labels="drops 20"),
    "drops the lowest level": Thief(labels="drops the lowest level"),
    "majority of 9 noisy copies": Thief(copies=9, noise=NOISY),
    "majority of 9 changed copies": Thief(copies=9, noise=CHANGED),
    "two accounts, one at random": Thief(accounts=2, labels="one at random"),
    "two accounts, drops disagreements": Thief(accounts=2, labels="drops disagreements"),
    "two accounts, relabels disagreements": Thief(accounts=2, labels="relabels disagreements"),
    "five accounts, majority": Thief(accounts=5, labels="majority"),
    "student of the thief, same images": Thief(after="again"),
    "student of the thief, other images": Thief(after="again, others"),
    "tuned on 1,000 true labels": Thief(after="tuned"),
    "half of the weights pruned": Thief(after="pruned"),
    "weights of 4 bits": Thief(after="quantised"),
    "a partner's student of soft answers": Thief(labels="soft"),
}

# Of these the mark is said to name the account.
PROMISED = (
    "labels",
    "label smoothing",
    "flips",
    "small net",
    "2,000 queries",
    "2,000 queries, flips",
    "majority of 9 noisy copies",
    "two accounts, one at random",
)


@dataclass(frozen=True)
class Ground:
    """What thieves of one seed stand on."""

    case: Case
    name: str
    root: Path | None
    seed: int
    archive: Folder

    @cached_property
    def splits(self) -> tuple[Splits, ImageSet]:
        """The owner's data, and the pool."""
        data = sdb.load_data(self.name, root=self.root, seed=self.seed, validation_fraction=self.case.validation)
        order = np.random.default_rng(self.seed).permutation(len(data.train))
        own = replace(data, train=data.train.take(order[self.case.pool :]), augment=self.case.augment)
        return own, data.train.take(order[: self.case.pool])

    def settings(self, epochs: int, **more: Any) -> TrainSettings:
        """Those of every training here."""
        usual = {"optimizer": "adamw", "learning_rate": 0.003, "schedule": "one_cycle", "batch_size": 128}
        return TrainSettings(**(usual | {"epochs": epochs, "seed": self.seed} | more))

    def trained(
        self, place: str, network: str | tuple[str, dict[str, Any]], data: Splits, settings: TrainSettings
    ):
        """A trained network; goes on where it was stopped."""
        spec = self.case.thieves[network] if isinstance(network, str) else network

        def fresh() -> Classifier:
            return fresh_network(data, *spec, derive_seed(self.seed, place))

        self.archive.train(f"seed-{self.seed}/{place}", fresh(), data, settings)
        return self.archive.trained(f"seed-{self.seed}/{place}", fresh()).eval()

    @cached_property
    def teacher(self) -> Classifier:
        """The owner's model."""
        own, _ = self.splits
        precision = "bfloat16" if self.case.amx and has_amx() else "float32"
        settings = self.settings(self.case.epochs, precision=precision)
        return self.trained("teacher", self.case.teacher, own, settings)

    @cached_property
    def ties(self) -> Ties:
        """By the default budget, on validation images; the margin that was kept, so that all pieces have the same."""
        place = f"seed-{self.seed}/results/facts"
        if self.archive.has(place):
            tau = self.archive.result(place)["tau"]
        else:
            tau = fit_tau(*answered(self.teacher, self.splits[0].validation)).tau
        return Ties.of(self.owner.secret, f"benchmark {self.seed}", tau)

    @property
    def owner(self) -> Owner:
        """Fixed by the seed, so that a table can be made again."""
        return Owner(derive_seed(self.seed, "owner").to_bytes(32, "big"))


def answered(model: torch.nn.Module, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels as arrays."""
    logits, labels = answers_to(model, evaluation_batches(images, torch.device("cpu")))
    return logits.numpy(), labels.numpy()


def labelled(images: np.ndarray, labels: np.ndarray, own: Splits) -> Splits:
    """A thief's data: these are all it learns from."""
    return replace(own, train=ImageSet(images, labels.astype(np.int64)), augment=None)


def changed(images: np.ndarray, noise: int, rng: np.random.Generator) -> np.ndarray:
    """A copy of images uint8 (N, C, H, W): noise; with much of it also moved by up to a pixel, one in two mirrored."""
    noisy = (images + rng.normal(0, noise, images.shape)).round().clip(0, 255).astype(np.uint8)
    if noise < CHANGED:
        return noisy
    moved = np.stack([np.roll(each, rng.integers(-1, 2, 2), (1, 2)) for each in noisy])
    mirrored = rng.random(len(moved)) < 0.5
    moved[mirrored] = moved[mirrored][..., ::-1]
    return moved


class Partner(nn.Module):
    """A partner's answers: the network's own, on ties with the class of its coin ahead."""

    def __init__(self, ground: Ground, account: str) -> None:
        super().__init__()
        self.ground, self.account = ground, account

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.ground.teacher(images)
        return torch.from_numpy(self.ground.ties.answer(logits.numpy(), self.account).answers)


class Service:
    """The owner's service as accounts see it: labels, with a ledger of what was told."""

    def __init__(self, ground: Ground, path: Path) -> None:
        self.ground, ties = ground, ground.ties
        public = public_of(ground.owner.queries_key).hex()
        Ledger.create(path, Terms(ties.box_id, ties.id, ties.tau, public, cap=10**6)).close()
        self.ledger = Ledger(path, writing=True)

    def ask(self, images: np.ndarray, accounts: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What each account is told about images uint8 (N, C, H, W), and the network's own logits."""
        logits, _ = answered(self.ground.teacher, ImageSet(images, np.zeros(len(images), np.int64)))
        told = {}
        for account in accounts:
            answer = self.ground.ties.answer(logits, account)
            pixels = images[answer.found.rows].astype(np.float32) / np.float32(255)
            self.ledger.put(account, pixels, answer.found, answer.classes)
            told[account] = answer.answers.argmax(axis=1)
        return told, logits


def sure_of(model: Classifier, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A model's classes and confidences."""
    logits, _ = answered(model, ImageSet(images, np.zeros(len(images), np.int64)))
    shares = np.exp(log_probabilities(logits))
    return shares.argmax(axis=1), shares.max(axis=1)


def lesson(
    ground: Ground,
    row: str,
    thief: Thief,
    told: list[np.ndarray],
    logits: np.ndarray,
    first: Callable[..., Classifier],
) -> tuple[np.ndarray, np.ndarray]:
    """Which of its images a thief learns, and by which labels."""
    pool, rng = ground.splits[1], np.random.default_rng(derive_seed(ground.seed, row))
    everything, labels, what = np.arange(thief.queries), told[0].copy(), thief.labels
    images = np.asarray(pool.images)[: thief.queries]
    if what == "half its own":
        mine = rng.random(len(labels)) < 0.5
        labels[mine] = np.asarray(pool.labels)[: thief.queries][mine]
    elif what.startswith("drops ") and what[6:].isdecimal():
        _, sure = sure_of(first(everything, labels), images)
        everything = np.flatnonzero(sure >= np.quantile(sure, int(what[6:]) / 100))
    elif what == "drops the lowest level":
        everything = np.flatnonzero(levels_of(ground, logits) > 0)
    elif what == "one at random":
        labels = np.where(rng.random(len(labels)) < 0.5, told[0], told[1])
    elif what == "majority":
        labels = majority(told, logits.shape[1])
    elif what in ("drops disagreements", "relabels disagreements"):
        agreed = told[0] == told[1]
        everything = np.flatnonzero(agreed)
        if what.startswith("relabels"):
            named, _ = sure_of(first(everything, labels[agreed]), images)
            labels, everything = np.where(agreed, labels, named), np.arange(thief.queries)
    return everything, labels[everything]


def levels_of(ground: Ground, logits: np.ndarray) -> np.ndarray:
    """The levels of a box that answers with two of them, edges from validation images."""
    held, labels = answered(ground.teacher, ground.splits[0].validation)
    classes = logits.shape[1]
    decoys = [[(label + 1) % classes, (label + 2) % classes] for label in range(classes)]
    rows = fit_levels(torch.from_numpy(held), torch.from_numpy(labels), decoys, levels=2).rows
    return rows.level(torch.from_numpy(logits))[1].numpy()


def majority(told: list[np.ndarray], classes: int) -> np.ndarray:
    """The commonest of several answers."""
    counts = sum(np.eye(classes, dtype=int)[each] for each in told)
    return np.asarray(counts).argmax(axis=1)


def after(ground: Ground, row: str, thief: Thief, student: Classifier, images: np.ndarray) -> Classifier:
    """What a thief does with its trained network."""
    own, pool = ground.splits
    others = np.asarray(pool.images)[-thief.queries :]
    if thief.after.startswith("again"):
        seen = others if thief.after.endswith("others") else images
        data = labelled(seen, sure_of(student, seen)[0], own)
        return ground.trained(f"{row}-again", thief.network, data, ground.settings(ground.case.thief_epochs))
    if thief.after == "tuned":
        few = labelled(np.asarray(pool.images)[-1000:], np.asarray(pool.labels)[-1000:], own)
        settings = ground.settings(10, learning_rate=0.001)
        sdb.training.loop.train(student, few, settings, progress=False)
        return student.eval()
    with torch.no_grad():
        for weights in (each for each in student.parameters() if each.dim() > 1):
            if thief.after == "pruned":
                weights[weights.abs() < weights.abs().median()] = 0
            elif thief.after == "quantised":
                step = weights.abs().max() / 7
                weights.copy_((weights / step).round() * step)
    return student


def thief_row(ground: Ground, row: str) -> dict[str, Any]:
    """Accuracy of a thief, and the trace of it."""
    thief, (own, pool) = THIEVES[row], ground.splits
    images = np.asarray(pool.images)[: thief.queries]
    accounts = [f"{row} {number}" for number in range(thief.accounts)]
    usual = ground.settings(max(1, round(thief.epochs * ground.case.thief_epochs)), **dict(thief.settings))
    with tempfile.TemporaryDirectory() as folder:
        service = Service(ground, Path(folder) / "ledger.db")
        if thief.copies > 1:
            rng = np.random.default_rng(derive_seed(ground.seed, row))
            asked = [
                service.ask(changed(images, thief.noise, rng), [*accounts, CONTROL])[0][accounts[0]]
                for _ in range(thief.copies)
            ]
            told, logits = [majority(asked, own.num_classes)], np.empty((0, own.num_classes))
        else:
            answers, logits = service.ask(images, [*accounts, CONTROL])
            told = [answers[account] for account in accounts]
        service.ledger.close()

        def first(which: np.ndarray, labels: np.ndarray) -> Classifier:
            return ground.trained(f"{row}-first", thief.network, labelled(images[which], labels, own), usual)

        which, labels = lesson(ground, row, thief, told, logits, first)
        data = replace(labelled(images[which], labels, own), augment=thief.augment)
        if thief.labels == "soft":
            fresh = fresh_network(own, *ground.case.thieves[thief.network], derive_seed(ground.seed, row))
            taught = usual.model_dump() | {"kd_weight": 1.0, "ce_weight": 0.0}
            known = {name: value for name, value in taught.items() if name in DistillSettings.model_fields}
            settings = DistillSettings(**known)
            student = sdb.distill(Partner(ground, accounts[0]), fresh, data, settings, progress=False)
        else:
            student = ground.trained(row, thief.network, data, usual)
        if thief.after:
            student = after(ground, row, thief, student, images)
        accuracy = evaluate(student, evaluation_batches(own.test, torch.device("cpu")))["accuracy"]
        ledger = Ledger(Path(folder) / "ledger.db")
        result = trace_ties(student, [ledger], ground.ties, ground.owner.queries_key)
        ledger.close()
    found = {each.account: asdict(each) for each in result.accounts}
    control = found.pop(CONTROL)
    return {"accuracy": accuracy, "learned": len(labels), "accounts": list(found.values()), "control": control}


def facts(ground: Ground) -> dict[str, Any]:
    """What ties cost, and a thief of answers without ties."""
    (own, pool), ties = ground.splits, ground.ties
    logits, labels = answered(ground.teacher, own.test)
    held, held_labels = answered(ground.teacher, own.validation)
    best, margins = margins_of(log_probabilities(logits))
    tied = margins < ties.tau
    lost = ((best[:, 0] == labels).astype(int) - (best[:, 1] == labels))[tied].sum() / (2 * len(labels))
    queries = THIEVES["labels"].queries
    images = np.asarray(pool.images)[:queries]
    named = sure_of(ground.teacher, images)[0]
    settings = ground.settings(ground.case.thief_epochs)
    plain = ground.trained("without-ties", "net", labelled(images, named, own), settings)
    return {
        "teacher": float((best[:, 0] == labels).mean()),
        "expected": asdict(cost_of(held, held_labels, ties.tau)),
        "tau": ties.tau,
        "share": float(tied.mean()),
        "cost": float(lost),
        "plain_thief": evaluate(plain, evaluation_batches(own.test, torch.device("cpu")))["accuracy"],
    }


def innocents(ground: Ground) -> dict[str, Any]:
    """Rates of small p-values of models that are independent of a secret, over many secrets.

    The models: the owner's own, thieves of other accounts, a student of answers without ties, students of true labels.
    """
    (own, pool), ties = ground.splits, ground.ties
    images = np.asarray(pool.images)[: THIEVES["labels"].queries]
    logits, _ = answered(ground.teacher, ImageSet(images, np.zeros(len(images), np.int64)))
    found = ties.find(logits)
    _, first = np.unique(np.stack([found.cells, *found.pairs.T]), axis=1, return_index=True)
    asked, pairs = images[found.rows[first]], found.pairs[first]
    models = {"the owner's model": ground.teacher}
    like = fresh_network(own, *ground.case.thieves["net"], 0)
    for row in ("without-ties", *(name for name, each in THIEVES.items() if each.network == "net")):
        if len(models) < INNOCENTS - 4:
            models[row] = ground.archive.trained(f"seed-{ground.seed}/{row}", like).eval()
    for number in range(INNOCENTS - len(models)):
        part = np.random.default_rng([ground.seed, number]).permutation(len(own.train))[:5000]
        true = labelled(np.asarray(own.train.images)[part], np.asarray(own.train.labels)[part], own)
        models[f"true labels {number}"] = ground.trained(f"own-{number}", "net", true, ground.settings(5))
    given = np.stack([sure_of(model, asked)[0] for model in models.values()])
    below, total, least, tail = dict.fromkeys((2, 3, 4), 0), 0, 0.0, cache(log10_tail)
    for secret in range(SECRETS):
        coins = ties.coins(f"innocent {secret}", replace(found, rows=first, pairs=pairs, cells=found.cells[first]))
        usable = (given[:, :, None] == pairs).any(axis=2)
        hits, votes = (given == coins).sum(axis=1), usable.sum(axis=1)
        for value in map(tail, hits.tolist(), votes.tolist()):
            total, least = total + 1, min(least, value)
            for power in below:
                below[power] += value < -power
    return {"models": list(models), "secrets": SECRETS, "tests": total, "below": below, "least": least}


def do(piece: str, case: Case, name: str, root: Path | None, seed: int, folder: Path) -> None:
    """Do a piece and keep its result."""
    ground, started = Ground(case, name, root, seed, Folder(folder)), time.perf_counter()
    makers = {"facts": facts, "innocents": innocents}
    result = makers[piece](ground) if piece in makers else thief_row(ground, piece)
    ground.archive.keep(f"seed-{seed}/results/{piece}", result | {"seconds": time.perf_counter() - started})


def main() -> int:
    """Do what is missing and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where everything is kept (default: runs/ties/DATA)")
    parser.add_argument("--out", type=Path, help="(default: docs/results/ties-DATA.json)")
    parser.add_argument("--write", action="store_true", help="do nothing more: write what is done")
    options = parser.parse_args()
    folder = (options.work or ROOT / "runs" / "ties" / options.data).absolute()
    root = None if options.data_root is None else options.data_root.absolute()
    archive, case, works = Folder(folder), CASES[options.data], []
    # What is promised first, of every seed; then where it ends.
    others = tuple(name for name in THIEVES if name not in PROMISED)
    for pieces in (("facts", *PROMISED), (*others, "innocents")):
        for seed, piece in itertools.product(range(options.seeds), pieces):
            if not archive.has(f"seed-{seed}/results/{piece}"):
                needs = {"facts": (), "innocents": tuple(THIEVES)}.get(piece, ("facts",))
                missing = tuple(
                    f"{seed} {need}" for need in needs if not archive.has(f"seed-{seed}/results/{need}")
                )
                given = (piece, case, options.data, root, seed, folder)
                works.append(Work(f"{seed} {piece}", do, given, missing))
    print(f"{options.data}: {len(works)} pieces missing", flush=True)
    if works and not options.write:
        shown = ShowTasks(options.data, dict.fromkeys((work.name for work in works), 1.0))
        run(works, Where(workers=options.workers), shown.on_progress)
        shown.close()
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        places = {name: f"seed-{seed}/results/{name}" for name in ("facts", *THIEVES, "innocents")}
        done = {name: archive.result(place) for name, place in places.items() if archive.has(place)}
        if "facts" in done:
            rows[str(seed)] = done
    root_given = " --data-root DIR" if options.data_root else ""
    content = {
        "kind": "ties",
        "data": options.data,
        "command": f"python benchmarks/ties.py --data {options.data}{root_given} --seeds {options.seeds}",
        "environment": environment(),
        "seeds": rows,
    }
    content["markdown"] = markdown(content)
    out = options.out or RESULTS / f"ties-{options.data}.json"
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
