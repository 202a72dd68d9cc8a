"""Every principal's account: admitted in memory, written to the store behind the requests' backs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sdb.errors import StorageError
from sdb.service.watch.alerts import Alert
from sdb.service.watch.counts import Cap, Count, Store
from sdb.service.watch.limits import Limits, Meter, day_of

EVERYONE = "*"  # beside the principals' names in the store; no principal can have it
# Share of a budget at which the owner gets an alert.
VOLUME_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether images may be asked about.

    Attributes:
        allowed: yes or no.
        status: for HTTP, 200 or 429.
        reason: "", or which limit was hit.
        retry_after: seconds until asking again makes sense; 0 where it is allowed.
    """

    allowed: bool
    status: int = 200
    reason: str = ""
    retry_after: float = 0.0


ALLOWED = Admission(True)
# So long a store that failed is not asked again before requests, which would wait for it.
AWAY_SECONDS = 1.0
Found = list[tuple[str, Meter, Limits]]


class Accounts:
    """Meters by name, in front of a store. Safe for several threads; `flush` and `load` are for one of them.

    Args:
        store: where counts are kept.
        clock: seconds since 1970.
    """

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock, self._lock = store, clock, threading.Lock()
        self._meters: dict[str, Meter] = {}
        self._pending: dict[tuple[str, str], Alert] = {}
        self._away_until = 0.0
        self.admitted = self.refused = self.unasked = 0

    def __len__(self) -> int:
        return len(self._meters)

    def admit(self, images: int, *limits: tuple[str, Limits]) -> Admission:
        """Count images for each name, against its limits; nothing is counted where one refuses.

        Where several servers share a store that decides, it has the last word on budgets: what one server knows of the
        others' counts is up to a second old. While it cannot be asked, each server goes by what it knows.
        """
        now = self._clock()
        asks = self._store.decides and any(of.images_total or of.images_day for _, of in limits)
        asks = asks and now >= self._away_until
        with self._lock:
            found = [(name, self._meter(name, now), of) for name, of in limits]
            if (refusal := self._refusal(images, found, now)) is not None:
                return refusal
            for _, meter, of in found:
                # What the store counts is not handed to it later.
                (meter.owe if asks else meter.charge)(images, of, now)
            if not asks:
                return self._let_in(images, found)
        return self._ask(images, found, now)

    def _ask(self, images: int, found: Found, now: float) -> Admission:
        """Have the store count what weighs on the rates already, or refuse it."""
        day = day_of(now)
        try:
            fits, counts = self._store.take(
                images, day, [Cap(name, of.images_total, of.images_day) for name, _, of in found]
            )
        except StorageError:
            with self._lock:
                self.unasked += 1
                self._away_until = self._clock() + AWAY_SECONDS
                for _, meter, of in found:
                    meter.owe(-images, of, now)
                    meter.charge(images, of, now)
                return self._let_in(images, found)
        with self._lock:
            for count, (_, meter, _) in zip(counts, found, strict=True):
                meter.take(count.day, count.total, count.today)
            if fits:
                return self._let_in(images, found)
            for _, meter, of in found:
                meter.owe(-images, of, now)
            # By what is known now; only where a day ended meanwhile it is not refused, and the client is to ask again.
            refusal = self._refusal(images, found, now)
            return refusal or Admission(False, 429, "a day's budget was spent as the day ended: ask again", 1.0)

    def _let_in(self, images: int, found: Found) -> Admission:
        for name, meter, of in found:
            self._note_volume(name, meter, of)
        self.admitted += images
        return ALLOWED

    def _refusal(self, images: int, found: Found, now: float) -> Admission | None:
        for name, meter, of in found:
            if (refusal := meter.refusal(images, of, now)) is not None:
                self.refused += 1
                return self._refuse(name, meter, of, *refusal)
        return None

    def volume(self, name: str) -> dict[str, int]:
        """Images that a principal asked about, ever and on its last day."""
        with self._lock:
            return _volume(self._meter(name, self._clock()))

    def pending_alerts(self) -> list[Alert]:
        """Budgets that were nearly or wholly spent since the last call."""
        with self._lock:
            alerts, self._pending = list(self._pending.values()), {}
        return alerts

    def flush(self) -> None:
        """Add what was asked since the last time to the store; where that fails it stays to be added.

        Raises:
            StorageError: the store cannot be used.
        """
        with self._lock:
            taken = [
                Count(name, meter.day, meter.new_total, meter.new_today)
                for name, meter in self._meters.items()
                if meter.new_total
            ]
        if not taken:
            return
        self._store.add(taken)
        with self._lock:
            for count in taken:
                self._meters[count.name].settle(count.day, count.total, count.today)

    def load(self, names: Collection[str]) -> None:
        """Take over what the store has of some principals and of everyone, other servers' counts included.

        Raises:
            StorageError: the store cannot be used.
        """
        now = self._clock()
        kept = self._store.counts(day_of(now))
        with self._lock:
            for name in {*names, EVERYONE} & kept.keys():
                count = kept[name]
                self._meter(name, now).take(count.day, count.total, count.today)

    def _meter(self, name: str, now: float) -> Meter:
        if name not in self._meters:
            self._meters[name] = Meter(day_of(now))
        return self._meters[name]

    def _refuse(self, name: str, meter: Meter, limits: Limits, reason: str, wait: float) -> Admission:
        whose = "all principals together" if name == EVERYONE else "this principal"
        if reason == "rate":
            return Admission(False, 429, f"the rate of {whose} is exceeded", wait)
        self._queue_alert(name, f"refused_{reason}", meter, limits, 1.0)
        spent = {"total": "budget", "day": "daily budget"}[reason]
        return Admission(False, 429, f"these images are more than is left of the {spent} of {whose}", wait)

    def _note_volume(self, name: str, meter: Meter, limits: Limits) -> None:
        for reason, asked, most in (
            ("total", meter.total, limits.images_total),
            ("day", meter.today, limits.images_day),
        ):
            if most is not None and asked >= VOLUME_SHARE * most:
                self._queue_alert(name, f"volume_{reason}", meter, limits, VOLUME_SHARE)

    def _queue_alert(self, name: str, kind: str, meter: Meter, limits: Limits, share: float) -> None:
        # Kept and told by a thread that may wait for the disk; one of each kind for each principal waits at most.
        if (name, kind) not in self._pending:
            of_total = kind.endswith("total")
            asked, most = (meter.total, limits.images_total) if of_total else (meter.today, limits.images_day)
            self._pending[name, kind] = Alert(name, kind, asked, share * (most or 0), _volume(meter))


def _volume(meter: Meter) -> dict[str, int]:
    return {"total": meter.total, "today": meter.today}
