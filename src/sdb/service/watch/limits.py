"""How much a principal may ask: budgets and rates, sized to what extraction costs.

The defaults follow from measurements (docs/results.md, derivation in docs/aisvs.md): finding half of an image key took
6,016 queries at 64 pixels, and a student copies a model with about one query per training image. A lifetime budget
below that cost is what stops an extraction; a daily one only slows it, so that there is time to look.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sdb.errors import ConfigError
from sdb.runtime import JSON_LIMIT, parse_json, read_bytes

SECONDS_A_DAY = 86_400


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one principal, or all together, may ask. None is no limit.

    Attributes:
        images_total: images answered at most, ever.
        images_day: images answered at most in one day (UTC).
        rate: images per second, on average.
        burst: images at once, before `rate` binds; with None it never does.
    """

    images_total: int | None = None
    images_day: int | None = None
    rate: float | None = None
    burst: int | None = 256

    def __post_init__(self) -> None:
        for name in ("images_total", "images_day", "rate"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: {value!r} is given, a number above 0 is needed, or none for no limit")
        if self.burst is not None and not (_is_number(self.burst) and math.inf > self.burst >= 1):
            raise ConfigError(f"burst: {self.burst!r} is given, at least 1 is needed, or none for no limit")


@dataclass(frozen=True, slots=True)
class LimitSet:
    """The limits of a server; a token may have its own in place of `named`.

    Attributes:
        anonymous: all requests without a valid token, together.
        named: each principal with a token.
        partner: each principal with a token and a partner's key, who may distil.
        everyone: all principals but partners together, against several who share the asking.
    """

    anonymous: Limits = Limits(images_total=5_000, images_day=1_000, rate=10.0)
    named: Limits = Limits(images_total=5_000, images_day=1_000, rate=10.0)
    partner: Limits = Limits(rate=1_000.0, burst=4_096)
    everyone: Limits = Limits(images_day=10_000, rate=100.0, burst=2_048)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Limits from a JSON file such as {"anonymous": {"images_day": 500}}.

        What the file does not name keeps its default; null is no limit.

        Raises:
            ConfigError: it is missing or damaged, or names something unknown or out of range.
        """
        default, changed = cls(), {}
        try:
            for name, values in parse_json(read_bytes(Path(path), JSON_LIMIT)).items():
                changed[name] = replace(getattr(default, name), **values)
            return cls(**changed)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: no usable limits ({error}); expected anonymous, named, partner or everyone, each with "
                "images_total, images_day, rate or burst"
            ) from None


class Meter:
    """What one principal has asked: counts that a store keeps, and a token bucket that lives in memory.

    Not thread-safe; whoever owns it holds a lock. Stored counts and what was asked since are kept apart, so that
    several processes on one store see each other's counts.
    """

    def __init__(self, day: int, total: int = 0, today: int = 0) -> None:
        self.day, self.stored_total, self.stored_today = day, total, today
        self.new_total = self.new_today = 0
        self._debt, self._debt_at = 0.0, 0.0

    @property
    def total(self) -> int:
        """Images, ever."""
        return self.stored_total + self.new_total

    @property
    def today(self) -> int:
        """Images on the day of the last request."""
        return self.stored_today + self.new_today

    def refusal(self, images: int, limits: Limits, now: float) -> tuple[str, float] | None:
        """Why these images would be refused (total, day or rate), and for how many seconds; None where they would not.

        A batch above `burst` waits for an empty bucket and then goes into debt, so that it is slow and not impossible.
        """
        self._turn(now)
        if limits.images_total is not None and self.total + images > limits.images_total:
            # Only the owner can raise it: a client has no reason to come back soon.
            return "total", float(SECONDS_A_DAY)
        if limits.images_day is not None and self.today + images > limits.images_day:
            return "day", SECONDS_A_DAY - now % SECONDS_A_DAY
        if limits.rate is not None and limits.burst is not None:
            over = self._debt_now(limits.rate, now) + min(images, limits.burst) - limits.burst
            if over > 0:
                return "rate", over / limits.rate
        return None

    def charge(self, images: int, limits: Limits, now: float) -> None:
        """Count images that are let in."""
        self._turn(now)
        self.new_total += images
        self.new_today += images
        self.owe(images, limits, now)

    def owe(self, images: int, limits: Limits, now: float) -> None:
        """Let images weigh on the rate alone; fewer than none take back what was let in."""
        if limits.rate is not None:
            self._debt, self._debt_at = max(0.0, self._debt_now(limits.rate, now) + images), now

    def settle(self, day: int, total: int, today: int) -> None:
        """Note that so many of the new images are in the store now, `today` of them under `day`."""
        self.stored_total += total
        self.new_total -= total
        if day == self.day:
            self.stored_today += today
            self.new_today -= today

    def take(self, day: int, total: int, today: int) -> None:
        """Take over what the store has."""
        self.stored_total = total
        if day > self.day:
            self.day, self.new_today = day, 0
        if day == self.day:
            self.stored_today = today

    def _turn(self, now: float) -> None:
        # A clock that is set back does not open a day's budget anew.
        if (day := day_of(now)) > self.day:
            self.day, self.stored_today, self.new_today = day, 0, 0

    def _debt_now(self, rate: float, now: float) -> float:
        return max(0.0, self._debt - rate * max(0.0, now - self._debt_at))


def day_of(now: float | None = None) -> int:
    """Days since 1970, UTC."""
    return int((time.time() if now is None else now) // SECONDS_A_DAY)
