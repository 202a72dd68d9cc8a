"""Where and how a run happens: seeds, devices, processes, locks and the record of the environment."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdb.errors import ConfigError, RunExistsError, StorageError
from sdb.runtime import (
    World,
    choose_device,
    command_line,
    derive_seed,
    environment,
    exchange,
    folder_lock,
    join,
    world,
    write_atomic,
    writing,
)


@given(st.integers(0, 2**63), st.lists(st.text(max_size=5) | st.integers(0, 100), max_size=3))
def test_a_derived_seed_is_a_seed_for_torch_and_always_the_same(seed, labels):
    derived = derive_seed(seed, *labels)
    assert 0 <= derived < 2**63
    assert derived == derive_seed(seed, *labels)
    torch.Generator().manual_seed(derived)


def test_derived_seeds_differ_by_seed_and_purpose():
    made = [
        derive_seed(s, *labels) for s in range(20) for labels in (("epoch", 0, 0), ("epoch", 0, 1), ("start",), ())
    ]
    assert len(set(made)) == len(made)


def test_derived_seeds_are_the_same_on_every_machine():
    # Pinned: resumed runs and published numbers depend on it.
    assert derive_seed(0, "epoch", 3) == 8956936448728856094


def test_labels_are_kept_apart():
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")
    assert derive_seed(1, 2) != derive_seed(12)


def test_automatic_device_without_a_gpu_is_the_cpu():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "cpu:-1", "7"])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ConfigError, match="device"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no GPU; use device=cpu"):
        choose_device("cuda:0")


def test_one_process_is_the_whole_world(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(0, 1, 0)
    assert world().is_main
    assert join("cpu") == torch.device("cpu")
    assert not torch.distributed.is_initialized()


def test_the_world_is_read_from_torchrun_s_variables(monkeypatch):
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert world() == World(rank=5, size=8, local_rank=1)
    assert not world().is_main


def test_the_environment_is_json_and_says_what_ran():
    record = environment(torch.device("cpu"))
    assert json.loads(json.dumps(record)) == record
    assert record["torch"] == torch.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["threads"] == torch.get_num_threads()
    assert (record["device"], record["processes"]) == ("cpu", 1)
    assert "device" not in environment()


def test_the_commit_is_that_of_the_checkout():
    here = Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert head.stdout.startswith(environment()["commit"].removesuffix("+"))


def test_the_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sdb", "train", "my runs/a", "--set", "x=[1]"])
    assert command_line() == "sdb train 'my runs/a' --set 'x=[1]'"


def test_a_lock_keeps_others_out_until_it_is_let_go(tmp_path):
    folder = tmp_path / "deep" / "run"
    with folder_lock(folder):
        with pytest.raises(RunExistsError, match="another process"), folder_lock(folder):
            pass
        with folder_lock(tmp_path / "other"):
            pass
    with folder_lock(folder):
        pass


def test_a_lock_is_let_go_when_what_it_guards_fails(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path):
        raise KeyError
    with folder_lock(tmp_path):
        pass


def test_importing_the_runtime_does_not_import_torch():
    code = "import sys, sdb.runtime, sdb.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


# --- odd file systems ------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """A function that lets a system call fail; the call is the file system's, the code around it is ours."""
    monkeypatch.setattr(writing, "_warned", set())

    def fail(module, name, number):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module, name, refuse)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM])
def test_a_file_system_without_locks_is_used_with_one_warning(tmp_path, failing, caplog, number):
    failing(fcntl, "flock", number)
    for name in ("a", "b"):
        with folder_lock(tmp_path / name):
            pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no locks" in caplog.text


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_only_a_lock_that_is_held_is_another_s(tmp_path, failing, number):
    failing(fcntl, "flock", number)
    with pytest.raises(RunExistsError, match="another process"), folder_lock(tmp_path):
        pass


def test_a_broken_disk_is_not_taken_for_an_odd_one(tmp_path, failing):
    failing(fcntl, "flock", errno.EIO)
    with pytest.raises(StorageError, match="cannot lock"), folder_lock(tmp_path):
        pass
    for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        failing(os, "fsync", number)
        with pytest.raises(StorageError, match="cannot write"):
            write_atomic(tmp_path / "file", b"new")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_lock_file_that_is_a_pipe_or_a_link_is_neither_waited_for_nor_emptied(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("years of work")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with folder_lock(tmp_path / "run"):
        assert (tmp_path / "mine").read_text() == "years of work"
    (tmp_path / "run" / ".lock").unlink()
    os.mkfifo(tmp_path / "run" / ".lock")
    with folder_lock(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("fchmod", (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)),
        ("fsync", (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)),
    ],
)
def test_files_are_written_whole_where_a_call_is_missing(tmp_path, failing, caplog, name, numbers):
    for number in numbers:
        failing(os, name, number)
        write_atomic(tmp_path / "file", b"old")
        write_atomic(tmp_path / "file", str(number).encode())
        assert (tmp_path / "file").read_bytes() == str(number).encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert len(caplog.records) == 1


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As root, `--out /dev/null` would otherwise leave every other program without one."""
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(tmp_path / "pipe", b"content")
    assert os.read(reading, 100) == b"content"
    os.close(reading)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("supported", [True, False])
def test_two_folders_change_places(tmp_path, monkeypatch, supported):
    if not supported:
        monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # a C library without renameat2
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["a", "a/b", "b", "b/a"]
    with pytest.raises(OSError):
        exchange(tmp_path / "missing", tmp_path / "b")
    assert (tmp_path / "b" / "a").exists()
