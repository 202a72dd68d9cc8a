"""The Open Inference Protocol v2, the client's half: what a model gives, and images for logits, as bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdb.config.address import Address
from sdb.errors import RemoteError
from sdb.runtime import json_text

REQUEST_IMAGES, REQUEST_BYTES = 128, 4 * 2**20
METADATA_LIMIT = 2**20  # bytes
HEADER = "Inference-Header-Content-Length"
SOFT, LABELS = ("logits", "probabilities"), "labels"
# Of outputs that are read, in the protocol's words and numpy's.
TYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "INT64": "<i8"}


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a model's metadata promise.

    Attributes:
        input: name of the input tensor.
        image_shape: (C, H, W).
        kind: name of the output tensor and what it holds: "logits", "probabilities", or "labels".
        num_classes: number of classes; 0 where only labels are given.
        most: images that a request may hold.
        fingerprint: of the metadata that say which model it is.
        class_names: in label order; empty where the server does not say them.
    """

    input: str
    image_shape: tuple[int, int, int]
    kind: str
    num_classes: int
    most: int
    fingerprint: str
    class_names: tuple[str, ...] = ()


class Client:
    """Asks one model.

    Args:
        address: of the model.
        token: bearer token, or None.
        patience: seconds to go on trying one request.

    Raises:
        ConfigError: the token holds white space or other than ASCII.
        MissingExtraError: the extra `remote` is not installed.
    """

    def __init__(self, address: Address, token: str | None, patience: float) -> None:
        from sdb.remote.wire import Wire  # the only part that needs the extra

        self._wire = Wire(address, token, patience)
        self._url = address.url

    def describe(self, labels: bool = False) -> RemoteModel:
        """Ask for the model's metadata.

        Args:
            labels: that a model will do that gives labels alone.

        Raises:
            RemoteError: not reached, not understood, or a model that gives no soft outputs of all classes.
        """
        _, data = self._wire.ask("GET", "", None, {"Accept": "application/json"}, METADATA_LIMIT)
        try:
            metadata = json.loads(data)
            (given,) = metadata["inputs"]
            outputs = {str(output["name"]): output for output in metadata["outputs"]}
            shape = [int(size) for size in given["shape"]]
            name, datatype = str(given["name"]), given["datatype"]
            widths = {n: [int(size) for size in o["shape"]] for n, o in outputs.items()}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RemoteError(
                f"{self._url} does not describe itself as a model of the Open Inference Protocol v2 with one input"
            ) from None
        if datatype != "FP32" or len(shape) != 4 or min(shape[1:]) < 1:
            raise RemoteError(f"{self._url} takes {datatype} {shape}, images are FP32 [-1, C, H, W]")
        kind = next((kind for kind in (*SOFT, *[LABELS] * labels) if kind in outputs), None)
        if kind is None:
            raise RemoteError(
                f"{self._url} gives {', '.join(outputs) or 'nothing'}; a student is distilled from the logits or "
                "probabilities of all classes: ask the owner for them, or train on labels"
            )
        if kind == LABELS:
            widths[kind] = [-1, 0]
        elif outputs[kind].get("datatype") != "FP32" or len(widths[kind]) != 2 or widths[kind][1] < 2:
            raise RemoteError(f"{self._url} gives {kind} as {widths[kind]}, expected FP32 [-1, classes]")
        # What runs the model and how much it takes at once may change; the answers stay the same.
        lasting = {n: metadata.get(n) for n in ("name", "versions", "inputs", "outputs")}
        more = metadata.get("parameters")
        more = more if isinstance(more, dict) else {}
        lasting["box_id"] = more.get("box_id")
        print_of = hashlib.sha256(json_text(lasting, sort_keys=True).encode()).hexdigest()
        hint = more.get("max_images")
        most = min(hint, REQUEST_IMAGES) if type(hint) is int and hint > 0 else REQUEST_IMAGES
        classes, names = widths[kind][1], more.get("class_names")
        known = isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names)
        return RemoteModel(
            name, (shape[1], shape[2], shape[3]), kind, classes, most, print_of, tuple(names) if known else ()
        )

    def infer(self, model: RemoteModel, images: np.ndarray) -> Iterator[np.ndarray]:
        """Logits float32 (n, classes) of images float32 (N, C, H, W), request by request, in order; or labels (n,).

        Raises:
            RemoteError: refused, not answered, or answered with something else than the metadata promise.
        """
        begin, most = 0, model.most
        while begin < len(images):
            count = max(1, min(most, REQUEST_BYTES // images[0].nbytes))
            part = images[begin : begin + count]
            try:
                rows = self._request(model, part)
            except RemoteError as error:
                if error.status != 413 or len(part) == 1:
                    raise
                most = len(part) // 2  # more than this server takes at once
                continue
            begin += len(part)
            yield rows

    def _request(self, model: RemoteModel, images: np.ndarray) -> np.ndarray:
        data = images.astype("<f4", copy=False).tobytes()
        tensor: dict[str, Any] = {"name": model.input, "datatype": "FP32", "shape": list(images.shape)}
        tensor["parameters"] = {"binary_data_size": len(data)}
        wanted = [{"name": model.kind, "parameters": {"binary_data": True}}]
        text = json_text({"inputs": [tensor], "outputs": wanted}).encode()
        headers = {"Content-Type": "application/octet-stream", HEADER: str(len(text))}
        # A number takes up to 25 letters where a server answers in JSON.
        limit = 2**16 + 32 * len(images) * model.num_classes
        answer, body = self._wire.ask("POST", "/infer", text + data, headers, limit)
        shape = (len(images),) if model.kind == LABELS else (len(images), model.num_classes)
        try:
            values = _tensor(body, answer.get(HEADER), model.kind, shape)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise RemoteError(
                f"{self._url} did not answer with {model.kind} {list(shape)} as its metadata promise; its policy may "
                "have changed: start again, or ask the owner"
            ) from None
        return values if model.kind == LABELS else self._as_logits(values, model.kind)

    def _as_logits(self, values: np.ndarray, kind: str) -> np.ndarray:
        if not np.isfinite(values).all():
            raise RemoteError(f"{self._url} answered with numbers that are not finite")
        sums_to_one = (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3)
        if kind == "logits":
            if sums_to_one:
                raise RemoteError(f"{self._url} says logits and sends probabilities; ask the owner which they are")
            return values
        if not sums_to_one:
            raise RemoteError(f"{self._url} says probabilities and sends numbers that do not sum to 1")
        # The softmax of the logarithm gives the probabilities back, at any temperature those of the logits.
        return np.log(np.maximum(values, np.finfo(np.float32).tiny))


def _tensor(body: bytes, json_size: str | None, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One output of an answer, float32, labels int64; errors of many kinds for one that is not as it should be."""
    values = read_output(body, json_size, name)
    if values.dtype != (np.int64 if name == LABELS else np.float32) or values.shape != shape:
        raise ValueError("another type or shape")
    return values


def read_output(body: bytes, json_size: str | None, name: str) -> np.ndarray:
    """One output of an answer; errors of many kinds for one that is not as it should be.

    Args:
        body: of the answer.
        json_size: value of `Inference-Header-Content-Length`, None where it was not sent.
        name: of the output.
    """
    size = len(body) if json_size is None else int(json_size)
    if not 0 <= size <= len(body):
        raise ValueError("the JSON ends after the body")
    begin = size
    for output in json.loads(body[:size])["outputs"]:
        own = output.get("parameters", {}).get("binary_data_size")
        if output["name"] == name:
            kind = TYPES[output["datatype"]]
            if own is None:
                return np.array(output["data"], dtype=kind).astype(kind[1:]).reshape(output["shape"])
            data = body[begin : begin + int(own)]
            return np.frombuffer(data, dtype=kind).astype(kind[1:]).reshape(output["shape"])
        begin += int(own or 0)
    raise KeyError(name)
