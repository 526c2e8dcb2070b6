"""Collects what one transaction does to locked coupons: each step a journal row, all steps of a coupon one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.ports import VersionedUpdate
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.journal import JournalKind, JournalRow, Origin, Sign, sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What a journal row says besides the coupon itself; amounts are fen."""

    kind: JournalKind
    origin: Origin
    merchant_id: str = ""
    order_id: str = ""
    order_amount_minor: int = 0
    deduction_minor: int = 0
    transaction_id: str | None = None
    original_transaction_id: str | None = None
    settlement_held: bool = False


class CouponSteps:
    """Steps of locked coupons, in the order in which they are taken."""

    def __init__(self, locked: Mapping[str, Coupon], sign: Sign) -> None:
        """`locked` are the coupons as their rows hold them."""
        self._locked = locked
        self._current = dict(locked)
        self._sign = sign
        self.rows: list[JournalRow] = []

    def take(self, after: Coupon, facts: StepFacts) -> Coupon:
        """Moves a coupon on to `after` and gives it with its new version and chain head."""
        before = self._current[after.coupon_id]
        row = sealed(
            JournalRow(
                shard=before.shard,
                coupon_id=before.coupon_id,
                seq=before.version + 1,
                kind=facts.kind,
                status_before=before.status,
                status_after=after.status,
                user_id=before.user_id,
                origin=facts.origin,
                amount_minor=after.balance_minor - before.balance_minor,
                order_amount_minor=facts.order_amount_minor,
                deduction_minor=facts.deduction_minor,
                balance_after_minor=after.balance_minor,
                merchant_id=facts.merchant_id,
                order_id=facts.order_id,
                transaction_id=facts.transaction_id,
                original_transaction_id=facts.original_transaction_id,
                settlement_held=facts.settlement_held,
                prev_hash=before.last_hash,
            ),
            self._sign,
        )
        moved = replace(after, version=row.seq, last_hash=row.hash)
        self._current[after.coupon_id] = moved
        self.rows.append(row)
        return moved

    def current(self, coupon_id: str) -> Coupon:
        """A coupon after the steps so far."""
        return self._current[coupon_id]

    @property
    def updates(self) -> Sequence[VersionedUpdate]:
        """One update per coupon that took a step."""
        touched = {row.coupon_id for row in self.rows}
        return [VersionedUpdate(self._locked[coupon_id], self._current[coupon_id]) for coupon_id in sorted(touched)]
