"""Data sets, sizes and rows of the evidence table, and whether the data are what they should be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import sdb
from sdb.audit.regime import Regime
from sdb.data import Augment, Splits
from sdb.errors import DataError
from sdb.runtime import has_amx

# Defences of the table, by their name in the audit: the unprotected teacher, ours, and what there is beside it.
ROWS = {
    "none": "unprotected",
    "decoy": "our box",
    "labels_only": "top-1 server",
    "sdb": "the paper's box",
    "nasty": "nasty teacher",
    "reverse_sigmoid": "reverse sigmoid",
    "gradient_redirection": "gradient redirection",
}
CROPS_AND_FLIPS = Augment(crop_padding=4, flip=True)
# A channel's mean may differ by so much from the published one, a fraction of the full range.
NEAR = 0.002


@dataclass(frozen=True)
class Case:
    """Sizes on one data set.

    Attributes:
        data: its name for the loader.
        validation: share of the training images that is held out; share: of the others, that teacher and boxes see.
        teacher: architecture and arguments.
        epochs, box_epochs, traced_epochs: of the teacher, of what is trained around it, of the thief that is traced.
        batch_size, rate: of teacher and defences.
        regime: what a thief has.
        students: architectures by name; the first is also the one that is traced.
        student_epochs, student_batch, student_rate: of students.
        pairs: per seed, row and student.
        images: training and test images that the data set has.
        means: published means of its channels; none where there are none to compare with.
    """

    data: str
    share: float
    validation: float
    teacher: tuple[str, dict[str, Any]]
    epochs: int
    box_epochs: int
    traced_epochs: int
    batch_size: int
    rate: float
    regime: Regime
    students: dict[str, tuple[str, dict[str, Any]]]
    student_epochs: int
    student_batch: int
    student_rate: float
    pairs: int
    images: tuple[int, int]
    means: tuple[float, ...] = ()

    def precision(self) -> Literal["float32", "bfloat16"]:
        """bfloat16 where the processor multiplies it in hardware and images are large enough to gain by it."""
        fast = torch.cuda.is_available() or has_amx()
        return "bfloat16" if fast and self.data != "digits" else "float32"


SMALL_NET, MLP = ("net", {"num_channels": 8}), ("mlp", {})
DIGITS = Case(
    data="digits",
    share=1.0,
    validation=0.231,
    teacher=("net", {"num_channels": 24}),
    epochs=25,
    box_epochs=50,
    traced_epochs=20,
    batch_size=64,
    rate=0.003,
    regime=Regime(150),
    students={"net": SMALL_NET, "mlp": MLP},
    student_epochs=60,
    student_batch=32,
    student_rate=0.01,
    pairs=8,
    images=(1297, 500),
)
FASHION = replace(
    DIGITS,
    data="fashion_mnist",
    share=0.15,
    validation=0.1,
    teacher=("net", {"num_channels": 16}),
    epochs=12,
    box_epochs=20,
    traced_epochs=10,
    regime=Regime(300),
    pairs=6,
    images=(60_000, 10_000),
    means=(0.2860,),
)
CIFAR10 = Case(
    data="cifar10",
    share=1.0,
    validation=0.1,
    teacher=("preresnet20", {}),
    epochs=20,
    box_epochs=6,
    traced_epochs=8,
    batch_size=128,
    rate=0.005,
    regime=Regime(2000),
    students={"net": ("net", {"num_channels": 16}), "mlp": MLP},
    student_epochs=25,
    student_batch=64,
    student_rate=0.005,
    pairs=3,
    images=(50_000, 10_000),
    means=(0.4914, 0.4822, 0.4465),
)
CIFAR100 = replace(
    CIFAR10,
    data="cifar100",
    teacher=("preresnet32", {}),
    regime=Regime(5000),
    means=(0.5071, 0.4865, 0.4409),
)


def _on_gpu(case: Case, student_batch: int) -> Case:
    """With networks of the papers: a ResNet-18 as teacher, students of two families."""
    networks: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ("net", "preresnet20")}
    sizes = {"epochs": 15, "box_epochs": 5, "batch_size": 256, "student_batch": student_batch}
    return replace(case, teacher=("resnet18", {}), students=networks, **sizes)


# For tests: everything in seconds.
TINY = replace(
    DIGITS, share=0.2, epochs=2, box_epochs=2, traced_epochs=1, regime=Regime(60), student_epochs=2, pairs=3
)
# The first that have results lead docs/results.md.
CASES = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "cifar10-gpu": _on_gpu(CIFAR10, 64),
    "cifar100-gpu": _on_gpu(CIFAR100, 128),
    "fashion_mnist": FASHION,
    "digits": DIGITS,
    "tiny": TINY,
}


def checked(case: Case, root: Path | None, seed: int) -> Splits:
    """The data of one seed.

    Class folders (ROOT/train/CLASS/*.png, ROOT/test/...) are taken for the data set of the case, augmented as it is.

    Raises:
        DataError: there are too few or too many images, or the means of the channels are not the published ones.
    """
    folders = root is not None and (root / "train").is_dir()
    data = sdb.load_data(
        "folder" if folders else case.data,
        root=root,
        seed=seed,
        subset_percent=case.share,
        validation_fraction=case.validation,
    )
    if folders:
        data = replace(data, name=case.data, augment=CROPS_AND_FLIPS)
    # Validation images are carved off before the share is taken, of each class, and rounded.
    found = len(data.train) + len(data.validation)
    wanted = case.images[0] * (case.validation + case.share * (1 - case.validation))
    if abs(found - wanted) > data.num_classes or len(data.test) != case.images[1]:
        raise DataError(
            f"{case.data}: {found:,} training and {len(data.test):,} test images, {wanted:,.0f} and "
            f"{case.images[1]:,} are expected: is all of it in {root}?"
        )
    if case.means:
        images = np.concatenate([data.train.images, data.validation.images])
        means = images.mean(axis=(0, 2, 3)) / 255
        if len(means) != len(case.means) or np.abs(means - case.means).max() > NEAR / case.share**0.5:
            shown = ", ".join(f"{mean:.4f}" for mean in means)
            raise DataError(f"{case.data}: channel means are {shown}, published are {case.means}: other images?")
    return data
