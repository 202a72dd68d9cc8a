"""One run in several data-parallel processes of a Ray cluster: the jobs that torchrun runs, in Ray Train's workers."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from sdb import config
from sdb.config import RESOLVED
from sdb.errors import ConfigError, MissingExtraError, RunExistsError, TrainingError
from sdb.runs.jobs import JOBS
from sdb.runs.tasks.cluster import HELD, RETRIES, STARVED, arrive, connected, places_of, same_site, without_gpu
from sdb.runs.tasks.work import Failure, Where, attempt


class MendableError(Exception):
    """Carries an error that a user can mend out of a worker; its arguments are the class and the message."""


def run_on_cluster(
    command: str,
    folder: Path,
    sets: Sequence[str] = (),
    *,
    cluster: str,
    processes: int,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run one command in its folder, its batches divided among processes of a cluster; returns its result.

    When a process or node is lost, all processes begin again after the last finished epoch.

    Args:
        command: train, wrap or distill.
        folder: holds params.json; every node must see it.
        sets: `KEY=VALUE` on top of it.
        cluster: the cluster's address.
        processes: how many; batch_size must be divisible by it. Each has a GPU where the cluster has as many and the
            device is not cpu, else one CPU core.
        resume: continue the run that is there.
        overwrite: discard it.

    Raises:
        SDBError: of the run itself; or the cluster does not fit.
        TrainingError: processes were lost too often.
    """
    # Faults in the parameters come before anything is started.
    device = config.load(folder, command, sets, resume=resume).device
    with connected(cluster) as ray, same_site([folder]) as site:
        stamp, lost = _stamp(folder), None
        for trial in range(RETRIES + 1):
            gpu = _with_gpu(ray, device, processes, patience=STARVED if trial else 0)
            # A run that this call has started is continued, whatever the flags were.
            begun = _stamp(folder) != stamp
            flags = {"resume": resume or begun, "overwrite": overwrite and not begun}
            there = site if gpu else without_gpu(site)
            loop = {"site": there, "command": command, "folder": folder, "sets": tuple(sets), **flags}
            lost = _train(ray, loop, processes, gpu, folder)
            if lost is None:
                return config.read_json(folder / "result.json")
            if isinstance(lost, RunExistsError):
                if not begun:
                    raise lost
                time.sleep(HELD / RETRIES)  # a lost process's lock may outlive it
    raise lost


def _stamp(folder: Path) -> int | None:
    path = folder / RESOLVED
    return path.stat().st_mtime_ns if path.exists() else None


def _with_gpu(ray: Any, device: str, processes: int, patience: float) -> bool:
    """Whether each process gets a GPU; waits for room, since a node may be on its way in place of a lost one."""
    began = time.monotonic()
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, gpus = (sum(places_of(node, Where(task_gpus=each)) for node in nodes) for each in (0, 1))
        wants_gpu = device.startswith("cuda") or (device == "auto" and gpus >= processes)
        if (there := gpus if wants_gpu else cores) >= processes:
            return wants_gpu
        if time.monotonic() - began >= patience:
            raise ConfigError(
                f"processes: {processes} need {'a GPU and ' if wants_gpu else ''}a CPU core each, the cluster has that "
                f"for {there}; ask for fewer, or add nodes"
            )
        time.sleep(1)


def _train(ray: Any, loop: dict[str, Any], processes: int, gpu: bool, folder: Path) -> Exception | None:
    """Run the job once in Ray Train's workers; what was lost, or None where it came to its end."""
    try:
        ray_train: Any = importlib.import_module("ray.train")
        ray_torch: Any = importlib.import_module("ray.train.torch")
    except ImportError:
        raise MissingExtraError("ray[train]", "ray", "training on a cluster") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Ray Train keeps notes of its own; ours are the run folder's checkpoints.
    with tempfile.TemporaryDirectory(dir=folder.resolve(), prefix=".ray-", ignore_cleanup_errors=True) as notes:
        trainer = ray_torch.TorchTrainer(
            job_of_worker,
            train_loop_config=loop,
            torch_config=ray_torch.TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ray_train.ScalingConfig(num_workers=processes, use_gpu=gpu),
            run_config=ray_train.RunConfig(name="run", storage_path=notes),
        )
        try:
            with ctrl_c():
                trainer.fit()
        except ray_train.TrainingFailedError as error:
            causes = list(getattr(error, "worker_failures", {}).values())
            for cause in causes:
                if isinstance(cause, MendableError):
                    error_of_run = Failure(*cause.args).error()
                    if isinstance(error_of_run, RunExistsError):
                        return error_of_run
                    raise error_of_run from None
            # A process whose peer is gone fails as well, so what is no bug cannot be told: it is tried again.
            if any(isinstance(cause, ray.exceptions.RayError) for cause in causes):
                return TrainingError(
                    f"{folder}: a process or node was lost {RETRIES + 1} times, perhaps for lack of memory; finished "
                    "epochs are kept, continue with --resume"
                )
            return error
    return None


@contextlib.contextmanager
def ctrl_c() -> Generator[None]:
    """Make Ctrl-C what it is elsewhere: Ray Train takes it for itself, ends its workers, and exits with 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def job_of_worker(loop: dict[str, Any]) -> None:
    """What each process does.

    Raises:
        MendableError: an SDBError, as data.
    """
    failure = attempt(_job, (loop,))
    if failure is not None:
        raise MendableError(failure.kind, failure.message)


def _job(loop: dict[str, Any]) -> None:
    arrive(loop["site"])
    params = config.load(loop["folder"], loop["command"], loop["sets"], resume=loop["resume"])
    JOBS[loop["command"]](
        loop["folder"], params, resume=loop["resume"], overwrite=loop["overwrite"], progress=None
    )
