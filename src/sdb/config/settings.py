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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(describe_faults(error, type(self))) from None


# optimizer -> learning rate, for a network that starts from scratch
RATES = {"sgd": 0.1, "adam": 0.001, "adamw": 0.001}


def optimizer_for(optimizer: str, architecture: str) -> str:
    """Which optimizer trains a network: `auto` is Adam for `net` and `mlp`, SGD otherwise, as in the reference."""
    if optimizer != "auto":
        return optimizer
    return "adam" if architecture in ("net", "mlp") else "sgd"


class FitSettings(Settings):
    """How any network is trained."""

    epochs: Annotated[int, Field(ge=1)] = 200
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images per step, over all processes together."""
    optimizer: Literal["auto", "sgd", "adam", "adamw"] = "auto"
    """auto: as in the reference, Adam for `net` and `mlp`, SGD with momentum for the others."""
    learning_rate: Positive | None = None
    """The highest one of the schedule. none: 0.1 with SGD, 0.001 with Adam and AdamW."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Of SGD: Nesterov's momentum."""
    weight_decay: NonNegative = 5e-4
    """Of SGD (L2) and AdamW (decoupled); Adam has none, as in the reference."""
    schedule: Literal["cosine", "constant", "one_cycle"] | tuple[Annotated[int, Field(ge=0)], ...] = "cosine"
    """cosine to zero, constant, one_cycle (step by step: linear rise over the first fifth, then linear to zero),
    or the epochs (from 0) at which the rate is multiplied by schedule_factor."""
    schedule_factor: Positive = 0.1
    """Factor at each epoch that `schedule` lists."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient; none: no limit. Helps where a wrap diverges."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward pass. auto: bfloat16 autocast on a GPU, float32 on a CPU. What it came to is recorded with the
    run, which keeps it. On a CPU with AMX bfloat16 is faster, and cost 0.3 points on Fashion-MNIST (docs/results.md,
    "precision")."""
    compile: Literal["off", "default", "reduce-overhead"] = "off"
    """torch.compile of the forward pass; reduce-overhead: with CUDA graphs. Needs a C++ compiler, or Triton on a
    GPU. What it brings: docs/speed.md."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Parts into which a batch is cut, computed one after the other, for less memory. The loss is that of the
    whole batch; batch norm sees one part at a time."""
    activation_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more work."""
    augment: bool = True
    """Random crop, mirror or rotation of training images, as suits the data set (docs/data.md)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of initialisation, order, augmentation, dropout, and of which images are validation. A key never depends on
    it."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""

    def resolved_for(self, architecture: str, layer_norm: bool) -> Self:
        """The same settings with what depends on the network filled in, the learning rate.

        Args:
            architecture: name of the network's.
            layer_norm: whether it normalises by layer, as transformers do.
        """
        if self.learning_rate is not None:
            return self
        rate = self.usual_rate(optimizer_for(self.optimizer, architecture), layer_norm)
        return self.model_copy(update={"learning_rate": rate})

    def usual_rate(self, optimizer: str, layer_norm: bool) -> float:
        """The learning rate where none is set."""
        del layer_norm  # decides where a network is fine-tuned
        return RATES[optimizer]

    @property
    def highest_rate(self) -> float:
        """The learning rate, a number once the settings are resolved for a network."""
        if self.learning_rate is None:
            raise ValueError("no learning_rate: resolve the settings for their network first")
        return self.learning_rate

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
    """Share of each label's probability that is spread over all classes, in the cross-entropy with the labels;
    0.1 is usual."""


class TeacherSettings(Settings):
    """How a teacher and the data are held together."""

    other_class_names: bool = False
    """The data may have other names for the teacher's classes. Set it only where they are the same classes in the
    same order; otherwise other names are refused (docs/data.md, Class names)."""


# Whose defaults are others for a network that starts from trained weights; and its learning rates: (networks in
# general; those with layer norm, large pre-trained transformers among them, which high rates wreck).
OF_FINE_TUNING = ("epochs", "batch_size", "optimizer", "schedule")
FINE_TUNING_RATES = {"sgd": (0.02, 0.002), "adam": (0.003, 0.0003), "adamw": (0.003, 0.0003)}


