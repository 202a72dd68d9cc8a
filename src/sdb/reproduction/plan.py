"""The grid of a reproduction: its runs, each with all parameters, and which run each line of the table reads.

Every run is an ordinary run folder, OUT/seed-N/KIND/..., so it can be looked at, run by hand and resumed with
`sdb train`, `wrap`, `distill` and `evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdb import config
from sdb.errors import ConfigError
from sdb.keys import DEFAULT_BLEND, Key
from sdb.reproduction.published import LABEL_SMOOTHING, Params, PublishedRecipe

# What the grid itself is made of, and what has an option of its own.
FIXED = {
    "seed": "--seeds N",
    "data_root": "--data-root DIR",
    "dataset": "the data set's name after sdb reproduce",
}
STRUCTURE = {
    "model_name",
    "model_args",
    "method",
    "key_kind",
    "key",
    "key_blend",
    "foreign_key",
    "budget",
    "owner",
    "partners",
    "more_teachers",
    "teacher",
    "teacher_model",
    "teacher_args",
    "teacher_url",
    "label_smoothing",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        id: unique; for students "from_" and what they learn from.
        label: for people.
        folder: the runs' folder below the seed's.
        metric: which number of the result.
    """

    id: str
    label: str
    folder: str
    metric: str = "accuracy"


NETWORKS = (
    Row("teacher", "teacher", "teacher"),
    Row("nasty", "Nasty Teacher", "nasty", "keyless"),
    Row("sdb.keyless", "SDB, no key", "sdb", "keyless"),
    Row("sdb.keyed", "SDB, key", "sdb", "keyed"),
    Row("sdb.wrong_key", "SDB, wrong key", "sdb", "wrong_key"),
    Row("decoy.keyless", "decoy (ours), no key", "decoy", "keyless"),
    Row("decoy.keyed", "decoy (ours), key", "decoy", "keyed"),
    Row("decoy.wrong_key", "decoy (ours), wrong key", "decoy", "wrong_key"),
)
STUDENTS = (
    Row("alone", "alone, on labels", "alone"),
    Row("label_smoothing", "alone, label smoothing: the bar", "label_smoothing"),
    Row("from_teacher", "of the teacher", "from_teacher"),
    Row("from_nasty", "of the Nasty Teacher", "from_nasty"),
    Row("from_sdb.keyless", "of SDB, no key", "from_sdb_keyless"),
    Row("from_sdb.keyed", "of SDB, key", "from_sdb_keyed"),
    Row("from_sdb.wrong_key", "of SDB, wrong key", "from_sdb_wrong_key"),
    Row("from_decoy.keyless", "of decoy, no key", "from_decoy_keyless"),
    Row("from_decoy.keyed", "of decoy, key", "from_decoy_keyed"),
    # A wrong weight key opens nothing and gets keyless answers: its student is the keyless one, digit for digit.
    Row("from_decoy.wrong_key", "of decoy, wrong key", "from_decoy_keyless"),
)
# Students that see no teacher.
ALONE = ("alone", "label_smoothing")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the grid.

    Attributes:
        name: its folder below OUT.
        command: train, wrap or distill.
        params: its params.json.
        needs: names of the runs whose results it reads.
    """

    name: str
    command: str
    params: Params
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a reproduction, and the wrong keys that some of them try.

    Attributes:
        runs: each after those that it needs.
        wrong_keys: file below OUT -> blend of the image key that lies there.
        same: name of a run that would repeat another -> that other.
    """

    runs: tuple[Run, ...]
    wrong_keys: dict[str, float]
    same: dict[str, str]

    def run_of(self, seed: int, row: Row, teacher: str | None, student: str | None) -> str:
        """The name of the run that a line of the table reads."""
        name = "/".join([f"seed-{seed}", row.folder, *(part for part in (teacher, student) if part)])
        return self.same.get(name, name)


