"""HTTP that keeps trying: back-off with jitter, Retry-After, and an end to patience."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from sdb.config.address import Address
from sdb.errors import ConfigError, MissingExtraError, RemoteError

try:
    import httpx2
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_exponential
except ImportError as error:
    raise MissingExtraError(error.name or "httpx2", "remote", "asking a box over the network") from error

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; doubled from one to the other
TIMEOUT = 60.0  # seconds that a server may be silent
IDLE = 2.0  # seconds after which a connection is made anew: the server may have closed it, and an answer be lost
# The server is busy, or there is none behind its proxy: the same request may succeed later.
LATER = (408, 429, 502, 503, 504)
TOKEN = re.compile(r"[\x21-\x7e]+")
CHANCE = secrets.SystemRandom()  # so that seeds of a run say nothing about it, nor it about them

log = logging.getLogger("sdb")


class _TryLaterError(RemoteError):
    """A failure that may pass.

    Args:
        reason: what happened, without the address.
        asked_to_wait: seconds that the server asked for, or None.
    """

    def __init__(self, reason: str, status: int | None = None, asked_to_wait: float | None = None) -> None:
        super().__init__(reason, status)
        self.asked_to_wait = asked_to_wait


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
        # What cannot be a header would be repeated in a message.
        if token is not None and not TOKEN.fullmatch(token):
            raise ConfigError("the token holds white space or letters beyond ASCII; take it as the owner gave it")
        self._client = httpx2.Client(
            # As they are: an answer that grows when it is unpacked would pass the limit.
            headers={"Accept-Encoding": "identity"},
            timeout=TIMEOUT,
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=IDLE),
            verify=ssl.create_default_context() if address.secure else True,
            trust_env=False,  # no proxy, and no password from .netrc in place of the token
        )
        self._answered = False
        self._token = token
        self._patience = patience
        self.address = address

    def ask(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[Mapping[str, str], bytes]:
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
        keep_trying = Retrying(
            retry=retry_if_exception_type(_TryLaterError),
            wait=_pause,
            stop=stop_before_delay(self._patience),
            before_sleep=self._say,
            retry_error_callback=self._give_up,
        )
        return keep_trying(self._once, method, path, body, headers, limit)

    def _once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], limit: int
    ) -> tuple[Mapping[str, str], bytes]:
        credentials = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        url = self.address.url + path
        try:
            with self._client.stream(method, url, content=body, headers={**headers, **credentials}) as response:
                data = bytearray()
                for part in response.iter_raw():
                    data += part
                    if len(data) > limit:
                        raise RemoteError(
                            f"{self.address.url} answered with more than {limit} bytes: not what was asked for"
                        )
        except httpx2.TransportError as error:
            cause = _cause_of(error)
            reason = f"cannot be reached ({getattr(cause, 'strerror', None) or type(cause).__name__})"
            if not self._answered and _is_nowhere(cause):
                raise RemoteError(
                    f"{self.address.url} {reason}: is the server running, and the address right?"
                ) from None
            raise _TryLaterError(reason) from None
        self._answered = True
        status = response.status_code
        if status == 200:
            return response.headers, bytes(data)
        reason = f"answered {status}{self._reason(data)}"
        if status in LATER:
            raise _TryLaterError(reason, status, _retry_after(response.headers.get("Retry-After")))
        raise RemoteError(f"{self.address.url} {reason}{_advice(status)}", status)

    def _say(self, state: RetryCallState) -> None:
        log.info("%s %s; waiting %.1f s", self.address.url, _failure(state), state.upcoming_sleep)

    def _give_up(self, state: RetryCallState) -> None:
        failure = _failure(state)
        asked = failure.asked_to_wait
        said = "" if asked is None else f", asking to wait {asked:.0f} s"
        raise RemoteError(
            f"{self.address.url} {failure}{said}; given up after {state.attempt_number} tries. Go on later with "
            "--resume: answers that came are kept and not asked again"
        ) from None

    def _reason(self, data: bytes | bytearray) -> str:
        """What the server says, in one line, without the token."""
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            text = str(json.loads(data)["error"])
            text = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
            return f": {text.replace(self._token, '...') if self._token else text}"
        return ""


def _failure(state: RetryCallState) -> _TryLaterError:
    failure = state.outcome.exception() if state.outcome else None
    if not isinstance(failure, _TryLaterError):
        raise TypeError("only a failure that may pass is tried again")
    return failure


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: as the server asked or longer, with jitter, so that not all come back together."""
    wait = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)(state)
    asked = _failure(state).asked_to_wait
    if asked is None:
        return wait * CHANCE.uniform(0.5, 1.0)
    return max(asked, (asked + wait / 4) * CHANCE.uniform(0.5, 1.0))


def _advice(status: int) -> str:
    if status in (401, 403):
        return "; ask the owner for a token and name the variable that holds it, teacher_token_env"
    if status == 404:
        return "; check the model's name in the URL"
    if 300 <= status < 400:
        return "; name the address that it leads to, redirections are not followed"
    return ""


def _cause_of(error: BaseException) -> BaseException:
    """What the operating system said, below what the HTTP library made of it; the error itself where there is none."""
    below: BaseException | None = error
    while below is not None and not isinstance(below, OSError):
        below = below.__cause__ or below.__context__
    return below or error


def _is_nowhere(error: BaseException) -> bool:
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
