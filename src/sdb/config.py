"""Parameters: what can be set, the ranges, the reference's names for them, and one strict reader.

    params = load(Path("experiments/digits/box"), "wrap", ["epochs=5"])

A parameter file is one flat JSON object, `DIR/params.json`. The file, the `--set` values and the defaults become one
dictionary that is validated once, so all faults come together, each with its field. The key names of the published
`params.json` files of SDB and Nasty Teacher are aliases (`ALIASES`), so those files run unchanged.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from sdb.address import check_remote
from sdb.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]

# The reference's and Nasty Teacher's names -> ours.
ALIASES = {
    "num_epochs": "epochs",
    "gamma": "schedule_factor",
    "adversarial_model": "teacher_model",
    "adversarial_resume": "teacher",
    "teacher_resume": "teacher",
    "weight": "disturbance_weight",
    "lamb": "key_blend",
    "eta": "augmentation_weight",
    "alpha": "kd_weight",
    "augmentation": "augment",
}
# Arguments of the reference's `net` that stand beside its name in the published files.
MODEL_ARGUMENTS = ("num_channels", "dropout_rate")
# Read by the reference's data loader; ours has no workers.
IGNORED = ("num_workers",)


class Settings(BaseModel):
    """Base of all parameter models: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(describe_faults(error, type(self))) from None


class FitSettings(Settings):
    """How any network is trained."""

    epochs: Annotated[int, Field(ge=1)] = 200
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step, over all processes together."""
    optimizer: Literal["auto", "sgd", "adam"] = "auto"
    """auto: as in the reference, Adam for `net` and `mlp`, SGD with momentum for the others."""
    learning_rate: Positive = 0.1
    """At the start; 0.001 is usual with Adam."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum."""
    weight_decay: NonNegative = 5e-4
    """SGD's weight decay (L2); Adam has none, as in the reference."""
    schedule: Literal["cosine", "constant"] | tuple[Annotated[int, Field(ge=0)], ...] = "cosine"
    """cosine to zero, constant, or the epochs (from 0) at which the rate is multiplied by schedule_factor."""
    schedule_factor: Positive = 0.1
    """Factor at each scheduled epoch."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; none leaves it alone. Helps where a nasty teacher diverges."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on a GPU, float32 on the CPU."""
    augment: bool = True
    """Random crop, flip or rotation, as suits the data set."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of initialisation, order, augmentation and dropout. Keys never come from a seed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class TrainSettings(FitSettings):
    """How a classifier is trained on labels."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Mass of the labels' cross-entropy that is spread over all classes (the label-smoothing student: 0.1)."""


class WrapSettings(FitSettings):
    """How a teacher is wrapped."""

    method: Literal["decoy", "sdb", "nasty"] = "decoy"
    """decoy: ours, the default. sdb: the paper's box. nasty: Nasty Teacher, a box without a key."""
    start: Literal["teacher", "scratch"] = "teacher"
    """Start from the teacher's weights (few epochs are enough) or from scratch (as the reference)."""
    forward: Literal["joint", "separate"] = "joint"
    """joint: plain and keyed images share one forward, so batch norm sees one world; separate: as the reference."""
    temperature: Positive = 4.0
    """Temperature of disturbance and preservation (the reference: 4, on CIFAR-100 and Tiny-ImageNet 20)."""
    disturbance_weight: NonNegative = 1.0
    """How hard keyless soft outputs are pushed away from the teacher's (nasty: 0.04, 0.005, 0.01)."""
    preservation_weight: NonNegative = 1.0
    """How hard keyed soft outputs are held at the teacher's."""
    augmentation_weight: NonNegative = 0.001
    """The paper's knowledge augmentation: keyed logits pulled to a random network's."""
    num_decoys: Annotated[int, Field(ge=1)] = 2
    """decoy: wrong classes that a keyless answer puts near the right one."""
    decoy_choice: Literal["least_confused", "any"] = "least_confused"
    """decoy: whether decoys come from the classes that the teacher confuses least, or from all."""
    margin: NonNegative = 1.0
    """decoy: how far the right class stands above its decoys, in logits."""
    decoy_height: Positive = 8.0
    """decoy: how far the decoys stand above the other classes, in logits."""
    fixed_answers: bool = True
    """decoy with weight keys: keyless answers are the named class's decoy answer itself, so they say no more than the
    class; false gives the network's own logits, which training only brings near it."""
    decoy_soft_weight: NonNegative = 0.25
    """decoy: weight of the keyless answer's softened part."""
    ce_weight: NonNegative = 1.0
    """decoy: weight of the labels in the keyless answer; more keeps accuracy, less keeps the decoys clean."""
    keyed_ce_weight: NonNegative = 0.5
    """decoy: weight of the labels in the keyed answer."""
    private_part: Literal["thin", "whole"] = "thin"
    """decoy with weight keys: norms and head; or everything, and the public network never has the teacher's weights."""
    wrong_key_rejection: bool = True
    """decoy with image keys: train on random wrong keys too, each gets the keyless answer."""
    mixed_share: Fraction = 0.5
    """decoy: share of each batch that is blended with another image and labelled by the teacher."""
    teacher_views: Annotated[int, Field(ge=1)] = 1
    """decoy: augmented views over which the teacher's answer is averaged for partners."""


