"""The watch: who asks, may they, and does it look like an extraction.

    watch = Watch.open("watch.db", tokens="tokens.db", profile="profile.json")
    who = watch.identify(token)
    if watch.admit(who, len(images)).allowed:
        watch.observe(who, images, logits)

`admit` and `identify` take microseconds to a millisecond and touch memory only (`admit` not where it `asks_first`). One
thread writes counts behind, another looks at what was asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from sdb.errors import ConfigError, SDBError, StorageError
from sdb.service.watch.accounts import EVERYONE, Accounts, Admission
from sdb.service.watch.alerts import Alert, AlertBook, alert_log, close_log
from sdb.service.watch.counts import Store
from sdb.service.watch.detector import Detector, Suspicion
from sdb.service.watch.limits import Limits, LimitSet
from sdb.service.watch.observer import Observer
from sdb.service.watch.profile import Profile
from sdb.service.watch.store import open_store
from sdb.service.watch.tokens import ANONYMOUS, Principal, TokenFile, TokenRow, find

# A kill loses what was asked since the last flush.
FLUSH_SECONDS = 0.25
RELOAD_SECONDS = 1.0


class Watch:
    """Budgets, rates and alerts for the principals of one server. Safe for several threads.

    Args:
        store: where counts and alerts are kept; closed with the watch.
        tokens: who has a token; None for nobody.
        limits: of the principals whose token has none of its own.
        profile: of ordinary queries; without one the detector judges less.
        alerts: where alerts are told; None for stderr. Closed with the watch.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        tokens: TokenFile | None = None,
        limits: LimitSet | None = None,
        *,
        profile: Profile | None = None,
        alerts: logging.Logger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._tokens, self._limits, self._clock = store, tokens, limits or LimitSet(), clock
        self._log = alerts or alert_log()
        self._stop = threading.Event()
        self._rows: list[TokenRow] = []
        self._own_limits: dict[str, Limits] = {}
        self._accounts = Accounts(store, clock)
        self._store_errors = 0
        self._load()
        self.book = AlertBook(store, self._log)
        self._observer = Observer(Detector(profile), self._report)
        self._writer = threading.Thread(target=self._write_behind, name="sdb-watch-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(
        cls,
        store: Path | str | None = None,
        tokens: Path | str | None = None,
        limits: LimitSet | None = None,
        *,
        profile: Path | str | None = None,
        alerts: Path | str | None = None,
    ) -> Self:
        """A watch by its files.

        Args:
            store: a SQLite file, made where it is missing, or a redis:// URL; None keeps counts in memory only.
            tokens: the file of `sdb token`; None where everybody is anonymous.
            limits: in place of the defaults.
            profile: the file of `sdb token profile`.
            alerts: file for lines of JSON; None for stderr.

        Raises:
            StorageError, KeyFileError, ConfigError, MissingExtraError: one of them cannot be used.
        """
        who = None if tokens is None else TokenFile(tokens)
        usual = None if profile is None else Profile.load(profile)
        return cls(open_store(store), who, limits, profile=usual, alerts=alert_log(alerts))

    def identify(self, token: str | None) -> Principal:
        """Whose token this is; anonymous for none, an unknown or a revoked one.

        Raises:
            TokenExpiredError: its time is over.
        """
        row = None if token is None else find(token, self._rows)
        if row is None or row.revoked is not None:
            return ANONYMOUS
        row.check_time(self._clock())
        return row.principal

    @property
    def asks_first(self) -> bool:
        """Whether `admit` asks the store, which several servers share, and so may wait for it."""
        return self._store.decides

    def admit(self, principal: Principal, images: int) -> Admission:
        """Count images against the limits of a principal and of everyone; nothing is counted where one refuses.

        Raises:
            ConfigError: fewer than one image.
        """
        if images < 1:
            raise ConfigError(f"images: {images} is given, at least 1 is needed")
        own = (principal.name, self.limits_of(principal))
        if principal.partner:
            return self._accounts.admit(images, own)
        return self._accounts.admit(images, own, (EVERYONE, self._limits.everyone))

    def observe(self, principal: Principal, images: np.ndarray, logits: np.ndarray) -> None:
        """Hand over what was asked and answered, to be looked at later; never blocks.

        Args:
            principal: who asked.
            images: float32 (N, C, H, W) in [0, 1]; not to be changed afterwards.
            logits: float32 (N, K), as the box gave them, whatever of them was sent.
        """
        self._observer.put(principal, images, logits)

    def metrics(self) -> dict[str, float]:
        """Numbers for monitoring: images admitted, requests refused, alerts, observations dropped, errors."""
        return {
            "images_admitted": float(self._accounts.admitted),
            "requests_refused": float(self._accounts.refused),
            "principals": float(len(self._accounts)),
            "images_observed": float(self._observer.seen),
            "images_not_observed": float(self._observer.dropped),
            "detector_errors": float(self._observer.errors),
            "alerts": float(self.book.told),
            "alerts_waiting": float(self.book.waiting),
            "alerts_dropped": float(self.book.dropped),
            "store_errors": float(self._store_errors + self._accounts.unasked),
        }

    def close(self) -> None:
        """Write what is not written yet, and stop the threads. A second call does nothing."""
        if self._stop.is_set():
            return
        self._observer.close()
        self._stop.set()
        self._writer.join()
        self._store.close()
        close_log(self._log)

    def limits_of(self, principal: Principal) -> Limits:
        """The limits that apply to a principal alone."""
        own = self._own_limits.get(principal.name)
        if own is not None:
            return own
        if principal.name == ANONYMOUS.name:
            return self._limits.anonymous
        return self._limits.partner if principal.partner else self._limits.named

    def _report(self, principal: Principal, suspicion: Suspicion) -> None:
        volume = self._accounts.volume(principal.name)
        alert = Alert(
            principal.name, suspicion.kind, suspicion.value, suspicion.threshold, volume, suspicion.statistics
        )
        self.book.take(alert, self._clock())

    def _write_behind(self) -> None:
        reloaded = time.monotonic()
        while not self._stop.wait(FLUSH_SECONDS):
            self._flush()
            if time.monotonic() - reloaded >= RELOAD_SECONDS:
                reloaded = time.monotonic()
                self._reload()
        self._flush()

    def _flush(self) -> None:
        """Counts first: they are what a kill would lose."""
        try:
            self._accounts.flush()
        except StorageError:
            self._store_errors += 1  # still counted in memory; tried again the next time
        for alert in self._accounts.pending_alerts():
            self.book.take(alert, self._clock())
        self.book.settle()

    def _reload(self) -> None:
        """See what other processes wrote: tokens made or revoked, and counts."""
        try:
            self._load()
        except SDBError:
            self._store_errors += 1  # what was read last stays in force

    def _load(self) -> None:
        if self._tokens is not None:
            rows = self._tokens.rows()
            self._own_limits = {row.principal.name: row.limits for row in rows if row.limits is not None}
            self._rows = rows
        # Names that have no token any more are nobody's.
        self._accounts.load({ANONYMOUS.name, *(row.principal.name for row in self._rows)})
