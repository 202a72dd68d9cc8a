"""What an audit's report is made from: its claim, checked before anything is drawn.

Unknown fields are refused, and so is a claim in which the audited box lacks a cell: a page that silently drops part of
its evidence is worse than no page.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sdb.errors import ConfigError
from sdb.report.audit_pairs import BAR, BARE, Measured, measured
from sdb.report.pairs import Scores
from sdb.report.record import LARGEST, Count, Fraction, Positive, Seconds, checked
from sdb.report.schemas import of_today

# A share of a distance: at most all of it, and any amount behind.
Share = Annotated[float, Field(ge=-LARGEST, le=1, allow_inf_nan=False)]
# A divergence in single precision may fall below zero by a rounding error.
Distance = Annotated[float, Field(ge=-1e-3, le=LARGEST, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Bits = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Threat = Literal["api", "shipped"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class AuditData(_Part):
    """The thief's and the tester's images."""

    name: Name
    train: Positive
    validation: Count
    test: Positive
    classes: Annotated[list[str], Field(min_length=2)]
    image_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    note: str
    proxy: str


class AuditedBox(_Part):
    """The box that was audited; `levels` of confidence and the bits beyond the class are what it says of itself."""

    path: str
    id: str
    method: str
    key_kind: str | None
    levels: Positive | None = None
    bits: Bits | None = None


class Regime(_Part):
    """The thief's images: with labels, some of them to choose settings by, and without."""

    labelled: Positive
    unlabelled: Count
    validation: Count


class Network(_Part):
    """An architecture and its size.

    `note` says why the thief's networks are not of the victim's architecture, where nobody could make one.
    """

    model: str
    arguments: dict[str, Any]
    parameters: Count
    note: str = ""


class References(_Part):
    """What needs no attack, per seed: test accuracies, and the distance of the thief's own network from the teacher."""

    teacher: list[Fraction]
    calibration_error: list[Fraction] | None = None
    brier: list[Fraction] | None = None
    bar: Annotated[dict[str, list[Fraction]], Field(min_length=1)]
    """Students that never saw a soft answer, by the way they learned."""
    from_teacher: list[Fraction]
    own_distance: list[Distance]


class PairScores(_Part):
    """Accuracies of one way to learn, pair by pair."""

    test: list[Fraction]
    validation: list[Fraction]


