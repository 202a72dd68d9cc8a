"""`best_model.tar`: the best epoch of a run, as the reference's code reads it.

    {"epoch": 117, "state_dict": {...}, "optim_dict": {...}, "sdb": "..."}

The state dict is the bare network's, which gets normalised images; `sdb` is our description of the whole classifier, so
that it is never read with another normalisation by us.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch

from sdb.config import load
from sdb.models import ModelSpec
from sdb.models.bare import OWN
from sdb.models.checkpoint import read_tensors
from sdb.runs.folder import BEST, LAST
from sdb.runtime import json_text, write_atomic
from sdb.training.optimizers import learning_rate_at, make_optimizer, restore_optimizer, set_rate

NAME = "best_model.tar"


def write_best_model(folder: Path, command: str) -> Path | None:
    """Write DIR/best_model.tar from what a run has left in DIR.

    The optimizer's state is that of the epoch where the best one is the last, else a fresh one's.

    Returns:
        The file, or None for a decoy box, which is more than one network: it has fixed answers and a private part.

    Raises:
        CheckpointError: the run's checkpoints are missing or damaged.
        StorageError: the disk is full.
    """
    params = load(folder, command, resume=True)
    if getattr(params, "method", None) == "decoy":
        return None
    tensors, header = read_tensors(folder / BEST)
    spec = ModelSpec.from_json(header["spec"])
    model = spec.build(allow_factory=spec.name == params.model_name)
    optimizer = make_optimizer([model], params)
    epoch = header["history"][-1]["epoch"]
    last, newest = read_tensors(folder / LAST)
    if newest["history"][-1]["epoch"] == epoch:
        restore_optimizer(optimizer, last)
    set_rate(optimizer, learning_rate_at(params, epoch - 1))
    prefix = "model.network."
    weights = {n.removeprefix(prefix): t.contiguous() for n, t in tensors.items() if n.startswith(prefix)}
    described = {"spec": spec.to_json(), "class_names": header.get("class_names", [])}
    content = {"epoch": epoch, "state_dict": weights, "optim_dict": optimizer.state_dict()}
    buffer = io.BytesIO()
    # The older format: torch 1.4, which the reference pins, reads no other.
    torch.save({**content, OWN: json_text(described)}, buffer, _use_new_zipfile_serialization=False)
    write_atomic(folder / NAME, buffer.getvalue())
    return folder / NAME
