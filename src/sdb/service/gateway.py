"""A guard as a server: the Open Inference Protocol v2 in and out, in front of a model that somebody else serves.

Of the guarded model's answers the one named output passes, rewritten; a partner's pass untouched. Whatever is not
understood is refused: a request, an answer, another output, another version of the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdb.answers.guard import Guard, logits_of
from sdb.answers.teller import Teller
from sdb.answers.ties import NOBODY
from sdb.errors import ConfigError, MissingExtraError, ModelError
from sdb.service.limits import Refusal, RequestLimits
from sdb.service.messages import Question, ask_for, read_question, read_reply
from sdb.service.protocol import EXTENSIONS, HEADER
from sdb.service.ties import check_ties

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

    from sdb.service.app import DirectRoute, as_json
    from sdb.service.asking import admit, identified
    from sdb.service.bodies import Intake, compress, decompress
    from sdb.service.guard import Guard as Middleware
    from sdb.service.guard import add_error_handlers
    from sdb.service.metrics import Metrics
    from sdb.service.origins import known_names
    from sdb.service.upstream import CHUNK, PASSED, Upstream
    from sdb.service.watch.tokens import ANONYMOUS
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", "guard", "guarding a server") from error

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from sdb.answers.ledger import Ledger
    from sdb.answers.ties import Ties
    from sdb.service.watch import Principal, Watch

LARGE = 2**20  # bytes; a body that takes longer to read than an answer to rewrite is read beside the event loop
BROKEN = "the model behind this server gave something else than it was calibrated with"


class Beside(Protocol):
    """A server beside the HTTP one, see `sdb.service.grpc_gateway`."""

    async def start(self) -> None:
        """Begin to answer."""
        ...

    async def stop(self) -> None:
        """Answer what was accepted, and end."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """What is guarded.

    Attributes:
        name: of the model, in URLs.
        output: its output that is answered.
        batched: whether the first dimension of inputs and outputs counts examples.
        most: examples in one request.
        max_body: bytes of a request.
        others: further models of that server, which everyone may ask as they are, uncounted.
    """

    name: str
    output: str
    batched: bool = True
    most: int = 256
    max_body: int = 64 * 2**20
    others: frozenset[str] = frozenset()


def build_gateway(
    guard: Guard,
    upstream: Upstream,
    served: Served,
    *,
    watch: Watch | None = None,
    limits: RequestLimits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    ties: Ties | None = None,
    ledger: Ledger | None = None,
    beside: Callable[[Gateway], Beside] | None = None,
    follow: Callable[[Gateway], Coroutine[Any, Any, None]] | None = None,
) -> FastAPI:
    """The ASGI application of a guard.

    Args:
        guard: what is answered.
        upstream: the server behind it.
        served: which model of it.
        watch: says who asks and how much they may; None: everybody is anonymous and nothing is counted.
        limits: of time.
        allowed_hosts: names that a request may ask this server by, see `sdb.service.create_app`.
        ties: how near ties are answered; needs `watch`.
        ledger: keeps what accounts are told on ties, opened for writing; its closing is the caller's.
        beside: makes a server that runs as long as this one and shares all that the guard knows.
        follow: gives the gateway a newer guard when there is one, see `sdb.service.reloading`; ends with the server.

    Raises:
        ConfigError: ties without a watch, or of another guard.
        KeyFileError: a ledger of other ties.
    """
    if ties is not None:
        check_ties(ties, guard.info.id, watch, ledger, "guard")
    gateway = Gateway(guard, upstream, served, watch, limits or RequestLimits(), ties, ledger)
    names = None if allowed_hosts is None else known_names(allowed_hosts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        other = None if beside is None else beside(gateway)
        if other is not None:
            await other.start()
        following = None if follow is None else asyncio.create_task(follow(gateway))
        yield
        if following is not None:
            following.cancel()
        if other is not None:
            await other.stop()
        await upstream.close()

    app = FastAPI(
        title="Safe Distillation Box: guard",
        version=metadata.version("safe-distillation-box"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.router.route_class = DirectRoute
    app.state.service = gateway
    add_error_handlers(app)
    _add_routes(app, gateway)
    app.add_middleware(Middleware, metrics=gateway.metrics, names=names)
    return app


class Gateway:
    """What the routes share; `build_gateway` explains the arguments."""

    def __init__(
        self,
        guard: Guard,
        upstream: Upstream,
        served: Served,
        watch: Watch | None,
        limits: RequestLimits,
        ties: Ties | None,
        ledger: Ledger | None,
    ) -> None:
        self.upstream, self.served, self.watch = upstream, served, watch
        self.ties, self.ledger = ties, ledger
        self._answer_by(guard)
        self.intake = Intake(served.max_body, 16 * served.max_body, limits.read_timeout)
        self.metrics = Metrics(lambda: 0, watch.metrics if watch else None)

    def _answer_by(self, guard: Guard) -> None:
        self.guard, self.rows = guard, {"levels": guard.rows, "labels": guard.flat}
        ties, ledger = self.ties, self.ledger
        self.tellers = {name: Teller(ties, ledger, rows) for name, rows in self.rows.items() if ties is not None}

    def take(self, guard: Guard) -> None:
        """Answer by another guard from now on.

        Raises:
            ConfigError: it is of another owner or for other classes, or the ties are of the one before.
        """
        old, new = self.guard.info, guard.info
        for name in ("owner_id", "class_names", "gives"):
            if getattr(old, name) != getattr(new, name):
                raise ConfigError(f"its {name} differs from what is served: start a server for it")
        if self.ties is not None:
            check_ties(self.ties, new.id, self.watch, self.ledger, "guard")
        self._answer_by(guard)

    def asker(self, authorization: str) -> Principal:
        """Who sent a request with this header, see `identified`."""
        return ANONYMOUS if self.watch is None else identified(self.watch, authorization)

    async def admit(self, principal: Principal, examples: int) -> None:
        """Count what is asked, see `admit`."""
        if self.watch is not None:
            await admit(self.watch, principal, examples)

    def is_partner(self, principal: Principal) -> bool:
        """Whether a principal gets the model's own answers."""
        return principal.partner in self.guard.info.key_ids

    def told(self, principal: Principal, question: Question, outputs: np.ndarray, version: Any) -> np.ndarray:
        """What a principal is told in place of outputs of the same shape, from this version of the model.

        Raises:
            ModelError: they are not what the guard was calibrated with.
        """
        own = self.guard.info.model.get("version")
        if own is not None and str(version) != own:
            raise ModelError("another version of the model")
        given = outputs.reshape(1, -1) if outputs.ndim == 1 and question.rows == 1 else outputs
        if len(given) != question.rows:
            raise ModelError(f"the model gave {len(given)} rows for {question.rows} examples")
        kind = "labels" if principal.answers == "labels" else "levels"
        if not self.tellers:
            return self.guard.answer_by(self.rows[kind], given).reshape(outputs.shape)
        self.guard.check(given)
        logits = logits_of(given, self.guard.info.gives)
        answers = self.tellers[kind].answers(principal.account or NOBODY, question, logits, keyless=True)
        return self.guard.told(answers, outputs.dtype).reshape(outputs.shape)

    async def infer(self, request: Request, path: str) -> Response:
        """Answer an inference request."""
        encoding, size = request.headers.get("content-encoding", ""), request.headers.get(HEADER)
        principal = self.asker(request.headers.get("authorization", ""))
        partner = self.is_partner(principal)
        output = None if partner else self.served.output

        def read(sent: bytes) -> tuple[bytes, str | None, Question]:
            body = decompress(sent, encoding, self.served.max_body)
            question = read_question(body, size, output, batched=self.served.batched, most=self.served.most)
            if output is not None:
                body, begin = ask_for(output, body, size, question.request)
                return body, begin, question
            return body, size, question

        async with self.intake.body(request) as sent:
            heavy = bool(encoding) or (len(sent) > LARGE and size is None)
            body, begin, question = await asyncio.to_thread(read, sent) if heavy else read(sent)
        await self.admit(principal, question.rows)
        if partner:
            return Passed(self.upstream, self.upstream.address.url + path, "POST", sent, request)
        # Servers that mind the type refuse a client that sends none, as tritonclient, or curl's.
        kept = {"content-type": "application/json"}
        if begin is not None:
            kept = {"content-type": "application/octet-stream", HEADER: begin}
        headers, answered = await self.upstream.ask("POST", path, body, kept)
        try:
            reply = read_reply(answered, headers.get(HEADER), self.served.output)
            outputs = self.told(principal, question, reply.outputs, reply.head.get("model_version"))
        except (ValueError, ModelError):
            raise Refusal(502, BROKEN, reason="upstream") from None
        self.metrics.images.inc(question.rows)
        content, more = reply.write(self.served.output, outputs)
        content, encoded = compress(content, request.headers.get("accept-encoding", ""))
        return Response(content, headers=more | encoded)

    async def passed(self, request: Request, name: str, path: str) -> Response:
        """What the server behind says to a request about another of its models, as it says it."""
        self.asker(request.headers.get("authorization", ""))  # an expired token is refused here too
        url = self.upstream.url_of(name) + path
        if request.method == "GET":
            return Passed(self.upstream, url, "GET", None, request)
        async with self.intake.body(request) as sent:
            return Passed(self.upstream, url, "POST", sent, request)

    async def described(self) -> dict[str, Any]:
        """Metadata of the model: its own, with the one output that is given, and what the guard says of it."""
        found, info = await self.upstream.describe(), self.guard.info
        tensors = [each for each in found.get("outputs") or [] if each.get("name") == self.served.output]
        says = {
            "guard_id": info.id,
            "gives": info.gives,
            "class_names": list(info.class_names),
            "max_examples": self.served.most,
            "confidence": {
                name: info.measured[f"keyless_{name}"] for name in ("accuracy", "calibration_error", "brier")
            }
            | {"bits": info.measured["bits"], "levels": [asdict(level) for level in info.levels]},
        }
        kept = {name: found[name] for name in ("name", "versions", "platform", "inputs") if name in found}
        return kept | {"outputs": tensors, "parameters": says}


