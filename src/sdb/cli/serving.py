"""What the commands that answer others' requests share: their options, and what these open."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdb.errors import ConfigError

if TYPE_CHECKING:
    from sdb.answers.ledger import Ledger
    from sdb.answers.ties import Ties
    from sdb.service.watch import Watch

Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A name of this server, where a proxy on this machine passes it on."),
]
Tokens = Annotated[Path | None, typer.Option(metavar="FILE", help="Who has a token: see sdb token.")]
WatchStore = Annotated[
    str | None,
    typer.Option(metavar="DB", help="Count and limit requests: an SQLite file, or redis://HOST/N."),
]
Budgets = Annotated[
    Path | None, typer.Option(metavar="FILE", help="JSON of budgets and rates, see docs/aisvs.md.")
]
TiesFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Mark near ties by account: sdb ledger new makes it.")
]
LedgerFile = Annotated[
    Path | None, typer.Option(metavar="DB", help="Keep what accounts are told on ties: sdb ledger new.")
]


@dataclass(frozen=True, slots=True)
class Opened:
    """What a server needs to know accounts.

    Attributes:
        watch: who asks and how much; None for no watch.
        ties: how near ties are answered; None where they are answered as all else is.
        ledger: keeps what is told on ties.
    """

    watch: Watch | None
    ties: Ties | None
    ledger: Ledger | None


def check_marks(ties: Path | None, ledger: Path | None) -> None:
    """Refuse one of the two without the other.

    Raises:
        ConfigError: naming both.
    """
    if (ties is None) != (ledger is None):
        raise ConfigError(
            "--ties and --ledger go together: what is told on ties and not kept can be traced by nobody"
        )


@contextmanager
def opened(
    *,
    tokens: Path | None,
    watch: str | None,
    budgets: Path | None,
    ties: Path | None,
    ledger: Path | None,
    profile: Path | None = None,
    alerts: Path | None = None,
) -> Generator[Opened]:
    """Open what the options name, and close it in the end.

    Raises:
        ConfigError: options of the watch without one.
        StorageError, KeyFileError: a file cannot be used.
    """
    watcher = coins = kept = None
    try:
        if watch is not None or tokens is not None:
            from sdb.service.watch import LimitSet, Watch

            allowed = None if budgets is None else LimitSet.load(budgets)
            watcher = Watch.open(watch, tokens=tokens, limits=allowed, profile=profile, alerts=alerts)
        elif alerts is not None or profile is not None or budgets is not None:
            raise ConfigError(
                "--alerts, --profile and --budgets are the watch's: give --watch DB or --tokens FILE too"
            )
        if ties is not None and ledger is not None:
            from sdb.answers.ledger import Ledger
            from sdb.answers.ties import Ties

            coins, kept = Ties.load(ties), Ledger(ledger, writing=True)
        yield Opened(watcher, coins, kept)
    finally:
        if kept is not None:
            kept.close()
        if watcher is not None:
            watcher.close()
