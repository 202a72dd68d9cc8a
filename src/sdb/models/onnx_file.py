"""Somebody's ONNX file, opened to be asked on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdb.errors import MissingExtraError, ModelError


def open_onnx(path: Path) -> Any:
    """ONNX Runtime's session of a file.

    Raises:
        ModelError: missing, or ONNX Runtime does not load it.
        MissingExtraError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx", "asking an ONNX file") from None
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has no common base for its errors
        raise ModelError(f"{path}: ONNX Runtime does not load it ({type(error).__name__})") from None
