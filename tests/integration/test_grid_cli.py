"""`sdb grid` as its user has it: a teacher, a box, a thief and a partner in two processes; killed, and gone on with."""

import json
import subprocess
import time

import pytest
import torch

from sdb.models.checkpoint import read_tensors

RUNS = {
    "thief": {"teacher": "grid/box", "kd_weight": 0.9},
    "partner": {"teacher": "grid/box", "key": "grid/box/key.json", "kd_weight": 0.9},
    "box": {"teacher": "grid/teacher"},
    "teacher": {"subset_percent": 0.3},
}


@pytest.fixture(scope="module")
def done(quick_sdb, write_params, tmp_path_factory):
    """The folder of a grid, and the process that did it."""
    folder = tmp_path_factory.mktemp("grid")
    for name, changes in RUNS.items():
        write_params(folder / "grid" / name, **changes)
    process = quick_sdb("grid", "grid", "--workers", "2", "--json", "out.json", cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder, process


def test_a_grid_does_every_run_after_those_that_it_needs(done):
    folder, process = done
    found = json.loads((folder / "out.json").read_text())
    assert set(found) == {f"grid/{name}" for name in RUNS}
    assert set(found["grid/box"]) >= {"keyless", "keyed"}
    assert all(0 < found[f"grid/{name}"]["accuracy"] <= 1 for name in ("teacher", "thief", "partner"))
    lines = process.stderr.splitlines()
    assert any(line.startswith("grid/box ") and "keyless" in line and "keyed" in line for line in lines)
    assert process.stdout == ""


def test_its_runs_are_the_same_as_alone(done, quick_sdb, write_params):
    folder, _ = done
    write_params(folder / "alone" / "teacher", **RUNS["teacher"])
    assert quick_sdb("train", "alone/teacher", cwd=folder).returncode == 0
    tensors = [read_tensors(folder / place / "teacher" / "last.safetensors")[0] for place in ("grid", "alone")]
    records = [
        [json.loads(line)["loss"] for line in (folder / place / "teacher" / "metrics.jsonl").open()]
        for place in ("grid", "alone")
    ]
    assert records[0] == records[1]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_the_same_command_again_does_nothing_twice(done, quick_sdb):
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = quick_sdb("grid", "grid", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert "grid: " not in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no params.json"),
        (["grid", "--set", "epoch=3"], "did you mean 'epochs'"),
        (["grid", "--cluster", "nowhere"], "is no address"),
        (["grid", "--task-cpus", "0"], "task_cpus: 0"),
        (["grid", "--task-gpus", "0.5"], "add --cluster"),
    ],
)
def test_what_is_at_fault_is_one_line(done, quick_sdb, arguments, said):
    process = quick_sdb("grid", *arguments, cwd=done[0])
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert said in process.stderr


def test_a_failed_run_is_named_and_the_others_are_in_the_table(quick_sdb, write_params, tmp_path):
    write_params(tmp_path / "grid" / "bad", teacher="grid/nowhere")
    write_params(tmp_path / "grid" / "good")
    process = quick_sdb("grid", "grid", "--workers", "1", "--json", "out.json", cwd=tmp_path)
    assert process.returncode == 2
    *table, last = process.stderr.splitlines()
    assert last.startswith("sdb: 1 of 2 failed: grid/bad: ")
    assert "grid/bad   not done" in table
    assert any(line.startswith("grid/good  accuracy") for line in table)
    assert json.loads((tmp_path / "out.json").read_text())["grid/bad"] is None


def test_a_killed_grid_goes_on_where_it_was(sdb_command, quick_sdb, write_params, tmp_path):
    for name, changes in RUNS.items():
        # So long that it is killed in the midst of it.
        write_params(tmp_path / "grid" / name, **changes, epochs=60 if name == "teacher" else 2)
    start, environment = sdb_command
    metrics = tmp_path / "grid" / "teacher" / "metrics.jsonl"
    with subprocess.Popen(
        [*start, "grid", "grid", "--workers", "1"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    finished = len(metrics.read_text().splitlines())
    assert 0 < finished < 60
    done = quick_sdb("grid", "grid", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(metrics.read_text().splitlines()) == 60
    log = (metrics.parent / "training.log").read_text()
    resumed = int(log.partition("resumed after epoch ")[2].split()[0])
    assert finished <= resumed + 1
    assert "not done" not in done.stderr


def test_processes_need_a_cluster(quick_sdb, write_params, tmp_path):
    write_params(tmp_path / "run")
    process = quick_sdb("train", "run", "--processes", "2", cwd=tmp_path)
    assert process.returncode == 2
    assert "--processes: say on which --cluster" in process.stderr
    assert not (tmp_path / "run" / "params.resolved.json").exists()
