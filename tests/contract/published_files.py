"""The parameter files that were published, as data: every one of VITA-Group/Nasty-Teacher's, and JngwenYe/SDB's one.

Numbers and names as they stand in their `experiments/**/params.json`; the files repeat each other, so they are made
from what differs.
"""

from __future__ import annotations

from typing import Any

File = dict[str, Any]

RUN: File = {"batch_size": 128, "num_workers": 4, "augmentation": 1, "cuda": 1}
CIFAR10: File = {
    "learning_rate": 0.1,
    "schedule": [80, 120],
    "gamma": 0.1,
    "num_epochs": 160,
    "dataset": "cifar10",
}
HUNDRED: File = {"learning_rate": 0.1, "schedule": [60, 120, 160], "gamma": 0.2, "num_epochs": 200}
CNN: File = {
    **{"model_name": "net", "num_channels": 32, "dropout_rate": 0.0},
    **{"learning_rate": 1e-3, "schedule": [999], "gamma": 0.1, "num_epochs": 100, "dataset": "cifar10"},
}
# folder -> how a network is trained, temperature, Nasty Teacher's weight, baselines, students of each teacher
SETS: dict[str, tuple[File, int, float, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "CIFAR10": (
        CIFAR10,
        4,
        0.04,
        ("cnn", "preresnet20", "preresnet32", "resnet18", "resnext29"),
        {"resnet18": ("cnn", "preresnet20", "preresnet32")},
    ),
    **{
        folder: (
            {**HUNDRED, "dataset": dataset},
            20,
            weight,
            ("mobilenetv2", "resnet18", "resnet50", "resnext29", "shufflenetv2"),
            {
                "resnet18": ("mobilenetv2", "shufflenetv2"),
                "resnet50": ("mobilenetv2", "resnet18", "shufflenetv2"),
                "resnext29": ("mobilenetv2", "resnet18", "shufflenetv2"),
            },
        )
        for folder, dataset, weight in (("CIFAR100", "cifar100", 0.005), ("TinyImageNet", "tiny_imagenet", 0.01))
    },
}


def published() -> dict[str, File]:
    """Every file's content by its folder below experiments/."""
    files: dict[str, File] = {}
    for folder, (training, temperature, weight, baselines, students) in SETS.items():

        def network(name: str, training: File = training) -> File:
            return {**RUN, **(CNN if name == "cnn" else {**training, "model_name": name})}

        def checkpoint(run: str, folder: str = folder) -> str:
            return f"experiments/{folder}/{run}/best_model.tar"

        for name in baselines:
            files[f"{folder}/baseline/{name}"] = network(name)
        for teacher, names in students.items():
            nasty = f"kd_nasty_{teacher}/nasty_{teacher}"
            files[f"{folder}/{nasty}"] = {
                **network(teacher),
                **{"adversarial_model": teacher, "adversarial_resume": checkpoint(f"baseline/{teacher}")},
                **{"temperature": temperature, "weight": weight},
            }
            for kind, run in (("normal", f"baseline/{teacher}"), ("nasty", nasty)):
                for name in names:
                    files[f"{folder}/kd_{kind}_{teacher}/{name}"] = {
                        **network(name),
                        **{"teacher_model": teacher, "teacher_resume": checkpoint(run)},
                        **{"temperature": temperature, "alpha": 0.9},
                    }
    files["CIFAR10/smb-resnet10"] = {
        **files["CIFAR10/kd_nasty_resnet18/nasty_resnet18"],
        **{"num_epochs": 200, "weight": 1, "lamb": 0.9, "eta": 0.001},
    }
    return files
