"""What each of the four kinds of coupon takes, over every way of consuming, and what is written about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2, coupon_pb2
from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import money_pb2
from tests.integration.coupon.world import (
    Caller,
    OwnedCoupon,
    World,
    cash_voucher,
    discount,
    gift_card,
    refusal,
    request_id,
    threshold,
    yuan,
)


@dataclass(frozen=True)
class Consumed:
    """What a reply says, whichever RPC gave it."""

    transaction_id: str
    coupon_id: str
    deduction: money_pb2.Money
    payable: money_pb2.Money
    balance_after: money_pb2.Money
    status: int


async def by_id(world: World, coupon: OwnedCoupon, amount: str, till: Caller) -> Consumed:
    reply = await world.one.consume(coupon, amount, till, order_id="order-7")
    return _of(reply)


async def by_code(world: World, coupon: OwnedCoupon, amount: str, till: Caller) -> Consumed:
    request = coupons.ConsumeCouponRequest(
        request_id=request_id(),
        code=coupon.code,
        merchant_id=till.merchant_id,
        amount=yuan(amount),
        order_id="order-7",
    )
    return _of(await world.two.call(request, till))


async def at_the_cashier(world: World, coupon: OwnedCoupon, amount: str, till: Caller) -> Consumed:
    request = cashiers.ConsumeRequest(
        coupon_code=coupon.code, merchant_id=till.merchant_id, amount=float(amount), order_id="order-7"
    )
    reply = await world.one.call(request, till)
    return Consumed(
        reply.transaction_id, reply.coupon_id, reply.deduction, reply.payable, reply.balance_after, reply.status
    )


def _of(reply: coupons.ConsumeCouponResponse) -> Consumed:
    made = reply.transaction
    return Consumed(made.transaction_id, made.coupon_id, made.deduction, made.payable, made.balance_after, reply.status)


Way = Callable[[World, OwnedCoupon, str, Caller], Awaitable[Consumed]]
WAYS: list[Way] = [by_id, by_code, at_the_cashier]


@dataclass(frozen=True)
class Case:
    """One order, and what a coupon takes off it; amounts are yuan."""

    name: str
    terms: batch_pb2.BatchTerms
    amount: str
    deduction: str
    payable: str


SINGLE_USE = [
    Case("20 % off", discount("0.8"), "150.00", "30.00", "120.00"),
    Case("20 % off, below the cap", discount("0.8", cap="500.00"), "2499.95", "499.99", "1999.96"),
    Case("20 % off, at the cap", discount("0.8", cap="500.00"), "2500.00", "500.00", "2000.00"),
    Case("20 % off, above the cap", discount("0.8", cap="500.00"), "999999.99", "500.00", "999499.99"),
    Case("half a fen is rounded up", discount("0.9"), "0.05", "0.01", "0.04"),
    Case("one and a half fen are two", discount("0.85"), "0.10", "0.02", "0.08"),
    Case("a third, to the fen", discount("0.6667"), "100.01", "33.33", "66.68"),
    Case("nearly free", discount("0.0001"), "100.00", "99.99", "0.01"),
    Case("a cap of one fen", discount("0.5", cap="0.01"), "100.00", "0.01", "99.99"),
    Case("the largest order", discount("0.5"), "9999999999.99", "5000000000.00", "4999999999.99"),
    Case("20 off from 100 on", threshold("100.00", "20.00"), "150.00", "20.00", "130.00"),
    Case("20 off at 100", threshold("100.00", "20.00"), "100.00", "20.00", "80.00"),
    Case("a voucher on a larger order", cash_voucher("50.00"), "80.00", "50.00", "30.00"),
    Case("a voucher on an order of its value", cash_voucher("50.00"), "50.00", "50.00", "0.00"),
    Case("a voucher gives no change", cash_voucher("50.00"), "30.00", "30.00", "0.00"),
]


async def test_a_rate_that_rounds_to_nothing_leaves_the_coupon_as_it_is(world: World) -> None:
    coupon, till = await world.coupon(discount("0.6667")), world.cashier()
    for way in WAYS:
        # 0.3333 of one fen.
        assert (await refusal(way(world, coupon, "0.01", till))).reason == "COUPON_NO_EFFECT"
    assert world.books.coupon(coupon.coupon_id).status == CouponStatus.ACTIVATED


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("case", SINGLE_USE, ids=lambda case: case.name)
async def test_a_coupon_of_single_use_takes_what_its_terms_say_once(world: World, case: Case, way: Way) -> None:
    coupon, till = await world.coupon(case.terms), world.cashier()

    reply = await way(world, coupon, case.amount, till)

    assert reply.coupon_id == coupon.coupon_id
    assert (reply.deduction, reply.payable) == (yuan(case.deduction), yuan(case.payable))
    assert reply.balance_after == yuan("0.00")
    assert reply.status == coupon_pb2.COUPON_STATUS_USED
    row = world.books.coupon(coupon.coupon_id)
    assert (row.status, row.balance, row.version) == (CouponStatus.USED, Decimal("0.00"), 2)
    _, consumed = world.books.assert_agree(coupon.coupon_id)
    assert (consumed.kind, consumed.status_before, consumed.status_after) == (
        JournalKind.CONSUMED,
        CouponStatus.ACTIVATED,
        CouponStatus.USED,
    )
    assert consumed.amount_minor == 0, "only a gift card has a balance to change"
    assert (consumed.order_amount_minor, consumed.deduction_minor) == (minor(case.amount), minor(case.deduction))
    await assert_told_alike(world, coupon, till, case, reply)

    for again in WAYS:
        assert (await refusal(again(world, coupon, case.amount, till))).reason == "COUPON_USED"
    assert world.books.coupon(coupon.coupon_id).version == 2


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_gift_card_is_spent_in_parts_until_it_is_empty(world: World, way: Way) -> None:
    card, till = await world.coupon(gift_card("100.00")), world.cashier()
    parts = [("30.00", "70.00"), ("0.01", "69.99"), ("69.98", "0.01"), ("0.01", "0.00")]
    for amount, left in parts:
        assert (await refusal(way(world, card, "100.01", till))).reason == "BALANCE_INSUFFICIENT"

        reply = await way(world, card, amount, till)

        assert (reply.deduction, reply.payable, reply.balance_after) == (yuan(amount), yuan("0.00"), yuan(left))
        empty = left == "0.00"
        assert reply.status == (coupon_pb2.COUPON_STATUS_USED if empty else coupon_pb2.COUPON_STATUS_ACTIVATED)
        assert world.books.coupon(card.coupon_id).balance == Decimal(left)
        await assert_told_alike(world, card, till, Case("a part", gift_card(), amount, amount, "0.00"), reply)
    assert (await refusal(way(world, card, "0.01", till))).reason == "COUPON_USED"
    issued, *consumed = world.books.assert_agree(card.coupon_id)
    assert issued.amount_minor == 10_000
    assert [row.amount_minor for row in consumed] == [-minor(amount) for amount, _ in parts]
    assert [row.balance_after_minor for row in consumed] == [minor(left) for _, left in parts]
    assert [row.status_after for row in consumed] == [3, 3, 3, 2]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_the_largest_gift_card_is_spent_to_the_last_fen(world: World, way: Way) -> None:
    card, till = await world.coupon(gift_card("9999999999.99")), world.cashier()
    assert (await way(world, card, "9999999999.98", till)).balance_after == yuan("0.01")
    assert (await way(world, card, "0.01", till)).status == coupon_pb2.COUPON_STATUS_USED
    world.books.assert_agree(card.coupon_id)


@pytest.mark.parametrize(
    "case",
    [*SINGLE_USE, Case("a part of a gift card", gift_card("100.00"), "30.00", "30.00", "0.00")],
    ids=lambda case: case.name,
)
async def test_validating_says_what_consuming_would_take_and_takes_nothing(world: World, case: Case) -> None:
    coupon, till = await world.coupon(case.terms), world.cashier()
    asked: dict[str, Any] = {"merchant_id": till.merchant_id, "amount": yuan(case.amount)}
    with world.books.unchanged():
        for request in (
            coupons.ValidateCouponRequest(coupon_id=coupon.coupon_id, **asked),
            coupons.ValidateCouponRequest(code=coupon.code, **asked),
        ):
            reply = await world.two.call(request, till)
            assert reply.usable
            assert reply.refusal_reason == ""
            assert (reply.deduction, reply.payable) == (yuan(case.deduction), yuan(case.payable))


def minor(amount: str) -> int:
    return yuan(amount).amount_minor


async def assert_told_alike(world: World, coupon: OwnedCoupon, till: Caller, case: Case, reply: Consumed) -> None:
    """The transaction, by each of its names, the audit trail and the row all say what the reply said."""
    for key in (
        coupons.GetTransactionRequest(transaction_id=reply.transaction_id),
        coupons.GetTransactionRequest(
            merchant_order=coupons.MerchantOrder(merchant_id=till.merchant_id, order_id="order-7")
        ),
    ):
        told = (await world.two.call(key, till)).transaction
        assert told.transaction_id == reply.transaction_id
        assert (told.coupon_id, told.user_id, told.merchant_id) == (coupon.coupon_id, coupon.user_id, till.merchant_id)
        assert (told.amount, told.deduction, told.payable) == (
            yuan(case.amount),
            yuan(case.deduction),
            yuan(case.payable),
        )
        assert told.balance_after == reply.balance_after
        assert not told.settlement_held
    auditor = Caller("auditor", ("auditor",))
    trail = (await world.one.call(coupons.ListAuditEventsRequest(coupon_id=coupon.coupon_id), auditor)).events
    assert trail[-1].transaction_id == reply.transaction_id
    assert trail[-1].deduction == yuan(case.deduction)
    assert trail[-1].hash == world.books.coupon(coupon.coupon_id).last_hash.hex()
    shown = (await world.two.call(coupons.GetCouponRequest(coupon_id=coupon.coupon_id), world.operator())).coupon
    assert (shown.status, shown.balance) == (reply.status, reply.balance_after)
