"""`sdb reproduce` as a user has it: the whole grid on the embedded digits, tiny."""

import json
import signal
import subprocess
import time

import pytest

TINY = ("--set", "epochs=1", "--set", "subset_percent=0.2")
RUNS = 22


def reproduce(run, cwd, *args):
    return run("reproduce", "digits", "--out", "grid", *TINY, *args, cwd=cwd)


def written(folder):
    """When each run's result was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("result.json")}


@pytest.fixture(scope="module")
def done(quick_sdb, tmp_path_factory):
    """A finished reproduction, and what the command said."""
    folder = tmp_path_factory.mktemp("reproduce")
    answer = reproduce(quick_sdb, folder, "--workers", "1")
    assert answer.returncode == 0, answer.stderr
    return folder, answer


def test_it_leaves_the_table_three_times(done):
    folder, answer = done
    grid = folder / "grid"
    table = json.loads((grid / "table.json").read_text())
    assert answer.stdout == (grid / "table.md").read_text()
    assert "| teacher |" in answer.stdout
    assert "page: grid/table.html" in answer.stderr
    assert (grid / "table.html").read_text().startswith("<!doctype html>")
    assert table["seeds"] == [0]
    assert table["changed"] == {"epochs": 1, "subset_percent": 0.2}
    assert table["preset"] == "fast"
    assert table["data"]["test"] == 500
    assert "CC BY 4.0" in table["data"]["note"]
    assert table["missing"] == []
    assert table["last_call"]["runs"] == RUNS == len(written(grid))
    assert [each["runs"] for each in table["environments"]] == [RUNS]
    assert {"device", "torch", "commit"} <= table["environments"][0].keys()
    for line in table["networks"] + table["students"]:
        assert len(line["accuracies"]) == 1
        assert 0 <= line["mean"] <= 1
        assert line["half"] > 0


def test_every_number_is_its_runs_last_epoch_on_test_images(done):
    grid = done[0] / "grid"
    table = json.loads((grid / "table.json").read_text())
    lines = {
        (each["row"], each["student"]): each["accuracies"][0] for each in table["networks"] + table["students"]
    }
    for row, name, metric in (
        ("teacher", "teacher/net24", "accuracy"),
        ("nasty", "nasty/net24", "keyless"),
        ("sdb.keyed", "sdb/net24", "keyed"),
        ("sdb.wrong_key", "sdb/net24", "wrong_key"),
        ("decoy.keyless", "decoy/net24", "keyless"),
    ):
        assert lines[row, None] == json.loads((grid / "seed-0" / name / "result.json").read_text())[metric]
    for row, name in (
        ("alone", "alone"),
        ("label_smoothing", "label_smoothing"),
        ("from_sdb.wrong_key", "from_sdb_wrong_key/net24"),
        ("from_decoy.keyed", "from_decoy_keyed/net24"),
        ("from_decoy.wrong_key", "from_decoy_keyless/net24"),
    ):
        result = json.loads((grid / "seed-0" / name / "mlp" / "result.json").read_text())
        assert lines[row, "mlp"] == result["accuracy"]


def test_the_folders_are_ordinary_runs(done, quick_sdb):
    folder, _ = done
    seed = folder / "grid" / "seed-0"
    assert quick_sdb("check", seed / "from_sdb_keyed/net24/mlp", cwd="/").returncode == 0
    answer = quick_sdb("evaluate", seed / "decoy/net24", "--key", seed / "decoy/net24/key.json", cwd="/")
    assert answer.returncode == 0, answer.stderr
    result = json.loads((seed / "decoy/net24/result.json").read_text())
    found = json.loads(answer.stdout)
    assert [found[name] for name in ("keyless", "keyed")] == [result[name] for name in ("keyless", "keyed")]
    # A student by hand, from the grid's box, is the grid's student.
    again = folder / "again"
    again.mkdir()
    (again / "params.json").write_text((seed / "from_decoy_keyed/net24/mlp/params.json").read_text())
    assert quick_sdb("distill", again, cwd="/").returncode == 0
    same = json.loads((again / "result.json").read_text())
    assert same == json.loads((seed / "from_decoy_keyed/net24/mlp/result.json").read_text())


def test_a_student_with_a_wrong_weight_key_is_the_keyless_one(done, quick_sdb):
    """Why the table does not run those students a second time."""
    folder, _ = done
    seed = folder / "grid" / "seed-0"
    assert quick_sdb("key", "new", folder / "wrong.json", "--kind", "weight", cwd=folder).returncode == 0
    tried = folder / "wrong_weight_key"
    tried.mkdir()
    params = json.loads((seed / "from_decoy_keyless/net24/mlp/params.json").read_text())
    params |= {"key": str(folder / "wrong.json"), "foreign_key": True}
    (tried / "params.json").write_text(json.dumps(params))
    answer = quick_sdb("distill", tried, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    keyless = json.loads((seed / "from_decoy_keyless/net24/mlp/result.json").read_text())
    assert json.loads((tried / "result.json").read_text()) == keyless


def test_it_goes_on_and_does_nothing_twice(done, quick_sdb):
    folder, _ = done
    grid = folder / "grid"
    before, table = written(grid), (grid / "table.json").read_text()
    keys = {path: path.read_bytes() for path in grid.rglob("*key.json")}
    (grid / "table.md").unlink()
    answer = reproduce(quick_sdb, folder, "--workers", "1")
    assert answer.returncode == 0, answer.stderr
    assert written(grid) == before
    assert (grid / "table.md").exists()
    assert json.loads((grid / "table.json").read_text())["students"] == json.loads(table)["students"]
    # One more seed: the first one stays.
    answer = reproduce(quick_sdb, folder, "--workers", "1", "--seeds", "2")
    assert answer.returncode == 0, answer.stderr
    after = written(grid)
    assert len(after) == 2 * RUNS
    assert {name: after[name] for name in before} == before
    assert {path: path.read_bytes() for path in keys} == keys
    table = json.loads((grid / "table.json").read_text())
    assert table["seeds"] == [0, 1]
    assert table["last_call"]["runs"] == RUNS
    assert all(len(set(line["accuracies"])) == 2 for line in table["students"] if line["row"] == "alone")


def test_other_settings_are_refused(done, quick_sdb):
    folder, _ = done
    before = written(folder / "grid")
    for args, message in (
        (("--set", "batch_size=32"), "was started differently: changed was"),
        (("--set", "seed=3"), "give it as --seeds N"),
        (("--preset", "paper"), "digits has fast"),
    ):
        answer = reproduce(quick_sdb, folder, *args)
        assert answer.returncode == 2
        assert message in answer.stderr
    assert quick_sdb("reproduce", "mnist", cwd=folder).returncode == 2
    assert written(folder / "grid") == before


def test_missing_data_leave_nothing(quick_sdb, tmp_path):
    answer = quick_sdb("reproduce", "cifar10", "--out", "grid", "--data-root", tmp_path / "no", cwd=tmp_path)
    assert answer.returncode == 2
    assert "cifar10" in answer.stderr
    assert not (tmp_path / "grid").exists()


def test_a_failed_run_leaves_the_rest_and_a_table_with_gaps(quick_sdb, tmp_path):
    args = ("--workers", "1", "--set", "disturbance_weight=1e38")
    answer = reproduce(quick_sdb, tmp_path, *args)
    assert answer.returncode == 2
    assert "seed-0/nasty/net24" in answer.stderr
    assert "is not finite" in answer.stderr
    table = json.loads((tmp_path / "grid/table.json").read_text())
    means = {each["row"]: each["mean"] for each in table["networks"] + table["students"]}
    gaps = {row for row, mean in means.items() if mean is None}
    assert gaps == {row for row in means if "nasty" in row or "sdb" in row}
    assert "Not finished: 10 run(s)" in (tmp_path / "grid/table.md").read_text()


@pytest.mark.slow
def test_stopped_and_gone_on_in_two_processes(sdb_command, done, tmp_path):
    """Ctrl-C in the middle: what is finished stays, two processes go on and end with what an undisturbed one has."""
    start, env = sdb_command
    command = [*start, "reproduce", "digits", "--out", "grid", *TINY, "--workers"]
    with subprocess.Popen(
        [*command, "1"], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        grid, until = tmp_path / "grid", time.monotonic() + 90
        while len(written(grid)) < 4 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command (without --overwrite) goes on" in said
    before = written(grid)
    assert 4 <= len(before) < RUNS
    answer = subprocess.run(
        [*command, "2"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr
    after = written(grid)
    assert len(after) == RUNS
    assert {name: after[name] for name in before} == before
    table = json.loads((grid / "table.json").read_text())
    assert table["last_call"]["runs"] == RUNS - len(before)
    # What no key has a part in is as in one process that nobody stopped.
    other = json.loads((done[0] / "grid" / "table.json").read_text())
    for mine, theirs in zip(
        table["networks"] + table["students"], other["networks"] + other["students"], strict=True
    ):
        if mine["row"] in ("teacher", "nasty", "alone", "label_smoothing", "from_teacher", "from_nasty"):
            assert mine["accuracies"][0] == theirs["accuracies"][0], mine["row"]
