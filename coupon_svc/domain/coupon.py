"""One coupon: its states and the steps between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from meshkit.errors import MeshError


class CouponStatus(IntEnum):
    """Where a coupon stands; the numbers of coupon_info.status."""

    UNACTIVATED = 1
    USED = 2
    ACTIVATED = 3
    FROZEN = 4
    EXPIRED = 5
    REFUNDED = 6


# Every allowed step. REFUNDED → ACTIVATED is the last part of refunding an emptied gift card; USED → ACTIVATED undoes a
# consumption that ReverseTransaction takes back; an expired card comes back only when a refund extends it.
TRANSITIONS: frozenset[tuple[CouponStatus, CouponStatus]] = frozenset(
    {
        (CouponStatus.UNACTIVATED, CouponStatus.ACTIVATED),
        (CouponStatus.UNACTIVATED, CouponStatus.EXPIRED),
        (CouponStatus.ACTIVATED, CouponStatus.FROZEN),
        (CouponStatus.FROZEN, CouponStatus.ACTIVATED),
        (CouponStatus.FROZEN, CouponStatus.EXPIRED),
        (CouponStatus.ACTIVATED, CouponStatus.USED),
        (CouponStatus.ACTIVATED, CouponStatus.EXPIRED),
        (CouponStatus.USED, CouponStatus.REFUNDED),
        (CouponStatus.REFUNDED, CouponStatus.ACTIVATED),
        (CouponStatus.USED, CouponStatus.ACTIVATED),
        (CouponStatus.EXPIRED, CouponStatus.ACTIVATED),
        (CouponStatus.EXPIRED, CouponStatus.FROZEN),
    }
)


@dataclass(frozen=True, slots=True)
class Coupon:
    """A coupon as its row holds it. `balance_minor` and `held_minor` are zero for all but gift cards.

    `holds` counts reservations that hold it, `held_minor` is what they hold of the balance, `hold_expires_at_ms` when
    the first of them runs out. Stored figures include holds that ran out since; `domain.hold.counted` leaves those out.
    """

    coupon_id: str
    shard: int
    user_id: int
    batch_id: str
    terms_id: str
    status: CouponStatus
    balance_minor: int
    expires_at_ms: int
    version: int
    last_hash: bytes
    held_minor: int = 0
    holds: int = 0
    hold_expires_at_ms: int | None = None

    @property
    def available_minor(self) -> int:
        """What can be spent of the balance."""
        return self.balance_minor - self.held_minor

    def has_stale_hold(self, now_ms: int) -> bool:
        """Whether a hold ran out that the stored figures still include."""
        return self.hold_expires_at_ms is not None and now_ms >= self.hold_expires_at_ms

    def status_at(self, now_ms: int) -> CouponStatus:
        """The status with the period taken into account: expired to the second, swept or not."""
        if now_ms >= self.expires_at_ms and self.status in (
            CouponStatus.UNACTIVATED,
            CouponStatus.ACTIVATED,
            CouponStatus.FROZEN,
        ):
            return CouponStatus.EXPIRED
        return self.status


def move(coupon: Coupon, status: CouponStatus) -> Coupon:
    """The coupon in another status.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED for a step that the state machine does not have.
    """
    if (coupon.status, status) not in TRANSITIONS:
        raise MeshError("STATUS_TRANSITION_REFUSED", **{"from": coupon.status.name, "to": status.name})
    return replace(coupon, status=status)


def freeze(coupon: Coupon, *, now_ms: int) -> Coupon:
    """The coupon, frozen.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED unless it is activated and not expired.
    """
    return move(replace(coupon, status=coupon.status_at(now_ms)), CouponStatus.FROZEN)


def unfreeze(coupon: Coupon, *, now_ms: int) -> Coupon:
    """The coupon as it was before it was frozen: nothing but its status changed then.

    Raises:
        MeshError: STATUS_TRANSITION_REFUSED unless it is frozen and not expired.
    """
    status = coupon.status_at(now_ms)
    if status is not CouponStatus.FROZEN:
        raise MeshError("STATUS_TRANSITION_REFUSED", **{"from": status.name, "to": CouponStatus.ACTIVATED.name})
    return move(coupon, CouponStatus.ACTIVATED)


def end(coupon: Coupon) -> Coupon:
    """The coupon expired or voided; what a gift card holds stays in its balance, for a refund to come."""
    return move(coupon, CouponStatus.EXPIRED)
