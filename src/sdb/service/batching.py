"""Many requests, one forward: what waits while the model is busy is answered together as soon as it is free.

There is no delay to wait for company: a request that finds the model idle starts at once, and under load batches form
by themselves, because requests arrive while the one before is computed. The model runs in a thread of its own, one
batch at a time, so that the event loop stays free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import numpy as np

from sdb.service.limits import Refusal, RequestLimits

DRAIN_SECONDS = 0.01  # between two looks whether all is answered, when the server stops
Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(slots=True, eq=False)
class _Job:
    """Images of one request, and the task that waits for their logits."""

    variant: str
    images: np.ndarray
    answer: asyncio.Future[np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Jobs of one variant, their images together, and the event loop that is told."""

    jobs: list[_Job]
    images: np.ndarray
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Answers images by batches. Use it from one event loop at a time.

    Args:
        variants: by name, functions from images float32 (N, C, H, W) to logits float32 (N, K).
        limits: of a batch, of the queue and of the time to wait.
        on_batch: told the number of images of every batch.
    """

    def __init__(
        self,
        variants: Mapping[str, Forward],
        limits: RequestLimits,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.variants = variants
        self.limits = limits
        self.on_batch = on_batch
        self.waiting = 0  # images in the queue
        self._queue: deque[_Job] = deque()
        self._busy = False
        # A thread and a queue of our own: an executor's futures would cost more than a small model's forward.
        self._batches: SimpleQueue[_Batch | None] = SimpleQueue()
        self._thread = Thread(target=self._compute, name="model", daemon=True)
        self._thread.start()

    def check_room(self, images: int) -> None:
        """Refuse what the queue has no room for.

        Raises:
            Refusal: 503.
        """
        if self.waiting + images > self.limits.max_queue:
            raise Refusal(503, f"{self.waiting} images are waiting already: ask again later", 1.0, "queue")

    async def submit(self, variant: str, images: np.ndarray) -> np.ndarray:
        """Logits (N, K) of images (N, C, H, W).

        Args:
            variant: which network; one of `variants`.
            images: at most `limits.max_batch` of them.

        Raises:
            Refusal: 503, the queue is full or the time is up.
        """
        self.check_room(len(images))
        job = _Job(variant, images, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self.waiting += len(images)
        if not self._busy:
            self._next()
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await job.answer
        except TimeoutError:
            waited = f"no answer within {self.limits.timeout:g} seconds: ask again later"
            raise Refusal(503, waited, 1.0, "deadline") from None

    async def drain(self) -> None:
        """Wait until everything that was submitted is answered."""
        while self._busy:
            await asyncio.sleep(DRAIN_SECONDS)

    def close(self) -> None:
        """End the model's thread, after the batch it is at."""
        self._batches.put(None)
        self._thread.join()

    def _next(self) -> None:
        """Hand the next batch to the model's thread, if anything waits."""
        jobs = self._take()
        self._busy = bool(jobs)
        if jobs:
            images = jobs[0].images if len(jobs) == 1 else np.concatenate([job.images for job in jobs])
            self.on_batch(len(images))
            self._batches.put(_Batch(jobs, images, jobs[0].answer.get_loop()))

    def _compute(self) -> None:
        """The model's thread."""
        while batch := self._batches.get():
            logits: np.ndarray | Exception
            try:
                logits = self.variants[batch.jobs[0].variant](batch.images)
            except Exception as error:  # the model's own; each request reports it as its own
                logits = error
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                batch.loop.call_soon_threadsafe(self._finish, batch.jobs, logits)

    def _finish(self, jobs: list[_Job], logits: np.ndarray | Exception) -> None:
        """Go on with the next batch, and give each job its rows."""
        self._next()
        begin = 0
        for job in jobs:
            end = begin + len(job.images)
            if job.answer.done():
                pass  # its client waits no more
            elif isinstance(logits, Exception):
                job.answer.set_exception(logits)
            else:
                job.answer.set_result(logits[begin:end])
            begin = end

    def _take(self) -> list[_Job]:
        """The next batch: the oldest job, and those of the same variant that fit with it; given-up jobs are dropped."""
        jobs: list[_Job] = []
        passed: list[_Job] = []
        size = 0
        while self._queue:
            job = self._queue.popleft()
            if job.answer.done():  # its client waits no more
                self.waiting -= len(job.images)
                continue
            if jobs and job.variant != jobs[0].variant:
                passed.append(job)
                continue
            if size + len(job.images) > self.limits.max_batch:
                passed.append(job)
                break
            jobs.append(job)
            size += len(job.images)
        self._queue.extendleft(reversed(passed))
        self.waiting -= size
        return jobs
