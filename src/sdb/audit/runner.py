"""Running an audit: its folder and its tasks; what is finished is never done again."""

from __future__ import annotations

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from sdb.audit.archive import Archive, Folder
from sdb.audit.attacks.attack import Attack
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.cells import OURS, Task, do, needs_of, stages, subject_of
from sdb.audit.defences import DEFENCES
from sdb.audit.defences.defence import digest_of
from sdb.audit.pairs import BATCH, COSTLY, DRAWS, enough, good, strongest
from sdb.audit.plan import BOX, COSTS, PRESETS, AuditSettings, attacks_of, defences_of, runs_everywhere, threat_of
from sdb.audit.subject import Subject, SubjectFiles
from sdb.config import read_json
from sdb.data import Splits
from sdb.errors import ConfigError, RunExistsError
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
    kind = "weight" if subject.box is None else subject.box.info.key_kind
    other = {"image_key", "weight_key"} - {f"{kind}_key"}
    return {name: attack for name, attack in attacks.items() if not attack.uses & other}


def plan(settings: AuditSettings, subject: Subject) -> list[list[Task]]:
    """All tasks of an audit, in stages; a task begins when what it needs is there, see `needs_of`."""
    attacks = rows_of(settings, subject)
    everywhere = {name for name in attacks if runs_everywhere(settings, name)}
    return stages(settings.seed_list(), columns_of(settings, subject), attacks, everywhere)


def take(folder: Path, settings: AuditSettings, subject: Subject, *, resume: bool, overwrite: bool) -> Folder:
    """Make the audit's archive; the caller holds the folder's lock.

    Raises:
        RunExistsError: an audit is there and neither flag is set.
        ConfigError: there is none to resume, or it was started with other settings.
    """
    made = {**attacks_of(settings), **defences_of(settings)}
    code = environment()
    parameters = {
        "settings": settings.model_dump(mode="json"),
        "subject": identity(subject),
        "code": {name: code[name] for name in ("sdb", "commit")},
        "made": {name: each.parameters() for name, each in made.items()},
    }
    begin(folder, parameters, "subject", (CLAIM, REPORT), resume=resume, overwrite=overwrite, what="an audit")
    return Folder(folder / WORK)


def begin(
    folder: Path,
    parameters: dict[str, Any],
    kind: str,
    results: Sequence[str],
    *,
    resume: bool,
    overwrite: bool,
    what: str,
) -> None:
    """Take a folder for work that is kept piece by piece in WORK; the caller holds the folder's lock.

    Args:
        folder: which.
        parameters: what the pieces depend on, by part, JSON values.
        kind: the part that only work of this kind has.
        results: files that are made of the pieces.
        resume: go on with what is there.
        overwrite: discard it.
        what: is kept there, for people.

    Raises:
        RunExistsError: something is there and neither flag is set.
        ConfigError: there is nothing to resume, or it was started with other settings.
    """
    path = folder / RESOLVED
    if path.exists() and kind not in read_json(path):
        raise RunExistsError(f"{folder} holds a run of another kind; use another folder")
    if not path.exists() and any((folder / name).exists() for name in (WORK, *results)):
        raise RunExistsError(f"{folder} holds {WORK} or {results[0]} that {what} did not make; use another folder")
    if path.exists() and not (resume or overwrite):
        raise RunExistsError(
            f"{folder} already holds {what}: add --resume to continue it, --overwrite to discard it, or use another "
            "folder"
        )
    if resume:
        if not path.exists():
            raise ConfigError(
                f"{folder}: {what} was not started here, there is nothing to resume: leave --resume out"
            )
        _check_same(folder, read_json(path), parameters)
    else:
        shutil.rmtree(folder / WORK, ignore_errors=True)
        # An old verdict must not stand beside new work.
        for name in results:
            (folder / name).unlink(missing_ok=True)
    write_atomic(path, json_text(parameters, indent=1).encode() + b"\n")


