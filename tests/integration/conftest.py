"""The command line as a user has it: a process, its exit code, its two streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a small run has beside its model: tens of images per step, a fraction of a second per epoch.
TINY = {
    "model_name": "net",
    "num_channels": 4,
    "dataset": "digits",
    "subset_percent": 0.3,
    "epochs": 2,
    "batch_size": 64,
    "learning_rate": 0.003,
}

# Imports once what commands import (an optimizer: torch._dynamo), then forks: tenths of a second instead of seconds.
SERVER = """
import json, os, resource, runpy, sys, traceback
import torch._dynamo, torch.utils.tensorboard, sdb.audit.job, sdb.runs.jobs, sdb.training.progress
from sdb.cli import main

torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["cwd"])
        for number, path in ((0, os.devnull), (1, order["out"]), (2, order["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
        os.environ.update(order["env"])
        if order["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
        script = order["args"][0].endswith(".py") if order["args"] else False
        sys.argv = order["args"] if script else ["sdb", *order["args"]]
        code = 1
        try:
            code = runpy.run_path(sys.argv[0], run_name="__main__") and 0 if script else main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def command() -> list[str]:
    """The installed script, or the module where it lies elsewhere."""
    script = Path(sys.executable).with_name("sdb")
    return [str(script)] if script.exists() else [sys.executable, "-m", "sdb"]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change where data are looked for."""
    kept = {name: value for name, value in os.environ.items() if name != "SDB_DATA"}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "110"} | (extra or {})


@pytest.fixture(scope="session")
def sdb_command():
    """The start of a command line, and the environment, for tests that start the process themselves."""
    return command(), environment()


@pytest.fixture(scope="session")
def sdb():
    """A function that runs `sdb ARGS` in a folder, in a process of its own, and waits for it."""

    def run(*args, cwd, env=None, timeout=120):
        return subprocess.run(
            [*command(), *map(str, args)],
            cwd=cwd,
            env=environment(env),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def quick_sdb(tmp_path_factory):
    """The same function for tests of many commands: each process is forked from one that has torch imported.

    Arguments that begin with a Python file run that.
    """
    streams = tmp_path_factory.mktemp("streams")
    out, err = streams / "out", streams / "err"
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment({"SDB_CACHE": str(streams / "cache")}),
    ) as server:

        def run(*args, cwd, env=None, file_limit=None):
            out.unlink(missing_ok=True)
            err.unlink(missing_ok=True)
            order = {
                "args": [str(arg) for arg in args],
                "cwd": str(cwd),
                "env": env or {},
                "out": str(out),
                "err": str(err),
                "file_limit": file_limit,
            }
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
            return subprocess.CompletedProcess(order["args"], code, out.read_text(), err.read_text())

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def write_params():
    """A function that writes FOLDER/params.json: a tiny run on digits, with changes."""

    def write(folder, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        values = {name: value for name, value in (TINY | changes).items() if value is not None}
        (folder / "params.json").write_text(json.dumps(values))
        return folder

    return write
