"""What a run folder's params.json holds: the settings of its command, and which model, data and teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from sdb.config.address import check_remote
from sdb.config.pictures import Pictures, read_pictures
from sdb.config.settings import DistillSettings, Settings, TeacherSettings, TrainSettings, WrapSettings


class RunParams(Settings):
    """What every run folder's params.json has beside the settings: the model and the data."""

    model_name: str
    """The architecture that is trained, for a wrap the teacher's: a name of `sdb.models.MODELS`, or
    package.module:factory."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Its arguments: `num_channels` and `dropout_rate` for `net`, a factory's own for a factory."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, tiny_imagenet, folder, or hub:owner/name (docs/data.md)."""
    data_root: Path | None = None
    """Where the data set is. none: the folder that SDB_DATA names, otherwise ./data."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training images that is kept for choosing the best epoch."""
    subset_percent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images, after validation, that is trained on: a fraction, not per cent, as in Nasty
    Teacher."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """folder, tiny_imagenet, hub: every image is brought to a square of this side, as `pictures` says."""
    normalisation: Literal["measured", "reference"] = "measured"
    """What a new network subtracts and divides by: measured on the training images, or the constants of the
    reference's data loader (cifar10, cifar100, tiny_imagenet)."""
    stream: bool | None = None
    """folder, tiny_imagenet, hub: decode an image when a batch needs it, instead of all of them once into the
    cache. none: where the decoded images take more than 16 GiB."""
    pictures: Annotated[Pictures, pydantic.PlainValidator(read_pictures), pydantic.PlainSerializer(asdict)] = (
        Field(default_factory=Pictures)
    )
    """How pictures become pixels, in training and where the model is served: `background` (#ffffff), `fit` (crop
    or stretch), `turn` (true), `filter` (bicubic or bilinear); docs/data.md."""


class TeacherParams(TeacherSettings):
    """Where a run's teacher is."""

    teacher: Path
    """A run folder (its last epoch), a checkpoint, a box, or a reference checkpoint (*.tar)."""
    teacher_model: str | None = None
    """The teacher's architecture: needed for a reference checkpoint, checked against others. A factory's name
    allows that factory to run."""
    teacher_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that architecture, for a reference checkpoint."""
    key: Path | None = None
    """A key file. wrap: the key that the box opens for; none: DIR/key.json, made if it is not there. distill: the
    partner's; none, and no key_blend: the student is a thief."""
    key_blend: Annotated[float, Field(gt=0, le=1)] | None = None
    """Image keys: share of the image in a keyed image. wrap: of the key that is made here (0.9 when not set).
    distill: only for files of the reference, which set it (`lamb`): the key is then DIR/key.json, otherwise the
    `key.json` beside the box. A key that is given must agree."""


class TrainParams(TrainSettings, RunParams):
    """params.json of `sdb train`."""


class WrapParams(WrapSettings, TeacherParams, RunParams):
    """params.json of `sdb wrap`."""

    key_kind: Literal["image", "weight"] | None = None
    """Of a key that the run makes. none: weight for method decoy, image for sdb."""
    owner: Path | None = None
    """The owner's file. none: with method decoy DIR/owner.json, made if it is not there."""
    partners: tuple[str, ...] = ()
    """Names of the partners that the box opens for; their keys follow from `owner`."""
    budget: Annotated[float, Field(ge=0, lt=1)] | None = None
    """decoy: largest loss of accuracy on validation images, keyless and keyed, a fraction (0.005 is half a
    point): several strengths are tried and the one that fails a thief most is kept. none: one wrap, as set."""
    search_trials: Annotated[int, Field(ge=0)] = 0
    """With a budget: candidates that Optuna proposes (extra `tune`) for margin, label weight and height; 0 tries
    the four that are built in."""
    more_teachers: tuple[Path, ...] = ()
    """decoy: run folders or checkpoints; partners get the mean answer of these and the teacher."""


class DistillParams(DistillSettings, TeacherParams, RunParams):
    """params.json of `sdb distill`."""

    teacher: Path | None = None  # ty: ignore[incompatible-attribute-override]
    """A run folder, a checkpoint, a box, or a reference checkpoint (*.tar); none with a `teacher_url`. A wrap's
    run folder, and each checkpoint in it, stands for the box there."""
    teacher_url: Annotated[str | None, Field(validate_default=True)] = None
    """In place of a teacher: http://HOST:PORT/v2/models/NAME, a box that is asked over the network
    (docs/export.md)."""
    teacher_token_env: str | None = None
    """With a teacher_url: the environment variable that holds the API token; the token itself is kept nowhere."""

    @pydantic.field_validator("teacher_url", "teacher_token_env")
    @classmethod
    def _fits_the_teacher(cls, value: str | None, given: pydantic.ValidationInfo) -> str | None:
        return check_remote(str(given.field_name), value, given.data)


def defaults_of(command: str) -> dict[str, Any]:
    """The parameters of one command that have a default, and that, as JSON has it."""
    usual = defaults()
    return {name: usual[name] for name, field in COMMANDS[command].model_fields.items() if not field.is_required()}


def defaults() -> dict[str, Any]:
    """Every parameter that has a default, and that, as JSON has it."""
    fields = {name: field for model in COMMANDS.values() for name, field in model.model_fields.items()}
    found = {n: f.get_default(call_default_factory=True) for n, f in fields.items() if not f.is_required()}
    found = {name: asdict(value) if isinstance(value, Pictures) else value for name, value in found.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


COMMANDS: dict[str, type[Settings]] = {"train": TrainParams, "wrap": WrapParams, "distill": DistillParams}