class Pairs(_Part):
    """Students in pairs, by the way they learned: bar/, bare/ (of the teacher), partner/ and attack/, then its name."""

    number: Annotated[int, Field(ge=3)]
    ways: dict[str, PairScores]
    left_out: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        faults = [
            f"{name} holds {len(values)} values for {self.number} pairs"
            for name, scores in self.ways.items()
            for values in (scores.test, scores.validation)
            if len(values) != self.number
        ]
        faults += [
            f"no way of {group}" for group in (BAR, BARE) if not any(name.startswith(group) for name in self.ways)
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def measured(self) -> Measured:
        """What they show."""
        return measured({name: Scores(tuple(s.test), tuple(s.validation)) for name, s in self.ways.items()})


class DefenceRow(_Part):
    """One defence: what it is, what it costs its users, what its partner gets. Lists are per seed."""

    name: Name
    title: str
    summary: str
    source: str
    parameters: dict[str, Any]
    threat_note: str
    keyless: list[Fraction]
    keyed: list[Fraction | None]
    partner: list[Fraction | None]
    distance: list[Distance]
    seconds: list[Seconds]
    calibration_error: list[Fraction] | None = None
    brier: list[Fraction] | None = None
    bits: list[Bits | None] | None = None
    """What an answer was found to say beyond its class; None where answers are no fixed rows."""


class AttackRow(_Part):
    """One attack: what it does and what it needs."""

    name: Name
    summary: str
    source: str
    needs: Literal["labels", "top_k", "probabilities", "logits", "weights"]
    uses: list[str]
    threat: Literal["api", "shipped", "leak"]
    parameters: dict[str, Any]


class Trial(_Part):
    """One attack on one defence under one seed."""

    seed: int
    accuracy: Fraction
    validation: Fraction
    agreement: Fraction
    queries: Count
    seconds: Seconds
    gap_closed: Share | None
    details: dict[str, Any]


class Cell(_Part):
    """One attack on one defence."""

    defence: str
    attack: str
    status: Literal["done", "not_applicable", "failed"]
    reason: str
    seeds: list[Trial]


class PositiveControl(_Part):
    """Whether the attack works where it must.

    `closed` is the share of the distance to the teacher that a recovered module closed where the victim is the teacher
    itself; it must be above `closed_needed`.
    """

    passed: bool | None
    reason: str
    accuracies: list[Fraction]
    needed: Fraction | None
    closed: Share | None
    closed_needed: Fraction | None


class NegativeControl(_Part):
    """Whether the attack fails on shuffled answers."""

    passed: bool | None
    reason: str
    accuracies: list[Fraction]
    limit: Fraction | None


class Controls(_Part):
    """The two checks of an attack."""

    positive: PositiveControl
    negative: NegativeControl


class Unlock(_Part):
    """How near a key brings the box's soft outputs to the teacher's, in nats."""

    label: str
    similarity: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None
    distance: Distance


class Trace(_Part):
    """Whether one student carries the owner's mark."""

    label: str
    found: Count
    total: Positive
    log10_p: Annotated[float, Field(le=0, allow_inf_nan=False)]
    marked: bool


class Claim(_Part):
    """An audit's claim, of today's schema; `schemas` reads those before it."""

    schema_version: Literal[3] = Field(alias="schema")
    kind: Literal["audit"]
    title: str
    preset: str
    threat: Threat
    seeds: Annotated[list[int], Field(min_length=1)]
    interface: Literal["labels", "top_k", "probabilities", "logits"]
    top_k: Positive
    query_budget: Positive | None
    views: Positive
    regime: Regime
    given: bool
    """Whether box and teacher were there before the audit: then they are the same for every seed."""
    data: AuditData
    box: AuditedBox | None
    student: Network
    victim: Network
    settings: dict[str, Any]
    references: References
    pairs: Pairs | None
    """None in claims of older schemas: then the seeds of the grid decide."""
    defences: Annotated[list[DefenceRow], Field(min_length=1)]
    skipped: dict[str, str] = Field(default_factory=dict)
    """Defences that could not be made of this teacher, with the reason."""
    attacks: list[AttackRow]
    cells: list[Cell]
    controls: dict[str, Controls]
    unlock: list[Unlock]
    traces: list[Trace]
    seconds: Seconds
    workers: Positive
    command: str
    environment: dict[str, Any]
    started: str
    finished: str

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = [*_names(self), *_lengths(self), *_cells(self)]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def target(self) -> str:
        """Name of the defence that the verdict is about."""
        return target_of([row.name for row in self.defences])

    def defence(self, name: str) -> DefenceRow:
        """The defence of that name."""
        return next(row for row in self.defences if row.name == name)

    def attack(self, name: str) -> AttackRow:
        """The attack of that name."""
        return next(row for row in self.attacks if row.name == name)

    def cell(self, defence: str, attack: str) -> Cell | None:
        """That attack on that defence, if it belongs to this audit."""
        return next((c for c in self.cells if (c.defence, c.attack) == (defence, attack)), None)


def target_of(defences: list[str]) -> str:
    """Which of some defences is the audited one: the box, or the decoy box that an audit without one makes."""
    return "box" if "box" in defences else "decoy"


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _names(claim: Claim) -> list[str]:
    defences, attacks = [row.name for row in claim.defences], [row.name for row in claim.attacks]
    faults = [f"defences hold {name!r} twice" for name in _twice(defences)]
    faults += [f"attacks hold {name!r} twice" for name in _twice(attacks)]
    faults += [
        f"references.bar lacks {name!r}, which the pairs have"
        for name in (
            each.removeprefix(BAR) for each in (claim.pairs.ways if claim.pairs else ()) if each.startswith(BAR)
        )
        if name not in claim.references.bar
    ]
    if (target := target_of(defences)) not in defences:
        faults.append(f"defences lack what was audited: neither 'box' nor {target!r} is there")
    if len(set(claim.seeds)) != len(claim.seeds):
        faults.append("seeds hold a seed twice")
    return faults + [f"controls.{name}: no such attack" for name in claim.controls if name not in attacks]


def _lengths(claim: Claim) -> list[str]:
    count = len(claim.seeds)
    references = claim.references
    lists = {f"references.{name}": values for name, values in references if isinstance(values, list)}
    lists |= {f"references.bar.{name}": values for name, values in references.bar.items()}
    for number, row in enumerate(claim.defences):
        for name in ("keyless", "keyed", "partner", "distance", "seconds", "calibration_error", "brier", "bits"):
            if (values := getattr(row, name)) is not None:
                lists[f"defences.{number}.{name}"] = values
    return [f"{name} holds {len(v)} values for {count} seeds" for name, v in lists.items() if len(v) != count]


def _cells(claim: Claim) -> list[str]:
    defences, attacks = {row.name for row in claim.defences}, [row.name for row in claim.attacks]
    faults, seen = [], set()
    for number, cell in enumerate(claim.cells):
        where = f"cells.{number} ({cell.attack} on {cell.defence})"
        if cell.defence not in defences or cell.attack not in attacks:
            faults.append(f"{where}: no such defence or attack")
        if (cell.defence, cell.attack) in seen:
            faults.append(f"{where}: there twice")
        seen.add((cell.defence, cell.attack))
        given = [trial.seed for trial in cell.seeds]
        if cell.status == "done" and sorted(given) != sorted(claim.seeds):
            faults.append(f"{where}: seeds {given}, of {claim.seeds}")
        elif not set(given) <= set(claim.seeds) or len(set(given)) != len(given):
            faults.append(f"{where}: seeds {given} do not belong to {claim.seeds}")
    target = target_of([row.name for row in claim.defences])
    lacking = [name for name in attacks if (target, name) not in seen]
    return faults + ([f"cells lack {target} under {', '.join(lacking)}"] if lacking else [])


def read_claim(claim: dict[str, Any]) -> Claim:
    """Check a claim and return it typed.

    Args:
        claim: The audit's claim, as read from its JSON file; of any schema that there has been.

    Returns:
        The same, typed and complete.

    Raises:
        ConfigError: It is something else, a field is missing, unknown or of the wrong kind, a number is not finite, or
            parts do not fit together; every fault is named, with its path.
    """
    if claim.get("kind") != "audit":
        raise ConfigError("not an audit's claim; give the claim.json that `sdb audit` wrote")
    read, faults = checked(Claim, of_today(claim), "claim")
    if read is None:
        raise ConfigError(
            f"this claim cannot be reported ({len(faults)} fault(s)): {'; '.join(faults)}. "
            "Expected an audit's claim, as `sdb audit` writes it; run it again."
        )
    return read
