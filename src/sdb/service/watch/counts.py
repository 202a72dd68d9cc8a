"""What a store keeps, and what every store can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

# Older alerts make room: cool-downs bound how fast they come, this bounds the disk.
MAX_ALERTS = 10_000


@dataclass(frozen=True, slots=True)
class Count:
    """Images that one principal has asked about.

    Attributes:
        name: of the principal.
        day: days since 1970 (UTC) that `today` belongs to.
        total: images, ever; in an addition, since the last one.
        today: images on that day, the same.
    """

    name: str
    day: int
    total: int
    today: int


class Store(Protocol):
    """What keeps counts and alerts. Every method raises StorageError where the store cannot be used."""

    def add(self, counts: Iterable[Count]) -> None:
        """Add to the counts, all or none."""
        ...

    def counts(self, day: int) -> dict[str, Count]:
        """The counts by name."""
        ...

    def keep_alert(self, record: dict[str, Any]) -> None:
        """Keep an alert, for good when this returns."""
        ...

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are kept, oldest first."""
        ...

    def close(self) -> None:
        """Let go of the file or connection."""
        ...
