"""Reading parameters: one strict reader for files, `--set` values and the reference's names."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdb.config.names import ALIASES, IGNORED, MODEL_ARGUMENTS, our_name, short
from sdb.config.params import COMMANDS, DistillParams, WrapParams
from sdb.config.reference import meaning, student_arguments
from sdb.errors import ConfigError
from sdb.runtime import JSON_LIMIT, parse_json, read_bytes

PARAMS = ("params.json", "params.toml")  # what a run folder is asked for in, one of the two
RESOLVED = "params.resolved.json"  # of a run folder: every parameter that the run uses
# The checkpoints that a run leaves, and the reference's names, which stand for them.
CHECKPOINTS = ("last.safetensors", "best.safetensors", "last_model.tar", "best_model.tar")
# Whose file it is, in words.
KINDS = {"train": "training's", "wrap": "wrap's", "distill": "student's"}


def load(folder: Path | str, command: str, overrides: Sequence[str] = (), *, resume: bool = False) -> Any:
    """Read and validate DIR/params.json, or params.toml, with `--set` values on top.

    Args:
        folder: holds one of them.
        command: train, wrap or distill.
        overrides: `KEY=VALUE`.
        resume: take what a run in the folder was started with in place of the file.

    Raises:
        ConfigError: the file is missing or broken, or any field is unknown or out of range; all faults in one message.
    """
    folder = Path(folder)
    path, values, changes = _read(folder, overrides, resume)
    implied, _ = meaning(values, changes, command)
    # A --set value wins over the file's whichever of the two names each uses.
    changed = {our_name(name, command) for name in changes}
    kept = {name: value for name, value in values.items() if our_name(name, command) not in changed}
    try:
        return validate(kept | changes, command, str(path), implied)
    except ConfigError:
        _check_command(values, command, folder, path)
        raise


def inferred(folder: Path, command: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """What a file of the reference leaves to the reference's code, and why: a line each, none for a file of ours."""
    _, values, changes = _read(folder, overrides, resume=False)
    return meaning(values, changes, command)[1]


# What a run fills in from network and machine, and what stands there until then.
LEFT_OPEN = {"learning_rate": None, "precision": "auto"}


