"""The tasks of an audit, each of which ends in one JSON value: references, defences, cells and negative controls.

A task whose result is there is done; so an audit that was stopped goes on, and several processes can share one.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.decoys_removed import ByClass
from sdb.audit.attacks.distil import Distil
from sdb.audit.attacks.victim import Interface, InterfaceError, QueryBudgetError
from sdb.audit.audit_seed import GRID, AuditSeed, Shuffled, shuffled_labels
from sdb.audit.defences.defence import Defence, Defended
from sdb.audit.pairs import screened, students_of_pair
from sdb.audit.plan import BOX, NONE
from sdb.audit.regime import USUAL, alone, bar_ways, soft_ways
from sdb.data import Batches
from sdb.errors import ConfigError, ModelError, TrainingError
from sdb.runtime import derive_seed
from sdb.training.evaluation import answers_to, evaluate, evaluation_batches, honesty

TEMPERATURE = 4.0
# Boxes whose keys are known to be found, and the box that the audit is about where none was given.
EASY_KEY, WEIGHT_KEY, OURS = "sdb", "decoy", "decoy"
# Negative controls need not be good, only honest: they get this share of the epochs.
NEGATIVE_SHARE = 3
# A class has at most so many answers where answers are fixed rows.
MOST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        kind: reference, defence, cell or negative; or screen or pair, see `pairs`.
        seed: of its ground.
        defence, attack: names, where they apply.
        pair: its number, or a screen's.
        measured: the attacks of a pair.
    """

    kind: str
    seed: int
    defence: str = ""
    attack: str = ""
    pair: int = GRID
    measured: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where its result goes in an archive."""
        if self.kind == "pair":
            return f"seed-{self.seed}/pairs/pair-{self.pair}"
        if self.kind == "screen":
            return f"seed-{self.seed}/screens/{self.attack.replace(':', '.')}-{self.pair}"
        name = "--".join(part for part in (self.defence, self.attack) if part) or "references"
        return f"seed-{self.seed}/{self.kind}s/{name.replace(':', '.')}"

    def __str__(self) -> str:
        if self.kind == "pair":
            return f"pair {self.pair}"
        if self.kind == "screen":
            return f"{self.attack} again, {self.pair}"
        return " ".join(part for part in (self.kind, self.attack, self.defence, f"seed {self.seed}") if part)


def do(task: Task, audit_seed: AuditSeed, attacks: dict[str, Attack], defences: dict[str, Defence]) -> None:
    """Do a task and keep its result; nothing to do where it is kept already."""
    if audit_seed.archive.has(task.place):
        return
    started = time.perf_counter()
    if task.kind == "pair":
        chosen = {name: attacks[name] for name in task.measured}
        result = students_of_pair(audit_seed, task.pair, task.defence, chosen, defences)
    elif task.kind == "screen":
        result = screened(audit_seed, task.pair, task.defence, attacks[task.attack], defences)
    elif task.kind == "reference":
        audit_seed.make_teacher()
        result = references(audit_seed)
    elif task.kind == "defence":
        result = defence_row(audit_seed, task.defence, defences, attacks)
    else:
        result = cell(audit_seed, task, attacks[task.attack], defences)
    result["seconds"] = round(time.perf_counter() - started, 3)
    audit_seed.archive.keep(task.place, result)


def score(model: nn.Module, batches: Batches) -> float:
    """Accuracy, a fraction."""
    return evaluate(model, batches)["accuracy"]


def references(audit_seed: AuditSeed) -> dict[str, Any]:
    """Teacher, and the students that never saw a defended model; all learn from the same views of the same images."""
    attacker, teacher = audit_seed.means(), audit_seed.teacher
    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    students = {name: way(attacker) for name, way in bar_ways(teacher, audit_seed.regime).items()}
    return {
        "teacher": score(teacher, test),
        "honesty": honesty(*answers_to(teacher, test)),
        "bar": {name: score(student, test) for name, student in students.items()},
        "from_teacher": score(soft_ways(teacher)[USUAL](attacker), test),
        "own_distance": own_distance(teacher, attacker, test),
    }


def own_distance(teacher: nn.Module, attacker: Attacker, batches: Batches) -> float:
    """How near the teacher's soft answers a thief comes without any: the better of two ways, nats.

    A network of its own, trained on its labels; or the victim's classes, each with what that network says of it on
    average.
    """
    own = alone(attacker, network=attacker.new_network()).eval()
    images = attacker.transfer(attacker.train).images()
    with torch.no_grad():
        named = teacher(images).argmax(dim=1)
        said = ByClass(own(images).log_softmax(dim=1), named).mean
    return min(distance(teacher, model, batches) for model in (own, Said(teacher, said)))


class Said(nn.Module):
    """What is said of a class on average, for the class that a victim names."""

    def __init__(self, victim: nn.Module, table: Tensor) -> None:
        super().__init__()
        self.victim, self.table = victim, table

    def forward(self, images: Tensor) -> Tensor:
        """Rows of the table, (N, C)."""
        return self.table[self.victim(images).argmax(dim=1)]


def defence_row(
    audit_seed: AuditSeed, name: str, defences: dict[str, Defence], attacks: dict[str, Attack]
) -> dict[str, Any]:
    """Build a defence where it is not there yet, and measure it: accuracy, distance from the teacher, its partner.

    One that cannot be made of this teacher is skipped, with the reason; what the audit is about must be made.
    """
    try:
        audit_seed.make(name, defences)
    except (ModelError, ConfigError, TrainingError) as error:
        if name == OURS and audit_seed.box is None:
            raise
        return {"skipped": str(error)}
    fits = [attack for attack in attacks.values() if not applies(audit_seed, name, attack, defences)]
    if any("colluder" in attack.uses for attack in fits):
        audit_seed.make(name, defences, colluder=True)
    defended = audit_seed.defended(name, defences)
    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    keyed = defended.keyed
    answers, labels = answers_to(defended.keyless, test)
    return {
        "keyless": score(defended.keyless, test),
        "keyed": None if keyed is None else score(keyed, test),
        "honesty": honesty(answers, labels),
        "bits": told(answers),
        "partner": None if keyed is None else score(soft_ways(keyed)[USUAL](audit_seed.means()), test),
        "distance": distance(audit_seed.teacher, defended.keyless, test),
    }


def skipped(audit_seed: AuditSeed, name: str) -> str:
    """Why a defence could not be made; empty where it was."""
    place = Task("defence", audit_seed.seed, name).place
    return audit_seed.archive.result(place).get("skipped", "") if audit_seed.archive.has(place) else ""


def applies(audit_seed: AuditSeed, name: str, attack: Attack, defences: dict[str, Defence]) -> str:
    """Why an attack cannot be run against a defence; empty where it can."""
    defended = audit_seed.defended(name, defences)
    uses, key_kind = attack.uses, None
    if defended.key is not None:
        key_kind = defended.key.kind
    elif name == BOX and audit_seed.box is not None:
        key_kind = audit_seed.box.info.key_kind
    if "image_key" in uses and key_kind != "image":
        return "for boxes with an image key"
    if "weight_key" in uses and key_kind != "weight":
        return "for boxes with a weight key"
    if "leaked_key" in uses and defended.key is None:
        return "needs the true key, to leak a part of it: give --key"
    if attack.needs is not Interface.WEIGHTS:
        given = audit_seed.victim(defended, attack).interface
        if given < attack.needs:
            return f"needs {attack.needs.name.lower()}, it gives {given.name.lower()}"
    return ""


def cell(audit_seed: AuditSeed, task: Task, attack: Attack, defences: dict[str, Defence]) -> dict[str, Any]:
    """One attack against one defended model, or, as a negative control, against nonsense."""
    if why := skipped(audit_seed, task.defence):
        return {"status": "not_applicable", "reason": f"{task.defence} cannot be made: {why}"}
    if reason := applies(audit_seed, task.defence, attack, defences):
        return {"status": "not_applicable", "reason": reason}
    defended = audit_seed.defended(task.defence, defences)
    attacker = audit_seed.attacker(task.defence, defences, attack)
    if task.kind == "negative":
        defended, attacker = nonsense(audit_seed, defended, attacker)
    victim = audit_seed.victim(defended, attack)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(audit_seed.seed, "cell", task.attack))
            stolen = attack.run(victim, attacker)
    except (InterfaceError, QueryBudgetError, ModelError) as error:
        return {"status": "not_applicable", "reason": str(error)}
    except (ConfigError, TrainingError) as error:
        return {"status": "failed", "reason": str(error)}
    # What follows is the judge's, not the attacker's: a recovered module may ask the victim for its answers.
    queries, victim.budget = victim.queries, None
    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    student = stolen.student.eval()
    closed = None
    if stolen.recovered is not None and task.kind == "cell":
        own = audit_seed.archive.result(Task("reference", task.seed).place)["own_distance"]
        try:
            closed = 1 - distance(audit_seed.teacher, stolen.recovered.eval(), test) / own if own > 0 else None
        except TrainingError as error:
            return {"status": "failed", "reason": str(error)}
    return {
        "status": "done",
        "reason": "",
        "accuracy": score(student, test),
        "validation": attacker.score(student),
        "agreement": agreement(student, defended.keyless, test),
        "queries": queries,
        "gap_closed": closed,
        "details": finite(stolen.details),
    }


def nonsense(audit_seed: AuditSeed, defended: Defended, attacker: Attacker) -> tuple[Defended, Attacker]:
    """A victim whose answers, and an attacker whose labels, say nothing: whoever learns from these has cheated."""
    seed = derive_seed(audit_seed.seed, "nonsense")
    shape, classes = audit_seed.data.image_shape, audit_seed.data.num_classes
    shuffled = Shuffled(defended.keyless, shape, classes, seed).to(audit_seed.device)
    untrained = audit_seed.network("nonsense").eval()
    fitted = attacker.settings.model_copy(update={"epochs": max(1, attacker.settings.epochs // NEGATIVE_SHARE)})
    attacker = replace(
        attacker,
        train=shuffled_labels(attacker.train, seed),
        validation=shuffled_labels(attacker.validation, seed),
        settings=fitted,
        colluder=None
        if attacker.colluder is None
        else audit_seed.victim(replace(defended, keyless=shuffled), Distil()),
        shadow=None if attacker.shadow is None else lambda images, seed: (shuffled, shuffled),
    )
    return replace(defended, keyless=shuffled, network=untrained), attacker


def finite(value: Any) -> Any:
    """A JSON value in which numbers that are not finite are words, since JSON has none."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def told(logits: Tensor) -> float | None:
    """What an answer says beyond its class, H(answer | class) in bits; None where answers are not a few rows."""
    rows, which = torch.unique(logits, dim=0, return_inverse=True)
    if len(rows) > MOST_ROWS * logits.shape[1]:
        return None
    counts = torch.bincount(which).double()
    share, classes = counts / counts.sum(), rows.argmax(dim=1)
    total = torch.zeros(logits.shape[1], dtype=torch.float64).index_add_(0, classes, share)
    return max(0.0, float(-(share * (share / total[classes]).log2()).sum()))


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
    """All tasks in the order in which they are best started; none needs one of a later stage.

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
