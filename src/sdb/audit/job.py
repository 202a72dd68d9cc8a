"""An audit from beginning to end: `audit` of what a caller holds, and what `sdb audit` does with files."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from sdb import config
from sdb.audit.archive import Archive, Folder, Memory
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.collect import make_claim
from sdb.audit.evidence import traces, unlock_curve
from sdb.audit.plan import AuditSettings, attacks_of, defences_of
from sdb.audit.runner import CLAIM, REPORT, WORK, run_tasks, take
from sdb.audit.subject import Subject, SubjectFiles, with_students
from sdb.box.box import Box
from sdb.config import box_of
from sdb.data import Data, Splits, as_splits
from sdb.errors import CheckpointError, ConfigError
from sdb.keys import Key
from sdb.models import Classifier
from sdb.models.own import classifier_of
from sdb.report.audit_page import write_audit_report
from sdb.report.claim import read_claim
from sdb.runs.resolve import KEY, OWNER
from sdb.runs.tasks import OnProgress, Where, one_thread
from sdb.runtime import folder_lock, json_text, write_atomic
from sdb.training.progress import ShowTasks, watched


def audit(
    box: Box | None,
    data: Data,
    *,
    key: Key | None = None,
    teacher: nn.Module | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    settings: AuditSettings | None = None,
    out: Path | str | None = None,
    progress: bool | OnProgress = True,
) -> dict[str, Any]:
    """Attack a box, or boxes made here, in this process; returns the claim. Writes nothing without `out`.

    Args:
        box: what is audited, not changed; None makes a decoy box for each seed.
        data: as `sdb.data.as_data` takes them, with test images. Attackers get its training and validation images;
            test images only judge.
        key: a partner's, without which the partner's side is not judged.
        teacher: the unprotected model, any module from images to logits, not changed; None trains one of the box's
            architecture.
        mean: per channel, of pixels in [0, 1], as in `sdb.wrap`: where the teacher is a module that takes normalised
            pixels, or loaders give such. By default the box's own.
        std: per channel, the deviation.
        settings: what to run; quick by default.
        out: folder for claim.json, report.html and the work; None keeps nothing.
        progress: True: a bar on a terminal and in a notebook; False: silence; a function of (finished, in all, name).

    Raises:
        SDBError: as `audit_job`.
    """
    known = box.classifier if box is not None else teacher
    if mean is None and std is None and box is not None and not is_plain(box.classifier):
        mean, std = box.classifier.spec.mean, box.classifier.spec.std
    splits = as_splits(data, known.num_classes if isinstance(known, Classifier) else None, mean=mean, std=std)
    if teacher is not None and not isinstance(teacher, Classifier):
        teacher = classifier_of(teacher, splits.num_classes, splits.image_shape, mean, std)
    settings, subject = settings or AuditSettings(), Subject(box, key, teacher, files=None)
    with _told(progress) as on_progress:
        if out is None:
            started = datetime.now(UTC)
            settings = _complete(settings, subject)
            with one_thread():
                archive = Memory()
                AuditSeed(settings, subject, settings.seed, archive, splits).check()
                return _claim(settings, subject, archive, Where(), on_progress, splits, started)
        return audit_job(
            Path(out),
            settings,
            subject,
            where=Where(),
            resume=False,
            overwrite=False,
            on_progress=on_progress,
            data=splits,
        )


@contextlib.contextmanager
def _told(progress: bool | OnProgress) -> Generator[OnProgress]:
    """What is told of finished tasks, from what a caller gave as `progress=`."""
    if not isinstance(progress, bool):
        yield progress
    elif progress and watched():
        shown = ShowTasks("audit")
        try:
            yield shown.on_progress
        finally:
            shown.close()
    else:
        yield lambda done, total, name: None


def is_plain(classifier: Classifier) -> bool:
    """Whether a classifier's network gets pixels in [0, 1] as they are."""
    return not any(classifier.spec.mean) and all(value == 1 for value in classifier.spec.std)


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
    """Run an audit into a folder, or continue it; returns the claim.

    Args:
        folder: gets claim.json, report.html and the work that they are made from.
        settings: what to run.
        subject: the box, its key and teacher; see `find_subject`.
        where: this process, others of this machine, or a cluster.
        resume: continue the audit that is there.
        overwrite: discard it.
        on_progress: is told of every finished task.
        data: instead of the data set that the settings name; for this process alone.

    Raises:
        ConfigError: settings that do not exist or contradict each other, or that differ from what is resumed.
        RunExistsError: the folder holds an audit, or another process is writing there.
        CheckpointError, ModelError, KeyFileError: box, key or teacher do not fit each other or the data.
    """
    started = datetime.now(UTC)
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite contradict each other; give one")
    settings = _complete(settings, subject)
    with folder_lock(folder), one_thread():
        AuditSeed(settings, subject, settings.seed, Folder(folder / WORK), data).check()
        archive = take(folder, settings, subject, resume=resume, overwrite=overwrite)
        claim = _claim(settings, subject, archive, where, on_progress, data, started)
        write_atomic(folder / CLAIM, json_text(claim, indent=1).encode() + b"\n")
        write_audit_report(claim, folder / REPORT)
    return claim


def _complete(settings: AuditSettings, subject: Subject) -> AuditSettings:
    """All settings; unknown names are refused before anything is done."""
    settings = with_students(settings, subject).filled()
    attacks_of(settings), defences_of(settings)
    return settings


def _claim(
    settings: AuditSettings,
    subject: Subject,
    archive: Archive,
    where: Where,
    on_progress: OnProgress,
    data: Splits | None,
    started: datetime,
) -> dict[str, Any]:
    """Do what is not done yet, and put it together."""
    places = run_tasks(settings, subject, archive, where, on_progress, data=data)
    audit_seed = AuditSeed(settings, subject, settings.seed, archive, data)
    extra = {"unlock": unlock_curve(audit_seed), "traces": traces(audit_seed)}
    claim = make_claim(settings, subject, audit_seed, workers=places, started=started, extra=extra)
    read_claim(claim)
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
        CheckpointError, KeyFileError, ModelError: the path is no box, or something around it is damaged.
        ConfigError: the box opens for a key, and none was named, found or waived.
    """
    if path is None:
        if key is not None:
            raise ConfigError("--key: there is no box to open; name the box, or leave --key out")
        return SubjectFiles(teacher=teacher, network=network).read(), settings
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
    files = SubjectFiles(
        box=place,
        owner=owner,
        key=None if without_key else key,
        teacher=teacher,
        split_seed=stored.get("seed", 0),
        validation_fraction=stored.get("validation_fraction", 0.1),
        network=network,
    )
    return files.read(), settings.model_copy(update=update)
