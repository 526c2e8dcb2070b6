"""Holds: what reservations keep of a coupon for an order that is not paid for yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from coupon_svc.domain.coupon import Coupon


class HoldState(IntEnum):
    """Where a hold stands; the numbers of coupon_hold.state."""

    HELD = 1
    CONSUMED = 2
    RELEASED = 3


@dataclass(frozen=True, slots=True)
class Hold:
    """What one reservation holds of one coupon, in fen.

    `base_minor` is what was left to pay before the coupon, `deduction_minor` what it takes off (once consumed: took),
    `held_minor` what is held of a gift card's balance; it is zero for other kinds, which are held as a whole.
    """

    shard: int
    caller: str
    reservation_id: str
    position: int
    coupon_id: str
    state: HoldState
    base_minor: int
    deduction_minor: int
    held_minor: int
    expires_at_ms: int
    transaction_id: str | None = None

    @property
    def effect_minor(self) -> int:
        """What it takes off the order: nothing once it was given up."""
        return 0 if self.state is HoldState.RELEASED else self.deduction_minor

    def is_live(self, now_ms: int) -> bool:
        """Whether it blocks others: not yet ended, and before its deadline."""
        return self.state is HoldState.HELD and now_ms < self.expires_at_ms

    def belongs_to(self, caller: str, reservation_id: str) -> bool:
        """Whether this reservation made it."""
        return (self.caller, self.reservation_id) == (caller, reservation_id)


def recounted(coupon: Coupon, holds: Iterable[Hold]) -> Coupon:
    """The coupon with the figures of exactly these holds of it."""
    mine = [hold for hold in holds if hold.coupon_id == coupon.coupon_id]
    return replace(
        coupon,
        held_minor=sum(hold.held_minor for hold in mine),
        holds=len(mine),
        hold_expires_at_ms=min((hold.expires_at_ms for hold in mine), default=None),
    )


def counted(coupon: Coupon, holds: Sequence[Hold], now_ms: int) -> Coupon:
    """The coupon as others may use it now: only live holds count."""
    return recounted(coupon, [hold for hold in holds if hold.is_live(now_ms)])
