"""What lies in a run folder, by name, and which box a path stands for."""

from __future__ import annotations

from pathlib import Path

from sdb.config.files import CHECKPOINTS, RESOLVED, guess_command, read_json
from sdb.errors import CheckpointError, ConfigError

BOX, MANIFEST = "box", "box.json"  # a wrap's box in its run folder; what every box has


def is_box(path: Path) -> bool:
    """Whether a path looks like a saved box."""
    return (path / MANIFEST).is_file() or (path.suffix == ".zip" and path.is_file())


def box_of(path: Path) -> Path | None:
    """The box that a path stands for: itself, the one in a run folder, or the one that a run's checkpoint is of.

    A wrap's checkpoints hold its network alone, which is not what the box answers with, so they stand for the box.

    Raises:
        CheckpointError: it is a wrap's, and the box is not there yet.
    """
    folder = path.parent if path.name in CHECKPOINTS else path
    for candidate in (path, folder / BOX):
        if is_box(candidate):
            return candidate
    # A reference checkpoint that came from elsewhere is what it is: the reference's boxes are networks.
    given = path.suffix == ".tar" and path.is_file()
    begun = folder / RESOLVED
    if not given and _is_of_a_wrap(folder, begun):
        raise CheckpointError(
            f"{path}: its box is not there: wrap it first: sdb wrap {folder}{' --resume' if begun.exists() else ''}"
        )
    return None


def _is_of_a_wrap(folder: Path, begun: Path) -> bool:
    try:
        return "method" in read_json(begun) if begun.exists() else guess_command(folder) == "wrap"
    except ConfigError:  # no run folder, or a file of another kind
        return False
