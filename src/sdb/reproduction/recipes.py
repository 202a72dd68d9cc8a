"""The grids that `sdb reproduce` runs: the published hyper-parameters, a short schedule for a GPU, and small digits.

Why `fast` on CIFAR-10 has the lengths it has. The goal is one seed within 10 minutes on one H200. Unit: one forward
of ResNet-18 over the 45,000 training images (the other 5,000 are for validation), F. Assumed: 27,500 images trained a
second, bfloat16 and channels last, so a training epoch of 3 F takes 1.64 s and F is 0.55 s; a small student's training
epoch is 0.75 F.

    teacher                20 epochs x 3 F                                                      60 F
    ResNet-18 on labels    2 runs x 10 epochs x 3 F                                             60 F
    small ones on labels   6 runs x 10 epochs x 0.75 F                                          45 F
    boxes                  6 epochs x (4 F nasty + 8 F sdb + 7 F decoy)                        114 F
    distilled students     7 kinds x 10 epochs x (3 small ones x 1.75 F + 4 F of ResNet-18)  647.5 F
                                                                                           926.5 F = 505 s

The rest of the 10 minutes is for starting 40 runs and for evaluating. Nothing of this has been timed on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

from sdb.errors import ConfigError
from sdb.reproduction.published import (
    DECOY,
    SGD,
    TABLES,
    Params,
    PublishedRecipe,
    distilling,
    paper_methods,
    published,
)

# --- fast: linear rise and fall of the learning rate within few epochs ---

FAST_BATCH = 512
LARGER = FAST_BATCH // SGD["batch_size"]
# The published rate at the published batch, scaled with the batch: the step for one image stays what it was.
FAST: Params = {
    **SGD,
    "batch_size": FAST_BATCH,
    "learning_rate": SGD["learning_rate"] * LARGER,
    "nesterov": True,
    "schedule": "one_cycle",
    "augment": True,
}
FAST_NET: Params = {
    "batch_size": FAST_BATCH,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "one_cycle",
    "augment": True,
}
# Boxes start from the teacher. The largest gradients of nasty and sdb come first, so they are held.
FAST_BOX: Params = {**FAST, "learning_rate": 0.04, "clip_norm": 5}
# folder -> epochs of teachers, students, boxes
FAST_EPOCHS = {"CIFAR10": (20, 10, 6), "CIFAR100": (30, 20, 10), "TinyImageNet": (30, 20, 10)}


def fast(folder: str) -> PublishedRecipe:
    """A short schedule for one of the papers' data sets. Not yet run at full length: no accuracy is claimed."""
    dataset, teachers, others, _, temperature, nasty_weight = TABLES[folder]
    teacher_epochs, student_epochs, box_epochs = FAST_EPOCHS[folder]
    methods = paper_methods(temperature, nasty_weight)
    # The paper's squared errors are sums over the batch: in a larger batch they would weigh more beside its means.
    sums = {name: methods["sdb"][name] / LARGER for name in ("preservation_weight", "augmentation_weight")}
    box = {"epochs": box_epochs, **FAST_BOX}
    return PublishedRecipe(
        dataset=dataset,
        teachers=teachers,
        others=others,
        training={"epochs": student_epochs, **FAST},
        boxes={
            "nasty": {**methods["nasty"], "start": "teacher", **box},
            "sdb": {**methods["sdb"], "start": "teacher", "forward": "joint", **sums, **box},
            "decoy": {**DECOY, **box},
        },
        distilling=distilling(temperature),
        own_training={"net": {"epochs": student_epochs, **FAST_NET}},
        teacher_training={"epochs": teacher_epochs, **FAST},
    )


# --- digits: the same grid in about a minute, for trying it out ---

ADAM: Params = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "cosine",
    "augment": True,
}
# Disturbance that leaves a small network its accuracy; the paper's 1 does not.
DIGITS_METHODS = paper_methods(4, 0.04)
DIGITS_SDB: Params = {"start": "teacher", "forward": "joint", "key_blend": 0.5, "disturbance_weight": 0.1}


def digits() -> PublishedRecipe:
    """The grid on the embedded digits. The papers have no such table."""
    box = {"epochs": 30, **ADAM}
    return PublishedRecipe(
        dataset="digits",
        teachers=("net24",),
        others=("net8", "mlp"),
        training={"epochs": 20, **ADAM},
        boxes={
            "nasty": {**DIGITS_METHODS["nasty"], "start": "teacher", **box},
            "sdb": {**DIGITS_METHODS["sdb"], **DIGITS_SDB, **box},
            "decoy": {**DECOY, **box},
        },
        distilling=distilling(4),
        networks={
            name: {"model_name": "net", "model_args": {"num_channels": width, "dropout_rate": 0.0}}
            for name, width in (("net24", 24), ("net8", 8))
        },
        own_training={"mlp": {"epochs": 20, **ADAM, "learning_rate": 0.001}},
        own_architecture=False,
    )


# --- by name ---

# dataset -> preset -> its recipe; the first preset is the default.
RECIPES: dict[str, dict[str, Callable[[], PublishedRecipe]]] = {
    TABLES[folder][0]: {
        "paper": lambda folder=folder: published(folder),
        "fast": lambda folder=folder: fast(folder),
    }
    for folder in TABLES
} | {"digits": {"fast": digits}}


def recipe_of(dataset: str, preset: str | None) -> tuple[str, PublishedRecipe]:
    """The preset that is meant, and its recipe.

    Args:
        dataset: a data set of `RECIPES`; tiny-imagenet may be written with a hyphen.
        preset: paper or fast; None is the data set's default.

    Raises:
        ConfigError: there is no such data set or preset.
    """
    presets = RECIPES.get(dataset.replace("-", "_"))
    if presets is None:
        raise ConfigError(f"{dataset}: there is no table for it; choose {', '.join(RECIPES)}")
    preset = preset or next(iter(presets))
    if preset not in presets:
        raise ConfigError(f"--preset {preset}: {dataset} has {', '.join(presets)}")
    return preset, presets[preset]()
