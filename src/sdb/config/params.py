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
    """An architecture of sdb.models.MODELS, or package.module:factory."""
    model_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the architecture, for example num_channels and dropout_rate of net."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, fashion_mnist, tiny_imagenet, folder, or hub:owner/name."""
    data_root: Path | None = None
    """Where the data set lies; default: $SDB_DATA, then ./data."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training images kept for selection."""
    subset_percent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images that is used, as a fraction."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """folder, tiny_imagenet, hub: bring every image to a square of this side, as `pictures` says."""
    normalisation: Literal["measured", "reference"] = "measured"
    """What a new network subtracts and divides by: measured on the training images, or the constants of the
    reference's data loader (cifar10, cifar100, tiny_imagenet)."""
    stream: bool | None = None
    """folder, tiny_imagenet, hub: decode an image when a batch needs it, instead of all of them once into the cache.
    None streams a data set whose decoded images take more than 16 GiB."""
    pictures: Annotated[Pictures, pydantic.PlainValidator(read_pictures)] = Field(default_factory=Pictures)
    """How pictures become pixels, in training and where the model is served: background, fit, turn, filter."""


class TeacherParams(TeacherSettings):
    """Where a run's teacher is."""

    teacher: Path
    """A run folder, a checkpoint, a box, or a reference checkpoint (*.tar)."""
    teacher_model: str | None = None
    """The teacher's architecture: needed for a reference checkpoint, checked otherwise."""
    teacher_args: dict[str, Any] = Field(default_factory=dict)
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


def defaults() -> dict[str, Any]:
    """Every parameter that has a default, and that, as JSON has it."""
    fields = {name: field for model in COMMANDS.values() for name, field in model.model_fields.items()}
    found = {n: f.get_default(call_default_factory=True) for n, f in fields.items() if not f.is_required()}
    found = {name: asdict(value) if isinstance(value, Pictures) else value for name, value in found.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


COMMANDS: dict[str, type[Settings]] = {"train": TrainParams, "wrap": WrapParams, "distill": DistillParams}
