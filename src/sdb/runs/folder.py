"""A run folder: what a command reads and leaves behind.

DIR/params.json            what was asked (never written to)
DIR/params.resolved.json   every parameter that the run used
DIR/environment.json       versions, device, commit
DIR/training.log           what was said, for people
DIR/metrics.jsonl          one JSON object an epoch, for programs
DIR/events.out.tfevents.*  the same for TensorBoard
DIR/last.safetensors       the last finished epoch: model, optimizer, history
DIR/best.safetensors       the model of the best epoch on validation images
DIR/result.json            test metrics, once, at the end
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdb.config import RESOLVED, defaults, read_json
from sdb.errors import CheckpointError, ConfigError, RunExistsError, StorageError
from sdb.models import Classifier, compare_class_names
from sdb.models.checkpoint import read_tensors, write_tensors
from sdb.runtime import environment, folder_lock, json_text, world, write_atomic

LAST, BEST, METRICS = "last.safetensors", "best.safetensors", "metrics.jsonl"
OUTPUTS = (LAST, BEST, METRICS, RESOLVED, "environment.json", "training.log", "result.json")
# May differ between a run and its resumption: where it runs, and how long (unless the schedule depends on that, and the
# run is not finished).
MAY_CHANGE = {"device", "epochs", "data_root"}
# Schedules whose rate at an epoch depends on how many there are.
FOLLOWS_EPOCHS = ("cosine", "one_cycle")

log = logging.getLogger("sdb")


class RunFolder:
    """Checkpoints, metrics and log of one run. Open it with `open_run`."""

    def __init__(self, folder: Path, parameters: dict[str, Any], resume: bool) -> None:
        self.folder = folder
        self._parameters = parameters
        self._resume = resume
        self._board: Path | None = None

    def resume_state(self, model: Classifier) -> tuple[dict[str, Tensor], list[dict[str, Any]]] | None:
        """Tensors and history of the last finished epoch, or None for a fresh run.

        Raises:
            ModelError: the data's classes are not those that the run was started with.
            CheckpointError: it is damaged, or an epoch of it is not finite.
        """
        if not self._resume or not (self.folder / LAST).exists():
            return None
        tensors, header = read_tensors(self.folder / LAST)
        history = header["history"]
        compare_class_names(header.get("class_names", ()), model.class_names, self.folder)
        if world().is_main:
            # The checkpoint is the truth: an epoch may have been saved and not yet written here.
            try:
                lines = b"".join(_line(record) for record in history)
            except ValueError:  # kept by an sdb that did not look
                raise CheckpointError(
                    f"{self.folder}: an epoch of this run is not finite, so it cannot go on: begin again with "
                    "--overwrite and a lower learning_rate"
                ) from None
            write_atomic(self.folder / METRICS, lines)
            log.info("resumed after epoch %d", len(history))
        return tensors, history

    def save_epoch(
        self, model: Classifier, optimizer: dict[str, Tensor], history: list[dict[str, Any]], improved: bool
    ) -> None:
        """Keep a finished epoch; after this returns, it survives anything but the disk.

        Raises:
            StorageError: the disk is full; the epoch before is still whole.
        """
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        header = {"spec": model.spec.to_json(), "history": history}
        header["class_names"] = list(model.class_names)
        if improved:
            write_tensors(self.folder / BEST, weights, header)
        write_tensors(self.folder / LAST, weights | optimizer, header)
        record = history[-1]
        try:
            with (self.folder / METRICS).open("ab") as file:
                file.write(_line(record))
        except OSError as error:
            raise StorageError(f"cannot write {self.folder / METRICS}: {error.strerror}") from error
        self._write_board(record)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in record["validation"].items())
        log.info("epoch %d: loss %.4f, validation %s", record["epoch"], record["loss"], shown)

    def _write_board(self, record: dict[str, Any]) -> None:
        # Records of tensorboard's format, without its SummaryWriter: its thread dies with a traceback on a full disk.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # ty: ignore[missing-module-member]
        from tensorboard.compat.proto.summary_pb2 import Summary  # ty: ignore[missing-module-member]
        from tensorboard.summary.writer.record_writer import RecordWriter

        now, epoch, events = time.time(), record["epoch"], []
        if self._board is None:
            self._board = self.folder / f"events.out.tfevents.{int(now)}.{platform.node()}.{os.getpid()}"
            start = SessionLog(
                status=SessionLog.START
            )  # hides what a run before wrote of this epoch and later ones
            events += [Event(wall_time=now, file_version="brain.Event:2")]
            events += [Event(wall_time=now, step=epoch, session_log=start)]
        scalars = {"loss": record["loss"], "learning_rate": record["learning_rate"]}
        scalars |= {f"terms/{name}": value for name, value in record["terms"].items()}
        scalars |= {f"validation/{name}": value for name, value in record["validation"].items()}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        events.append(Event(wall_time=now, step=epoch, summary=Summary(value=values)))
        try:
            with self._board.open("ab") as file:
                for event in events:
                    RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise StorageError(
                f"cannot write {self._board}: {error.strerror}; free space or choose another folder"
            ) from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Keep the final metrics, and log the accuracies on test images."""
        if world().is_main:
            write_atomic(self.folder / "result.json", json_text(result, indent=1).encode() + b"\n")
            if said := told(result):
                log.info(said)


