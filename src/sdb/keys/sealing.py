"""Authenticated encryption of what travels inside a box or lies in a ledger: AES-256-GCM, bound to the purpose."""

from __future__ import annotations

import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sdb.errors import CheckpointError
from sdb.runtime import json_text

NONCE_BYTES = 12


def seal(secret: bytes, data: bytes, context: dict[str, Any]) -> bytes:
    """Nonce and ciphertext of `data`; `context` is authenticated with it and must be the same on opening."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(secret).encrypt(nonce, data, _canonical(context))


def unseal(secret: bytes, sealed: bytes, context: dict[str, Any], what: str) -> bytes:
    """What was sealed.

    Raises:
        CheckpointError: another secret, another context, or altered bytes; which of them cannot be told.
    """
    try:
        return AESGCM(secret).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _canonical(context))
    except (InvalidTag, ValueError):
        raise CheckpointError(
            f"{what} does not open: it was altered, or belongs to another box or key; restore it from a copy"
        ) from None


def _canonical(context: dict[str, Any]) -> bytes:
    return json_text(context, sort_keys=True, separators=(",", ":")).encode()


def public_of(private: bytes) -> bytes:
    """The public key of a private key, X25519; 32 bytes both."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seal_to(public: bytes, data: bytes, context: dict[str, Any]) -> bytes:
    """Encrypt `data` for the holder of a private key alone: an ephemeral public key, then `seal`'s bytes.

    Args:
        public: an X25519 public key, 32 bytes.
        data: what is encrypted.
        context: authenticated with it.

    Source: the sealed boxes of ECIES, with X25519 (RFC 7748), HKDF-SHA256 and AES-256-GCM.
    """
    ephemeral = X25519PrivateKey.generate()
    own = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    return own + seal(_shared_secret(shared, own, public), data, context)


def unseal_with(private: bytes, sealed: bytes, context: dict[str, Any], what: str) -> bytes:
    """What `seal_to` encrypted to the public key of `private`, an X25519 private key of 32 bytes.

    Raises:
        CheckpointError: of another key or context, or altered.
    """
    own = X25519PrivateKey.from_private_bytes(private)
    public, ephemeral = own.public_key().public_bytes_raw(), sealed[:32]
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(ephemeral))
    except ValueError:  # too short, or a point that gives nothing away
        shared = b""
    return unseal(_shared_secret(shared, ephemeral, public), sealed[32:], context, what)


def _shared_secret(shared: bytes, ephemeral: bytes, public: bytes) -> bytes:
    info = b"sdb/1/sealed to" + ephemeral + public
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared)
