"""Run folders: nothing lost, nothing overwritten, and a run that was stopped ends as one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import CheckpointError, ConfigError, RunExistsError, StorageError
from sdb.keys import Key
from sdb.runs.folder import BEST, LAST, METRICS, RESOLVED, open_run
from sdb.runtime import write_atomic
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

CPU = torch.device("cpu")
QUICK = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "schedule": [2]}
ADAM, MOMENTUM = {"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3}


def run_training(folder, data, model, changes=(), **flags):
    chosen = TrainSettings(**{**QUICK, **dict(changes)})
    with open_run(folder, chosen.model_dump(mode="json"), CPU, **flags) as run:
        return train(model, data, chosen, run=run)


def without_times(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def lines(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM], ids=["adam", "momentum"])
@pytest.mark.parametrize("epochs_before", [1, 3])
def test_a_resumed_run_ends_with_the_weights_of_a_straight_one(
    tmp_path, few, make_net, weights_of, same_weights, optimizer, epochs_before
):
    straight = make_net(few, dropout_rate=0.3)
    expected = run_training(tmp_path / "straight", few, straight, optimizer)
    folder = tmp_path / "resumed"
    run_training(folder, few, make_net(few, dropout_rate=0.3), {**optimizer, "epochs": epochs_before})
    resumed = make_net(few, seed=99, dropout_rate=0.3)  # its own weights must not matter
    history = run_training(folder, few, resumed, optimizer, resume=True)
    assert same_weights(weights_of(resumed), weights_of(straight))
    assert without_times(history) == without_times(expected)
    assert without_times(lines(folder)) == without_times(expected)


def test_a_resumed_wrap_and_a_resumed_distillation_end_as_straight_ones(
    tmp_path, few, make_net, weights_of, same_weights
):
    teacher, key = make_net(few, seed=1), Key(bytes(range(32)))

    def box_weights(folder, epochs, **flags):
        chosen = WrapSettings(**{**QUICK, "epochs": epochs, "method": "sdb", "start": "scratch"})
        with open_run(folder, chosen.model_dump(mode="json"), CPU, **flags) as run:
            return weights_of(wrap(teacher, few, chosen, key=key, run=run).classifier)

    def student_weights(folder, epochs, **flags):
        chosen, student = DistillSettings(**{**QUICK, "epochs": epochs}), make_net(few, dropout_rate=0.2)
        with open_run(folder, chosen.model_dump(mode="json"), CPU, **flags) as run:
            distill(teacher, student, few, chosen, run=run)
        return weights_of(student)

    for number, job in enumerate((box_weights, student_weights)):
        straight = job(tmp_path / f"straight{number}", 3)
        job(tmp_path / f"resumed{number}", 2)
        assert same_weights(job(tmp_path / f"resumed{number}", 3, resume=True), straight)


def test_resuming_a_finished_run_changes_nothing_and_gives_its_model(
    folder, few, make_net, weights_of, same_weights
):
    model = make_net(few)
    expected = run_training(folder, few, model)
    before = (folder / LAST).read_bytes()
    again = make_net(few, seed=99)
    assert run_training(folder, few, again, resume=True) == expected
    assert same_weights(weights_of(again), weights_of(model))
    assert not again.training
    assert (folder / LAST).read_bytes() == before


def test_a_run_stopped_in_its_first_epoch_is_resumed_from_the_beginning(folder, few, make_net):
    run_training(folder, few, make_net(few))
    for path in folder.iterdir():
        if path.name != RESOLVED:
            path.unlink()
    assert len(run_training(folder, few, make_net(few), resume=True)) == 4


def test_resuming_where_no_run_was_begun_is_refused(folder, few, make_net):
    with pytest.raises(ConfigError, match="nothing to resume"):
        run_training(folder, few, make_net(few), resume=True)


KILLED = """
import sys, numpy as np, torch
from dataclasses import replace
from pathlib import Path
torch.set_num_threads(1)
import sdb.data
from sdb.config import TrainSettings
from sdb.models import ModelSpec
from sdb.runs.folder import open_run
from sdb.training.loop import train
data = sdb.data.load("digits", subset_percent=0.2)
settings = TrainSettings(epochs=400, batch_size=16, learning_rate=0.01, schedule=[2])
torch.manual_seed(0)
model = ModelSpec("net", {"num_channels": 4, "dropout_rate": 0.3}, 10, (1, 8, 8), data.mean, data.std).build()
with open_run(Path(sys.argv[1]), settings.model_dump(mode="json"), torch.device("cpu")) as run:
    train(model, data, settings, run=run)
