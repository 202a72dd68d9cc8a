"""The reference's names for parameters, and how a fault of a parameter is told."""

from __future__ import annotations

import difflib

import pydantic
from pydantic import BaseModel

from sdb.runtime import json_text

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

# What other frameworks call some parameters -> ours, the first that a command has; only to say "did you mean".
ELSEWHERE = {
    **dict.fromkeys(("lr", "base_lr", "init_lr", "initial_lr", "max_lr", "lr0", "step_size"), ("learning_rate",)),
    **dict.fromkeys(("wd", "l2", "decay"), ("weight_decay",)),
    **dict.fromkeys(("bs", "bsz", "batch", "train_batch_size", "per_device_train_batch_size"), ("batch_size",)),
    **dict.fromkeys(("n_epochs", "max_epochs", "num_train_epochs", "nb_epochs", "ep"), ("epochs",)),
    **dict.fromkeys(("temp", "tau", "T", "t"), ("kd_temperature", "temperature")),
    **dict.fromkeys(("opt", "optim"), ("optimizer",)),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_scheduler_type", "sched", "lr_schedule"), ("schedule",)),
    **dict.fromkeys(("milestones", "lr_steps"), ("schedule",)),
    **dict.fromkeys(("arch", "model", "network", "net", "architecture", "backbone"), ("model_name",)),
    **dict.fromkeys(("data", "data_set", "dataset_name"), ("dataset",)),
    **dict.fromkeys(("root", "data_dir", "data_path", "datadir"), ("data_root",)),
    **dict.fromkeys(("amp", "fp16", "bf16", "dtype", "mixed_precision"), ("precision",)),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad", "max_grad_norm", "gradient_clip_val"), ("clip_norm",)),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), ("accumulation_steps",)),
    **dict.fromkeys(("gradient_checkpointing", "grad_checkpointing"), ("activation_checkpointing",)),
    **dict.fromkeys(("random_state", "random_seed", "manual_seed", "rng"), ("seed",)),
    **dict.fromkeys(("gpu", "use_cuda", "accelerator"), ("device",)),
    **dict.fromkeys(("smoothing", "ls"), ("label_smoothing",)),
    **dict.fromkeys(("beta1", "mom"), ("momentum",)),
    **dict.fromkeys(("teacher_path", "teacher_checkpoint", "checkpoint", "ckpt", "pretrained"), ("teacher",)),
    **dict.fromkeys(("val_split", "val_fraction", "val_ratio", "validation_split"), ("validation_fraction",)),
    **dict.fromkeys(("img_size", "input_size", "resolution"), ("image_size",)),
}


def nearest_name(name: str, model: type[BaseModel]) -> str | None:
    """The parameter of a model that an unknown name is likely to mean."""
    for ours in ELSEWHERE.get(name, ELSEWHERE.get(name.lower(), ())):
        if ours in model.model_fields:
            return ours
    known = [*model.model_fields, *ALIASES, *MODEL_ARGUMENTS]
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def our_name(name: str, command: str) -> str:
    """Our name for a parameter of either name."""
    if name == "temperature" and command == "distill":
        return "kd_temperature"
    return "device" if name == "cuda" else ALIASES.get(name, name)


def describe_faults(error: pydantic.ValidationError, model: type[BaseModel]) -> str:
    """All faults of a validation in one line: field, what was given, what is allowed, nearest known name."""
    parts: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        # A union reports once for each member; one line a field is enough.
        name = str(fault["loc"][0]) if fault["loc"] else "parameters"
        if fault["type"] == "extra_forbidden":
            near = nearest_name(name, model)
            text = f"unknown parameter{f', did you mean {near!r}?' if near else ''}"
        elif fault["type"] == "missing":
            text = "is missing"
        elif fault["type"] == "value_error":  # a check of ours, which says itself what it may repeat
            text = str(fault["ctx"]["error"])
        else:
            text = f"{fault['msg'][0].lower()}{fault['msg'][1:]} (got {short(fault['input'])})"
        parts[name] = f"{parts[name]}, or {text}" if name in parts else text
    return "; ".join(f"{name}: {text}" for name, text in parts.items())


def short(value: object) -> str:
    """A value as JSON, cut where it is long."""
    try:
        text = json_text(value, default=str)
    except ValueError:  # not finite
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
