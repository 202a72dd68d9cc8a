"""Suspects as their finder has them: a file of ours, an ONNX file, code that makes a network, or an address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdb.box.load import load_model
from sdb.errors import ModelError
from sdb.models.external import from_factory
from sdb.models.onnx_file import open_onnx
from sdb.remote import RemoteSuspect, token_from
from sdb.tracing.ties import Suspect


def suspect_of(text: str, network: str | None, device: torch.device, token_env: str | None) -> Suspect:
    """What a word on the command line stands for.

    Args:
        text: an http(s) address of the Open Inference Protocol, a .onnx file, a `package.module:factory` that is
            trusted and makes a module, or a run folder, checkpoint or box.
        network: what a file cannot make itself, see `load_model`.
        device: for modules.
        token_env: environment variable with the token for an address.

    Raises:
        ModelError, CheckpointError, RemoteError: it cannot be loaded or reached.
        MissingExtraError: the extra that it needs is not installed.
    """
    if text.startswith(("http://", "https://")):
        return RemoteSuspect(text, token=token_from(token_env))
    if text.endswith(".onnx"):
        return _by_onnx(Path(text))
    if ":" in text and not Path(text).exists():
        return from_factory(text, 0, {}).to(device)
    return load_model(text, network).to(device)


def _by_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The first input takes images, the first output gives logits (N, C) or classes (N,)."""
    session = open_onnx(path)
    name, fixed = session.get_inputs()[0].name, session.get_inputs()[0].shape[0]

    def classes(images: np.ndarray) -> np.ndarray:
        size = fixed if isinstance(fixed, int) else len(images)  # a file may be for one image at a time
        parts = []
        for begin in range(0, len(images), size):
            part = images[begin : begin + size]
            padded = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            try:
                parts.append(np.asarray(session.run(None, {name: padded})[0])[: len(part)])
            except Exception as error:  # ONNX Runtime has no common base for its errors
                raise ModelError(f"{path}: fails on images {images.shape[1:]} ({type(error).__name__})") from None
        given = np.concatenate(parts)
        if given.ndim == 2 and not np.isfinite(given).all():
            raise ModelError(f"{path}: answers with NaN or infinity; it is broken")
        return given.argmax(axis=1) if given.ndim == 2 else given

    return classes
