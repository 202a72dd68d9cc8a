"""The job behind `sdb guard audit`: files in, a file out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdb.answers.guard import Guard
from sdb.audit.guard_learners import BUILT_IN
from sdb.audit.guarded import audit_guard
from sdb.errors import ConfigError, DataError, RunExistsError
from sdb.report.guarded import GuardAudit
from sdb.runs.guards import LABELS, NAMES, OUTPUTS, inputs_of, named_model, read_calibration
from sdb.runtime import environment, import_named, json_text, write_atomic
from sdb.wrapping.guarded import as_model


def guard_audit_job(
    folder: Path,
    examples: Path,
    *,
    model: str | None,
    output: str | None,
    token_env: str | None,
    student: str | None,
    pairs: int,
    few: int,
    seed: int,
    out: Path | None,
    overwrite: bool,
    on_progress: Callable[[int, int, str], None],
) -> GuardAudit:
    """Audit a guard on disk; see `sdb guard audit`.

    Raises:
        SDBError: as `sdb.audit_guard`; a file cannot be used; OUT exists.
    """
    if out is not None and out.exists() and not overwrite:
        raise RunExistsError(f"{out} exists; choose another name, or --overwrite")
    arrays = read_calibration(examples)
    if arrays.keys() <= {OUTPUTS, LABELS, NAMES}:
        raise DataError(
            f"{examples}: holds no inputs, which students learn from; numpy.savez(FILE, inputs=..., labels=...)"
        )
    if OUTPUTS not in arrays and model is None:
        raise ConfigError(
            f"{examples}: holds no outputs; give --model FILE.onnx, URL or package.module:function to ask"
        )
    guard = Guard.load(folder, None if model is None else as_model(named_model(model, output, token_env)))
    found = audit_guard(
        guard,
        (inputs_of(arrays), arrays[LABELS]),
        outputs=arrays.get(OUTPUTS),
        student=_student(student),
        pairs=pairs,
        few=few,
        seed=seed,
        on_progress=on_progress,
    )
    if out is not None:
        write_atomic(out, json_text(found.as_dict() | {"environment": environment()}, indent=1).encode() + b"\n")
    return found


def _student(text: str | None) -> Any:
    if text is None or ":" not in text:
        return text
    module, _, name = text.partition(":")
    try:
        return getattr(import_named(module), name)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise ConfigError(
            f"--student {text!r} cannot be imported: {error}; give {', '.join(BUILT_IN)} or package.module:factory"
        ) from error
