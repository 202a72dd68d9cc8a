"""Where a request comes from: pages of other sites may not ask, and a name that is not ours is not served.

A browser sends some POST requests to any address without asking first, and a page whose name was made to lead to this
machine (DNS rebinding) may even read the answers. Clients that are no browsers send neither header that is looked at.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from sdb.errors import ConfigError
from sdb.service.limits import Refusal

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# What a page may send to another site without its leave; for other types a browser asks first, and we give no leave.
UNASKED = ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def known_names(names: Iterable[str]) -> frozenset[str]:
    """Names of this server, as they are compared.

    Raises:
        ConfigError: one of them is no name.
    """
    lower = [name.lower() for name in names]
    for name in lower:
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"allowed host {name!r}: give a name such as models.example.com, without scheme, port or path"
            )
    return frozenset(lower)


def check_host(headers: Headers, names: frozenset[str]) -> None:
    """Refuse a Host that is neither this machine, nor an address, nor one of the names.

    An address cannot be rebound, so all are fine.

    Raises:
        Refusal: 421.
    """
    for host in headers.getlist("host"):
        name = _name_of(host)
        if not (name in names or name == "localhost" or name.endswith(".localhost") or _is_address(name)):
            raise Refusal(
                421, "this server is not asked by that name; its owner can allow it: --allowed-host", reason="host"
            )


def check_site(headers: Headers, method: str, names: frozenset[str]) -> None:
    """Refuse what a page of another site sends unasked.

    Raises:
        Refusal: 403.
    """
    if method in SAFE_METHODS or headers.get("content-type", "").partition(";")[0].strip().lower() not in UNASKED:
        return
    origin = headers.get("origin")
    by = (origin or "").partition("://")[2].lower()
    site = headers.get("sec-fetch-site")
    if site in ("same-origin", "none") or (site is None and origin is None):
        return
    if by and ((site is None and by == headers.get("host", "").lower()) or _name_of(by) in names):
        return
    raise Refusal(403, "a page of another site may not ask this server", reason="site")


def _name_of(host: str) -> str:
    """The name or address in a Host, without its port."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
