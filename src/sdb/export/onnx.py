"""A neutral network as ONNX."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import fx, nn

from sdb.errors import MissingExtraError, ModelError
from sdb.export.network import INPUT, OUTPUT, Shape, compare, example, search
from sdb.runtime import json_text

LIMIT = 2**31 - 2**20  # bytes; a protocol buffer ends at 2 GiB


def to_onnx(network: fx.GraphModule, module: nn.Module, shape: Shape, metadata: dict[str, Any]) -> bytes:
    """The bytes of an .onnx file, run by ONNX Runtime against `module`.

    Raises:
        MissingExtraError: a package for ONNX is not installed.
        ModelError: too large, different, or not free of traces.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "export to onnx")
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.buffers())
    if size > LIMIT:
        raise ModelError(
            f"the network has {size} bytes, one ONNX file holds less than 2 GiB: export to pt2 instead"
        )
    import onnxruntime

    program: Any = torch.onnx.export(
        network,
        (example(shape),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    model = program.model_proto
    if model.functions:
        raise ModelError("the network needs functions of its own in ONNX, whose names would tell: export to pt2")
    _scrub(model)
    _rename(model.graph, {"": "", INPUT: INPUT, OUTPUT: OUTPUT})
    bare = type(model)()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        tensor.ClearField("raw_data")
    search(bare.SerializeToString())
    for name, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json_text(value)
    data = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    compare(module, lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0]), shape)
    return data


def _scrub(message: Any) -> None:
    """Remove documentation and metadata from a protocol buffer, at every depth."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                _scrub(part)


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Number the nodes and values of an ONNX graph and of those inside it; `names` holds what was renamed so far."""
    del graph.value_info[:]  # shapes of inner values: any runtime finds them by itself

    def renamed(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}")

    for value in (*graph.input, *graph.initializer, *graph.output):
        value.name = renamed(value.name)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)
