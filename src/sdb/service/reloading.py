"""A guard's folder that changes while it is served: its new rows are taken, and no request is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sdb.answers.guard import MANIFEST, Guard
from sdb.errors import SDBError

EVERY = 2.0  # seconds, as tokens are


class Takes(Protocol):
    """What answers by a guard."""

    def take(self, guard: Guard) -> None:
        """Answer by another guard from now on.

        Raises:
            ConfigError: it does not fit what is served.
        """
        ...


async def follow(folder: Path, server: Takes, say: Callable[[str], None], every: float = EVERY) -> None:
    """Give a server the guard of a folder whenever it was written again; what cannot be taken changes nothing.

    Args:
        folder: the guard's.
        server: that answers by it.
        say: told what happened, in a line.
        every: seconds between two looks.
    """
    seen = _stamp(folder)
    while True:
        await asyncio.sleep(every)
        if (now := _stamp(folder)) in (seen, None):
            continue
        seen = now
        try:
            guard = await asyncio.to_thread(Guard.load, folder)
            server.take(guard)
        except SDBError as error:
            say(f"{folder} was written again and is not taken, answers stay as they are: {error}")
        else:
            say(f"{folder} was written again: guard {guard.info.id[:8]} answers now")


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """Changes whenever the manifest, the last file of a guard, is written; None while there is none."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
