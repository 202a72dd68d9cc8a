"""Where a remote model is: the URL of the Open Inference Protocol, checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from sdb.errors import ConfigError

EXPECTED = "expected http://HOST:PORT/v2/models/NAME, or https"
HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
MODEL_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/v2/models/[A-Za-z0-9._~-]+(/versions/[A-Za-z0-9._~-]+)?")


@dataclass(frozen=True, slots=True)
class Address:
    """A remote model's address.

    Attributes:
        url: as it was given, without a slash at its end; holds no credentials.
        secure: https.
        host: name or address.
        port: TCP port.
        path: of the model.
    """

    url: str
    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a URL apart.

        Raises:
            ConfigError: not http or https, with credentials, a query or a fragment, or not a model's; the message
                does not repeat the URL, which may hold a password.
        """
        try:
            parts = urlsplit(url.strip().rstrip("/"))
            host, port = parts.hostname, parts.port
        except ValueError:
            raise ConfigError(f"is no URL: {EXPECTED}") from None
        if "@" in parts.netloc:
            raise ConfigError("holds a user name or password, which would end up in files: use teacher_token_env")
        if parts.scheme not in ("http", "https") or not HOST.fullmatch(host or "") or port == 0:
            raise ConfigError(f"is no URL that sdb asks: {EXPECTED}")
        if parts.query or parts.fragment:
            raise ConfigError(f"ends in a query or fragment, which a model's URL has not: {EXPECTED}")
        if not MODEL_PATH.fullmatch(parts.path):
            raise ConfigError(f"does not name a model: {EXPECTED}")
        secure = parts.scheme == "https"
        return cls(parts.geturl(), secure, str(host), port or (443 if secure else 80), parts.path)


def check_remote(name: str, value: str | None, given: Mapping[str, Any]) -> str | None:
    """The value of `teacher_url` or `teacher_token_env`, fitting the parameters that were good so far.

    Raises:
        ConfigError: not exactly one teacher is named, or what belongs to the other kind of teacher.
    """
    if name == "teacher_token_env":
        if value is not None and given.get("teacher_url", "") is None:
            raise ConfigError("goes with a teacher_url, and there is none")
        return value
    if "teacher" in given and (given["teacher"] is None) == (value is None):
        raise ConfigError("give a teacher or a teacher_url, one of the two")
    if value is not None and (given.get("teacher_model") or given.get("teacher_args")):
        raise ConfigError("a remote teacher says itself what it takes: leave teacher_model and teacher_args out")
    return None if value is None else Address.parse(value).url
