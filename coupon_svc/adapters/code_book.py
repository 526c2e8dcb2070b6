"""Codes behind the `CodeBook` port: meshkit's code format and keyring."""

from __future__ import annotations

from collections.abc import Sequence

from meshkit.codes import CodeFormat, normalise
from meshkit.crypto import Keyring, bind
from meshkit.errors import MeshError

_PURPOSE = "coupon-code"


class KeyedCodeBook:
    """Implements `CodeBook`."""

    def __init__(self, code_format: CodeFormat, keyring: Keyring) -> None:
        """`keyring` holds the keys of HMACs and ciphertexts; `code_format` that of the permutation."""
        self._format = code_format
        self._keyring = keyring

    def encode(self, shard: int, counter: int, length: int) -> str:
        """See `CodeBook.encode`."""
        return self._format.encode(shard, counter, length)

    def normalise(self, text: str) -> str:
        """See `CodeBook.normalise`."""
        normal = normalise(text)
        if not (normal.isascii() and normal.isalnum()):
            raise MeshError("CODE_MISTYPED")
        return normal

    def native_shard(self, normal: str) -> int | None:
        """See `CodeBook.native_shard`."""
        try:
            return self._format.parse(normal).shard
        except MeshError:
            return None

    def mac(self, normal: str) -> tuple[str, bytes]:
        """See `CodeBook.mac`."""
        return self._keyring.mac(_PURPOSE, normal.encode())

    def macs(self, normal: str) -> Sequence[tuple[str, bytes]]:
        """See `CodeBook.macs`."""
        return self._keyring.macs(_PURPOSE, normal.encode())

    def seal(self, code: str, coupon_id: str) -> bytes:
        """See `CodeBook.seal`."""
        return self._keyring.seal(code.encode(), bind("coupon_info", coupon_id, "code_sealed"))

    def open(self, sealed: bytes, coupon_id: str) -> str:
        """See `CodeBook.open`."""
        return self._keyring.open(sealed, bind("coupon_info", coupon_id, "code_sealed")).decode()
