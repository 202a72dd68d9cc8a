"""What `sdb trace` finds and what it does not: false alarms over independent models, power against thieves, on digits.

    python benchmarks/trace_power.py [--quick] [--seeds 1] [--workers 1] [--out FILE]

Prints tables in Markdown; --out also writes everything as JSON. For each seed: one teacher, one decoy box with a weight
key for a fresh owner, and then

- independent models (other widths, architectures, seeds, subsets; with label smoothing; students of the unprotected
  teacher; a thief of *another* owner's box), each traced for the box's owner, and for many random owners. The p-value
  under random owners is exact by construction, so that table checks the arithmetic; what can fail is that a model
  without the box resembles the secret map, and that is what the first table shows;
- thieves by temperature, weight, loss, label mixing, without labels, rounded; then fine-tuned, pruned, label-only; and
  a partner, who has the key.

Each p-value comes twice: as it is, and with the teacher as reference. The suspects' settings were fixed before any was
looked at; nothing is chosen by a trace. Suspects are asked about test images, which no model here was trained on.
"""

import argparse
import copy
import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sdb.answers.decoys import decoy_map
from sdb.box.box import Box
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.data import Splits, load
from sdb.distillation import distill
from sdb.keys import Key, Owner, derive
from sdb.models import Classifier, ModelSpec
from sdb.runtime import derive_seed, environment
from sdb.tracing.decoys import THRESHOLD_LOG10_P, candidate_ranks, class_log_means, log10_tail, rank_levels, trace
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
FIT: dict[str, Any] = {"batch_size": 64, "learning_rate": 3e-3, "device": "cpu"}
BOX: dict[str, Any] = {
    "method": "decoy",
    "ce_weight": 1.0,
    "margin": 1.0,
    "optimizer": "auto",
    "schedule": "cosine",
    **FIT,
}
NOMINAL = (0.05, 0.01, 0.001)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of it is done."""

    teacher_epochs: int = 30
    box_epochs: int = 60
    epochs: int = 30
    deep_epochs: int = 3
    maps: int = 1000


FULL, QUICK = Sizes(), Sizes(teacher_epochs=10, box_epochs=15, epochs=6, deep_epochs=1, maps=300)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A model to trace: its kind, how it came to be, and how to make it."""

    kind: str
    name: str
    make: Callable[["World"], nn.Module]
    quick: bool = True


@dataclass(slots=True)
class World:
    """One seed's data, teacher, box, owner and key; what thieves share is made once."""

    seed: int
    sizes: Sizes
    data: Splits
    teacher: Classifier
    box: Box
    owner: Owner
    key: Key
    made: dict[str, nn.Module] = field(default_factory=dict)

    def model(self, name: str, label: object, **arguments: Any) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "model", label))
            return new_model(self.data, name, arguments)

    def alone(self, name: str, label: object, *, data: Splits | None = None, **options: Any) -> Classifier:
        arguments = options.pop("arguments", {})
        model = self.model(name, label, **arguments)
        settings = {"epochs": self.sizes.epochs, "seed": derive_seed(self.seed, "alone", label) % 2**31, **FIT}
        train(model, data or self.data, TrainSettings(**settings | options))
        return model

    def student(self, teacher: nn.Module, label: object, *, key: Key | None = None, **options: Any) -> Classifier:
        student = self.model("net", label, num_channels=8)
        settings = {"epochs": self.sizes.epochs, "seed": derive_seed(self.seed, "student", label) % 2**31, **FIT}
        distill(teacher, student, self.data, DistillSettings(**settings | options), key=key)
        return student

    def thief(self) -> Classifier:
        """The plain thief that the fine-tuned and pruned ones start from."""
        if "thief" not in self.made:
            self.made["thief"] = self.student(self.box, "plain", kd_weight=0.9, kd_temperature=4.0)
        return copy.deepcopy(self.made["thief"])


