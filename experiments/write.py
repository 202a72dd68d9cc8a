"""Write experiments/<DATASET>/<RUN>/params.json from the tables of `sdb.reproduction`. Needs sdb, not torch.

    python experiments/write.py            write all files
    python experiments/write.py --check    exit with 1 where a file differs, is missing, or is left over

Where the hyper-parameters come from: src/sdb/reproduction/published.py. What is here is which runs there are.
"""

# ruff: noqa: T201 - it talks to the person who runs it

from __future__ import annotations

import json
import sys
from pathlib import Path

from sdb.reproduction.published import LABEL_SMOOTHING, TABLES, Params, published, unique
from sdb.reproduction.recipes import digits

HERE = Path(__file__).resolve().parent

# The digits run longer here than where the whole grid is to take a minute.
DIGITS_EPOCHS = {"teacher": 30, "box": 60, "sdb": 40, "nasty": 40, "student": 60}


def all_files() -> dict[str, Params]:
    """Every run's parameters, by its folder below experiments/."""
    files = {f"digits/{run}": params for run, params in digits_runs().items()}
    for folder in TABLES:
        files |= {f"{folder}/{run}": params for run, params in paper_runs(folder).items()}
    return files


def digits_runs() -> dict[str, Params]:
    """A small set on the embedded digits: one teacher, one student, both boxes."""
    recipe = digits()
    wide, narrow = recipe.model("net24"), recipe.model("net8")

    def of(run: str) -> Params:
        return {"teacher": f"experiments/digits/{run}", "teacher_model": "net"}

    def key(run: str) -> Params:
        return {"key": f"experiments/digits/{run}/key.json"}

    def box(method: str, run: str) -> Params:
        return {**wide, **of("teacher"), **recipe.boxes[method], "epochs": DIGITS_EPOCHS[run]}

    alone = {**narrow, **recipe.training, "epochs": DIGITS_EPOCHS["student"]}

    def distilled(asked: Params) -> Params:
        return {**narrow, **asked, **recipe.distilling, **alone}

    return {
        "teacher": {**wide, **recipe.training, "epochs": DIGITS_EPOCHS["teacher"]},
        "box": box("decoy", "box"),
        "sdb": box("sdb", "sdb"),
        "nasty": box("nasty", "nasty"),
        "student_alone": alone,
        "student_label_smoothing": {**alone, "label_smoothing": LABEL_SMOOTHING},
        "from_teacher": distilled(of("teacher")),
        "thief_sdb": distilled(of("sdb")),
        "partner_sdb": distilled({**of("sdb"), **key("sdb")}),
        "thief": distilled(of("box")),
        "partner": distilled({**of("box"), **key("box")}),
    }


def paper_runs(folder: str) -> dict[str, Params]:
    """The runs of one of the papers' data sets."""
    recipe = published(folder)

    def taught(run: str, teacher: str) -> Params:
        return {"teacher": f"experiments/{folder}/{run}", "teacher_model": teacher}

    def key(taught: Params) -> Params:
        return {"key": f"{taught['teacher']}/key.json"}

    runs: dict[str, Params] = {}
    for name in unique((*recipe.teachers, *recipe.students)):
        runs[f"baseline/{name}"] = {**recipe.model(name), **recipe.trained(name)}
    for name in recipe.students:
        runs[f"baseline_label_smoothing/{name}"] = {
            **runs[f"baseline/{name}"],
            "label_smoothing": LABEL_SMOOTHING,
        }
    for teacher in recipe.teachers:
        plain = taught(f"baseline/{teacher}", teacher)
        # A nasty teacher lies where the reference's documentation and its students' files have it.
        places = {
            "nasty": f"kd_nasty_{teacher}/nasty_{teacher}",
            "sdb": f"sdb/{teacher}",
            "decoy": f"decoy/{teacher}",
        }
        for method, settings in recipe.boxes.items():
            runs[places[method]] = {**recipe.model(teacher), **plain, **settings}
        nasty, sdb, decoy = (taught(places[method], teacher) for method in ("nasty", "sdb", "decoy"))
        for student in recipe.students_of(teacher):
            for kind, asked in (
                (f"kd_normal_{teacher}", plain),
                (f"kd_nasty_{teacher}", nasty),
                (f"kd_sdb_{teacher}_keyless", sdb),
                (f"kd_sdb_{teacher}_keyed", {**sdb, **key(sdb)}),
                (f"kd_decoy_{teacher}_keyless", decoy),
                (f"kd_decoy_{teacher}_keyed", {**decoy, **key(decoy)}),
            ):
                runs[f"{kind}/{student}"] = {
                    **recipe.model(student),
                    **asked,
                    **recipe.distilling,
                    **recipe.trained(student),
                }
    return runs


def text(params: Params) -> str:
    """A parameter file: one parameter a line."""
    lines = (f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in params.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Write the files, or compare them."""
    if arguments not in ([], ["--check"]):
        print("usage: python experiments/write.py [--check]", file=sys.stderr)
        return 2
    wanted = {HERE / run / "params.json": text(params) for run, params in all_files().items()}
    there = {path for folder in ("digits", *TABLES) for path in (HERE / folder).rglob("params.json")}
    left_over = sorted(there - wanted.keys())
    differing = [path for path, content in wanted.items() if not path.exists() or path.read_text() != content]
    if not arguments:
        for path in differing:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path])
        print(f"{len(wanted)} files, {len(differing)} written")
        differing = []
    for path in differing:
        print(
            f"{path}: missing, or not as in write.py and the tables; run python experiments/write.py",
            file=sys.stderr,
        )
    for path in left_over:
        print(f"{path}: not in write.py; add it there or remove it", file=sys.stderr)
    return 1 if differing or left_over else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
