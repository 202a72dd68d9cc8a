"""Reading what a user or a stranger gives: regular files only, no more than a limit, JSON of one meaning.

Everything here raises OSError or ValueError, whose text says what is wrong; each reader makes its own `SDBError` of it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from sdb.errors import ConfigError

# The most bytes of a file of each kind, checked before any is read.
JSON_LIMIT = 2**24  # parameters, manifests, profiles: what is read as a whole and is small
SECRET_LIMIT = 2**16  # keys, public keys, signatures
IMAGE_LIMIT = 2**28  # one encoded image
RECORD_LIMIT = 2**31  # an owner's record, which has a row per class
DATABASE_LIMIT = 2**36  # SQLite files, which are read page by page
# No image classifier that is known has more weights, and what memory does not hold is not read.
WEIGHTS_LIMIT = min(2**35, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))

MAX_DEPTH = 64  # of brackets in brackets; what is written here has less than ten
MAX_INTEGER = 2**64


def check_regular(path: Path, limit: int) -> int:
    """The size of a file that may be read as a whole: a regular one, of at most `limit` bytes.

    Raises:
        OSError: missing, a folder, a pipe or a device, or too large; its text says which, with size and limit.
    """
    try:
        return _size(path, path.stat(), limit)
    except ValueError:  # a null byte
        raise OSError(errno.EINVAL, "this name cannot be a file's", str(path)) from None


def open_regular(path: Path, limit: int) -> BinaryIO:
    """Open a file for reading, as `check_regular` has it.

    Raises:
        OSError: as there, or not readable.
    """
    check_regular(path, limit)  # before opening: to open a device may do something
    # Without waiting: what was a file a moment ago may be a pipe that nobody writes to.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _size(path, os.fstat(file.fileno()), limit)
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: Path, limit: int) -> bytes:
    """What a file holds.

    Raises:
        OSError: as `open_regular` has it.
    """
    with open_regular(path, limit) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def _size(path: Path, status: os.stat_result, limit: int) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, and a regular file is expected", str(path))
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, and at most {limit:,} are expected", str(path))
    return status.st_size


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """JSON that means one thing to every reader.

    Args:
        data: bytes are UTF-8.
        finite: refuse NaN and numbers beyond a float's range; records of training may hold them.

    Raises:
        ValueError: not UTF-8, not JSON (then a JSONDecodeError), a name that is given twice, text that is not Unicode,
            more than `MAX_DEPTH` brackets in brackets, an integer beyond 64 bits, or a number that is not finite.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    constant, number = (_refuse, _finite) if finite else (None, None)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=number, parse_constant=constant
        )
    except RecursionError:
        raise ValueError("brackets in brackets, too deep") from None
    if not _is_shallow(value):
        raise ValueError("brackets in brackets, too deep")
    if "\\u" in text and not is_text(json.dumps(value, ensure_ascii=False)):
        raise ValueError("text that is not Unicode (half of a surrogate pair)")
    return value


def json_text(value: Any, **layout: Any) -> str:
    """A value as JSON that any reader takes: never NaN or an infinity, which JSON does not have.

    Args:
        value: plain values.
        layout: as `json.dumps` takes it (indent, sort_keys, separators, ...).

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(value, allow_nan=False, **layout)


def is_text(value: object) -> bool:
    """Whether a value is text that can be written as UTF-8; names of files need not be."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_home() -> bool:
    """Whether ~ stands for a folder: without HOME, a user id without an account has none."""
    try:
        return Path.home() is not None
    except RuntimeError:
        return False


def expand(path: Path | str) -> Path:
    """A path with its leading ~ replaced.

    Raises:
        ConfigError: there is no such home: no HOME and no account, or no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: ~ stands for a home folder, and there is none; give the whole path") from None


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [
            each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list))
        ]
        level = [part for parts in inside for part in parts]
        if not level:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice; keep one")
    return made


def _integer(text: str) -> int:
    if len(text) > 21 or not -MAX_INTEGER < (number := int(text)) < MAX_INTEGER:
        raise ValueError(f"{text[:20]}... is beyond 64 bits")
    return number


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is beyond a float's range")
    return number


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
