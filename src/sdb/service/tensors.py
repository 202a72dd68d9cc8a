"""Tensors on the wire: images in, in four number types, as JSON or bytes; answers out, the same two ways."""

from __future__ import annotations

from itertools import chain
from math import prod
from typing import Any

import numpy as np

from sdb.runtime import json_text
from sdb.service.limits import Refusal

INPUT = "image"
# Pixels are in [0, 1], or whole numbers to 255. Bytes are little-endian, as the protocol has it.
INPUT_TYPES = {"FP32": "<f4", "FP16": "<f2", "FP64": "<f8", "UINT8": "|u1"}
OUTPUT_TYPES = {"f2": "FP16", "f4": "FP32", "f8": "FP64", "i8": "INT64"}
# Nine digits give every FP32 back, and always 15 letters: an answer's length does not say whose answer it is.
FLOAT, DOUBLE = "% .8e", "% .16e"
SLACK = 1e-4  # rounding of a client that computed its pixels, as a keyed image's are


def read_images(tensor: Any, binary: memoryview, image_shape: tuple[int, int, int], max_images: int) -> np.ndarray:
    """The images of one input tensor.

    Args:
        tensor: the JSON object that describes it, not yet checked.
        binary: the tensor's bytes, where its parameters name a `binary_data_size`; else empty.
        image_shape: (C, H, W) that the model takes.
        max_images: of one request.

    Returns:
        float32 (N, C, H, W), pixels in [0, 1].

    Raises:
        Refusal: 400 for anything else, 413 for too many images.
    """
    kind, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(kind, str) or kind not in INPUT_TYPES:
        raise Refusal(400, f"input {INPUT!r} has an unknown datatype: send one of {', '.join(INPUT_TYPES)}")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise Refusal(400, f"the shape of {INPUT!r} must be a list of whole numbers")
    if len(shape) != 4 or tuple(shape[1:]) != image_shape or shape[0] < 1:
        expected = ", ".join(map(str, image_shape))
        raise Refusal(400, f"{INPUT!r} has shape {_short(shape)}; expected (N, {expected}) with N at least 1")
    if shape[0] > max_images:
        raise Refusal(413, f"too many images in one request: send at most {max_images}")
    numbers = _from_bytes(tensor, binary, kind, shape) if len(binary) else _from_json(tensor, kind, shape)
    with np.errstate(over="ignore"):
        images = numbers.astype(np.float32).reshape(shape)
    if kind == "UINT8":
        images /= 255
    # Written so that NaN fails too.
    if not (images.min() >= -SLACK and images.max() <= 1 + SLACK):
        raise Refusal(400, "pixels must be numbers in [0, 1], or UINT8")
    return images


def _from_bytes(tensor: Any, binary: memoryview, kind: str, shape: list[int]) -> np.ndarray:
    expected = prod(shape) * np.dtype(INPUT_TYPES[kind]).itemsize
    if tensor.get("data") is not None:
        raise Refusal(400, f"{INPUT!r} has both data and binary_data_size: send one of them")
    if len(binary) != expected:
        raise Refusal(400, f"binary_data_size of {INPUT!r} is {len(binary)}; shape and datatype make {expected}")
    return np.frombuffer(binary, INPUT_TYPES[kind])


def _from_json(tensor: Any, kind: str, shape: list[int]) -> np.ndarray:
    """The numbers of a flat or nested list.

    Types are looked at before numpy sees them: it would turn text into numbers, and long text into much memory.
    """
    rows = tensor.get("data")
    if not isinstance(rows, list):
        raise Refusal(400, f"{INPUT!r} has no data: send a list of numbers, or bytes with binary_data_size")
    wrong = Refusal(400, f"data of {INPUT!r} must be {prod(shape)} numbers, flat or nested like its shape")
    if rows and isinstance(rows[0], list):
        count = shape[0]
        for inner in shape[1:]:
            if len(rows) != count or not all(isinstance(row, list) and len(row) == inner for row in rows):
                raise wrong
            rows = list(chain.from_iterable(rows))
            count *= inner
    if len(rows) != prod(shape) or not set(map(type, rows)) <= {int, float}:
        raise wrong
    try:
        numbers = np.array(rows, np.float64)
    except OverflowError:
        raise wrong from None
    # JSON has one kind of number: 7.0 is whole.
    if kind == "UINT8" and not (0 <= numbers.min() <= numbers.max() <= 255 and (numbers % 1 == 0).all()):
        raise Refusal(400, f"data of {INPUT!r} must be whole numbers from 0 to 255 for UINT8")
    return numbers


def write_tensor(name: str, values: np.ndarray, as_bytes: bool) -> tuple[str, bytes]:
    """One output tensor as a JSON object, and the bytes that follow the JSON (empty when `as_bytes` is false)."""
    values = np.ascontiguousarray(values)
    entry: dict[str, Any] = {
        "name": name,
        "datatype": OUTPUT_TYPES[values.dtype.str[1:]],
        "shape": list(values.shape),
    }
    if as_bytes:
        data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        return json_text(entry | {"parameters": {"binary_data_size": len(data)}}), data
    form = "%d" if values.dtype.kind == "i" else DOUBLE if values.dtype.itemsize == 8 else FLOAT
    numbers = ", ".join([form] * values.size) % tuple(values.ravel().tolist())
    return f'{json_text(entry)[:-1]}, "data": [{numbers}]}}', b""


def _short(shape: list[int]) -> str:
    """A shape for a message; what a client makes up may be very long."""
    text = str(tuple(shape))
    return text if len(text) <= 60 else text[:57] + "..."
