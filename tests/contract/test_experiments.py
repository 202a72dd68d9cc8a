"""Every run's parameters are there, valid, and name each other; the documents name every parameter."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdb import config
from sdb.config.described import parameters as parameters_of
from sdb.keys import Key
from sdb.models import MODELS
from sdb.runs.jobs import check_job

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
DOCS = ROOT / "docs"
PAPER_SETS = ("CIFAR10", "CIFAR100", "TinyImageNet")
LEAST = 150  # 26 + 60 + 60 runs of the papers, 8 on digits


def parameter_files() -> list[Path]:
    return sorted(path for name in ("digits", *PAPER_SETS) for path in (EXPERIMENTS / name).rglob("params.json"))


def name_of(path: Path) -> str:
    return str(path.parent.relative_to(EXPERIMENTS))


def expected_command(name: str) -> str:
    _, _, run = name.partition("/")
    if "/nasty_" in run or run.startswith(("sdb", "nasty", "decoy", "box")):
        return "wrap"
    return "distill" if run.startswith(("kd_", "thief", "partner", "from_teacher")) else "train"


def for_every_run(check) -> None:
    """Run a check on each of the files; what fails is shown together, by name."""
    faults = {}
    for path in parameter_files():
        try:
            check(path)
        except Exception as error:
            faults[name_of(path)] = repr(error)
    assert not faults


def write(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


# --- the generator ---


def test_the_files_are_those_of_the_tables():
    result = write(EXPERIMENTS / "write.py", "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("damage", ["changed", "missing", "left over"])
def test_check_refuses(tmp_path, damage):
    script = Path(shutil.copy(EXPERIMENTS / "write.py", tmp_path))
    assert write(script).returncode == 0
    assert write(script, "--check").returncode == 0
    file = tmp_path / "CIFAR10" / "sdb" / "resnet18" / "params.json"
    if damage == "changed":
        file.write_text(file.read_text().replace('"epochs": 200', '"epochs": 20'))
    elif damage == "missing":
        file.unlink()
    else:
        file = tmp_path / "CIFAR10" / "old" / "params.json"
        file.parent.mkdir()
        file.write_text("{}")
    result = write(script, "--check")
    assert result.returncode == 1
    assert str(file) in result.stderr
    if damage != "left over":
        assert write(script).returncode == 0
        assert write(script, "--check").returncode == 0


# --- the files ---


def test_there_are_enough_of_them():
    assert len(parameter_files()) >= LEAST
    for name in PAPER_SETS:
        assert sum(path.is_relative_to(EXPERIMENTS / name) for path in parameter_files()) >= 26


def is_valid_for_its_command(path):
    command = config.guess_command(path.parent)
    assert command == expected_command(name_of(path))
    params = config.load(path.parent, command)
    assert params.model_name in MODELS
    assert check_job(path.parent, None, []) == command
    assert json.loads(path.read_text()).keys() <= type(params).model_fields.keys(), "our names, not aliases"


def test_each_is_valid_for_its_command():
    for_every_run(is_valid_for_its_command)


def names_runs_of_the_tree(path):
    command = config.guess_command(path.parent)
    params = config.load(path.parent, command)
    if command == "train":
        return
    teacher = ROOT / params.teacher
    assert teacher / "params.json" in parameter_files()
    taught_by = config.guess_command(teacher)
    other = config.load(teacher, taught_by)
    assert params.teacher_model == other.model_name
    assert params.dataset == other.dataset
    assert taught_by in (("train",) if command == "wrap" else ("train", "wrap"))
    if command == "wrap":  # a box has its teacher's architecture
        assert (params.model_name, params.model_args) == (other.model_name, other.model_args)
    if params.key is not None:
        assert command == "distill"
        assert other.method in ("sdb", "decoy")
        assert params.key == params.teacher / "key.json"
    keyed = name_of(path).split("/")[1]
    assert (params.key is not None) == (keyed.endswith("_keyed") or keyed.startswith("partner"))


def test_each_names_runs_of_the_tree():
    for_every_run(names_runs_of_the_tree)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("CIFAR10/baseline/resnet18", {"epochs": 160, "schedule": (80, 120), "schedule_factor": 0.1}),
        ("CIFAR10/baseline/net", {"epochs": 100, "optimizer": "adam", "learning_rate": 0.001}),
        ("CIFAR10/kd_nasty_resnet18/nasty_resnet18", {"disturbance_weight": 0.04, "temperature": 4}),
        ("CIFAR100/kd_nasty_resnext29/nasty_resnext29", {"disturbance_weight": 0.005, "temperature": 20}),
        ("TinyImageNet/kd_nasty_resnet50/nasty_resnet50", {"disturbance_weight": 0.01, "temperature": 20}),
        (
            "CIFAR10/sdb/resnet18",
            {
                "epochs": 200,
                "schedule": (80, 120),
                "temperature": 4,
                "disturbance_weight": 1,
                "key_blend": 0.9,
                "augmentation_weight": 0.001,
            },
        ),
        (
            "CIFAR100/kd_normal_resnet50/resnet18",
            {"epochs": 200, "schedule": (60, 120, 160), "schedule_factor": 0.2},
        ),
        ("CIFAR100/kd_normal_resnet50/resnet18", {"kd_temperature": 20, "kd_weight": 0.9}),
        ("CIFAR10/kd_sdb_resnet18_keyed/net", {"kd_temperature": 4, "kd_weight": 0.9, "epochs": 100}),
    ],
)
def test_hyper_parameters_are_the_published_ones(run, expected):
    folder = EXPERIMENTS / run
    params = config.load(folder, config.guess_command(folder))
    assert {name: getattr(params, name) for name in expected} == expected


def test_the_papers_pairs_are_all_there():
    spec = importlib.util.spec_from_file_location("write", EXPERIMENTS / "write.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = module.all_files()
    pairs = {"CIFAR10": (("resnet18",), ("net", "preresnet20", "preresnet32", "resnet18"))}
    for name in ("CIFAR100", "TinyImageNet"):
        pairs[name] = (("resnet18", "resnet50", "resnext29"), ("shufflenetv2", "mobilenetv2", "resnet18"))
    for folder, (teachers, students) in pairs.items():
        for teacher in teachers:
            for kind in ("kd_normal_{}", "kd_nasty_{}", "kd_sdb_{}_keyless", "kd_sdb_{}_keyed"):
                for student in (*students, teacher):
                    assert f"{folder}/{kind.format(teacher)}/{student}" in files


# --- the documents ---


def parameters() -> set[str]:
    models = (
        config.TrainSettings,
        config.WrapSettings,
        config.DistillSettings,
        config.RunParams,
        config.TeacherParams,
    )
    fields = {name for model in models for name in model.model_fields}
    return fields | config.ALIASES.keys() | set(config.MODEL_ARGUMENTS) | set(config.IGNORED) | {"cuda"}


def test_the_page_of_parameters_is_what_the_models_say(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import parameter_page

    text = parameter_page.PAGE.read_text(encoding="utf-8")
    assert text == parameter_page.page(), "write it: python tests/contract/parameter_page.py"
    assert not [name for name in sorted(parameters()) if f"| `{name}` |" not in text]
    for loss, defaults in config.LOSS_DEFAULTS.items():
        assert f"| `{loss}` | " + " | ".join(f"{value:g}" for value in defaults) + " |" in text


@pytest.mark.parametrize("command", sorted(config.COMMANDS))
def test_every_parameter_is_described(command):
    rows = {row.name: row for row in parameters_of(command)}
    assert rows.keys() == config.COMMANDS[command].model_fields.keys()
    assert not [name for name, row in rows.items() if not (row.help and row.values and row.default)]


def test_a_parameter_s_values_are_in_words():
    rows = {row.name: row for row in parameters_of("wrap")}
    assert (rows["model_name"].values, rows["model_name"].default) == ("text", "required")
    assert rows["validation_fraction"].values == "number > 0 and <= 0.5"
    assert (rows["private_part"].values, rows["private_part"].default) == ("thin, whole", "thin")
    assert (rows["stream"].values, rows["stream"].default) == ("true or false or none", "none")
    assert rows["schedule"].values == "cosine, constant, one_cycle or list of whole numbers >= 0"
    assert (rows["partners"].values, rows["partners"].default) == ("list of text", "[]")


def test_box_format_page_has_a_true_example_of_a_key():
    page = (DOCS / "box-format.md").read_text(encoding="utf-8")
    key = Key(bytes(range(32)), 0.9)
    assert key.secret.hex() in page
    assert key.id in page
    assert " ".join(str(value) for value in key.pattern((1, 8, 8)).ravel()[:8]) in page


@pytest.mark.parametrize("page", ["method.md", "parameters.md", "box-format.md", "data.md"])
def test_files_that_the_pages_name_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:src/sdb|experiments|tests|docs)/[\w./-]+\.(?:py|md)\b", text))
    assert named
    for name in named:
        assert (ROOT / name).is_file(), name
