"""Running an audit: its folder and its tasks; what is finished is never done again."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from sdb.audit.attacks.attack import Attack
from sdb.audit.audit_seed import AuditSeed, Subject
from sdb.audit.cells import OURS, Task, do, needs_of, stages
from sdb.audit.defences import DEFENCES
from sdb.audit.defences.defence import digest_of
from sdb.audit.plan import BOX, PRESETS, AuditSettings, attacks_of, defences_of, runs_everywhere
from sdb.box.boxfile import read_box_files
from sdb.config import read_json
from sdb.data import Splits
from sdb.errors import ConfigError, RunExistsError
from sdb.keys import Key
from sdb.models.checkpoint import load_classifier
from sdb.runs.tasks import OnProgress, Where, Work, run
from sdb.runtime import environment, json_text, write_atomic

RESOLVED, WORK, CLAIM, REPORT = "params.resolved.json", "work", "claim.json", "report.html"


def columns_of(settings: AuditSettings, subject: Subject) -> list[str]:
    """The defences of an audit, the audited box first."""
    made = defences_of(settings)
    if subject.box is None and OURS not in made:
        made |= {OURS: DEFENCES[OURS]}  # an audit is of something
    return [*([BOX] if subject.box is not None else []), *made]


def rows_of(settings: AuditSettings, subject: Subject) -> dict[str, Attack]:
    """The attacks of an audit; those for another kind of key are left out where only the box gets all."""
    attacks = attacks_of(settings)
    if settings.attacks or PRESETS[settings.preset].everywhere:
        return attacks
    kind = "weight" if subject.box is None else read_box_files(subject.box)[0]["key_kind"]
    other = {"image_key", "weight_key"} - {f"{kind}_key"}
    return {name: attack for name, attack in attacks.items() if not attack.uses & other}


def plan(settings: AuditSettings, subject: Subject) -> list[list[Task]]:
    """All tasks of an audit, in stages; a task begins when what it needs is there, see `needs_of`."""
    attacks = rows_of(settings, subject)
    everywhere = {name for name in attacks if runs_everywhere(settings, name)}
    return stages(settings.seed_list(), columns_of(settings, subject), attacks, everywhere)


def take(folder: Path, settings: AuditSettings, subject: Subject, *, resume: bool, overwrite: bool) -> Path:
    """Make the audit's work folder; the caller holds the folder's lock.

    Raises:
        RunExistsError: an audit is there and neither flag is set.
        ConfigError: there is none to resume, or it was begun with other settings.
    """
    made = {**attacks_of(settings), **defences_of(settings)}
    code = environment()
    parameters = {
        "settings": settings.model_dump(mode="json"),
        "subject": identity(subject),
        "code": {name: code[name] for name in ("sdb", "commit")},
        "made": {name: each.parameters() for name, each in made.items()},
    }
    path = folder / RESOLVED
    if path.exists() and "subject" not in read_json(path):
        raise RunExistsError(f"{folder} holds a run of another kind; use another folder")
    if not path.exists() and any((folder / name).exists() for name in (WORK, CLAIM)):
        raise RunExistsError(f"{folder} holds {WORK} or {CLAIM} that no audit made; use another folder")
    if path.exists() and not (resume or overwrite):
        raise RunExistsError(
            f"{folder} already holds an audit: add --resume to go on with it, --overwrite to discard it, or use "
            "another folder"
        )
    if resume:
        if not path.exists():
            raise ConfigError(f"{folder}: no audit was begun here, there is nothing to resume: leave --resume out")
        _check_same(folder, read_json(path), parameters)
    else:
        shutil.rmtree(folder / WORK, ignore_errors=True)
        # An old verdict must not stand beside new work.
        for name in (CLAIM, REPORT):
            (folder / name).unlink(missing_ok=True)
    write_atomic(path, json_text(parameters, indent=1).encode() + b"\n")
    return folder / WORK


def identity(subject: Subject) -> dict[str, Any]:
    """What a subject is, for telling it from another: no secret, no path."""
    manifest, teacher = None if subject.box is None else read_box_files(subject.box)[0], subject.teacher
    return {
        "box": None if manifest is None else manifest["id"],
        "files": None if manifest is None else manifest["files"],
        "key": None if subject.key is None else Key.load(subject.key).id,
        "teacher": None if teacher is None else digest_of(load_classifier(teacher, network=subject.network)),
        "split": [subject.split_seed, subject.validation_fraction],
    }


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = []
    for part in now:
        old = before.get(part, {})
        changed += [
            f"{name} was {old.get(name)!r}, now {value!r}"
            for name, value in now[part].items()
            if old.get(name) != value and name not in ("device", "data_root")
        ]
    if changed:
        raise ConfigError(f"{folder}: cannot resume with other settings: {'; '.join(changed)}; or --overwrite")


def run_tasks(
    settings: AuditSettings,
    subject: Subject,
    work: Path,
    where: Where,
    on_progress: OnProgress,
    *,
    data: Splits | None = None,
) -> int:
    """Do all tasks that are not done; returns how many could run at once.

    Args:
        settings: filled, see `AuditSettings.filled`.
        subject: what is audited.
        work: the audit's work folder.
        where: this process, others of this machine, or a cluster.
        on_progress: hears of every finished task.
        data: instead of the data set that the settings name.

    Raises:
        ConfigError: several processes were asked for data that only this process has.
    """
    if data is not None and where != Where():
        raise ConfigError("other processes cannot share data that has no name: use workers=1 and no cluster")
    _ground.cache_clear()  # files may have changed since
    tasks = [task for stage in plan(settings, subject) for task in stage]
    done = {task for task in tasks if task.file(work).exists()}
    works = [
        Work(str(task), _do, (settings, subject, task, work, data), tuple(str(need) for need in needs_of(task)))
        for task in tasks
        if task not in done
    ]
    return run(works, where, on_progress, folders=[work], before=len(done))


@cache
def _ground(settings: str, subject: Subject, seed: int, work: Path) -> AuditSeed:
    return AuditSeed(AuditSettings.model_validate_json(settings), subject, seed, work)


def _do(settings: AuditSettings, subject: Subject, task: Task, work: Path, data: Splits | None) -> None:
    if data is None:
        audit_seed = _ground(settings.model_dump_json(), subject, task.seed, work)
    else:
        audit_seed = AuditSeed(settings, subject, task.seed, work, data)
    do(task, audit_seed, attacks_of(settings), defences_of(settings), work)
