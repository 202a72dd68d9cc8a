"""Reading parameters: one strict reader for files, `--set` values and the reference's names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdb.config.names import ALIASES, IGNORED, MODEL_ARGUMENTS, our_name, short
from sdb.config.params import COMMANDS, DistillParams, WrapParams
from sdb.errors import ConfigError
from sdb.files import JSON_LIMIT, parse_json, read_bytes


def load(folder: Path | str, command: str, overrides: Sequence[str] = ()) -> Any:
    """Read and validate DIR/params.json with `--set` values on top.

    Raises:
        ConfigError: the file is missing or broken, or any field is unknown or out of range; all faults in one message.
    """
    path = Path(folder) / "params.json"
    values, changes = read_json(path), parse_overrides(overrides)
    # A --set value wins over the file's whichever of the two names each uses.
    changed = {our_name(name, command) for name in changes}
    kept = {name: value for name, value in values.items() if our_name(name, command) not in changed}
    return validate(kept | changes, command, str(path))


def guess_command(folder: Path) -> str:
    """Which command a params.json is for, by the fields it has; where only a teacher is named, by what that is."""
    values = {ALIASES.get(name, name): value for name, value in read_json(folder / "params.json").items()}
    if values.keys() & {"kd_weight", "kd_temperature", "loss", "labels", "teacher_url"}:
        return "distill"
    if "teacher" not in values:
        return "train"
    distills, wraps = DistillParams.model_fields.keys(), WrapParams.model_fields.keys()
    if values.keys() & (distills - wraps):
        return "distill"
    if values.keys() & (wraps - distills):
        return "wrap"
    # A box is not wrapped again.
    teacher = Path(str(values["teacher"]))
    if teacher.suffix == ".box" and teacher.is_file():
        return "distill"
    return "distill" if any((place / "box.json").is_file() for place in (teacher, teacher / "box")) else "wrap"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: missing, unreadable, not JSON or not an object.
    """
    try:
        values = parse_json(read_bytes(path, JSON_LIMIT), finite=False)  # an old run's results may hold NaN
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one, or copy one from experiments/") from None
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


def validate(values: dict[str, Any], command: str, source: str) -> Any:
    """One dictionary of parameters, by our names or the reference's, to the command's frozen model."""
    ours = canonical(values, command, source)
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
    # Nasty Teacher's published files have no method and no key; the reference's SDB file has lamb and eta.
    published = bool({"adversarial_model", "adversarial_resume", "lamb", "eta"} & values.keys())
    if command == "wrap" and published and "method" not in result:
        result["method"] = "sdb" if {"key_blend", "augmentation_weight"} & result.keys() else "nasty"
    return result
