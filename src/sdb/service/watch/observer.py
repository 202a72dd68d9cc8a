"""Looks at queries behind the server's back: a bounded queue and one thread."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from sdb.service.watch.detector import Detector, Suspicion
from sdb.service.watch.tokens import Principal

# Of a larger batch, so many images are looked at, drawn at random so that nobody knows which.
MAX_IMAGES = 256
MAX_WAITING_BYTES = 64 * 2**20
# Queries are gathered for so long: looking at many costs little more than looking at one.
GATHER_SECONDS = 0.05

Query = tuple[Principal, np.ndarray, np.ndarray]

log = logging.getLogger(__name__)


class Observer:
    """Feeds a detector from a queue that is bounded in bytes; what does not fit is dropped and counted.

    Args:
        detector: used by this thread alone.
        report: what to do with a suspicion.
    """

    def __init__(self, detector: Detector, report: Callable[[Principal, Suspicion], None]) -> None:
        self._detector, self._report = detector, report
        self._queue: deque[Query] = deque()
        self._ready = threading.Condition()
        self._bytes = 0
        self._closed = False
        self._generator = np.random.default_rng()
        self.dropped = self.seen = self.errors = 0
        self._thread = threading.Thread(target=self._run, name="sdb-watch-observer", daemon=True)
        self._thread.start()

    def put(self, principal: Principal, images: np.ndarray, logits: np.ndarray) -> None:
        """Queue what was asked (N, C, H, W) and answered (N, K), or drop it; returns at once."""
        asked = len(images)
        if asked > MAX_IMAGES:
            rows = np.sort(self._generator.choice(asked, MAX_IMAGES, replace=False))
            images, logits = images[rows], logits[rows]
        size = images.nbytes + logits.nbytes
        with self._ready:
            if self._closed or self._bytes + size > MAX_WAITING_BYTES:
                self.dropped += asked
                return
            self._bytes += size
            self._queue.append((principal, images, logits))
            self._ready.notify()

    def close(self) -> None:
        """Look at what waits, then stop."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._closed)
                # Closing ends the wait, so that what is queued is looked at without delay.
                self._ready.wait_for(lambda: self._closed, timeout=GATHER_SECONDS)
                if not self._queue:
                    return
                taken, self._queue = self._queue, deque()
            for group in _together(taken):
                self._look(*group)
                with self._ready:
                    self._bytes -= group[1].nbytes + group[2].nbytes

    def _look(self, principal: Principal, images: np.ndarray, logits: np.ndarray) -> None:
        try:
            for suspicion in self._detector.look(principal.name, images, logits, bool(principal.partner)):
                self._report(principal, suspicion)
        except Exception:
            # A fault here must not end the watch; the traceback holds no image.
            self.errors += 1
            if self.errors == 1:
                log.exception("the extraction detector failed; further failures are counted only")
        self.seen += len(images)


def _together(taken: Iterable[Query]) -> Iterator[Query]:
    """Each principal's queries in a row as one, up to MAX_IMAGES."""
    for (principal, *_), group in itertools.groupby(taken, key=_alike):
        images, logits = [], []
        for _, some, answers in group:
            if images and sum(map(len, images)) + len(some) > MAX_IMAGES:
                yield principal, np.concatenate(images), np.concatenate(logits)
                images, logits = [], []
            images.append(some)
            logits.append(answers)
        yield principal, np.concatenate(images), np.concatenate(logits)


def _alike(query: Query) -> tuple[Principal, tuple[int, ...], tuple[int, ...]]:
    principal, images, logits = query
    return principal, images.shape[1:], logits.shape[1:]
