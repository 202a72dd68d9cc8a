"""The network that is exported: traced, under neutral names, searched, and compared with the box."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, fx, nn

from sdb.errors import ModelError

Shape = tuple[int, int, int]

INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4  # of the largest logit: what another runtime's order of additions may cost
# Text that no exported file holds, beside what its owner writes into it.
TELLTALES = (b".py", b"site-packages", b"stack_trace", b"nn_module_stack", b"sdb", b"class_hierarchy")


def neutral(module: nn.Module, shape: Shape) -> fx.GraphModule:
    """The same computation with tensors w0, w1, ... and nothing that says where it comes from.

    Raises:
        ModelError: the network cannot be traced.
    """
    traced = trace(module, shape).module(check_guards=False)
    root, graph = nn.Module(), fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            new[node] = graph.placeholder(INPUT)
        elif node.op == "get_attr" and node.users:
            name = f"w{len(new)}"
            root.register_buffer(name, _attribute(traced, node.target).detach().clone())
            new[node] = graph.get_attr(name)
        elif node.op == "call_function":
            new[node] = graph.node_copy(node, new.__getitem__)
            new[node].meta = {}
        elif node.op == "output":
            graph.output(new[node.args[0][0]])
        elif node.op != "get_attr":
            raise ModelError(f"the traced network holds a {node.op}, which is not exported; serve it instead")
    return fx.GraphModule(root, graph, "Network").eval()


def example(shape: Shape) -> Tensor:
    """Random images (2, C, H, W): an exporter keeps what it is given, so it gets nobody's data."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def trace(module: nn.Module, shape: Shape) -> torch.export.ExportedProgram:
    """Trace a network for any batch size.

    Raises:
        ModelError: torch cannot.
    """
    try:
        return torch.export.export(module, (example(shape),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    # The network may be anyone's, and torch.export may raise anything; the cause keeps its traceback.
    except Exception as error:
        raise ModelError(
            f"torch cannot trace this network for any batch size ({type(error).__name__}): an architecture whose "
            "forward depends on the values of its input cannot be exported; serve it instead"
        ) from error


def _attribute(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def search(text: bytes) -> None:
    """Refuse a file that still says where it comes from.

    Raises:
        ModelError: naming what was found.
    """
    found = [word.decode() for word in TELLTALES if word in text]
    if found:
        raise ModelError(
            f"the exported file would still hold {', '.join(found)}: this version of torch ({torch.__version__}) "
            "writes more than sdb knows how to remove; use a version that is in constraints.txt"
        )


@torch.no_grad()
def compare(module: nn.Module, exported: Callable[[Tensor], Tensor], shape: Shape) -> None:
    """Refuse a file that answers otherwise than the box.

    Raises:
        ModelError: naming the largest difference.
    """
    for count in (1, 5):
        images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))
        expected, given = module(images), exported(images)
        gap = float((expected - given).abs().max()) if given.shape == expected.shape else float("inf")
        if not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"the exported network differs from the box by {gap:.2g}; nothing was written. Use the other format"
            )


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Exporters talk about what they lack and about torch's own future; none of it is for the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