def identity(subject: Subject) -> dict[str, Any]:
    """What a subject is, for telling it from another: no secret, no path."""
    box = subject.box
    sealed = [] if box is None else [part for part in (box.private, box.record) if part is not None]
    return {
        "box": None if box is None else box.info.id,
        "holds": None if box is None else [digest_of(box), *(hashlib.sha256(part).hexdigest() for part in sealed)],
        "key": None if subject.key is None else subject.key.id,
        "teacher": None if subject.teacher is None else digest_of(subject.teacher),
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
    archive: Archive,
    where: Where,
    on_progress: OnProgress,
    *,
    data: Splits | None = None,
) -> int:
    """Do all tasks that are not done; returns how many could run at once.

    Args:
        settings: filled, see `AuditSettings.filled`.
        subject: what is audited.
        archive: where results are kept; several processes need one that they can share.
        where: this process, others of this machine, or a cluster.
        on_progress: is told of every finished task.
        data: instead of the data set that the settings name.

    Raises:
        ConfigError: several processes were asked for what only this process has.
    """
    ground: Callable[[int], AuditSeed]
    if where == Where():
        ground = cache(lambda seed: AuditSeed(settings, subject, seed, archive, data))
    elif data is not None or subject.files is None or not isinstance(archive, Folder):
        raise ConfigError("other processes cannot share data that has no name: use workers=1 and no cluster")
    else:
        ground = partial(_ground, settings.model_dump_json(), subject.files, archive)
    grid = [task for stage in plan(settings, subject) for task in stage]
    target, most = subject_of(columns_of(settings, subject)), settings.pairs or PRESETS[settings.preset].pairs

    whole = len(grid) + most

    def all_of(tasks: list[Task], before: int) -> int:
        done = {task for task in tasks if archive.has(task.place)}
        works = [
            Work(str(task), _do, (task, ground), tuple(str(need) for need in needs_of(task)))
            for task in tasks
            if task not in done
        ]
        folders = [archive.folder] if isinstance(archive, Folder) else []

        def told(finished: int, total: int, name: str) -> None:
            del total
            on_progress(before + finished, whole, name)

        return run(works, where, told, folders=folders, before=len(done))

    places = all_of(grid, 0)
    groups, count = candidates(settings, subject, archive), PRESETS[settings.preset].confirmed
    screens = screens_of(settings, target, groups, count)
    whole += len(screens)
    all_of(screens, len(grid))
    measured = tuple(to_measure(groups, screens, archive, count))
    tasks: list[Task] = []
    while len(tasks) < most and not (tasks and enough([archive.result(task.place) for task in tasks])):
        more = [
            Task("pair", settings.seed, target, pair=number, measured=measured)
            for number in range(len(tasks) + 1, min(most, len(tasks) + BATCH) + 1)
        ]
        all_of(more, len(grid) + len(screens) + len(tasks))
        tasks += more
    return places


def costs_of(settings: AuditSettings, subject: Subject) -> dict[str, float]:
    """About how long each task takes, in students; screens as if every attack had some."""
    settings = settings.filled()

    def cost(task: Task) -> float:
        attack = COSTS.get(task.attack, 1.0)
        return {"reference": 20.0, "defence": 12.0, "negative": attack / 2}.get(task.kind, attack)

    grid = {str(task): cost(task) for stage in plan(settings, subject) for task in stage}
    draws = range(1, DRAWS + 1)
    screens = {
        str(Task("screen", settings.seed, attack=name, pair=draw)): COSTS.get(name, 1.0)
        for name, attack in rows_of(settings, subject).items()
        for draw in draws
        if not COSTLY & attack.uses
    }
    pairs = {str(Task("pair", settings.seed, pair=number)): 14.0 for number in range(1, (settings.pairs or 1) + 1)}
    return grid | screens | pairs


def candidates(settings: AuditSettings, subject: Subject, archive: Archive) -> list[dict[str, list[float]]]:
    """Attacks that may be the best on the audited box, with validation accuracies: a client's; those with the files."""
    target = subject_of(columns_of(settings, subject))
    kinds = ("api", "shipped") if settings.threat == "shipped" else ("api",)
    found = []
    for kind in kinds:
        cells = {
            name: [archive.result(Task("cell", seed, target, name).place) for seed in settings.seed_list()]
            for name, attack in rows_of(settings, subject).items()
            if threat_of(attack) == kind and not (settings.preset == "quick" and COSTLY & attack.uses)
        }
        found.append(good(cells))
    return found


def screens_of(
    settings: AuditSettings, target: str, groups: list[dict[str, list[float]]], count: int
) -> list[Task]:
    """The draws on which candidates are compared again, where there are more than the `count` that are measured."""
    return [
        Task("screen", settings.seed, target, name, pair=draw)
        for group in groups
        if len(group) > count
        for name in group
        for draw in range(1, DRAWS + 1)
    ]


def to_measure(
    groups: list[dict[str, list[float]]], screens: list[Task], archive: Archive, count: int
) -> list[str]:
    """The attacks that pairs measure: of each group of candidates the best."""
    again: dict[str, list[float | None]] = defaultdict(list)
    for task in screens:
        again[task.attack].append(archive.result(task.place)["validation"])
    return [
        name
        for group in groups
        for name in strongest({name: [*found, *again[name]] for name, found in group.items()}, count)
    ]


def pairs_of(settings: AuditSettings, archive: Archive) -> list[dict[str, Any]]:
    """What the pairs found, in their order."""
    most = settings.pairs or PRESETS[settings.preset].pairs
    places = [Task("pair", settings.seed, pair=number).place for number in range(1, most + 1)]
    return [archive.result(place) for place in places if archive.has(place)]


@cache
def _ground(settings: str, files: SubjectFiles, archive: Folder, seed: int) -> AuditSeed:
    """In a worker, which keeps what it has read."""
    return AuditSeed(AuditSettings.model_validate_json(settings), _subject(files), seed, archive)


@cache
def _subject(files: SubjectFiles) -> Subject:
    return files.read()


def _do(task: Task, ground: Callable[[int], AuditSeed]) -> None:
    audit_seed = ground(task.seed)
    do(task, audit_seed, attacks_of(audit_seed.settings), defences_of(audit_seed.settings))
