"""Who answers near ties for a served model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdb.answers.ledger import Ledger
from sdb.answers.teller import Teller
from sdb.answers.ties import Ties
from sdb.errors import ConfigError, KeyFileError

if TYPE_CHECKING:
    from sdb.service.model import Model
    from sdb.service.watch import Watch


def teller_of(model: Model, watch: Watch | None, ties: Ties, ledger: Ledger | None) -> Teller:
    """That of a served model.

    Raises:
        ConfigError, KeyFileError: as `check_ties`.
    """
    check_ties(ties, model.box_id, watch, ledger, "box")
    return Teller(ties, ledger, model.rows)


def check_ties(ties: Ties, name: str, watch: Watch | None, ledger: Ledger | None, what: str) -> None:
    """Refuse ties that cannot be told or traced.

    Args:
        ties: how near ties are answered.
        name: id of the box or guard that is served.
        watch: says who asks.
        ledger: keeps what is told.
        what: is served, "box" or "guard".

    Raises:
        ConfigError: nobody says who asks, or the ties are of another box or guard.
        KeyFileError: the ledger is of other ties.
    """
    if watch is None:
        raise ConfigError("--ties without --tokens FILE: nobody could say whose answers they are")
    if ties.box_id != name:
        raise ConfigError(
            f"--ties: of {what} {ties.box_id[:8]}, not of {what} {name[:8]}: sdb ledger new makes them"
        )
    if ledger is not None and ledger.terms.ties_id != ties.id:
        raise KeyFileError(f"{ledger.path}: is of other ties than --ties: make one with sdb ledger new")
