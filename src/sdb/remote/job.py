"""The remote teacher that a run's parameters name."""

from __future__ import annotations

from pathlib import Path

from sdb.config import DistillParams
from sdb.data import Splits
from sdb.errors import ConfigError
from sdb.keys import Key
from sdb.remote import RemoteTeacher, token_from
from sdb.runtime import world

CACHE = "answers.sqlite"  # in the run folder; kept by --overwrite, since its answers were paid for


def remote_teacher(folder: Path, params: DistillParams, data: Splits, key: Key | None) -> RemoteTeacher:
    """The teacher behind params.teacher_url, met, and fitting the data; nothing is written yet.

    Raises:
        ConfigError: several processes, or a key or token that cannot be used.
        ModelError: the remote model is of another data set.
        RemoteError: it cannot be reached, or gives no soft outputs.
    """
    if world().size > 1:
        raise ConfigError(
            "teacher_url: distilling from afar runs in one process, where the server is what takes time: leave "
            "torchrun out"
        )
    token = token_from(params.teacher_token_env)
    teacher = RemoteTeacher(params.teacher_url or "", key=key, token=token, cache=folder / CACHE)
    teacher.check_fits(data.num_classes, data.image_shape, data.class_names, params.other_class_names)
    return teacher
