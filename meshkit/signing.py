"""Owns signatures that outlive the databases: Ed25519 under rotating keys that lie outside of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_KEY_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,16}")
_SEED_BYTES: Final = 32


class SigningKeys:
    """Several private keys by id (RFC 8032 seeds), the first of them signs; all verify what they signed before."""

    __slots__ = ("_keys", "_primary", "_public")

    def __init__(self, seeds: Mapping[str, bytes]) -> None:
        """Takes seeds of 32 bytes by key id.

        Raises:
            ValueError: There is none, one has another length, or an id is not letters, digits, dots, hyphens and `_`.
        """
        if not seeds:
            raise ValueError("at least one signing key is needed")
        for key_id, seed in seeds.items():
            if not _KEY_ID.fullmatch(key_id):
                raise ValueError("a key id has 1 to 16 letters, digits, dots, hyphens or underscores")
            if len(seed) != _SEED_BYTES:
                raise ValueError(f"signing key {key_id} does not have {_SEED_BYTES} bytes")
        self._keys = {key_id: Ed25519PrivateKey.from_private_bytes(seed) for key_id, seed in seeds.items()}
        self._public = {key_id: key.public_key() for key_id, key in self._keys.items()}
        self._primary = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str) -> SigningKeys:
        """Reads `r2:<hex>,r1:<hex>`, the one that signs first.

        Raises:
            ValueError: The text has another form; the message holds nothing of the keys.
        """
        seeds: dict[str, bytes] = {}
        for position, entry in enumerate(text.split(","), start=1):
            key_id, colon, secret = entry.strip().partition(":")
            try:
                seed = bytes.fromhex(secret)
            except ValueError:
                # The original message would quote a part of the key.
                raise ValueError(f"signing key {position} is not hexadecimal") from None
            if not colon or key_id in seeds:
                raise ValueError(f"signing key {position} has no id of its own; the form is id:hex,id:hex")
            seeds[key_id] = seed
        return cls(seeds)

    def __repr__(self) -> str:
        return f"SigningKeys(primary={self._primary!r}, ids={list(self._keys)!r})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("signing keys are not pickled")

    def sign(self, data: bytes) -> tuple[str, bytes]:
        """The id of the key that signs, and its signature of 64 bytes."""
        return self._primary, self._keys[self._primary].sign(data)

    def verify(self, data: bytes, key_id: str, signature: bytes) -> bool:
        """Whether a live key of this id signed exactly these bytes."""
        public = self._public.get(key_id)
        return public is not None and is_signed(data, public, signature)

    def public_bytes(self, key_id: str) -> bytes:
        """The 32 bytes with which anybody can verify what a key signed."""
        return self._public[key_id].public_bytes_raw()


def is_signed(data: bytes, public: Ed25519PublicKey, signature: bytes) -> bool:
    """Whether the owner of a public key signed exactly these bytes."""
    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True
