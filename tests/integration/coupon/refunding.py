"""Requests of refunds as a till sends them, orders that were paid in several ways, and cards past their period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind, JournalRow, Origin, sealed
from couponmesh.coupon.v1 import batch_pb2, coupon_pb2, coupon_service_pb2, refund_pb2, refund_terms_pb2
from meshkit.queries import load_queries
from meshkit.sql_literals import render_insert
from tests.integration.coupon.orders import Order, line
from tests.integration.coupon.world import Caller, OwnedCoupon, World, gift_card, request_id, threshold, yuan

_QUERIES = load_queries("coupon_svc")
PAST = "2020-01-01 00:00:00"


def refund(transaction_id: str, amount: str = "", request: str = "") -> refund_pb2.RefundTransactionRequest:
    """RefundTransaction of so many yuan, or of all that is left."""
    return refund_pb2.RefundTransactionRequest(
        request_id=request or request_id(), transaction_id=transaction_id, amount=yuan(amount) if amount else None
    )


def refund_order(till: Caller, order_id: str, request: str = "", **lines: str) -> refund_pb2.RefundOrderRequest:
    """RefundOrder of lines with so many yuan each, or all that is left of them; without lines of the whole order."""
    return refund_pb2.RefundOrderRequest(
        request_id=request or request_id(),
        merchant_id=till.merchant_id,
        order_id=order_id,
        lines=[
            refund_pb2.OrderLineRefund(line_id=line_id, amount=yuan(amount) if amount else None)
            for line_id, amount in lines.items()
        ],
    )


def with_refund(terms: batch_pb2.BatchTerms, **refund_terms: Any) -> batch_pb2.BatchTerms:
    terms.refund.CopyFrom(refund_terms_pb2.RefundTerms(**refund_terms))
    return terms


async def spent(world: World, coupon: OwnedCoupon, amount: str, till: Caller, order_id: str = "") -> str:
    """Consumes, and gives the transaction_id."""
    return (await world.one.consume(coupon, amount, till, order_id=order_id)).transaction.transaction_id


async def transaction(
    world: World, transaction_id: str, till: Caller
) -> tuple[coupon_pb2.Transaction, Sequence[refund_pb2.Refund]]:
    reply = await world.two.call(coupon_service_pb2.GetTransactionRequest(transaction_id=transaction_id), till)
    return reply.transaction, reply.refunds


def fen(*amounts: Any) -> list[int]:
    """The amounts of Money messages."""
    return [money.amount_minor for money in amounts]


@dataclass(frozen=True)
class PaidOrder:
    """An order of 100.00 + 33.34 + 16.66 that a threshold coupon (20.00), a gift card (60.01) and cash paid for."""

    till: Caller
    order_id: str
    coupon: OwnedCoupon
    card: OwnedCoupon
    coupon_transaction: str
    card_transaction: str


PRICES = {"a": 10_000, "b": 3_334, "c": 1_666}
PAID_MINOR = sum(PRICES.values())


async def paid_order(
    world: World, shard: int | None = None, terms: batch_pb2.BatchTerms | None = None, balance: str = "60.01"
) -> PaidOrder:
    """Reserves and confirms it; the card is empty afterwards unless it had more."""
    user_id, till = world.user(shard), world.cashier()
    (coupon,) = await world.issue(await world.batch(terms or threshold("100.00", "20.00")), user_id)
    (card,) = await world.issue(await world.batch(gift_card(balance)), user_id)
    order = Order(
        till,
        [coupon, card],
        "150.00",
        parts={card.coupon_id: "60.01"},
        lines=[line("a", "100.00"), line("b", "33.34"), line("c", "16.66")],
    )
    await world.one.call(order.reserve(), till)
    confirmed = await world.one.call(order.confirm(), till)
    by_coupon = {row.coupon_id: row.transaction_id for row in confirmed.transactions}
    return PaidOrder(till, f"order-{order.name}", coupon, card, by_coupon[coupon.coupon_id], by_coupon[card.coupon_id])


# --- past their period ---


def let_expire(world: World, coupon: OwnedCoupon) -> None:
    """Ends a coupon's period; its status stays as it is until a sweep comes by."""
    world.books.change(
        coupon.shard, "UPDATE coupon_info SET expires_at = %s WHERE coupon_id = %s", PAST, coupon.coupon_id
    )


def sweep(world: World, coupon: OwnedCoupon, kind: JournalKind = JournalKind.EXPIRED) -> None:
    """Makes a coupon EXPIRED with a row in its journal, as the sweep and the recall of a batch do."""
    step(world, coupon, kind, CouponStatus.EXPIRED)


def step(world: World, coupon: OwnedCoupon, kind: JournalKind, status: CouponStatus) -> None:
    """Changes a coupon's status with a row in its journal."""
    books = world.books
    before = books.journal(coupon.coupon_id)[-1]
    row = sealed(
        JournalRow(
            shard=before.shard,
            coupon_id=before.coupon_id,
            seq=before.seq + 1,
            kind=kind,
            status_before=books.coupon(coupon.coupon_id).status,
            status_after=status,
            user_id=before.user_id,
            origin=Origin(
                caller="sweep",
                request_id="sweep",
                trace_id="0" * 32,
                time_ms=int(datetime.now(UTC).timestamp()) * 1000,
            ),
            balance_after_minor=before.balance_after_minor,
            prev_hash=before.hash,
        ),
        lambda data: books._audit.mac("coupon-journal", data),
    )
    with books.transaction(coupon.shard) as tx:
        tx.run(render_insert(_QUERIES["insert_journal"], [mysql_rows.journal_values(row)]))
        tx.run(
            "INSERT INTO outbox (shard, coupon_id, seq, month, create_time) VALUES (%s, %s, %s, 202601, NOW(3))",
            row.shard,
            row.coupon_id,
            row.seq,
        )
        tx.run(
            "UPDATE coupon_info SET status = %s, version = %s, last_hash = %s WHERE shard = %s AND coupon_id = %s",
            int(status),
            row.seq,
            row.hash,
            row.shard,
            row.coupon_id,
        )
        tx.commit()


def contra(journal: Sequence[JournalRow], transaction_id: str) -> list[JournalRow]:
    """The rows that say what was given back of a transaction."""
    return [row for row in journal if row.original_transaction_id == transaction_id]


def told(rows: Sequence[JournalRow]) -> list[tuple[JournalKind, CouponStatus, CouponStatus, int]]:
    """(kind, status before, status after, change of the balance) of each row."""
    return [
        (row.kind, CouponStatus(row.status_before), CouponStatus(row.status_after), row.amount_minor) for row in rows
    ]
