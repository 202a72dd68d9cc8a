"""The guard over gRPC: the Open Inference Protocol's service, in front of a server that speaks it too.

Messages are read by tritonclient's own classes. A partner's answers pass as bytes; only what is rewritten is written.
Of the service's methods those are answered that ask a model; the others do not exist here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from sdb.errors import ConfigError, MissingExtraError, ModelError
from sdb.service.gateway import BROKEN, Gateway
from sdb.service.limits import Refusal
from sdb.service.messages import NUMBERS, Question, check_outputs, rows_of
from sdb.service.protocol import parameters_of
from sdb.service.upstream import SILENCE

try:
    import grpc
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2
except ImportError as error:
    raise MissingExtraError(error.name or "tritonclient", "guard", "guarding over gRPC") from error

if TYPE_CHECKING:
    from sdb.service.watch import Principal

messages: Any = service_pb2  # its classes are made when it is imported
SERVICE, SECURE = "inference.GRPCInferenceService", "grpcs://"
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Where a tensor's values are if they are not raw bytes.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
Method = Callable[[bytes, Any], Awaitable[bytes]]


@dataclass(eq=False)
class GrpcGateway:
    """A gRPC server that shares a gateway's guard, tokens, budgets and ledger.

    Attributes:
        gateway: what is answered, and to whom.
        upstream: HOST:PORT of the server behind it, or grpcs://HOST:PORT for TLS.
        address: HOST:PORT to listen on; port 0 for any that is free.
        timeout: seconds for the model's whole answer.
        on_ready: told the port once it listens.
    """

    gateway: Gateway
    upstream: str
    address: str
    timeout: float
    on_ready: Callable[[int], None] = lambda port: None
    _server: Any = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: nothing can listen there.
        """
        size = self.gateway.served.max_body
        options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
        target = self.upstream.removeprefix(SECURE)
        if target == self.upstream:
            self._channel = grpc.aio.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options)
        self._metadata = tuple(self.gateway.upstream.credentials.items())
        server = grpc.aio.server(options=options)
        methods: dict[str, Method] = {
            "ModelInfer": self.infer,
            "ModelMetadata": self.describe,
            "ModelReady": self.model_ready,
            "ServerReady": self.server_ready,
            "ServerLive": self.server_live,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._told(method)) for name, method in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError:
            raise ConfigError(f"cannot listen on {self.address} for gRPC: choose another --grpc-port") from None
        await server.start()
        self._server = server
        self.on_ready(port)

    async def stop(self) -> None:
        """Answer what was accepted, and close."""
        await self._server.stop(self.timeout)
        await self._channel.close()

    def _told(self, method: Method) -> Method:
        """A method whose refusals are gRPC's, and whose bugs stay inside."""

        async def answered(request: bytes, context: Any) -> bytes:
            try:
                return await method(request, context)
            except Refusal as refusal:
                self.gateway.metrics.refused.labels(refusal.reason).inc()
                await context.abort(STATUS.get(refusal.status, grpc.StatusCode.INTERNAL), str(refusal))
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message is damaged")
            raise AssertionError  # abort raises

        return answered

    async def _ask(self, method: str, request: bytes) -> bytes:
        """What the server behind answers.

        Raises:
            Refusal: as for HTTP; nothing of the answer is in it.
        """
        try:
            asked = self._channel.unary_unary(f"/{SERVICE}/{method}")
            return await asked(request, timeout=self.timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.OUT_OF_RANGE):
            raise Refusal(400, f"the model refuses this request ({code.name})", reason="upstream")
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED
        raise Refusal(504 if late else 502, SILENCE, 1.0, "upstream")

    async def infer(self, request: bytes, context: Any) -> bytes:
        """Answer an inference request."""
        gateway = self.gateway
        asked = messages.ModelInferRequest.FromString(request)
        headers = {str(name): value for name, value in context.invocation_metadata() or ()}
        principal = gateway.asker(str(headers.get("authorization", "")))
        if asked.model_name in gateway.served.others:
            return await self._ask("ModelInfer", request)
        self._check(asked.model_name)
        question = question_of(asked, gateway.served.batched, gateway.served.most)
        partner = gateway.is_partner(principal)
        if not partner:
            parameters_of({"parameters": dict.fromkeys(asked.parameters, 0)})
            wanted = [
                {"name": each.name, "parameters": dict.fromkeys(each.parameters, True)} for each in asked.outputs
            ]
            check_outputs(wanted, gateway.served.output)
            if not asked.outputs:  # what a model gives unasked may be another
                asked.outputs.add(name=gateway.served.output)
                request = asked.SerializeToString()
        await gateway.admit(principal, question.rows)
        answer = await self._ask("ModelInfer", request)
        return answer if partner else self._rewritten(principal, question, answer)

    def _rewritten(self, principal: Principal, question: Question, answer: bytes) -> bytes:
        """A model's answer as a principal may have it."""
        gateway = self.gateway
        try:
            given = messages.ModelInferResponse.FromString(answer)
            place = [each.name for each in given.outputs].index(gateway.served.output)
            tensor = given.outputs[place]
            outputs = _values(tensor, given.raw_output_contents[place] if given.raw_output_contents else None)
            told = gateway.told(principal, question, outputs, given.model_version)
        except (DecodeError, ValueError, KeyError, IndexError, ModelError):
            raise Refusal(502, BROKEN, reason="upstream") from None
        gateway.metrics.images.inc(question.rows)
        kept = messages.ModelInferResponse(
            model_name=given.model_name, model_version=given.model_version, id=given.id
        )
        kept.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        kept.raw_output_contents.append(told.astype(told.dtype.newbyteorder("<")).tobytes())
        return kept.SerializeToString()

    def _check(self, name: str) -> None:
        if name != self.gateway.served.name:
            raise Refusal(404, f"unknown model; this server has {self.gateway.served.name!r}")

    async def describe(self, request: bytes, context: Any) -> bytes:
        """Metadata of the model, with the one output that is given."""
        name = messages.ModelMetadataRequest.FromString(request).name
        if name in self.gateway.served.others:
            return await self._ask("ModelMetadata", request)
        self._check(name)
        found = messages.ModelMetadataResponse.FromString(await self._ask("ModelMetadata", request))
        kept = messages.ModelMetadataResponse(name=found.name, versions=found.versions, platform=found.platform)
        kept.inputs.extend(found.inputs)
        kept.outputs.extend(each for each in found.outputs if each.name == self.gateway.served.output)
        return kept.SerializeToString()

    async def model_ready(self, request: bytes, context: Any) -> bytes:
        """Whether the model answers."""
        name = messages.ModelReadyRequest.FromString(request).name
        if name not in self.gateway.served.others:
            self._check(name)
        return await self._ask("ModelReady", request)

    async def server_ready(self, request: bytes, context: Any) -> bytes:
        """Whether the model answers, as for the server there is no other."""
        asked = messages.ModelReadyRequest(name=self.gateway.served.name)
        ready = messages.ModelReadyResponse.FromString(await self._ask("ModelReady", asked.SerializeToString()))
        return messages.ServerReadyResponse(ready=ready.ready).SerializeToString()

    async def server_live(self, request: bytes, context: Any) -> bytes:
        """That this server runs."""
        return messages.ServerLiveResponse(live=True).SerializeToString()


