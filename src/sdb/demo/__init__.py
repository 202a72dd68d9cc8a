"""The demo: the main job, small and whole, on embedded data. The runs that it is made of are in runs.

Every network is an ordinary run folder under OUT, made by the same jobs as `sdb train`, `wrap` and `distill`, so each
can be looked at, evaluated and continued with those commands. `plan`: what is run. `students`: those with few images,
in pairs. `facts`: what the record holds. `terminal`: what is printed.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from sdb import config
from sdb.demo.facts import make_record, summary
from sdb.demo.plan import METHODS, stages, wrong_key
from sdb.demo.students import FOLDER, train_students
from sdb.demo.terminal import show
from sdb.errors import ConfigError, RunExistsError, StorageError
from sdb.keys import Key
from sdb.report import write_report
from sdb.runs import jobs
from sdb.runs.resolve import KEY, OWNER, load_data
from sdb.runtime import folder_lock, json_text, write_atomic
from sdb.training.progress import ShowProgress, ShowTasks


def run_demo(
    out: Path,
    *,
    seed: int,
    method: str,
    dataset: str,
    data_root: Path | None,
    json_file: Path | None,
    overwrite: bool,
) -> dict[str, Any]:
    """Run every stage, print the outcome, write OUT/record.json and OUT/report.html; returns the `--json` summary.

    Raises:
        ConfigError: an unknown method.
        RunExistsError: OUT holds a demo already and `overwrite` is false.
        StorageError: OUT or `json_file` cannot be written.
    """
    if method not in METHODS:
        raise ConfigError(
            f"method: {method!r} is none of {', '.join(METHODS)}; nasty stands beside it in every demo"
        )
    if (out / "teacher").exists() and not overwrite:
        raise RunExistsError(f"{out} already holds a demo: add --overwrite to discard it, or use another --out")
    if json_file is not None:  # refused now, not after the work
        try:
            json_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {json_file}: {error.strerror}; choose another --json") from error
    began = time.monotonic()
    plan = stages(out, seed=seed, method=method, dataset=dataset, data_root=data_root)
    results: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    with folder_lock(out):
        kind = "weight" if method == "decoy" else "image"
        Key.generate(kind, blend=0.5).save(wrong_key(out), overwrite=True)
        # Keys of a demo before go with its boxes: another method needs another kind.
        for place in ("box", "paper"):
            for name in (KEY, OWNER):
                (out / place / name).unlink(missing_ok=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        for number, stage in enumerate(plan, start=1):
            started = time.monotonic()
            folder = out / stage.name
            write_atomic(folder / "params.json", json_text(stage.params, indent=1).encode() + b"\n")
            params = config.load(folder, stage.command)
            label = f"[{number}/{len(plan) + 1}] {stage.name}"
            results[stage.name] = jobs.JOBS[stage.command](
                folder, params, resume=False, overwrite=overwrite, progress=ShowProgress(label)
            )
            seconds[stage.name] = time.monotonic() - started
        started = time.monotonic()
        shown = ShowTasks(f"[{len(plan) + 1}/{len(plan) + 1}] students")
        try:
            scores = train_students(out, seed, shown.on_progress)
        finally:
            shown.close()
        seconds["students"] = time.monotonic() - started
        data = load_data(config.load(out / "teacher", "train"), seed)
        record = make_record(
            out, plan, results, scores, seconds, data, seed=seed, method=method, total=time.monotonic() - began
        )
        write_atomic(out / "record.json", json_text(record, indent=1).encode() + b"\n")
        write_report(record, out / "report.html")
        answer = summary(record)
        if json_file is not None:
            write_atomic(json_file, json_text(answer, indent=1).encode() + b"\n")
    show(record, out)
    return answer
