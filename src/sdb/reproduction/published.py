"""The papers' data sets, networks and hyper-parameters: literal tables, read by `experiments/write.py` too.

Hyper-parameters are those of the published parameter files of Nasty Teacher (VITA-Group/Nasty-Teacher,
experiments/**/params.json) and of SDB (JngwenYe/SDB, experiments/CIFAR10/smb-resnet10/params.json). SDB published one
file, for CIFAR-10; on the other data sets its runs take the same values and the data set's temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Params = dict[str, Any]

# --- how a network is trained ---

SGD: Params = {
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0005,
}
CIFAR10: Params = {"epochs": 160, **SGD, "schedule": [80, 120], "schedule_factor": 0.1, "augment": True}
HUNDRED: Params = {"epochs": 200, **SGD, "schedule": [60, 120, 160], "schedule_factor": 0.2, "augment": True}
SDB: Params = {"epochs": 200, **SGD, "schedule": [80, 120], "schedule_factor": 0.1, "augment": True}
# The published files give `net` one scheduled epoch, 999, which never comes.
NET: Params = {
    "epochs": 100,
    "batch_size": 128,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "schedule": "constant",
    "augment": True,
}
LABEL_SMOOTHING = 0.1
MODEL_ARGS: dict[str, Params] = {"net": {"num_channels": 32, "dropout_rate": 0.0}}
# Ours, not published; the strengths that docs/results.md measures.
DECOY: Params = {
    "method": "decoy",
    "start": "teacher",
    "key_kind": "weight",
    "num_decoys": 2,
    "margin": 1,
    "ce_weight": 1,
    "temperature": 4,
}

# --- the papers' data sets ---

# folder -> dataset, teachers, students beside the teacher's own architecture, training, temperature,
# Nasty Teacher's weight
TABLES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], Params, float, float]] = {
    "CIFAR10": ("cifar10", ("resnet18",), ("net", "preresnet20", "preresnet32"), CIFAR10, 4, 0.04),
    "CIFAR100": (
        "cifar100",
        ("resnet18", "resnet50", "resnext29"),
        ("shufflenetv2", "mobilenetv2", "resnet18"),
        HUNDRED,
        20,
        0.005,
    ),
    "TinyImageNet": (
        "tiny_imagenet",
        ("resnet18", "resnet50", "resnext29"),
        ("shufflenetv2", "mobilenetv2", "resnet18"),
        HUNDRED,
        20,
        0.01,
    ),
}


@dataclass(frozen=True, slots=True)
class PublishedRecipe:
    """Everything that a data set's runs are made of. Parameters are those of a `params.json`.

    Attributes:
        dataset: the data set's name.
        teachers: names of the protected networks.
        others: names of the students beside the teacher's own architecture.
        training: how a network is trained.
        boxes: nasty, sdb and decoy, each with all parameters of its `sdb wrap`.
        distilling: what a distilled student has beside its network and its training.
        networks: model and arguments of a name that is not simply the model's.
        own_training: how the networks are trained for which `training` is not meant.
        teacher_training: how teachers are trained, where that is not how a student is.
        own_architecture: whether each teacher's architecture is a student too.
    """

    dataset: str
    teachers: tuple[str, ...]
    others: tuple[str, ...]
    training: Params
    boxes: dict[str, Params]
    distilling: Params
    networks: dict[str, Params] = field(default_factory=dict)
    own_training: dict[str, Params] = field(default_factory=dict)
    teacher_training: Params = field(default_factory=dict)
    own_architecture: bool = True

    def model(self, name: str) -> Params:
        """A network's architecture, and the data."""
        plain = {"model_name": name, "model_args": MODEL_ARGS.get(name, {})}
        return {**self.networks.get(name, plain), "dataset": self.dataset}

    def trained(self, name: str) -> Params:
        """How a student's network is trained."""
        return self.own_training.get(name, self.training)

    def teacher_trained(self, name: str) -> Params:
        """How a teacher's network is trained."""
        return self.teacher_training or self.trained(name)

    def students_of(self, teacher: str) -> tuple[str, ...]:
        """The students that learn from a teacher."""
        return unique((*self.others, teacher) if self.own_architecture else self.others)

    @property
    def students(self) -> tuple[str, ...]:
        """The students of any teacher."""
        return unique(tuple(name for teacher in self.teachers for name in self.students_of(teacher)))


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each name once, in order."""
    return tuple(dict.fromkeys(names))


def paper_methods(temperature: float, nasty_weight: float) -> dict[str, Params]:
    """Nasty Teacher and the paper's box as published, without how long they are trained."""
    return {
        "nasty": {
            "method": "nasty",
            "start": "scratch",
            "temperature": temperature,
            "disturbance_weight": nasty_weight,
        },
        "sdb": {
            "method": "sdb",
            "start": "scratch",
            "forward": "separate",
            "key_blend": 0.9,
            "temperature": temperature,
            "disturbance_weight": 1,
            "preservation_weight": 1,
            "augmentation_weight": 0.001,
        },
    }


def distilling(temperature: float) -> Params:
    """Distillation as both papers do it."""
    return {"loss": "kd", "kd_weight": 0.9, "ce_weight": 0.1, "kd_temperature": temperature}


def published(folder: str) -> PublishedRecipe:
    """The published hyper-parameters of one of the papers' data sets, by its folder of experiments/."""
    dataset, teachers, others, training, temperature, nasty_weight = TABLES[folder]
    methods = paper_methods(temperature, nasty_weight)
    # Ours. A fine-tuning: a third of the teacher's epochs, at a tenth of its learning rate.
    shorter = {"epochs": training["epochs"] // 3, "learning_rate": training["learning_rate"] / 10}
    return PublishedRecipe(
        dataset=dataset,
        teachers=teachers,
        others=others,
        training=training,
        boxes={
            "nasty": {**methods["nasty"], **training},
            "sdb": {**methods["sdb"], **SDB},
            "decoy": {**DECOY, **training, **shorter, "schedule": "cosine"},
        },
        distilling=distilling(temperature),
        own_training={"net": NET},
    )
