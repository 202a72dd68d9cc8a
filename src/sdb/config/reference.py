"""What a published parameter file of the reference means beyond what it says.

The reference's scripts fix what our commands have switches for. A file that speaks the reference's language is taken
for a run of its scripts, so the switches stand as there; whatever is said with `--set`, or in the file, wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdb.config.names import ALIASES, IGNORED, MODEL_ARGUMENTS, our_name

# Names of a wrap's file that say which of the reference's methods it is for.
OF_A_WRAP = ("adversarial_model", "adversarial_resume", "lamb", "eta")
OF_THE_PAPER = ("key_blend", "augmentation_weight")
METHODS = {"sdb": "SDB's train_smb.py", "nasty": "Nasty Teacher's train_nasty.py"}
# How its scripts run, whatever the file says.
RUNNING = {"precision": "float32", "normalisation": "reference"}
WRAPPING = {"start": "scratch", "forward": "separate"}
FITTING = {"optimizer": "auto", "batch_size": 128}  # also where a box is to start from its teacher


def meaning(
    file: Mapping[str, Any], changes: Mapping[str, Any], command: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a file leaves to the reference's code, under our names, and in words why.

    Args:
        file: the parameters of a file, by either name.
        changes: what is set on top of it.
        command: train, wrap or distill.

    Returns:
        Values for what neither says; empty for a file of ours.
    """
    theirs = [name for name in file if name in ALIASES or name in IGNORED or name == "cuda"]
    if not theirs:
        return {}, ()
    given = {our_name(name, command): value for name, value in (*file.items(), *changes.items())}
    values: dict[str, Any] = {}
    because: list[str] = []

    def take(found: Mapping[str, Any], reason: str) -> None:
        new = {name: value for name, value in found.items() if name not in given}
        if new:
            values.update(new)
            because.append(f"{', '.join(f'{name}={_short(value)}' for name, value in new.items())}: {reason}")

    marks = [name for name in theirs if name in OF_A_WRAP]
    if command == "wrap" and "method" not in file and marks:
        paper = [name for name in (*file, *changes) if our_name(name, command) in OF_THE_PAPER]
        method = "sdb" if paper else "nasty"
        told = f"has {paper[0]}, which only SDB has" if paper else f"has {marks[0]}, and neither lamb nor eta"
        take({"method": method}, f"the file {told}")
        method = given.get("method", method)
        if method in METHODS:
            take(WRAPPING, f"as in {METHODS[method]}")
            take(FITTING, f"as in {METHODS[method]}")
    if command != "wrap" or given.get("method", values.get("method")) in METHODS:
        take(RUNNING, f"as the reference runs; {theirs[0]} is one of its names")
    if given.get("teacher_model") == "net":
        arguments = {name: given[name] for name in MODEL_ARGUMENTS if name in given}
        take({"teacher_args": arguments} if arguments else {}, "the reference builds both nets with these")
    return values, tuple(because)


def student_arguments(ours: dict[str, Any], implied: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters without those arguments of a teacher's `net` that another student does not take."""
    name = ours.get("model_name")
    if "teacher_args" not in implied or not isinstance(name, str) or name == "net" or ":" in name:
        return ours
    kept = {n: v for n, v in ours.get("model_args", {}).items() if n not in implied["teacher_args"]}
    return {**ours, "model_args": kept}


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {each}" for name, each in value.items()) + "}"
    return str(value)
