"""What `sdb audit-marks` does: a study of the mark of what lies on disk, in a folder that a later call goes on with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sdb import config
from sdb.answers.ties import TieCost
from sdb.audit.archive import Folder, Memory
from sdb.audit.defences.defence import digest_of
from sdb.audit.marks.mark_seed import MarkSeed
from sdb.audit.marks.study import (
    MarkSettings,
    MarkSubject,
    coins_needed,
    do_piece,
    least_coins,
    mark_seed,
    pieces_of,
    place_of,
    result_of,
    tie_cost,
)
from sdb.audit.runner import WORK, begin
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.config import box_of
from sdb.data import ImageSet, Splits, carve
from sdb.data.load import SUBSET_SEED
from sdb.errors import ConfigError
from sdb.keys import Owner
from sdb.models.checkpoint import check_fits
from sdb.runs.resolve import described_data
from sdb.runs.tasks import OnProgress, Where, Work, one_thread, run
from sdb.runtime import environment, folder_lock, json_text, write_atomic

RESULT, PAGE = "marks.json", "marks.md"
# The owner's file of a study that was given none: its secret is fresh, and worth nothing elsewhere.
KEPT = "study-owner.json"


@dataclass(frozen=True, slots=True)
class MarkFiles:
    """Where what is studied lies.

    Attributes:
        path: a box, or a teacher's run folder or checkpoint.
        owner: the owner's file; None for a fresh secret.
        fresh: where that is, once it is made.
        dataset, data_root: the data, where the path does not say them.
        network: what makes the network, where the file cannot say it alone.
        other_class_names: the data may call the classes by other names.
    """

    path: Path
    owner: Path | None = None
    fresh: Path | None = None
    dataset: str | None = None
    data_root: Path | None = None
    network: str | None = None
    other_class_names: bool = False

    def read(self) -> MarkSubject:
        """What is there.

        Raises:
            CheckpointError, KeyFileError, ModelError: something is damaged or missing, or the owner is another one's.
            ConfigError, DataError: there is no owner, or the data are not said or do not fit.
        """
        place = self.owner or self.fresh
        if place is None:
            raise ConfigError("owner: none; name the owner's file, or a fresh one")
        model, owner = load_model(self.path, self.network).eval(), Owner.load(place)
        box = model if isinstance(model, Box) else None
        classifier = (model.classifier if isinstance(model, Box) else model).cpu()
        data = described_data(self.path, self.dataset, self.data_root, model)
        names = data.class_names, self.other_class_names
        check_fits(classifier, self.path, data.num_classes, data.image_shape, *names)
        if box is not None and self.owner is not None:
            box.check_owner(owner)
        rest = left_out(self.path, data, self.dataset)
        return MarkSubject(classifier, data, owner, "" if box is None else box.info.id, rest)


def left_out(path: Path, data: Splits, dataset: str | None) -> ImageSet | None:
    """The training images that the run around a model left out by its subset_percent; None where it left out none."""
    place = box_of(path) or path
    folders = (place if place.is_dir() else place.parent, place.parent)
    described = next((p for each in folders if (p := each / "params.resolved.json").exists()), None)
    stored = config.read_json(described) if described is not None else {}
    share = stored.get("subset_percent", 1.0)
    if share >= 1 or dataset not in (None, stored.get("dataset")):
        return None
    used = carve.subset(len(data.train), share, seed=SUBSET_SEED)
    return data.train.take(np.setdiff1d(np.arange(len(data.train)), used))


def study_job(
    folder: Path,
    files: MarkFiles,
    settings: MarkSettings,
    *,
    where: Where,
    resume: bool,
    overwrite: bool,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Study the mark of a model on disk, in a folder; returns the result, see `study.result_of`.

    Args:
        folder: gets marks.json, marks.md and the work that they are made from.
        files: what is studied; a fresh owner's file is made in the folder where none is named.
        settings: which thieves, and how much they ask. Thieves and seeds may be added when a study is resumed.
        where: this process, others of this machine, or a cluster.
        resume: go on with the study that is there.
        overwrite: discard it.
        on_progress: is told of every finished piece.

    Raises:
        ConfigError: unknown names, settings that differ from what is resumed, or too few images.
        RunExistsError: the folder holds a study, or another process is writing there.
        CheckpointError, KeyFileError, ModelError, DataError: see `MarkFiles.read`.
    """
    pieces = pieces_of(settings)
    with folder_lock(folder), one_thread():
        if files.owner is None:
            files = replace(files, fresh=folder / KEPT)
            if not (folder / KEPT).exists():
                Owner.generate().save(folder / KEPT)
        subject = files.read()
        # Too few images are refused before anything is kept.
        mark_seed(subject, settings, TieCost(0, 0, 0, 0, 0, 0), settings.seed, Memory())
        begin(
            folder,
            _parameters(settings, subject),
            "marks",
            (RESULT, PAGE),
            resume=resume,
            overwrite=overwrite,
            what="a study of the mark",
        )
        archive = Folder(folder / WORK)
        cost = tie_cost(subject, settings, archive)
        seeds = {seed: mark_seed(subject, settings, cost, seed, archive) for seed, _ in pieces}
        coins = least_coins(seeds)
        if coins >= coins_needed():
            given = (settings.model_dump_json(), files, cost, archive)
            missing = [each for each in pieces if not archive.has(place_of(*each))]
            works = [Work(f"{seed} {piece}", _do, (seed, piece, *given)) for seed, piece in missing]
            run(works, where, on_progress, folders=[archive.folder], before=len(pieces) - len(missing))
        result = result_of(settings, cost, coins, seeds, archive)
        write_atomic(folder / RESULT, json_text(result, indent=1).encode() + b"\n")
        write_atomic(folder / PAGE, result["markdown"].encode())
    return result


def _parameters(settings: MarkSettings, subject: MarkSubject) -> dict[str, Any]:
    """What the pieces of a study depend on."""
    code, data = environment(), subject.data
    kept = settings.model_dump(mode="json", exclude={"thieves", "seeds"})
    marks = {
        "model": digest_of(subject.model),
        "box": subject.box_id,
        "owner": subject.owner.id,
        "data": [data.name, len(data.train), len(data.validation), len(data.test)],
    }
    return {"settings": kept, "marks": marks, "code": {name: code[name] for name in ("sdb", "commit")}}


@cache
def _seed(seed: int, settings: str, files: MarkFiles, cost: TieCost, archive: Folder) -> MarkSeed:
    """In a worker, which keeps what it has read."""
    return mark_seed(_subject(files), MarkSettings.model_validate_json(settings), cost, seed, archive)


@cache
def _subject(files: MarkFiles) -> MarkSubject:
    return files.read()


def _do(seed: int, piece: str, settings: str, files: MarkFiles, cost: TieCost, archive: Folder) -> None:
    do_piece(_seed(seed, settings, files, cost, archive), piece)