class _LogFile(logging.FileHandler):
    """The log for people; a full disk costs it lines, never the run or a traceback on the terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        """Close the file; what a full disk did not take is lost."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def open_run(
    folder: Path | str,
    parameters: dict[str, Any],
    device: torch.device,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Generator[RunFolder]:
    """Take a run folder for this process, checked and logged to.

    Args:
        folder: made if missing.
        parameters: resolved parameters, JSON values; written beside the results.
        device: for the record of the environment.
        resume: continue the run that is there.
        overwrite: discard the run that is there.

    Raises:
        RunExistsError: the folder holds a run and neither flag is set, or another process is writing to it.
        ConfigError: there is no run to resume, or its parameters differ from what it was started with.
    """
    folder = Path(folder)
    if not world().is_main:
        yield RunFolder(folder, parameters, resume)
        return
    with folder_lock(folder):
        present = [name for name in (LAST, METRICS, "result.json") if (folder / name).exists()]
        if present and not (resume or overwrite):
            raise RunExistsError(
                f"{folder} already holds a run ({', '.join(present)}): add --resume to continue it, "
                "--overwrite to discard it, or use another folder"
            )
        said = ""
        if resume:
            said = _check_same(folder, parameters)
        elif overwrite:
            for path in [*(folder / name for name in OUTPUTS), *folder.glob("events.out.tfevents.*")]:
                path.unlink(missing_ok=True)
            # A box of the run before must not pass for this run's; a key is never discarded.
            shutil.rmtree(folder / "box", ignore_errors=True)
        write_atomic(folder / RESOLVED, json_text(parameters, indent=1).encode() + b"\n")
        write_atomic(folder / "environment.json", json_text(environment(device), indent=1).encode() + b"\n")
        handler = _LogFile(folder / "training.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        run = RunFolder(folder, parameters, resume)
        try:
            log.info("parameters %s", json_text(parameters))
            if said:
                log.info(said)
            yield run
        except BaseException as error:
            log.info("stopped: %s: %s", type(error).__name__, error)
            raise
        finally:
            log.removeHandler(handler)
            handler.close()


def epochs_done(folder: Path) -> int:
    """How many epochs a run folder's last checkpoint has behind it."""
    last = folder / LAST
    return len(read_tensors(last)[1]["history"]) if last.exists() else 0


def begun_with(folder: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a run folder was started with; one of `parameters` that is younger than the run had its default's effect."""
    given = read_json(folder / RESOLVED)
    return {name: value for name, value in defaults().items() if name in parameters} | given


def _check_same(folder: Path, parameters: dict[str, Any]) -> str:
    """Refuse to continue with other parameters; returns what to say of those that may differ."""
    if not (folder / RESOLVED).exists():
        raise ConfigError(f"{folder}: no run was started here, there is nothing to resume: leave --resume out")
    before = begun_with(folder, parameters)
    may_change, why = MAY_CHANGE, ""
    asked, planned = parameters.get("epochs", 0), before.get("epochs", 0)
    if asked != planned:
        done = epochs_done(folder)
        if asked < done:
            may_change = MAY_CHANGE - {"epochs"}  # what is there was trained longer
        elif parameters.get("schedule") in FOLLOWS_EPOCHS and done < planned:
            may_change = MAY_CHANGE - {"epochs"}
            why = (
                f" (a {parameters['schedule']} schedule follows their number: finish the run, then make it longer)"
            )
    changed = sorted(k for k in before.keys() | parameters.keys() if before.get(k) != parameters.get(k))
    changed = [name for name in changed if name not in may_change]
    if changed:
        detail = ", ".join(f"{name} was {before.get(name)!r}, now {parameters.get(name)!r}" for name in changed)
        raise ConfigError(
            f"{folder}: cannot resume with other parameters: {detail}{why}; put them back, or --overwrite"
        )
    if asked > planned:
        return f"made longer: {planned} epochs were planned, now {asked}"
    return ""


def told(result: Mapping[str, Any]) -> str:
    """The accuracies of a result in words, in per cent."""
    names = {
        "accuracy": "",
        "teacher": "teacher ",
        "keyless": "keyless ",
        "keyed": "keyed ",
        "wrong_key": "wrong key ",
    }
    parts = [f"{names[name]}{100 * result[name]:.1f} %" for name in names if name in result]
    return f"test accuracy {', '.join(parts)}" if parts else ""


def _line(record: dict[str, Any]) -> bytes:
    return json_text(record).encode() + b"\n"
