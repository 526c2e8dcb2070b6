"""Verifies audit trails as an auditor does, and rewrites journals as somebody with the database does."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from coupon_svc.domain.journal import FIRST_HASH, JournalRow, sealed
from couponmesh.coupon.v1.audit_pb2 import (
    AuditFinding,
    AuditFindingKind,
    AuditProgress,
    VerifyAuditTrailRequest,
    VerifyAuditTrailResponse,
)
from tests.integration.coupon.books import Books
from tests.integration.coupon.world import Caller, CouponProcess, OwnedCoupon, World

AUDITOR = Caller("audit-desk", ("auditor",))
_RPC = "/couponmesh.coupon.v1.CouponService/VerifyAuditTrail"


@dataclass(frozen=True)
class Verdict:
    """What a whole verification found, over as many streams as it took."""

    findings: Sequence[AuditFinding]
    progress: Sequence[AuditProgress]
    streams: int

    @property
    def kinds(self) -> list[str]:
        return [AuditFindingKind.Name(each.kind).removeprefix("AUDIT_FINDING_KIND_") for each in self.findings]

    def total(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.progress)

    def of(self, *coupon_ids: str) -> Verdict:
        """What was found about some coupons; other tests leave theirs in the same shards."""
        return replace(self, findings=[each for each in self.findings if each.coupon_id in coupon_ids])


async def verify(process: CouponProcess, *, timeout_s: float = 30.0, **scope: Any) -> Verdict:
    """Verifies a scope to its end."""
    findings: list[AuditFinding] = []
    progress: list[AuditProgress] = []
    token, streams = "", 0
    while True:
        streams += 1
        replies = await stream(process, VerifyAuditTrailRequest(resume_token=token, **scope), timeout_s=timeout_s)
        findings += [finding for reply in replies for finding in reply.findings]
        progress.append(replies[-1].progress)
        token = replies[-1].resume_token
        assert replies[-1].complete == (not token)
        assert not any(reply.complete for reply in replies[:-1])
        if not token:
            return Verdict(findings, progress, streams)


async def stream(
    process: CouponProcess, request: VerifyAuditTrailRequest, *, timeout_s: float = 30.0, by: Caller = AUDITOR
) -> list[VerifyAuditTrailResponse]:
    call = process.channel.unary_stream(
        _RPC,
        request_serializer=VerifyAuditTrailRequest.SerializeToString,
        response_deserializer=VerifyAuditTrailResponse.FromString,
    )
    return [reply async for reply in call(request, metadata=by.metadata, timeout=timeout_s)]


def differences(finding: AuditFinding) -> dict[str, tuple[str, str]]:
    """Field → (stored, expected)."""
    return {each.field: (each.stored, each.expected) for each in finding.differences}


async def spent_card(world: World, *, spends: int = 4, shard: int | None = None) -> OwnedCoupon:
    """A gift card of 100.00 from which 1.00, 2.00, … were taken: a chain of one row more than spends."""
    card = await world.card(shard=shard)
    till = world.cashier()
    for number in range(1, spends + 1):
        await world.one.consume(
            card, f"{number}.00", till, f"spend-{number}-{uuid.uuid4().hex[:8]}", order_id=f"o-{number}"
        )
    return card


def recompute(books: Books, coupon_id: str, *, from_seq: int, **changes: Any) -> list[JournalRow]:
    """What somebody with the audit key can do: changes a row, and chains it and all after it again, head included."""
    rows = books.journal(coupon_id)
    before = FIRST_HASH
    shard = rows[0].shard
    for position, row in enumerate(rows):
        if row.seq >= from_seq:
            altered = replace(row, **changes) if row.seq == from_seq else row
            rows[position] = sealed(
                replace(altered, prev_hash=before), lambda data: books._audit.mac("coupon-journal", data)
            )
            again = rows[position]
            books.change(
                shard,
                "UPDATE coupon_journal SET merchant_id = %s, amount_minor = %s, balance_after_minor = %s, "
                "prev_hash = %s, hash = %s WHERE shard = %s AND coupon_id = %s AND seq = %s",
                again.merchant_id, again.amount_minor, again.balance_after_minor, again.prev_hash, again.hash,
                shard, coupon_id, row.seq,
            )  # fmt: skip
        before = rows[position].hash
    books.change(
        shard, "UPDATE coupon_info SET last_hash = %s WHERE shard = %s AND coupon_id = %s", before, shard, coupon_id
    )
    return rows