class Passed(Response):
    """An answer as the model gives it, to a request that is sent on as it came."""

    def __init__(self, upstream: Upstream, url: str, method: str, body: bytes | None, request: Request) -> None:
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        self.ask = partial(upstream.asked, method, url, body, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask, and pass on what arrives; the connection is free again however this ends."""
        async with self.ask() as answer:
            kept = [(name.encode(), answer.headers[name].encode()) for name in PASSED if name in answer.headers]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for part in answer.content.iter_chunked(CHUNK):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _add_routes(app: FastAPI, gateway: Gateway) -> None:
    """The routes of the protocol; a model's other routes are not passed on."""

    def place(request: Request) -> tuple[str, str]:
        """Another model that is asked, "" for the guarded one; and below a model's URL, the version."""
        name, version = request.path_params["name"], request.path_params.get("version")
        if name != gateway.served.name and name not in gateway.served.others:
            raise Refusal(404, f"unknown model; this server has {gateway.served.name!r}")
        if version is not None and not (version.isascii() and version.replace("-", "").replace(".", "").isalnum()):
            raise Refusal(404, "unknown version")
        return "" if name == gateway.served.name else name, "" if version is None else f"/versions/{version}"

    async def infer(request: Request) -> Response:
        other, version = place(request)
        if other:
            return await gateway.passed(request, other, f"{version}/infer")
        return await gateway.infer(request, f"{version}/infer")

    async def describe(request: Request) -> Response:
        other, version = place(request)
        return await gateway.passed(request, other, version) if other else as_json(await gateway.described())

    async def model_ready(request: Request) -> Response:
        other, version = place(request)
        if other:
            return await gateway.passed(request, other, f"{version}/ready")
        if not await gateway.upstream.ready():
            raise Refusal(503, "the model behind this server is not ready", 1.0, "upstream")
        return as_json({"name": gateway.served.name, "ready": True})

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_api_route(path + "/infer", infer, methods=["POST"])
        app.add_api_route(path + "/ready", model_ready, methods=["GET"])
        app.add_api_route(path, describe, methods=["GET"])

    @app.get("/v2")
    async def server(request: Request) -> Response:
        return as_json({"name": "sdb guard", "version": app.version, "extensions": list(EXTENSIONS)})

    @app.get("/v2/health/live")
    async def live(request: Request) -> Response:
        return as_json({"live": True})

    @app.get("/v2/health/ready")
    async def ready(request: Request) -> Response:
        if not await gateway.upstream.ready():
            raise Refusal(503, "the model behind this server is not ready", 1.0, "upstream")
        return as_json({"live": True, "ready": True})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return Response(gateway.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
