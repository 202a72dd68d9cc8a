"""A run that is killed, interrupted or refused loses at most the epoch in progress."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest
import torch
from safetensors import safe_open

PATIENCE = 120.0  # seconds until an epoch that does not come fails the test
EPOCHS = 6


def checkpoint(folder):
    """Tensors of last.safetensors."""
    with safe_open(folder / "last.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def epochs(folder):
    """Epochs in metrics.jsonl; a last line in the making is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["epoch"] for line in lines if line.endswith("\n")]


def same_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_seconds(folder):
    """All that metrics.jsonl says but how long it took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def stop(sdb_command):
    """A function that starts a command and sends it a signal once it has finished an epoch."""
    start, env = sdb_command
    running = []

    def run(*args, cwd, folder, epoch, number):
        process = subprocess.Popen(
            [*start, *args],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # What starts the tests in the background ignores Ctrl-C, and so would they.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        running.append(process)
        limit = time.monotonic() + PATIENCE
        while epoch not in epochs(folder):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit, f"epoch {epoch} did not come"
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, write_params):
    """A teacher and a key."""
    place = tmp_path_factory.mktemp("resume")
    write_params(place / "teacher", epochs=3)
    assert quick_sdb("train", "teacher", cwd=place).returncode == 0
    assert quick_sdb("key", "new", "key.json", "--kind", "image", "--blend", "0.5", cwd=place).returncode == 0
    return place


# Epochs of some tenths of a second, so that a signal falls within the run.
SLOW = {"subset_percent": None, "batch_size": 24, "epochs": EPOCHS, "dropout_rate": 0.1}
WRAP = {
    "teacher": "teacher",
    "method": "sdb",
    "subset_percent": None,
    "batch_size": 16,
    "epochs": EPOCHS,
    "disturbance_weight": 0.1,
    "allowed_loss": 1,
}


class TestKill:
    def test_train_resumes_to_the_same_weights(self, place, stop, quick_sdb, write_params):
        for name in ("whole", "killed"):
            write_params(place / name, **SLOW)
        assert quick_sdb("train", "whole", cwd=place).returncode == 0
        folder = place / "killed"
        killed = stop("train", "killed", cwd=place, folder=folder, epoch=2, number=signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        assert len(epochs(folder)) < EPOCHS
        assert not (folder / "result.json").exists()
        assert not same_tensors(checkpoint(folder), checkpoint(place / "whole"))

        refused = quick_sdb("train", "killed", cwd=place)
        assert refused.returncode == 2
        assert "--resume" in refused.stderr

        done = quick_sdb("train", "killed", "--resume", cwd=place)
        assert done.returncode == 0, done.stderr
        assert same_tensors(checkpoint(folder), checkpoint(place / "whole"))
        assert epochs(folder) == list(range(1, EPOCHS + 1))
        assert without_seconds(folder) == without_seconds(place / "whole")
        assert (folder / "result.json").read_text() == (place / "whole" / "result.json").read_text()
        assert "resumed after epoch" in (folder / "training.log").read_text()

    @pytest.mark.slow
    def test_wrap_resumes_to_the_same_box(self, place, stop, quick_sdb, write_params):
        """The key made at the start is kept, and used again."""
        folder = write_params(place / "box_killed", **WRAP, key_blend=0.5)
        stop("wrap", "box_killed", cwd=place, folder=folder, epoch=2, number=signal.SIGKILL)
        assert not (folder / "box").exists()
        key = (folder / "key.json").read_bytes()
        write_params(place / "box_whole", **WRAP)
        whole = quick_sdb("wrap", "box_whole", "--key", "box_killed/key.json", cwd=place)
        assert whole.returncode == 0, whole.stderr

        done = quick_sdb("wrap", "box_killed", "--resume", cwd=place)
        assert done.returncode == 0, done.stderr
        assert (folder / "key.json").read_bytes() == key
        assert same_tensors(checkpoint(folder), checkpoint(place / "box_whole"))
        name = "box/weights.safetensors"
        assert (folder / name).read_bytes() == (place / "box_whole" / name).read_bytes()
        assert epochs(folder) == list(range(1, EPOCHS + 1))
        results = [json.loads((place / run / "result.json").read_text()) for run in ("box_killed", "box_whole")]
        for name in ("keyless", "keyed"):
            assert results[0][name] == results[1][name]

    @pytest.mark.slow
    def test_distill_resumes_to_the_same_student(self, place, stop, quick_sdb, write_params):
        for name in ("student_whole", "student_killed"):
            write_params(place / name, **SLOW, teacher="teacher", optimizer="sgd", schedule=[2, 4])
        assert quick_sdb("distill", "student_whole", cwd=place).returncode == 0
        folder = place / "student_killed"
        stop("distill", "student_killed", cwd=place, folder=folder, epoch=3, number=signal.SIGKILL)
        assert quick_sdb("distill", "student_killed", "--resume", cwd=place).returncode == 0
        assert same_tensors(checkpoint(folder), checkpoint(place / "student_whole"))


class TestInterrupt:
    def test_says_how_to_go_on(self, place, stop, quick_sdb, write_params):
        folder = write_params(place / "interrupted", **SLOW | {"epochs": 200})
        more = ("train", "interrupted", "--set", "seed=7", "--set", "epochs=100", "--overwrite")
        done = stop(*more, cwd=place, folder=folder, epoch=2, number=signal.SIGINT)
        assert (done.returncode, done.stdout) == (130, "")
        *talk, last = done.stderr.splitlines()
        assert all(line.startswith("train interrupted: epoch ") for line in talk)
        assert last == (
            "sdb: interrupted; finished epochs are kept, continue with: "
            "sdb train interrupted --set seed=7 --set epochs=100 --resume"
        )
        assert not list(folder.glob(".*.safetensors.*"))
        kept = len(epochs(folder))
        assert 2 <= kept < 100
        # A constant schedule would allow another end; this one is cosine, and the run is not finished.
        refused = quick_sdb("train", "interrupted", "--resume", "--set", "epochs=200", cwd=place)
        assert refused.returncode == 2
        assert "epochs was 100, now 200" in refused.stderr


class TestBegunWith:
    """--resume takes what the run was started with, whatever params.json says, and says where they differ."""

    def test_what_was_set_stays_set(self, place, stop, quick_sdb, write_params):
        for name in ("told", "told_whole"):
            write_params(place / name, **SLOW | {"epochs": 200})
        sets = ("--set", "epochs=5", "--set", "seed=3", "--set", "model_args.num_channels=5")
        assert quick_sdb("train", "told_whole", *sets, cwd=place).returncode == 0
        stop("train", "told", *sets, cwd=place, folder=place / "told", epoch=2, number=signal.SIGKILL)
        done = quick_sdb("train", "told", "--resume", cwd=place)
        assert done.returncode == 0, done.stderr
        assert "epochs is 5" in done.stderr
        assert "seed is 3" in done.stderr
        assert epochs(place / "told") == [1, 2, 3, 4, 5]
        assert same_tensors(checkpoint(place / "told"), checkpoint(place / "told_whole"))
        # Finished, it can be made longer, also on a schedule that follows the number of epochs.
        longer = quick_sdb("train", "told", "--resume", "--set", "epochs=7", cwd=place)
        assert longer.returncode == 0, longer.stderr
        assert epochs(place / "told") == [1, 2, 3, 4, 5, 6, 7]
        assert json.loads((place / "told" / "params.resolved.json").read_text())["seed"] == 3
        # And the file is not needed any more.
        (place / "told" / "params.json").unlink()
        assert quick_sdb("train", "told", "--resume", cwd=place).returncode == 0


class TestAnotherRun:
    @pytest.fixture
    def done_run(self, place, quick_sdb, write_params):
        folder = write_params(place / "again", schedule="constant")
        assert quick_sdb("train", "again", "--overwrite", cwd=place).returncode == 0
        return folder

    def test_refused_without_a_word(self, place, done_run, quick_sdb):
        before = checkpoint(done_run)
        refused = quick_sdb("train", "again", "--set", "seed=1", cwd=place)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("sdb: again already holds a run")
        assert "--resume" in refused.stderr
        assert "--overwrite" in refused.stderr
        assert same_tensors(before, checkpoint(done_run))

    def test_overwrite(self, place, done_run, quick_sdb):
        before = checkpoint(done_run)
        assert quick_sdb("train", "again", "--set", "seed=1", "--overwrite", cwd=place).returncode == 0
        assert not same_tensors(before, checkpoint(done_run))
        assert epochs(done_run) == [1, 2]
        assert len(list(done_run.glob("events.out.tfevents.*"))) == 1

    def test_resume_with_other_parameters(self, place, done_run, quick_sdb):
        before = checkpoint(done_run)
        refused = quick_sdb(
            "train", "again", "--resume", "-s", "seed=1", "-s", "batch_size=32", "-s", "epochs=9", cwd=place
        )
        assert refused.returncode == 2
        assert "batch_size was 64, now 32" in refused.stderr
        assert "seed was 0, now 1" in refused.stderr
        assert "epochs was" not in refused.stderr
        assert same_tensors(before, checkpoint(done_run))

    def test_resume_for_more_epochs(self, place, done_run, quick_sdb):
        """Allowed where the schedule does not depend on the number of epochs."""
        assert quick_sdb("train", "again", "--resume", "-s", "epochs=3", cwd=place).returncode == 0
        assert epochs(done_run) == [1, 2, 3]

    def test_resume_of_a_finished_run_changes_nothing(self, place, done_run, quick_sdb):
        before, result = checkpoint(done_run), (done_run / "result.json").read_text()
        assert quick_sdb("train", "again", "--resume", cwd=place).returncode == 0
        assert same_tensors(before, checkpoint(done_run))
        assert (done_run / "result.json").read_text() == result

    def test_overwriting_a_box_keeps_the_key_and_discards_the_box(self, place, stop, quick_sdb, write_params):
        folder = write_params(place / "rewrapped", **WRAP | {"epochs": 1, "subset_percent": 0.3})
        assert quick_sdb("wrap", "rewrapped", cwd=place).returncode == 0
        key, box = (folder / "key.json").read_bytes(), json.loads((folder / "box/box.json").read_text())["id"]
        longer = ("wrap", "rewrapped", "--overwrite", "--set", "epochs=200")
        stop(*longer, cwd=place, folder=folder, epoch=2, number=signal.SIGKILL)
        assert not (folder / "box").exists()
        assert quick_sdb("wrap", "rewrapped", "--overwrite", cwd=place).returncode == 0
        assert (folder / "key.json").read_bytes() == key
        assert json.loads((folder / "box/box.json").read_text())["id"] != box

    def test_a_second_process_in_the_folder_is_refused(self, place, sdb_command, quick_sdb, write_params):
        start, env = sdb_command
        folder = write_params(place / "busy", **SLOW | {"epochs": 1000})
        with subprocess.Popen([*start, "train", "busy"], cwd=place, env=env, stderr=subprocess.PIPE) as first:
            try:
                limit = time.monotonic() + PATIENCE
                while not epochs(folder):
                    assert first.poll() is None
                    assert time.monotonic() < limit
                    time.sleep(0.01)
                for args in (["--overwrite"], ["--resume"], []):
                    second = quick_sdb("train", "busy", *args, cwd=place)
                    assert second.returncode == 2
                    assert second.stderr.startswith("sdb: busy: another process is writing here")
                assert first.poll() is None
            finally:
                first.kill()
