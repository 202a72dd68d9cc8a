"""What `sdb reproduce` does: plan the grid, run what is not finished, write the table."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdb import config
from sdb.config import RESOLVED
from sdb.data import Splits
from sdb.errors import ConfigError, RunExistsError, SDBError
from sdb.reproduction.page import write_page
from sdb.reproduction.plan import Plan, make_plan, wrong_key
from sdb.reproduction.published import PublishedRecipe
from sdb.reproduction.recipes import recipe_of
from sdb.reproduction.table import RESULT, SCHEMA, environments, findings, make_table, training_seconds
from sdb.reproduction.text import markdown
from sdb.runs.grid import GridRun, is_finished, run_grid
from sdb.runs.resolve import load_data
from sdb.runs.tasks import OnProgress, Where
from sdb.runtime import command_line, folder_lock, json_text, write_atomic

ASKED, TABLE, TEXT, PAGE = "reproduction.json", "table.json", "table.md", "table.html"
# Of a params.json: where things lie, and where it runs; these may differ when a reproduction is continued elsewhere.
PLACES = {"teacher", "key", "data_root", "device"}


def reproduce(
    dataset: str,
    out: Path,
    *,
    preset: str | None = None,
    seeds: int = 1,
    data_root: Path | None = None,
    where: Where | None = None,
    changes: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Run a grid into a folder, or continue one, and write its table; returns the table.

    What is finished is not run again. More seeds may be asked for later.

    Args:
        dataset: a data set of `recipes.RECIPES`.
        out: gets seed-N/KIND/..., table.json, table.md and table.html.
        preset: paper or fast; None is the data set's default.
        seeds: how many, from 0 on.
        data_root: where the data lie.
        where: how many processes, and on which machines.
        changes: KEY=VALUE for every run that has the parameter.
        overwrite: discard the reproduction that is there, its keys too.
        on_progress: is told of every finished run.

    Raises:
        ConfigError: something asked for does not exist, or differs from what `out` was started with.
        RunExistsError: `out` holds something else, or another process is writing there.
        DataNotFoundError: the data set is not where it was looked for.
        SDBError: a run failed; the table of what is finished is written all the same.
    """
    began = time.monotonic()
    preset, recipe = recipe_of(dataset, preset)
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds}; at least one is needed")
    out = out.absolute()
    plan = make_plan(recipe, out, seeds=seeds, data_root=data_root and data_root.absolute(), changes=changes)
    asked = {
        "schema": SCHEMA,
        "kind": "reproduction",
        "dataset": recipe.dataset,
        "preset": preset,
        "changed": config.parse_overrides(changes),
    }
    # Missing data are refused before anything is written or discarded.
    first = config.validate(plan.runs[0].params, plan.runs[0].command, plan.runs[0].name)
    facts = data_facts(load_data(first, first.seed))
    with folder_lock(out):
        take(out, asked, overwrite=overwrite)
        write_runs(plan, out)
        grid = [GridRun(run.name, run.command, out / run.name, run.needs) for run in plan.runs]
        before = finished(grid)

        def write() -> dict[str, Any]:
            done = finished(grid)
            call = {"seconds": round(time.monotonic() - began, 1), "runs": len(done - before)}
            if not call["runs"] and (out / TABLE).exists():  # nothing was run: how long it took is told already
                call = config.read_json(out / TABLE)["last_call"]
            return write_table(recipe, plan, out, done, asked, facts, seeds=seeds, call=call)

        try:
            run_grid([run for run in grid if run.name not in before], where or Where(), on_progress=on_progress)
        except SDBError:
            write()
            raise
        return write()


def finished(grid: Sequence[GridRun]) -> set[str]:
    """Names of the runs that have their result, with the parameters that their params.json asks for."""
    return {run.name for run in grid if is_finished(run, ())}


def data_facts(data: Splits) -> dict[str, Any]:
    """What the table says of its data; `note` tells where they differ from the published ones."""
    return {
        "name": data.name,
        "note": data.note,
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        "classes": data.num_classes,
    }


def take(out: Path, asked: dict[str, Any], *, overwrite: bool) -> None:
    """Make the folder this reproduction's; the caller holds its lock.

    Raises:
        ConfigError: it was started with another data set, preset or changes.
        RunExistsError: it holds something that no reproduction made.
    """
    path = out / ASKED
    seed_folders = [place for place in out.glob("seed-*") if place.is_dir()]
    if not path.exists():
        if seed_folders or (out / TABLE).exists():
            raise RunExistsError(f"{out} holds runs that no reproduction made; use another --out")
    elif overwrite:
        for place in seed_folders:
            shutil.rmtree(place)
        for name in (ASKED, TABLE, TEXT, PAGE):
            (out / name).unlink(missing_ok=True)
    else:
        before = config.read_json(path)
        changed = [
            f"{name} was {before.get(name)!r}, now {asked[name]!r}"
            for name in asked
            if before.get(name) != asked[name]
        ]
        if changed:
            raise ConfigError(
                f"{out} was started differently: {'; '.join(changed)}. Put it back, use another --out, or --overwrite"
            )
    write_atomic(path, json_text(asked, indent=1).encode() + b"\n")


def write_runs(plan: Plan, out: Path) -> None:
    """Write every run's params.json, and the wrong keys; keys that are there stay.

    Raises:
        ConfigError: a params.json was changed, or the program has changed since.
    """
    for run in plan.runs:
        path = out / run.name / "params.json"
        wanted = json.loads(json_text(run.params))
        if path.exists():
            there = config.read_json(path)
            names = sorted((there.keys() | wanted.keys()) - PLACES)
            changed = [name for name in names if there.get(name) != wanted.get(name)]
            if changed:
                raise ConfigError(
                    f"{path}: {', '.join(changed)} differ(s) from what this reproduction runs; put it back, use "
                    "another --out, or --overwrite"
                )
        if not (path.parent / RESULT).exists():  # of a finished run it says what was run, and where
            write_atomic(path, json_text(wanted, indent=1).encode() + b"\n")
            begun = path.parent / RESOLVED
            if begun.exists():  # it goes on, though the reproduction may have been moved
                places = {name: wanted[name] for name in PLACES & wanted.keys()}
                write_atomic(begun, json_text(config.read_json(begun) | places, indent=1).encode() + b"\n")
    for name, blend in plan.wrong_keys.items():
        if not (out / name).exists():
            wrong_key(blend).save(out / name)


def write_table(
    recipe: PublishedRecipe,
    plan: Plan,
    out: Path,
    done: set[str],
    asked: dict[str, Any],
    facts: dict[str, Any],
    *,
    seeds: int,
    call: dict[str, Any],
) -> dict[str, Any]:
    """Write table.json, table.md and table.html from the runs that are finished; returns the table."""
    table = {
        **asked,
        "seeds": list(range(seeds)),
        "command": command_line(),
        "data": facts,
        "teachers": list(recipe.teachers),
        **make_table(recipe, plan, out, done, seeds=seeds, images=facts["test"]),
        "environments": environments(out, done),
        "training_seconds": training_seconds(out, done),
        "last_call": call,
    }
    table["findings"] = findings(table)
    write_atomic(out / TABLE, json_text(table, indent=1).encode() + b"\n")
    write_atomic(out / TEXT, markdown(table).encode())
    write_page(table, out / PAGE)
    return table
