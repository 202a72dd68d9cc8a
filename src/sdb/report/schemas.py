"""Claims of older schemas, one reader each: brought into today's form; what they do not say stays unsaid."""

from collections.abc import Callable
from typing import Any

from sdb.errors import ConfigError

# The bar of claims without pairs.
LABEL_SMOOTHING = "label smoothing"
# Of the claims that `sdb audit` writes today.
SCHEMA = 3


def _from_1(claim: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 did not say how near to the teacher an attack came in its positive control."""
    controls = claim.get("controls")
    if not isinstance(controls, dict):
        return claim  # the check that follows names it
    added = {"closed": None, "closed_needed": None}
    changed = {
        name: control | {"positive": added | control["positive"]}
        if isinstance(control, dict) and isinstance(control.get("positive"), dict)
        else control
        for name, control in controls.items()
    }
    return claim | {"controls": changed}


def _from_2(claim: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 knew one bar, label smoothing, a share of the data instead of numbers of images, and no pairs."""
    references, data, share = claim.get("references"), claim.get("data"), claim.get("data_share")
    named = isinstance(references, dict) and {"alone", "label_smoothing"} <= references.keys()
    if not named or not isinstance(data, dict) or not isinstance(share, int | float) or not 0 < share <= 1:
        return claim  # the check that follows names it
    kept = {name: value for name, value in references.items() if name not in ("alone", "label_smoothing")}
    bar = {LABEL_SMOOTHING: references["label_smoothing"], "alone": references["alone"]}
    regime = {"labelled": data.get("train"), "unlabelled": 0, "validation": 0}
    old = {name: value for name, value in claim.items() if name != "data_share"}
    added = {"regime": regime, "given": False, "pairs": None, "references": kept | {"bar": bar}}
    return old | added


# From each older schema to the next one.
READERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}


def of_today(claim: dict[str, Any]) -> dict[str, Any]:
    """A claim of any schema in the form of today's.

    Raises:
        ConfigError: the schema is none that this version knows.
    """
    schema = claim.get("schema")
    if type(schema) is not int or not (schema in READERS or schema == SCHEMA):
        newer = type(schema) is int and schema > SCHEMA
        known = ", ".join(str(each) for each in (*READERS, SCHEMA))
        advice = "read it with the version of sdb that wrote it" if newer else "run `sdb audit` again"
        shown = str(schema)[:20] if type(schema) is int else "no number"
        raise ConfigError(f"schema: {shown}, this version of sdb reads {known}: {advice}")
    while schema in READERS:
        claim, schema = READERS[schema](claim), schema + 1
    return claim | {"schema": SCHEMA}
