"""One audit's claim: everything that was found, as one JSON value; see `sdb.report.claim` for its schema."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from sdb.audit.archive import Archive
from sdb.audit.attacks.attack import Attack
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.cells import Task, control_column
from sdb.audit.pairs import together
from sdb.audit.plan import BOX, NONE, AuditSettings, defences_of, threat_of
from sdb.audit.proxy import NAME as PROXY
from sdb.audit.runner import columns_of, pairs_of, plan, rows_of
from sdb.audit.subject import Subject, no_copy
from sdb.box.box import Box
from sdb.models import Classifier
from sdb.report.schemas import SCHEMA
from sdb.runtime import choose_device, command_line, environment

# A negative control's student may come to be right by luck this many times as often as chance.
LUCK = 3.0
# Share of the distance from its own network to the teacher that an attack must close when the victim is the teacher.
OPENED = 0.5


def make_claim(
    settings: AuditSettings,
    subject: Subject,
    audit_seed: AuditSeed,
    *,
    workers: int,
    started: datetime,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Put the kept results of all tasks together.

    Args:
        settings: filled.
        subject: what was audited.
        audit_seed: of the first seed; its archive is complete.
        workers: processes.
        started: when.
        extra: unlock curve and traces.
    """
    attacks, defences, columns = rows_of(settings, subject), defences_of(settings), columns_of(settings, subject)
    archive = audit_seed.archive
    results = {task: archive.result(task.place) for stage in plan(settings, subject) for task in stage}
    seeds, data, regime = settings.seed_list(), audit_seed.data, audit_seed.regime
    attacker = audit_seed.means()
    rows = {name: [results[Task("defence", seed, name)] for seed in seeds] for name in columns}
    skipped = {name: row["skipped"] for name in columns for row in rows[name] if "skipped" in row}
    columns = [name for name in columns if name not in skipped]
    finished = datetime.now(UTC)
    box = audit_seed.box
    return {
        "schema": SCHEMA,
        "kind": "audit",
        "title": f"Can it be stolen? {data.name}",
        **{
            key: getattr(settings, key)
            for key in ("preset", "threat", "interface", "top_k", "query_budget", "views")
        },
        "regime": {
            "labelled": regime.labelled,
            "unlabelled": regime.unlabelled,
            "validation": regime.held(data.num_classes),
        },
        "seeds": seeds,
        "given": subject.box is not None and subject.teacher is not None,
        "data": {
            "name": data.name,
            "train": len(attacker.train) + regime.unlabelled,
            "validation": len(attacker.validation),
            "test": len(data.test),
            "classes": list(data.class_names),
            "image_shape": list(data.image_shape),
            "note": data.note,
            "proxy": PROXY,
        },
        "box": None if box is None else _box(box, subject),
        "student": _network(audit_seed.student()) | {"note": no_copy(subject)},
        "victim": _network(audit_seed.teacher),
        "settings": attacker.settings.model_dump(mode="json") | {"seed": seeds[0]},
        "references": _references([results[Task("reference", seed)] for seed in seeds]),
        "pairs": _pairs(settings, archive),
        "defences": [_defence(column, audit_seed, defences, rows[column]) for column in columns],
        "skipped": skipped,
        "attacks": [_attack(attack) for attack in attacks.values()],
        "cells": cells_of(results, columns),
        "controls": {
            name: _controls(attack, results, seeds, data.num_classes) for name, attack in attacks.items()
        },
        **extra,
        "seconds": (finished - started).total_seconds(),
        "workers": workers,
        "command": command_line(),
        "environment": environment(choose_device(settings.device)),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
    }


def _box(box: Box, subject: Subject) -> dict[str, Any]:
    info = box.info
    path = subject.files.box if subject.files is not None else ""
    return {
        "path": str(path),
        "id": info.id,
        "method": info.method,
        "key_kind": info.key_kind,
        "levels": None if box.rows is None else box.rows.levels,
        "bits": (info.measured or {}).get("bits"),
    }


def _references(found: list[dict[str, Any]]) -> dict[str, Any]:
    """What needs no attack, a value per seed."""
    lists = {key: [each[key] for each in found] for key in ("teacher", "from_teacher", "own_distance")}
    bar = {name: [each["bar"][name] for each in found] for name in found[0]["bar"]}
    return lists | {"bar": bar} | _honesty(found)


