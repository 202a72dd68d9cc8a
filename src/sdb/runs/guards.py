"""Guards on disk: made from a file of labelled examples, and served in front of a model."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdb.answers.guard import Guard
from sdb.errors import ConfigError, DataError, DataNotFoundError
from sdb.keys import Owner
from sdb.runtime import WEIGHTS_LIMIT, check_regular, import_named
from sdb.wrapping.guarded import guard

OUTPUTS, LABELS, NAMES, INPUTS = "outputs", "labels", "class_names", "inputs"


def new_guard(
    calibration: Path,
    *,
    out: Path,
    owner_file: Path,
    partners: Sequence[str],
    model: str | None,
    output: str | None,
    token_env: str | None,
    levels: int,
    bits: float,
    tie_budget: float,
    version: str | None,
    overwrite: bool,
) -> Guard:
    """Make a guard and write it; see `sdb guard new`.

    Raises:
        SDBError: as `sdb.guard`; the calibration or the owner's file cannot be used; OUT exists.
    """
    owner, arrays = Owner.load(owner_file), read_calibration(calibration)
    if OUTPUTS not in arrays and model is None:
        raise ConfigError(
            f"{calibration}: holds inputs; give --model FILE.onnx, URL or package.module:function to ask"
        )
    given = arrays[OUTPUTS] if OUTPUTS in arrays else inputs_of(arrays)
    names = arrays.get(NAMES)
    made = guard(
        None if model is None else named_model(model, output, token_env),
        (given, arrays[LABELS]),
        owner=owner,
        partners=partners,
        class_names=None if names is None else [str(name) for name in names],
        confidence_levels=levels,
        confidence_bits=bits,
        tie_budget=tie_budget,
        outputs=OUTPUTS in arrays,
        version=version,
    )
    made.save(out, overwrite=overwrite)
    return made


def inputs_of(arrays: Mapping[str, np.ndarray]) -> Any:
    """The inputs of a calibration: an array, or several by name."""
    columns = {name[len(INPUTS) + 1 :]: each for name, each in arrays.items() if name.startswith(f"{INPUTS}.")}
    return columns or arrays[INPUTS]


def named_model(text: str, output: str | None, token_env: str | None) -> Any:
    """What `--model` names, as `sdb.guard` takes it.

    Raises:
        ConfigError: it cannot be imported.
        SDBError: a served model cannot be asked.
    """
    if text.startswith(("http://", "https://")):
        from sdb.remote.any_model import asked_model

        return asked_model(text, output, token_env)
    if ":" not in text or Path(text).exists():
        return Path(text)
    module, _, name = text.partition(":")
    try:
        return getattr(import_named(module), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"--model {text!r} cannot be imported: {error}") from error


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file: labels, and outputs or inputs.

    Raises:
        DataNotFoundError: it is missing.
        DataError: it is no .npz file of plain arrays, or lacks some.
    """
    try:
        check_regular(path, WEIGHTS_LIMIT)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataNotFoundError(
            f"{path}: no such file; numpy.savez(FILE, outputs=..., labels=...) makes one"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(
            f"{path}: no .npz file of plain arrays ({error}); numpy.savez(FILE, outputs=..., labels=...)"
        ) from None
    has_inputs = any(name == INPUTS or name.startswith(f"{INPUTS}.") for name in arrays)
    if LABELS not in arrays or not (OUTPUTS in arrays or has_inputs):
        raise DataError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; expected labels, and outputs or inputs (several "
            "inputs as inputs.NAME): numpy.savez(FILE, outputs=..., labels=...)"
        )
    return arrays
