"""What `sdb audit` does: find the box's key, teacher and data, run the audit, write its claim and its report."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdb import config
from sdb.audit.audit_seed import AuditSeed, Subject
from sdb.audit.collect import make_claim
from sdb.audit.evidence import traces, unlock_curve
from sdb.audit.plan import AuditSettings, attacks_of, defences_of
from sdb.audit.runner import CLAIM, REPORT, WORK, run_tasks, take
from sdb.box.box import Box
from sdb.config import BOX, box_of
from sdb.data import Data, Splits, as_splits
from sdb.errors import CheckpointError, ConfigError
from sdb.keys import Key
from sdb.models import Classifier
from sdb.models.checkpoint import write_tensors
from sdb.report.audit_page import write_audit_report
from sdb.report.claim import read_claim
from sdb.runs.resolve import KEY, OWNER
from sdb.runs.tasks import OnProgress, Where, one_thread
from sdb.runtime import folder_lock, json_text, write_atomic


def audit_job(
    folder: Path,
    settings: AuditSettings,
    subject: Subject,
    *,
    where: Where,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
    data: Splits | None = None,
) -> dict[str, Any]:
    """Run an audit into a folder, or go on with it; returns the claim.

    Args:
        folder: gets claim.json, report.html and the work that they are made from.
        settings: what to run.
        subject: the box, its key and teacher; see `find_subject`.
        where: this process, others of this machine, or a cluster.
        resume: go on with the audit that is there.
        overwrite: discard it.
        on_progress: hears of every finished task.
        data: instead of the data set that the settings name; for this process alone.

    Raises:
        ConfigError: settings that do not exist or contradict each other, or that differ from what is resumed.
        RunExistsError: the folder holds an audit, or another process is writing there.
        CheckpointError: box, key or teacher is damaged or missing.
    """
    started = datetime.now(UTC)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one")
    settings = settings.filled()
    attacks_of(settings), defences_of(settings)  # unknown names are refused before anything is written
    with folder_lock(folder), one_thread():
        audit_seed = AuditSeed(settings, subject, settings.seed, folder / WORK, data)
        audit_seed.check()
        work = take(folder, settings, subject, resume=resume, overwrite=overwrite)
        places = run_tasks(settings, subject, work, where, on_progress, data=data)
        extra = {"unlock": unlock_curve(audit_seed), "traces": traces(audit_seed, subject.owner)}
        claim = make_claim(settings, subject, work, audit_seed, workers=places, started=started, extra=extra)
        read_claim(claim)
        write_atomic(folder / CLAIM, json_text(claim, indent=1).encode() + b"\n")
        write_audit_report(claim, folder / REPORT)
    return claim


def find_subject(
    path: Path | None,
    key: Path | None,
    teacher: Path | None,
    owner: Path | None,
    without_key: bool,
    settings: AuditSettings,
    network: str | None = None,
) -> tuple[Subject, AuditSettings]:
    """A box with the key, teacher and data that lie around it, where they are not named.

    Raises:
        CheckpointError: the path is no box.
        ConfigError: the box opens for a key, and none was named, found or waived.
    """
    if path is None:
        if key is not None:
            raise ConfigError("--key: there is no box to open; name the box, or leave --key out")
        return Subject(teacher=teacher, network=network), settings
    if key is not None and without_key:
        raise ConfigError("--key and --without-key contradict each other; give one")
    place = box_of(path)
    if place is None:
        raise CheckpointError(f"{path}: no box is there; name a box, or the folder of the `sdb wrap` that made it")
    around = place.parent
    box = Box.load(place, network)
    if key is None and not without_key and box.info.key_ids:
        key = around / KEY
        if not key.exists():
            raise ConfigError(
                f"{path}: its partner cannot be measured without a key: give --key FILE, or --without-key to look at "
                "thieves alone"
            )
    described = around / "params.resolved.json"
    stored = config.read_json(described) if described.exists() else {}
    update: dict[str, Any] = {}
    if settings.dataset == AuditSettings.model_fields["dataset"].default and "dataset" in stored:
        update["dataset"] = stored["dataset"]
    if update.get("dataset", settings.dataset) == stored.get("dataset"):
        update |= {n: stored[n] for n in ("image_size", "stream") if getattr(settings, n) is None and n in stored}
    if settings.data_root is None and stored.get("data_root"):
        update["data_root"] = Path(stored["data_root"])
    if teacher is None and stored.get("teacher"):
        teacher = Path(stored["teacher"])
        if not teacher.exists() and teacher.suffix != ".tar":  # which may stand for a file of ours
            raise ConfigError(f"{path}: its teacher, {teacher}, is not there: give --teacher PATH")
    if owner is None and box.record is not None and (around / OWNER).exists():
        owner = around / OWNER
    subject = Subject(
        box=place,
        owner=owner,
        key=None if without_key else key,
        teacher=teacher,
        split_seed=stored.get("seed", 0),
        validation_fraction=stored.get("validation_fraction", 0.1),
        pictures=box.classifier.pictures,
        network=network,
    )
    return subject, settings.model_copy(update=update)


def audit(
    box: Box | None,
    data: Data,
    *,
    key: Key | None = None,
    teacher: Classifier | None = None,
    settings: AuditSettings | None = None,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Attack a box, or boxes made here, in this process; returns the claim.

    Args:
        box: what is audited; None makes a decoy box for each seed.
        data: as `sdb.data.as_data` takes them, with test images. Attackers get its training and validation images;
            test images only judge.
        key: a partner's, without which the partner's side is not judged.
        teacher: the unprotected model; None trains one of the box's architecture.
        settings: what to run; quick by default.
        out: folder for claim.json, report.html and the work; None keeps nothing.

    Raises:
        SDBError: as `audit_job`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if box is not None:
            box.save(place / BOX)
        if key is not None:
            key.save(place / KEY)
        if teacher is not None:
            weights = {f"model.{name}": tensor for name, tensor in teacher.state_dict().items()}
            write_tensors(
                place / "teacher.safetensors",
                weights,
                {"spec": teacher.spec.to_json(), "history": [], "class_names": list(teacher.class_names)},
            )
        subject = Subject(
            box=None if box is None else place / BOX,
            key=None if key is None else place / KEY,
            teacher=None if teacher is None else place / "teacher.safetensors",
        )
        return audit_job(
            Path(out) if out is not None else place / "audit",
            settings or AuditSettings(),
            subject,
            where=Where(),
            resume=False,
            overwrite=False,
            on_progress=lambda done, total, name: None,
            data=as_splits(data),
        )
