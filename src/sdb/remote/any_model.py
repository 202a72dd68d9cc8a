"""A model of another server as a function, for the calibration of a guard: whatever inputs it takes, one output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sdb.config.address import Address
from sdb.errors import ConfigError, RemoteError
from sdb.remote.protocol import HEADER, read_output
from sdb.remote.wire import Wire
from sdb.runtime import json_text

LIMIT = 2**26  # bytes of an answer
KINDS = {"f": "FP", "i": "INT", "u": "UINT"}


def asked_model(url: str, output: str | None, token_env: str | None) -> Callable[..., np.ndarray]:
    """A function from inputs to outputs float (N, C): one array, or arrays by the names of the model's inputs.

    Args:
        url: http://HOST:PORT/v2/models/NAME.
        output: which of the model's outputs; None where it has one.
        token_env: environment variable with that server's token.

    Raises:
        ConfigError: the URL names no model, the output is none of its own, or has to be said.
        RemoteError: it is not reached, or does not describe itself.
    """
    address, token = Address.parse(url), None if token_env is None else os.environ.get(token_env)
    wire = Wire(address, token, 60.0)
    _, data = wire.ask("GET", "", None, {"Accept": "application/json"}, LIMIT)
    try:
        found = json.loads(data)
        # MLServer's models describe neither, and do not mind the name of a single input.
        first = str(found["inputs"][0]["name"]) if found["inputs"] else "input"
        names = [str(each["name"]) for each in found["outputs"]]
    except (ValueError, KeyError, TypeError, IndexError):
        raise RemoteError(f"{url} does not describe itself as a model of the Open Inference Protocol v2") from None
    if output is None and not names:
        raise ConfigError("--output: the model does not say what it gives; name the output")
    if (output is None and len(names) != 1) or (output is not None and names and output not in names):
        raise ConfigError(f"--output {output!r}: the model gives {', '.join(names)}; name one of them")
    wanted, binary = output or names[0], _takes_binary(address, token)

    def ask(*given: Any, **named: Any) -> np.ndarray:
        columns = named or {first: given[0]}
        tensors, parts = [], []
        for name, values in columns.items():
            array = np.asarray(values)
            kind, shape, raw = _tensor(array)
            tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
            if binary:
                parts.append(raw)
                tensors.append(tensor | {"parameters": {"binary_data_size": len(raw)}})
            else:
                tensors.append(tensor | {"data": _numbers(array)})
        outputs = [{"name": wanted} | ({"parameters": {"binary_data": True}} if binary else {})]
        text = json_text({"inputs": tensors, "outputs": outputs}).encode()
        sent = {"Content-Type": "application/json"}
        if binary:
            sent = {"Content-Type": "application/octet-stream", HEADER: str(len(text))}
        headers, body = wire.ask("POST", "/infer", text + b"".join(parts), sent, LIMIT)
        try:
            return read_output(body, headers.get(HEADER), wanted)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise RemoteError(f"{url} did not answer with {wanted} as the protocol has it") from None

    return ask


def _takes_binary(address: Address, token: str | None) -> bool:
    """Whether a server announces binary tensors; JSON is what every server takes."""
    path = address.path[: address.path.rindex("/v2/models/")] + "/v2"
    root = replace(address, url=address.url.removesuffix(address.path) + path, path=path)
    try:
        _, data = Wire(root, token, 60.0).ask("GET", "", None, {"Accept": "application/json"}, LIMIT)
        return "binary_tensor_data" in json.loads(data)["extensions"]
    except (RemoteError, ValueError, KeyError, TypeError):
        return False


def _numbers(values: np.ndarray) -> list[Any]:
    """An array as a list for JSON.

    Raises:
        ConfigError: bytes that are no text.
    """
    try:
        return [each.decode() if isinstance(each, bytes) else each for each in values.ravel().tolist()]
    except UnicodeDecodeError:
        raise ConfigError("inputs of bytes: this server takes JSON alone, which holds text") from None


def _tensor(values: np.ndarray) -> tuple[str, list[int], bytes]:
    """Datatype, shape and bytes of an input."""
    if values.dtype.kind in "OUS":
        words = [each.encode() if isinstance(each, str) else bytes(each) for each in values.ravel().tolist()]
        return "BYTES", list(values.shape), b"".join(len(word).to_bytes(4, "little") + word for word in words)
    if values.dtype.kind not in "fiub":
        raise ConfigError(f"inputs of {values.dtype}: the protocol has no such type")
    form = values.dtype.newbyteorder("<")
    name = "BOOL" if form.kind == "b" else f"{KINDS[form.kind]}{8 * form.itemsize}"
    return name, list(values.shape), np.ascontiguousarray(values, form).tobytes()