class DistillSettings(TrainSettings):
    """How a student is distilled. What is None takes the default of the loss (`LOSS_DEFAULTS`)."""

    loss: Literal["kd", "dkd", "dist", "standardised_kd"] = "kd"
    """kd (Hinton), dkd (decoupled), dist (correlation), standardised_kd (z-scored logits)."""
    kd_weight: NonNegative | None = None
    """Weight of the distillation term."""
    ce_weight: NonNegative | None = None
    """Weight of the labels' cross-entropy; default 1 - kd_weight where that makes sense, see LOSS_DEFAULTS."""
    kd_temperature: Positive | None = None
    """Temperature of the soft outputs."""
    labels: bool = True
    """Whether the student has labels; a thief may have none."""
    foreign_key: bool = False
    """Ask a box with a key that is not its own, as an attacker may; otherwise such a key is refused."""
    remote_views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of each image that the teacher is asked about, used in turn; None asks new ones each epoch."""
    dkd_target_weight: NonNegative = 1.0
    """dkd: weight of the target-against-rest part."""
    dkd_rest_weight: NonNegative = 8.0
    """dkd: weight of the part among the other classes."""

    def resolved(self) -> DistillSettings:
        """The same settings with the loss's defaults filled in."""
        weight, ce_weight, temperature = LOSS_DEFAULTS[self.loss]
        kd_weight = weight if self.kd_weight is None else self.kd_weight
        if self.ce_weight is not None:
            ce_weight = self.ce_weight
        elif self.loss == "kd":
            ce_weight = max(0.0, 1.0 - kd_weight)
        if not self.labels:
            ce_weight = 0.0
        if kd_weight == 0 and ce_weight == 0:
            raise ConfigError("kd_weight and ce_weight: both are 0, there is nothing to learn; set one above 0")
        update = {
            "kd_weight": kd_weight,
            "ce_weight": ce_weight,
            "kd_temperature": temperature if self.kd_temperature is None else self.kd_temperature,
        }
        return self.model_copy(update=update)


# loss -> (kd_weight, ce_weight, kd_temperature); sources beside each loss in losses.py.
LOSS_DEFAULTS = {
    "kd": (0.9, 0.1, 4.0),
    "dkd": (1.0, 1.0, 4.0),
    "dist": (2.0, 1.0, 4.0),
    "standardised_kd": (9.0, 0.1, 2.0),
}


class RunParams(Settings):
    """What every run folder's params.json has beside the settings: the model and the data."""

    model_name: str
    """An architecture of sdb.models.MODELS, or package.module:factory."""
    model_args: dict[str, Any] = {}
    """Arguments of the architecture, for example num_channels and dropout_rate of net."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, tiny_imagenet, folder, or hub:owner/name."""
    data_root: Path | None = None
    """Where the data set lies; default: $SDB_DATA, then ./data."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training images kept for selection."""
    subset_percent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images that is used, as a fraction."""


class TeacherParams(Settings):
    """Where a run's teacher is."""

    teacher: Path
    """A run folder, a checkpoint, a box, or a reference checkpoint (*.tar)."""
    teacher_model: str | None = None
    """The teacher's architecture: needed for a reference checkpoint, checked otherwise."""
    teacher_args: dict[str, Any] = {}
    """Arguments of that architecture."""
    key: Path | None = None
    """A key file. Wrap: the key the box opens for (default: a new one, DIR/key.json). Distil: the partner's."""
    key_blend: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the image in a keyed image: of the key that a wrap makes (default 0.9); a given key must agree."""


class TrainParams(TrainSettings, RunParams):
    """params.json of `sdb train`."""


class WrapParams(WrapSettings, TeacherParams, RunParams):
    """params.json of `sdb wrap`."""

    key_kind: Literal["image", "weight"] | None = None
    """Of a key that the run makes: weight with method decoy, image with method sdb, by default."""
    owner: Path | None = None
    """The owner's file; the box then opens for its partners."""
    partners: tuple[str, ...] = ()
    """Names of the partners whose keys follow from the owner."""
    budget: Annotated[float, Field(ge=0, lt=1)] | None = None
    """decoy: largest loss of accuracy on validation images, keyless and keyed, a fraction (0.005 is half a point):
    several strengths are tried and the one that fails a thief most is kept. None wraps once, as set."""
    search_trials: Annotated[int, Field(ge=0)] = 0
    """With a budget: candidates that Optuna proposes (extra `tune`); 0 tries the four that are built in."""
    more_teachers: tuple[Path, ...] = ()
    """decoy: run folders or checkpoints; partners get the mean of these and the teacher."""


