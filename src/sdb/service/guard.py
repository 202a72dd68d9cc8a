"""Around every route: who may ask, HEAD, refusals as `{"error": ...}`, bugs that stay inside, counts."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdb.runtime import json_text
from sdb.service.limits import MAX_HEAD, Refusal
from sdb.service.metrics import Metrics
from sdb.service.origins import check_host, check_site

log = logging.getLogger("sdb.service")
# Statuses after which the client may still be sending: the connection ends with the answer.
CLOSING = (408, 413)
# A browser must not guess what an answer is.
NO_SNIFFING = ("x-content-type-options", "nosniff")


class Guard:
    """ASGI middleware: refuses large heads and foreign pages, answers bugs with a plain 500, counts requests and time.

    HEAD is answered wherever GET is: load balancers ask so.

    Args:
        app: what is guarded.
        metrics: where it is counted.
        names: of this server; None where any Host will do.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, names: frozenset[str] | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0
        head_only = scope["method"] == "HEAD"
        if head_only:
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).setdefault(*NO_SNIFFING)
            elif head_only:
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, counted)
        except Refusal as refusal:
            self.metrics.refused.labels(refusal.reason).inc()
            await error_response(refusal.status, str(refusal))(scope, receive, counted)
        except ClientDisconnect:
            pass
        except Exception:
            # The traceback is for the owner, never for the client.
            log.exception("a request failed")
            if not status:
                await error_response(500, "internal error; it was logged")(scope, receive, counted)
        route = getattr(scope.get("route"), "path", "other")
        self.metrics.requests.labels(route, status or 499).inc()
        self.metrics.latency.labels(route).observe(time.perf_counter() - begin)

    def _check(self, scope: Scope) -> None:
        if head_size(scope) > MAX_HEAD:
            raise Refusal(431, f"URL and headers have more than {MAX_HEAD} bytes")
        headers = Headers(scope=scope)
        if self.names is not None:
            check_host(headers, self.names)
        check_site(headers, scope["method"], self.names or frozenset())


def add_error_handlers(app: FastAPI) -> None:
    """Let every refusal be `{"error": ...}` with its status."""

    async def refused(request: Request, error: Exception) -> Response:
        if not isinstance(error, Refusal):
            raise error
        request.app.state.service.metrics.refused.labels(error.reason).inc()
        return error_response(error.status, str(error), retry_after=error.retry_after)

    async def not_found(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        return error_response(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    async def invalid(request: Request, error: Exception) -> Response:
        return error_response(422, "the request's parameters are not as /openapi.json describes them")

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(RequestValidationError, invalid)


def error_response(
    status: int, message: str, *, retry_after: float | None = None, headers: dict[str, Any] | None = None
) -> Response:
    """The answer to what is refused."""
    headers = dict(headers or {})
    if retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["www-authenticate"] = 'Bearer error="invalid_token"'
    if status in CLOSING:
        headers["connection"] = "close"
    return Response(json_text({"error": message}), status, headers, media_type="application/json")


def head_size(scope: Scope) -> int:
    """Bytes of a request's URL and headers."""
    line = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
    return line + sum(len(name) + len(value) for name, value in scope["headers"])
