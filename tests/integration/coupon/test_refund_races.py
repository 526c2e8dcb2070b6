"""Refunds that meet each other, consumes and reversals, and processes that die in the middle of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from google.protobuf.message import Message

from coupon_svc.domain.coupon import CouponStatus
from couponmesh.coupon.v1 import refund_pb2
from tests.integration.coupon.orders import Order
from tests.integration.coupon.refunding import contra, fen, paid_order, refund, refund_order, spent
from tests.integration.coupon.world import (
    Caller,
    CouponProcess,
    OwnedCoupon,
    World,
    consume_request,
    outcomes,
    request_id,
    tally,
    until_answered,
)


async def meeting(
    world: World, coupon: OwnedCoupon, calls: Iterable[tuple[CouponProcess, Message]], by: Caller
) -> list[object]:
    """What calls come to that all wait for one coupon's row before the first gets it."""
    with world.books.coupon_held(coupon.coupon_id):
        sent = [asyncio.ensure_future(process.call(request, by)) for process, request in calls]
        await world.books.until_waiting("FOR UPDATE", count=len(sent))
    return await outcomes(sent)


async def test_two_processes_that_refund_the_last_remainder_at_once_give_it_back_once(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till)
    await world.one.call(refund(paid, "35.00"), till)
    for pair in ([refund(paid, "25.00"), refund(paid, "25.00")], [refund(paid), refund(paid)]):
        results = await meeting(world, card, zip(world.both, pair, strict=True), till)
        if pair[0].HasField("amount"):
            assert tally(results) == {"OK": 1, "REFUND_EXCEEDS_PAID": 1}
        else:
            assert tally(results) == {"ALREADY_REFUNDED": 2}
    assert world.books.coupon(card.coupon_id).balance == 100
    assert len(contra(world.books.assert_agree(card.coupon_id), paid)) == 2


async def test_one_request_that_reaches_both_processes_at_once_is_answered_alike(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till)
    request = refund(paid)
    first, second = await meeting(world, card, [(process, request) for process in world.both], till)
    assert isinstance(first, refund_pb2.RefundTransactionResponse)
    assert first == second
    assert len(contra(world.books.assert_agree(card.coupon_id), paid)) == 1


async def test_many_refunds_at_once_never_give_back_more_than_was_paid(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "100.00", till)
    # Of 16 × 7.00, 14 fit into 100.00.
    requests = [refund(paid, "7.00") for _ in range(16)]
    results = await outcomes(
        process.call(request, till) for process, request in zip(world.both * 8, requests, strict=True)
    )
    assert tally(results) == {"OK": 14, "REFUND_EXCEEDS_PAID": 2}
    rows = contra(world.books.assert_agree(card.coupon_id), paid)
    assert -sum(row.deduction_minor for row in rows) == 9_800
    assert fen((await world.one.call(refund(paid), till)).refund.amount) == [200]


async def test_refunds_and_consumes_of_one_card_at_once_lose_no_fen(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "50.00", till)
    consumes = [consume_request(card, "7.00", till) for _ in range(12)]
    refunds = [refund(paid, "5.00") for _ in range(10)]
    with world.books.coupon_held(card.coupon_id):
        sent = [
            asyncio.ensure_future(until_answered(partial(process.call, request, till)))
            for request, process in zip([*consumes, *refunds], world.both * 11, strict=True)
        ]
        # A group of consumes stands in line at the row with every refund.
        await world.books.until_waiting("FOR UPDATE", count=1 + len(refunds))
    results = await outcomes(sent)
    assert tally(results[len(consumes) :]) == {"OK": 10}
    consumed = tally(results[: len(consumes)])["OK"]
    assert 7 <= consumed <= 12
    assert world.books.coupon(card.coupon_id).balance * 100 == 10_000 - 700 * consumed
    journal = world.books.assert_agree(card.coupon_id)
    assert min(row.balance_after_minor for row in journal) >= 0
    assert -sum(row.deduction_minor for row in contra(journal, paid)) == 5_000


async def test_two_processes_that_refund_one_line_at_once_refund_it_once(world: World) -> None:
    order = await paid_order(world)
    pair = [refund_order(order.till, order.order_id, a="") for _ in range(2)]
    results = await meeting(world, order.coupon, zip(world.both, pair, strict=True), order.till)
    assert tally(results) == {"OK": 1, "ALREADY_REFUNDED": 1}
    for coupon in (order.coupon, order.card):
        world.books.assert_agree(coupon.coupon_id)


