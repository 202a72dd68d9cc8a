"""Export: a box as one file for other runtimes, ONNX or torch's .pt2. Serving it is in service.

    export(box, Path("model.onnx"), "onnx")              what everyone may run
    export(box, Path("partner.pt2"), "pt2", key=key)     the unlocked network: whoever has this file has the knowledge

Pixels (batch, C, H, W) in [0, 1] in, logits (batch, classes) out, any batch size. Exporters write down where a network
comes from: source paths, stack traces, module names, the example input. None of that is handed out: the network is
traced, rebuilt under neutral names, and traced again; what is left is removed; the file is searched, and run against
the box, before it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from sdb.box.box import Box
from sdb.errors import ConfigError
from sdb.export.network import INPUT, OUTPUT, Shape, neutral, quiet
from sdb.export.onnx import to_onnx
from sdb.export.pt2 import to_pt2
from sdb.keys import Key
from sdb.runtime import write_atomic

FORMATS: dict[str, Callable[[fx.GraphModule, nn.Module, Shape, dict[str, Any]], bytes]] = {
    "onnx": to_onnx,
    "pt2": to_pt2,
}


def export(
    box: Box,
    path: Path | str,
    to: str,
    *,
    key: Key | None = None,
    licence: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a box as one file and return the metadata that the file carries.

    Args:
        box: what is exported; stays as it is.
        path: the file.
        to: "onnx" or "pt2".
        key: export the network that this key unlocks, mode 0600; without it, the one that everyone runs.
        licence: text that goes into the file.
        overwrite: replace a file that is there.

    Raises:
        ConfigError: an unknown format, or the file exists.
        KeyFileError: the key is of another box.
        MissingExtraError: the packages for ONNX are not installed.
        ModelError: the network cannot be traced, answers differently once exported, or leaves a trace in the file.
        StorageError: the file cannot be written; what was there is untouched.
    """
    if to not in FORMATS:
        raise ConfigError(f"--to {to!r}: expected one of {', '.join(FORMATS)}")
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the file to write")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; choose another name, or add --overwrite")
    metadata = describe(box, licence)
    module = copy.deepcopy(box if key is None else box.unlock(key)).cpu().eval()
    shape = box.classifier.image_shape
    with quiet(), torch.no_grad():
        data = FORMATS[to](neutral(module, shape), module, shape, metadata)
    write_atomic(path, data, mode=0o644 if key is None else 0o600)
    return metadata


def describe(box: Box, licence: str = "") -> dict[str, Any]:
    """What an exported file says of itself."""
    return {
        "id": box.info.id,
        "classes": list(box.info.class_names),
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", *box.classifier.image_shape],
            "range": [0, 1],
        },
        "pictures": asdict(box.classifier.pictures),
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", box.classifier.num_classes]},
        "licence": licence,
    }
