"""Does a level of confidence tell a thief anything: a section of docs/results.md, and the choice of the default.

    python benchmarks/levels.py --data fashion_mnist --data-root DIR --labelled 300 1000 --pairs 16
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

A teacher answers by level of its own confidence: as a box does whose network is as good as the teacher. Thieves have
labelled images, and ask about these. Each way that uses the level is held against the best way that sees top-1 answers
alone; both are chosen on the thieves' own validation images, and measured on test images, pair by pair. Pairs that the
file has already are not made again, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from few_images import fresh_network
from torch import Tensor, nn

import sdb
from sdb.answers.levels import fit
from sdb.answers.rows import Rows
from sdb.audit.regime import Regime, attacker_of, bar_ways, measure, soft_ways, thief_ways
from sdb.config import FitSettings, TrainSettings
from sdb.data import Splits
from sdb.keys import Owner
from sdb.models import Classifier
from sdb.report.pairs import Gain, Scores, best, gain
from sdb.runtime import choose_device, derive_seed, environment, write_atomic
from sdb.training.evaluation import answers_to, class_mean_outputs, evaluation_batches, honesty
from sdb.training.loop import train
from sdb.wrapping.decoy import choose_decoys

ROOT = Path(__file__).resolve().parent.parent
RESULTS, KEPT = ROOT / "docs" / "results", ROOT / "runs" / "levels"
COMMAND = "python benchmarks/levels.py --data {data} --data-root DIR --labelled {labelled} --pairs {pairs}"
LEVELS = (1, 2, 4)
TEACHER = {"fashion_mnist": (0.2, 24, 12), "cifar10": (0.4, 32, 15), "digits": (1.0, 24, 30)}


class Levelled(nn.Module):
    """A classifier that answers with rows."""

    def __init__(self, classifier: Classifier, rows: Rows) -> None:
        super().__init__()
        self.classifier, self.rows = classifier, rows

    def forward(self, images: Tensor) -> Tensor:
        """The row of each image's class and level (N, C)."""
        return self.rows(self.classifier(images))


def teacher_of(name: str, root: Path | None, place: Path) -> tuple[Splits, Classifier]:
    """The data and a teacher, trained once and kept."""
    share, width, epochs = TEACHER[name]
    data = sdb.load_data(name, root=root, seed=0, subset_percent=share)
    teacher = fresh_network(data, "net", {"num_channels": width}, derive_seed(0, "teacher"))
    if place.exists():
        teacher.load_state_dict(torch.load(place, weights_only=True))
    else:
        settings = {"optimizer": "adamw", "learning_rate": 0.003, "schedule": "one_cycle", "batch_size": 64}
        train(teacher, data, TrainSettings(epochs=epochs, seed=0, **settings), progress=False)
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(teacher.state_dict(), place)
    return data, teacher.eval()


def victims(data: Splits, teacher: Classifier) -> dict[str, tuple[nn.Module, dict[str, float]]]:
    """The teacher answering by so many levels, with what its users get."""
    device = choose_device("auto")
    confusion = class_mean_outputs(teacher, evaluation_batches(data.train, device), data.num_classes)
    owner = Owner(bytes(32))
    decoys = choose_decoys(owner, confusion, data.num_classes, sdb.config.WrapSettings())["decoys"]
    held = answers_to(teacher, evaluation_batches(data.validation, device))
    logits, labels = answers_to(teacher, evaluation_batches(data.test, device))
    found: dict[str, tuple[nn.Module, dict[str, float]]] = {}
    for levels in LEVELS:
        fitted = fit(*held, decoys, levels=levels, bits=1.2)
        facts = honesty(fitted.rows(logits), labels) | {"bits": fitted.bits, "levels": float(fitted.rows.levels)}
        found[str(levels)] = (Levelled(teacher, fitted.rows), facts)
    return found | {"exact": (teacher, honesty(logits, labels))}


