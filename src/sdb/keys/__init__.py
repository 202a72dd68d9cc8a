"""Secrets: an owner's, its partners' keys, their files, sealing under them. What they open is in box."""

from sdb.keys.keys import DEFAULT_BLEND, SECRET_BYTES, Key, KeyKind, Owner, check_secret, derive

__all__ = ["DEFAULT_BLEND", "SECRET_BYTES", "Key", "KeyKind", "Owner", "check_secret", "derive"]
