"""What a store keeps, and what every store can do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True)
class Cap:
    """What one principal's counts may come to.

    Attributes:
        name: of the principal.
        total: images, ever; None for no limit.
        today: images on one day; None for no limit.
    """

    name: str
    total: int | None
    today: int | None


class Store(Protocol):
    """What keeps counts and alerts. Every method raises StorageError where the store cannot be used."""

    @property
    def decides(self) -> bool:
        """Whether `take` is there: servers that share the store ask it first, so that none goes by old counts."""
        ...

    def take(self, images: int, day: int, caps: Sequence[Cap]) -> tuple[bool, list[Count]]:
        """Add images to every count, or to none where one would pass its cap; and all counts, as they are then."""
        ...

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
