"""A grid of run folders: many runs of train, wrap and distill, each after those that it needs.

Each run goes on where it was stopped, and one that is finished is not done again, so the same call goes on with a grid
after anything.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdb import config
from sdb.config import RunParams
from sdb.errors import ConfigError, ModelError, RunExistsError, SDBError, TrainingError
from sdb.jobs import JOBS
from sdb.models import ModelSpec
from sdb.runs import LAST, METRICS, RESOLVED, begun_with
from sdb.stacking import agreed, refused, stack_job
from sdb.tasks import Told, Where, Work, run

RESULT = "result.json"
# Parameters that name what another run may make.
MADE_BY_RUNS = ("teacher", "more_teachers", "key", "owner")
# Where a run takes place says nothing of its result.
PLACES = {"device", "data_root"}
# Students of a stack: the activations of all are in memory at once, and so many small networks are work enough.
LARGEST_STACK = 8
# Parameters of a network that is worth stacking: ResNet-18 has 11 million and fills a device by itself.
LARGEST_STACKED = 3_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GridRun:
    """One run of a grid.

    Attributes:
        name: shown, unique.
        command: train, wrap or distill.
        folder: holds params.json.
        needs: names of runs that must be finished first; one that is not in the grid is finished already.
    """

    name: str
    command: str
    folder: Path
    needs: tuple[str, ...] = ()


def find_runs(folders: Sequence[Path], sets: Sequence[str] = ()) -> list[GridRun]:
    """Every run below some folders: what its params.json is for, and which of the others it needs.

    `sets` are `KEY=VALUE` on top of every params.json.

    A run needs those whose folders its teacher, key or owner lies in. Paths are relative to the current folder.

    Raises:
        ConfigError: there is no params.json, or one cannot be read.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        here = sorted(path.parent for path in folder.rglob("params.json"))
        if not here:
            raise ConfigError(f"{folder}: no params.json is there or below; name a folder of run folders")
        found |= {each.resolve(): each for each in here if each.resolve() not in found}
    names = {place: str(folder) for place, folder in found.items()}
    runs = []
    changes = config.parse_overrides(sets)
    for place, folder in found.items():
        command = config.guess_command(folder)
        given = config.read_json(folder / "params.json") | changes
        values = config.canonical(given, command, str(folder / "params.json"))
        near = [near for path in paths_in(values) for near in (path, *path.parents)]
        needs = dict.fromkeys(names[each] for each in near if each in names and each != place)
        runs.append(GridRun(names[place], command, folder, tuple(needs)))
    return runs


def paths_in(values: dict[str, Any]) -> list[Path]:
    """What the parameters of a run name that another run may make."""
    given = [values.get(name) for name in MADE_BY_RUNS]
    flat = [path for each in given for path in (each if isinstance(each, list) else [each])]
    return [Path(path).resolve() for path in flat if isinstance(path, str)]


def run_grid(
    runs: Sequence[GridRun], where: Where, *, sets: Sequence[str] = (), stack: bool = False, told: Told
) -> None:
    """Do all runs that are not finished, each after those that it needs.

    After an error the runs that do not need the failed one are still done.

    Args:
        runs: in the order in which they are best begun.
        where: this process, others of this machine, or a cluster.
        sets: `KEY=VALUE` on top of every params.json.
        stack: train small students together where they can be, see `stacks_of`.
        told: hears of every run, or stack of runs, that has ended.

    Raises:
        ConfigError: the parameters of any run are at fault, or two runs have one name; nothing is begun.
        TrainingError: runs failed; it names them, and those that were not begun since they need them.
    """
    left = [each for each in runs if not is_finished(each, sets)]
    groups = stacks_of(left, sets) if stack else [[each] for each in left]
    works = works_of(groups, tuple(sets))
    folders = [each.folder for each in left]
    run(works, where, told, folders=folders, before=len(runs) - len(left), keep_going=True)


