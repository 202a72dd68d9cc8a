"""One HTTP connection that keeps trying: back-off with jitter, Retry-After, and an end to patience."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from sdb.config.address import Address
from sdb.errors import ConfigError, RemoteError

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; doubled from one to the other
TIMEOUT = 60.0  # seconds that a server may be silent
IDLE = 2.0  # seconds after which a connection is made anew: the server may have closed it, and an answer be lost
# The server is busy, or there is none behind its proxy: the same request may succeed later.
LATER = (408, 429, 502, 503, 504)
TOKEN = re.compile(r"[\x21-\x7e]+")

log = logging.getLogger("sdb")


class Wire:
    """Sends requests to one server, one after the other.

    Args:
        address: of the model.
        token: bearer token, or None.
        patience: seconds to go on trying one request.

    Raises:
        ConfigError: the token holds white space or other than ASCII.
    """

    def __init__(self, address: Address, token: str | None, patience: float) -> None:
        # http.client would repeat a bad token in its message.
        if token is not None and not TOKEN.fullmatch(token):
            raise ConfigError("the token holds white space or letters beyond ASCII; take it as the owner gave it")
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        self._connection = kind(address.host, address.port, timeout=TIMEOUT)
        self._used: float | None = None  # when the last answer came
        self._token = token
        self._patience = patience
        self.address = address

    def ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[http.client.HTTPMessage, bytes]:
        """Send one request until it is answered.

        Args:
            method: GET or POST.
            path: below the model's.
            body: of a POST.
            headers: of the request.
            limit: bytes of the longest answer that is read.

        Raises:
            RemoteError: refused, or not answered within the patience; says what to do.
        """
        begun, wait, tries = time.monotonic(), FIRST_WAIT, 0
        while True:
            tries += 1
            asked_to_wait = None
            try:
                status, answer, data = self._once(method, self.address.path + path, body, headers, limit)
                if status == 200:
                    return answer, data
                reason = f"answered {status}{self._reason(data)}"
                if status not in LATER:
                    raise RemoteError(f"{self.address.url} {reason}{_advice(status)}", status)
                asked_to_wait = _retry_after(answer.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, RemoteError):
                    raise
                self._connection.close()
                reason = f"cannot be reached ({getattr(error, 'strerror', None) or type(error).__name__})"
                if self._used is None and _is_nowhere(error):
                    raise RemoteError(
                        f"{self.address.url} {reason}: is the server running, and the address right?"
                    ) from None
            # Jitter, so that many who were sent away do not come back together.
            jittered = (wait if asked_to_wait is None else asked_to_wait + wait / 4) * _between(0.5, 1.0)
            pause = max(jittered, asked_to_wait or 0.0)
            left = self._patience - (time.monotonic() - begun)
            if pause > left:
                said = "" if asked_to_wait is None else f", asking to wait {asked_to_wait:.0f} s"
                raise RemoteError(
                    f"{self.address.url} {reason}{said}; given up after {tries} tries. Go on later with --resume: "
                    "answers that came are kept and not asked again"
                )
            log.info("%s %s; waiting %.1f s", self.address.url, reason, pause)
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._used is None or time.monotonic() - self._used > IDLE:
            self._connection.close()
        credentials = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._connection.request(method, path, body, {**headers, **credentials})
        response = self._connection.getresponse()
        data = response.read(limit + 1)
        if len(data) > limit:
            self._connection.close()
            raise RemoteError(f"{self.address.url} answered with more than {limit} bytes: not what was asked for")
        if response.length:  # the rest never came
            raise http.client.IncompleteRead(data, response.length)
        self._used = time.monotonic()
        return response.status, response.headers, data

    def _reason(self, data: bytes) -> str:
        """What the server says, in one line, without the token."""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            text = str(json.loads(data)["error"])
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
            return f": {text.replace(self._token, '...') if self._token else text}"
        return ""


def _advice(status: int) -> str:
    if status in (401, 403):
        return "; ask the owner for a token and name the variable that holds it, teacher_token_env"
    if status == 404:
        return "; check the model's name in the URL"
    if 300 <= status < 400:
        return "; name the address that it leads to, redirections are not followed"
    return ""


def _is_nowhere(error: Exception) -> bool:
    """Whether nothing listens there, the name is unknown, or it is not TLS; at first contact, a wrong address."""
    return isinstance(error, (ConnectionRefusedError, socket.gaierror, ssl.SSLError))


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: a number, or a date."""
    if value is None:
        return None
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def _between(low: float, high: float) -> float:
    return low + (high - low) * secrets.randbelow(2**20) / 2**20
