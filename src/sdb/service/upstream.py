"""The server behind a guard: a pool of connections, time limits, and errors that say nothing of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from sdb.config.address import Address
from sdb.errors import ConfigError, MissingExtraError
from sdb.service.limits import Refusal

try:
    import aiohttp
except ImportError as error:
    raise MissingExtraError(error.name or "aiohttp", "guard", "guarding a server") from error

CONNECTIONS = 256
CHUNK = 2**18  # bytes that are passed on at a time
# What a client and a server say to each other, which a proxy passes on; everything else is between two of them.
PASSED = ("content-type", "content-encoding", "accept-encoding", "inference-header-content-length")
SILENCE = "the model behind this server does not answer: ask again later"


class Upstream:
    """One model of another server.

    Args:
        address: of the model.
        timeout: seconds for a whole answer.
        limit: bytes of the largest answer that is read.
        token: bearer token for that server, None for none.

    Attributes:
        credentials: the header that holds the token; empty for none.
    """

    def __init__(self, address: Address, timeout: float, limit: int, token: str | None = None) -> None:
        self.address, self.limit = address, limit
        self._models = address.url.partition("/v2/models/")[0] + "/v2/models/"
        self.credentials = {"authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=min(5.0, timeout))
        self._session: aiohttp.ClientSession | None = None

    def url_of(self, model: str) -> str:
        """Of another model of the same server."""
        return self._models + quote(model, safe="")

    async def close(self) -> None:
        """Close the connections; asking again makes new ones, also in another event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def asked(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Ask, and have the answer as it arrives.

        Raises:
            Refusal: 502 not reached, 504 not answered in time; nothing of the answer is in it.
        """
        if self._session is None:  # made here, since it belongs to the event loop
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=30)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                auto_decompress=False,
                trust_env=False,
                # A partner's request passes as it came, with a type or without.
                skip_auto_headers=("Content-Type",),
            )
        try:
            async with self._session.request(
                method, path, data=body, headers={**headers, **self.credentials}, allow_redirects=False
            ) as response:
                yield response
        except TimeoutError:
            raise Refusal(504, SILENCE, 1.0, "upstream") from None
        except aiohttp.ClientError:
            raise Refusal(502, SILENCE, 1.0, "upstream") from None

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[Mapping[str, str], bytes]:
        """The whole answer of a request that succeeded.

        Args:
            method: GET or POST.
            path: below the model's.
            body: of a POST.
            headers: of the request.

        Raises:
            Refusal: 400 where the model refuses the request; 502 or 504 for all else.
        """
        sent = {"accept-encoding": "identity"} | dict(headers or {})
        async with self.asked(method, self.address.url + path, body, sent) as response:
            parts, size = [], 0
            async for part in response.content.iter_chunked(CHUNK):
                size += len(part)
                if size > self.limit:
                    raise Refusal(502, "the model behind this server gave more than it may", reason="upstream")
                parts.append(part)
            if 400 <= response.status < 500:
                raise Refusal(400, f"the model refuses this request ({response.status})", reason="upstream")
            if response.status != 200:
                raise Refusal(502, SILENCE, 1.0, "upstream")
            return response.headers, parts[0] if len(parts) == 1 else b"".join(parts)

    async def describe(self) -> dict[str, Any]:
        """The model's metadata.

        Raises:
            Refusal: as `ask`; 502 where they are no JSON object.
        """
        _, body = await self.ask("GET", "")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refusal(502, "the model behind this server does not describe itself", reason="upstream")
        return found

    async def ready(self) -> bool:
        """Whether the model answers."""
        try:
            async with asyncio.timeout(2.0):
                await self.ask("GET", "/ready")
        except (Refusal, TimeoutError):
            return False
        return True


def described(upstream: Upstream, output: str) -> list[str]:
    """What a guard should be told of the model behind it before it starts: nothing where all is well.

    Raises:
        ConfigError: the model has no such output.
    """

    async def ask() -> dict[str, Any]:
        try:
            return await upstream.describe()
        finally:
            await upstream.close()

    try:
        found = asyncio.run(ask())
    except Refusal as refusal:
        return [f"{upstream.address.url}: {refusal}; requests are refused until it does"]
    names = [str(each.get("name")) for each in found.get("outputs") or [] if isinstance(each, dict)]
    if names and output not in names:
        raise ConfigError(f"--output {output!r}: the model gives {', '.join(names)}")
    return []
