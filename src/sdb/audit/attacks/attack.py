"""What every attack is: a frozen set of parameters, a statement of what it needs, and one `run`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import nn

from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.victim import Interface, Victim
from sdb.runtime import json_text


@dataclass(frozen=True, slots=True, eq=False)
class Stolen:
    """What an attack brought home.

    Attributes:
        student: images to logits; always of the student's architecture, so that attacks can be compared.
        recovered: where the attack found a module that may answer as the teacher does: that module.
        details: what it chose and saw, JSON values.
    """

    student: nn.Module
    recovered: nn.Module | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Base of all attacks; a subclass is a frozen dataclass of its parameters, and has `run`.

    A subclass sets what is told here as plain class attributes; one that is several attacks, which differ in their
    parameters, has them as fields.

    Attributes:
        name: as the command line and the report have it.
        needs: the least interface it works with.
        uses: of "labels" (its own images'), "proxy", "colluder", "shadow", "leaked_key" (what it has beside it),
            "image_key", "weight_key" (the kind of box it is for), "no_images" (has none of the right kind).
        summary: one line for somebody who has not read the paper.
        source: paper and equation, or repository and file.
        control: the positive control. Share of the way from chance to the student of the unprotected teacher that the
            attack must go when it attacks the unprotected teacher, or it is not trusted.
    """

    name: str = field(init=False)
    needs: Interface = field(init=False)
    uses: frozenset[str] = field(default=frozenset(), init=False)
    summary: str = field(init=False)
    source: str = field(init=False)
    control: float = field(default=0.9, init=False)

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Attack; the victim is asked only through its interface.

        Raises:
            InterfaceError: it gives less than the attack needs.
            QueryBudgetError: the budget is too small for the attack.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run")

    def brief(self) -> Self:
        """The same attack at a lower cost, if it is expensive; for short audits."""
        return self

    def extended(self) -> Self:
        """The same attack with its long lists of settings, where it has them; for audits without haste."""
        return self

    def parameters(self) -> dict[str, Any]:
        """The attack's own parameters, JSON values, for the record."""
        values = asdict(self)
        return json.loads(json_text({name: values[name] for name in values if name not in Attack.__annotations__}))
