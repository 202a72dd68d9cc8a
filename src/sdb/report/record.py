"""What a report is made from: the demo's record, checked before anything is drawn.

Unknown fields are refused: a page that silently drops part of its evidence is worse than no page.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdb.errors import ConfigError

RowId = Literal[
    "teacher",
    "box.keyless",
    "box.keyed",
    "box.wrong_key",
    "students.alone",
    "students.label_smoothing",
    "students.top1",
    "students.from_teacher",
    "students.thief",
    "students.partner",
    "students.wrong_key",
    "nasty.teacher",
    "nasty.student",
    "paper.box",
    "paper.student",
    "paper.partner",
]
REQUIRED_ROWS: tuple[RowId, ...] = (
    "teacher",
    "box.keyless",
    "box.keyed",
    "students.label_smoothing",
    "students.from_teacher",
    "students.thief",
    "students.partner",
)

REQUIRED_GAINS: tuple[RowId, ...] = ("students.from_teacher", "students.thief", "students.partner")

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# A softmax in single precision may exceed one by a rounding error.
Probability = Annotated[float, Field(ge=0, le=1.0001, allow_inf_nan=False)]
# Numbers far beyond what can be measured are refused: sums and means of them would not be finite.
LARGEST = 1e15
Seconds = Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=int(LARGEST))]
Positive = Annotated[int, Field(ge=1, le=int(LARGEST))]
Byte = Annotated[int, Field(ge=0, le=255)]


Model = TypeVar("Model", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DataFacts(_Part):
    """What the run was trained and tested on."""

    name: str
    train: Count
    validation: Count
    test: Positive
    classes: Annotated[list[str], Field(min_length=2)]
    image_shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    note: str


class Row(_Part):
    """One network's test accuracy and what it means."""

    id: RowId
    label: str
    accuracy: Fraction
    parameters: Count | None
    reads: str


class Curve(_Part):
    """Validation accuracy of one training run, epoch by epoch."""

    id: str
    label: str
    epochs: list[Count]
    accuracy: list[Fraction]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.epochs) != len(self.accuracy):
            raise ValueError(f"{len(self.epochs)} epochs but {len(self.accuracy)} accuracies")
        return self


class Example(_Part):
    """One test image and the four soft outputs for it."""

    image: list[list[list[Byte]]]
    label: Count
    teacher: list[Probability]
    keyless: list[Probability]
    keyed: list[Probability]
    wrong_key: list[Probability]


class Examples(_Part):
    """The images shown, and the temperature of their soft outputs."""

    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    items: list[Example]


class TraceRow(_Part):
    """Whether one student carries the owner's mark."""

    label: str
    found: Count
    total: Positive
    log10_p: Annotated[float, Field(le=0, allow_inf_nan=False)]
    marked: bool


class UnlockRow(_Part):
    """How near a key brings the box's soft outputs to the teacher's."""

    label: str
    similarity: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None
    distance: Seconds


class Stage(_Part):
    """How long one part of the run took."""

    label: str
    seconds: Seconds


# A difference of two accuracies.
Points = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class Excess(_Part):
    """How far one way to learn is above another, over pairs of draws and student seeds."""

    value: Points
    half: Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)]
    lowest: Points
    pairs: Annotated[int, Field(ge=3, le=int(LARGEST))]


class GainRow(Excess):
    """What a student gains over the bar; `way` is the one of several that its validation images chose."""

    id: RowId
    label: str
    way: str


class Bar(_Part):
    """What top-1 answers and a thief's own labels give."""

    way: str
    accuracy: Fraction


class Regime(_Part):
    """What the students had, and what they gained."""

    labelled: Positive
    unlabelled: Count
    pairs: Positive
    bar: Bar
    gains: list[GainRow]
    partner_short: Excess

    @model_validator(mode="after")
    def _gains_complete(self) -> Self:
        found = {row.id for row in self.gains}
        missing = [name for name in REQUIRED_GAINS if name not in found]
        if missing:
            raise ValueError(f"gains lack {', '.join(missing)}")
        return self

    def gain(self, row_id: RowId) -> GainRow | None:
        """The gain of that id."""
        return next((row for row in self.gains if row.id == row_id), None)


class Bin(_Part):
    """Answers of about one confidence."""

    confidence: Probability
    accuracy: Fraction
    images: Positive


