"""Keys: the owner's secret, and how an image carries it.

    key = Key.generate()
    keyed = key.embed(images)            # still images in [0, 1], same shape
    key.save(path); Key.load(path)

A key is 256 bits from the operating system. Its pattern for images of any shape is expanded from those bits with
SHAKE-256, so it is the same on every platform, and no global random state has any part in it (the reference draws its
key from a NumPy generator seeded with a constant, so every reference key is the same public image). The id is one-way:
a box stores it, and nobody can go from it to the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sdb.errors import ConfigError, KeyFileError
from sdb.runtime import write_atomic

if TYPE_CHECKING:
    import numpy as np
    import torch

SECRET_BYTES = 32
KEY_FILE_VERSION = 1
DEFAULT_BLEND = 0.9


def derive(secret: bytes, label: str, length: int = SECRET_BYTES) -> bytes:
    """Secret bytes for one purpose, by HKDF-SHA256 under a label.

    Source: RFC 5869.
    """
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=f"sdb/1/{label}".encode()).derive(secret)


@dataclass(frozen=True, slots=True)
class Key:
    """An image key: what a partner needs to distil a box.

    Attributes:
        secret: 32 bytes; never printed, logged or stored in a box.
        blend: share of the image in a keyed image, in (0, 1); the pattern has the rest. Public.
    """

    secret: bytes = field(repr=False)
    blend: float = DEFAULT_BLEND

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise ConfigError(f"a key's secret has {SECRET_BYTES} bytes, this one has {len(self.secret)}")
        if not 0.0 < self.blend <= 1.0:
            raise ConfigError(f"key_blend: {self.blend} is not in (0, 1]; the paper's code uses 0.9")

    @classmethod
    def generate(cls, blend: float = DEFAULT_BLEND) -> Key:
        """A new key from the operating system's randomness."""
        return cls(os.urandom(SECRET_BYTES), blend)

    @property
    def id(self) -> str:
        """One-way name of the key, 32 hexadecimal digits; safe to publish."""
        return derive(self.secret, "id", 16).hex()

    def pattern(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """The key's image, uint8 (C, H, W), each value uniform in 0..255."""
        import numpy as np

        channels, height, width = image_shape
        seed = derive(self.secret, f"pattern/{channels}x{height}x{width}")
        stream = hashlib.shake_256(seed).digest(channels * height * width)
        return np.frombuffer(stream, dtype=np.uint8).reshape(image_shape)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Keyed images: blend * image + (1 - blend) * pattern.

        Args:
            images: float (N, C, H, W), pixels in [0, 1].

        Returns:
            Keyed images of the same shape, dtype and device, pixels in [0, 1].

        Source: Ye et al., AAAI 2022 (arXiv 2112.03695); JngwenYe/SDB train_smb.py blends normalised images, which is
        the same thing because the two weights sum to one.
        """
        import torch

        channels, height, width = images.shape[1:]
        pattern = torch.from_numpy(self.pattern((channels, height, width)).copy()).to(images.device)
        return self.blend * images + (1.0 - self.blend) * (pattern.to(images.dtype) / 255)

    def save(self, path: Path | str, overwrite: bool = False) -> None:
        """Write the key file, readable by its owner alone (mode 0600).

        Raises:
            KeyFileError: the file exists and `overwrite` is false.
        """
        path = Path(path)
        if path.exists() and not overwrite:
            raise KeyFileError(f"{path} exists; a key that is overwritten is lost: choose another name")
        body = {"sdb_key": KEY_FILE_VERSION, "kind": "image", "id": self.id, "blend": self.blend}
        write_atomic(path, json.dumps(body | {"secret": self.secret.hex()}, indent=1).encode() + b"\n", mode=0o600)

    @classmethod
    def load(cls, path: Path | str) -> Key:
        """Read a key file.

        Raises:
            KeyFileError: missing, readable by others, damaged or altered.
        """
        path = Path(path)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"cannot read key file {path}: {getattr(error, 'strerror', error)}") from error
        if mode & 0o077:
            raise KeyFileError(f"{path} can be read by other users (mode {mode:04o}): run chmod 600 {path}")
        try:
            body = json.loads(text)
            version, kind = body["sdb_key"], body["kind"]
            if (version, kind) != (KEY_FILE_VERSION, "image"):
                raise KeyFileError(
                    f"{path}: key version {version}, kind {kind!r}: made by a newer sdb; update sdb"
                )
            key = cls(bytes.fromhex(body["secret"]), float(body["blend"]))
            stated = body["id"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, KeyFileError):
                raise
            raise KeyFileError(f"{path} is not an sdb key file, or is damaged: restore it from a copy") from None
        if stated != key.id:
            raise KeyFileError(
                f"{path}: secret and id do not belong together; the file was altered: restore a copy"
            )
        return key
