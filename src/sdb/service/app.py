"""The routes: what is asked, by whom, within which limits, and what is answered."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from sdb.errors import MissingExtraError
from sdb.runtime import json_text
from sdb.service import protocol
from sdb.service.answers import TOP_K, answer, outputs, softmax
from sdb.service.limits import Refusal, RequestLimits
from sdb.service.model import Model
from sdb.service.tensors import INPUT

try:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response
    from fastapi.routing import APIRoute

    from sdb.service import descriptions
    from sdb.service.bodies import compress
    from sdb.service.forms import upload
    from sdb.service.guard import Guard, add_error_handlers
    from sdb.service.images import read_picture
    from sdb.service.origins import known_names
    from sdb.service.pages import add_pages
    from sdb.service.service import Service
except ImportError as error:
    raise MissingExtraError(error.name or "fastapi", "serve", "serving") from error

if TYPE_CHECKING:
    from sdb.answers.teller import Teller
    from sdb.service.watch import Watch


class DirectRoute(APIRoute):
    """A route whose function takes the request alone, so that there is nothing to resolve before it is called."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        return self.endpoint


def build_app(
    model: Model,
    *,
    watch: Watch | None,
    answers: str,
    limits: RequestLimits,
    allowed_hosts: Sequence[str] | None = None,
    teller: Teller | None = None,
) -> FastAPI:
    """The ASGI application of one model; `sdb.service.create_app` explains the arguments."""
    service = Service(model, watch, answers, limits, teller)
    names = None if allowed_hosts is None else known_names(allowed_hosts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        yield
        await service.close()

    app = FastAPI(
        title="Safe Distillation Box",
        version=metadata.version("safe-distillation-box"),
        description=descriptions.APP,
        docs_url=None,  # its page loads scripts from elsewhere; `pages` has one that does not
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.router.route_class = DirectRoute
    app.state.service = service
    add_error_handlers(app)
    _add_protocol(app, service)
    _add_rest(app, service)
    add_pages(app)
    app.add_middleware(Guard, metrics=service.metrics, names=names)
    return app


def _add_protocol(app: FastAPI, service: Service) -> None:
    """The routes of the Open Inference Protocol."""
    model = service.model

    def check(request: Request) -> None:
        if request.path_params["name"] != model.name:
            raise Refusal(404, f"unknown model; this server has {model.name!r}")
        if request.path_params.get("version", protocol.VERSION) != protocol.VERSION:
            raise Refusal(404, f"unknown version of model {model.name!r}; there is {protocol.VERSION!r}")

    async def infer(request: Request) -> Response:
        """Ask the model about images."""
        check(request)
        size = request.headers.get(protocol.HEADER)
        question = await service.read(
            request,
            lambda body: protocol.read_request(body, size, model.image_shape, service.limits.max_batch),
        )
        asker = service.asker(request)
        protocol.check_wanted(question, outputs(asker.answers, len(model.class_names)))
        logits = await service.logits(asker, question.images)
        body, headers = protocol.write_response(question, answer(logits, asker.answers), model.name)
        body, encoded = compress(body, request.headers.get("accept-encoding", ""))
        return Response(body, headers=headers | encoded)

    async def describe(request: Request) -> Response:
        """Inputs and outputs of the model, as they are for the principal that asks."""
        check(request)
        policy = service.asker(request).answers
        parameters = {
            "answers": policy,
            "class_names": list(model.class_names),
            "max_images": service.limits.max_batch,
            "box_id": model.box_id,
            "pictures": asdict(model.pictures),
            "confidence": dict(model.confidence),
        }
        return as_json(
            {
                "name": model.name,
                "versions": [protocol.VERSION],
                "platform": model.platform,
                "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *model.image_shape]}],
                "outputs": outputs(policy, len(model.class_names)),
                "parameters": parameters,
            }
        )

    async def model_ready(request: Request) -> Response:
        """Whether the model answers."""
        check(request)
        return as_json({"name": model.name, "ready": True})

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        for suffix, method, route, said in (
            ("/infer", "POST", infer, descriptions.infer(model.image_shape, service.limits.max_batch)),
            ("/ready", "GET", model_ready, descriptions.READY),
            ("", "GET", describe, descriptions.MODEL),
        ):
            app.add_api_route(
                path + suffix, route, methods=[method], **descriptions.with_path(said, path, model.name)
            )

    @app.get("/v2/", include_in_schema=False)  # as the protocol's own OpenAPI file has it
    @app.get("/v2", **descriptions.SERVER)
    async def server(request: Request) -> Response:
        """Name, version and extensions of the server."""
        return as_json({"name": "sdb", "version": app.version, "extensions": list(protocol.EXTENSIONS)})

    @app.get("/v2/health/live", **descriptions.SERVER_LIVE)
    async def live(request: Request) -> Response:
        """Whether the server runs."""
        return as_json({"live": True})

    @app.get("/v2/health/ready", **descriptions.SERVER_READY)
    async def ready(request: Request) -> Response:
        """Whether the server answers; the protocol's text calls the field live, servers and clients ready."""
        return as_json({"live": True, "ready": True})

    @app.post("/v2/repository/index", **descriptions.INDEX)
    async def index(request: Request) -> Response:
        """The models of this server."""
        return as_json([{"name": model.name, "version": protocol.VERSION, "state": "READY"}])


def _add_rest(app: FastAPI, service: Service) -> None:
    """Pictures for people with curl, and metrics."""
    model, names = service.model, service.model.class_names

    async def fitted(request: Request) -> tuple[np.ndarray, list[str]]:
        content_type = request.headers.get("content-type", "")
        return await service.read(
            request,
            lambda body: read_picture(upload(body, content_type), model.image_shape, model.pictures),
            aside=True,  # a small file may be a large picture
        )

    @app.post("/predict", **descriptions.PREDICT)
    async def predict(request: Request) -> Response:
        """The class of one picture."""
        images, changes = await fitted(request)
        asker = service.asker(request)
        logits = await service.logits(asker, images)
        best = int(logits[0].argmax())
        result: dict[str, Any] = {"class": best, "class_name": names[best]}
        if asker.answers != "labels":
            chances = softmax(logits)[0]
            order = np.argsort(-logits[0], kind="stable")[:TOP_K].tolist()
            result["top"] = [
                {"class": index, "class_name": names[index], "probability": float(chances[index])}
                for index in order
            ]
        return as_json(result | {"changes": changes})

    @app.post("/pixels", **descriptions.PIXELS)
    async def pixels(request: Request) -> Response:
        """What /predict would ask the model about one picture; the model is not asked."""
        images, changes = await fitted(request)
        bits = np.rint(images[0] * 255).astype(np.uint8)
        encoded = base64.b64encode(bits.tobytes()).decode()
        return as_json({"shape": list(bits.shape), "pixels": encoded, "changes": changes})

    @app.get("/metrics", **descriptions.METRICS)
    async def metrics(request: Request) -> Response:
        """Counters in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def as_json(value: Any) -> Response:
    """A JSON answer."""
    return Response(json_text(value), media_type="application/json")