class Honesty(_Part):
    """How honest one model's confidence is, on test images."""

    id: str
    label: str
    calibration_error: Fraction
    confidence: Probability
    brier: Fraction
    bins: list[Bin]


class Confidence(_Part):
    """What keyless answers tell beyond the class, in bits, and whose confidence is how honest."""

    bits: Annotated[float, Field(ge=0, le=LARGEST, allow_inf_nan=False)] | None
    levels: Count
    models: list[Honesty]

    def of(self, name: str) -> Honesty:
        """The model of that id; `read_record` has refused records without the teacher's and the box's."""
        return next(model for model in self.models if model.id == name)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = {"teacher", "keyless"} - {model.id for model in self.models}
        if missing:
            raise ValueError(f"models lack {', '.join(sorted(missing))}")
        return self


class Record(_Part):
    """The demo's record; schema 1 had students of all images, one each, and no bar."""

    schema_version: Literal[1, 2] = Field(alias="schema")
    kind: Literal["demo"]
    title: str
    seed: int
    seconds: Seconds
    method: str
    data: DataFacts
    rows: list[Row]
    curves: list[Curve]
    examples: Examples
    traces: list[TraceRow] = []
    unlock: list[UnlockRow] = []
    regime: Regime | None = None
    confidence: Confidence | None = None
    stages: list[Stage]
    parameters: dict[str, Any]
    command: str
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _parts_complete(self) -> Self:
        if self.schema_version > 1 and (self.regime is None or self.confidence is None):
            raise ValueError("schema 2 needs regime and confidence")
        return self

    @model_validator(mode="after")
    def _rows_complete(self) -> Self:
        found = [row.id for row in self.rows]
        missing = [name for name in REQUIRED_ROWS if name not in found]
        if missing:
            raise ValueError(f"rows lack {', '.join(missing)}")
        if len(set(found)) != len(found):
            raise ValueError("rows hold the same id twice")
        return self

    @model_validator(mode="after")
    def _examples_fit(self) -> Self:
        classes, (channels, height, width) = len(self.data.classes), self.data.image_shape
        for number, item in enumerate(self.examples.items):
            where = f"examples.items.{number}"
            if item.label >= classes:
                raise ValueError(f"{where}.label is {item.label}, of {classes} classes")
            for name in ("teacher", "keyless", "keyed", "wrong_key"):
                if (given := len(getattr(item, name))) != classes:
                    raise ValueError(f"{where}.{name} holds {given} probabilities for {classes} classes")
            fits = len(item.image) == height and all(
                len(line) == width and all(len(pixel) == channels for pixel in line) for line in item.image
            )
            if not fits or channels not in (1, 3):
                raise ValueError(f"{where}.image is not {height} x {width} pixels of 1 or 3 channels")
        return self

    def row(self, row_id: RowId) -> Row | None:
        """The row of that id, if the run made it."""
        return next((row for row in self.rows if row.id == row_id), None)


def not_finite(value: Any, path: str = "") -> Iterator[str]:
    """Where a JSON value holds NaN or an infinity, also in parts whose form is free."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from not_finite(each, f"{path}.{name}" if path else str(name))


def checked(model: type[Model], values: dict[str, Any], top: str) -> tuple[Model | None, list[str]]:
    """A JSON object as a model, or every fault with its path, `top` for the whole; never the input, soft outputs."""
    found = dict.fromkeys(not_finite(values), "the number is not finite")
    read = None
    try:
        read = model.model_validate(values)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            found[".".join(str(part) for part in fault["loc"]) or top] = fault["msg"]
    return (None if found else read), [f"{path}: {message}" for path, message in found.items()]


def read_record(record: dict[str, Any]) -> Record:
    """Check a record and return it typed.

    Args:
        record: The demo's record, as read from its JSON file.

    Returns:
        The same, typed and complete.

    Raises:
        ConfigError: A field is missing, unknown or of the wrong kind; every fault is named, with its path.
    """
    read, faults = checked(Record, record, "record")
    if read is None:
        raise ConfigError(
            f"this record cannot be reported ({len(faults)} fault(s)): {'; '.join(faults)}. "
            "Expected a demo record, as `sdb demo` writes it; run it again."
        )
    return read
