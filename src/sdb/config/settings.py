"""What can be set about training, wrapping and distilling, and the ranges."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from sdb.config.names import describe_faults
from sdb.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


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
    nesterov: bool = False
    """SGD: Nesterov's momentum."""
    weight_decay: NonNegative = 5e-4
    """SGD's weight decay (L2); Adam has none, as in the reference."""
    schedule: Literal["cosine", "constant", "one_cycle"] | tuple[Annotated[int, Field(ge=0)], ...] = "cosine"
    """cosine to zero, constant, one_cycle (step by step: linear rise over the first fifth, then linear to zero), or the
    epochs (from 0) at which the rate is multiplied by schedule_factor."""
    schedule_factor: Positive = 0.1
    """Factor at each scheduled epoch."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; none leaves it alone. Helps where a nasty teacher diverges."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 autocast on a GPU, float32 on the CPU."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the forward; reduce-overhead: with CUDA graphs. Needs a C++ compiler, or Triton on a GPU."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Parts into which a batch is cut, one after the other, so that less memory is needed; batch norm sees a part."""
    activation_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more work."""
    augment: bool = True
    """Random crop, flip or rotation, as suits the data set."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of initialisation, order, augmentation and dropout. Keys never come from a seed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    @pydantic.model_validator(mode="after")
    def _cut_evenly(self) -> Self:
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"accumulation_steps: {self.accumulation_steps} does not divide batch_size {self.batch_size}; choose "
                "one that does"
            )
        return self


class TrainSettings(FitSettings):
    """How a classifier is trained on labels."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Mass of the labels' cross-entropy that is spread over all classes (the label-smoothing student: 0.1)."""


class TeacherSettings(Settings):
    """How a teacher and the data are held together."""

    other_class_names: bool = False
    """The data may call the teacher's classes by other names: the same classes in the same order, says who sets it."""


class WrapSettings(FitSettings, TeacherSettings):
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


class DistillSettings(TrainSettings, TeacherSettings):
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
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of each image, used in turn, about which the teacher is asked once each; None: new views each
    epoch, unless nothing is augmented."""
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
