"""Owns the format of native coupon codes: base32, shard, check symbol and a keyed permutation of a counter."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Final

from meshkit.errors import MeshError

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32 symbols in the order of their values."""

LENGTHS: Final = (8, 12)
"""Code lengths that can be issued, in symbols, hyphens not counted."""

SHARDS: Final = 128
_SHARD_BITS: Final = 7
_SYMBOL_BITS: Final = 5
_GROUP: Final = 4
# Small Feistel domains need more than the six rounds of a large one; NIST SP 800-38G uses ten for FF1.
_ROUNDS: Final = 10
_MIN_KEY_BYTES: Final = 32

_VALUES: Final = {symbol: value for value, symbol in enumerate(ALPHABET)}
_CROCKFORD: Final = str.maketrans(
    {lower: lower.upper() for lower in "abcdefghijklmnopqrstuvwxyz"}
    | {"I": "1", "i": "1", "L": "1", "l": "1", "O": "0", "o": "0", "-": None, " ": None}
)


def _double(value: int) -> int:
    """Multiplies by x in GF(32) with the primitive polynomial x^5 + x^2 + 1."""
    value <<= 1
    return value ^ 0b100101 if value & 0b100000 else value


def _weights() -> tuple[int, ...]:
    """Powers of the generator: distinct and not zero, since its order is 31."""
    weights = [1]
    while len(weights) < max(LENGTHS):
        weights.append(_double(weights[-1]))
    return tuple(weights)


def _product(left: int, right: int) -> int:
    """Multiplies in GF(32)."""
    product = 0
    while right:
        if right & 1:
            product ^= left
        left = _double(left)
        right >>= 1
    return product


# _PRODUCTS[position][value] is the weight of the position times the value. The check symbol stands last, with weight 1.
_PRODUCTS: Final = tuple(tuple(_product(weight, value) for value in range(32)) for weight in _weights())


def _checksum(values: list[int]) -> int:
    """Weighted sum in GF(32) of symbol values whose last one has weight 1."""
    total = 0
    for products, value in zip(_PRODUCTS, reversed(values), strict=False):
        total ^= products[value]
    return total


def normalise(text: str) -> str:
    """Brings a typed code into the form that is stored and compared.

    Letters become upper-case, hyphens and blanks go, I and L read as 1, O reads as 0 (Crockford's rules). It is
    all that is done to codes of another system, which carry neither shard nor check symbol.

    Args:
        text: A code as typed.

    Returns:
        The code without hyphens; characters outside the alphabet stay as they are.
    """
    return text.translate(_CROCKFORD)


def display(body: str) -> str:
    """Returns a normalised code in groups of four, joined by hyphens."""
    return "-".join(body[start : start + _GROUP] for start in range(0, len(body), _GROUP))


@dataclass(frozen=True, slots=True)
class ParsedCode:
    """A native code whose check symbol was right.

    Attributes:
        body: The normalised code, upper-case and without hyphens. It is a bearer secret and stays out of the repr.
        shard: The shard that holds the code's index row, 0 to 127.
    """

    body: str = field(repr=False)
    shard: int


