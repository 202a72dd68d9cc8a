"""The grid and the table of `sdb reproduce`: what is run, what it is run with, and what the table makes of it."""

import importlib.util
import json
import math
import random
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from sdb import config
from sdb.errors import ConfigError, RunExistsError
from sdb.report.intervals import Z, t_quantile, wilson
from sdb.reproduction import job, recipes
from sdb.reproduction.page import render
from sdb.reproduction.plan import ALONE, NETWORKS, STUDENTS, changes_by_command, make_plan
from sdb.reproduction.printed import PRINTED, printed_for, silence
from sdb.reproduction.published import SGD, TABLES, published
from sdb.reproduction.recipes import FAST_BATCH, RECIPES, fast, recipe_of
from sdb.reproduction.table import against, findings, make_table, summary
from sdb.reproduction.text import markdown

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("/somewhere")
GRIDS = [(dataset, preset) for dataset, presets in RECIPES.items() for preset in presets]
every_grid = pytest.mark.parametrize(("dataset", "preset"), GRIDS, ids=lambda value: value)
# Where a run lies and what it is of: not hyper-parameters.
PLACES = {"teacher", "key", "seed", "foreign_key"}


def plan_of(dataset, preset, **options):
    recipe = recipe_of(dataset, preset)[1]
    return recipe, make_plan(recipe, OUT, **{"seeds": 1, "data_root": None} | options)


def cells_of(recipe):
    """Every line and column of a table."""
    for teacher in recipe.teachers:
        yield from ((row, teacher, None) for row in NETWORKS)
        yield from (
            (row, None if row.id in ALONE else teacher, student)
            for row in STUDENTS
            for student in recipe.students_of(teacher)
        )


# --- the grid ---


@every_grid
def test_runs_are_whole_and_in_order(dataset, preset):
    _, plan = plan_of(dataset, preset, seeds=2)
    names = [run.name for run in plan.runs]
    assert len(set(names)) == len(names)
    seen = set()
    for run in plan.runs:
        assert set(run.needs) <= seen, "a run comes after those that it needs"
        seen.add(run.name)
        params = config.validate(json.loads(json.dumps(run.params)), run.command, run.name)
        assert run.name.startswith(f"seed-{params.seed}/")
        assert params.dataset == dataset
        made_by_others = {Path(params.teacher)} if run.command != "train" else set()
        if run.command == "distill" and params.key is not None and not params.foreign_key:
            assert params.key == params.teacher / "key.json"
        if run.command == "distill" and params.foreign_key:
            made = params.key.relative_to(OUT)
            assert str(made) in plan.wrong_keys
            assert plan.wrong_keys[str(made)] == recipe_of(dataset, preset)[1].boxes["sdb"]["key_blend"]
        assert made_by_others == {OUT / need for need in run.needs}


@every_grid
def test_a_params_file_says_its_command(dataset, preset, tmp_path):
    for run in plan_of(dataset, preset)[1].runs:
        (tmp_path / "params.json").write_text(json.dumps(run.params))
        assert config.guess_command(tmp_path) == run.command, run.name


@every_grid
def test_every_cell_has_its_run(dataset, preset):
    recipe, plan = plan_of(dataset, preset)
    commands = {run.name: run.command for run in plan.runs}
    read = set()
    for row, teacher, student in cells_of(recipe):
        name = plan.run_of(0, row, teacher, student)
        read.add(name)
        assert commands[name] == (
            "wrap" if row in NETWORKS[1:] else "train" if row.id in (*ALONE, "teacher") else "distill"
        )
    assert read == set(commands), "every run is in the table"


def test_students_of_the_same_network_differ_in_what_they_are_told_alone():
    _, plan = plan_of("cifar10", "fast")
    told = {"teacher", "key", "foreign_key", "loss", "kd_weight", "ce_weight", "kd_temperature", "teacher_model"}
    students = [run for run in plan.runs if run.name.endswith("/preresnet20")]
    assert len(students) == 9
    rest = [{n: v for n, v in run.params.items() if n not in {*told, "label_smoothing"}} for run in students]
    assert all(each == rest[0] for each in rest), "the bar and the thieves are trained alike"