def question_of(asked: Any, batched: bool, most: int) -> Question:
    """What an inference request asks, as the HTTP side has it.

    Raises:
        Refusal: 400 or 413.
    """
    raw = list(asked.raw_input_contents)
    if raw and len(raw) != len(asked.inputs):
        raise Refusal(400, f"raw_input_contents holds {len(raw)} tensors for {len(asked.inputs)} inputs")
    tensors, places, begin = [], list[int | None](), 0
    for place, each in enumerate(asked.inputs):
        tensor = {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        parameters_of({"parameters": dict.fromkeys(each.parameters, 0)})
        if not raw:
            tensor["data"] = list(getattr(each.contents, CONTENTS.get(each.datatype, "bytes_contents")))
        places.append(begin if raw else None)
        begin += len(raw[place]) if raw else 0
        tensors.append(tensor)
    binary = memoryview(raw[0] if len(raw) == 1 else b"".join(raw))
    return Question(rows_of(tensors, batched, most), tensors, places, binary, batched)


def _values(tensor: Any, raw: bytes | None) -> np.ndarray:
    """Values of an output.

    Raises:
        KeyError, ValueError: it is no floating-point tensor of its shape.
    """
    form, shape = np.dtype(NUMBERS[tensor.datatype]), list(tensor.shape)
    if form.kind != "f":
        raise ValueError("no floating-point tensor")
    if raw is None:
        return np.array(getattr(tensor.contents, CONTENTS[tensor.datatype]), form).reshape(shape)
    if len(raw) != prod(shape) * form.itemsize:
        raise ValueError("its size differs from its shape")
    return np.frombuffer(raw, form).reshape(shape)
