"""The server as a process: its socket, its connections, its signals.

uvicorn does the HTTP. What it leaves open is closed here: heads that never end or arrive too slowly, answers in plain
text, connections that a stop would cut while a request is on its way, and an exit code that says "killed" after a stop
that went well.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from sdb.errors import ConfigError
from sdb.service.connection import connection_class
from sdb.service.limits import RequestLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

KEEP_ALIVE = 30  # seconds that an idle connection is kept
BACKLOG = 2048
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(app: FastAPI, host: str, port: int, limits: RequestLimits, on_ready: Callable[[str], None]) -> None:
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
        http=connection_class(limits.read_timeout),
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


def _ignore(number: int, frame: object) -> None:
    """Handle a signal by doing nothing."""