class DistillParams(DistillSettings, TeacherParams, RunParams):
    """params.json of `sdb distill`."""

    teacher: Path | None = None  # ty: ignore[incompatible-attribute-override]
    """A run folder, a checkpoint, a box, or a reference checkpoint (*.tar); or none, and a teacher_url."""
    teacher_url: Annotated[str | None, Field(validate_default=True)] = None
    """In place of a teacher: http://HOST:PORT/v2/models/NAME, a box that is asked over the network."""
    teacher_token_env: str | None = None
    """With a teacher_url: the environment variable that holds the API token; the token itself is kept nowhere."""

    @pydantic.field_validator("teacher_url", "teacher_token_env")
    @classmethod
    def _fits_the_teacher(cls, value: str | None, given: pydantic.ValidationInfo) -> str | None:
        return check_remote(str(given.field_name), value, given.data)


COMMANDS: dict[str, type[Settings]] = {"train": TrainParams, "wrap": WrapParams, "distill": DistillParams}


def load(folder: Path, command: str, overrides: Sequence[str] = ()) -> Any:
    """Read and validate DIR/params.json with `--set` values on top.

    Raises:
        ConfigError: the file is missing or broken, or any field is unknown or out of range; all faults in one message.
    """
    path = folder / "params.json"
    values, changes = read_json(path), parse_overrides(overrides)
    # A --set value wins over the file's whichever of the two names each uses.
    changed = {_our_name(name, command) for name in changes}
    kept = {name: value for name, value in values.items() if _our_name(name, command) not in changed}
    return validate(kept | changes, command, str(path))


def guess_command(folder: Path) -> str:
    """Which command a params.json is for, by the fields it has."""
    names = {ALIASES.get(name, name) for name in read_json(folder / "params.json")}
    if names & {"kd_weight", "kd_temperature", "loss", "labels", "teacher_url"}:
        return "distill"
    return "wrap" if "teacher" in names else "train"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: missing, unreadable, not JSON or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one, or copy one from experiments/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
        raise ConfigError(f"{path}: not a file of parameters: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, a JSON object of parameters is expected")
    return values


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings to a dictionary; a value is JSON where it parses, else text."""
    values: dict[str, Any] = {}
    for item in overrides:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {item!r}: expected KEY=VALUE, for example --set epochs=10")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def validate(values: dict[str, Any], command: str, source: str) -> Any:
    """One dictionary of parameters, by our names or the reference's, to the command's frozen model."""
    ours = canonical(values, command, source)
    try:
        return COMMANDS[command](**ours)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def canonical(values: dict[str, Any], command: str, source: str) -> dict[str, Any]:
    """The same parameters under our names."""
    result: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in values.items():
        if name in IGNORED:
            continue
        if name in MODEL_ARGUMENTS:
            name = f"model_args.{name}"
        if "." in name:  # --set model_args.num_channels=8
            outer, _, inner = name.partition(".")
            if not isinstance(result.get(outer, {}), dict):
                raise ConfigError(f"{source}: {name}: {outer} has no parts (it is {_short(result[outer])})")
            result[outer] = {**result.get(outer, {}), inner: value}
            given.setdefault(outer, name)
            continue
        ours = _our_name(name, command)
        if name == "cuda":  # the reference replaces it by "is there a GPU"; 0 is honoured here
            value = "auto" if value else "cpu"
        if ours == "schedule" and isinstance(value, list):
            value = tuple(value)
        if name == "augmentation" and value in (0, 1):
            value = bool(value)
        if ours in result and result[ours] != value and ours != "model_args":
            raise ConfigError(f"{source}: {given[ours]} and {name} are one parameter, with two values; keep one")
        given[ours] = name
        result[ours] = (
            {**result.get(ours, {}), **value} if ours == "model_args" and isinstance(value, dict) else value
        )
    # Nasty Teacher's published files have no method and no key; the reference's SDB file has lamb and eta.
    published = bool({"adversarial_model", "adversarial_resume", "lamb", "eta"} & values.keys())
    if command == "wrap" and published and "method" not in result:
        result["method"] = "sdb" if {"key_blend", "augmentation_weight"} & result.keys() else "nasty"
    return result


def _our_name(name: str, command: str) -> str:
    if name == "temperature" and command == "distill":
        return "kd_temperature"
    return "device" if name == "cuda" else ALIASES.get(name, name)


def describe_faults(error: pydantic.ValidationError, model: type[BaseModel]) -> str:
    """All faults of a validation in one line: field, what was given, what is allowed, nearest known name."""
    known = [*model.model_fields, *ALIASES, *MODEL_ARGUMENTS]
    parts: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        # A union reports once for each member; one line a field is enough.
        name = str(fault["loc"][0]) if fault["loc"] else "parameters"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, known, n=1)
            text = f"unknown parameter{f', did you mean {near[0]!r}?' if near else ''}"
        elif fault["type"] == "missing":
            text = "is missing"
        elif fault["type"] == "value_error":  # a check of ours, which says itself what it may repeat
            text = str(fault["ctx"]["error"])
        else:
            text = f"{fault['msg'][0].lower()}{fault['msg'][1:]} (got {_short(fault['input'])})"
        parts[name] = f"{parts[name]}, or {text}" if name in parts else text
    return "; ".join(f"{name}: {text}" for name, text in parts.items())


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
