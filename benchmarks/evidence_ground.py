"""What pieces of the evidence table do: teachers, defences, what users of them get, marks, pairs of students."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from evidence_cases import Case, checked
from few_images import fresh_network, scores_of, student_settings
from torch import nn

from sdb.audit.archive import Folder
from sdb.audit.attacks import ATTACKS
from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.defences import DEFENCES
from sdb.audit.defences.defence import Defended
from sdb.audit.marks.study import MarkSettings, MarkSubject, study
from sdb.audit.pairs import OnlyTop1
from sdb.audit.regime import Way, attacker_of, bar_ways, soft_ways, thief_ways, victim_of
from sdb.audit.remembering import Remembering
from sdb.config import DistillSettings, TrainSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.models import Classifier
from sdb.runtime import choose_device, derive_seed
from sdb.tracing.decoys import trace
from sdb.training.evaluation import evaluate, evaluation_batches

# Attacks beside plain distillation and the ways that use a level.
ATTACKS_TRIED = ("tuned_distil", "skeptical", "margin_queries")
# The thief of labels that is looked for.
COPIER = "labels"


class Ground:
    """What pieces of one seed stand on, made as it is asked for."""

    def __init__(self, case: Case, root: Path | None, seed: int, archive: Folder) -> None:
        self.case, self.root, self.seed, self.archive = case, root, seed, archive

    @cached_property
    def data(self) -> Splits:
        """The data set, checked."""
        return checked(self.case, self.root, self.seed)

    @property
    def fitted(self) -> dict[str, Any]:
        """How teacher and defences are trained."""
        case = self.case
        rate = {"optimizer": "adamw", "learning_rate": case.rate, "schedule": "one_cycle"}
        return {**rate, "batch_size": case.batch_size, "seed": self.seed, "precision": case.precision()}

    def network(self, name: str, arguments: dict[str, Any], purpose: object) -> Classifier:
        """A fresh network; the same weights for the same purpose."""
        return fresh_network(self.data, name, arguments, derive_seed(self.seed, purpose))

    def make_teacher(self) -> None:
        """Train it; goes on where it was stopped."""
        fresh = self.network(*self.case.teacher, "teacher")
        settings = TrainSettings(epochs=self.case.epochs, **self.fitted)
        self.archive.train(f"seed-{self.seed}/teacher", fresh, self.data, settings)

    @cached_property
    def teacher(self) -> Classifier:
        """The trained teacher."""
        like = self.network(*self.case.teacher, "teacher")
        return self.archive.trained(f"seed-{self.seed}/teacher", like).to(choose_device("auto")).eval()

    def make(self, row: str) -> None:
        """Build a defence."""
        settings = TrainSettings(epochs=self.case.box_epochs, **self.fitted)
        self.archive.build(f"seed-{self.seed}/{row}", DEFENCES[row], self.teacher, self.data, settings)

    @cache  # noqa: B019 - a ground lives as long as its process
    def defended(self, row: str) -> Defended:
        """A built defence, whose answers to the same images are computed once."""
        built = self.archive.defended(f"seed-{self.seed}/{row}", DEFENCES[row], self.teacher)
        keyed = None if built.keyed is None else Remembering(built.keyed)
        return replace(built, keyless=Remembering(built.keyless), keyed=keyed)

    def attacker(self, student: str, pair: int) -> Attacker:
        """A thief of one pair."""
        case = self.case
        machine = {"batch_size": case.student_batch, "precision": case.precision()}
        settings = student_settings(case.student_epochs, case.student_rate, self.seed, **machine)
        name, arguments = case.students[student]

        def fresh(purpose: object) -> Classifier:
            return self.network(name, arguments, ("student", student, purpose))

        return attacker_of(self.data, case.regime, fresh, settings, pair)


def facts_of(ground: Ground, row: str) -> dict[str, Any]:
    """What users of a defence get on test images, and whether a thief of all training images carries decoys."""
    defended, data = ground.defended(row), ground.data
    models = {"keyless": defended.keyless} | ({} if defended.keyed is None else {"keyed": defended.keyed})
    scores = scores_of(models, data)
    found: dict[str, Any] = {"keyless": scores["keyless"], "keyed": scores.get("keyed", {}).get("accuracy")}
    box = defended.box
    found["bits"] = 0.0 if row == "labels_only" else None
    if box is not None and box.rows is not None:
        found["bits"] = box.info.measured["bits"]
        thief = ground.network(*next(iter(ground.case.students.values())), ("traced", row))
        settings = DistillSettings(
            epochs=ground.case.traced_epochs, optimizer="adam", learning_rate=0.003, seed=ground.seed
        )
        distill(box, thief, data, settings, progress=False)
        owner = defended.owner
        assert owner is not None  # boxes of a defence have one
        found["trace_log10_p"] = trace(thief, box, owner, data, reference=ground.teacher).log10_p
    return found


def mark_of(ground: Ground, row: str) -> dict[str, Any]:
    """What ties of a served box cost, and whether a copy of 2,000 of its labels carries them."""
    defended = ground.defended(row)
    box, owner = defended.box, defended.owner
    assert box is not None  # the row is our box
    assert owner is not None
    subject = MarkSubject(box.classifier, ground.data, owner, box.info.id)
    found = study(subject, MarkSettings(thieves=(COPIER,), seed=ground.seed))
    kept = {"ties": found["ties"], "coins": found["coins"], "queries": found["queries"]}
    of_seed = found["seeds"].get(str(ground.seed))
    if of_seed is None:
        return kept
    thief = of_seed["thieves"][COPIER]
    (account,) = thief["accounts"]
    lost = {"accuracy": thief["accuracy"], "beside_no_ties": of_seed["facts"]["plain_thief"]}
    return kept | {"cost": of_seed["facts"]["cost"], "log10_p": account["corrected_log10_p"]} | lost


def ways_of(ground: Ground, row: str) -> dict[str, Way]:
    """What a piece's students learn from: `bar/`, `thief/`, `attack/`, `top1/` and `partner/`."""
    defended, regime = ground.defended(row), ground.case.regime
    bar = bar_ways(defended.keyless, regime)
    if row != "none":  # who asks nobody is the same in every row
        bar = {name: way for name, way in bar.items() if name.startswith("top-1")}
    ways = {f"bar/{name}": way for name, way in bar.items()}
    if defended.interface != "labels":
        ways |= {f"thief/{name}": way for name, way in thief_ways(defended.keyless, regime).items()}
        for name in ATTACKS_TRIED:
            ways[f"attack/{name}"] = _way(ATTACKS[name], defended.keyless)
    top1 = OnlyTop1(defended.keyless, ground.data.num_classes)
    ways["top1/margin_queries"] = _way(ATTACKS["margin_queries"], top1)
    if defended.keyed is not None:
        ways |= {f"partner/{name}": way for name, way in soft_ways(defended.keyed).items()}
    return ways


def _way(attack: Attack, module: nn.Module) -> Way:
    return lambda attacker: attack.run(victim_of(module, attacker), attacker).student


def pair_of(ground: Ground, row: str, student: str, pair: int) -> dict[str, Any]:
    """Test and validation accuracy of one pair's students, by way."""
    attacker = ground.attacker(student, pair)
    test = evaluation_batches(ground.data.test, attacker.device)
    found = {}
    for name, way in ways_of(ground, row).items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(ground.seed, "pair", pair, name))
            trained = way(attacker).eval()
        found[name] = [evaluate(trained, test)["accuracy"], attacker.score(trained)]
    return {"ways": found}
