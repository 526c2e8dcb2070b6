"""Which of the 128 logical shards a thing lives in."""

from __future__ import annotations

import zlib

SHARDS = 128


def user_shard(user_id: int) -> int:
    """The shard of a user's coupons."""
    return user_id % SHARDS


def id_shard(identifier: str) -> int:
    """The shard that a coupon, batch or terms id carries in its lowest 7 bits; a transaction id carries it too."""
    return int(identifier[-19:]) % SHARDS


def home_shard(caller: str) -> int:
    """Where requests of a caller that concern no single user are recorded, and where its batches live."""
    return zlib.crc32(caller.encode()) % SHARDS


def spread_shard(*parts: str) -> int:
    """A shard picked by the parts: the same parts always give the same shard."""
    return zlib.crc32("\0".join(parts).encode()) % SHARDS


def mac_shard(mac: bytes) -> int:
    """The shard of an imported code: its HMAC as a number, modulo 128."""
    return mac[-1] % SHARDS
