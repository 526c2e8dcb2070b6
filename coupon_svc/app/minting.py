"""Makes the first rows of a coupon: the coupon and its opening journal row."""

from __future__ import annotations

from dataclasses import dataclass

from coupon_svc.app.ports import Binding, CodeBook, StoredCoupon
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow, Origin, Sign, sealed
from coupon_svc.domain.terms import Terms


@dataclass(frozen=True, slots=True)
class Minted:
    """A new coupon and the journal row that opens its chain."""

    stored: StoredCoupon
    journal: JournalRow


class Mint:
    """Makes coupons of given terms."""

    def __init__(self, codes: CodeBook, sign: Sign) -> None:
        """`codes` seals codes, `sign` signs journal rows."""
        self._codes = codes
        self._sign = sign

    def mint(
        self,
        *,
        coupon_id: str,
        shard: int,
        user_id: int,
        batch_id: str,
        terms_id: str,
        terms: Terms,
        code: str,
        kind: JournalKind,
        origin: Origin,
        transaction_id: str | None = None,
        original_transaction_id: str | None = None,
    ) -> Minted:
        """A coupon owned by `user_id`, or unactivated when that is 0.

        One that stands in for a refunded coupon names the refund and what that gave back.
        """
        status = CouponStatus.ACTIVATED if user_id else CouponStatus.UNACTIVATED
        opening = sealed(
            JournalRow(
                shard=shard,
                coupon_id=coupon_id,
                seq=1,
                kind=kind,
                status_before=0,
                status_after=status,
                user_id=user_id,
                origin=origin,
                amount_minor=terms.opening_balance_minor,
                balance_after_minor=terms.opening_balance_minor,
                transaction_id=transaction_id,
                original_transaction_id=original_transaction_id,
                prev_hash=FIRST_HASH,
            ),
            self._sign,
        )
        coupon = Coupon(
            coupon_id=coupon_id,
            shard=shard,
            user_id=user_id,
            batch_id=batch_id,
            terms_id=terms_id,
            status=status,
            balance_minor=terms.opening_balance_minor,
            expires_at_ms=terms.expiry_ms(origin.time_ms if user_id else None),
            version=1,
            last_hash=opening.hash,
        )
        return Minted(StoredCoupon(coupon, self._codes.seal(code, coupon_id), None, origin.time_ms), opening)


def journal_step(
    stored: StoredCoupon, kind: JournalKind, status: CouponStatus, origin: Origin, sign: Sign, *, binding: Binding
) -> JournalRow:
    """The next journal row of an unactivated coupon that is being bound to `binding`."""
    coupon = stored.coupon
    return sealed(
        JournalRow(
            shard=coupon.shard,
            coupon_id=coupon.coupon_id,
            seq=coupon.version + 1,
            kind=kind,
            status_before=coupon.status,
            status_after=status,
            user_id=binding.user_id,
            origin=origin,
            balance_after_minor=coupon.balance_minor,
            prev_hash=coupon.last_hash,
        ),
        sign,
    )
