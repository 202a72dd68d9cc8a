"""Where and how a run happens: seeds, devices, processes, locks and the record of the environment."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdb import runtime
from sdb.errors import ConfigError, RunExistsError
from sdb.runtime import World, choose_device, derive_seed, environment, folder_lock, process_group, world


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
    with process_group(torch.device("cpu")) as place:
        assert place.size == 1
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
    here = runtime.Path(__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert head.stdout.startswith(environment()["commit"].removesuffix("+"))


def test_the_command_line_can_be_typed_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sdb", "train", "my runs/a", "--set", "x=[1]"])
    assert runtime.command_line() == "sdb train 'my runs/a' --set 'x=[1]'"


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
