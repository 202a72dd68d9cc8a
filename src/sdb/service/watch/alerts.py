"""Alerts: kept first, then told, each kind once in a while for one principal."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from sdb.errors import StorageError
from sdb.runtime import json_text
from sdb.service.watch.counts import Store

COOL_DOWN_SECONDS = 3_600.0
# Alerts that wait for a store which cannot be written; more are dropped and counted.
MAX_WAITING = 1_000
LOG_BYTES, LOG_FILES = 10_000_000, 5


@dataclass(frozen=True, slots=True)
class Alert:
    """Something the owner should look at. Holds no image, logits or token.

    Attributes:
        principal: who asked.
        kind: what was seen; docs/aisvs.md has the list.
        statistic: its value.
        threshold: the value from which on it is told.
        volume: images by this principal: {"total", "today"}.
        statistics: the other values of that moment, for whoever looks into it.
    """

    principal: str
    kind: str
    statistic: float
    threshold: float
    volume: dict[str, int]
    statistics: dict[str, float] = field(default_factory=dict)


class AlertBook:
    """Keeps alerts in a store, then writes each as one line of JSON.

    Args:
        store: where they are kept; what it has already counts for the cool-down, so a restart does not repeat them.
        log: where they are told.
        cool_down: seconds in which the same kind is not told again for the same principal.
    """

    def __init__(self, store: Store, log: logging.Logger, cool_down: float = COOL_DOWN_SECONDS) -> None:
        self._store, self._log, self._cool_down = store, log, cool_down
        self._lock = threading.Lock()
        self._last = {(one["principal"], one["kind"]): float(one["seconds"]) for one in store.alerts()}
        self._waiting: deque[dict[str, Any]] = deque()
        self.told = self.dropped = 0

    def take(self, alert: Alert, now: float | None = None) -> bool:
        """Keep and tell an alert, unless the same was told a short while ago; says whether it is a new one.

        Where the store cannot be written the alert waits, and is told once it is kept.
        """
        seconds = time.time() if now is None else now
        key = (alert.principal, alert.kind)
        with self._lock:
            if 0 <= seconds - self._last.get(key, float("-inf")) < self._cool_down:
                return False
            self._last[key] = seconds
            if len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                return False
            self._waiting.append(_record(alert, seconds))
        self.settle()
        return True

    def settle(self) -> None:
        """Keep and tell what waits; stops at the first that the store does not take."""
        with self._lock:
            while self._waiting:
                try:
                    self._store.keep_alert(self._waiting[0])
                except StorageError:
                    return
                self._log.warning(json_text(self._waiting.popleft()))
                self.told += 1

    @property
    def waiting(self) -> int:
        """Alerts that are not kept yet."""
        return len(self._waiting)


def alert_log(path: Path | str | None = None) -> logging.Logger:
    """A logger of bare lines, to a file that is rotated at 10 MB, or to stderr.

    Raises:
        StorageError: the file cannot be written.
    """
    log = logging.Logger("sdb.watch")  # one of its own: nobody else's settings apply to it
    try:
        handler = (
            logging.StreamHandler()
            if path is None
            else RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES)
        )
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; give another file for alerts") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    return log


def close_log(log: logging.Logger) -> None:
    """Close the file of a logger that `alert_log` made."""
    for handler in log.handlers:
        handler.close()


def _record(alert: Alert, seconds: float) -> dict[str, Any]:
    return {
        "event": "extraction_alert",
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        "seconds": round(seconds, 3),
        "principal": alert.principal,
        "kind": alert.kind,
        "statistic": _short(alert.statistic),
        "threshold": _short(alert.threshold),
        "volume": alert.volume,
        "statistics": {name: _short(value) for name, value in alert.statistics.items()},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
