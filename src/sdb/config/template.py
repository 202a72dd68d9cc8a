"""A parameter file to begin with: every parameter of a command, with its help, the defaults as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from sdb.config.described import parameters
from sdb.config.params import COMMANDS, defaults_of
from sdb.runtime import json_text

WIDTH = 100
# What a file says even where it is the default, so that whoever reads it sees what it is for.
SHOWN = {"train": (), "wrap": ("method",), "distill": ("loss",)}


def template(command: str, values: Mapping[str, Any]) -> str:
    """A params.toml of train, wrap or distill.

    Args:
        command: which of them.
        values: what is set; everything else stands there as a comment, with its default.
    """
    usual = defaults_of(command)
    # What is chosen by other parameters, as a wrap's length by its start, stands there as it would be chosen.
    usual |= {n: v for n, v in COMMANDS[command](**values).model_dump(mode="json").items() if n in usual}
    given = {name: usual[name] for name in SHOWN[command]} | dict(values)
    lines = [
        f"# Parameters of `sdb {command}`. Lines that begin with #: are defaults; take the #: away to change one.",
        f"# Check the file: sdb check DIR. Run it: sdb {command} DIR. Paths are relative to the current folder.",
    ]
    listed = sorted(parameters(command), key=lambda each: each.name not in given)
    for each in listed:
        lines += [
            "",
            *textwrap.wrap(f"{each.help} ({each.values})", WIDTH, initial_indent="# ", subsequent_indent="# "),
        ]
        if each.name in given:
            lines.append(f"{each.name} = {_toml(given[each.name])}")
        elif usual[each.name] is None:
            lines.append(f"# {each.name} is not set: {each.name} = VALUE sets it")
        else:
            lines.append(f"#: {each.name} = {_toml(usual[each.name])}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A JSON value as TOML has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json_text(name)} = {_toml(each)}" for name, each in value.items()) + " }"
    return json_text(list(value) if isinstance(value, tuple) else value)
