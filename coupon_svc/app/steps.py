"""One step of one locked coupon: what is stored and the journal row that records it."""

from __future__ import annotations

from coupon_svc.app.ports import VersionedUpdate
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.journal import JournalKind, JournalRow, Origin, Sign, sealed


def step(
    before: Coupon, after: Coupon, kind: JournalKind, origin: Origin, sign: Sign, *, reason: str = ""
) -> tuple[VersionedUpdate, JournalRow]:
    """A change of status that moves no money."""
    row = sealed(
        JournalRow(
            shard=before.shard,
            coupon_id=before.coupon_id,
            seq=before.version + 1,
            kind=kind,
            status_before=before.status,
            status_after=after.status,
            user_id=before.user_id,
            origin=origin,
            balance_after_minor=after.balance_minor,
            reason=reason,
            prev_hash=before.last_hash,
        ),
        sign,
    )
    return VersionedUpdate.follow(before, after, row), row
