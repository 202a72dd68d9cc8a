"""Keys: an owner's secret, the partners' keys derived from it, and how an image carries one.

    owner = Owner.generate()
    key = owner.partner("hospital")          # the same key whenever it is asked for
    key = Key.generate()                     # a weight key of its own, where there is one partner only
    keyed = image_key.embed(images)          # still images in [0, 1], same shape

A secret is 256 bits from the operating system. Everything else follows from it by HKDF-SHA256 under a label. An image
key's pattern for images of any shape is expanded with SHAKE-256, so it is the same on every platform, and no global
random state has any part in it (the reference draws its key from a NumPy generator seeded with a constant, so every
reference key is the same public image). An id is one-way: a box stores ids, and nobody can go from an id to a key.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sdb.errors import ConfigError, KeyFileError
from sdb.keys.keyfile import read_secret, write_secret
from sdb.runtime import is_text

if TYPE_CHECKING:
    import numpy as np
    import torch

SECRET_BYTES = 32
DEFAULT_BLEND = 0.9
KeyKind = Literal["image", "weight"]


def derive(secret: bytes, label: str, length: int = SECRET_BYTES) -> bytes:
    """Secret bytes for one purpose, by HKDF-SHA256 under a label.

    Source: RFC 5869.
    """
    info = f"sdb/1/{label}".encode()
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(secret)


def check_secret(secret: bytes) -> None:
    """Refuse a secret that is none.

    Raises:
        ConfigError: no bytes, or of another length; naming both.
    """
    if not isinstance(secret, bytes):
        raise ConfigError(f"a secret is bytes, this one is {type(secret).__name__}")
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"a secret has {SECRET_BYTES} bytes, this one has {len(secret)}")


@dataclass(frozen=True, slots=True)
class Key:
    """What a partner needs to distil a box.

    Attributes:
        secret: 32 bytes; never printed, logged or stored in a box.
        blend: of an image key, the share of the image in a keyed image, in (0, 1]; the pattern has the rest. Public.
        kind: "image": images carry the key's pattern; "weight": the key opens encrypted parameters in the box.
        scope: whom the key was made for, for people; public.
    """

    secret: bytes = field(repr=False)
    blend: float = DEFAULT_BLEND
    kind: KeyKind = "image"
    scope: str = ""

    def __post_init__(self) -> None:
        check_secret(self.secret)
        if self.kind not in ("image", "weight"):
            raise ConfigError(f"key kind {self.kind!r} is neither 'image' nor 'weight'")
        if not isinstance(self.blend, Real) or not 0 < self.blend <= 1:
            raise ConfigError(f"key_blend: {self.blend!r} is not in (0, 1]; the paper's code uses 0.9")
        if not is_text(self.scope):
            raise ConfigError(
                f"key scope {self.scope!r} is not text that can be written as UTF-8; give another name"
            )
        # The id must not depend on how a number is written, nor on a blend that a weight key has no use for.
        object.__setattr__(self, "blend", 1.0 if self.kind == "weight" else float(self.blend))

    @classmethod
    def generate(cls, kind: KeyKind = "weight", *, blend: float = DEFAULT_BLEND, scope: str = "") -> Self:
        """A new key from the operating system's randomness, of the recommended kind where none is named.

        Raises:
            ConfigError: no such kind, or a blend out of range.
        """
        return cls(os.urandom(SECRET_BYTES), blend, kind, scope)

    @property
    def id(self) -> str:
        """One-way name of the key, 32 hexadecimal digits; safe to publish. It binds kind, blend and scope."""
        return derive(self.secret, f"id/{self.kind}/{self.blend!r}/{self.scope}", 16).hex()

    def pattern(self, image_shape: tuple[int, int, int]) -> np.ndarray:
        """An image key's image, uint8 (C, H, W), each value uniform in 0..255.

        Raises:
            ConfigError: this is a weight key.
        """
        import numpy as np

        if self.kind != "image":
            raise ConfigError("a weight key has no pattern: ask the box with box.unlock(key)")
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

        Raises:
            ConfigError: this is a weight key.

        Source: Ye et al., AAAI 2022 (arXiv 2112.03695); JngwenYe/SDB train_smb.py blends normalised images, which is
        the same thing because the two weights sum to one.
        """
        import torch

        channels, height, width = images.shape[1:]
        pattern = torch.from_numpy(self.pattern((channels, height, width)).copy()).to(images.device)
        return self.blend * images + (1.0 - self.blend) * (pattern.to(images.dtype) / 255)

    def save(self, path: Path | str, overwrite: bool = False, passphrase: str | None = None) -> None:
        """Write the key file, readable by its owner alone (mode 0600), encrypted where a passphrase is given.

        Raises:
            KeyFileError: the file exists and `overwrite` is false.
        """
        header = {"kind": self.kind, "id": self.id, "scope": self.scope, "blend": self.blend}
        write_secret(Path(path), header, self.secret, passphrase, overwrite)

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Self:
        """Read a key file.

        Raises:
            KeyFileError: missing, readable by others, damaged or altered, or an owner's file.
        """
        header, secret = read_secret(Path(path), passphrase)
        if header.get("kind") == "owner":
            raise KeyFileError(
                f"{path} is an owner's secret, not a key: make one with sdb key partner NAME --owner {path}"
            )
        try:
            key = cls(secret, header["blend"], header["kind"], header["scope"])
        except (KeyError, ConfigError) as error:
            raise KeyFileError(f"{path}: damaged key file ({error}); restore it from a copy") from None
        check_id(path, header, key.id)
        return key


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner's one secret, from which every partner's key and the decoys follow.

    Attributes:
        secret: 32 bytes; whoever has it owns the boxes.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_secret(self.secret)

    @classmethod
    def generate(cls) -> Self:
        """A new owner from the operating system's randomness."""
        return cls(os.urandom(SECRET_BYTES))

    @classmethod
    def of(cls, key: Key) -> Self:
        """The owner of a box that was wrapped for one key and no owner: follows from the key."""
        return cls(derive(key.secret, "owner"))

    @property
    def id(self) -> str:
        """One-way name of the owner, 32 hexadecimal digits."""
        return derive(self.secret, "id/owner", 16).hex()

    @property
    def queries_key(self) -> bytes:
        """The private key, X25519, that opens the queries which servers keep; `public_of` has its public key."""
        return derive(self.secret, "queries")

    def partner(self, name: str, kind: KeyKind = "weight", blend: float = DEFAULT_BLEND) -> Key:
        """A partner's key; the same for the same name and kind.

        Raises:
            ConfigError: the name is empty, or no text.
        """
        if not name:
            raise ConfigError("a partner needs a name: sdb key partner NAME --owner FILE")
        if not is_text(name):
            raise ConfigError(f"partner {name!r}: not text that can be written as UTF-8; give another name")
        return Key(derive(self.secret, f"partner/{kind}/{name}"), blend, kind, name)

    def save(self, path: Path | str, overwrite: bool = False, passphrase: str | None = None) -> None:
        """Write the owner's file, mode 0600, encrypted where a passphrase is given.

        Raises:
            KeyFileError: the file exists and `overwrite` is false.
        """
        write_secret(Path(path), {"kind": "owner", "id": self.id}, self.secret, passphrase, overwrite)

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Self:
        """Read an owner's file.

        Raises:
            KeyFileError: missing, readable by others, damaged or altered, or not an owner's.
        """
        header, secret = read_secret(Path(path), passphrase)
        if header.get("kind") != "owner":
            raise KeyFileError(f"{path} is a partner's key; the owner's file is needed here")
        try:
            owner = cls(secret)
        except ConfigError as error:
            raise KeyFileError(f"{path}: damaged key file ({error}); restore it from a copy") from None
        check_id(path, header, owner.id)
        return owner


def check_id(path: Path | str, header: dict[str, Any], own: str) -> None:
    """Refuse a file whose header does not belong to its secret.

    Raises:
        KeyFileError: the two differ.
    """
    if header.get("id") != own:
        raise KeyFileError(
            f"{path}: secret and header do not belong together; the file was altered: restore a copy"
        )
