"""How rows of the coupon databases become domain objects, and back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from coupon_svc.app.ports import Binding, IndexedCode, StoredCoupon, TransactionRow
from coupon_svc.domain.batch import Batch, BlockScope, Caps, RecallState
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.hold import Hold, HoldState
from coupon_svc.domain.journal import ChainHead, JournalKind, JournalRow, Origin
from coupon_svc.domain.order_lines import lines_from_json, lines_to_json
from coupon_svc.domain.reservation import Reservation, ReservationState
from coupon_svc.domain.times import month_of, utc_datetime

Row = Sequence[Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def instant_ms(moment: datetime) -> int:
    """A DATETIME(3) as milliseconds since 1970 UTC."""
    return (moment - _EPOCH) // _MILLISECOND


def yuan(amount_minor: int) -> Decimal:
    """Fen as the DECIMAL(12,2) yuan of coupon_info.balance, exactly."""
    return Decimal(amount_minor).scaleb(-2)


def coupon(row: Row) -> Coupon:
    """From lock_coupons."""
    return Coupon(
        coupon_id=row[0],
        shard=row[1],
        user_id=row[2],
        batch_id=row[3],
        terms_id=row[4],
        status=CouponStatus(row[5]),
        balance_minor=int(row[6]),
        expires_at_ms=instant_ms(row[7]),
        version=row[8],
        last_hash=row[9],
        held_minor=int(row[10]),
        holds=row[11],
        hold_expires_at_ms=None if row[12] is None else instant_ms(row[12]),
    )


def stored_coupon(row: Row) -> StoredCoupon:
    """From lock_stored, get_coupons and list_coupons."""
    binding = None if row[14] is None else Binding(row[14], row[15], row[16])
    return StoredCoupon(coupon(row), row[13], binding, instant_ms(row[17]))


def coupon_values(stored: StoredCoupon) -> dict[str, object]:
    """For insert_coupons."""
    of = stored.coupon
    return {
        "shard": of.shard,
        "coupon_id": of.coupon_id,
        "user_id": of.user_id,
        "balance": yuan(of.balance_minor),
        "status": int(of.status),
        "batch_id": of.batch_id,
        "terms_id": of.terms_id,
        "expires_at": utc_datetime(of.expires_at_ms),
        "version": of.version,
        "last_hash": of.last_hash,
        "code_sealed": stored.code_sealed,
        "create_time": utc_datetime(stored.create_time_ms),
    }


def batch(row: Row) -> Batch:
    """From get_batch and lock_batch."""
    return Batch(
        batch_id=row[0],
        terms_id=row[1],
        name=row[2],
        total_quantity=row[3],
        issued_quantity=row[4],
        code_length=row[5],
        block_scope=BlockScope(row[6]),
        create_time_ms=instant_ms(row[7]),
        caps=Caps(uses_per_user=row[8], spend_cap_minor=row[9]),
        recall=RecallState(row[10]),
        head=ChainHead(row[11], row[12]),
    )


def indexed_code(row: Row) -> IndexedCode:
    """From find_codes."""
    return IndexedCode(*row)


def transaction(row: Row) -> TransactionRow:
    """From get_transaction and its siblings."""
    return TransactionRow(
        shard=row[0],
        transaction_id=row[1],
        coupon_id=row[2],
        user_id=row[3],
        merchant_id=row[4],
        order_id=row[5],
        amount_minor=row[6],
        deduction_minor=row[7],
        balance_after_minor=row[8],
        settlement_held=bool(row[9]),
        caller=row[10],
        request_id=row[11],
        consume_time_ms=instant_ms(row[12]),
        reservation_id=row[13],
        reverse_time_ms=None if row[14] is None else instant_ms(row[14]),
    )


def transaction_values(row: TransactionRow) -> dict[str, object]:
    """For insert_transactions."""
    return {
        "shard": row.shard,
        "transaction_id": row.transaction_id,
        "coupon_id": row.coupon_id,
        "user_id": row.user_id,
        "merchant_id": row.merchant_id,
        "order_id": row.order_id,
        "amount_minor": row.amount_minor,
        "deduction_minor": row.deduction_minor,
        "balance_after_minor": row.balance_after_minor,
        "settlement_held": row.settlement_held,
        "caller": row.caller,
        "request_id": row.request_id,
        "consume_time": utc_datetime(row.consume_time_ms),
        "reservation_id": row.reservation_id,
    }


def hold(row: Row) -> Hold:
    """From unreleased_holds and holds_of."""
    return Hold(
        shard=row[0],
        caller=row[1],
        reservation_id=row[2],
        position=row[3],
        coupon_id=row[4],
        state=HoldState(row[5]),
        base_minor=row[6],
        deduction_minor=row[7],
        held_minor=row[8],
        expires_at_ms=instant_ms(row[9]),
        transaction_id=row[10],
    )


def hold_values(of: Hold) -> dict[str, object]:
    """For insert_holds."""
    return {
        "shard": of.shard,
        "caller": of.caller,
        "reservation_id": of.reservation_id,
        "position": of.position,
        "coupon_id": of.coupon_id,
        "state": int(of.state),
        "base_minor": of.base_minor,
        "deduction_minor": of.deduction_minor,
        "held_minor": of.held_minor,
        "expire_time": utc_datetime(of.expires_at_ms),
        "transaction_id": of.transaction_id,
    }


def reservation(row: Row) -> Reservation:
    """From get_reservation and lock_reservations."""
    return Reservation(
        shard=row[0],
        caller=row[1],
        reservation_id=row[2],
        state=ReservationState(row[3]),
        user_id=row[4],
        merchant_id=row[5],
        order_id=row[6],
        amount_minor=row[7],
        lines=lines_from_json(row[8]),
        settlement_held=bool(row[9]),
        reserve_hash=row[10],
        reserve_response=row[11],
        confirm_hash=row[12],
        confirm_response=row[13],
        expires_at_ms=instant_ms(row[14]),
        create_time_ms=instant_ms(row[15]),
        update_time_ms=instant_ms(row[16]),
    )


def reservation_values(of: Reservation) -> dict[str, object]:
    """For insert_reservation and update_reservation."""
    return {
        "shard": of.shard,
        "caller": of.caller,
        "reservation_id": of.reservation_id,
        "state": int(of.state),
        "user_id": of.user_id,
        "merchant_id": of.merchant_id,
        "order_id": of.order_id,
        "amount_minor": of.amount_minor,
        "order_lines": lines_to_json(of.lines),
        "settlement_held": of.settlement_held,
        "reserve_hash": of.reserve_hash,
        "reserve_response": of.reserve_response,
        "confirm_hash": of.confirm_hash,
        "confirm_response": of.confirm_response,
        "expire_time": utc_datetime(of.expires_at_ms),
        "create_time": utc_datetime(of.create_time_ms),
        "update_time": utc_datetime(of.update_time_ms),
    }


def journal(row: Row) -> JournalRow:
    """From journal."""
    return JournalRow(
        shard=row[0],
        coupon_id=row[1],
        seq=row[2],
        kind=JournalKind(row[3]),
        status_before=row[4],
        status_after=row[5],
        user_id=row[6],
        merchant_id=row[7],
        order_id=row[8],
        amount_minor=row[9],
        order_amount_minor=row[10],
        deduction_minor=row[11],
        balance_after_minor=row[12],
        transaction_id=row[13],
        original_transaction_id=row[14],
        settlement_held=bool(row[15]),
        lock_fence=row[16],
        origin=Origin(caller=row[17], request_id=row[18], trace_id=row[19], time_ms=instant_ms(row[20])),
        key_id=row[21],
        prev_hash=row[22],
        hash=row[23],
        reason=row[24],
    )


def journal_values(row: JournalRow) -> dict[str, object]:
    """For insert_journal."""
    return {
        "shard": row.shard,
        "coupon_id": row.coupon_id,
        "seq": row.seq,
        "month": month_of(row.origin.time_ms),
        "kind": int(row.kind),
        "status_before": int(row.status_before),
        "status_after": int(row.status_after),
        "user_id": row.user_id,
        "merchant_id": row.merchant_id,
        "order_id": row.order_id,
        "amount_minor": row.amount_minor,
        "order_amount_minor": row.order_amount_minor,
        "deduction_minor": row.deduction_minor,
        "balance_after_minor": row.balance_after_minor,
        "transaction_id": row.transaction_id,
        "original_transaction_id": row.original_transaction_id,
        "settlement_held": row.settlement_held,
        "lock_fence": row.lock_fence,
        "caller": row.origin.caller,
        "request_id": row.origin.request_id,
        "trace_id": row.origin.trace_id,
        "event_time": utc_datetime(row.origin.time_ms),
        "key_id": row.key_id,
        "prev_hash": row.prev_hash,
        "hash": row.hash,
        "reason": row.reason,
    }
