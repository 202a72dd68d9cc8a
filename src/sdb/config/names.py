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


def our_name(name: str, command: str) -> str:
    """Our name for a parameter of either name."""
    if name == "temperature" and command == "distill":
        return "kd_temperature"
    return "device" if name == "cuda" else ALIASES.get(name, name)


def describe_faults(error: pydantic.ValidationError, model: type[BaseModel]) -> str:
    """All faults of a validation in one line: field, what was given, what is allowed, nearest known name."""
    known = [*model.model_fields, *ALIASES, *MODEL_ARGUMENTS]
    parts: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        # A union reports once for each member; one line a field is enough.
        name = str(fault["loc"][0]) if fault["loc"] else "parameters"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, known, n=1)
            text = f"unknown parameter{f', did you mean {near[0]!r}?' if near else ''}"
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
