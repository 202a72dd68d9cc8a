"""Read the pickles of the original CIFAR archives without running anything that they could hold.

A pickle names functions, and an ordinary unpickler calls them. These archives hold dictionaries, lists,
strings, numbers and uint8 arrays, so the only names met are the three by which numpy rebuilds an array; even
those are answered with stand-ins that only note the array's shape and bytes. Any other name is refused.
"""

import io
import pickle
from typing import Any

import numpy as np

from sdb.errors import DataError


class _ArrayNote:
    """Takes the state of a pickled array: (version, shape, dtype, Fortran order, bytes)."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DtypeNote) or dtype.code not in ("u1", b"u1") or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not of uint8")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _DtypeNote:
    """Takes the name of a pickled dtype."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and the like: nothing that matters for single bytes."""


class _NdarrayName:
    """Stands for the class numpy.ndarray, which is only handed to the next."""


def _reconstruct(*_: object) -> _ArrayNote:
    return _ArrayNote()


_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy", "dtype"): _DtypeNote,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR archive does")
        return _ADMITTED[module, name]


def read_pickle(data: bytes, where: str) -> dict[str, Any]:
    """Read one pickled dictionary of a CIFAR archive.

    Args:
        data: the pickle, of Python 2 or 3.
        where: what to call it in an error.

    Returns:
        Its entries, with str keys; arrays are uint8.

    Raises:
        DataError: it is damaged, or names anything but a numpy array.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a hostile or cut pickle can raise anything
        raise DataError(f"{where}: refused: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{where}: holds a {type(content).__name__}, expected a dictionary")
    return {
        key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): (
            value.array if isinstance(value, _ArrayNote) else value
        )
        for key, value in content.items()
    }