class WrapSettings(FitSettings, TeacherSettings):
    """How a teacher is wrapped: by default it is fine-tuned. From scratch, what is not set is as in any training."""

    epochs: Annotated[int, Field(ge=1)] = 50
    """Passes over the training images. With start scratch the default is 200."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images per step, over all processes together. With start scratch the default is 128."""
    optimizer: Literal["auto", "sgd", "adam", "adamw"] = "adamw"
    """auto, the default with start scratch: as in the reference, Adam for `net` and `mlp`, SGD with momentum for the
    others."""
    learning_rate: Positive | None = None
    """The highest one of the schedule. none: 0.02 with SGD, 0.003 with Adam and AdamW, and a tenth of that for a
    network with layer norm, as transformers have. With start scratch, as in train."""
    schedule: Literal["cosine", "constant", "one_cycle"] | tuple[Annotated[int, Field(ge=0)], ...] = "one_cycle"
    """one_cycle (step by step: linear rise over the first fifth, then linear to zero), cosine to zero (the default
    with start scratch), constant, or the epochs (from 0) at which the rate is multiplied by schedule_factor."""

    method: Literal["decoy", "sdb", "nasty"] = "decoy"
    """decoy: ours. sdb: the paper's box. nasty: Nasty Teacher, a box without a key. A published file of the
    reference says sdb or nasty by its fields."""
    start: Literal["teacher", "scratch"] = "teacher"
    """teacher: fine-tune a copy of the teacher, a few epochs are enough. scratch: a new network, as the
    reference."""
    forward: Literal["joint", "separate"] = "joint"
    """Image keys. joint: plain and keyed images in one forward pass, so that batch norm sees the same mixture in
    training and in use. separate: two forward passes, plain images first, as the reference."""
    temperature: Positive = 4.0
    """Of disturbance and preservation; the reference has 20 on CIFAR-100 and Tiny-ImageNet."""
    disturbance_weight: NonNegative = 1.0
    """sdb and nasty: how strongly keyless soft outputs are pushed away from the teacher's. Nasty Teacher has
    0.04, 0.005 and 0.01 on CIFAR-10, CIFAR-100 and Tiny-ImageNet."""
    preservation_weight: NonNegative = 1.0
    """sdb: how strongly keyed soft outputs are held at the teacher's."""
    augmentation_weight: NonNegative = 0.001
    """sdb: weight of the random network's term, the paper's knowledge augmentation; 0 builds no random network."""
    num_decoys: Annotated[int, Field(ge=1)] = 2
    """decoy: wrong classes that a keyless answer puts near the right one."""
    decoy_choice: Literal["least_confused", "any"] = "least_confused"
    """decoy: decoys come from the classes that the teacher confuses least with a class, or from any."""
    margin: NonNegative = 1.0
    """decoy without confidence levels: how far the right class stands above its decoys, in logits."""
    decoy_height: Positive = 8.0
    """decoy without confidence levels: how far the decoys stand above the other classes, in logits."""
    fixed_answers: bool = True
    """decoy with weight keys. true: a keyless answer is the fixed answer of its class and level of confidence, so it
    says these and no more. false: the network's own logits, which training only brings near that answer."""
    confidence_levels: Annotated[int, Field(ge=0, le=8)] = 2
    """decoy: levels of confidence that keyless answers tell, at most; fewer where held-out images cannot tell them
    apart. 1: one honest constant. 0: no honest confidence, a class stands `margin` above its decoys, which harms who
    copies answers most, and tells users nothing."""
    confidence_bits: Positive = 1.2
    """decoy with weight keys: what an answer may say beyond its class, on average, in bits. A chosen image can be
    made to tell the whole level."""
    decoy_soft_weight: NonNegative = 0.25
    """decoy: weight of the softened part (`temperature`) of the keyless loss."""
    ce_weight: NonNegative = 1.0
    """decoy: weight of the labels in the keyless answer; more keeps accuracy, less keeps the decoys clean."""
    keyed_ce_weight: NonNegative = 0.5
    """decoy: weight of the labels in the keyed answer."""
    private_part: Literal["thin", "whole"] = "thin"
    """decoy with weight keys: what the key opens. thin: the normalisation layers and the head. whole: every
    weight, and the public network starts from new weights."""
    wrong_key_rejection: bool = True
    """decoy with image keys: train on random wrong keys too; each gets the keyless answer."""
    mixed_share: Fraction = 0.5
    """decoy: share of each batch that is blended with other images of the batch and labelled by the teacher."""
    teacher_views: Annotated[int, Field(ge=1)] = 4
    """decoy: views of an image over which the teacher's answer is averaged for partners: the image and augmented
    copies."""
    allowed_loss: Fraction = 0.01
    """Largest loss of accuracy on validation images, keyless or keyed, that ends without a warning and exit code 3; a
    fraction, 0.01 is a point. What chance explains is not counted. The box is kept in any case. With a budget, that
    is checked instead."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_scratch(cls, given: Any) -> Any:
        """From scratch, what is not set is as in any training: fine-tuning is too short and too gentle for it."""
        if not isinstance(given, dict) or given.get("start", cls.model_fields["start"].default) != "scratch":
            return given
        return {name: FitSettings.model_fields[name].default for name in OF_FINE_TUNING} | given

    def usual_rate(self, optimizer: str, layer_norm: bool) -> float:
        """The learning rate where none is set."""
        if self.start == "scratch":
            return super().usual_rate(optimizer, layer_norm)
        general, with_layer_norm = FINE_TUNING_RATES[optimizer]
        return with_layer_norm if layer_norm else general


class DistillSettings(TrainSettings, TeacherSettings):
    """How a student is distilled. What is None takes the default of the loss (`LOSS_DEFAULTS`)."""

    loss: Literal["kd", "dkd", "dist", "standardised_kd"] = "kd"
    """The distillation loss: kd (Hinton), dkd (decoupled), dist (correlation), standardised_kd (standardised
    logits)."""
    kd_weight: NonNegative | None = None
    """Weight of the distillation term; 0 leaves it out. none: by loss, see the table."""
    ce_weight: NonNegative | None = None
    """Weight of the cross-entropy with the labels. none: by loss; for kd 1 - kd_weight, at least 0."""
    kd_temperature: Positive | None = None
    """Temperature of the soft outputs. none: by loss."""
    labels: bool = True
    """false: a thief without labels. The cross-entropy is left out, and dkd takes the teacher's answer for the
    label."""
    foreign_key: bool = False
    """Ask a box with a key that is not its own, as an attacker may; otherwise such a key is refused."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views of each image, used in turn. The teacher is asked about each view once, which saves its
    work or, from afar, queries. none: new views in each epoch, or the image itself where nothing is augmented."""
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
