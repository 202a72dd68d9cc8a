"""The tasks of an audit, each of which ends in one JSON file: references, defences, cells and negative controls.

A task whose file is there is done; so an audit that was stopped goes on, and several processes can share one.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdb import losses
from sdb.attacks.attack import Attack
from sdb.attacks.distil import Distil, Recipe, distilled
from sdb.attacks.means import Means
from sdb.attacks.victim import Interface, InterfaceError, QueryBudgetError, Victim
from sdb.auditing.ground import Ground, Shuffled, shuffled_labels
from sdb.auditing.plan import BOX, NONE
from sdb.data import Batch, Batches
from sdb.defences.defence import Defence, Defended
from sdb.errors import CheckpointError, ConfigError, TrainingError
from sdb.files import JSON_LIMIT, parse_json, read_bytes
from sdb.models import Classifier
from sdb.runtime import derive_seed, write_atomic
from sdb.training import evaluate, evaluation_batches

TEMPERATURE = 4.0
# Boxes whose keys are known to be found, and the box that the audit is about where none was given.
EASY_KEY, WEIGHT_KEY, OURS = "sdb", "decoy", "decoy"
# Negative controls need not be good, only honest: they get this share of the epochs.
NEGATIVE_SHARE = 3


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        kind: references, defence, cell or negative.
        seed: of its ground.
        defence, attack: names, where they apply.
    """

    kind: str
    seed: int
    defence: str = ""
    attack: str = ""

    def file(self, work: Path) -> Path:
        """Where its result goes."""
        name = "--".join(part for part in (self.defence, self.attack) if part) or "references"
        return work / f"seed-{self.seed}" / f"{self.kind}s" / f"{name.replace(':', '.')}.json"

    def __str__(self) -> str:
        return " ".join(part for part in (self.kind, self.attack, self.defence, f"seed {self.seed}") if part)


def do(task: Task, ground: Ground, attacks: dict[str, Attack], defences: dict[str, Defence], work: Path) -> None:
    """Do a task and keep its result; nothing to do where it is kept already."""
    path = task.file(work)
    if path.exists():
        return
    started = time.perf_counter()
    if task.kind == "reference":
        ground.make_teacher()
        result = references(ground)
    elif task.kind == "defence":
        result = defence_row(ground, task.defence, defences, attacks)
    else:
        result = cell(ground, task, attacks[task.attack], defences)
    result["seconds"] = round(time.perf_counter() - started, 3)
    write_atomic(path, json.dumps(result, indent=1).encode() + b"\n")


def read(task: Task, work: Path) -> dict[str, Any]:
    """A kept result.

    Raises:
        CheckpointError: the file is not what was written.
    """
    path = task.file(work)
    try:
        values = parse_json(read_bytes(path, JSON_LIMIT), finite=False)
        if not isinstance(values, dict) or "seconds" not in values:
            raise ValueError("not a finished task")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete it and go on with --resume") from None
    return values


def score(model: nn.Module, batches: Batches) -> float:
    """Accuracy, a fraction."""
    return evaluate(model, batches)["accuracy"]


def references(ground: Ground) -> dict[str, Any]:
    """Teacher, and the students that never saw a defended model; all learn from the same views of the same images."""
    means = ground.means()
    test = evaluation_batches(ground.data.test, ground.device)
    return {
        "teacher": score(ground.teacher, test),
        "alone": score(trained_alone(means, means.new_student(), 0.0), test),
        "label_smoothing": score(trained_alone(means, means.new_student(), 0.1), test),
        "from_teacher": score(partner(ground.teacher, means), test),
        "own_distance": distance(ground.teacher, trained_alone(means, means.new_network(), 0.0), test),
    }


def trained_alone(means: Means, network: Classifier, smoothing: float) -> Classifier:
    """A network trained on the attacker's labels; a student with smoothing 0.1 is the bar.

    Source: the bar is CMIM's (arXiv 2507.00012).
    """

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": losses.cross_entropy(logits, batch.labels, smoothing)}

    return means.learn(network, means.transfer(), loss)


