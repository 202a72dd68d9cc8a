"""How near keys bring a box's answers to the teacher's, and which students carry its mark."""

from __future__ import annotations

from typing import Any

from sdb.audit.attacks.distil import SMOOTHING, Distil, Labels
from sdb.audit.attacks.similar_keys import SimilarKeys
from sdb.audit.attacks.victim import InterfaceError, QueryBudgetError
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.cells import distance
from sdb.audit.plan import BOX
from sdb.audit.regime import USUAL, alone, soft_ways
from sdb.errors import TrainingError
from sdb.keys import Key
from sdb.tracing.decoys import trace
from sdb.training.evaluation import evaluation_batches

RANDOM_KEYS = 100


def unlock_curve(audit_seed: AuditSeed) -> list[dict[str, Any]]:
    """The audited box's answers without a key, with it, with keys like it and with random ones; KL from the teacher."""
    box, key = audit_seed.box, audit_seed.subject.key
    if box is None or key is None:
        return []
    batches = evaluation_batches(audit_seed.data.test, audit_seed.device)

    def row(label: str, module: Any, similarity: float | None = None) -> dict[str, Any]:
        return {
            "label": label,
            "similarity": similarity,
            "distance": distance(audit_seed.teacher, module, batches),
        }

    rows = [row("no key", box), row("the key", box.unlock(key), 1.0)]
    if key.kind == "weight":
        # A wrong weight key opens nothing at all: its answers are the keyless ones, bit for bit.
        return [*rows, row("a random key", box.attempt(Key.generate()))]
    near = SimilarKeys(random_keys=RANDOM_KEYS, seed=audit_seed.seed).run(box, key, audit_seed.data.image_shape)
    named = [each for each in near if not each.name.startswith(("random", "true"))]
    rows += [row(each.name, each.module, each.cosine) for each in named]
    random = [row(each.name, each.module, each.cosine) for each in near if each.name.startswith("random")]
    best = min(random, key=lambda entry: entry["distance"])
    return [*rows, best | {"label": f"the best of {RANDOM_KEYS} random keys"}]


def traces(audit_seed: AuditSeed) -> list[dict[str, Any]]:
    """Whether the audited box's thieves carry its owner's mark, and whether innocent students do not."""
    box, owner = audit_seed.box, audit_seed.subject.owner
    if box is None or owner is None:
        return []
    attacker = audit_seed.attacker()
    defended = audit_seed.defended(BOX, {})
    students = {
        "thief by plain distillation": lambda: (
            Distil().run(audit_seed.victim(defended, Distil()), attacker).student
        ),
        "thief by top-1 answers": lambda: Labels().run(audit_seed.victim(defended, Labels()), attacker).student,
        "innocent: trained alone": lambda: alone(attacker),
        "innocent: label smoothing": lambda: alone(attacker, SMOOTHING),
        "innocent: student of the teacher": lambda: soft_ways(audit_seed.teacher)[USUAL](attacker),
    }
    rows = []
    for label, make in students.items():
        try:
            student = make()
        except (InterfaceError, QueryBudgetError, TrainingError):
            continue  # this thief cannot be had through this interface
        found = trace(student, box, owner, audit_seed.data)
        facts = {"found": found.found, "total": found.total, "log10_p": min(0.0, found.log10_p)}
        rows.append({"label": label, **facts, "marked": found.marked})
    return rows
