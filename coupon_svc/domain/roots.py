"""Signed roots: what is said about the heads of a shard's chains, so that rewriting them later shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from coupon_svc.domain.times import format_utc

# What the first root of a shard follows, and the Merkle root of no leaves.
NO_ROOT = bytes(32)
_SIGNED_AS = b"couponmesh audit root v1\0"
_FORMAT = 1


@dataclass(frozen=True, slots=True, order=True)
class Leaf:
    """The head of one chain when the root was made."""

    coupon_id: str
    seq: int
    hash: bytes

    def encoded(self) -> bytes:
        """What the tree is made of; the id has a fixed length of 19 digits."""
        return self.coupon_id.encode() + self.seq.to_bytes(8, "big") + self.hash


@dataclass(frozen=True, slots=True)
class Root:
    """What is signed: the heads that changed since the root before, and that root.

    Attributes:
        shard: The logical shard.
        number: Counts a shard's roots, from 1.
        time_ms: When it was made.
        leaf_count: How many chains had changed.
        merkle_root: Of their heads, by coupon id.
        previous: `digest` of the root before; NO_ROOT for the first.
    """

    shard: int
    number: int
    time_ms: int
    leaf_count: int
    merkle_root: bytes
    previous: bytes

    @classmethod
    def over(cls, shard: int, leaves: Sequence[Leaf], *, after: Root | None, time_ms: int) -> Self:
        """The root that follows `after`."""
        return cls(
            shard=shard,
            number=1 if after is None else after.number + 1,
            time_ms=time_ms,
            leaf_count=len(leaves),
            merkle_root=merkle_root(leaves),
            previous=NO_ROOT if after is None else after.digest(),
        )

    def statement(self) -> bytes:
        """The bytes that are signed; the same root always gives the same."""
        return _SIGNED_AS + json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()

    def digest(self) -> bytes:
        """SHA-256 of the statement: how the next root names this one."""
        return hashlib.sha256(self.statement()).digest()

    def to_dict(self) -> dict[str, Any]:
        """The members of the statement, for JSON."""
        return {
            "format": _FORMAT,
            "shard": self.shard,
            "number": self.number,
            "time_ms": self.time_ms,
            "time": format_utc(self.time_ms),
            "leaf_count": self.leaf_count,
            "merkle_root": self.merkle_root.hex(),
            "previous": self.previous.hex(),
        }

    @classmethod
    def from_dict(cls, stated: dict[str, Any]) -> Self:
        """Reads what `to_dict` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            root = cls(
                shard=int(stated["shard"]),
                number=int(stated["number"]),
                time_ms=int(stated["time_ms"]),
                leaf_count=int(stated["leaf_count"]),
                merkle_root=bytes.fromhex(stated["merkle_root"]),
                previous=bytes.fromhex(stated["previous"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no root: {error}") from error
        if root.to_dict() != stated:
            raise ValueError("the root has members that do not agree")
        return root


@dataclass(frozen=True, slots=True)
class SignedRoot:
    """A root with its signature."""

    root: Root
    key_id: str
    signature: bytes


def merkle_root(leaves: Iterable[Leaf]) -> bytes:
    """The Merkle tree hash of RFC 6962 §2.1 over the leaves by coupon id; NO_ROOT over none."""
    level = [hashlib.sha256(b"\0" + leaf.encoded()).digest() for leaf in sorted(leaves)]
    if not level:
        return NO_ROOT
    while len(level) > 1:
        paired = [
            hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        # An odd one out goes up as it is, which is how the RFC's split at a power of two comes out.
        level = paired + level[len(paired) * 2 :]
    return level[0]
