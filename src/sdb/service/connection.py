"""One connection of the server: uvicorn's HTTP with limits on heads, a gentler stop, and JSON for what is no HTTP.

It builds on parts of uvicorn that uvicorn does not promise: pyproject.toml bounds its version from above, and
tests/unit/test_service_connection.py names the parts.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdb.runtime import json_text
from sdb.service.limits import MAX_HEAD

LINGER = 0.25  # seconds in which a request that was under way when the server stopped still arrives


class Connection(HttpToolsProtocol):
    """One connection.

    Attributes:
        read_timeout: seconds for a head to arrive, and for a client to take what it was sent.
    """

    read_timeout = 10.0
    timer: asyncio.TimerHandle | None = None
    loose = 0  # bytes since the last sign of progress, in a head or between requests
    stopping = False

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and own is not None and own.family != socket.AF_UNIX:
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * self.read_timeout))
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
        """What is not HTTP is refused in the same form as everything else."""
        self._refuse(400, "not a valid HTTP request")

    def _wait_for_head(self) -> None:
        if self.timer is None:
            self.timer = self.loop.call_later(self.read_timeout, self._too_slow)

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
            self._refuse(408, f"the request's head did not arrive within {self.read_timeout:g} seconds")
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


def connection_class(read_timeout: float) -> type[Connection]:
    """The connections of a server with this time limit; uvicorn wants a class to make them of."""
    return type("Connection", (Connection,), {"read_timeout": read_timeout})
