"""Refunds of transactions: what goes back to which coupon, and how its journal tells it."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import grpc
import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2, coupon_pb2, coupon_service_pb2, refund_pb2, refund_terms_pb2
from couponmesh.type.v1 import money_pb2
from tests.integration.coupon.orders import Order, assert_holds_agree, holding
from tests.integration.coupon.refunding import (
    contra,
    fen,
    let_expire,
    refund,
    spent,
    sweep,
    told,
    transaction,
    with_refund,
)
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

ACTIVATED, USED, FROZEN = CouponStatus.ACTIVATED, CouponStatus.USED, CouponStatus.FROZEN
EXPIRED, REFUNDED = CouponStatus.EXPIRED, CouponStatus.REFUNDED
DAY_S = 86_400


def freeze(world: World, coupon: OwnedCoupon) -> None:
    world.books.change(coupon.shard, "UPDATE coupon_info SET status = 4 WHERE coupon_id = %s", coupon.coupon_id)


# --- gift cards ---


async def test_a_gift_card_is_refunded_in_parts_until_all_it_paid_is_back(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till, "order-1")

    first = await world.one.call(refund(paid, "25.00"), till)
    second = await world.two.call(refund(paid, "34.99"), till)
    assert fen(first.refund.amount, first.refund.cash, first.coupon.balance) == [2_500, 0, 6_500]
    assert fen(second.transaction.refunded, second.transaction.refundable) == [5_999, 1]
    refused = await refusal(world.one.call(refund(paid, "0.02"), till))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REFUND_EXCEEDS_PAID")
    assert refused.metadata == {"of": paid, "amount": "0.02", "left": "0.01"}
    last = await world.two.call(refund(paid), till)
    assert fen(last.refund.amount, last.transaction.refunded, last.coupon.balance) == [1, 6_000, 10_000]
    assert (await refusal(world.one.call(refund(paid), till))).reason == "ALREADY_REFUNDED"
    assert (await refusal(world.one.call(refund(paid, "0.01"), till))).metadata["left"] == "0.00"

    journal = world.books.assert_agree(card.coupon_id)
    rows = contra(journal, paid)
    assert told(rows) == [(JournalKind.REFUNDED, ACTIVATED, ACTIVATED, amount) for amount in (2_500, 3_499, 1)]
    assert [row.deduction_minor for row in rows] == [row.order_amount_minor for row in rows] == [-2_500, -3_499, -1]
    assert [row.transaction_id for row in rows] == [each.refund.transaction_id for each in (first, second, last)], (
        "a refund has a transaction_id of its own"
    )
    assert {(row.merchant_id, row.order_id) for row in rows} == {(till.merchant_id, "order-1")}


async def test_a_transaction_shows_its_refunds_and_a_refund_is_found_by_its_own_id_and_request(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till, "order-1")
    shown, refunds = await transaction(world, paid, till)
    assert (fen(shown.refunded, shown.refundable), [*refunds]) == ([0, 6_000], [])

    first = (await world.one.call(refund(paid, "25.00", "back-1"), till)).refund
    second = (await world.one.call(refund(paid, "5.00"), till)).refund
    shown, refunds = await transaction(world, paid, till)
    assert fen(shown.refunded, shown.refundable) == [3_000, 3_000]
    assert [*refunds] == [first, second]
    assert first.coupons[0].original_transaction_id == paid
    assert first.coupons[0].coupon_id == card.coupon_id

    ask = coupon_service_pb2.GetTransactionRequest
    by_id = await world.two.call(ask(transaction_id=first.transaction_id), till)
    assert (by_id.HasField("transaction"), [*by_id.refunds]) == (False, [first])
    assert await world.two.call(ask(request_id="back-1"), till) == by_id
    for request in (ask(transaction_id=first.transaction_id), ask(request_id="back-1")):
        stranger = Caller(till.client_id, ("cashier",), merchant_id="another-merchant")
        assert (await refusal(world.two.call(request, stranger))).reason == "TRANSACTION_NOT_FOUND"


async def test_an_emptied_card_is_journaled_from_used_over_refunded_to_activated(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    await spent(world, card, "60.00", till)
    assert world.books.coupon(card.coupon_id).status == USED

    reply = await world.one.call(refund(paid, "15.00"), till)
    assert reply.coupon.status == coupon_pb2.COUPON_STATUS_ACTIVATED
    assert told(contra(world.books.assert_agree(card.coupon_id), paid)) == [
        (JournalKind.REFUNDED, USED, REFUNDED, 1_500),
        (JournalKind.REACTIVATED, REFUNDED, ACTIVATED, 0),
    ]
    # It can be spent again, and refunded again.
    await spent(world, card, "15.00", till)
    await world.one.call(refund(paid), till)
    assert world.books.coupon(card.coupon_id).balance * 100 == 2_500
    world.books.assert_agree(card.coupon_id)


async def test_a_frozen_card_is_credited_and_stays_frozen(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    freeze(world, card)
    reply = await world.one.call(refund(paid), till)
    assert (reply.coupon.status, fen(reply.coupon.balance)) == (coupon_pb2.COUPON_STATUS_FROZEN, [10_000])
    assert told(world.books.assert_agree(card.coupon_id)[-1:]) == [(JournalKind.REFUNDED, FROZEN, FROZEN, 4_000)]
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "COUPON_FROZEN"


async def test_the_card_of_a_frozen_account_is_credited_and_shows_as_frozen(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "100.00", till)
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    await world.one.call(refund(paid), till)
    shown = await world.two.call(coupon_service_pb2.GetCouponRequest(coupon_id=card.coupon_id), world.operator())
    assert (shown.coupon.status, fen(shown.coupon.balance)) == (coupon_pb2.COUPON_STATUS_FROZEN, [10_000])
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "ACCOUNT_FROZEN"
    world.books.assert_agree(card.coupon_id)


async def test_a_refund_to_a_card_that_is_held_for_another_order_leaves_the_hold(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    order = Order(till, [card], "50.00")
    await world.one.call(order.reserve(), till)
    await world.one.call(refund(paid, "30.00"), till)
    assert_holds_agree(world.books, card)
    assert holding(world.books, card).held_minor == 5_000
    await world.one.call(order.confirm(), till)
    assert world.books.coupon(card.coupon_id).balance * 100 == 4_000


async def test_what_was_reversed_is_not_refunded_and_what_was_refunded_is_not_reversed(world: World) -> None:
    card, till = await world.card(), world.cashier()
    for number, first in enumerate(("refund", "reverse")):
        paid = (await world.one.consume(card, "40.00", till, f"spend-{number}-{card.coupon_id}")).transaction
        order = Order(till, [card], "40.00")
        reverse = order.reverse(paid.request_id)
        if first == "refund":
            await world.one.call(refund(paid.transaction_id, "1.00"), till)
            assert (await refusal(world.one.call(reverse, till))).reason == "REVERSAL_REFUSED"
        else:
            await world.one.call(reverse, till)
            assert (await refusal(world.one.call(refund(paid.transaction_id), till))).reason == "ALREADY_REFUNDED"
            shown, _ = await transaction(world, paid.transaction_id, till)
            assert fen(shown.refunded, shown.refundable) == [0, 0]
    world.books.assert_agree(card.coupon_id)


# --- gift cards past their period ---


@pytest.mark.parametrize("swept", [True, False])
async def test_an_expired_card_is_credited_and_extended_by_thirty_days_unless_its_batch_says_otherwise(
    world: World, *, swept: bool
) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    let_expire(world, card)
    if swept:
        sweep(world, card)
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "COUPON_EXPIRED"

    reply = await world.one.call(refund(paid, "10.00"), till)
    assert reply.coupon.status == coupon_pb2.COUPON_STATUS_ACTIVATED
    assert 30 * DAY_S <= reply.coupon.expires_at.seconds - time.time() <= 31 * DAY_S
    before = EXPIRED if swept else ACTIVATED
    assert told(contra(world.books.assert_agree(card.coupon_id), paid)) == [
        (JournalKind.REFUNDED, before, before, 1_000),
        (JournalKind.EXTENDED, before, ACTIVATED, 0),
    ]
    await spent(world, card, "70.00", till)


async def test_an_emptied_card_past_its_period_is_extended_too(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "100.00", till)
    let_expire(world, card)
    await world.one.call(refund(paid), till)
    assert told(contra(world.books.assert_agree(card.coupon_id), paid)) == [
        (JournalKind.REFUNDED, USED, REFUNDED, 10_000),
        (JournalKind.REACTIVATED, REFUNDED, ACTIVATED, 0),
        (JournalKind.EXTENDED, ACTIVATED, ACTIVATED, 0),
    ]
    await spent(world, card, "100.00", till)


async def test_a_card_that_was_frozen_when_it_expired_is_frozen_again(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    freeze(world, card)
    let_expire(world, card)
    sweep(world, card)
    reply = await world.one.call(refund(paid), till)
    assert reply.coupon.status == coupon_pb2.COUPON_STATUS_FROZEN
    assert told(world.books.assert_agree(card.coupon_id)[-1:]) == [(JournalKind.EXTENDED, EXPIRED, FROZEN, 0)]


async def test_a_recalled_card_is_credited_and_stays_void(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    sweep(world, card, JournalKind.RECALLED)
    reply = await world.one.call(refund(paid), till)
    assert (reply.coupon.status, fen(reply.coupon.balance)) == (coupon_pb2.COUPON_STATUS_EXPIRED, [10_000])
    assert told(world.books.assert_agree(card.coupon_id)[-1:]) == [(JournalKind.REFUNDED, EXPIRED, EXPIRED, 4_000)]


async def test_a_batch_can_credit_expired_cards_without_extending_them(world: World) -> None:
    policy = refund_terms_pb2.EXPIRED_CARD_POLICY_CREDIT_ONLY
    card, till = await world.coupon(with_refund(gift_card(), expired_card=policy)), world.cashier()
    paid = await spent(world, card, "40.00", till)
    let_expire(world, card)
    reply = await world.one.call(refund(paid), till)
    assert fen(reply.coupon.balance) == [10_000]
    assert len(contra(world.books.assert_agree(card.coupon_id), paid)) == 1
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "COUPON_EXPIRED"


async def test_a_batch_can_refuse_refunds_to_expired_cards(world: World) -> None:
    policy = refund_terms_pb2.EXPIRED_CARD_POLICY_REFUSE
    card, till = await world.coupon(with_refund(gift_card(), expired_card=policy)), world.cashier()
    paid = await spent(world, card, "40.00", till)
    await world.one.call(refund(paid, "1.00"), till)
    let_expire(world, card)
    before = world.books.checksums()
    refused = await refusal(world.one.call(refund(paid), till))
    assert refused.reason == "REFUND_CARD_EXPIRED"
    assert refused.metadata == {"coupon_id": card.coupon_id, "expires_at": "2020-01-01T00:00:00Z"}
    assert world.books.checksums() == before


# --- coupons that are used once ---


@pytest.mark.parametrize(
    ("terms", "deduction"),
    [(discount("0.8"), 3_000), (threshold("100.00", "20.00"), 2_000), (cash_voucher("30.00"), 3_000)],
)
async def test_a_single_use_coupon_ends_as_refunded(world: World, terms: batch_pb2.BatchTerms, deduction: int) -> None:
    coupon, till = await world.coupon(terms), world.cashier()
    paid = await spent(world, coupon, "150.00", till)
    refused = await refusal(world.one.call(refund(paid, "10.00"), till))
    assert refused.reason == "REFUND_INDIVISIBLE"
    assert refused.metadata["left"] == f"{deduction / 100:.2f}"
    assert (await refusal(world.one.call(refund(paid, "150.00"), till))).reason == "REFUND_EXCEEDS_PAID"

    reply = await world.one.call(refund(paid), till)
    assert fen(reply.refund.amount, reply.transaction.refundable) == [deduction, 0]
    assert reply.coupon.status == coupon_pb2.COUPON_STATUS_REFUNDED
    assert reply.refund.coupons[0].replacement_coupon_id == ""
    (row,) = contra(world.books.assert_agree(coupon.coupon_id), paid)
    assert told([row]) == [(JournalKind.REFUNDED, USED, REFUNDED, 0)]
    assert (row.deduction_minor, row.order_amount_minor) == (-deduction, -15_000)
    assert (await refusal(world.one.consume(coupon, "150.00", till))).reason == "COUPON_REFUNDED"
    assert (await refusal(world.two.call(refund(paid), till))).reason == "ALREADY_REFUNDED"


@pytest.mark.parametrize("code_length", [8, 12])
async def test_a_batch_can_give_a_new_coupon_that_expires_with_the_old_one(world: World, code_length: int) -> None:
    policy = refund_terms_pb2.USED_COUPON_POLICY_REISSUE_ORIGINAL_EXPIRY
    batch_id = await world.batch(
        with_refund(cash_voucher("30.00"), used_coupon=policy), total_quantity=1, code_length=code_length
    )
    (coupon,), till = await world.issue(batch_id, world.user()), world.cashier()
    paid = await spent(world, coupon, "50.00", till)
    reply = await world.one.call(refund(paid), till)

    new_id = reply.refund.coupons[0].replacement_coupon_id
    shown = (await world.two.call(coupon_service_pb2.GetCouponRequest(coupon_id=new_id), world.operator())).coupon
    assert (shown.status, shown.user_id, shown.batch_id) == (
        coupon_pb2.COUPON_STATUS_ACTIVATED,
        coupon.user_id,
        batch_id,
    )
    assert len(shown.masked_code.replace("-", "")) == code_length
    opened = world.books.assert_agree(new_id)[0]
    assert (opened.kind, opened.transaction_id, opened.original_transaction_id) == (
        JournalKind.ISSUED,
        reply.refund.transaction_id,
        paid,
    ), "it is linked to the refund and to what was refunded"
    assert _expires_at(world, new_id) == _expires_at(world, coupon.coupon_id)
    # It is used and refunded like any other.
    again = await spent(world, OwnedCoupon(new_id, "", coupon.user_id, batch_id), "50.00", till)
    assert (await world.one.call(refund(again), till)).refund.coupons[0].replacement_coupon_id not in {"", new_id}


async def test_a_coupon_whose_period_is_over_is_not_replaced_by_one_that_is_over_too(world: World) -> None:
    policy = refund_terms_pb2.USED_COUPON_POLICY_REISSUE_ORIGINAL_EXPIRY
    coupon, till = await world.coupon(with_refund(cash_voucher("30.00"), used_coupon=policy)), world.cashier()
    paid = await spent(world, coupon, "50.00", till)
    let_expire(world, coupon)
    reply = await world.one.call(refund(paid), till)
    assert reply.coupon.status == coupon_pb2.COUPON_STATUS_REFUNDED
    assert reply.refund.coupons[0].replacement_coupon_id == ""


async def test_a_batch_can_give_a_new_coupon_with_a_fresh_period(world: World) -> None:
    policy = refund_terms_pb2.USED_COUPON_POLICY_REISSUE_FRESH_EXPIRY
    terms = with_refund(cash_voucher("30.00"), used_coupon=policy, fresh_days=7)
    coupon, till = await world.coupon(terms), world.cashier()
    paid = await spent(world, coupon, "50.00", till)
    let_expire(world, coupon)
    reply = await world.one.call(refund(paid), till)
    new_id = reply.refund.coupons[0].replacement_coupon_id
    assert 7 * DAY_S <= _expires_at(world, new_id).timestamp() - time.time() <= 8 * DAY_S
    _, (shown,) = await transaction(world, paid, till)
    assert shown == reply.refund


def _expires_at(world: World, coupon_id: str) -> datetime:
    ((moment,),) = world.books.rows(
        int(coupon_id), "SELECT expires_at FROM coupon_info WHERE coupon_id = %s", coupon_id
    )
    return datetime.fromisoformat(str(moment)).replace(tzinfo=UTC)


# --- who, and what is refused ---


async def test_a_cashier_refunds_at_its_own_merchant_only_and_finance_everywhere(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    stranger = await refusal(world.one.call(refund(paid), world.cashier()))
    assert (stranger.code, stranger.reason) == (grpc.StatusCode.NOT_FOUND, "TRANSACTION_NOT_FOUND")
    for role in ("operator", "user", "auditor", "risk"):
        caller = Caller("somebody", (role,), subject="42")
        assert (await refusal(world.one.call(refund(paid), caller))).code is grpc.StatusCode.PERMISSION_DENIED
    await world.one.call(refund(paid), Caller("desk", ("finance",)))
    world.books.assert_agree(card.coupon_id)


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        (yuan("0.00"), "AMOUNT_ZERO"),
        (yuan("-1.00"), "AMOUNT_NEGATIVE"),
        (yuan("40.01"), "REFUND_EXCEEDS_PAID"),
        (yuan("10000000000.00"), "AMOUNT_TOO_LARGE"),
        (money_pb2.Money(currency_code="USD", amount_minor=1), "CURRENCY_NOT_SUPPORTED"),
    ],
)
async def test_a_refund_that_cannot_be_is_refused_and_changes_nothing(
    world: World, amount: money_pb2.Money, reason: str
) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    before = world.books.checksums()
    request = refund_pb2.RefundTransactionRequest(request_id=request_id(), transaction_id=paid, amount=amount)
    assert (await refusal(world.one.call(request, till))).reason == reason
    assert world.books.checksums() == before


async def test_an_unknown_transaction_or_the_id_of_a_refund_cannot_be_refunded(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "40.00", till)
    given_back = (await world.one.call(refund(paid, "1.00"), till)).refund.transaction_id
    for name in (f"TX20260101{card.coupon_id}", given_back):
        assert (await refusal(world.one.call(refund(name), till))).reason == "TRANSACTION_NOT_FOUND"
    for name in ("", "TX1", paid + "0"):
        assert (await refusal(world.one.call(refund(name), till))).reason == "VALIDATION_FAILED"
