"""Authenticated encryption of what travels inside a box: AES-256-GCM, bound to the box and to the purpose."""

from __future__ import annotations

import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
            f"{what} does not open: it was altered, or belongs to another box or key; restore the box from a copy"
        ) from None


def _canonical(context: dict[str, Any]) -> bytes:
    return json_text(context, sort_keys=True, separators=(",", ":")).encode()
