"""What the routes share: the model and its batches, who asks, and what they may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from fastapi import Request

from sdb.answers.teller import Teller
from sdb.service.answers import check_answers
from sdb.service.asking import admit, identified
from sdb.service.batching import Batcher
from sdb.service.bodies import Intake, decompress
from sdb.service.limits import MAX_READING, Refusal, RequestLimits
from sdb.service.metrics import Metrics
from sdb.service.model import KEYLESS, Model

if TYPE_CHECKING:
    from sdb.service.watch import Principal, Watch

T = TypeVar("T")
LARGE = 2**18  # bytes; reading more than this takes long enough to do it beside the event loop


class Service:
    """What the routes share: the model, its batches, the limits, and who watches.

    Args:
        model: what answers.
        watch: who asks and how much; None for no watch.
        answers: the policy for principals without one of their own.
        limits: what is refused.
        teller: answers near ties; None where they are answered as all else is.
    """

    def __init__(
        self, model: Model, watch: Watch | None, answers: str, limits: RequestLimits, teller: Teller | None = None
    ) -> None:
        check_answers(answers)
        self.model = model
        self.watch = watch
        self.answers = answers
        self.limits = limits
        self.teller = teller
        self.max_body = limits.body(model.image_shape)
        self.intake = Intake(self.max_body, limits.intake(model.image_shape), limits.read_timeout)
        self.batcher = Batcher(model.variants, limits)
        self.metrics = Metrics(lambda: self.batcher.waiting, watch.metrics if watch else None)
        self.batcher.on_batch = self.metrics.batches.observe
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._reading = 0

    def asker(self, request: Request) -> Asker:
        """Who sent a request; unknown and wrong tokens are nobody's, like none.

        Raises:
            Refusal: 401, the token has expired.
        """
        if self.watch is None:
            return Asker(None, KEYLESS, self.answers)
        principal = identified(self.watch, request.headers.get("authorization", ""))
        variant = principal.partner if principal.partner in self.model.variants else KEYLESS
        return Asker(principal, variant, principal.answers or self.answers)

    async def read(self, request: Request, reader: Callable[[bytes], T], aside: bool = False) -> T:
        """What a reader makes of the request's body, which is received and decompressed within the limits.

        Args:
            request: whose body it is.
            reader: bytes to what is wanted.
            aside: that even a small body takes long to read, so never on the event loop.

        Raises:
            Refusal: by the reader or the limits; 503 where too many bodies wait for the reader.
        """
        encoding = request.headers.get("content-encoding", "")

        def work(body: bytes) -> T:
            return reader(decompress(body, encoding, self.max_body))

        async with self.intake.body(request) as body:
            if len(body) < LARGE and not encoding and not aside:
                return work(body)
            if self._reading >= MAX_READING:
                raise Refusal(503, "too many bodies wait to be read", 1.0, "reading")
            self._reading += 1
            try:
                return await asyncio.get_running_loop().run_in_executor(self._reader, work, body)
            finally:
                self._reading -= 1

    async def logits(self, asker: Asker, images: np.ndarray) -> np.ndarray:
        """Logits (N, K) for the principal that asks.

        Raises:
            Refusal: 429 by the watch, 503 by the queue.
        """
        self.batcher.check_room(len(images))  # before the watch counts them
        if self.watch is not None and asker.principal is not None:
            await admit(self.watch, asker.principal, len(images))
        logits = await self.batcher.submit(asker.variant, images)
        if not np.isfinite(logits).all():
            raise ArithmeticError("the model gave logits that are not finite")
        if self.teller is not None:
            account = "" if asker.principal is None else asker.principal.account
            logits = self.teller.answers(account, images, logits, keyless=asker.variant == KEYLESS)
        self.metrics.images.inc(len(images))
        if self.watch is not None and asker.principal is not None:
            self.watch.observe(asker.principal, images, logits)
        return logits

    async def close(self) -> None:
        """Answer what was accepted, then end the threads."""
        await self.batcher.drain()
        self.batcher.close()
        self._reader.shutdown()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, which network answers, and how much of the answer is given."""

    principal: Principal | None
    variant: str
    answers: str
