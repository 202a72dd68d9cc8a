"""Write experiments/<DATASET>/<RUN>/params.json from the tables below. Standard library only.

    python experiments/write.py            write all files
    python experiments/write.py --check    exit with 1 where a file differs, is missing, or is left over

Hyper-parameters are those of the published parameter files of Nasty Teacher (VITA-Group/Nasty-Teacher,
experiments/**/params.json) and of SDB (JngwenYe/SDB, experiments/CIFAR10/smb-resnet10/params.json). SDB
published one file, for CIFAR-10; on the other data sets its runs take the same values and the data set's
temperature.
"""

# ruff: noqa: T201 - it talks to the person who runs it

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
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

# --- the papers' data sets ---

MODEL_ARGS: dict[str, Params] = {"net": {"num_channels": 32, "dropout_rate": 0.0}}

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

# --- digits, a set that runs in minutes on two cores ---

WIDE: Params = {
    "model_name": "net",
    "model_args": {"num_channels": 24, "dropout_rate": 0.0},
    "dataset": "digits",
}
NARROW: Params = {
    "model_name": "net",
    "model_args": {"num_channels": 8, "dropout_rate": 0.0},
    "dataset": "digits",
}
OF_TEACHER: Params = {"teacher": "experiments/digits/teacher", "teacher_model": "net"}
OF_BOX: Params = {"teacher": "experiments/digits/box", "teacher_model": "net"}
OF_SDB: Params = {"teacher": "experiments/digits/sdb", "teacher_model": "net"}
DECOY: Params = {
    "method": "decoy",
    "start": "teacher",
    "key_kind": "weight",
    "num_decoys": 2,
    "margin": 1,
    "ce_weight": 1,
    "temperature": 4,
}
ADAM: Params = {
    "batch_size": 64,
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "cosine",
    "augment": True,
}
KD: Params = {"loss": "kd", "kd_weight": 0.9, "ce_weight": 0.1, "kd_temperature": 4}

DIGITS: dict[str, Params] = {
    "teacher": {**WIDE, "epochs": 30, **ADAM},
    "box": {**WIDE, **OF_TEACHER, **DECOY, "epochs": 60, **ADAM},
    "sdb": {
        **WIDE,
        **OF_TEACHER,
        "method": "sdb",
        "start": "teacher",
        "forward": "joint",
        "key_blend": 0.5,
        "temperature": 4,
        "disturbance_weight": 0.1,
        "preservation_weight": 1,
        "augmentation_weight": 0.001,
        "epochs": 40,
        **ADAM,
    },
    "nasty": {
        **WIDE,
        **OF_TEACHER,
        "method": "nasty",
        "start": "teacher",
        "temperature": 4,
        "disturbance_weight": 0.04,
        "epochs": 40,
        **ADAM,
    },
    "student_alone": {**NARROW, "epochs": 60, **ADAM},
    "student_label_smoothing": {**NARROW, "epochs": 60, **ADAM, "label_smoothing": LABEL_SMOOTHING},
    "from_teacher": {**NARROW, **OF_TEACHER, **KD, "epochs": 60, **ADAM},
    "thief_sdb": {**NARROW, **OF_SDB, **KD, "epochs": 60, **ADAM},
    "partner_sdb": {**NARROW, **OF_SDB, "key": "experiments/digits/sdb/key.json", **KD, "epochs": 60, **ADAM},
    "thief": {**NARROW, **OF_BOX, **KD, "epochs": 60, **ADAM},
    "partner": {**NARROW, **OF_BOX, "key": "experiments/digits/box/key.json", **KD, "epochs": 60, **ADAM},
}


def all_files() -> dict[str, Params]:
    """Every run's parameters, by its folder below experiments/."""
    files = {f"digits/{run}": params for run, params in DIGITS.items()}
    for folder in TABLES:
        files |= {f"{folder}/{run}": params for run, params in paper_runs(folder).items()}
    return files


