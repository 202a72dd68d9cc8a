"""What can be set, in words: every parameter with its values, default and help, read from the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdb.config.params import COMMANDS
from sdb.config.pictures import Pictures
from sdb.runtime import json_text

KINDS = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "object": "object",
    "null": "none",
}
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a command."""

    name: str
    values: str
    """Type and range, in words."""
    default: str
    """As params.json has it; "none" for null, "required" where there is none."""
    help: str


def parameters(command: str) -> tuple[Parameter, ...]:
    """The parameters of train, wrap or distill, in the order of their models."""
    model = COMMANDS[command]
    schemas = model.model_json_schema()["properties"]
    return tuple(
        Parameter(
            name,
            _values(schemas[name]),
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for name, field in model.model_fields.items()
    )


def _values(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_values(schema['items']).replace('whole number', 'whole numbers')}"
    if schema.get("format") == "path":
        return "path"
    limits = [f"{sign} {schema[limit]:g}" for limit, sign in LIMITS.items() if limit in schema]
    return " ".join([KINDS[schema.get("type", "object")], " and ".join(limits)]).strip()


def _default(value: Any) -> str:
    if isinstance(value, Pictures):
        value = asdict(value)
    if isinstance(value, str):
        return value
    return "none" if value is None else json_text(value, default=str)