def partner(module: nn.Module, means: Means) -> nn.Module:
    """A student of a module by plain distillation, with labels: what a key holder does."""
    transfer = means.transfer()
    scores = open_victim(module, means).ask(transfer.images()).scores()
    return distilled(means, transfer, scores, Recipe(), transfer.targets)


def open_victim(module: nn.Module, means: Means) -> Victim:
    """A module that answers with logits without limit."""
    student = means.new_student()
    return Victim(module, Interface.LOGITS, num_classes=student.num_classes, image_shape=student.image_shape)


def defence_row(
    ground: Ground, name: str, defences: dict[str, Defence], attacks: dict[str, Attack]
) -> dict[str, Any]:
    """Build a defence where it is not there yet, and measure it: accuracy, distance from the teacher, its partner."""
    ground.make(name, defences)
    fits = [attack for attack in attacks.values() if not applies(ground, name, attack, defences)]
    if any("colluder" in attack.uses for attack in fits):
        ground.make(name, defences, colluder=True)
    defended = ground.defended(name, defences)
    test = evaluation_batches(ground.data.test, ground.device)
    keyed = defended.keyed
    return {
        "keyless": score(defended.keyless, test),
        "keyed": None if keyed is None else score(keyed, test),
        "partner": None if keyed is None else score(partner(keyed, ground.means()), test),
        "distance": distance(ground.teacher, defended.keyless, test),
    }


def applies(ground: Ground, name: str, attack: Attack, defences: dict[str, Defence]) -> str:
    """Why an attack cannot be run against a defence; empty where it can."""
    defended = ground.defended(name, defences)
    uses, key_kind = attack.uses, None
    if defended.key is not None:
        key_kind = defended.key.kind
    elif name == BOX and ground.box is not None:
        key_kind = ground.box.info.key_kind
    if "image_key" in uses and key_kind != "image":
        return "for boxes with an image key"
    if "weight_key" in uses and key_kind != "weight":
        return "for boxes with a weight key"
    if "leaked_key" in uses and defended.key is None:
        return "needs the true key, to leak a part of it: give --key"
    if attack.needs is not Interface.WEIGHTS:
        given = ground.victim(defended, attack).interface
        if given < attack.needs:
            return f"needs {attack.needs.name.lower()}, it gives {given.name.lower()}"
    return ""


def cell(ground: Ground, task: Task, attack: Attack, defences: dict[str, Defence]) -> dict[str, Any]:
    """One attack against one defended model, or, as a negative control, against nonsense."""
    if reason := applies(ground, task.defence, attack, defences):
        return {"status": "not_applicable", "reason": reason}
    defended = ground.defended(task.defence, defences)
    means = ground.means(task.defence, defences, attack)
    if task.kind == "negative":
        defended, means = nonsense(ground, defended, means)
    victim = ground.victim(defended, attack)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(ground.seed, "cell", task.attack))
            stolen = attack.run(victim, means)
    except (InterfaceError, QueryBudgetError) as error:
        return {"status": "not_applicable", "reason": str(error)}
    except (ConfigError, TrainingError) as error:
        return {"status": "failed", "reason": str(error)}
    # What follows is the judge's, not the attacker's: a recovered module may ask the victim for its answers.
    queries, victim.budget = victim.queries, None
    test = evaluation_batches(ground.data.test, ground.device)
    student = stolen.student.eval()
    closed = None
    if stolen.recovered is not None and task.kind == "cell":
        own = read(Task("reference", task.seed), ground.folder.parent)["own_distance"]
        try:
            closed = 1 - distance(ground.teacher, stolen.recovered.eval(), test) / own if own > 0 else None
        except TrainingError as error:
            return {"status": "failed", "reason": str(error)}
    return {
        "status": "done",
        "reason": "",
        "accuracy": score(student, test),
        "validation": means.score(student),
        "agreement": agreement(student, defended.keyless, test),
        "queries": queries,
        "gap_closed": closed,
        "details": stolen.details,
    }


