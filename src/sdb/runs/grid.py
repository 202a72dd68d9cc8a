"""A grid of run folders: many runs of train, wrap and distill, each after those that it needs.

Each run goes on where it was stopped, and one that is finished is not done again, so the same call continues a grid
after anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdb import config
from sdb.config import RESOLVED
from sdb.errors import ConfigError, RunExistsError
from sdb.runs.folder import FOLLOWS_EPOCHS, LAST, METRICS, begun_with
from sdb.runs.jobs import JOBS
from sdb.runs.tasks import OnProgress, Where, Work, run

RESULT = "result.json"
# Parameters that name what another run may make.
MADE_BY_RUNS = ("teacher", "more_teachers", "key", "owner")
# Where a run takes place says nothing of its result.
PLACES = {"device", "data_root"}


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
        here = sorted({path.parent for name in config.PARAMS for path in folder.rglob(name)})
        if not here:
            raise ConfigError(
                f"{folder}: no params.json or params.toml is there or below; name a folder of run folders"
            )
        found |= {each.resolve(): each for each in here if each.resolve() not in found}
    names = {place: str(folder) for place, folder in found.items()}
    runs = []
    changes = config.parse_overrides(sets)
    for place, folder in found.items():
        command = config.guess_command(folder)
        file = config.params_file(folder)
        values = config.canonical(config.read_params(file) | changes, command, str(file))
        near = [near for path in paths_in(values) for near in (path, *path.parents)]
        needs = dict.fromkeys(names[each] for each in near if each in names and each != place)
        runs.append(GridRun(names[place], command, folder, tuple(needs)))
    return runs


def paths_in(values: dict[str, Any]) -> list[Path]:
    """What the parameters of a run name that another run may make."""
    given = [values.get(name) for name in MADE_BY_RUNS]
    flat = [path for each in given for path in (each if isinstance(each, list) else [each])]
    return [Path(path).resolve() for path in flat if isinstance(path, str)]


def run_grid(runs: Sequence[GridRun], where: Where, *, sets: Sequence[str] = (), on_progress: OnProgress) -> None:
    """Do all runs that are not finished, each after those that it needs.

    After an error the runs that do not need the failed one are still done.

    Args:
        runs: in the order in which they are best started.
        where: this process, others of this machine, or a cluster.
        sets: `KEY=VALUE` on top of every params.json.
        on_progress: is told of every run that has ended.

    Raises:
        ConfigError: the parameters of any run are at fault, or two runs have one name; nothing is started.
        TrainingError: runs failed; it names them, and those that were not started since they need them.
    """
    left = [each for each in runs if not is_finished(each, sets)]
    works = [Work(each.name, go_on, (each.command, each.folder, tuple(sets)), each.needs) for each in left]
    folders = [each.folder for each in left]
    run(works, where, on_progress, folders=folders, before=len(runs) - len(left), keep_going=True)


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
    wanted = config.filled_as(wanted, before)
    same = {name for name in wanted.keys() | before.keys() if wanted.get(name) == before.get(name)}
    return (each.folder / RESULT).exists() and wanted.keys() | before.keys() <= same | PLACES


def go_on(command: str, folder: Path, sets: tuple[str, ...]) -> None:
    """Start a run, or continue it.

    Raises:
        ConfigError: it was started with other parameters.
    """
    begun = (folder / RESOLVED).exists()
    params = config.load(folder, command, sets)
    before = begun_with(folder, params.model_dump(mode="json")) if begun else {}
    filled = config.filled_as(params.model_dump(mode="json"), before)
    params = params.model_copy(update={name: filled[name] for name in config.LEFT_OPEN})
    if begun and params.schedule in FOLLOWS_EPOCHS:
        planned = before.get("epochs")
        if (
            planned != params.epochs
        ):  # made longer, it would not be the run that the grid's others are compared with
            raise ConfigError(
                f"{folder}: cannot resume with other parameters: epochs was {planned}, now {params.epochs}, and a "
                f"{params.schedule} schedule follows their number; put them back, or use another folder"
            )
    JOBS[command](folder, params, resume=begun, overwrite=False, progress=None)


def results_of(runs: Sequence[GridRun]) -> dict[str, dict[str, Any] | None]:
    """What each run has found, from its result.json; None where it is not finished."""
    files = {each.name: each.folder / RESULT for each in runs}
    return {name: config.read_json(file) if file.exists() else None for name, file in files.items()}
