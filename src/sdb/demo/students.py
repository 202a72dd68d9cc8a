"""The demo's students: few images, one student per pair and way to learn; see `sdb.audit.regime`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sdb import config
from sdb.audit.regime import USUAL, Regime, Way, attacker_of, bar_ways, few_images, measure, soft_ways, thief_ways
from sdb.box.box import Box
from sdb.config import BOX, FitSettings
from sdb.data import Splits
from sdb.demo.plan import LABELLED, PAIRS, key_of, wrong_key
from sdb.keys import Key
from sdb.models import Classifier, ModelSpec
from sdb.models.checkpoint import load_classifier
from sdb.report.pairs import Scores
from sdb.runs.resolve import load_data
from sdb.runs.tasks import OnProgress, Where, Work, run
from sdb.runtime import derive_seed, json_text, write_atomic

FOLDER = "students"
PROCESSES = 2


def regime_of(data: Splits) -> Regime:
    """What a thief of the demo has."""
    return Regime(LABELLED) if data.name == "digits" else few_images(data)


def settings_of(data: Splits, seed: int) -> FitSettings:
    """How its students learn."""
    small = data.name == "digits"
    return FitSettings(
        epochs=60 if small else 40,
        batch_size=32,
        optimizer="adam",
        learning_rate=0.01 if small else 0.003,
        schedule="cosine",
        seed=seed,
    )


def train_students(out: Path, seed: int, on_progress: OnProgress) -> dict[str, Scores]:
    """Train and score all of them, in processes of this machine; what is done is not done again."""
    names = [f"pair {pair + 1}" for pair in range(PAIRS)]
    done = [file_of(out, pair).exists() for pair in range(PAIRS)]
    works = [
        Work(name, train_pair, (out, seed, pair))
        for pair, (name, there) in enumerate(zip(names, done, strict=True))
        if not there
    ]
    run(works, Where(workers=PROCESSES), on_progress, before=sum(done))
    return together([json.loads(file_of(out, pair).read_text()) for pair in range(PAIRS)])


def file_of(out: Path, pair: int) -> Path:
    """Where the accuracies of a pair are kept."""
    return out / FOLDER / f"pair-{pair + 1}.json"


def together(pairs: Sequence[dict[str, Any]]) -> dict[str, Scores]:
    """The scores by way, from those of each pair."""
    return {
        name: Scores(tuple(pair[name][0] for pair in pairs), tuple(pair[name][1] for pair in pairs))
        for name in pairs[0]
    }


def train_pair(out: Path, seed: int, pair: int) -> None:
    """One pair's students; [test accuracy, validation accuracy] by way, as JSON."""
    data, ways = _ground(out, seed)

    def student(purpose: object) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "student", purpose))
            arguments = {"num_channels": 8}
            return ModelSpec("net", arguments, data.num_classes, data.image_shape, data.mean, data.std).build()

    attacker = attacker_of(data, regime_of(data), student, settings_of(data, seed), pair)
    scores = measure(ways, data, [attacker])
    found = {name: [each.test[0], each.validation[0]] for name, each in scores.items()}
    write_atomic(file_of(out, pair), json_text(found, indent=1).encode() + b"\n")


@cache
def _ground(out: Path, seed: int) -> tuple[Splits, dict[str, Way]]:
    data = load_data(config.load(out / "teacher", "train"), seed)
    regime, teacher = regime_of(data), load_classifier(out / "teacher").eval()
    boxes = {name: Box.load(out / name / BOX) for name in ("box", "nasty", "paper")}
    box, stranger = boxes["box"], Key.load(wrong_key(out))
    opened = {name: boxes[name].unlock(Key.load(key_of(out, name))) for name in ("box", "paper")}
    ways = {
        "bar": bar_ways(box, regime),
        "bare": {USUAL: soft_ways(teacher)[USUAL]},
        "thief": thief_ways(box, regime),
        "partner": {USUAL: soft_ways(opened["box"])[USUAL]},
        "nasty": {USUAL: soft_ways(boxes["nasty"])[USUAL]},
        "paper": {USUAL: soft_ways(boxes["paper"])[USUAL]},
        "paper_partner": {USUAL: soft_ways(opened["paper"])[USUAL]},
    }
    attempt = box.attempt(stranger)
    if attempt is not box:  # a foreign weight key gets the keyless answers themselves
        ways["wrong_key"] = thief_ways(attempt, regime)
    return data, {f"{group}/{name}": way for group, found in ways.items() for name, way in found.items()}


def of(scores: dict[str, Scores], group: str) -> list[str]:
    """The names of a group of ways, or of one; a wrong key that opens nothing is asked as no key is."""
    if group == "top1/":
        return [name for name in scores if name.startswith("bar/top-1")]
    found = [name for name in scores if name == group or (group.endswith("/") and name.startswith(group))]
    return found or [name for name in scores if name.startswith("thief/")]
