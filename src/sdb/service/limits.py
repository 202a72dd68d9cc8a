"""What the server refuses: how it says so, and where the limits are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sdb.errors import ConfigError, SDBError

MIN_BODY, MAX_BODY = 8 * 2**20, 128 * 2**20  # bytes: a photograph fits; nothing larger is ever read
BYTES_A_PIXEL = 8  # FP64, or a number with six digits in JSON
MAX_INTAKE = 512 * 2**20  # bytes of all bodies that are being received
MAX_READING = 16  # bodies that wait for the one thread that decodes pictures and parses what is large
MAX_JSON = 16 * 2**20  # bytes of text, which may take 20 times as many once it is parsed
MAX_HEAD = 32 * 2**10  # bytes of a request's first line and headers


class Refusal(SDBError, ValueError):
    """A request that is not answered, and the HTTP status that says why.

    Args:
        status: HTTP status, 4xx or 5xx.
        message: what was given and what is expected; never an image, a logit or a token.
        retry_after: seconds after which asking again makes sense, or None.
        reason: one word for the metrics.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None, reason: str = "bad") -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one server takes on.

    Attributes:
        max_batch: images in one forward, and in one request.
        max_queue: images that wait; a request that finds no room is answered 503.
        timeout: seconds until a request that still waits is answered 503.
        read_timeout: seconds that a client has to send its head, and again its body.

    Raises:
        ConfigError: a limit is not positive, or the queue is smaller than a batch.
    """

    max_batch: int = 256
    max_queue: int = 1024
    timeout: float = 10.0
    read_timeout: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "timeout", "read_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0")
        if self.max_queue < self.max_batch:
            raise ConfigError(
                f"max_queue is {self.max_queue}, smaller than max_batch {self.max_batch}: a full request would never "
                "find room; raise one or lower the other"
            )

    def body(self, image_shape: tuple[int, int, int]) -> int:
        """Bytes of the largest body that is read, compressed or not: a full batch fits, within fixed bounds."""
        return min(max(self.max_batch * prod(image_shape) * BYTES_A_PIXEL, MIN_BODY), MAX_BODY)

    def intake(self, image_shape: tuple[int, int, int]) -> int:
        """Bytes of all bodies that are being received at one time."""
        return min(16 * self.body(image_shape), MAX_INTAKE)
