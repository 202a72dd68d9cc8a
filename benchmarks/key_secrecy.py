"""How secret is a key? Attacks on image keys and on weight keys, on the digits.

    OMP_NUM_THREADS=1 python benchmarks/key_secrecy.py [--seeds 3] [--quick] [--out FILE.json]

Prints Markdown tables; --out also writes every number. A teacher (net, 24 channels) is wrapped with each kind of key;
then what keys near the true one open (unlock curve), 100 random keys, searches by gradient and by queries, and
re-training of a weight-key box's public part. KL is from the teacher's soft outputs to the asked module's, in nats,
over all test images; lower is more knowledge. A student (net, 8 channels) says what the knowledge is worth. Attacks
never see test images, the teacher or the true key; only this harness compares with them. Rows of searches for which
the objective is a guess are chosen by that guess, never by the truth.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdb.audit.attacks.key_search import EvolutionSearch, Found, GradientSearch, HillClimb, mean_entropy
from sdb.audit.attacks.retrain import Retrain, share_of
from sdb.audit.attacks.similar_keys import Carry, SimilarKeys, cosine_similarity
from sdb.box.box import Box
from sdb.box.private_part import put_in_place, replaceable
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import Splits, load
from sdb.distillation import distill
from sdb.keys import Key, Owner
from sdb.losses import kl
from sdb.models import Classifier, ModelSpec
from sdb.runtime import environment
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

BLEND = 0.5
TEMPERATURE = 4.0
FIT: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 3e-3,
    "device": "cpu",
    "schedule": "cosine",
}
Row = dict[str, Any]


class Bench:
    """One seed: data, teacher, and what any module that answers images is worth."""

    def __init__(self, seed: int, quick: bool) -> None:
        self.seed, self.quick = seed, quick
        self.data = load("digits")
        self.wrap_epochs, self.student_epochs, self.teacher_epochs = (20, 12, 15) if quick else (60, 60, 30)
        self.pixels = torch.from_numpy(self.data.test.images.copy()).float() / 255
        self.labels = torch.from_numpy(self.data.test.labels)
        self.teacher = self.trained(24, self.data, seed)
        with torch.no_grad():
            self.answers = self.teacher(self.pixels)
        # The attacker's: same architecture and images, its own initialisation.
        self.own_net = self.trained(24, self.data, 1000 + seed)

    def net(self, channels: int, seed: int) -> Classifier:
        data = self.data
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return ModelSpec(
                "net", {"num_channels": channels}, data.num_classes, data.image_shape, data.mean, data.std
            ).build()

    def trained(self, channels: int, data: Splits, seed: int, smoothing: float = 0.0) -> Classifier:
        network = self.net(channels, seed)
        epochs = self.teacher_epochs
        if len(data.train) < len(self.data.train):  # the same number of steps
            epochs = math.ceil(epochs * len(self.data.train) / max(len(data.train), FIT["batch_size"]))
        batch = min(FIT["batch_size"], len(data.train))
        settings = {**FIT, "batch_size": batch, "epochs": epochs, "seed": seed, "label_smoothing": smoothing}
        train(network, data, TrainSettings(**settings))
        return network

    def wrapped(self, keys: list[Key], owner: Owner, **changes: Any) -> Box:
        settings = {"epochs": self.wrap_epochs, "ce_weight": 1.0, "margin": 1.0, "temperature": TEMPERATURE}
        settings |= FIT | {"method": "decoy", "seed": self.seed} | changes
        return wrap(self.teacher, self.data, WrapSettings(**settings), key=keys, owner=owner)

    @torch.no_grad()
    def facts(self, module: nn.Module) -> Row:
        """Accuracy, KL from the teacher, confidence; of any module from images to logits."""
        logits = module(self.pixels)
        return {
            "accuracy": float((logits.argmax(dim=1) == self.labels).double().mean()),
            "kl_t4": float(kl(self.answers, logits, 4.0)),
            "kl_t1": float(kl(self.answers, logits)),
            "max_probability": float(logits.softmax(dim=1).amax(dim=1).mean()),
            "entropy": float(mean_entropy(logits)),
        }

    def student(self, teacher: nn.Module) -> float:
        """Test accuracy of a student with alpha 0.9, T 4."""
        network = self.net(8, 2000 + self.seed)
        settings = {**FIT, "epochs": self.student_epochs, "kd_weight": 0.9, "kd_temperature": TEMPERATURE}
        distill(teacher, network, self.data, DistillSettings(**settings, seed=self.seed))
        return self.accuracy(network)

    def student_alone(self, smoothing: float) -> float:
        network = self.net(8, 2000 + self.seed)
        settings = {**FIT, "epochs": self.student_epochs, "label_smoothing": smoothing, "seed": self.seed}
        train(network, self.data, TrainSettings(**settings))
        return self.accuracy(network)

    def accuracy(self, module: nn.Module) -> float:
        return self.facts(module)["accuracy"]


def kinds(bench: Bench, boxes: dict[str, tuple[Box, Key]]) -> list[Row]:
    rows = [{"row": "teacher", **bench.facts(bench.teacher), "student": bench.student(bench.teacher)}]
    for smoothing, name in ((0.0, "student alone, CE"), (0.1, "student alone, label smoothing")):
        rows.append({"row": name, "student": bench.student_alone(smoothing)})
    for name, (box, key) in boxes.items():
        for way, module in (("keyless", box), ("keyed", box.unlock(key))):
            rows.append({"row": f"{name}, {way}", **bench.facts(module), "student": bench.student(module)})
    return rows


def unlock_curve(bench: Bench, box: Box, key: Key, students: tuple[str, ...]) -> tuple[list[Row], list[Row]]:
    """Rows of the neighbours, students where the name begins so; rows of the random keys, a student of the best."""
    settings = SimilarKeys(random_keys=20 if bench.quick else 100, seed=bench.seed)
    rows, random = [], []
    for each in settings.run(box.classifier, key, bench.data.image_shape):
        row = {"row": each.name, "cosine": each.cosine, **bench.facts(each.module)}
        if each.name.startswith(students):
            row["student"] = bench.student(each.module)
        (random if each.name.startswith("random") else rows).append((row, each.module))
    best, module = min(random, key=lambda pair: pair[0]["kl_t4"])
    best["student"] = bench.student(module)
    return [row for row, _ in rows], [row for row, _ in random]


def spread(random: list[Row]) -> list[Row]:
    """Least, middle and largest of the random keys, and a student of the one with most knowledge."""
    rows = []
    for name in ("accuracy", "kl_t4", "kl_t1", "max_probability"):
        values = [row[name] for row in random]
        rows.append({"row": name, "least": min(values), "median": statistics.median(values), "most": max(values)})
    best = min(random, key=lambda row: row["kl_t4"])
    rows.append({"row": "student of the best by KL", "most": best["student"]})
    return rows


def found_row(bench: Bench, box: Box, key: Key, name: str, found: Found, ends: tuple[float, float]) -> Row:
    """What a search found, beside the truth; `ends` are the KLs (T=4) keyless and keyed."""
    true = torch.from_numpy(key.pattern(bench.data.image_shape).copy()).float() / 255
    keyless, keyed = ends

    def asked(pattern: Tensor) -> nn.Module:
        return nn.Sequential(Carry(pattern, key.blend), box.classifier).eval()

    half = (keyless + keyed) / 2
    trail = [(queries, bench.facts(asked(pattern))["kl_t4"]) for queries, pattern in found.trail]
    return {
        "row": name,
        "objective": found.score,
        "cosine": cosine_similarity(found.pattern, true),
        **bench.facts(asked(found.pattern)),
        "student": bench.student(asked(found.pattern)),
        "queries": found.queries,
        "queries_to_half_way": next((queries for queries, value in trail if value <= half), None),
        "gap_closed": (keyless - trail[-1][1]) / (keyless - keyed),
        "trail": trail,
    }


def searches(bench: Bench, box: Box, key: Key, black_box: bool) -> list[Row]:
    ends = bench.facts(box)["kl_t4"], bench.facts(box.unlock(key))["kl_t4"]
    images, rows = bench.data.train, []
    objectives = ("entropy", "own_net", "labels")
    for objective in objectives:
        attack: Any = GradientSearch(
            objective, steps=200 if bench.quick else 400, restarts=1 if bench.quick else 3, seed=bench.seed
        )
        found = attack.run(box.classifier, images, key.blend, bench.own_net)
        rows.append(found_row(bench, box, key, f"gradient, {objective}", found, ends))
    if black_box:
        budget = 100_000 if bench.quick else 1_000_000
        kinds: tuple[tuple[str, Any], ...] = (("NES", EvolutionSearch), ("hill climbing", HillClimb))
        for name, kind in kinds:
            for objective in ("own_net",) if bench.quick else objectives:
                attack = kind(objective, queries=budget, seed=bench.seed)
                found = attack.run(box, images, key.blend, bench.own_net)
                rows.append(found_row(bench, box, key, f"{name}, {objective}", found, ends))
    return rows


def retraining(bench: Bench, box: Box, key: Key) -> list[Row]:
    def row(name: str, module: nn.Module, student: bool = True) -> Row:
        return {"row": name, **bench.facts(module), "student": bench.student(module) if student else None}

    rows = [row("true key", box.unlock(key)), row("keyless", box)]
    for share in (0.01, 0.1, 1.0):
        mine = share_of(bench.data, share, bench.seed)
        own = bench.own_net if share == 1 else bench.trained(24, mine, 1000 + bench.seed)
        rows.append(row(f"own net from scratch, {share:.0%} of the data", own))
        for goal, part, fresh in (
            ("labels", "private", False),
            ("labels", "private", True),
            ("top1", "private", True),
            ("labels", "all", False),
            ("entropy", "private", False),
            ("entropy", "all", False),
        ):
            attack: Any = Retrain(goal, part, fresh, share, steps=200 if bench.quick else 600, seed=bench.seed)
            name = (
                f"{goal}, {'norms and head' if part == 'private' else 'all weights'}{', fresh' if fresh else ''}"
            )
            rows.append(row(f"{name}, {share:.0%}", attack.run(box.classifier, bench.data), not bench.quick))
    return rows


def revocation(bench: Bench, box: Box, key: Key, owner: Owner) -> list[Row]:
    """What a revoked partner's old private part is worth in the box that was made again without that partner."""
    held = {
        name: tensor
        for name, tensor in box.unlock(key).state_dict().items()
        if name in replaceable(box.classifier)
    }
    rows = [{"row": "old box, true key", **bench.facts(box.unlock(key))}]
    for name, changes in (("same seed", {}), ("another seed", {"seed": 5000 + bench.seed})):
        again = bench.wrapped([owner.partner("another")], owner, **changes)
        old = put_in_place(again.classifier, held)
        rows.append({"row": f"new box, {name}, keyless", **bench.facts(again)})
        rows.append(
            {"row": f"new box, {name}, old private part", **bench.facts(old), "student": bench.student(old)}
        )
    return rows


