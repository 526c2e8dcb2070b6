"""ReverseTransaction takes a consumption back by its request_id: one that arrived, was lost, or is on its way."""

from __future__ import annotations

import asyncio

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import cashier_service_pb2, coupon_service_pb2, reservation_pb2
from tests.integration.coupon.orders import Order, assert_holds_agree
from tests.integration.coupon.world import (
    Caller,
    OwnedCoupon,
    World,
    cash_voucher,
    consume_request,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    yuan,
)


def reverse(
    coupon: OwnedCoupon, till: Caller, original: str, request: str = ""
) -> reservation_pb2.ReverseTransactionRequest:
    return reservation_pb2.ReverseTransactionRequest(
        request_id=request or request_id(),
        original_request_id=original,
        merchant_id=till.merchant_id,
        user_id=coupon.user_id,
    )


async def test_a_reversed_consumption_gives_a_card_its_balance_back_and_an_emptied_one_works_again(
    world: World,
) -> None:
    card = await world.card(balance="100.00")
    till = world.cashier()
    some, rest = consume_request(card, "30.00", till), consume_request(card, "70.00", till)
    for request in (some, rest):
        await world.one.call(request, till)
    assert world.books.coupon(card.coupon_id).status == CouponStatus.USED

    reversed_ = await world.two.call(reverse(card, till, rest.request_id), till)

    (row,) = reversed_.transactions
    assert (row.request_id, row.deduction, row.HasField("reverse_time")) == (rest.request_id, yuan("70.00"), True)
    coupon = world.books.coupon(card.coupon_id)
    assert coupon.balance == 70
    assert coupon.status == CouponStatus.ACTIVATED
    journal = world.books.assert_agree(card.coupon_id)
    last = journal[-1]
    assert (last.kind, last.amount_minor, last.deduction_minor) == (JournalKind.REVERSED, 7_000, -7_000)
    assert last.original_transaction_id == row.transaction_id
    shown = await world.one.call(coupon_service_pb2.GetTransactionRequest(request_id=rest.request_id), till)
    assert shown.transaction == row
    await world.one.consume(card, "70.00", till)


async def test_a_reversed_single_use_coupon_can_be_used_again(world: World) -> None:
    voucher = await world.coupon(cash_voucher("5.00"))
    till = world.cashier()
    request = consume_request(voucher, "20.00", till)
    await world.one.call(request, till)
    await world.two.call(reverse(voucher, till, request.request_id), till)
    assert world.books.coupon(voucher.coupon_id).status == CouponStatus.ACTIVATED
    await world.one.consume(voucher, "20.00", till)
    world.books.assert_agree(voucher.coupon_id)


async def test_the_reversed_request_takes_no_effect_any_more_however_it_is_repeated(world: World) -> None:
    card = await world.card()
    till = world.cashier()
    request = consume_request(card, "30.00", till)
    await world.one.call(request, till)
    await world.one.call(reverse(card, till, request.request_id), till)
    for process in world.both:
        again = await refusal(process.call(request, till))
        assert (again.reason, again.metadata["request_id"]) == ("TRANSACTION_REVERSED", request.request_id)
    assert world.books.coupon(card.coupon_id).balance == 100


async def test_a_reversal_succeeds_though_the_consume_never_arrived_and_refuses_it_when_it_does(world: World) -> None:
    card = await world.card()
    till = world.cashier()
    request = consume_request(card, "30.00", till)

    assert not (await world.one.call(reverse(card, till, request.request_id), till)).transactions

    assert (await refusal(world.two.call(request, till))).reason == "TRANSACTION_REVERSED"
    key = cashier_service_pb2.ConsumeRequest(
        coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0, request_id=request.request_id
    )
    assert (await refusal(world.one.call(key, till))).reason == "TRANSACTION_REVERSED"
    # The same name from another till is another request.
    other = world.cashier()
    await world.one.consume(card, "30.00", other, request.request_id)
    assert world.books.coupon(card.coupon_id).balance == 70


async def test_a_consume_by_idempotency_key_is_reversed_by_that_key(world: World) -> None:
    card = await world.card()
    till = world.cashier()
    key = request_id()
    consume = cashier_service_pb2.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0)
    await world.one.call(consume, till, metadata=(("idempotency-key", key),))
    assert len((await world.one.call(reverse(card, till, key), till)).transactions) == 1
    assert world.books.coupon(card.coupon_id).balance == 100


