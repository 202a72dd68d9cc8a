"""Requests to and answers of any model of the Open Inference Protocol v2: read as far as a guard needs.

Tensors stay bytes, or JSON, until a value in them is needed: a request's inputs only for the few rows that a ledger
keeps, an answer's outputs only for the one that is rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from sdb.answers.entries import Query
from sdb.runtime import json_text
from sdb.service.limits import Refusal
from sdb.service.protocol import HEADER, flag_of, objects_of, parameters_of, request_of, split_body
from sdb.service.tensors import write_tensor

# The protocol's types of numbers as numpy's, little-endian.
NUMBERS = {
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    "BOOL": "|b1",
}


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """An inference request to a guarded model.

    Attributes:
        rows: how many examples it asks about.
        tensors: the JSON objects of its inputs.
        places: where the bytes of each begin, None where its data are in the JSON.
        binary: the bytes of all.
        batched: whether the first dimension of every input counts examples.
        request: the JSON object; empty where it came otherwise.
    """

    rows: int
    tensors: list[dict[str, Any]]
    places: list[int | None]
    binary: memoryview
    batched: bool
    request: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, rows: np.ndarray) -> Sequence[Query]:
        """What was asked in some rows: of one input its value, of several a dictionary by name."""
        columns = {
            str(tensor["name"]): _values(tensor, place, self.binary)
            for tensor, place in zip(self.tensors, self.places, strict=True)
        }
        if not self.batched:
            columns = {name: [column] for name, column in columns.items()}
        found = [{name: column[row] for name, column in columns.items()} for row in rows.tolist()]
        return found if len(columns) > 1 else [next(iter(each.values())) for each in found]


def read_question(body: bytes, json_size: str | None, output: str | None, *, batched: bool, most: int) -> Question:
    """Read a request as far as a guard needs.

    Args:
        body: decompressed.
        json_size: value of `Inference-Header-Content-Length`, None where it was not sent.
        output: the one output that is answered; None where all are.
        batched: whether the first dimension of every input counts examples.
        most: examples in one request.

    Raises:
        Refusal: 400 or 413, saying what is wrong.
    """
    request, binary = request_of(body, json_size)
    parameters_of(request)
    tensors, places, begin = objects_of(request, "inputs"), list[int | None](), 0
    for tensor in tensors:
        size = parameters_of(tensor).get("binary_data_size")
        if size is not None and (type(size) is not int or size < 0):
            raise Refusal(400, "binary_data_size must be a whole number")
        places.append(None if size is None else begin)
        begin += size or 0
    if begin != len(binary):
        raise Refusal(
            400, f"binary_data_size of the inputs is {begin} in all; {len(binary)} bytes follow the JSON"
        )
    if output is not None and request.get("outputs") is not None:
        check_outputs(objects_of(request, "outputs"), output)
    return Question(rows_of(tensors, batched, most), tensors, places, binary, batched, request)


def ask_for(output: str, body: bytes, json_size: str | None, request: dict[str, Any]) -> tuple[bytes, str | None]:
    """A request that names the one output, and the size of its JSON: what a model gives unasked may be another.

    Args:
        output: the one.
        body: the request that was read.
        json_size: value of `Inference-Header-Content-Length`, None where it was not sent.
        request: its JSON object.

    Raises:
        Refusal: 400, the request says wrongly how outputs come.
    """
    if request.get("outputs"):
        return body, json_size
    wanted: dict[str, Any] = {"name": output}
    if flag_of(parameters_of(request), "binary_data_output", False):  # which is of outputs that are not named
        wanted["parameters"] = {"binary_data": True}
    text, binary = split_body(body, json_size)
    begin = text.find(b"{") + 1
    if "outputs" in request or json.detect_encoding(text) != "utf-8":
        text = json_text(request | {"outputs": [wanted]}).encode()
    else:  # long lists of numbers stay as they are
        text = text[:begin] + f'"outputs": {json_text([wanted])}, '.encode() + text[begin:]
    return text + binary, None if json_size is None else str(len(text))


def rows_of(tensors: list[dict[str, Any]], batched: bool, most: int) -> int:
    """How many examples inputs hold.

    Args:
        tensors: the objects that describe them.
        batched: whether the first dimension of every input counts examples.
        most: that there may be.

    Raises:
        Refusal: 400 or 413.
    """
    for tensor in tensors:
        if not isinstance(tensor.get("name"), str) or not isinstance(tensor.get("datatype"), str):
            raise Refusal(400, "every input needs a name and a datatype")
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
            raise Refusal(400, "the shape of an input must be a list of whole numbers")
    counts = {tensor["shape"][0] if batched and tensor["shape"] else 1 for tensor in tensors}
    if len(counts) != 1 or 0 in counts:
        raise Refusal(400, "every input must hold the same number of examples, at least 1")
    if (rows := counts.pop()) > most:
        raise Refusal(413, f"too many examples in one request: send at most {most}")
    return rows


def check_outputs(wanted: list[dict[str, Any]], output: str) -> None:
    """Refuse a request for anything but the one output.

    Raises:
        Refusal: 400.
    """
    for each in wanted:
        if each.get("name") != output:
            raise Refusal(400, f"an output was asked for that is not given here; given is {output!r}")
        if parameters_of(each).keys() - {"binary_data"}:
            raise Refusal(400, "of an output's parameters this server knows binary_data alone")
        flag_of(parameters_of(each), "binary_data", False)


def _values(tensor: dict[str, Any], place: int | None, binary: memoryview) -> Sequence[Any] | np.ndarray:
    """The values of an input, by examples.

    Raises:
        Refusal: 400, its data are not what its shape and datatype say.
    """
    shape, kind, data = tensor["shape"], tensor["datatype"], tensor.get("data")
    try:
        if kind == "BYTES":
            values: list[Any] | np.ndarray = (
                list(_flat(data)) if place is None else _elements(binary[place:], shape)
            )
            if len(values) != prod(shape):
                raise ValueError("not as many as the shape says")
            width = prod(shape[1:])
            if width == 1 or len(shape) < 2:
                return values
            return [
                {str(i): each for i, each in enumerate(values[k : k + width])}
                for k in range(0, len(values), width)
            ]
        form = np.dtype(NUMBERS[kind])
        if place is None:
            return np.array(list(_flat(data)), form).reshape(shape)
        return np.frombuffer(binary, form, prod(shape), place).reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Refusal(400, "the data of an input are not what its shape and datatype say") from None


def _flat(data: Any) -> Any:
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each


def _elements(data: memoryview, shape: list[int]) -> list[bytes]:
    """The elements of a BYTES tensor: of each four bytes of length, then itself."""
    found, begin = [], 0
    for _ in range(prod(shape)):
        size = int.from_bytes(data[begin : begin + 4], "little")
        found.append(bytes(data[begin + 4 : begin + 4 + size]))
        begin += 4 + size
    if begin > len(data):
        raise ValueError("cut off")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """A model's answer.

    Attributes:
        head: its JSON, without outputs.
        outputs: the one output that is answered, float (N, C).
        as_bytes: whether it came as bytes.
    """

    head: dict[str, Any]
    outputs: np.ndarray
    as_bytes: bool

    def write(self, name: str, outputs: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """The body of the answer with other outputs in place of the model's, and its headers."""
        entry, data = write_tensor(name, outputs.reshape(self.outputs.shape), self.as_bytes)
        text = f'{json_text(self.head)[:-1]}, "outputs": [{entry}]}}'.encode()
        if not data:
            return text, {"content-type": "application/json"}
        return text + data, {"content-type": "application/octet-stream", HEADER: str(len(text))}


def read_reply(body: bytes, json_size: str | None, output: str) -> Reply:
    """Read a model's answer; what else it holds is dropped.

    Raises:
        ValueError: it is not what the protocol says, or lacks the output.
    """
    try:
        text, binary = split_body(body, json_size)
        answer = json.loads(text)
        tensors = objects_of(answer, "outputs")
        begin = 0
        for tensor in tensors:
            size = parameters_of(tensor).get("binary_data_size")
            if tensor.get("name") == output:
                break
            begin += size or 0
        else:
            raise ValueError("the output is missing")
        form, shape = np.dtype(NUMBERS[tensor["datatype"]]), [int(each) for each in tensor["shape"]]
        if form.kind != "f":
            raise ValueError("the output is no floating-point tensor")
        if size is None:
            values = np.array(list(_flat(tensor["data"])), form)
        else:
            if size != prod(shape) * form.itemsize:
                raise ValueError("the output's size differs from its shape")
            values = np.frombuffer(binary, form, prod(shape), begin)
        head = {name: answer[name] for name in ("model_name", "model_version", "id") if name in answer}
        return Reply(head, values.reshape(shape), size is not None)
    except (Refusal, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"not understood ({type(error).__name__})") from None