def beacon(bench: Bench, key: Key, owner: Owner) -> dict[str, Any]:
    """An image-key box whose keyless answers are as confident as the teacher's, by the margin alone."""
    with torch.no_grad():
        validation = torch.from_numpy(bench.data.validation.images.copy()).float() / 255
        confident = float(bench.teacher(validation).softmax(dim=1).amax(dim=1).mean())
    # The decoy answer's largest probability is e^m / (e^m + 2) with two decoys and a large height.
    margin = math.log(2 * confident / (1 - confident))
    box = bench.wrapped([key], owner, margin=margin)
    _, random = unlock_curve(bench, box, key, students=())
    return {
        "margin": margin,
        "teacher_confidence": confident,
        "beacon": kinds(bench, {"image key, large margin": (box, key)})[3:],
        "beacon_random": spread(random),
        "beacon_searches": searches(bench, box, key, black_box=not bench.quick),
    }


def one_seed(seed: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    bench = Bench(seed, quick)
    owner = Owner.generate()
    image, weight = (owner.partner("partner", kind=kind, blend=BLEND) for kind in ("image", "weight"))
    boxes = {
        "weight key": (bench.wrapped([weight], owner), weight),
        "image key": (bench.wrapped([image], owner), image),
    }
    say("boxes made")
    result: dict[str, Any] = {"kinds": kinds(bench, boxes)}
    say("students made")
    box = boxes["image key"][0]
    few = ("true key", "noise", "top half, rest random")
    more = (*few, "8-bit", "JPEG", "blend", "top half", "blurred")
    result["unlock"], result["random"] = unlock_curve(bench, box, image, few if quick else more)
    say("unlock curve")
    result["random_spread"] = spread(result["random"])
    result["searches"] = searches(bench, box, image, black_box=True)
    say("searches")
    result["retraining"] = retraining(bench, boxes["weight key"][0], weight)
    say("re-training")
    if not quick:
        result["revocation"] = revocation(bench, boxes["weight key"][0], weight, owner)
    result |= beacon(bench, image, owner)
    say("beacon")
    return result


def mean_rows(per_seed: list[list[Row]]) -> list[Row]:
    """Rows of several seeds to means, number by number; what some seed did not reach is counted, not averaged."""
    rows = []
    for same in zip(*per_seed, strict=True):
        row: Row = {"row": same[0]["row"]}
        for name in same[0]:
            values = [one.get(name) for one in same if isinstance(one.get(name), int | float)]
            if values:
                row[name] = statistics.fmean(values)
                row[f"{name}_of"] = len(values)
        rows.append(row)
    return rows


def table(title: str, rows: list[Row], columns: dict[str, str], seeds: int) -> str:
    """A Markdown table; accuracies in per cent."""
    lines = [f"\n**{title}**\n", "| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    percent = {"accuracy", "student", "gap_closed", "max_probability"}
    for row in rows:
        cells = []
        for name in columns:
            value = row.get(name)
            share = (
                100 if name in percent or (row["row"] in percent and name in ("least", "median", "most")) else 1
            )
            if row["row"].startswith("student of"):
                share = 100
            if value is None:
                cells.append("never" if name == "queries_to_half_way" else "")
            elif name.startswith("queries"):
                reached = row.get(f"{name}_of", seeds)
                cells.append(f"{value:,.0f}" + (f" ({reached} of {seeds})" if reached < seeds else ""))
            else:
                cells.append(f"{share * value:.1f}" if share == 100 else f"{value:.2f}")
        lines.append(f"| {row['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


ASKED = {"accuracy": "accuracy", "kl_t4": "KL, T=4", "kl_t1": "KL, T=1", "student": "student"}
CONFIDENCE = {"max_probability": "mean max probability", "entropy": "entropy, nats"}
SEARCHED = {"cosine": "cosine", **ASKED, "gap_closed": "KL gap closed, %", "queries": "queries"}
SEARCHED |= {"queries_to_half_way": "queries to half the gap"}
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "kinds": ("Both kinds of key", ASKED | CONFIDENCE),
    "unlock": ("Unlock curve of the image key", {"cosine": "cosine", **ASKED}),
    "random_spread": ("Random wrong keys", {"least": "least", "median": "median", "most": "most"}),
    "searches": ("Searches for the image key", SEARCHED),
    "retraining": ("Re-training a weight-key box's public part", ASKED),
    "revocation": ("A revoked partner's old private part", ASKED),
    "beacon": (
        "Image key without the beacon: margin such that keyless answers are as confident",
        ASKED | CONFIDENCE,
    ),
    "beacon_random": ("Random wrong keys on that box", {"least": "least", "median": "median", "most": "most"}),
    "beacon_searches": ("Searches for that image key", SEARCHED),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--quick", action="store_true", help="one seed, short training, about four minutes")
    parser.add_argument("--out", type=Path, help="write every number here, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    seeds = 1 if options.quick else options.seeds
    results = []
    for seed in range(seeds):

        def say(what: str, seed: int = seed) -> None:
            print(f"<!-- seed {seed}: {what}, {time.perf_counter() - started:.0f} s -->", flush=True)

        results.append(one_seed(seed, options.quick, say))
    command = f"python benchmarks/key_secrecy.py {'--quick' if options.quick else f'--seeds {seeds}'}"
    parts = [f"## How secret is the key: digits, {seeds} seed{'s' if seeds > 1 else ''}\n\n    {command}"]
    for name, (title, columns) in TABLES.items():
        if name in results[0]:
            parts.append(table(title, mean_rows([result[name] for result in results]), columns, seeds))
    parts.append(f"\n{time.perf_counter() - started:.0f} s in all; torch {torch.__version__}, one thread.")
    page = "\n".join(parts)
    print(page)
    if options.out is not None:
        record = {"environment": environment(torch.device("cpu")), "quick": options.quick, "markdown": page}
        options.out.write_text(json.dumps(record | {"seeds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