"""


def test_a_killed_run_loses_at_most_the_epoch_in_progress(tmp_path, digits, make_net, weights_of, same_weights):
    folder = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while not (folder / METRICS).exists() or len(lines_written(folder)) < 3:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    written = len(lines_written(folder))
    epochs = written + 2
    resumed, straight = make_net(digits, seed=99, dropout_rate=0.3), make_net(digits, dropout_rate=0.3)
    history = run_training(folder, digits, resumed, {"epochs": epochs}, resume=True)
    train(straight, digits, TrainSettings(**{**QUICK, "epochs": epochs}))
    assert [record["epoch"] for record in history] == list(range(1, epochs + 1))
    assert same_weights(weights_of(resumed), weights_of(straight))


def lines_written(folder):
    return [line for line in (folder / METRICS).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def test_metrics_are_rebuilt_from_the_checkpoint(folder, few, make_net):
    history = run_training(folder, few, make_net(few), {"epochs": 2})
    for damage in (b"", b"not json\n", (folder / METRICS).read_bytes() * 2):
        (folder / METRICS).write_bytes(damage)
        run_training(folder, few, make_net(few), {"epochs": 2}, resume=True)
        assert lines(folder) == history


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.02}, {"seed": 1, "augment": False}, {"batch_size": 8}, {"schedule": [3]}]
)
def test_a_run_is_not_resumed_with_other_parameters(folder, few, make_net, changes):
    run_training(folder, few, make_net(few), {"epochs": 2})
    before = (folder / LAST).read_bytes()
    with pytest.raises(ConfigError) as caught:
        run_training(folder, few, make_net(few), changes, resume=True)
    assert all(name in str(caught.value) for name in changes)
    assert (folder / LAST).read_bytes() == before


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_the_length_of_a_run_is_part_of_a_schedule_that_follows_it(folder, few, make_net, schedule):
    """Until the run is finished; then it may go on, and its log says so."""
    given = {"schedule": schedule, "epochs": 2}
    run_training(folder, few, make_net(few), given)
    record = json.loads((folder / RESOLVED).read_text())
    (folder / RESOLVED).write_text(json.dumps(record | {"epochs": 5}))  # as one that was stopped in its third
    for epochs in (3, 8):
        with pytest.raises(ConfigError, match=f"epochs was 5, now {epochs} .*finish the run, then make it longer"):
            run_training(folder, few, make_net(few), {**given, "epochs": epochs}, resume=True)
    (folder / RESOLVED).write_text(json.dumps(record))
    assert len(run_training(folder, few, make_net(few), {**given, "epochs": 4}, resume=True)) == 4
    assert "made longer: 2 epochs were planned, now 4" in (folder / "training.log").read_text()
    assert json.loads((folder / RESOLVED).read_text())["epochs"] == 4


def test_a_longer_run_is_not_made_a_shorter_one(folder, few, make_net):
    run_training(folder, few, make_net(few), {"epochs": 3})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="epochs was 3, now 1"):
        run_training(folder, few, make_net(few), {"epochs": 1}, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_run_from_before_a_parameter_goes_on(folder, few, make_net):
    """A field that the run's record does not have had its default's effect."""
    run_training(folder, few, make_net(few), {"epochs": 2})
    record = json.loads((folder / RESOLVED).read_text())
    for name in ("compile", "accumulation_steps", "schedule_factor"):
        record.pop(name)
    (folder / RESOLVED).write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="accumulation_steps was 1, now 2"):
        run_training(folder, few, make_net(few), {"epochs": 2, "accumulation_steps": 2}, resume=True)
    assert len(run_training(folder, few, make_net(few), {"epochs": 3}, resume=True)) == 3


def test_a_run_of_another_architecture_is_not_resumed(folder, few, make_net):
    run_training(folder, few, make_net(few), {"epochs": 1})
    with pytest.raises(CheckpointError, match="another architecture"):
        run_training(folder, few, make_net(few, num_channels=5), resume=True)


def test_a_damaged_checkpoint_stops_the_resumption(folder, few, make_net):
    run_training(folder, few, make_net(few), {"epochs": 1})
    whole = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=LAST):
        run_training(folder, few, make_net(few), resume=True)
    assert (folder / LAST).read_bytes() == whole[:-1]


@pytest.mark.parametrize("text", ["{", "[]", "null", "\xff"])
def test_damaged_resolved_parameters_stop_the_resumption(folder, few, make_net, text):
    run_training(folder, few, make_net(few), {"epochs": 1})
    (folder / RESOLVED).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=RESOLVED):
        run_training(folder, few, make_net(few), resume=True)


# --- what a folder holds ---------------------------------------------------------------------------------------------


def test_a_run_leaves_what_its_docstring_says(folder, few, make_net):
    history = run_training(folder, few, make_net(few))
    names = {path.name.split("tfevents")[0] for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {LAST, BEST, METRICS, RESOLVED, "environment.json", "training.log", "events.out."}
    assert lines(folder) == history
    assert json.loads((folder / RESOLVED).read_text()) == TrainSettings(**QUICK).model_dump(mode="json")
    recorded = json.loads((folder / "environment.json").read_text())
    assert recorded["torch"] == torch.__version__
    assert recorded["device"] == "cpu"
    log = (folder / "training.log").read_text()
    assert all(f"epoch {number}:" in log for number in range(1, 5))


def test_best_is_the_epoch_with_the_highest_validation_accuracy(folder, digits, make_net):
    from sdb.models.checkpoint import load_classifier
    from sdb.training.evaluation import evaluate, evaluation_batches

    history = run_training(
        folder, digits, make_net(digits), {"learning_rate": 0.05, "epochs": 6, "schedule": "constant"}
    )
    best = load_classifier(folder / BEST)
    accuracies = [record["validation"]["accuracy"] for record in history]
    assert evaluate(best, evaluation_batches(digits.validation, CPU))["accuracy"] == max(accuracies)


def test_board_holds_the_numbers_of_every_epoch(folder, few, make_net):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = run_training(folder, few, make_net(few))
    board = EventAccumulator(str(folder)).Reload()
    values = [event.value for event in board.Scalars("validation/accuracy")]
    assert values == pytest.approx([record["validation"]["accuracy"] for record in history])


def test_params_json_is_never_written(folder, few, make_net):
    folder.mkdir()
    (folder / "params.json").write_text("mine")
    run_training(folder, few, make_net(few))
    run_training(folder, few, make_net(few), overwrite=True)
    assert (folder / "params.json").read_text() == "mine"


def test_the_log_of_the_library_is_left_as_it_was(folder, few, make_net):
    from sdb.runs.folder import log

    before = list(log.handlers)
    run_training(folder, few, make_net(few), {"epochs": 1})
    assert log.handlers == before


# --- other runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [LAST, METRICS, "result.json"])
def test_a_folder_with_a_run_is_refused_with_the_ways_out(folder, few, make_net, present):
    folder.mkdir()
    (folder / present).write_text("precious")
    with pytest.raises(RunExistsError, match=r"--resume.*--overwrite"):
        run_training(folder, few, make_net(few))
    assert (folder / present).read_text() == "precious"
    assert {path.name for path in folder.iterdir()} <= {present, ".lock"}


def test_overwriting_discards_the_run_and_nothing_else(folder, few, make_net):
    run_training(folder, few, make_net(few))
    (folder / "notes.txt").write_text("mine")
    history = run_training(folder, few, make_net(few, seed=1), {"epochs": 1, "learning_rate": 0.5}, overwrite=True)
    assert lines(folder) == history
    assert len(history) == 1
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    assert (folder / "training.log").read_text().count("epoch 1:") == 1
    assert (folder / "notes.txt").read_text() == "mine"


HOLD = """
import sys
from pathlib import Path
from sdb.runtime import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_process_writes_to_is_refused(folder, few, make_net):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunExistsError, match="another process"):
                run_training(folder, few, make_net(few), **flags)
        process.kill()
    assert len(run_training(folder, few, make_net(few))) == 4  # the lock ends with its process


