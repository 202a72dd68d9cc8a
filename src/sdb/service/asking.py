"""Who asks, and whether they may: one path for every server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sdb.service.limits import Refusal
from sdb.service.watch.tokens import TokenExpiredError

if TYPE_CHECKING:
    from sdb.service.watch import Principal, Watch


def identified(watch: Watch, authorization: str) -> Principal:
    """Who sent a request with this header; unknown and wrong tokens are nobody's, like none.

    Raises:
        Refusal: 401, the token has expired.
    """
    scheme, _, token = authorization.partition(" ")
    try:
        return watch.identify(token.strip() if scheme.lower() == "bearer" and token else None)
    except TokenExpiredError as error:
        raise Refusal(401, str(error), reason="expired") from None


async def admit(watch: Watch, principal: Principal, examples: int) -> None:
    """Count what is asked; where that asks another server, others' requests go on meanwhile.

    Raises:
        Refusal: 429, it is more than this principal may.
    """
    if watch.asks_first:
        admission = await asyncio.to_thread(watch.admit, principal, examples)
    else:
        admission = watch.admit(principal, examples)
    if not admission.allowed:
        raise Refusal(admission.status, admission.reason, admission.retry_after, "watch")