def _honesty(found: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {key: [each["honesty"][key] for each in found] for key in ("calibration_error", "brier")}


def _pairs(settings: AuditSettings, archive: Archive) -> dict[str, Any]:
    """Accuracies by way, pair by pair; ways that not every pair has are left out, with the reason."""
    found = pairs_of(settings, archive)
    reasons = {name: value for pair in found for name, value in pair["ways"].items() if isinstance(value, str)}
    scores = together(found)
    return {
        "number": len(found),
        "ways": {
            name: {"test": list(each.test), "validation": list(each.validation)} for name, each in scores.items()
        },
        "left_out": reasons,
    }


def _network(model: Classifier) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"model": model.spec.name, "arguments": model.spec.arguments, "parameters": count}


def _defence(
    column: str,
    audit_seed: AuditSeed,
    defences: dict[str, Any],
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    maker = audit_seed.maker(column, defences)
    names = ("keyless", "keyed", "partner", "distance", "bits", "seconds")
    measured = {key: [row[key] for row in rows] for key in names} | _honesty(rows)
    title = "the audited box" if column == BOX else maker.title
    return {
        "name": column,
        "title": title,
        "summary": maker.summary,
        "source": maker.source,
        "parameters": {} if column == BOX else maker.parameters(),
        "threat_note": maker.threat_note,
        **measured,
    }


def _attack(attack: Attack) -> dict[str, Any]:
    return {
        "name": attack.name,
        "summary": attack.summary,
        "source": attack.source,
        "needs": attack.needs.name.lower(),
        "uses": sorted(attack.uses),
        "threat": threat_of(attack),
        "parameters": attack.parameters(),
    }


def cells_of(results: dict[Task, dict[str, Any]], columns: list[str]) -> list[dict[str, Any]]:
    """The cells of the columns that were asked for; one that was not done in every seed was not done."""
    places: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for task, result in results.items():
        if task.kind == "cell" and task.defence in columns:
            places[task.defence, task.attack].append((task.seed, result))
    cells = []
    for (defence, attack), found in places.items():
        worst = next((r for _, r in found if r["status"] != "done"), found[0][1])
        kept = ("accuracy", "validation", "agreement", "queries", "seconds", "gap_closed", "details")
        done = [{"seed": seed, **{key: r[key] for key in kept}} for seed, r in found if r["status"] == "done"]
        cells.append(
            {
                "defence": defence,
                "attack": attack,
                "status": worst["status"],
                "reason": worst["reason"],
                "seeds": done,
            }
        )
    return cells


def _controls(
    attack: Attack, results: dict[Task, dict[str, Any]], seeds: list[int], classes: int
) -> dict[str, Any]:
    """Whether the attack works where it must, and learns nothing where there is nothing to learn."""
    column = control_column(attack)
    return {
        "positive": positive_control(
            [results[Task("cell", seed, column, attack.name)] for seed in seeds],
            [results[Task("reference", seed)]["from_teacher"] for seed in seeds],
            column,
            attack.control,
            classes,
        ),
        "negative": negative_control(results[Task("negative", seeds[0], column, attack.name)], classes),
    }


def positive_control(
    found: list[dict[str, Any]], best: list[float], column: str, share: float, classes: int
) -> dict[str, Any]:
    """Whether an attack works where it must.

    Args:
        found: its results there, one per seed.
        best: accuracies of students of the teacher.
        column: the defence that it must break.
        share: of the way from chance to the best that its students must come.
        classes: how many.
    """
    chance = 1 / classes
    needed = chance + share * (fmean(best) - chance)
    # An attack that is given the plain teacher and ends farther from it than its own network recovers nothing.
    shares = [each["gap_closed"] for each in found if column == NONE and each.get("gap_closed") is not None]
    closed = fmean(shares) if shares else None
    where = "against the unprotected teacher" if column == NONE else f"against the {column} box"
    reached, why = _reached(found, where)
    passed = None if reached is None else reached >= needed and (closed is None or closed > OPENED)
    return {
        "passed": passed,
        "reason": why,
        "accuracies": [] if reached is None else [each["accuracy"] for each in found],
        "needed": needed,
        "closed": closed,
        "closed_needed": None if closed is None else OPENED,
    }


def negative_control(found: dict[str, Any], classes: int) -> dict[str, Any]:
    """Whether an attack learns nothing from answers and labels that say nothing."""
    chance = 1 / classes
    limit = min(LUCK * chance, (1 + chance) / 2)
    reached, why = _reached([found], "against shuffled answers and labels")
    return {
        "passed": None if reached is None else reached <= limit,
        "reason": why,
        "accuracies": [] if reached is None else [reached],
        "limit": limit,
    }


def _reached(found: list[dict[str, Any]], where: str) -> tuple[float | None, str]:
    """Mean accuracy over seeds, None where one has none; and where, with the reason."""
    unfit = next((result for result in found if result["status"] != "done"), None)
    if unfit is not None:
        return None, f"{where}: {unfit['reason']}"
    return fmean(result["accuracy"] for result in found), where