def make_plan(
    recipe: PublishedRecipe, out: Path, *, seeds: int, data_root: Path | None, changes: Sequence[str] = ()
) -> Plan:
    """Plan the grid.

    Args:
        recipe: the hyper-parameters.
        out: where the runs go; an absolute path, since a run may start in another folder.
        seeds: how many, from 0 on.
        data_root: where the data lie.
        changes: KEY=VALUE for every run that has the parameter.

    Raises:
        ConfigError: a change is unknown, out of range, or of something that makes the grid what it is.
    """
    changed = changes_by_command(changes)
    runs: list[Run] = []
    same: dict[str, str] = {}
    wrong_keys: dict[str, float] = {}
    blend = recipe.boxes["sdb"].get("key_blend", DEFAULT_BLEND)

    def add(name: str, command: str, params: Params, *needs: str) -> str:
        place = {"data_root": str(data_root)} if data_root else {}
        params = {**params, **place, "seed": seed} | changed[command]
        config.validate(params, command, name)
        runs.append(Run(name, command, params, needs))
        return name

    def at(name: str, *parts: str) -> str:
        return str(out.joinpath(name, *parts))

    for seed in range(seeds):
        place = f"seed-{seed}"
        wrong_key = f"{place}/wrong_key.json"
        wrong_keys[wrong_key] = blend
        for name in recipe.teachers:
            add(f"{place}/teacher/{name}", "train", {**recipe.model(name), **recipe.teacher_trained(name)})
        boxes: dict[tuple[str, str], str] = {}
        for name in recipe.teachers:
            teacher = f"{place}/teacher/{name}"
            taught = {"teacher": at(teacher), "teacher_model": recipe.model(name)["model_name"]}
            for method, settings in recipe.boxes.items():
                params = {**recipe.model(name), **taught, **settings}
                boxes[method, name] = add(f"{place}/{method}/{name}", "wrap", params, teacher)
        for name in recipe.students:
            plain = {**recipe.model(name), **recipe.trained(name)}
            if name in recipe.teachers and recipe.trained(name) == recipe.teacher_trained(name):
                same[f"{place}/alone/{name}"] = f"{place}/teacher/{name}"
            else:
                add(f"{place}/alone/{name}", "train", plain)
            smoothed = {**plain, "label_smoothing": LABEL_SMOOTHING}
            add(f"{place}/label_smoothing/{name}", "train", smoothed)
        for name in recipe.teachers:
            sdb, decoy = boxes["sdb", name], boxes["decoy", name]
            for folder, source, extra in (
                ("from_teacher", f"{place}/teacher/{name}", {}),
                ("from_nasty", boxes["nasty", name], {}),
                ("from_sdb_keyless", sdb, {}),
                ("from_sdb_keyed", sdb, {"key": at(sdb, "key.json")}),
                ("from_sdb_wrong_key", sdb, {"key": at(wrong_key), "foreign_key": True}),
                ("from_decoy_keyless", decoy, {}),
                ("from_decoy_keyed", decoy, {"key": at(decoy, "key.json")}),
            ):
                asked = {"teacher": at(source), "teacher_model": recipe.model(name)["model_name"], **extra}
                for student in recipe.students_of(name):
                    params = {**recipe.model(student), **asked, **recipe.distilling, **recipe.trained(student)}
                    add(f"{place}/{folder}/{name}/{student}", "distill", params, source)
    return Plan(tuple(runs), wrong_keys, same)


def changes_by_command(changes: Sequence[str]) -> dict[str, Params]:
    """What KEY=VALUE changes in the parameters of each command, under our names.

    Raises:
        ConfigError: no command has the parameter, or the grid is made of it.
    """
    given: dict[str, Params] = {command: {} for command in config.COMMANDS}
    for alias, value in config.parse_overrides(changes).items():
        name = config.ALIASES.get(alias, alias)
        known = False
        for command, fields in config.COMMANDS.items():
            ours = config.canonical({name: value}, command, "--set")
            for each in ours:
                _refuse_fixed(each)
            own = {each: ours[each] for each in ours if each in fields.model_fields}
            given[command] |= own
            known = known or bool(own)
        if not known:  # let it be refused, with the nearest name that there is
            config.validate({"model_name": "net", "teacher": ".", name: value}, "distill", "--set")
    return given


def _refuse_fixed(name: str) -> None:
    if name in FIXED:
        raise ConfigError(f"--set {name}: give it as {FIXED[name]}")
    if name in STRUCTURE:
        raise ConfigError(
            f"--set {name}: the grid is made of it and every run has its own; change it in the folder of a single run"
        )


def wrong_key(blend: float) -> Key:
    """A key that opens no box."""
    return Key.generate("image", blend=blend, scope="a wrong key")
