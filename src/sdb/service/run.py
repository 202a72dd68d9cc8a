"""The server as a process: its socket, its connections, its signals.

uvicorn does the HTTP. What it leaves open is closed here: heads that never end or arrive too slowly, answers in plain
text, connections that a stop would cut while a request is on its way, and an exit code that says "killed" after a stop
that went well.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdb.errors import ConfigError
from sdb.files import json_text
from sdb.service.limits import MAX_HEAD, Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

LINGER = 0.25  # seconds in which a request that was under way when the server stopped still arrives
KEEP_ALIVE = 30  # seconds that an idle connection is kept
BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(app: FastAPI, host: str, port: int, limits: Limits, on_ready: Callable[[str], None]) -> None:
    """Serve an application until SIGTERM or SIGINT, answer what was accepted, and return.

    Args:
        app: what `sdb.service.create_app` made.
        host: name or address to listen on.
        port: 0 for any that is free.
        limits: those of the application.
        on_ready: told the URL once the socket listens.

    Raises:
        ConfigError: nothing can listen there.
    """
    listener = listen(host, port)
    config = uvicorn.Config(
        app,
        http=protocol_class(limits.read_timeout),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        # Whoever was accepted has been answered by then: sending, waiting, one batch.
        timeout_graceful_shutdown=math.ceil(limits.read_timeout + limits.timeout + 30),
    )
    # Both would write a line for every request that is no HTTP, or no form.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # uvicorn raises a signal again when it is done; after a clean stop that must not end the process as killed.
    before = {number: signal.signal(number, _ignore) for number in SIGNALS}
    try:
        on_ready(url_of(listener))
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the name is unknown, the port is taken, or may not be used.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named, so that event loops set TCP_NODELAY on what it accepts (Kludex/uvicorn#3149).
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error}): choose another --host or --port"
        ) from None
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(listener: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def protocol_class(read_timeout: float) -> type[HttpToolsProtocol]:
    """The HTTP protocol of uvicorn with limits on heads and a gentler stop.

    Args:
        read_timeout: seconds for a head to arrive, and for a client to take what it was sent.
    """

    class Connection(HttpToolsProtocol):
        """One connection."""

        timer: asyncio.TimerHandle | None = None
        loose = 0  # bytes since the last sign of progress, in a head or between requests
        stopping = False

        def connection_made(self, transport: Any) -> None:
            """Start the clock."""
            super().connection_made(transport)
            own = transport.get_extra_info("socket")
            if hasattr(socket, "TCP_USER_TIMEOUT") and own is not None and own.family != socket.AF_UNIX:
                own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * read_timeout))
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop the clock."""
            self._stop_clock()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Parse, and end a connection whose head is too long."""
            self.loose += len(data)
            super().data_received(data)
            if self.transport.is_closing():
                return
            if self.loose > MAX_HEAD + 2**18:
                self._refuse(431, f"URL and headers have more than {MAX_HEAD} bytes")
            elif self.cycle is None or self.cycle.response_complete:
                self._wait_for_head()

        def on_message_begin(self) -> None:
            """A request begins."""
            super().on_message_begin()
            self._wait_for_head()

        def on_headers_complete(self) -> None:
            """Its head is there."""
            self._progress()
            super().on_headers_complete()
            if self.stopping:
                self.cycle.keep_alive = False

        def on_body(self, body: bytes) -> None:
            """A part of its body is there."""
            self.loose = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            """All of it is there."""
            self._progress()
            super().on_message_complete()

        def shutdown(self) -> None:
            """Answer what is under way or arrives in a moment, then close."""
            self.stopping = True
            if self.cycle is None or self.cycle.response_complete:
                self.loop.call_later(LINGER, super().shutdown)
            else:
                super().shutdown()

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP is refused as everything else is."""
            self._refuse(400, "not a valid HTTP request")

        def _wait_for_head(self) -> None:
            if self.timer is None:
                self.timer = self.loop.call_later(read_timeout, self._too_slow)

        def _progress(self) -> None:
            self.loose = 0
            self._stop_clock()

        def _stop_clock(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _too_slow(self) -> None:
            self.timer = None
            if self.loose and (self.cycle is None or self.cycle.response_complete):
                self._refuse(408, f"the request's head did not arrive within {read_timeout:g} seconds")
            elif not self.transport.is_closing():
                self.transport.close()

        def _refuse(self, status: int, message: str) -> None:
            if self.transport.is_closing():
                return
            body = json_text({"error": message}).encode()
            head = (
                f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

    return Connection


def _ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""
