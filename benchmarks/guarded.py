"""Guards around classifiers of texts and tables: what users get, what is at stake, what thieves get, and the mark.

    python benchmarks/guarded.py --data clinc150 --file data_full.json --seeds 3      # github.com/clinc/oos-eval
    python benchmarks/guarded.py --data banking77 --file FOLDER --seeds 3             # train.csv and test.csv of
                                                              # github.com/PolyAI-LDN/task-specific-datasets
    python benchmarks/guarded.py --data letter --file letter-recognition.data --seeds 3                     # UCI
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

A seed is a split, a teacher and a guard around it. Students come in pairs: the same few examples, the same start, one
for each way to learn. The best of several ways is chosen on the students' own validation examples over all pairs; test
examples only measure. Then a thief of labels asks about all examples that the teacher has not seen, and is traced.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_images import RESULTS
from guarded_page import markdown
from torch import nn

from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.teller import Teller
from sdb.audit.guard_networks import Loss, NgramNetwork, dense, fit_network, hashed, scores_of
from sdb.audit.guard_ways import levels_as_targets
from sdb.audit.guarded import turns
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.runtime import derive_seed, environment, write_atomic
from sdb.tracing.ties import trace_ties
from sdb.training.evaluation import honesty
from sdb.wrapping.guarded import guard

SMOOTHING, LONGEST = 0.1, 96


@dataclass(frozen=True)
class Case:
    """Sizes on one data set.

    Attributes:
        classes: how many.
        shares: of the training examples, that the teacher learns from and that the guard is calibrated by; the rest is
            the pool that others ask about.
        few: examples of a student in a pair, per class; a fifth of them are for choosing.
        width: of the teacher; students have a quarter.
        epochs: of the teacher; of students, whose examples are few.
        pairs: per seed.
    """

    classes: int
    shares: tuple[float, float]
    few: int
    width: int
    epochs: tuple[int, int]
    pairs: int


CASES = {
    "clinc150": Case(150, (0.5, 0.2), 6, 192, (15, 30), 4),
    "banking77": Case(77, (0.45, 0.2), 8, 192, (15, 30), 4),
    "letter": Case(26, (0.4, 0.2), 15, 256, (60, 120), 8),
}
Examples = tuple[torch.Tensor, np.ndarray]


def read(name: str, file: Path, seed: int) -> tuple[Examples, Examples]:
    """Training and test examples; texts as indices of hashed n-grams, tables as numbers of mean 0 and deviation 1."""
    if name == "letter":
        lines = [line.replace('"', "").split(",") for line in file.read_text().split()]
        rows = [line for line in lines if len(line[0]) == 1]  # some copies have a line of names
        numbers = torch.tensor([[float(each) for each in row[1:]] for row in rows])
        labels = np.array([ord(row[0]) - ord("A") for row in rows])
        train = np.random.default_rng(derive_seed(seed, "test")).permutation(len(rows))
        numbers = (numbers - numbers[train[:16000]].mean(dim=0)) / numbers[train[:16000]].std(dim=0)
        return (numbers[train[:16000]], labels[train[:16000]]), (numbers[train[16000:]], labels[train[16000:]])
    if name == "clinc150":
        parts = json.loads(file.read_text())
        texts = [parts["train"] + parts["val"], parts["test"]]
    else:
        texts = [list(csv.reader((file / f"{part}.csv").open()))[1:] for part in ("train", "test")]
    names = sorted({label for _, label in texts[0]})
    made = [
        (hashed([text for text, _ in part], LONGEST), np.array([names.index(label) for _, label in part]))
        for part in texts
    ]
    return made[0], made[1]


def network(data: str, width: int, classes: int, seed: int) -> nn.Module:
    """A fresh one."""
    torch.manual_seed(seed)
    return dense(16, width, classes) if data == "letter" else NgramNetwork(width, classes)


def of_labels(labels: np.ndarray, smoothing: float = 0.0) -> Loss:
    """Cross-entropy with labels."""
    targets = torch.from_numpy(labels)
    return lambda logits, at: nn.functional.cross_entropy(logits, targets[at], label_smoothing=smoothing)


def of_answers(answers: torch.Tensor, labels: np.ndarray, temperature: float, weight: float) -> Loss:
    """Distillation by log-probabilities (N, C), with labels at a weight."""
    soft, targets = (answers / temperature).softmax(dim=1), torch.from_numpy(labels)

    def loss(logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        own = nn.functional.cross_entropy(logits / temperature, soft[at]) * temperature**2
        return (1 - weight) * own + weight * nn.functional.cross_entropy(logits, targets[at])

    return loss


def of_levels(answers: torch.Tensor) -> Loss:
    """A level as target: the told accuracy at the class that is told, the rest spread over all others."""
    targets = torch.from_numpy(levels_as_targets(answers.log_softmax(dim=1).double().numpy())).float()
    return lambda logits, at: nn.functional.cross_entropy(logits, targets[at])


def by_weight(answers: torch.Tensor) -> Loss:
    """Classes, each as much as its level is sure."""
    sure, named = answers.softmax(dim=1).max(dim=1)
    weights = sure / sure.mean()
    return lambda logits, at: (
        nn.functional.cross_entropy(logits, named[at], reduction="none") * weights[at]
    ).mean()


def ways_of(labels: np.ndarray, teacher: torch.Tensor, told: torch.Tensor) -> dict[str, Loss]:
    """How students learn: the bar, the bare model and the partner, thieves of the guard."""
    named = teacher.argmax(dim=1).numpy()
    ways = {
        "bar/alone": of_labels(labels),
        "bar/alone, smoothed": of_labels(labels, SMOOTHING),
        "bar/top-1": of_labels(named),
        "bar/top-1, smoothed": of_labels(named, SMOOTHING),
        "bar/top-1, smoothed more": of_labels(named, 3 * SMOOTHING),
        "thief/levels as targets": of_levels(told),
        "thief/levels as weights": by_weight(told),
    }
    for who, answers in (("bare", teacher), ("thief", told)):
        for temperature in (1.0, 4.0):
            for weight in (0.0, 0.5):
                ways[f"{who}/T={temperature:g}, labels {weight:g}"] = of_answers(
                    answers, labels, temperature, weight
                )
    return ways


def run_seed(data: str, file: Path, seed: int) -> dict[str, Any]:
    """Everything of one seed."""
    case, started = CASES[data], time.perf_counter()
    (inputs, labels), (test, truth) = read(data, file, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    own, held, pool = np.split(order, (np.cumsum(case.shares) * len(order)).astype(int))
    teacher = network(data, case.width, case.classes, derive_seed(seed, "teacher"))
    fit_network(teacher, inputs[own], of_labels(labels[own]), case.epochs[0], seed)
    owner = Owner(derive_seed(seed, "owner").to_bytes(32, "big"))
    made = guard(None, (scores_of(teacher, inputs[held]).numpy(), labels[held]), owner=owner)
    bare = scores_of(teacher, test)
    told = torch.from_numpy(made.answer(bare))
    users = {}
    for who, answers in (("teacher", bare), ("keyless", told)):
        right = float((answers.argmax(dim=1).numpy() == truth).mean())
        measured = {"accuracy": right} | honesty(answers, torch.from_numpy(truth))
        users |= {f"{who}_{name}": value for name, value in measured.items()}
    scores: dict[str, list[tuple[float, float]]] = {}
    for pair in range(case.pairs):
        rng = np.random.default_rng(derive_seed(seed, "pair", pair))
        mixed = rng.permutation(pool)
        few = mixed[turns(labels[mixed]) < case.few]
        fifth = rng.permutation(len(few)) < len(few) // 5
        learned, choosing = few[~fifth], few[fifth]
        soft = scores_of(teacher, inputs[learned])
        for name, loss in ways_of(labels[learned], soft, torch.from_numpy(made.answer(soft))).items():
            student = network(data, case.width // 4, case.classes, derive_seed(seed, "student", pair))
            fit_network(student, inputs[learned], loss, case.epochs[1], derive_seed(seed, "order", pair))
            found = [
                float((scores_of(student, inputs_).argmax(dim=1).numpy() == labels_).mean())
                for inputs_, labels_ in ((test, truth), (inputs[choosing], labels[choosing]))
            ]
            scores.setdefault(name, []).append((found[0], found[1]))
    return {
        "seed": seed,
        "users": users,
        "bits": made.info.measured["bits"],
        "levels": made.rows.levels,
        "learned": len(learned),
        "scores": scores,
        "mark": mark(data, made, owner, teacher, inputs[pool], (test, truth), seed),
        "seconds": time.perf_counter() - started,
    }


def mark(
    data: str, made: Any, owner: Owner, teacher: nn.Module, pool: torch.Tensor, test: Examples, seed: int
) -> dict[str, Any]:
    """What ties cost, and traces of thieves that learn the labels which an account was told."""
    case, ties = CASES[data], made.ties(owner)
    bare, truth = scores_of(teacher, test[0]).numpy(), test[1]
    found = ties.find(bare)
    order = np.argsort(-bare, axis=1)[found.rows, :2]
    lost = ((order[:, 0] == truth[found.rows]).astype(int) - (order[:, 1] == truth[found.rows])).sum() / (
        2 * len(truth)
    )
    rows: dict[str, Any] = {"cost": float(lost), "share": len(found.rows) / len(truth), "tau": ties.tau}
    for name, queries, width, smoothing in (
        ("labels", len(pool), case.width, 0.0),
        ("labels, smoothed", len(pool), case.width, SMOOTHING),
        ("labels, a small student", len(pool), case.width // 4, 0.0),
        ("2,000 labels", 2000, case.width, 0.0),
    ):
        with tempfile.TemporaryDirectory() as folder:
            terms = Terms(ties.box_id, ties.id, ties.tau, public_of(owner.queries_key).hex(), cap=10**6)
            Ledger.create(Path(folder) / "ledger.db", terms).close()
            ledger, asked = Ledger(Path(folder) / "ledger.db", writing=True), pool[:queries].numpy()
            teller, logits = Teller(ties, ledger, made.flat), scores_of(teacher, pool[:queries]).numpy()
            told = teller.answers("thief", asked, logits, keyless=True).argmax(axis=1)
            teller.answers("control", asked, logits, keyless=True)
            ledger.close()
            student = network(data, width, case.classes, derive_seed(seed, name))
            fit_network(student, pool[:queries], of_labels(told, smoothing), case.epochs[0], seed)

            def suspect(given: np.ndarray, student: nn.Module = student) -> np.ndarray:
                return scores_of(student, torch.from_numpy(given.copy())).argmax(dim=1).numpy()

            traced = trace_ties(suspect, [Ledger(Path(folder) / "ledger.db")], ties, owner.queries_key)
            by = {each.account: each for each in traced.accounts}
            rows[name] = {
                "queries": queries,
                "told": by["thief"].told if "thief" in by else 0,
                "log10_p": by["thief"].log10_p if "thief" in by else 0.0,
                "control": by["control"].log10_p if "control" in by else 0.0,
            }
    return rows


def main() -> int:
    """Do the seeds that are missing and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or RESULTS / f"guarded-{options.data}.json"
    done = {each["seed"]: each for each in json.loads(out.read_text())["seeds"]} if out.exists() else {}
    for seed in range(options.seeds):
        if seed not in done:
            done[seed] = run_seed(options.data, options.file, seed)
            print(f"{options.data}: seed {seed} done in {done[seed]['seconds']:.0f} s", flush=True)
        content = {
            "kind": "guarded",
            "data": options.data,
            "command": f"python benchmarks/guarded.py --data {options.data} --file FILE --seeds {options.seeds}",
            "environment": environment(),
            "seeds": [done[each] for each in sorted(done)],
        }
        write_atomic(out, json.dumps(content | {"markdown": markdown(content)}, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