def main() -> None:
    """Measure what is missing, keep it after every pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(TEACHER), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--labelled", type=int, nargs="+", required=True)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=40, help="of students")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or RESULTS / f"levels-{options.data}.json"
    torch.set_num_threads(1)
    data, teacher = teacher_of(options.data, options.data_root, KEPT / f"{options.data}.pt")
    asked = victims(data, teacher)
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"sizes": {}, "seconds": 0.0}

    def student(purpose: object) -> Classifier:
        seed = derive_seed(0, "student", *purpose)  # ty: ignore[not-iterable]
        return fresh_network(data, "net", {"num_channels": 8}, seed)

    settings = FitSettings(epochs=options.epochs, batch_size=32, optimizer="adam", learning_rate=0.005)
    for labelled in options.labelled:
        regime = Regime(labelled)
        ways = {f"bar: {name}": way for name, way in bar_ways(teacher, regime).items()}
        ways |= {"teacher: soft answers": soft_ways(teacher)["soft answers, T=4, with labels"]}
        for name, (victim, _) in asked.items():
            if name != "exact":
                thieves = {n: w for n, w in thief_ways(victim, regime).items() if n.startswith("levels")}
                ways |= {f"{name} levels: {thief}": way for thief, way in thieves.items()}
        rows = content["sizes"].setdefault(str(labelled), {})
        for pair in range(options.pairs):
            if str(pair) in rows:
                continue
            started = time.perf_counter()
            attacker = attacker_of(data, regime, student, settings, pair)
            scores = measure(ways, data, [attacker])
            rows[str(pair)] = {name: [each.test[0], each.validation[0]] for name, each in scores.items()}
            content["seconds"] += time.perf_counter() - started
            keep(out, content, options, asked)
            print(f"{options.data} {labelled}: pair {pair + 1} of {options.pairs}", flush=True)
    keep(out, content, options, asked)
    print(content["markdown"])


def keep(
    out: Path, content: dict[str, Any], options: Any, asked: dict[str, tuple[nn.Module, dict[str, float]]]
) -> None:
    """Write the file, with its section."""
    labelled = " ".join(map(str, options.labelled))
    content |= {
        "kind": "levels",
        "command": COMMAND.format(data=options.data, labelled=labelled, pairs=options.pairs),
        "data": options.data,
        "environment": environment(),
        "answers": {name: facts for name, (_, facts) in asked.items()},
    }
    content["markdown"] = markdown(content)
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")


def scores_of(rows: dict[str, Any]) -> dict[str, Scores]:
    """The pairs of one size, by way."""
    pairs = [rows[pair] for pair in sorted(rows, key=int)]
    return {
        name: Scores(tuple(each[name][0] for each in pairs), tuple(each[name][1] for each in pairs))
        for name in pairs[0]
    }


def trade(content: dict[str, Any]) -> dict[str, dict[int, Gain]]:
    """What the best level-using thief gains over the bar, by number of labelled images and of levels."""
    found: dict[str, dict[int, Gain]] = {}
    for labelled, rows in content["sizes"].items():
        scores = scores_of(rows)
        bar = best(scores, [name for name in scores if name.startswith("bar: ")])
        found[labelled] = {
            levels: gain(
                scores[best(scores, [name for name in scores if name.startswith(f"{levels} levels: ")])],
                scores[bar],
            )
            for levels in LEVELS
        }
    return found


def markdown(content: dict[str, Any]) -> str:
    """The section: gains over the bar in points, with their 95 % intervals over pairs."""
    made, answers = content["environment"], content["answers"]
    lines = [
        f"## levels: what a level of confidence tells a thief, {content['data']}",
        "",
        "Points over the bar (best of alone, label smoothing, top-1 answers, smoothed or not, chosen on the thieves' "
        "validation images), mean over pairs of draws and student seeds ± half the 95 % interval. Of the ways to use a "
        "level the one that validation images choose.",
        "",
        f"    {content['command']}",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}; "
        f"{content['seconds'] / 60:.0f} minutes.",
        "",
        "| labelled images | pairs | bar | at stake: teacher's soft answers | 1 level | 2 levels | 4 levels |",
        "|---|---|---|---|---|---|---|",
    ]
    for labelled, rows in content["sizes"].items():
        scores = scores_of(rows)
        bar = best(scores, [name for name in scores if name.startswith("bar: ")])
        cells = [gain(scores["teacher: soft answers"], scores[bar]), *trade(content)[labelled].values()]
        mean = 100 * sum(scores[bar].test) / len(scores[bar].test)
        shown = " | ".join(f"{100 * each.value:+.2f} ± {100 * each.half:.2f}" for each in cells)
        lines.append(f"| {labelled} | {len(rows)} | {mean:.1f} ({bar.removeprefix('bar: ')}) | {shown} |")
    lines += ["", "What users get, on test images:", "", "| | 1 level | 2 levels | 4 levels | exact confidence |"]
    lines.append("|---|---|---|---|---|")
    for title, name, scale in (
        ("calibration error, %", "calibration_error", 100),
        ("Brier score, %", "brier", 100),
    ):
        lines.append(
            f"| {title} | " + " | ".join(f"{scale * facts[name]:.2f}" for facts in answers.values()) + " |"
        )
    lines.append(
        "| bits beyond top-1 | "
        + " | ".join(f"{f['bits']:.2f}" for f in answers.values() if "bits" in f)
        + " | – |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