class Answers(nn.Module):
    """A module whose probabilities are changed on the way out; logarithms, as logits, are what it returns."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.model(images).softmax(dim=1)).clamp_min(1e-6).log()


def one_hot(probabilities: Tensor) -> Tensor:
    return nn.functional.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).to(probabilities.dtype)


def mixed(probabilities: Tensor, share: float) -> Tensor:
    return share * probabilities + (1 - share) * one_hot(probabilities)


def rounded(probabilities: Tensor) -> Tensor:
    return (probabilities * 255).round() / 255


def fine_tuned(world: World, epochs: int, rate: float) -> nn.Module:
    model = world.thief()
    settings = TrainSettings(**FIT | {"epochs": epochs, "learning_rate": rate, "seed": world.seed + 77})
    train(model, world.data, settings)
    return model


def pruned(world: World, share: float) -> nn.Module:
    model = world.thief()
    layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=share)
    return model


def half(data: Splits) -> Splits:
    from dataclasses import replace

    rows = np.random.default_rng(5).permutation(len(data.train))[: len(data.train) // 2]
    return replace(data, train=data.train.take(np.sort(rows)))


def other_box_thief(world: World) -> nn.Module:
    box, _, _ = make_box(world.teacher, world.data, world.sizes, world.seed)
    return world.student(box, "other", kd_weight=0.9, kd_temperature=4.0)


def independent() -> list[Suspect]:
    """At least 20 models that never saw the box, nor anything made from it."""

    def alone(name: str, label: str, quick: bool = True, **options: Any) -> Suspect:
        return Suspect("independent", label, lambda w: w.alone(name, label, **options), quick)

    rows = [Suspect("independent", "the teacher", lambda w: w.teacher)]
    for width in (4, 8, 16, 24):
        for smoothing in (0.0, 0.1):
            label = f"net {width}, label smoothing {smoothing:g}"
            # The small ones are the cheap ones.
            rows.append(
                alone("net", label, width < 24, arguments={"num_channels": width}, label_smoothing=smoothing)
            )
    for number in (1, 2, 3):
        rows.append(alone("net", f"net 8, seed {number}", number == 1, arguments={"num_channels": 8}))
    rows.append(
        Suspect(
            "independent",
            "net 8, half the data",
            lambda w: w.alone("net", "half", data=half(w.data), arguments={"num_channels": 8}),
        )
    )
    rows += [alone("mlp", f"mlp, seed {number}", number == 1) for number in (1, 2)]
    rows.append(alone("mlp", "mlp, label smoothing 0.1", label_smoothing=0.1))

    def deep(w: World, smoothing: float) -> nn.Module:
        # SGD at the networks' own rate: these are not trained by Adam here.
        options = {"epochs": w.sizes.deep_epochs, "learning_rate": 0.05, "label_smoothing": smoothing}
        return w.alone("preresnet20", f"deep {smoothing}", **options)

    for smoothing in (0.0, 0.1):
        label = f"preresnet20, label smoothing {smoothing:g}"
        rows.append(Suspect("independent", label, functools.partial(deep, smoothing=smoothing), smoothing == 0))
    for temperature in (1.0, 4.0, 20.0):
        for weight in (0.9, 1.0):
            options = {"kd_temperature": temperature, "kd_weight": weight}
            label = f"student of the teacher, T {temperature:g}, weight {weight:g}"
            rows.append(
                Suspect(
                    "independent",
                    label,
                    lambda w, label=label, options=options: w.student(w.teacher, label, **options),
                    temperature == 4.0,
                )
            )
    rows.append(Suspect("independent", "thief of another owner's box", other_box_thief, False))
    return rows


def thieves() -> list[Suspect]:
    """Models that were made from the box."""

    def thief(
        label: str, quick: bool = True, view: Callable[[Box], nn.Module] | None = None, **options: Any
    ) -> Suspect:
        def make(w: World) -> nn.Module:
            return w.student(view(w.box) if view else w.box, label, **options)

        return Suspect("thief", label, make, quick)

    rows = [Suspect("thief", "the box itself", lambda w: w.box)]
    for temperature in (1.0, 4.0, 20.0):
        for weight in (0.1, 0.3, 0.5, 0.9, 1.0):
            quick = temperature == 4.0 or weight in (0.1, 0.9)
            label = f"T {temperature:g}, weight {weight:g}"
            rows.append(thief(label, quick, kd_temperature=temperature, kd_weight=weight))
    rows += [thief(f"loss {loss}", loss=loss) for loss in ("dkd", "dist", "standardised_kd")]
    plain = {"kd_temperature": 4.0, "kd_weight": 0.9}
    rows.append(thief("without labels, T 4", kd_temperature=4.0, kd_weight=1.0, labels=False))
    for share in (0.5, 0.1):
        change = functools.partial(mixed, share=share)
        rows.append(
            thief(f"answers mixed with top label, {share:g} kept", view=lambda b, c=change: Answers(b, c), **plain)
        )
    rows.append(thief("from 8-bit answers", view=lambda b: Answers(b, rounded), **plain))
    rows.append(Suspect("thief", "plain, itself answering in 8 bits", lambda w: Answers(w.thief(), rounded)))
    for share in (0.5, 0.8):
        rows.append(Suspect("thief", f"plain, {share:.0%} pruned", functools.partial(pruned, share=share)))
    for epochs in (5, 20):
        for rate in (3e-4, 1e-3, 3e-3):
            label = f"plain, fine-tuned {epochs} epochs at {rate:g}"
            quick = (epochs, rate) in ((5, 3e-3), (20, 3e-4))
            rows.append(Suspect("thief", label, functools.partial(fine_tuned, epochs=epochs, rate=rate), quick))
    rows.append(
        Suspect(
            "label-only",
            "label-only thief",
            lambda w: w.student(
                Answers(w.box, one_hot), "labels", kd_temperature=1.0, kd_weight=1.0, labels=False
            ),
        )
    )
    rows.append(
        Suspect("label-only", "plain thief, itself answering labels", lambda w: Answers(w.thief(), one_hot))
    )
    rows.append(Suspect("keyed", "the unlocked box", lambda w: w.box.unlock(w.key)))
    for weight in (0.9, 1.0):
        rows.append(
            Suspect(
                "keyed",
                f"partner, T 4, weight {weight:g}",
                lambda w, weight=weight: w.student(
                    w.box, f"partner {weight}", key=w.key, kd_temperature=4.0, kd_weight=weight
                ),
                weight == 0.9,
            )
        )
    return rows


def new_model(data: Splits, name: str, arguments: dict[str, Any]) -> Classifier:
    return ModelSpec(name, arguments, data.num_classes, data.image_shape, data.mean, data.std).build()


def make_box(teacher: Classifier, data: Splits, sizes: Sizes, seed: int) -> tuple[Box, Owner, Key]:
    """A decoy box for a fresh owner; owners come from the operating system, never from the seed."""
    owner = Owner.generate()
    key = owner.partner("partner")
    settings = WrapSettings(**BOX | {"epochs": sizes.box_epochs, "seed": seed})
    return wrap(teacher, data, settings, key=[key], owner=owner), owner, key


def make_world(seed: int, sizes: Sizes) -> World:
    data = load("digits", seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "teacher"))
        teacher = new_model(data, "net", {"num_channels": 24})
    train(teacher, data, TrainSettings(**FIT | {"epochs": sizes.teacher_epochs, "seed": seed}))
    return World(seed, sizes, data, teacher, *make_box(teacher, data, sizes, seed))


def measure(world: World, suspect: Suspect) -> dict[str, Any]:
    """One suspect: accuracy, the owner's p-value with and without reference, and how often random owners accuse it."""
    begin = time.perf_counter()
    model = suspect.make(world)
    result = trace(model, world.box, world.owner, world.data)
    referred = trace(model, world.box, world.owner, world.data, reference=world.teacher)
    return {
        "kind": suspect.kind,
        "name": suspect.name,
        "seed": world.seed,
        "accuracy": evaluate(model, evaluation_batches(world.data.test, CPU))["accuracy"],
        "log10_p": result.log10_p,
        "found": result.found,
        "total": result.total,
        "log10_p_reference": referred.log10_p,
        "random_log10_p": random_owners(model, world),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def random_owners(model: nn.Module, world: World) -> list[float]:
    """The log10 p-values that owners with other secrets would get for the same model."""
    record = world.box.owner_record(world.owner)
    means, counts = class_log_means(model, world.data.test, world.data.num_classes, "suspect")
    size = len(record["decoys"][0])
    levels = {c: rank_levels(candidate_ranks(means[c, record["candidates"][c]])) for c in np.flatnonzero(counts)}
    # The null distribution is the same for all of them, so each sum is looked up once.
    tail = functools.cache(functools.partial(log10_tail, [(each, size) for each in levels.values()]))
    values = []
    for _ in range(world.sizes.maps):
        drawn = decoy_map(derive(os.urandom(32), "decoys"), record["candidates"], size)
        chosen = {c: np.isin(record["candidates"][c], drawn[c]) for c in levels}
        values.append(tail(sum(int(each[chosen[c]].sum()) for c, each in levels.items())))
    return values


def run_seed(seed: int, quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    sizes = QUICK if quick else FULL
    world = make_world(seed, sizes)
    return [measure(world, suspect) for suspect in independent() + thieves() if suspect.quick or not quick]


def uniformity(rows: Sequence[dict[str, Any]], column: str = "log10_p") -> dict[str, float]:
    values = 10.0 ** np.array([row[column] for row in rows])
    return {
        "models": len(values),
        "least_p": float(values.min()),
        "mean_p": float(values.mean()),
        "below_0.05": float((values < 0.05).mean()),
        "below_0.01": float((values < 0.01).mean()),
    }


def empirical_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    values = 10.0 ** np.array([value for row in rows for value in row["random_log10_p"]])
    rates = {f"{nominal:g}": float((values <= nominal).mean()) for nominal in NOMINAL}
    return rates | {"1e-6": float((values < 1e-6).mean()), "maps": len(values)}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    clean = [row for row in rows if row["kind"] == "independent"]
    # Label-only suspects tie: the p-value must stay valid there too.
    return {
        "independent": uniformity(clean),
        "independent_reference": uniformity(clean, "log10_p_reference"),
        "random_owners_independent": empirical_rates(clean),
        "random_owners_all": empirical_rates(rows),
        "accused": sum(row["log10_p"] < THRESHOLD_LOG10_P for row in clean),
        "caught": {
            kind: f"{sum(r['log10_p'] < THRESHOLD_LOG10_P for r in of)} of {len(of)}"
            for kind in ("thief", "label-only", "keyed")
            if (of := [row for row in rows if row["kind"] == kind])
        },
        "caught_reference": {
            kind: f"{sum(r['log10_p_reference'] < THRESHOLD_LOG10_P for r in of)} of {len(of)}"
            for kind in ("thief", "label-only", "keyed")
            if (of := [row for row in rows if row["kind"] == kind])
        },
    }


def markdown(rows: Sequence[dict[str, Any]], totals: dict[str, Any]) -> str:
    """The tables: each suspect over the seeds (worst for whoever is to be found or spared), then the summary."""
    lines = [
        "| suspect | kind | accuracy % | decoys first | log10 p | the same, teacher as reference |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        cells = [" / ".join(f"{row[column]:.1f}" for row in of) for column in ("log10_p", "log10_p_reference")]
        found = " / ".join(f"{row['found']} of {row['total']}" for row in of)
        accuracy = 100 * float(np.mean([row["accuracy"] for row in of]))
        lines.append(f"| {name} | {of[0]['kind']} | {accuracy:.1f} | {found} | {cells[0]} | {cells[1]} |")
    lines += ["", "| summary | |", "|---|---|"]
    lines += [f"| {name} | {json.dumps(value)} |" for name, value in totals.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, help="teachers and boxes, one each a seed")
    parser.add_argument("--quick", action="store_true", help="fewer suspects, shorter training, one seed")
    parser.add_argument("--workers", type=int, default=1, help="processes, one per seed")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    seeds = range(1 if args.quick else args.seeds)
    one = functools.partial(run_seed, quick=args.quick)
    if args.workers > 1:
        with multiprocessing.get_context("spawn").Pool(min(args.workers, len(seeds))) as pool:
            parts = pool.map(one, seeds)
    else:
        parts = [one(seed) for seed in seeds]
    rows = [row for part in parts for row in part]
    totals = summary(rows)
    seconds = round(time.perf_counter() - begin, 1)
    command = f"python benchmarks/trace_power.py {'--quick' if args.quick else f'--seeds {args.seeds}'}"
    page = f"## Who carries the mark: digits\n\n    {command}\n\n{markdown(rows, totals)}"
    print(page)
    print(f"\n{len(rows)} suspects, {seconds} s")
    if args.out:
        kept = [{k: v for k, v in row.items() if k != "random_log10_p"} for row in rows]
        record = {
            "markdown": page,
            "summary": totals,
            "rows": kept,
            "seconds": seconds,
            "environment": environment(),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
