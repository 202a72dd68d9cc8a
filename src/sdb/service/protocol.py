"""The Open Inference Protocol v2 over HTTP: what an inference request says, and what is answered.

A body is one JSON object; with the header `Inference-Header-Content-Length` it is that many bytes of JSON, then the
tensors' bytes in their order. Keys and parameters that are not known are ignored, as the protocol asks; what is null
counts as left out. No Content-Type is needed: the usual client sends none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from sdb.runtime import json_text
from sdb.service.limits import MAX_JSON, Refusal
from sdb.service.tensors import INPUT, read_images, write_tensor

HEADER = "inference-header-content-length"
VERSION = "1"
# By the names that Triton gave them. Of its model repository there is the index alone, so it is not announced.
EXTENSIONS = ("binary_tensor_data",)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request that was read.

    Attributes:
        images: float32 (N, C, H, W), pixels in [0, 1].
        id: the client's name for the request, None where it gave none.
        wanted: names of outputs, in order, and whether each comes as bytes; empty for all of them.
        as_bytes: how outputs come where `wanted` does not say.
    """

    images: np.ndarray
    id: str | None
    wanted: dict[str, bool]
    as_bytes: bool


def read_request(
    body: bytes, json_size: str | None, image_shape: tuple[int, int, int], max_images: int
) -> InferRequest:
    """Read the body of an inference request.

    Args:
        body: decompressed.
        json_size: the value of `Inference-Header-Content-Length`, None where it was not sent.
        image_shape: (C, H, W) that the model takes.
        max_images: of one request.

    Raises:
        Refusal: 400 or 413, saying what is wrong.
    """
    request, binary = request_of(body, json_size)
    inputs = objects_of(request, "inputs")
    if len(inputs) != 1 or inputs[0].get("name") != INPUT:
        raise Refusal(400, f"expected one input, named {INPUT!r}")
    size = parameters_of(inputs[0]).get("binary_data_size")
    if type(size) not in (int, NoneType) or (size or 0) != len(binary):
        raise Refusal(400, f"binary_data_size must be the {len(binary)} bytes that follow the JSON")
    images = read_images(inputs[0], binary, image_shape, max_images)
    name = request.get("id")
    if not isinstance(name, str | None):
        raise Refusal(400, "the request's id must be text")
    as_bytes = flag_of(parameters_of(request), "binary_data_output", False)
    wanted: dict[str, bool] = {}
    for output in objects_of(request, "outputs") if request.get("outputs") is not None else []:
        if not isinstance(output.get("name"), str):
            raise Refusal(400, "every entry of outputs needs a name")
        wanted[output["name"]] = flag_of(parameters_of(output), "binary_data", as_bytes)
    return InferRequest(images, name, wanted, as_bytes)


def check_wanted(request: InferRequest, offered: list[dict[str, Any]]) -> None:
    """Refuse a request for an output that is not given, before any work is done for it.

    Raises:
        Refusal: 400, naming what is given.
    """
    names = [output["name"] for output in offered]
    if not request.wanted.keys() <= set(names):
        raise Refusal(400, f"an output was asked for that this server does not give; it gives {', '.join(names)}")


def write_response(
    request: InferRequest, tensors: Mapping[str, np.ndarray], model: str
) -> tuple[bytes, dict[str, str]]:
    """The body of the answer and its headers."""
    entries, parts = [], []
    for name in request.wanted or tensors:
        entry, data = write_tensor(name, tensors[name], request.wanted.get(name, request.as_bytes))
        entries.append(entry)
        parts.append(data)
    answer = {"model_name": model, "model_version": VERSION}
    if request.id is not None:
        answer["id"] = request.id
    text = f'{json_text(answer)[:-1]}, "outputs": [{", ".join(entries)}]}}'.encode()
    binary = b"".join(parts)
    if not binary:
        return text, {"content-type": "application/json"}
    return text + binary, {"content-type": "application/octet-stream", HEADER: str(len(text))}


def request_of(body: bytes, json_size: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON object of a request's body, and the tensors' bytes behind it.

    Raises:
        Refusal: 400 or 413, saying what is wrong.
    """
    text, binary = split_body(body, json_size)
    if len(text) > MAX_JSON:
        raise Refusal(413, "more than 16 MiB of JSON: send binary tensors")
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(400, "the body is not JSON, or Inference-Header-Content-Length is wrong") from None
    if not isinstance(request, dict):
        raise Refusal(400, "the body must be a JSON object with a list of inputs")
    return request, binary


def split_body(body: bytes, json_size: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body and the tensors' bytes behind it.

    Raises:
        Refusal: 400, the header does not say a size within the body.
    """
    if json_size is None:
        return body, memoryview(b"")
    if not (json_size.isascii() and json_size.isdecimal()) or len(json_size) > 12 or int(json_size) > len(body):
        raise Refusal(400, f"Inference-Header-Content-Length must be a number up to the body's {len(body)} bytes")
    size = int(json_size)
    return body[:size], memoryview(body)[size:]


def objects_of(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of JSON objects.

    Raises:
        Refusal: 400, it is something else.
    """
    value = holder.get(name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise Refusal(400, f"{name} must be a list of objects")
    return value


def parameters_of(holder: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a request or tensor; empty for none.

    Raises:
        Refusal: 400, they are no object, or name shared memory.
    """
    value = holder.get("parameters")
    if not isinstance(value, dict | None):
        raise Refusal(400, "parameters must be an object")
    if any(name.startswith("shared_memory_") for name in value or {}):
        raise Refusal(400, "this server has no shared memory: send and take tensors in the body")
    return value or {}


def flag_of(parameters: dict[str, Any], name: str, default: bool) -> bool:
    """A parameter that is true or false.

    Raises:
        Refusal: 400, it is neither.
    """
    value = parameters.get(name)
    if not isinstance(value, bool | None):
        raise Refusal(400, f"{name} must be true or false")
    return default if value is None else value
