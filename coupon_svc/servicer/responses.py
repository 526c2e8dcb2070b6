"""From domain values to protobuf messages, the same for every service."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from coupon_svc.app.ports import Consumption, TransactionRow
from coupon_svc.app.reading import CouponView
from coupon_svc.app.recall_ports import Recall
from coupon_svc.domain.account import Account
from coupon_svc.domain.batch import Batch, BlockScope, Caps, Stake
from coupon_svc.domain.hours import time_text
from coupon_svc.domain.journal import ACCOUNT_KINDS, BATCH_KINDS, JournalRow
from coupon_svc.domain.money import CURRENCY
from coupon_svc.domain.refund_terms import RefundTerms
from coupon_svc.domain.spending import LineShare
from coupon_svc.domain.terms import CashVoucher, Discount, GiftCard, Kind, Stacking, Terms, Threshold
from coupon_svc.domain.times import NEVER_MS
from couponmesh.coupon.v1 import (
    batch_pb2,
    cashier_service_pb2,
    coupon_pb2,
    coupon_service_pb2,
    freeze_pb2,
    refund_terms_pb2,
    reservation_pb2,
)
from couponmesh.type.v1 import money_pb2


def money(amount_minor: int) -> money_pb2.Money:
    """Fen as Money."""
    return money_pb2.Money(currency_code=CURRENCY, amount_minor=amount_minor)


def timestamp(instant_ms: int) -> Timestamp:
    """Milliseconds since 1970 UTC as a Timestamp."""
    return Timestamp(seconds=instant_ms // 1000, nanos=instant_ms % 1000 * 1_000_000)


def terms_message(terms: Terms) -> batch_pb2.BatchTerms:
    """Terms as BatchTerms."""
    message = batch_pb2.BatchTerms(
        time_zone=terms.time_zone,
        merchant_ids=sorted(terms.merchant_ids),
        days_after_claim=terms.days_after_claim,
        categories=sorted(terms.categories),
        skus=sorted(terms.skus),
        usable_hours=[
            batch_pb2.UsableHours(
                weekdays=sorted(each.days), start=time_text(each.start_minute), end=time_text(each.end_minute)
            )
            for each in terms.hours
        ],
    )
    if not isinstance(terms.kind, GiftCard):
        message.stacking.CopyFrom(_stacking_message(terms.stacking))
    if terms.expires_at_ms is not None:
        message.expires_at.CopyFrom(timestamp(terms.expires_at_ms))
    if terms.valid_from_ms is not None:
        message.valid_from.CopyFrom(timestamp(terms.valid_from_ms))
    if terms.refund != RefundTerms():
        message.refund.used_coupon = refund_terms_pb2.UsedCouponPolicy.ValueType(int(terms.refund.used_coupon))
        message.refund.fresh_days = terms.refund.fresh_days
        message.refund.expired_card = refund_terms_pb2.ExpiredCardPolicy.ValueType(int(terms.refund.expired_card))
        message.refund.extend_days = terms.refund.extend_days
    _put_kind(message, terms.kind)
    return message


def _put_kind(message: batch_pb2.BatchTerms, kind: Kind) -> None:
    if isinstance(kind, Discount):
        message.discount.discount_rate = f"{kind.rate_e4 / 10_000:.4f}".rstrip("0")
        if kind.max_deduction_minor is not None:
            message.discount.max_deduction.CopyFrom(money(kind.max_deduction_minor))
        if kind.min_amount_minor:
            message.discount.min_amount.CopyFrom(money(kind.min_amount_minor))
    elif isinstance(kind, Threshold):
        message.threshold.min_amount.CopyFrom(money(kind.min_amount_minor))
        message.threshold.reduce.CopyFrom(money(kind.reduce_minor))
    elif isinstance(kind, CashVoucher):
        message.cash_voucher.face_value.CopyFrom(money(kind.face_value_minor))
        if kind.min_amount_minor:
            message.cash_voucher.min_amount.CopyFrom(money(kind.min_amount_minor))
    else:
        message.gift_card.balance.CopyFrom(money(kind.balance_minor))


def _stacking_message(stacking: Stacking) -> batch_pb2.Stacking:
    return batch_pb2.Stacking(
        level=batch_pb2.CouponLevel.ValueType(int(stacking.level)),
        base=batch_pb2.DeductionBase.ValueType(int(stacking.base)),
        stacking_group=stacking.group,
        exclusive=stacking.exclusive,
    )


def block_scope_from(scope: batch_pb2.BlockScope.ValueType) -> BlockScope:
    """What a request blocks; the contract has a number of its own for nothing, since 0 stands for a field left out."""
    return BlockScope.NONE if scope == batch_pb2.BLOCK_SCOPE_NONE else BlockScope(scope)


def _block_scope(scope: int) -> batch_pb2.BlockScope.ValueType:
    return batch_pb2.BlockScope.ValueType(int(scope) or batch_pb2.BLOCK_SCOPE_NONE)


def batch_message(batch: Batch, terms: Terms, recall: Recall | None = None) -> batch_pb2.Batch:
    """A batch as Batch."""
    message = batch_pb2.Batch(
        batch_id=batch.batch_id,
        name=batch.name,
        terms=terms_message(terms),
        total_quantity=batch.total_quantity,
        issued_quantity=batch.issued_quantity,
        code_length=batch.code_length,
        block_scope=_block_scope(batch.block_scope),
        create_time=timestamp(batch.create_time_ms),
    )
    if batch.caps:
        message.caps.CopyFrom(_caps_message(batch.caps))
    if recall is not None:
        message.recall.CopyFrom(_recall_message(batch, recall))
    return message


def stake_message(stake: Stake) -> batch_pb2.RecallStake:
    """A stake as RecallStake."""
    return batch_pb2.RecallStake(coupons=stake.coupons, money=money(stake.money_minor), unbounded=stake.unbounded)


def _caps_message(caps: Caps) -> batch_pb2.BatchCaps:
    message = batch_pb2.BatchCaps(uses_per_user=caps.uses_per_user)
    if caps.spend_cap_minor is not None:
        message.spend_cap.CopyFrom(money(caps.spend_cap_minor))
    return message


def _recall_message(batch: Batch, recall: Recall) -> batch_pb2.BatchRecall:
    message = batch_pb2.BatchRecall(
        state=batch_pb2.BatchRecallState.ValueType(int(batch.recall)),
        reason=recall.reason,
        stake=stake_message(recall.stake),
        voided=stake_message(recall.voided),
        start_time=timestamp(recall.origin.time_ms),
    )
    if recall.finish_time_ms is not None:
        message.finish_time.CopyFrom(timestamp(recall.finish_time_ms))
    return message


def account_message(account: Account) -> freeze_pb2.Account:
    """An account as Account."""
    return freeze_pb2.Account(
        user_id=account.user_id,
        status=freeze_pb2.AccountStatus.ValueType(int(account.status)),
        reason=account.reason,
        version=account.head.seq,
        update_time=timestamp(account.update_time_ms),
    )


def coupon_message(view: CouponView) -> coupon_pb2.Coupon:
    """A coupon as Coupon."""
    coupon = view.stored.coupon
    message = coupon_pb2.Coupon(
        coupon_id=coupon.coupon_id,
        user_id=coupon.user_id,
        batch_id=coupon.batch_id,
        status=coupon_pb2.CouponStatus.ValueType(int(view.status)),
        balance=money(coupon.balance_minor),
        terms=terms_message(view.terms),
        masked_code=view.masked_code,
        version=coupon.version,
        create_time=timestamp(view.stored.create_time_ms),
        held=money(coupon.held_minor),
        available=money(coupon.available_minor),
    )
    if coupon.hold_expires_at_ms is not None:
        message.held_until.CopyFrom(timestamp(coupon.hold_expires_at_ms))
    if coupon.expires_at_ms < NEVER_MS:
        message.expires_at.CopyFrom(timestamp(coupon.expires_at_ms))
    return message


def transaction_message(
    row: TransactionRow, *, refunded_minor: int = 0, refundable_minor: int | None = None
) -> coupon_pb2.Transaction:
    """A consumption as Transaction; a new one was not refunded and can be, whole."""
    if refundable_minor is None:
        refundable_minor = row.deduction_minor if row.reverse_time_ms is None else 0
    message = coupon_pb2.Transaction(
        transaction_id=row.transaction_id,
        coupon_id=row.coupon_id,
        user_id=row.user_id,
        merchant_id=row.merchant_id,
        order_id=row.order_id,
        amount=money(row.amount_minor),
        deduction=money(row.deduction_minor),
        payable=money(row.amount_minor - row.deduction_minor),
        balance_after=money(row.balance_after_minor),
        consume_time=timestamp(row.consume_time_ms),
        request_id=row.request_id,
        settlement_held=row.settlement_held,
        reservation_id=row.reservation_id,
        refunded=money(refunded_minor),
        refundable=money(refundable_minor),
    )
    if row.reverse_time_ms is not None:
        message.reverse_time.CopyFrom(timestamp(row.reverse_time_ms))
    return message


def audit_event_message(row: JournalRow) -> coupon_pb2.AuditEvent:
    """A journal row as AuditEvent."""
    of_coupon = row.kind not in BATCH_KINDS | ACCOUNT_KINDS
    return coupon_pb2.AuditEvent(
        coupon_id=row.coupon_id,
        seq=row.seq,
        kind=coupon_pb2.AuditKind.ValueType(int(row.kind)),
        status_before=coupon_pb2.CouponStatus.ValueType(row.status_before if of_coupon else 0),
        status_after=coupon_pb2.CouponStatus.ValueType(row.status_after if of_coupon else 0),
        block_scope=_block_scope(row.status_after) if row.kind in BATCH_KINDS else batch_pb2.BLOCK_SCOPE_UNSPECIFIED,
        reason=row.reason,
        order_amount=money(row.order_amount_minor),
        deduction=money(row.deduction_minor),
        balance_after=money(row.balance_after_minor),
        transaction_id=row.transaction_id or "",
        caller=row.origin.caller,
        request_id=row.origin.request_id,
        trace_id=row.origin.trace_id,
        event_time=timestamp(row.origin.time_ms),
        prev_hash=row.prev_hash.hex(),
        hash=row.hash.hex(),
        original_transaction_id=row.original_transaction_id or "",
    )


def consume_coupon_response(consumption: Consumption) -> bytes:
    """The serialised reply of CouponService.ConsumeCoupon."""
    return coupon_service_pb2.ConsumeCouponResponse(
        transaction=transaction_message(consumption.transaction),
        status=coupon_pb2.CouponStatus.ValueType(int(consumption.status)),
        lines=line_deductions(consumption.lines),
    ).SerializeToString(deterministic=True)


def line_deductions(shares: Iterable[LineShare]) -> list[reservation_pb2.LineDeduction]:
    """What is taken off each line as LineDeduction."""
    return [reservation_pb2.LineDeduction(line_id=each.line_id, deduction=money(each.amount_minor)) for each in shares]


def cashier_consume_response(consumption: Consumption) -> bytes:
    """The serialised reply of CashierService.Consume."""
    row = consumption.transaction
    return cashier_service_pb2.ConsumeResponse(
        transaction_id=row.transaction_id,
        coupon_id=row.coupon_id,
        deduction=money(row.deduction_minor),
        payable=money(row.amount_minor - row.deduction_minor),
        balance_after=money(row.balance_after_minor),
        status=coupon_pb2.CouponStatus.ValueType(int(consumption.status)),
    ).SerializeToString(deterministic=True)