# --- disks -----------------------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys, torch
from pathlib import Path
torch.set_num_threads(1)
import sdb.data
from sdb.config import TrainSettings
from sdb.errors import StorageError
from sdb.models import ModelSpec
from sdb.runs.folder import open_run
from sdb.training.loop import train
from torch.utils.tensorboard import SummaryWriter
data = sdb.data.load("digits", subset_percent=0.2)
model = ModelSpec("net", {"num_channels": 4}, 10, (1, 8, 8), data.mean, data.std).build()
settings = TrainSettings(epochs=2, batch_size=64, learning_rate=0.01, schedule="constant")
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    with open_run(Path(sys.argv[1]), settings.model_dump(mode="json"), torch.device("cpu"), resume=True) as run:
        train(model, data, settings, run=run)
except StorageError as error:
    print("StorageError", error)
"""


def test_a_full_disk_is_reported_and_the_last_epoch_stays_whole(folder, digits, make_net):
    one = {"epochs": 1, "batch_size": 64, "schedule": "constant"}
    run_training(folder, digits, make_net(digits), one)
    before = {name: (folder / name).read_bytes() for name in (LAST, BEST)}
    assert min(map(len, before.values())) > 9000
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("StorageError cannot write"), done.stderr
    assert "free space" in done.stdout
    assert {name: (folder / name).read_bytes() for name in (LAST, BEST)} == before
    assert not [path for path in folder.iterdir() if path.name.startswith((f".{LAST}", f".{BEST}"))]
    assert len(run_training(folder, digits, make_net(digits), {**one, "epochs": 2}, resume=True)) == 2


@given(st.binary(max_size=100), st.binary(max_size=100), st.sampled_from([0o600, 0o644]))
@settings(max_examples=20, deadline=None)
def test_an_atomic_write_replaces_the_whole_file(tmp_path_factory, first, second, mode):
    path = tmp_path_factory.mktemp("atomic") / "deep" / "file"
    write_atomic(path, first)
    write_atomic(path, second, mode)
    assert path.read_bytes() == second
    assert path.stat().st_mode & 0o777 == mode
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_cannot_be_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "file" / "under", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "folder", b"x")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_run_folder_that_cannot_be_made_is_a_storage_error(tmp_path, few, make_net):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        run_training(Path(tmp_path / "file" / "run"), few, make_net(few))
