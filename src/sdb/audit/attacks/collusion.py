"""Two customers put together what they were given: boxes of one teacher, each with decoys of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import Recipe, distilled
from sdb.audit.attacks.victim import Interface, Victim
from sdb.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TwoBoxes(Attack):
    """Join the answers of two boxes: what they disagree about is disturbance, what they share is knowledge."""

    name = "two_boxes"
    needs = Interface.TOP_K
    uses = frozenset({"labels", "colluder"})
    summary = "Two customers join the answers of their boxes, by mean and by minimum, and keep the better student"
    source = "ours; averaging marked copies is the classic collusion (Boneh and Shaw, 1998)"

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask both about every view, join, distil; the better of both ways by validation.

        Raises:
            ConfigError: there is no second box.
        """
        victim.require(self.needs)
        if attacker.colluder is None:
            raise ConfigError("colluder: none given; this attack needs another customer's box of the same teacher")
        attacker.colluder.require(self.needs)
        transfer = affordable(victim, attacker)
        before = attacker.colluder.queries
        both = torch.stack(
            [transfer.ask(each).scores().log_softmax(dim=1) for each in (victim, attacker.colluder)]
        )
        # A decoy stands high in one box only, so the minimum takes it out; the mean only halves it.
        ways = {"mean": both.mean(dim=0), "minimum": both.amin(dim=0)}
        students = {
            name: distilled(attacker, transfer, scores, Recipe(), transfer.targets)
            for name, scores in ways.items()
        }
        values = {name: attacker.score(student) for name, student in students.items()}
        chosen = max(values, key=lambda name: values[name])
        details = {
            "chosen": chosen,
            "validation": values,
            "colluder_queries": attacker.colluder.queries - before,
        }
        return Stolen(students[chosen], details=details)
