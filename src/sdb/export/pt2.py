"""A neutral network as torch's .pt2."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import torch
from torch import fx, nn

from sdb.errors import ModelError
from sdb.export.network import Shape, compare, search, trace
from sdb.runtime import json_text


def to_pt2(network: fx.GraphModule, module: nn.Module, shape: Shape, metadata: dict[str, Any]) -> bytes:
    """The bytes of a .pt2 file, loaded and run against `module`.

    Raises:
        ModelError: different, or not free of traces.
    """
    program = trace(network, shape)
    for node in program.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node", "custom"):
            node.meta.pop(name, None)
    program.example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"metadata.json": json_text(metadata, indent=1)})
    with zipfile.ZipFile(buffer) as archive:
        own = [n for n in archive.namelist() if "/extra/" not in n and "/data/weights/weight_" not in n]
        search(b"\n".join([name.encode() + b"\n" + archive.read(name) for name in own]))
        if any(archive.read(name) for name in own if "sample_inputs" in name):
            raise ModelError("this version of torch keeps the example input in a .pt2; export to onnx instead")
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    compare(module, loaded, shape)
    return buffer.getvalue()
