"""Request bodies: received within limits of size and time, decompressed within the same; answers compressed."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from sdb.service.limits import Refusal

# What zlib calls the two encodings; deflate is, as in HTTP, zlib's format.
WINDOW_BITS = {"gzip": 31, "deflate": 15}
WORTH_COMPRESSING = 1400  # bytes; a smaller answer is one packet either way


class Intake:
    """Bodies on their way in, and how many bytes of them are held.

    Args:
        max_body: bytes of one body.
        max_held: bytes of all bodies together; more is answered 503.
        read_timeout: seconds that a client has for one body.
    """

    def __init__(self, max_body: int, max_held: int, read_timeout: float) -> None:
        self.max_body = max_body
        self.max_held = max_held
        self.read_timeout = read_timeout
        self.held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncGenerator[bytes]:
        """The request's body as it was sent; its bytes count until the block ends.

        Raises:
            Refusal: 413 too large, 408 too slow, 503 too many bodies at one time.
        """
        parts: list[bytes] = []
        before = _Held(self)
        try:
            try:
                async with asyncio.timeout(self.read_timeout):
                    await self._receive(request, parts, before)
            except TimeoutError:
                raise Refusal(408, f"the body did not arrive within {self.read_timeout:g} seconds") from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            before.release()

    async def _receive(self, request: Request, parts: list[bytes], held: _Held) -> None:
        declared = request.headers.get("content-length", "0")
        too_large = Refusal(413, f"the body is larger than {self.max_body} bytes: send fewer or smaller images")
        # A client that waits for "100 Continue" has sent nothing yet, so it can be told at once.
        if "expect" in request.headers and declared.isdecimal() and int(declared) > self.max_body:
            raise too_large
        given, more = 0, True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            more = message.get("more_body", False)
            given += len(part)
            # What is too large is read on for a while and dropped: closing now would reset the connection before
            # the client has seen why.
            if given > 4 * self.max_body:
                raise too_large
            if given <= self.max_body:
                held.take(len(part))
                parts.append(part)
            else:
                parts.clear()
                held.release()
        if given > self.max_body:
            raise too_large


class _Held:
    """One request's share of the bytes that are held."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.bytes = 0

    def take(self, more: int) -> None:
        if self.intake.held + more > self.intake.max_held:
            raise Refusal(503, "too many requests are arriving at once", 1.0, "intake")
        self.intake.held += more
        self.bytes += more

    def release(self) -> None:
        self.intake.held -= self.bytes
        self.bytes = 0


def decompress(body: bytes, encoding: str, max_body: int) -> bytes:
    """Undo a Content-Encoding.

    Args:
        body: as it was sent.
        encoding: the header's value; "" and "identity" for none.
        max_body: bytes that it may grow to; decompressing stops there.

    Raises:
        Refusal: 415 unknown encoding, 413 too large, 400 damaged or cut off.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in WINDOW_BITS:
        raise Refusal(415, "Content-Encoding is unknown: send gzip, deflate, or none")
    worker = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        plain = worker.decompress(body, max_body + 1)
    except zlib.error:
        raise Refusal(400, f"the body is not {encoding}, or is damaged") from None
    if len(plain) > max_body:
        raise Refusal(413, f"the body is larger than {max_body} bytes after decompression: send fewer images")
    if not worker.eof or worker.unused_data:
        raise Refusal(400, f"the {encoding} body is cut off, or goes on after its end")
    return plain


def compress(body: bytes, accepted: str) -> tuple[bytes, dict[str, str]]:
    """An answer's body in an encoding that the client accepts, and the headers that say so."""
    if len(body) < WORTH_COMPRESSING:
        return body, {}
    offers = {offer.strip().lower() for offer in accepted.split(",") if ";" not in offer}
    if "gzip" in offers:
        return gzip.compress(body, compresslevel=1, mtime=0), {"content-encoding": "gzip"}
    if "deflate" in offers:
        return zlib.compress(body, level=1), {"content-encoding": "deflate"}
    return body, {}
