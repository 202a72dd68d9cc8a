"""Counts and alerts in Redis, for several servers (extra `redis`).

What a server has handed over is as durable as the Redis server makes it: turn on its append-only file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from sdb.errors import MissingExtraError, StorageError
from sdb.runtime import json_text
from sdb.service.watch.counts import MAX_ALERTS, Cap, Count

PREFIX = "sdb:watch"
TIMEOUT_SECONDS = 2.0
# A day's counts go two days after it began.
KEEP_SECONDS = 2 * 86_400
# A request waits for this answer; without it, it is counted in memory.
TAKE_SECONDS = 0.5
# KEYS: the totals, the day's. ARGV: images, seconds to keep, then name and both caps of each, "" for none.
TAKE = """
local images, counts, fits = tonumber(ARGV[1]), {}, 1
for at = 3, #ARGV, 3 do
    for key = 1, 2 do
        local count = tonumber(redis.call('HGET', KEYS[key], ARGV[at]) or 0)
        local cap = tonumber(ARGV[at + key])
        if cap and count + images > cap then fits = 0 end
        table.insert(counts, count)
    end
end
if fits == 1 then
    for at = 3, #ARGV, 3 do
        for key = 1, 2 do
            local place = 2 * (at / 3 - 1) + key
            counts[place] = redis.call('HINCRBY', KEYS[key], ARGV[at], images)
        end
    end
    redis.call('EXPIRE', KEYS[2], ARGV[2])
end
table.insert(counts, 1, fits)
return counts
"""


class RedisStore:
    """Counts and alerts on a Redis server, shared by whoever names it.

    Args:
        url: redis:// or rediss://; a password in it is not shown in messages.

    Raises:
        MissingExtraError: the extra `redis` is not installed.
        StorageError: the server does not answer.
    """

    decides = True

    def __init__(self, url: str) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise MissingExtraError("redis", "redis", "keeping counts in Redis") from None
        self._error = redis.RedisError
        try:
            self._client = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=TIMEOUT_SECONDS,
                socket_connect_timeout=TIMEOUT_SECONDS,
            )
            self._client.ping()
            # Without a second try: an answer may be lost after it was counted.
            hasty = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=TAKE_SECONDS,
                socket_connect_timeout=TAKE_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
            self._hasty, self._take = hasty, hasty.register_script(TAKE)
        except (redis.RedisError, ValueError) as error:
            raise self._cannot(error) from None

    def add(self, counts: Iterable[Count]) -> None:
        """Add to the counts, all or none."""
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                for count in counts:
                    pipeline.hincrby(f"{PREFIX}:total", count.name, count.total)
                    if count.today:
                        pipeline.hincrby(f"{PREFIX}:day:{count.day}", count.name, count.today)
                        pipeline.expire(f"{PREFIX}:day:{count.day}", KEEP_SECONDS)
                pipeline.execute()
        except self._error as error:
            raise self._cannot(error) from None

    def take(self, images: int, day: int, caps: Sequence[Cap]) -> tuple[bool, list[Count]]:
        """Add images to every count, or to none where one would pass its cap; and all counts, as they are then."""
        asked = [each for cap in caps for each in (cap.name, cap.total, cap.today)]
        try:
            fits, *found = self._take(
                keys=[f"{PREFIX}:total", f"{PREFIX}:day:{day}"],
                args=[images, KEEP_SECONDS, *("" if each is None else each for each in asked)],
            )
        except self._error as error:
            raise self._cannot(error) from None
        sums = zip(caps, found[::2], found[1::2], strict=True)
        return bool(fits), [Count(cap.name, day, total, today) for cap, total, today in sums]

    def counts(self, day: int) -> dict[str, Count]:
        """The counts by name, `today` those of that day."""
        try:
            # The client's types allow for its asynchronous twin.
            totals = cast(dict[str, str], self._client.hgetall(f"{PREFIX}:total"))
            today = cast(dict[str, str], self._client.hgetall(f"{PREFIX}:day:{day}"))
            return {n: Count(n, day, int(total), int(today.get(n, 0))) for n, total in totals.items()}
        except (self._error, ValueError) as error:
            raise self._cannot(error) from None

    def keep_alert(self, record: dict[str, Any]) -> None:
        """Keep an alert; the server has it when this returns."""
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.rpush(f"{PREFIX}:alerts", json_text(record))
                pipeline.ltrim(f"{PREFIX}:alerts", -MAX_ALERTS, -1)
                pipeline.execute()
        except self._error as error:
            raise self._cannot(error) from None

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are kept, oldest first."""
        try:
            found = cast(list[str], self._client.lrange(f"{PREFIX}:alerts", 0, -1))
            return [json.loads(record) for record in found]
        except (self._error, ValueError) as error:
            raise self._cannot(error) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._hasty.close()

    def _cannot(self, error: Exception) -> StorageError:
        # Without the URL: it may hold a password.
        return StorageError(
            f"the Redis server cannot be used ({type(error).__name__}); check its URL and that it runs"
        )
