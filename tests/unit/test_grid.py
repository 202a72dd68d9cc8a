"""A grid of run folders: which are found, which need which, and which are finished."""

import json
from pathlib import Path

import pytest

from sdb.errors import ConfigError, RunExistsError, TrainingError
from sdb.runs.grid import GridRun, find_runs, is_finished, results_of, run_grid
from sdb.runs.tasks import Where

COMMON = {
    "model_name": "net",
    "num_channels": 4,
    "dataset": "digits",
    "subset_percent": 0.3,
    "epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.003,
}
EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def quiet(done, total, name):
    pass


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a run's params.json below the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, **changes):
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.json").write_text(json.dumps(COMMON | changes))
        return folder

    return write


# --- finding ---------------------------------------------------------------------------------------------------------


def test_runs_need_those_that_make_what_they_name(write):
    write("g/a_thief", teacher="g/box", kd_weight=0.9)
    write(
        "g/box", teacher="g/teacher/best.safetensors", more_teachers=["g/second", "elsewhere"], owner="g/own.json"
    )
    write("g/partner", teacher="g/box/box", key="g/box/key.json", kd_weight=0.9)
    write("g/second")
    write("g/teacher")
    found = {each.name: each for each in find_runs([Path("g")])}
    assert {name: each.command for name, each in found.items()} == {
        "g/a_thief": "distill",
        "g/box": "wrap",
        "g/partner": "distill",
        "g/second": "train",
        "g/teacher": "train",
    }
    needs = {name: set(each.needs) for name, each in found.items()}
    assert needs["g/box"] == {"g/teacher", "g/second"}
    assert needs["g/a_thief"] == needs["g/partner"] == {"g/box"}
    assert needs["g/teacher"] == needs["g/second"] == set()


def test_the_references_names_count_too(write):
    write("g/teacher")
    write("g/student", adversarial_resume="g/teacher/best_model.tar", adversarial_model="net")
    assert find_runs([Path("g")])[0].needs == ("g/teacher",)


def test_a_folder_that_is_named_twice_is_one_run(write):
    write("g/a")
    assert [each.name for each in find_runs([Path("g"), Path("g/a"), Path("g/../g")])] == ["g/a"]


def test_the_teacher_may_be_in_another_of_the_folders(write):
    write("one/teacher")
    write("two/box", teacher="one/teacher")
    assert [each.needs for each in find_runs([Path("two"), Path("one")])] == [("one/teacher",), ()]
    assert find_runs([Path("two")])[0].needs == ()


def test_a_folder_without_runs_is_refused(write, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing: no params\.json or params\.toml is there or below"):
        find_runs([Path("nothing")])


def test_every_experiment_that_we_ship_is_found(monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    runs = find_runs([Path("experiments")])
    files = list(EXPERIMENTS.rglob("params.json"))
    assert len(runs) == len(files)
    students = [each for each in runs if each.command == "distill"]
    assert students
    assert all(each.needs for each in students)


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_done_again_and_a_longer_one_goes_on(write):
    folder = write("g/teacher", schedule="constant")
    runs, told = find_runs([Path("g")]), []
    assert not is_finished(runs[0], [])
    run_grid(runs, Where(), on_progress=quiet)
    assert is_finished(runs[0], ["device=cpu"])
    before = (folder / "result.json").stat().st_mtime_ns
    run_grid(runs, Where(), on_progress=lambda *each: told.append(each))
    assert told == []
    assert (folder / "result.json").stat().st_mtime_ns == before
    run_grid(runs, Where(), sets=["epochs=3"], on_progress=lambda *each: told.append(each))
    assert told == [(1, 1, "g/teacher")]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert "resumed after epoch 2" in (folder / "training.log").read_text()


def test_other_parameters_are_refused_and_the_run_is_left_alone(write):
    folder = write("g/teacher")
    run_grid(find_runs([Path("g")]), Where(), on_progress=quiet)
    before = (folder / "result.json").read_bytes()
    with pytest.raises(
        TrainingError, match=r"g/teacher: .*cannot resume with other parameters: batch_size was 64"
    ):
        run_grid(find_runs([Path("g")]), Where(), sets=["batch_size=32"], on_progress=quiet)
    assert (folder / "result.json").read_bytes() == before


def test_a_fault_in_any_file_is_said_before_anything_is_begun(write):
    teacher = write("g/a")
    write("g/b", epoch=3)
    with pytest.raises(ConfigError, match=r"g/b/params\.json: epoch: unknown parameter, did you mean 'epochs'"):
        run_grid(find_runs([Path("g")]), Where(), on_progress=quiet)
    assert [path.name for path in teacher.iterdir()] == ["params.json"]


def test_a_run_that_says_no_parameters_is_left_alone(write):
    folder = write("g/a")
    (folder / "last.safetensors").write_bytes(b"somebody's")
    with pytest.raises(RunExistsError, match=r"holds last\.safetensors and no params\.resolved\.json"):
        run_grid(find_runs([Path("g")]), Where(), on_progress=quiet)


def test_a_failed_run_costs_only_those_that_need_it(write):
    write("g/a_bad", teacher="g/nowhere")
    write("g/b_student", teacher="g/a_bad", kd_weight=0.9)
    write("g/c_good")
    runs = find_runs([Path("g")])
    with pytest.raises(TrainingError, match=r"1 of 3 failed: g/a_bad: .*nowhere.*not started.*: g/b_student"):
        run_grid(runs, Where(), on_progress=quiet)
    found = results_of(runs)
    assert found["g/c_good"]["accuracy"] > 0
    assert found["g/a_bad"] is found["g/b_student"] is None


def test_a_list_of_ones_own(write):
    folder = write("g/a")
    run_grid([GridRun("mine", "train", folder, needs=("finished long ago",))], Where(), on_progress=quiet)
    assert (folder / "result.json").exists()