class CodeFormat:
    """Turns (shard, counter) into a code that can't be guessed, and reads the shard back without a query.

    A code of 8 symbols holds 40 bits: 7 of shard, 28 of body and 5 of check symbol; one of 12 holds 7, 48 and 5. The
    body is a keyed Feistel permutation of the counter with the shard and the length as tweak, so codes are unique by
    construction. The shard bits are XORed with a keyed function of the body, so the codes of one shard do not start
    alike.

    The check symbol is keyless. It catches every substitution of one symbol, every exchange of two different symbols
    (neighbours or not) and all but one in 31 of the substitutions of two symbols; of arbitrary other errors it misses
    one in 32.
    """

    __slots__ = ("_mask_key", "_round_key")

    def __init__(self, key: bytes) -> None:
        """Derives the keys of the permutation.

        Args:
            key: At least 32 secret bytes. Changing it makes new codes collide with old ones, so it never changes.

        Raises:
            ValueError: The key is too short.
        """
        if len(key) < _MIN_KEY_BYTES:
            raise ValueError(f"a code key has at least {_MIN_KEY_BYTES} bytes")
        self._round_key = hmac.digest(key, b"couponmesh.code.round", hashlib.sha256)
        self._mask_key = hmac.digest(key, b"couponmesh.code.shard", hashlib.sha256)

    def __repr__(self) -> str:
        return "CodeFormat(<key>)"

    @staticmethod
    def counter_space(length: int) -> int:
        """How many codes of a length one shard has: counters run from 0 to one below it.

        Raises:
            ValueError: The length is neither 8 nor 12.
        """
        return 1 << _body_bits(length)

    def encode(self, shard: int, counter: int, length: int) -> str:
        """Makes the code of a counter.

        Args:
            shard: 0 to 127.
            counter: The shard's next counter, never used before with this length.
            length: 8 or 12 symbols.

        Returns:
            The code in groups of four, such as `7XK9-B2T4`.

        Raises:
            MeshError: CODE_SPACE_EXHAUSTED, the counter is past the last code of the shard.
            ValueError: The shard, the counter or the length does not exist.
        """
        bits = _body_bits(length)
        if not 0 <= shard < SHARDS or counter < 0:
            raise ValueError("the shard is 0 to 127 and the counter is not negative")
        if counter >> bits:
            raise MeshError("CODE_SPACE_EXHAUSTED", code_length=str(length))
        body = self._permute(shard, counter, length)
        packed = (shard ^ self._mask(body, length)) << bits | body
        values = [packed >> shift & 31 for shift in range(bits + _SHARD_BITS - _SYMBOL_BITS, -1, -_SYMBOL_BITS)]
        # The check symbol makes the weighted sum zero; in a field of characteristic two a value is its own negative.
        values.append(_checksum([*values, 0]))
        return display("".join(ALPHABET[value] for value in values))

    def parse(self, text: str) -> ParsedCode:
        """Reads a native code and its shard, without a query.

        Args:
            text: A code as typed; case, hyphens and the usual confusions do not matter.

        Returns:
            The normalised code and its shard.

        Raises:
            MeshError: CODE_MISTYPED, it has another length, a foreign character or a wrong check symbol.
        """
        body_text, shard, _ = self._read(text)
        return ParsedCode(body=body_text, shard=shard)

    def counter_of(self, text: str) -> int:
        """Returns the counter that a native code was made of.

        Raises:
            MeshError: CODE_MISTYPED, as for parse.
        """
        body_text, shard, body = self._read(text)
        return self._permute(shard, body, len(body_text), inverse=True)

    def _read(self, text: str) -> tuple[str, int, int]:
        normalised = normalise(text)
        if len(normalised) not in LENGTHS:
            raise MeshError("CODE_MISTYPED")
        try:
            values = [_VALUES[symbol] for symbol in normalised]
        except KeyError:
            # The offending character is part of a secret, so it does not travel in the error's chain.
            raise MeshError("CODE_MISTYPED") from None
        if _checksum(values):
            raise MeshError("CODE_MISTYPED")
        packed = 0
        for value in values[:-1]:
            packed = packed << _SYMBOL_BITS | value
        bits = _body_bits(len(normalised))
        body = packed & ((1 << bits) - 1)
        return normalised, packed >> bits ^ self._mask(body, len(normalised)), body

    def _mask(self, body: int, length: int) -> int:
        return hmac.digest(self._mask_key, bytes((length,)) + body.to_bytes(6, "big"), hashlib.sha256)[0] % SHARDS

    def _permute(self, shard: int, number: int, length: int, *, inverse: bool = False) -> int:
        """A balanced Feistel network over the body's bits, or its inverse."""
        half_bits = _body_bits(length) // 2
        mask = (1 << half_bits) - 1
        left, right = number >> half_bits, number & mask
        key = self._round_key
        # Walking back is the same network with the halves exchanged and the rounds reversed.
        if inverse:
            left, right = right, left
        for step in reversed(range(_ROUNDS)) if inverse else range(_ROUNDS):
            tweak = bytes((length, shard, step)) + right.to_bytes(3, "big")
            digest = hmac.digest(key, tweak, hashlib.sha256)
            left, right = right, left ^ int.from_bytes(digest[:4], "big") & mask
        if inverse:
            left, right = right, left
        return left << half_bits | right


def _body_bits(length: int) -> int:
    if length not in LENGTHS:
        raise ValueError("a native code has 8 or 12 symbols")
    return length * _SYMBOL_BITS - _SYMBOL_BITS - _SHARD_BITS