def stacks_of(runs: Sequence[GridRun], sets: Sequence[str] = ()) -> list[list[GridRun]]:
    """Every run once, in groups: those that can train as one stack (`sdb.stacking`), and each other run by itself.

    A stack is of small networks, at most `LARGEST_STACK`, and of runs that are equally many needed runs away from the
    first, so that no two groups need each other.

    Raises:
        ConfigError: the parameters of a run are at fault.
    """
    depth = dict.fromkeys((each.name for each in runs), 0)
    for _ in runs:  # no chain is longer
        depth |= {e.name: max([0, *(depth[need] + 1 for need in e.needs if need in depth)]) for e in runs}
    groups: dict[str, list[GridRun]] = {}
    for each in runs:
        params = config.load(each.folder, each.command, sets)
        alike = each.name
        if refused(each.command, params) is None and is_small(params):
            alike = json.dumps([depth[each.name], agreed(params)], sort_keys=True)
        groups.setdefault(alike, []).append(each)
    result = []
    for group in groups.values():
        parts = math.ceil(len(group) / LARGEST_STACK)
        result += [group[part::parts] for part in range(parts)]
    return result


def is_small(params: RunParams) -> bool:
    """Whether a run's network is worth stacking; not where only its own code knows its size."""
    if ":" in params.model_name:
        return False
    try:
        with torch.device("meta"):
            spec = ModelSpec(params.model_name, params.model_args, 10, (3, 32, 32), (0.0,) * 3, (1.0,) * 3)
            return sum(parameter.numel() for parameter in spec.build().parameters()) <= LARGEST_STACKED
    except ModelError:  # its run will say so
        return False


def works_of(groups: Sequence[Sequence[GridRun]], sets: tuple[str, ...]) -> list[Work]:
    """A piece of work for each group of runs; it needs the work of which any of its runs needs one."""
    names = {
        each.name: group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more, stacked"
        for group in groups
        for each in group
    }
    works = []
    for group in groups:
        needs = tuple(dict.fromkeys(names.get(need, need) for each in group for need in each.needs))
        members = tuple((each.command, each.folder) for each in group)
        call, arguments = (go_on, members[0]) if len(members) == 1 else (go_on_stacked, (members,))
        works.append(Work(names[group[0].name], call, (*arguments, sets), needs))
    return works


def is_finished(each: GridRun, sets: Sequence[str]) -> bool:
    """Whether a run has its result, with these parameters.

    Raises:
        ConfigError: the parameters are at fault.
        RunExistsError: the folder holds a run that does not say its parameters.
    """
    wanted = config.load(each.folder, each.command, sets).model_dump(mode="json")
    if not (each.folder / RESOLVED).exists():
        if there := [name for name in (LAST, METRICS, RESULT) if (each.folder / name).exists()]:
            raise RunExistsError(f"{each.folder} holds {', '.join(there)} and no {RESOLVED}; use another folder")
        return False
    before = begun_with(each.folder, wanted)
    same = {name for name in wanted.keys() | before.keys() if wanted.get(name) == before.get(name)}
    return (each.folder / RESULT).exists() and wanted.keys() | before.keys() <= same | PLACES


def go_on(command: str, folder: Path, sets: tuple[str, ...]) -> None:
    """Begin a run, or go on with it.

    Raises:
        ConfigError: it was begun with other parameters.
    """
    begun = (folder / RESOLVED).exists()
    params = config.load(folder, command, sets)
    JOBS[command](folder, params, resume=begun, overwrite=False, progress=None)


def go_on_stacked(members: tuple[tuple[str, Path], ...], sets: tuple[str, ...]) -> None:
    """Begin runs as a stack, or go on with them; each by itself where that fails, so that a bad one costs only itself.

    Raises:
        TrainingError: runs failed; it names them.
    """
    loaded = [(command, folder, config.load(folder, command, sets)) for command, folder in members]
    try:
        stack_job(loaded, resume=True, overwrite=False, progress=None)
        return
    except RunExistsError:
        raise  # held by a lost node's process: whoever asked for the work waits for it
    except SDBError as error:
        log.warning("a stack of %d runs failed, each goes on by itself: %s", len(members), error)
    failed = []
    for command, folder in members:
        try:
            go_on(command, folder, sets)
        except RunExistsError:
            raise
        except SDBError as error:
            failed.append(f"{folder}: {error}")
    if failed:
        raise TrainingError("; ".join(failed))


def results_of(runs: Sequence[GridRun]) -> dict[str, dict[str, Any] | None]:
    """What each run has found, from its result.json; None where it is not finished."""
    files = {each.name: each.folder / RESULT for each in runs}
    return {name: config.read_json(file) if file.exists() else None for name, file in files.items()}
