"""What is audited: a box with its key and its teacher, as objects or as the files that they are read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sdb.audit.plan import AuditSettings
from sdb.box.box import Box
from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.errors import ModelError
from sdb.keys import Key, Owner
from sdb.models import MODULE, Classifier
from sdb.models.checkpoint import load_classifier
from sdb.wrapping.networks import made_again


@dataclass(frozen=True, slots=True)
class SubjectFiles:
    """Where what is audited lies; see `Subject`.

    Attributes:
        box: a box's folder or file.
        key: a partner's key file.
        teacher: a run folder or checkpoint.
        owner: the owner's file.
        split_seed, validation_fraction: see `Subject`.
        network: the factory that makes the network of box and teacher, where their files may not say it alone.
    """

    box: Path | None = None
    key: Path | None = None
    teacher: Path | None = None
    owner: Path | None = None
    split_seed: int | None = None
    validation_fraction: float = 0.1
    network: str | None = None

    def read(self) -> Subject:
        """What is there.

        Raises:
            CheckpointError, KeyFileError, ModelError: something is damaged or missing.
        """
        box = None if self.box is None else Box.load(self.box, self.network)
        return Subject(
            box,
            None if self.key is None else Key.load(self.key),
            None if self.teacher is None else load_classifier(self.teacher, network=self.network),
            None if self.owner is None else Owner.load(self.owner),
            self.split_seed,
            self.validation_fraction,
            DEFAULT_PICTURES if box is None else box.classifier.pictures,
            self,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is audited: a box with its key and its teacher, or nothing, and then the audit makes all.

    Attributes:
        box: not changed.
        key: a partner's; None where only thieves are looked at.
        teacher: the unprotected model; not changed.
        owner: the box's, for its mark.
        split_seed: of the box's data split; None where each seed splits anew.
        validation_fraction: of the box's data split.
        pictures: how pictures become pixels for the box.
        files: where all this was read from, so that other processes can; None where it is in this process alone.
    """

    box: Box | None = None
    key: Key | None = None
    teacher: Classifier | None = None
    owner: Owner | None = None
    split_seed: int | None = None
    validation_fraction: float = 0.1
    pictures: Pictures = DEFAULT_PICTURES
    files: SubjectFiles | None = SubjectFiles()


def original(subject: Subject) -> Classifier | None:
    """The network whose architecture the victim has; None where the settings say it."""
    return subject.box.classifier if subject.box is not None else subject.teacher


def no_copy(subject: Subject) -> str:
    """Why nobody here can make a network of the victim's architecture; empty where it can be made."""
    known = original(subject)
    if known is None or known.spec.name != MODULE:
        return ""
    try:
        with torch.random.fork_rng(devices=[]):
            made_again(known)
    except ModelError as error:
        return str(error)
    return ""


def with_students(settings: AuditSettings, subject: Subject) -> AuditSettings:
    """The settings; where they say nothing of students and the victim is a module object, students are as it is."""
    known = original(subject)
    said = "student_model" in settings.model_fields_set or known is None or known.spec.name != MODULE
    if said or no_copy(subject):
        return settings
    return settings.model_copy(update={"student_model": MODULE, "student_args": {}})
