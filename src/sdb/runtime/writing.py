"""Writing: whole files or none, and locks, also on file systems that cannot do all of it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from sdb.errors import RunExistsError, StorageError

if TYPE_CHECKING:
    pass

# What a file system answers to a call that it does not have (FUSE, NFS without lockd, CIFS, Lustre without flock).
UNSUPPORTED = {
    *(errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOTTY),
    *(errno.EINVAL, errno.EPERM, errno.EROFS),
}
HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # what it answers for a lock that another process has

log = logging.getLogger(__name__)

_warned: set[str] = set()


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    A device or a pipe, such as /dev/null, is written to and not replaced.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            with _if_supported(path.parent, "keeps no permissions"):
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            with _if_supported(path.parent, "does not say when data are on the disk"):
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - same call, and `temporary` is a str
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


def exchange(first: Path, second: Path) -> None:
    """Let two folders of one file system change places: at no instant is either name without one.

    Where the system cannot (file systems without RENAME_EXCHANGE, other systems than Linux) there is an instant in
    which nothing is at `second`.

    Raises:
        OSError: neither way works; both are where they were.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        at_working_directory, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        names = os.fsencode(first), os.fsencode(second)
        if not ctypes.CDLL(None).renameat2(at_working_directory, names[0], at_working_directory, names[1], swap):
            return
    aside = Path(tempfile.mkdtemp(dir=second.parent, prefix=f".{second.name}.old."))
    second.replace(aside)
    try:
        first.replace(second)
    except OSError:
        aside.replace(second)
        raise
    aside.replace(first)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Hold a run folder for this process; the lock ends with the process, however that ends.

    Raises:
        RunExistsError: another process is writing to the folder.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror or error}") from error
    with file:
        try:
            with _if_supported(folder, "has no locks: run one process at a time here"):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise StorageError(f"cannot lock {folder}: {error.strerror or error}") from error
            raise RunExistsError(
                f"{folder}: another process is writing here; wait for it or use another folder"
            ) from error
        yield


@contextlib.contextmanager
def _if_supported(folder: Path, missing: str) -> Generator[None]:
    """Go on, with one warning per process, where a file system does not support a call."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        if missing not in _warned:
            _warned.add(missing)
            log.warning("the file system of %s %s (%s)", folder, missing, error.strerror or error)