async def test_a_reversal_meets_the_consume_on_its_way_and_one_of_them_wins_whole(world: World) -> None:
    """Twenty pairs cross on one card; whichever comes first, in the end nothing is taken and both sides are told so."""
    card = await world.card()
    till = world.cashier()
    pairs = [consume_request(card, "1.00", till) for _ in range(20)]
    with world.books.coupon_held(card.coupon_id):
        consuming = [asyncio.ensure_future(world.one.call(request, till)) for request in pairs]
        await world.books.until_waiting("FROM coupon_info FORCE INDEX (PRIMARY)", count=1)
        # The consumes wait for the row with their request looked up or not; a reversal of one that is not there needs
        # no coupon, so it is not held up.
        before = await outcomes(world.two.call(reverse(card, till, request.request_id), till) for request in pairs[:10])
    after = await outcomes(world.two.call(reverse(card, till, request.request_id), till) for request in pairs[10:])
    consumed = await outcomes(consuming)

    assert tally(before) == tally(after) == {"OK": 10}
    assert tally(consumed[:10]) == {"TRANSACTION_REVERSED": 10}
    for reply, outcome in zip(after, consumed[10:], strict=True):
        assert isinstance(reply, reservation_pb2.ReverseTransactionResponse)
        took = isinstance(outcome, coupon_service_pb2.ConsumeCouponResponse)
        assert took == (len(reply.transactions) == 1)
    assert world.books.coupon(card.coupon_id).balance == 100
    world.books.assert_agree(card.coupon_id)


async def test_fifty_concurrent_reversals_of_one_consumption_give_it_back_once(world: World) -> None:
    card = await world.card()
    till = world.cashier()
    request = consume_request(card, "30.00", till)
    await world.one.call(request, till)
    results = await outcomes(
        world.both[number % 2].call(reverse(card, till, request.request_id), till) for number in range(50)
    )
    assert tally(results) == {"OK": 50}
    assert len({bytes(reply.SerializeToString()) for reply in results}) == 1  # type: ignore[attr-defined]
    assert world.books.coupon(card.coupon_id).balance == 100
    kinds = [row.kind for row in world.books.assert_agree(card.coupon_id)]
    assert kinds == [JournalKind.ISSUED, JournalKind.CONSUMED, JournalKind.REVERSED]


async def test_a_confirmation_is_reversed_whole(world: World) -> None:
    user = world.user()
    (voucher,) = await world.issue(await world.batch(cash_voucher("5.00")), user)
    (card,) = await world.issue(await world.batch(gift_card("50.00")), user)
    till = world.cashier()
    order = Order(till, [voucher, card], "55.00")
    await world.one.call(order.reserve(), till)
    await world.one.call(order.confirm(), till)
    assert world.books.coupon(card.coupon_id).status == CouponStatus.USED

    reply = await world.two.call(order.reverse(), till)

    assert [row.coupon_id for row in reply.transactions] == [voucher.coupon_id, card.coupon_id]
    assert {row.reservation_id for row in reply.transactions} == {order.name}
    for coupon in (voucher, card):
        assert world.books.coupon(coupon.coupon_id).status == CouponStatus.ACTIVATED
        assert_holds_agree(world.books, coupon)
    assert world.books.coupon(card.coupon_id).balance == 50
    again = order.confirm(request_id())
    assert (await refusal(world.one.call(again, till))).reason == "TRANSACTION_REVERSED"
    assert (await world.one.call(order.cancel(), till)).state == reservation_pb2.RESERVATION_STATE_REVERSED


@pytest.mark.parametrize("kind", ["frozen", "expired"])
async def test_a_card_that_is_frozen_or_expired_since_is_credited_and_stays_so(world: World, kind: str) -> None:
    card = await world.card()
    till = world.cashier()
    request = consume_request(card, "30.00", till)
    await world.one.call(request, till)
    status = CouponStatus.FROZEN if kind == "frozen" else CouponStatus.EXPIRED
    world.books.change(
        card.shard, "UPDATE coupon_info SET status = %s WHERE coupon_id = %s", int(status), card.coupon_id
    )
    await world.one.call(reverse(card, till, request.request_id), till)
    coupon = world.books.coupon(card.coupon_id)
    assert coupon.balance == 100
    assert coupon.status == status


async def test_what_took_nothing_or_was_elsewhere_is_not_reversed(world: World) -> None:
    card = await world.card()
    till = world.cashier()
    order = Order(till, [card], "30.00")
    await world.one.call(order.reserve(), till)
    held = await refusal(world.one.call(reverse(card, till, order.reserve().request_id), till))
    assert (held.reason, held.metadata["problem"]) == ("REVERSAL_REFUSED", "it took nothing from a coupon")

    request = consume_request(card, "30.00", till)
    await world.one.call(request, till)
    elsewhere = Caller(till.client_id, till.roles, merchant_id="another-merchant")
    foreign = await refusal(world.one.call(reverse(card, elsewhere, request.request_id), elsewhere))
    assert foreign.reason == "REVERSAL_REFUSED"
    itself = await refusal(world.one.call(reverse(card, till, "r", "r"), till))
    assert itself.reason == "REVERSAL_REFUSED"
    assert world.books.coupon(card.coupon_id).balance == 70
