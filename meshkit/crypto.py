"""Owns keyed hashes and field encryption under rotating keys."""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_MIN_KEY_BYTES: Final = 32
_FORMAT: Final = 1
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


class SealBroken(Exception):
    """A sealed value can't be opened: another row's, altered, cut, or sealed under a key that is not live."""


def bind(*parts: str | int) -> bytes:
    """Joins the names and keys of a row to associated data that no other row shares.

    Args:
        parts: Table, primary key, column, in a fixed order.

    Returns:
        Each part with its type and length before it, so ("a", "bc") and ("ab", "c") differ.
    """
    encoded = [(b"i" if isinstance(part, int) else b"s", str(part).encode()) for part in parts]
    return b"".join(kind + len(data).to_bytes(4, "big") + data for kind, data in encoded)


class Keyring:
    """Several secret keys by id, the first of them primary: new values use it, old values name theirs.

    To rotate, put a new key first; when every stored value has been written again, drop the old one. A purpose has
    subkeys of its own (HMAC-SHA256 of its name under the key), so a hash made for one purpose is worthless for another,
    and encryption never shares a key with a hash.
    """

    __slots__ = ("_aead", "_keys", "_primary", "_subkey")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """Takes live keys.

        Args:
            keys: Secrets of at least 32 bytes by key id; the first is the primary.

        Raises:
            ValueError: There is no key, a key is too short, or an id has other characters than letters, digits, `_.-`.
        """
        if not keys:
            raise ValueError("a keyring holds at least one key")
        for key_id, key in keys.items():
            if not _KEY_ID.fullmatch(key_id):
                raise ValueError("a key id has 1 to 32 letters, digits, dots, hyphens or underscores")
            if len(key) < _MIN_KEY_BYTES:
                raise ValueError(f"key {key_id} has fewer than {_MIN_KEY_BYTES} bytes")
        self._keys = dict(keys)
        self._primary = next(iter(self._keys))
        self._subkey = functools.lru_cache(maxsize=256)(self._derive)
        self._aead = {key_id: AESGCM(self._derive(key_id, "seal", "")) for key_id in self._keys}

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Reads `k2:<hex>,k1:<hex>`, primary first.

        Raises:
            ValueError: The text has another form; the message holds nothing of the secrets.
        """
        keys: dict[str, bytes] = {}
        for position, entry in enumerate(text.split(","), start=1):
            key_id, colon, secret = entry.strip().partition(":")
            try:
                key = bytes.fromhex(secret)
            except ValueError:
                # The original message would quote a part of the secret.
                raise ValueError(f"key {position} of the keyring is not hexadecimal") from None
            if not colon:
                raise ValueError(f"key {position} of the keyring has no id; the form is id:hex,id:hex")
            if key_id in keys:
                raise ValueError(f"key id {key_id} stands twice in the keyring")
            keys[key_id] = key
        return cls(keys)

    def __repr__(self) -> str:
        return f"Keyring(primary={self._primary!r}, ids={list(self._keys)!r})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a keyring is not pickled")

    @property
    def primary(self) -> str:
        """Id of the key that new values use."""
        return self._primary

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Ids of all live keys, primary first."""
        return tuple(self._keys)

    def mac(self, purpose: str, data: bytes) -> tuple[str, bytes]:
        """HMAC-SHA256 under the primary key.

        Args:
            purpose: What the hash is for; another purpose gives an unrelated hash.
            data: What is hashed.

        Returns:
            The key id and 32 bytes.
        """
        return self._primary, self._mac(self._primary, purpose, data)

    def macs(self, purpose: str, data: bytes) -> list[tuple[str, bytes]]:
        """HMAC-SHA256 under every live key, primary first, for lookups of values hashed before a rotation."""
        return [(key_id, self._mac(key_id, purpose, data)) for key_id in self._keys]

    def verify(self, purpose: str, data: bytes, key_id: str, mac: bytes) -> bool:
        """Tells in constant time whether a hash was made by mac() under that key; False if the key is not live."""
        return key_id in self._keys and hmac.compare_digest(self._mac(key_id, purpose, data), mac)

    def seal(self, plaintext: bytes, aad: bytes) -> bytes:
        """Encrypts with AES-256-GCM under the primary key.

        Nonces are random 96-bit numbers, so a key seals at most 2^32 values (NIST SP 800-38D §8.3).

        Args:
            plaintext: The secret field.
            aad: What the value is bound to, see bind().

        Returns:
            Format byte, length of the key id, key id, nonce, ciphertext with its tag.
        """
        header = bytes((_FORMAT, len(self._primary))) + self._primary.encode()
        nonce = os.urandom(_NONCE_BYTES)
        return header + nonce + self._aead[self._primary].encrypt(nonce, plaintext, header + aad)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        """Decrypts what seal() made under any live key.

        Raises:
            SealBroken: Altered, bound to something else, or its key is not live.
        """
        if len(sealed) < 2 or sealed[0] != _FORMAT:
            raise SealBroken("not a sealed value")
        header, rest = sealed[: 2 + sealed[1]], sealed[2 + sealed[1] :]
        aead = self._aead.get(header[2:].decode("ascii", "replace"))
        if aead is None or len(rest) < _NONCE_BYTES + _TAG_BYTES:
            raise SealBroken("the key of the sealed value is not live, or the value is cut")
        try:
            return aead.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header + aad)
        except InvalidTag as error:
            raise SealBroken("the sealed value was altered or belongs to another row") from error

    def _mac(self, key_id: str, purpose: str, data: bytes) -> bytes:
        return hmac.digest(self._subkey(key_id, "mac", purpose), data, hashlib.sha256)

    def _derive(self, key_id: str, use: str, purpose: str) -> bytes:
        return hmac.digest(self._keys[key_id], bind("couponmesh", use, purpose), hashlib.sha256)
