"""What a path stands for: the one reader of every command that takes a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sdb.box.box import Box
from sdb.config import box_of
from sdb.errors import CheckpointError
from sdb.models import Classifier
from sdb.models.checkpoint import load_classifier
from sdb.runtime import expand

# Reference checkpoints of a published parameter file may stand for our own, so they need not be there themselves.
MAY_STAND_FOR_OURS = ".tar"


def load_model(path: Path | str, network: nn.Module | str | None = None, **bare: Any) -> Box | Classifier:
    """The box that a path stands for, or a trained classifier.

    A wrap's run folder or checkpoint is its box, not the network that was trained for it.

    Args:
        path: a box, a run folder, a checkpoint, a pre-trained folder, or bare weights.
        network: what the file cannot make itself: an instance of its class, or the name of a factory that the caller
            trusts, package.module:factory.
        bare: what bare weights do not say, see `load_classifier`.

    Raises:
        CheckpointError: nothing is there; or it is damaged.
        ModelError: the architecture is unknown, or one that `network` must bring.
    """
    path = expand(path)
    box = box_of(path)
    if box is not None:
        return Box.load(box, network)
    if not path.exists() and path.suffix != MAY_STAND_FOR_OURS:
        raise CheckpointError(
            f"{path}: no such file or folder (looked in {Path.cwd()}); expected a box, a run folder of sdb train, wrap "
            "or distill, or a checkpoint"
        )
    return load_classifier(path, network=network, **bare)
