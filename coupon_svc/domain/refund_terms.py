"""What a batch says about refunds of its coupons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

DEFAULT_DAYS = 30


class UsedCouponPolicy(IntEnum):
    """What becomes of a single-use coupon that is refunded whole; numbers as in the contract."""

    VOID = 1
    REISSUE_ORIGINAL_EXPIRY = 2
    REISSUE_FRESH_EXPIRY = 3


class ExpiredCardPolicy(IntEnum):
    """What a refund does to a gift card whose period is over; numbers as in the contract."""

    CREDIT_AND_EXTEND = 1
    CREDIT_ONLY = 2
    REFUSE = 3


@dataclass(frozen=True, slots=True)
class RefundTerms:
    """The two policies. Days are counted in the batch's zone, from the day after the refund."""

    used_coupon: UsedCouponPolicy = UsedCouponPolicy.VOID
    fresh_days: int = DEFAULT_DAYS
    expired_card: ExpiredCardPolicy = ExpiredCardPolicy.CREDIT_AND_EXTEND
    extend_days: int = DEFAULT_DAYS

    @classmethod
    def of_numbers(cls, stored: dict[str, int]) -> RefundTerms:
        """From the numbers of the stored form."""
        return cls(
            UsedCouponPolicy(stored["used_coupon"]),
            stored["fresh_days"],
            ExpiredCardPolicy(stored["expired_card"]),
            stored["extend_days"],
        )
