"""Counts holds as they stand now, at no cost for coupons of which none ran out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.hold import Hold, counted


class HoldReader(Protocol):
    """What reads holds: a `Unit` under the coupons' locks, or a `Store`."""

    async def unreleased_holds(self, keys: set[tuple[int, str]]) -> Sequence[Hold]:
        """See `Unit.unreleased_holds`."""


async def without_stale_holds(reader: HoldReader, coupons: Mapping[str, Coupon], now_ms: int) -> dict[str, Coupon]:
    """The coupons with live holds only; holds that ran out block nobody, released or not.

    The figures in a coupon's row are right until the first of its holds runs out, so only then are the holds read.
    """
    stale = {coupon_id: coupon for coupon_id, coupon in coupons.items() if coupon.has_stale_hold(now_ms)}
    found = dict(coupons)
    if stale:
        holds = await reader.unreleased_holds({(coupon.shard, coupon_id) for coupon_id, coupon in stale.items()})
        found.update({coupon_id: counted(coupon, holds, now_ms) for coupon_id, coupon in stale.items()})
    return found
