"""Reading what `sdb audit` and `sdb demo` wrote: one JSON object a file, checked before anything is made of it."""

from pathlib import Path
from typing import Any

from sdb.errors import ConfigError
from sdb.report.claim import Claim, read_claim
from sdb.report.record import Record, read_record
from sdb.runtime import parse_json, read_bytes

# A file larger than this is something else: a full audit takes about a megabyte.
LARGEST = 64 * 2**20
# What `sdb audit` and `sdb demo` write beside their report.html.
SHOWN = ("claim.json", "record.json")
ADVICE = "give the claim.json that `sdb audit` wrote"


def load(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigError: There is no such file, or it is no whole JSON object.
    """
    try:
        value = parse_json(read_bytes(Path(path), LARGEST), finite=False)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {ADVICE}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a whole JSON file; it may be half written ({error}): {ADVICE}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a JSON {type(value).__name__}; an audit's claim is an object")
    return value


def load_shown(path: Path | str) -> Claim | Record:
    """An audit's claim or a demo's record, whichever the file holds.

    Raises:
        ConfigError: It holds neither, or one that cannot be reported.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in SHOWN if (path / name).is_file()]
        if not found:
            raise ConfigError(f"{path}: a folder without {' and '.join(SHOWN)}; {ADVICE}")
        path = found[0]
    value = load(path)
    try:
        return read_record(value) if value.get("kind") == "demo" else read_claim(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def load_claim(path: Path | str) -> Claim:
    """An audit's claim.

    Raises:
        ConfigError: The file holds none, or one that cannot be reported.
    """
    value = load(path)
    if value.get("kind") == "demo":
        raise ConfigError(f"{path}: a demo's record, not an audit's claim: `sdb report show {path}` shows it")
    try:
        return read_claim(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