async def test_a_transaction_and_its_order_that_are_refunded_at_once_close_together(world: World) -> None:
    order = await paid_order(world)
    whole, part = refund_order(order.till, order.order_id), refund(order.card_transaction, "60.01")
    results = await meeting(world, order.card, zip(world.both, (whole, part), strict=True), order.till)
    if tally(results)["OK"] == 1:
        assert tally(results) == {"OK": 1, "REFUND_EXCEEDS_PAID": 1}
    card = contra(world.books.assert_agree(order.card.coupon_id), order.card_transaction)
    assert -sum(row.deduction_minor for row in card) == 6_001
    world.books.assert_agree(order.coupon.coupon_id)
    assert world.books.coupon(order.coupon.coupon_id).status == CouponStatus.REFUNDED


async def test_of_a_refund_and_a_reversal_at_once_one_takes_effect(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = (await world.one.consume(card, "60.00", till, request_id())).transaction
    reverse = Order(till, [card], "1.00").reverse(paid.request_id)
    results = await meeting(world, card, zip(world.both, (refund(paid.transaction_id), reverse), strict=True), till)
    assert tally(results) in ({"OK": 1, "ALREADY_REFUNDED": 1}, {"OK": 1, "REVERSAL_REFUSED": 1})
    assert world.books.coupon(card.coupon_id).balance == 100
    assert len(contra(world.books.assert_agree(card.coupon_id), paid.transaction_id)) == 1


# --- processes that die ---


@asynccontextmanager
async def killed_first_process(world: World) -> AsyncIterator[None]:
    """The first coupon_svc, dead by SIGKILL while the block runs."""
    world.stack.coupon(1).kill()
    try:
        yield
    finally:
        await world.stack.coupon(1).start()
        await world.stack.wait_until_serving()


async def test_a_process_that_dies_before_it_got_the_coupon_has_changed_nothing(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till)
    request = refund(paid)
    with world.books.coupon_held(card.coupon_id):
        refunding = asyncio.ensure_future(world.one.call(request, till))
        await world.books.until_waiting(card.coupon_id)
        async with killed_first_process(world):
            assert tally(await outcomes([refunding])) != {"OK": 1}
    reply = await world.two.call(request, till)
    assert fen(reply.coupon.balance) == [10_000]
    assert await world.one.call(request, till) == reply
    assert len(contra(world.books.assert_agree(card.coupon_id), paid)) == 1


@pytest.mark.parametrize("what", ["transaction", "order"])
async def test_a_process_that_dies_with_everything_written_but_the_commit_has_changed_nothing(
    world: World, what: str
) -> None:
    order = await paid_order(world)
    request = (
        refund(order.card_transaction, "60.00")
        if what == "transaction"
        else refund_order(order.till, order.order_id, a="", b="10.00")
    )
    shard = order.card.shard
    before = world.books.coupon(order.card.coupon_id)
    with world.books.transaction(shard) as record, world.books.transaction(shard) as reader:
        # Whoever records an answer to this request now waits: the last write before COMMIT.
        record.run(
            "INSERT INTO request_record (shard, caller, request_id, request_hash, response, create_time, expire_time) "
            "VALUES (%s, %s, %s, REPEAT('x', 32), '', NOW(3), NOW(3))",
            shard,
            order.till.client_id,
            request.request_id,
        )
        refunding = asyncio.ensure_future(world.one.call(request, order.till))
        await world.books.until_waiting("INSERT INTO request_record")
        reader.run("SET SESSION TRANSACTION ISOLATION LEVEL READ UNCOMMITTED")
        written = reader.run(
            "SELECT COUNT(*) FROM coupon_journal WHERE original_transaction_id = %s", order.card_transaction
        )
        assert written == [(2,)], "REFUNDED and REACTIVATED were written, and not committed"
        async with killed_first_process(world):
            assert tally(await outcomes([refunding])) != {"OK": 1}
            record.rollback()
            assert world.books.coupon(order.card.coupon_id) == before
            reply = await world.two.call(request, order.till)
    assert await world.one.call(request, order.till) == reply
    journal = world.books.assert_agree(order.card.coupon_id)
    given = -sum(row.deduction_minor for row in contra(journal, order.card_transaction))
    assert given == sum(
        part.amount.amount_minor
        for part in reply.refund.coupons
        if part.original_transaction_id == order.card_transaction
    )
    world.books.assert_agree(order.coupon.coupon_id)
    rest = await world.two.call(refund_order(order.till, order.order_id), order.till)
    assert reply.refund.amount.amount_minor + rest.refund.amount.amount_minor == 15_000