def differing(
    folder: Path, params: Any, command: str, overrides: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """By name, what resumed parameters have and what DIR/params.json says now; empty where that cannot be read."""
    try:
        now = load(folder, command, overrides).model_dump(mode="json")
    except ConfigError:
        return {}
    taken = params.model_dump(mode="json")
    now = filled_as(now, taken)
    return {n: (value, now[n]) for n, value in taken.items() if value != now[n]}


def filled_as(parameters: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, those that are left open as a run has filled them in: that is no difference."""
    left_open = {
        name for name, value in LEFT_OPEN.items() if parameters.get(name, ...) == value and name in before
    }
    return {name: before[name] if name in left_open else value for name, value in parameters.items()}


def _read(folder: Path, overrides: Sequence[str], resume: bool) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    begun = folder / RESOLVED
    path = begun if resume and begun.exists() else params_file(folder)
    return path, read_params(path), parse_overrides(overrides)


def params_file(folder: Path) -> Path:
    """The parameter file of a run folder, params.json or params.toml.

    Raises:
        ConfigError: neither is there, or both are.
    """
    found = [folder / name for name in PARAMS if (folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{folder}: holds {' and '.join(PARAMS)}, and only one can be meant: remove one of them")
    if not found and not (folder / PARAMS[0]).exists():
        raise ConfigError(f"{folder / PARAMS[0]}: no such file, and no {PARAMS[1]}; sdb init {folder} writes one")
    return found[0] if found else folder / PARAMS[0]


def read_params(path: Path) -> dict[str, Any]:
    """The parameters in a file, JSON or, by its name, TOML.

    Raises:
        ConfigError: missing, unreadable, or of another form.
    """
    if path.suffix != ".toml":
        return read_json(path)
    try:
        return tomllib.loads(read_bytes(path, JSON_LIMIT).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error or 'nested too deeply'}") from None


def _check_command(values: Mapping[str, Any], command: str, folder: Path, path: Path) -> None:
    """Refuse a file that is for another command, by what only that has."""
    other, _ = guess(values)
    names = {our_name(name, other) for name in values}
    if other != command and names & (COMMANDS[other].model_fields.keys() - COMMANDS[command].model_fields.keys()):
        raise ConfigError(f"{path}: this is a {KINDS[other]} file: sdb {other} {folder}") from None


def guess_command(folder: Path) -> str:
    """Which command a folder's parameters are for, by their names; where only a teacher is named, by what that is."""
    return guess(read_params(params_file(folder)))[0]


def guess(given: Mapping[str, Any]) -> tuple[str, str]:
    """Which command some parameters are for, and in words why."""
    names = {ALIASES.get(name, name): name for name in given}
    distills, wraps = DistillParams.model_fields.keys(), WrapParams.model_fields.keys()
    first = ("kd_weight", "kd_temperature", "loss", "labels", "teacher_url")
    if known := next((names[each] for each in first if each in names), None):
        return "distill", f"it has {known}"
    if "teacher" not in names:
        return "train", "it names no teacher"
    # A student's file of the reference has a temperature too.
    for command, own in (("distill", distills - wraps), ("wrap", wraps - distills - {"temperature"})):
        if known := next((name for each, name in names.items() if each in own), None):
            return command, f"it has {known}"
    for command, name in (("wrap", "adversarial_resume"), ("distill", "teacher_resume")):
        if name in given:
            return command, f"it has {name}"
    # A box is not wrapped again.
    teacher = Path(str(given[names["teacher"]]))
    near = teacher.parent if teacher.name in CHECKPOINTS else teacher
    if (teacher.suffix == ".box" and teacher.is_file()) or any(
        (place / "box.json").is_file() for place in (teacher, near / "box")
    ):
        return "distill", "its teacher is a box"
    return "wrap", "it names a teacher, and nothing that only a student has"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: missing, unreadable, not JSON or not an object.
    """
    try:
        values = parse_json(read_bytes(path, JSON_LIMIT), finite=False)  # an old run's results may hold NaN
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; correct the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a file of parameters: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, a JSON object of parameters is expected")
    return values


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` strings to a dictionary; a value is JSON where it parses, else text."""
    values: dict[str, Any] = {}
    for item in overrides:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {item!r}: expected KEY=VALUE, for example --set epochs=10")
        try:
            values[name] = parse_json(text, finite=False)  # NaN is refused by its field
        except ValueError:
            values[name] = text
    return values


def validate(values: dict[str, Any], command: str, source: str, implied: Mapping[str, Any] | None = None) -> Any:
    """One dictionary of parameters, by our names or the reference's, to the command's frozen model.

    `implied` is what the file that they come from leaves to the reference's code; by default, they are the file.
    """
    if implied is None:
        implied, _ = meaning(values, {}, command)
    ours = student_arguments({**implied, **canonical(values, command, source)}, implied)
    try:
        return COMMANDS[command](**ours)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def canonical(values: dict[str, Any], command: str, source: str) -> dict[str, Any]:
    """The same parameters under our names."""
    result: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in values.items():
        if name in IGNORED:
            continue
        if name in MODEL_ARGUMENTS:
            name = f"model_args.{name}"
        if "." in name:  # --set model_args.num_channels=8
            outer, _, inner = name.partition(".")
            if not isinstance(result.get(outer, {}), dict):
                raise ConfigError(f"{source}: {name}: {outer} has no parts (it is {short(result[outer])})")
            result[outer] = {**result.get(outer, {}), inner: value}
            given.setdefault(outer, name)
            continue
        ours = our_name(name, command)
        if name == "cuda":  # the reference replaces it by "is there a GPU"; 0 is honoured here
            value = "auto" if value else "cpu"
        if ours == "schedule" and isinstance(value, list):
            value = tuple(value)
        if name == "augmentation" and value in (0, 1):
            value = bool(value)
        if ours in result and result[ours] != value and ours != "model_args":
            raise ConfigError(f"{source}: {given[ours]} and {name} are one parameter, with two values; keep one")
        given[ours] = name
        result[ours] = (
            {**result.get(ours, {}), **value} if ours == "model_args" and isinstance(value, dict) else value
        )
    return result
