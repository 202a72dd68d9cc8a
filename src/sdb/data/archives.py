"""Named files of a folder or of a .tar.gz archive, which is read as a stream and never unpacked."""

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from sdb.errors import DataError

MEMBER_BYTES = 512 * 2**20  # the largest file in a CIFAR archive has 155 MB
ARCHIVE_BYTES = 2 * 2**30  # all files of one have 186 MB
CHUNK = 2**20


def read_files(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read files by name.

    Args:
        place: a folder, or a .tar.gz archive whose files lie in any folder.
        names: without folder.

    Returns:
        Contents by name, in the order of `names`.

    Raises:
        DataError: one is missing, or the archive is damaged.
    """
    try:
        found = _from_archive(place, names) if place.is_file() else _from_folder(place, names)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{place}: damaged or not readable: {error}") from error
    absent = [name for name in names if name not in found]
    if absent:
        raise DataError(f"{place}: holds no {', '.join(absent)}: get the archive again")
    return {name: found[name] for name in names}


def _from_folder(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _from_archive(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    # Python's tarfile does not look at gzip's checksum, its gzip does at the end of the file.
    with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as stream:
        for member in stream:
            name = PurePosixPath(member.name).name
            if name not in names or not member.isfile():
                continue
            if member.size > MEMBER_BYTES:
                raise DataError(f"{archive}: {name} is said to have {member.size} bytes: not a CIFAR archive")
            content = stream.extractfile(member)
            if content is not None:
                found[name] = content.read()
        while unpacked.read(CHUNK):
            if unpacked.tell() > ARCHIVE_BYTES:
                raise DataError(f"{archive}: holds more than {ARCHIVE_BYTES} bytes: not a CIFAR archive")
    return found
