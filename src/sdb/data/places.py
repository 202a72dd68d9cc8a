"""Where data sets are looked for."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sdb.errors import DataError, DataNotFoundError
from sdb.runtime import expand


def folders(root: Path | None, names: Iterable[str]) -> list[Path]:
    """Folders that may hold a data set, in the order in which they are tried.

    Args:
        root: the folder a user named; else the one named by SDB_DATA; else ./data.
        names: usual names of the data set's own folder; each is tried in the root, after the root itself.
    """
    given = os.environ.get("SDB_DATA")
    base = root or (expand(given) if given else Path("data"))
    return [base, *(base / name for name in names)]


def some(names: Sequence[str], shown: int = 4) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def incomplete(title: str, place: Path, missing: Sequence[str]) -> DataError:
    """The error for a data set of which a place holds some files and lacks others."""
    return DataError(f"{title}: {place} is incomplete: {some(missing)}: missing: get the data set again")


def not_found(title: str, looked: Iterable[Path], expected: str, remedy: str) -> DataNotFoundError:
    """The error for a data set that is in none of the folders."""
    places = ", ".join(str(folder.absolute()) for folder in looked)
    return DataNotFoundError(
        f"{title} was not found. Looked in {places}. Expected {expected}. {remedy} "
        "Then name its folder with root=, the parameter data_root, or SDB_DATA."
    )
