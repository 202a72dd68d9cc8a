"""Bare weights: the state dict of a reference checkpoint (`*.tar` and the like) or of plain safetensors."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdb.errors import CheckpointError
from sdb.models.weights import state_dict_in
from sdb.runtime import WEIGHTS_LIMIT, check_regular, parse_json

# What training loops keep beside the weights and nobody needs here: read as `_Aside`, so nothing of theirs is run.
ASIDE = (
    "argparse.Namespace",
    *(
        f"{numpy}.multiarray.{name}"
        for numpy in ("numpy.core", "numpy._core")
        for name in ("scalar", "_reconstruct")
    ),
    *("numpy.dtype", "numpy.ndarray"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("datetime.datetime", "datetime.timedelta"),
)

# Under what name a .tar of ours holds our description of the classifier.
OWN = "sdb"


def description_in(path: Path) -> dict[str, Any] | None:
    """What a .tar that `sdb.runs.reference_checkpoint` wrote says of its classifier; None for any other file."""
    if path.suffix != ".tar":
        return None
    try:
        check_regular(path, WEIGHTS_LIMIT)
        described = parse_json(torch.load(path, map_location="cpu", weights_only=True)[OWN])
    except Exception:  # not ours, or damaged in any way: `read_reference` says which
        return None
    return described if isinstance(described, dict) else None


def read_reference(path: Path) -> dict[str, Tensor]:
    """The state dict of a reference checkpoint, `{"epoch", "state_dict", "optim_dict"}`, without running its pickle.

    Also of a file that holds it under another usual name (`sdb.models.weights`), or nothing else; or of safetensors.

    Raises:
        CheckpointError: damaged, or it holds more than tensors and plain containers.
    """
    try:
        check_regular(path, WEIGHTS_LIMIT)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error.strerror or error}") from None
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Aside, name) for name in ASIDE]):
            warnings.simplefilter("ignore")  # torch's advice on protocols; our error says what to do
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: {_more_than_tensors(path)}") from None
    except Exception as error:  # on damaged bytes torch's unpickler fails in any way; it runs none of them
        raise CheckpointError(f"{path}: not a whole torch checkpoint ({type(error).__name__})") from None
    state = state_dict_in(content)
    if state is None:
        raise CheckpointError(f"{path}: holds no state_dict of tensors")
    return state


class _Aside:
    """What is read in place of anything that is not needed: it takes what it is given and does nothing."""

    def __init__(self, *given: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _more_than_tensors(path: Path) -> str:
    """Why a pickle is refused, and what to do, by the names in it; they are read, not run."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of an older format, or damaged: no names
        names = []
    if any(name.startswith("torch.nn.modules.") for name in names):
        return (
            "holds a whole module, and to load one runs code: refused; where it was made, save its weights, "
            "torch.save(model.state_dict(), FILE)"
        )
    which = f" ({sorted(names)[0][:80]!r})" if names else ""
    return (
        f"holds more than tensors{which} (or is damaged) and could run code when loaded: refused; ask its author for "
        "safetensors, or for a file that torch.load(weights_only=True) reads"
    )