def nonsense(ground: Ground, defended: Defended, means: Means) -> tuple[Defended, Means]:
    """A victim whose answers, and an attacker whose labels, say nothing: whoever learns from these has cheated."""
    seed = derive_seed(ground.seed, "nonsense")
    shape, classes = ground.data.image_shape, ground.data.num_classes
    shuffled = Shuffled(defended.keyless, shape, classes, seed).to(ground.device)
    untrained = ground.network("nonsense").eval()
    fitted = means.settings.model_copy(update={"epochs": max(1, means.settings.epochs // NEGATIVE_SHARE)})
    means = replace(
        means,
        train=shuffled_labels(means.train, seed),
        validation=shuffled_labels(means.validation, seed),
        settings=fitted,
        colluder=None if means.colluder is None else ground.victim(replace(defended, keyless=shuffled), Distil()),
        shadow=None if means.shadow is None else lambda images, seed: (shuffled, shuffled),
    )
    return replace(defended, keyless=shuffled, network=untrained), means


@torch.no_grad()
def distance(teacher: nn.Module, model: nn.Module, batches: Batches) -> float:
    """KL(teacher || model) at temperature 4, nats, over all images."""
    total, count = 0.0, 0
    for batch in batches.epoch(0):
        total += float(losses.kl(teacher(batch.images), model(batch.images), TEMPERATURE)) * len(batch.labels)
        count += len(batch.labels)
    if not math.isfinite(total):
        raise TrainingError("answers are not finite, so they have no distance from the teacher's")
    return max(0.0, total / count)


@torch.no_grad()
def agreement(student: nn.Module, victim: nn.Module, batches: Batches) -> float:
    """Share of images to which both give the same class."""
    same = count = 0
    for batch in batches.epoch(0):
        same += int((student(batch.images).argmax(dim=1) == victim(batch.images).argmax(dim=1)).sum())
        count += len(batch.labels)
    return same / count


def control_column(attack: Attack) -> str:
    """The defence that an attack must break, or it is not trusted: the plain teacher, or a box whose key is easy."""
    return EASY_KEY if "image_key" in attack.uses else WEIGHT_KEY if "weight_key" in attack.uses else NONE


def stages(
    seeds: list[int], columns: list[str], attacks: dict[str, Attack], everywhere: set[str]
) -> list[list[Task]]:
    """All tasks in the order in which they are best begun; none needs one of a later stage.

    Args:
        seeds: of the audit.
        columns: defences, the box among them.
        attacks: by name.
        everywhere: those that run against every defence; the others see the box and their control.
    """
    grid = [
        (column, name)
        for column in columns
        for name, attack in attacks.items()
        if name in everywhere or column in (subject_of(columns), NONE, control_column(attack))
    ]
    needed = dict.fromkeys([*columns, *(control_column(attack) for attack in attacks.values())])
    extra = [(control_column(a), n) for n, a in attacks.items() if control_column(a) not in columns]
    return [
        [Task("reference", seed) for seed in seeds],
        [Task("defence", seed, name) for seed in seeds for name in needed],
        [Task("cell", seed, *place) for seed in seeds for place in [*grid, *extra]]
        + [Task("negative", seeds[0], control_column(attack), name) for name, attack in attacks.items()],
    ]


def needs_of(task: Task) -> list[Task]:
    """What must be finished first: the seed's teacher and references, and the defence that is attacked."""
    if task.kind == "reference":
        return []
    reference = Task("reference", task.seed)
    return [reference] if task.kind == "defence" else [reference, Task("defence", task.seed, task.defence)]


def subject_of(columns: list[str]) -> str:
    """The column that the audit is about."""
    return BOX if BOX in columns else OURS if OURS in columns else columns[-1]
