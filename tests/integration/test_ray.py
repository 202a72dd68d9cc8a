"""A real Ray cluster of two nodes (see two_nodes.py): the same results as here, also when a node is killed.

All of it takes about five minutes. What is marked slow runs with `pytest tests/integration/test_ray.py`.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed: pip install 'safe-distillation-box[ray]'", allow_module_level=True)
LOOPBACK = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
if not shutil.which("unshare") or subprocess.run([*LOOPBACK, "true"], capture_output=True).returncode:
    pytest.skip("a network of its own needs unshare, ip, and the right to use them", allow_module_level=True)

AUDIT = [
    *("--attack", "labels", "--attack", "distil", "--defence", "stingy", "--defence", "decoy"),
    *("--set", "subset_percent=0.3", "--set", "epochs=6", "--set", "maker_epochs=16", "--set", "views=2"),
    *("--set", 'model_args={"num_channels": 6}', "--set", 'student_args={"num_channels": 4}'),
    *("--set", "device=cpu"),
]


@pytest.fixture(scope="module")
def on_cluster(sdb_command):
    """A function that runs `sdb ARGS` beside a cluster of two nodes, of which it may kill one."""
    start, environment = sdb_command
    script = Path(__file__).with_name("two_nodes.py")
    with subprocess.Popen(
        [*LOOPBACK, sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as nodes:
        assert json.loads(nodes.stdout.readline()) == {"ready": True}

        def run(*args, cwd, **order):
            order |= {"args": [*start, *map(str, args)], "cwd": str(cwd)}
            nodes.stdin.write(json.dumps(order) + "\n")
            nodes.stdin.flush()
            return json.loads(nodes.stdout.readline())

        yield run
        nodes.stdin.close()


def without_times(value):
    """A claim without what may differ between two runs of one audit."""
    if isinstance(value, dict):
        kept = value.keys() - {"seconds", "started", "finished", "command", "workers"}
        return {name: without_times(value[name]) for name in kept}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_an_audit_outlives_a_node_and_claims_what_a_local_one_does(on_cluster, quick_sdb, tmp_path):
    done = on_cluster("audit", "--out", "far", *AUDIT, "--cluster", "ADDRESS", cwd=tmp_path, kill="cell")
    assert done["code"] in (0, 1), done["err"]
    assert done["killed"].startswith("cell "), "no cell was running on the node that was killed"
    assert done["out"] == ""
    assert "raylet" not in done["err"]
    near = quick_sdb("audit", "--out", "near", *AUDIT, "--workers", "1", cwd=tmp_path)
    assert near.returncode == done["code"], near.stderr
    claims = [json.loads((tmp_path / place / "claim.json").read_text()) for place in ("far", "near")]
    assert without_times(claims[0]) == without_times(claims[1])
    assert claims[0]["workers"] == 2
    assert not list(tmp_path.rglob(".sdb-cluster-*"))


def epochs_of(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]


def weights_of(folder):
    return {
        name: value for name, value in load_file(folder / "last.safetensors").items() if name.startswith("model.")
    }


@pytest.mark.slow
def test_a_grid_gives_the_weights_that_it_gives_here(on_cluster, quick_sdb, write_params, tmp_path):
    for place in ("far", "near"):
        write_params(tmp_path / place / "teacher")
        write_params(tmp_path / place / "student", teacher=f"{place}/teacher", kd_weight=0.9)
    done = on_cluster("grid", "far", "--cluster", "ADDRESS", cwd=tmp_path)
    assert done["code"] == 0, done["err"]
    assert quick_sdb("grid", "near", "--workers", "1", cwd=tmp_path).returncode == 0
    for name in ("teacher", "student"):
        far, near = weights_of(tmp_path / "far" / name), weights_of(tmp_path / "near" / name)
        assert all(torch.equal(far[key], near[key]) for key in far.keys() | near.keys())


def test_what_no_node_can_do_is_said_and_nothing_is_begun(on_cluster, write_params, tmp_path):
    write_params(tmp_path / "grid" / "teacher")
    done = on_cluster("grid", "grid", "--cluster", "ADDRESS", "--task-gpus", "1", cwd=tmp_path)
    assert done["code"] == 2
    assert "no node has 1 CPU and 1 GPU for a piece of work" in done["err"]
    assert "--task-gpus, or add a node" in done["err"]
    assert [path.name for path in (tmp_path / "grid" / "teacher").iterdir()] == ["params.json"]


@pytest.mark.slow
def test_an_error_of_a_run_is_one_line_as_it_is_here(on_cluster, write_params, tmp_path):
    write_params(tmp_path / "grid" / "bad", teacher="grid/nowhere")
    done = on_cluster("grid", "grid", "--cluster", "ADDRESS", cwd=tmp_path)
    assert done["code"] == 2
    assert done["err"].splitlines()[-1].startswith("sdb: 1 of 1 failed: grid/bad: grid/nowhere")
    assert "Traceback" not in done["err"]


@pytest.mark.slow
def test_work_that_outlives_its_node_is_ended_and_done_elsewhere(on_cluster, write_params, tmp_path):
    for name in "ab":
        write_params(tmp_path / "far" / name, epochs=400)
    order = {"kill": "far/", "wait_for": str(tmp_path / "far" / "b" / "metrics.jsonl"), "orphan": True}
    done = on_cluster("grid", "far", "--cluster", "ADDRESS", cwd=tmp_path, **order)
    assert done["code"] == 0, done["err"]
    folder = tmp_path / done["killed"]
    assert (folder / "training.log").read_text().count("resumed after epoch") == 1
    assert epochs_of(folder) == list(range(1, 401))


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(on_cluster, quick_sdb, write_params, tmp_path):
    for place in ("far", "near"):
        # No batch norm: each process has the statistics of its own half of a batch.
        write_params(tmp_path / place, model_name="mlp", num_channels=None, optimizer="sgd", learning_rate=0.01)
    done = on_cluster("train", "far", "--cluster", "ADDRESS", "--processes", "2", cwd=tmp_path)
    assert done["code"] == 0, done["err"]
    assert quick_sdb("train", "near", cwd=tmp_path).returncode == 0
    far, near = weights_of(tmp_path / "far"), weights_of(tmp_path / "near")
    torch.testing.assert_close(far, near, rtol=1e-4, atol=1e-5)
    assert json.loads(done["out"]) == json.loads((tmp_path / "far" / "result.json").read_text())
    assert json.loads((tmp_path / "far" / "environment.json").read_text())["processes"] == 2
    assert sorted(path.name.split("tfevents")[0] for path in (tmp_path / "far").iterdir()) == sorted(
        path.name.split("tfevents")[0] for path in (tmp_path / "near").iterdir()
    )


@pytest.mark.slow
def test_training_goes_on_when_one_of_its_two_nodes_is_lost(on_cluster, write_params, tmp_path):
    write_params(tmp_path / "run", optimizer="sgd", learning_rate=0.01, epochs=400)
    order = {"kill": "RayTrainWorker", "wait_for": str(tmp_path / "run" / "metrics.jsonl"), "replace": True}
    done = on_cluster("train", "run", "--cluster", "ADDRESS", "--processes", "2", cwd=tmp_path, **order)
    assert done["code"] == 0, done["err"]
    assert done["killed"]
    assert epochs_of(tmp_path / "run") == list(range(1, 401))
    assert "resumed after epoch" in (tmp_path / "run" / "training.log").read_text()


@pytest.mark.slow
def test_an_error_of_a_process_is_one_line_as_it_is_here(on_cluster, write_params, tmp_path):
    write_params(tmp_path / "run", batch_size=33)
    done = on_cluster("train", "run", "--cluster", "ADDRESS", "--processes", "2", cwd=tmp_path)
    assert done["code"] == 2
    assert done["err"].splitlines()[-1].startswith("sdb: batch_size: 33 does not divide among 2 processes")
    assert done["out"] == ""