def paper_runs(folder: str) -> dict[str, Params]:
    """The runs of one of the papers' data sets."""
    dataset, teachers, others, training, temperature, nasty_weight = TABLES[folder]
    students = unique((*others, *teachers))
    kd = {"loss": "kd", "kd_weight": 0.9, "ce_weight": 0.1, "kd_temperature": temperature}

    def model(name: str) -> Params:
        return {"model_name": name, "model_args": MODEL_ARGS.get(name, {}), "dataset": dataset}

    def trained(name: str) -> Params:
        return NET if name == "net" else training

    def taught(run: str, teacher: str) -> Params:
        return {"teacher": f"experiments/{folder}/{run}", "teacher_model": teacher}

    runs: dict[str, Params] = {}
    for name in unique((*teachers, *students)):
        runs[f"baseline/{name}"] = {**model(name), **trained(name)}
    for name in students:
        runs[f"baseline_label_smoothing/{name}"] = {
            **runs[f"baseline/{name}"],
            "label_smoothing": LABEL_SMOOTHING,
        }
    for teacher in teachers:
        plain = taught(f"baseline/{teacher}", teacher)
        runs[f"nasty/{teacher}"] = {
            **model(teacher),
            **plain,
            "method": "nasty",
            "start": "scratch",
            "temperature": temperature,
            "disturbance_weight": nasty_weight,
            **training,
        }
        runs[f"sdb/{teacher}"] = {
            **model(teacher),
            **plain,
            "method": "sdb",
            "start": "scratch",
            "forward": "separate",
            "key_blend": 0.9,
            "temperature": temperature,
            "disturbance_weight": 1,
            "preservation_weight": 1,
            "augmentation_weight": 0.001,
            **SDB,
        }
        # A fine-tuning: a third of the teacher's epochs, at a tenth of its learning rate.
        shorter = {"epochs": training["epochs"] // 3, "learning_rate": training["learning_rate"] / 10}
        runs[f"decoy/{teacher}"] = {
            **model(teacher),
            **plain,
            **DECOY,
            **training,
            **shorter,
            "schedule": "cosine",
        }
        decoy = taught(f"decoy/{teacher}", teacher)
        nasty, box = taught(f"nasty/{teacher}", teacher), taught(f"sdb/{teacher}", teacher)
        keyed = {**box, "key": f"experiments/{folder}/sdb/{teacher}/key.json"}
        for student in unique((*others, teacher)):
            for kind, asked in (
                (f"kd_normal_{teacher}", plain),
                (f"kd_nasty_{teacher}", nasty),
                (f"kd_sdb_{teacher}_keyless", box),
                (f"kd_sdb_{teacher}_keyed", keyed),
                (f"kd_decoy_{teacher}_keyless", decoy),
                (f"kd_decoy_{teacher}_keyed", {**decoy, "key": f"experiments/{folder}/decoy/{teacher}/key.json"}),
            ):
                runs[f"{kind}/{student}"] = {**model(student), **asked, **kd, **trained(student)}
    return runs


def unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each name once, in order."""
    return tuple(dict.fromkeys(names))


def text(params: Params) -> str:
    """A parameter file: one parameter a line."""
    lines = (f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in params.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Write the files, or compare them."""
    if arguments not in ([], ["--check"]):
        print("usage: python experiments/write.py [--check]", file=sys.stderr)
        return 2
    wanted = {HERE / run / "params.json": text(params) for run, params in all_files().items()}
    there = {path for folder in ("digits", *TABLES) for path in (HERE / folder).rglob("params.json")}
    left_over = sorted(there - wanted.keys())
    differing = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
    if not arguments:
        for path in differing:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        print(f"{len(wanted)} files, {len(differing)} written")
        differing = []
    for path in differing:
        print(f"{path}: missing, or not as in write.py; run python experiments/write.py", file=sys.stderr)
    for path in left_over:
        print(f"{path}: not in write.py; add it to the tables or remove it", file=sys.stderr)
    return 1 if differing or left_over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