def test_a_students_run_is_the_teachers_where_it_would_be_the_same():
    _, paper = plan_of("cifar10", "paper")
    assert paper.same == {"seed-0/alone/resnet18": "seed-0/teacher/resnet18"}
    _, short = plan_of("cifar10", "fast")  # its teachers are trained for longer than its students
    assert short.same == {}


def test_the_arithmetic_of_the_short_schedule():
    _, plan = plan_of("cifar10", "fast")
    forwards = 0.0
    for run in plan.runs:
        large = run.params["model_name"] == "resnet18"
        training = 3 if large else 0.75
        epoch = {"train": training, "distill": training + 1}.get(run.command)
        if run.command == "wrap":
            epoch = {"nasty": 4, "sdb": 8, "decoy": 7}[run.params["method"]]
        forwards += epoch * run.params["epochs"]
    page = " ".join(recipes.__doc__.split())
    seconds = forwards * 45000 / (3 * 27500)
    assert f"{forwards:g} F = {seconds:.0f} s" in page
    assert f"starting {len(plan.runs)} runs" in page
    assert seconds < 0.9 * 600


@pytest.mark.parametrize("folder", TABLES)
def test_the_paper_preset_is_the_experiments(folder):
    spec = importlib.util.spec_from_file_location("write", ROOT / "experiments" / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = {
        name.removeprefix(f"{folder}/"): params
        for name, params in module.all_files().items()
        if name.startswith(f"{folder}/")
    }
    _, plan = plan_of(TABLES[folder][0], "paper")
    seen = set()
    for run in plan.runs:
        _, kind, *rest = run.name.split("/")
        if kind.startswith("from_"):
            told = kind.removeprefix("from_").replace("teacher", "normal").replace("wrong_key", "keyed")
            method, _, how = told.partition("_")
            name = f"kd_{method}_{rest[0]}{'_' if how else ''}{how}/{rest[1]}"
        else:
            name = {"teacher": "baseline", "alone": "baseline", "label_smoothing": "baseline_label_smoothing"}.get(
                kind, kind
            )
            name = f"kd_nasty_{rest[0]}/nasty_{rest[0]}" if kind == "nasty" else f"{name}/{rest[0]}"
        seen.add(name)
        ours = {each: value for each, value in run.params.items() if each not in PLACES}
        theirs = {each: value for each, value in files[name].items() if each not in PLACES}
        assert ours == theirs, run.name
        assert ("key" in run.params) == ("key" in files[name])
    assert seen == files.keys()


@pytest.mark.parametrize("folder", TABLES)
def test_the_short_schedule_keeps_what_the_batch_must_not_change(folder):
    short, long = fast(folder), published(folder)
    larger = FAST_BATCH / SGD["batch_size"]
    assert short.training["learning_rate"] / FAST_BATCH == SGD["learning_rate"] / SGD["batch_size"]
    for name in ("preservation_weight", "augmentation_weight"):  # sums over the batch
        assert short.boxes["sdb"][name] * larger == long.boxes["sdb"][name]
    for method in ("nasty", "sdb"):
        for name in ("disturbance_weight", "temperature"):
            assert short.boxes[method][name] == long.boxes[method][name]
    assert short.distilling == long.distilling
    assert (short.teachers, short.others) == (long.teachers, long.others)
    assert short.training["epochs"] < short.teacher_training["epochs"] < long.training["epochs"]


def test_names_and_presets():
    assert recipe_of("tiny-imagenet", None)[0] == "paper"
    assert recipe_of("digits", None)[0] == "fast"
    with pytest.raises(ConfigError, match="mnist: there is no table for it; choose cifar10, cifar100"):
        recipe_of("mnist", None)
    with pytest.raises(ConfigError, match="--preset paper: digits has fast"):
        recipe_of("digits", "paper")


def test_the_tables_need_no_torch():
    code = "import sys, sdb.reproduction.recipes, sdb.reproduction.printed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- changes ---


def test_a_change_reaches_every_run_that_has_the_parameter():
    recipe, plan = plan_of(
        "digits", "fast", changes=["num_epochs=3", "kd_temperature=7", "disturbance_weight=0.5"]
    )
    assert {run.params["epochs"] for run in plan.runs} == {3}
    for run in plan.runs:
        assert run.params.get("kd_temperature") == (7 if run.command == "distill" else None)
        assert run.params.get("disturbance_weight") == (0.5 if run.command == "wrap" else None)
    assert recipe.training["epochs"] != 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=1", "give it as --seeds N"),
        ("data_root=here", "give it as --data-root DIR"),
        ("model_name=net", "the grid is made of it"),
        ("num_channels=4", "the grid is made of it"),
        ("teacher=x", "the grid is made of it"),
        ("lamb=0.5", "the grid is made of it"),
        ("label_smoothing=0.2", "the grid is made of it"),
        ("epoch=1", "did you mean 'epochs'"),
        ("epochs", "expected KEY=VALUE"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        changes_by_command([change])


def test_a_change_out_of_range_is_refused_before_anything_runs():
    with pytest.raises(
        ConfigError, match=r"seed-0/teacher/net24: epochs: input should be greater than or equal to 1"
    ):
        plan_of("digits", "fast", changes=["epochs=0"])


# --- what others print ---


def test_printed_numbers_are_of_cells_and_have_sources():
    for each in PRINTED:
        recipe = recipe_of(each.dataset, None)[1]
        cells = {(row.id, teacher, student) for row, teacher, student in cells_of(recipe)}
        assert (each.row, each.teacher, each.student) in cells
        assert 0 < each.accuracy < 1
        assert "https://" in each.source
        assert each.paper or "not the paper's number" in each.source
    found = printed_for("cifar100", "teacher", "resnet50", None)
    assert [(each.accuracy, each.paper) for each in found] == [(0.7812, True), (0.76681, False)]


@every_grid
def test_every_line_without_a_number_has_a_word(dataset, preset):
    for row, _, _ in cells_of(recipe_of(dataset, preset)[1]):
        assert silence(dataset, row.id).startswith(("not read: the tables of ", "nothing: "))
    assert silence("cifar10", "decoy.keyed") == "nothing: it is ours"
    assert silence("tiny_imagenet", "from_sdb.keyed") == "nothing: not their data"
    assert silence("tiny_imagenet", "alone") == "not read: the tables of Nasty Teacher"


# --- the mathematics ---


def slow_half(values, images):
    low, high = wilson(sum(values) / len(values), images)
    half = (high - low) / 2
    if len(values) >= 3:
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        half = max(half, t_quantile(len(values) - 1) * spread / math.sqrt(len(values)))
    return half


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_means_and_intervals_against_a_loop(seeds):
    luck = random.Random(seeds)
    for _ in range(50):
        values = [luck.uniform(0.3, 1) for _ in range(seeds)]
        bar = [luck.uniform(0.3, 1) for _ in range(seeds)]
        values[0] = None if seeds > 1 and luck.random() < 0.3 else values[0]
        known = [value for value in values if value is not None]
        found = summary(values, 1000)
        assert found["mean"] == pytest.approx(sum(known) / len(known))
        assert found["half"] == pytest.approx(slow_half(known, 1000))
        stand = against(values, bar, 1000)
        pairs = [(a, b) for a, b in zip(values, bar, strict=True) if a is not None]
        gaps = [a - b for a, b in pairs]
        # With one image right and one wrong more on each side.
        p, q = ((1000 * sum(each) / len(each) + 1) / 1002 for each in zip(*pairs, strict=True))
        clear = Z * math.sqrt(p * (1 - p) / 1002 + q * (1 - q) / 1002)
        half = clear
        if len(gaps) >= 3:
            half = max(clear, t_quantile(len(gaps) - 1) * statistics.stdev(gaps) / math.sqrt(len(gaps)))
        assert stand["gap"] == pytest.approx(sum(gaps) / len(gaps))
        assert stand["half"] == pytest.approx(half)
        mean = sum(gaps) / len(gaps)
        above = mean > 0 and (mean >= half or (len(gaps) >= 3 and min(gaps) >= clear))
        assert stand["place"] == ("above" if above else "below" if mean <= -half else "at")


def test_nothing_measured_is_no_number():
    assert summary([None, None], 100) == {"mean": None, "half": None}
    assert against([None, 0.5], [0.5, None], 100) is None


@pytest.fixture
def made(tmp_path):
    """A finished grid of two seeds with invented results, but for one student; the table, and what is in the files."""
    recipe = recipe_of("digits", None)[1]
    plan = make_plan(recipe, tmp_path, seeds=2, data_root=None, changes=["epochs=2"])
    luck = random.Random(1)
    results = {}
    for run in plan.runs:
        folder = tmp_path / run.name
        folder.mkdir(parents=True)
        metrics = ("keyless", "keyed", "wrong_key") if run.command == "wrap" else ("accuracy",)
        results[run.name] = {metric: luck.uniform(0.5, 1) for metric in metrics}
        (folder / "result.json").write_text(json.dumps(results[run.name]))
        (folder / "environment.json").write_text(
            json.dumps({"device": "cpu", "commit": run.name[:6], "torch": "2"})
        )
        (folder / "metrics.jsonl").write_text('{"seconds": 0.5}\n{"seconds": 0.25}\n')
    gap = "seed-1/from_nasty/net24/mlp"
    done = {run.name for run in plan.runs} - {gap}
    asked = {"dataset": "digits", "preset": "fast", "changed": {"epochs": 2}}
    facts = {"name": "<b>digits</b>", "note": "a | note", "train": 9, "validation": 1, "test": 500, "classes": 10}
    call = {"seconds": 61.0, "runs": 3}
    table = job.write_table(recipe, plan, tmp_path, done, asked, facts, seeds=2, call=call)
    return tmp_path, table, results, gap


def test_the_table_holds_every_result(made):
    folder, table, results, gap = made
    assert json.loads((folder / "table.json").read_text()) == table
    lines = {
        (each["row"], each["teacher"], each["student"]): each for each in table["networks"] + table["students"]
    }
    assert len(lines) == 8 + 2 * 10
    for (row, teacher, student), line in lines.items():
        kind, _, metric = row.partition(".")
        for seed, value in enumerate(line["accuracies"]):
            if kind.startswith("from_") and metric:
                metric_folder = "keyless" if row == "from_decoy.wrong_key" else metric
                name = f"seed-{seed}/{kind}_{metric_folder}/{teacher}/{student}"
            else:
                name = "/".join(filter(None, (f"seed-{seed}", kind, teacher, student)))
            wanted = results[name][
                metric or ("keyless" if kind == "nasty" else "accuracy") if not student else "accuracy"
            ]
            assert value == (None if name == gap else wanted), name
    assert table["missing"] == [gap]
    assert lines["from_nasty", "net24", "mlp"]["mean"] == results["seed-0/from_nasty/net24/mlp"]["accuracy"]
    assert table["training_seconds"] == pytest.approx(0.75 * (len(results) - 1), abs=0.051)
    assert {each["commit"]: each["runs"] for each in table["environments"]} == {
        "seed-0": len(results) // 2,
        "seed-1": len(results) // 2 - 1,
    }


def test_findings_count_the_bar(made):
    _, table, _, _ = made
    for finding in findings(table):
        students = [each for each in table["students"] if each["row"] == finding["row"]]
        above = sum(each["bar"]["gap"] > 0 and each["bar"]["place"] == "above" for each in students)
        assert finding["above"] == above
        assert finding["students"] == 2
    assert [each["row"] for each in findings(table)][:3] == ["from_teacher", "from_nasty", "from_sdb.keyless"]


def test_text_and_page_say_what_the_table_says(made):
    folder, table, _, _ = made
    text, page = (folder / "table.md").read_text(), (folder / "table.html").read_text()
    assert text == markdown(table)
    assert page == render(table)
    for each in table["networks"] + table["students"]:
        number = f"{100 * each['mean']:.1f} ± {100 * each['half']:.1f}"
        assert number in text
        assert number in page
    for shown in (text, page):
        assert "Changed by --set: epochs=2" in shown.replace("\\", "")
        assert "Not finished: 1 run(s), seed-1/from" in shown.replace("\\", "")
        assert "1 min 01 s" in shown.replace("\u00a0", " ")
    assert text.count("▲") - 1 == sum(each["bar"]["place"] == "above" for each in table["students"] if each["bar"])
    assert "<b>digits</b>" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page), "the page loads nothing"
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + 8 + 1 + 10 + 2


def test_printed_numbers_stand_beside_ours(tmp_path):
    recipe, plan = plan_of("cifar100", "paper")
    facts = {"name": "cifar100", "note": "", "train": 9, "validation": 1, "test": 10000, "classes": 100}
    asked = {"dataset": "cifar100", "preset": "paper", "changed": {}}
    job.write_table(recipe, plan, tmp_path, set(), asked, facts, seeds=1, call={"seconds": 0.0, "runs": 0})
    assert make_table(recipe, plan, tmp_path, set(), seeds=1, images=10000)["missing"] == [
        run.name for run in plan.runs
    ]
    text = (tmp_path / "table.md").read_text()
    assert "| teacher | – (77.44 [1]) (78.085 [2]) | – (78.12 [1]) (76.681 [2]) | – | not read" in text
    assert "1. Nasty Teacher (Ma et al., ICLR 2021)" in text
    assert '<small>printed 77.44 <a href="#source-1">[1]</a></small>' in (tmp_path / "table.html").read_text()


# --- the folder ---


def test_a_folder_is_taken_once_and_kept(tmp_path):
    asked = {"dataset": "digits", "preset": "fast", "changed": {}}
    job.take(tmp_path, asked, overwrite=False)
    job.take(tmp_path, asked, overwrite=False)
    with pytest.raises(ConfigError, match=r"started differently: changed was \{\}, now \{'epochs': 1\}"):
        job.take(tmp_path, asked | {"changed": {"epochs": 1}}, overwrite=False)
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "mine.txt").touch()
    job.take(tmp_path, asked | {"changed": {"epochs": 1}}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "reproduction.json"]


def test_a_folder_with_other_runs_is_refused(tmp_path):
    (tmp_path / "seed-0").mkdir()
    for overwrite in (False, True):
        with pytest.raises(RunExistsError, match="holds runs that no reproduction made"):
            job.take(tmp_path, {}, overwrite=overwrite)


def test_params_and_wrong_keys_are_written_once(tmp_path):
    recipe = recipe_of("digits", None)[1]
    job.write_runs(make_plan(recipe, tmp_path, seeds=1, data_root=None), tmp_path)
    key = (tmp_path / "seed-0/wrong_key.json").read_bytes()
    moved = make_plan(recipe, tmp_path, seeds=1, data_root=tmp_path)
    job.write_runs(moved, tmp_path)  # the data lie elsewhere now
    assert (tmp_path / "seed-0/wrong_key.json").read_bytes() == key
    path = tmp_path / "seed-0/teacher/net24/params.json"
    assert json.loads(path.read_text())["data_root"] == str(tmp_path)
    path.write_text(path.read_text().replace('"epochs": 20', '"epochs": 21'))
    with pytest.raises(ConfigError, match=r"teacher/net24/params\.json: epochs differ"):
        job.write_runs(moved, tmp_path)
