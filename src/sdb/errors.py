"""Errors: every one that the library raises on purpose, one tree. No other module defines one.

One base, `SDBError`; each child is also the builtin that fits, so `except ValueError` works too. A message says what
was given, what is expected and what to do. The command line prints it in one line and exits with 2; anything that is
not an `SDBError` is a bug and keeps its traceback. No message holds key material or logits.
"""

from typing import Any


class SDBError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(SDBError, ValueError):
    """A parameter, parameter file or argument is unknown, of the wrong type or out of range."""


class DataError(SDBError, ValueError):
    """A data set is damaged, inconsistent or of the wrong shape."""


class DataNotFoundError(SDBError, FileNotFoundError):
    """A data set is not where it was looked for."""


class ModelError(SDBError, ValueError):
    """An architecture is unknown, cannot be built, or does not fit its input or its weights."""


class CheckpointError(SDBError, ValueError):
    """A checkpoint or box file is missing, damaged, altered, or holds something it must not hold."""


class KeyFileError(SDBError, ValueError):
    """A key file is missing, damaged, readable by others, or belongs to another box."""


class RunExistsError(SDBError, FileExistsError):
    """A folder already holds a run, and nothing said to resume or overwrite it."""


class StorageError(SDBError, OSError):
    """A file could not be written, for example on a full disk; what was there before is untouched."""


class TrainingError(SDBError, RuntimeError):
    """Training cannot go on, for example because a loss is no longer finite."""


class RemoteError(SDBError, ConnectionError):
    """A remote model cannot be reached, refuses, or answers with something that cannot be learnt from."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MissingExtraError(SDBError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'safe-distillation-box[{extra}]'"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return MissingExtraError.__new__, (
            MissingExtraError,
            str(self),
        )  # copies, and crosses processes, by its text
