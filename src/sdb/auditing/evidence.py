"""How near keys bring a box's answers to the teacher's, and which students carry its mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdb.attacks.distil import Distil, Labels
from sdb.attacks.similar_keys import SimilarKeys
from sdb.attacks.victim import InterfaceError, QueryBudgetError
from sdb.auditing.cells import distance, partner, trained_alone
from sdb.auditing.ground import Ground
from sdb.auditing.plan import BOX
from sdb.errors import TrainingError
from sdb.keys import Key, Owner
from sdb.tracing import trace
from sdb.training import evaluation_batches

RANDOM_KEYS = 100


def unlock_curve(ground: Ground) -> list[dict[str, Any]]:
    """The audited box's answers without a key, with it, with keys like it and with random ones; KL from the teacher."""
    box, key_file = ground.box, ground.subject.key
    if box is None or key_file is None:
        return []
    key, batches = Key.load(key_file), evaluation_batches(ground.data.test, ground.device)

    def row(label: str, module: Any, similarity: float | None = None) -> dict[str, Any]:
        return {"label": label, "similarity": similarity, "distance": distance(ground.teacher, module, batches)}

    rows = [row("no key", box), row("the key", box.unlock(key), 1.0)]
    if key.kind == "weight":
        # A wrong weight key opens nothing at all: its answers are the keyless ones, bit for bit.
        return [*rows, row("a random key", box.attempt(Key.generate(kind="weight")))]
    near = SimilarKeys(random_keys=RANDOM_KEYS, seed=ground.seed).run(box, key, ground.data.image_shape)
    named = [each for each in near if not each.name.startswith(("random", "true"))]
    rows += [row(each.name, each.module, each.cosine) for each in named]
    random = [row(each.name, each.module, each.cosine) for each in near if each.name.startswith("random")]
    best = min(random, key=lambda entry: entry["distance"])
    return [*rows, best | {"label": f"the best of {RANDOM_KEYS} random keys"}]


def traces(ground: Ground, owner_file: Path | None) -> list[dict[str, Any]]:
    """Whether the audited box's thieves carry its owner's mark, and whether innocent students do not."""
    box = ground.box
    if box is None or owner_file is None:
        return []
    owner, means = Owner.load(owner_file), ground.means()
    defended = ground.defended(BOX, {})
    students = {
        "thief by plain distillation": lambda: Distil().run(ground.victim(defended, Distil()), means).student,
        "thief by top-1 answers": lambda: Labels().run(ground.victim(defended, Labels()), means).student,
        "innocent: trained alone": lambda: trained_alone(means, means.new_student(), 0.0),
        "innocent: label smoothing": lambda: trained_alone(means, means.new_student(), 0.1),
        "innocent: student of the teacher": lambda: partner(ground.teacher, means),
    }
    rows = []
    for label, make in students.items():
        try:
            student = make()
        except (InterfaceError, QueryBudgetError, TrainingError):
            continue  # this thief cannot be had through this interface
        found = trace(student, box, owner, ground.data)
        facts = {"found": found.found, "total": found.total, "log10_p": min(0.0, found.log10_p)}
        rows.append({"label": label, **facts, "marked": found.marked})
    return rows
