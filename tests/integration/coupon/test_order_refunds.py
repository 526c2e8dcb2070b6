"""Refunds of orders: each line goes back to what paid for it, and all of them sum to what was paid."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable

import grpc
import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import coupon_pb2, refund_pb2, refund_terms_pb2
from tests.integration.coupon.orders import Order
from tests.integration.coupon.refunding import (
    PAID_MINOR,
    PRICES,
    PaidOrder,
    contra,
    fen,
    paid_order,
    refund,
    refund_order,
    spent,
    told,
    transaction,
    with_refund,
)
from tests.integration.coupon.world import (
    Caller,
    World,
    gift_card,
    refusal,
    request_id,
    threshold,
    until_answered,
    yuan,
)

CASH_MINOR = PAID_MINOR - 2_000 - 6_001


def lines_of(
    lines: Iterable[refund_pb2.RefundedLine] | Iterable[refund_pb2.RefundableLine],
) -> dict[str, tuple[int, int]]:
    """(amount, cash) by line."""
    return {each.line_id: (each.amount.amount_minor, each.cash.amount_minor) for each in lines}


def assert_closed(world: World, order: PaidOrder) -> None:
    """Everything went back: what each coupon gave, and not a fen more."""
    coupon = contra(world.books.assert_agree(order.coupon.coupon_id), order.coupon_transaction)
    card = contra(world.books.assert_agree(order.card.coupon_id), order.card_transaction)
    assert -sum(row.deduction_minor for row in coupon) == 2_000
    assert -sum(row.order_amount_minor for row in coupon) == PAID_MINOR
    assert -sum(row.deduction_minor for row in card) == sum(row.amount_minor for row in card) == 6_001
    assert world.books.coupon(order.coupon.coupon_id).status == CouponStatus.REFUNDED
    assert world.books.coupon(order.card.coupon_id).balance * 100 == 6_001


async def test_a_line_goes_back_to_the_coupons_and_the_cash_that_paid_for_it(world: World) -> None:
    order = await paid_order(world)
    reply = await world.one.call(refund_order(order.till, order.order_id, b=""), order.till)

    # Of 33.34, the threshold coupon had taken 4.45 and the card 13.34; the rest was cash.
    assert lines_of(reply.refund.lines) == {"b": (3_334, 1_555)}
    assert fen(reply.refund.amount, reply.refund.cash) == [3_334, 1_555]
    parts = {part.coupon_id: part.amount.amount_minor for part in reply.refund.coupons}
    assert parts == {order.coupon.coupon_id: 445, order.card.coupon_id: 1_334}
    assert lines_of(reply.left)["b"] == (0, 0)
    assert sum(amount for amount, _ in lines_of(reply.left).values()) == PAID_MINOR - 3_334
    assert {row.coupon_id: fen(row.refunded, row.refundable) for row in reply.transactions} == {
        order.coupon.coupon_id: [445, 1_555],
        order.card.coupon_id: [1_334, 4_667],
    }
    # A coupon that is used once stays used while a part of its order stands; the emptied card can be used again.
    assert {after.coupon_id: after.status for after in reply.coupons} == {
        order.coupon.coupon_id: coupon_pb2.COUPON_STATUS_USED,
        order.card.coupon_id: coupon_pb2.COUPON_STATUS_ACTIVATED,
    }
    assert (await refusal(world.two.call(refund_order(order.till, order.order_id, b=""), order.till))).metadata == {
        "of": "b"
    }

    rest = await world.two.call(refund_order(order.till, order.order_id), order.till)
    assert set(lines_of(rest.refund.lines)) == {"a", "c"}
    assert reply.refund.cash.amount_minor + rest.refund.cash.amount_minor == CASH_MINOR
    assert set(lines_of(rest.left).values()) == {(0, 0)}
    assert_closed(world, order)
    refused = await refusal(world.one.call(refund_order(order.till, order.order_id), order.till))
    assert (refused.reason, refused.metadata) == ("ALREADY_REFUNDED", {"of": order.order_id})
    _, refunds = await transaction(world, order.card_transaction, order.till)
    assert [*refunds] == [reply.refund, rest.refund]


@pytest.mark.parametrize("seed", range(6))
async def test_any_sequence_of_partial_refunds_sums_to_exactly_what_was_paid(world: World, seed: int) -> None:
    chance = random.Random(seed)
    order = await paid_order(world, balance="100.00")
    left = {**PRICES}
    card_left = 6_001
    given: Counter[str] = Counter()
    for _ in range(12):
        process = chance.choice(world.both)
        if chance.random() < 0.25 and card_left:
            # The card gets something back by itself: from every line a share, by what is left of it there.
            amount = chance.randint(1, card_left)
            reply = await process.call(refund(order.card_transaction, f"{amount / 100:.2f}"), order.till)
        else:
            open_lines = [line for line, minor in left.items() if minor]
            chosen = chance.sample(open_lines, min(len(open_lines), chance.randint(1, 2)))
            wanted = {line: chance.choice([left[line], chance.randint(1, left[line])]) for line in chosen}
            if not wanted:
                break
            request = refund_order(
                order.till, order.order_id, **{line: f"{minor / 100:.2f}" for line, minor in wanted.items()}
            )
            reply = await process.call(request, order.till)
            assert {line: amount for line, (amount, _) in lines_of(reply.refund.lines).items()} == wanted
        for line, (amount, cash) in lines_of(reply.refund.lines).items():
            left[line] -= amount
            assert 0 <= cash <= amount
        given["cash"] += reply.refund.cash.amount_minor
        for part in reply.refund.coupons:
            given[part.coupon_id] += part.amount.amount_minor
        card_left = 6_001 - given[order.card.coupon_id]
        assert min(left.values()) >= 0
        assert sum(given.values()) == PAID_MINOR - sum(left.values())
    if any(left.values()):
        reply = await world.one.call(refund_order(order.till, order.order_id), order.till)
        given["cash"] += reply.refund.cash.amount_minor
        for part in reply.refund.coupons:
            given[part.coupon_id] += part.amount.amount_minor
    assert given == {"cash": CASH_MINOR, order.coupon.coupon_id: 2_000, order.card.coupon_id: 6_001}
    coupon = contra(world.books.assert_agree(order.coupon.coupon_id), order.coupon_transaction)
    assert [row.status_after for row in coupon[:-1]] == [CouponStatus.USED] * (len(coupon) - 1)
    assert told(coupon[-1:]) == [(JournalKind.REFUNDED, CouponStatus.USED, CouponStatus.REFUNDED, 0)]
    assert world.books.coupon(order.card.coupon_id).balance * 100 == 10_000
    world.books.assert_agree(order.card.coupon_id)


async def test_an_order_without_lines_is_one_line(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (coupon,) = await world.issue(await world.batch(threshold("100.00", "20.00")), user_id)
    (card,) = await world.issue(await world.batch(gift_card()), user_id)
    off = await spent(world, coupon, "150.00", till, "order-1")
    by_card = await spent(world, card, "100.00", till, "order-1")

    part = refund_pb2.RefundOrderRequest(
        request_id=request_id(),
        merchant_id=till.merchant_id,
        order_id="order-1",
        lines=[refund_pb2.OrderLineRefund(amount=yuan("75.00"))],
    )
    reply = await world.one.call(part, till)
    assert lines_of(reply.refund.lines) == {"": (7_500, 1_500)}
    assert {each.original_transaction_id: each.amount.amount_minor for each in reply.refund.coupons} == {
        off: 1_000,
        by_card: 5_000,
    }
    assert lines_of(reply.left) == {"": (7_500, 1_500)}
    await world.two.call(refund_order(till, "order-1"), till)
    assert world.books.coupon(coupon.coupon_id).status == CouponStatus.REFUNDED
    assert world.books.coupon(card.coupon_id).balance * 100 == 10_000
    for each in (coupon, card):
        world.books.assert_agree(each.coupon_id)


async def test_an_order_that_was_reserved_without_lines_knows_its_amount(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (card,) = await world.issue(await world.batch(gift_card("60.00")), user_id)
    (coupon,) = await world.issue(await world.batch(threshold("50.00", "20.00")), user_id)
    order = Order(till, [card, coupon], "150.00", parts={card.coupon_id: "60.00"})
    await world.one.call(order.reserve(), till)
    await world.one.call(order.confirm(), till)
    reply = await world.one.call(refund_order(till, f"order-{order.name}"), till)
    assert fen(reply.refund.amount, reply.refund.cash) == [15_000, 7_000]


async def test_refunding_a_transaction_of_an_order_leaves_the_rest_of_each_line(world: World) -> None:
    order = await paid_order(world)
    reply = await world.one.call(refund(order.card_transaction, "30.00"), order.till)
    assert sum(amount for amount, _ in lines_of(reply.refund.lines).values()) == 3_000
    assert {cash for _, cash in lines_of(reply.refund.lines).values()} == {0}
    await world.one.call(refund(order.coupon_transaction), order.till)
    rest = await world.two.call(refund_order(order.till, order.order_id), order.till)
    assert fen(rest.refund.amount, rest.refund.cash) == [PAID_MINOR - 5_000, CASH_MINOR]
    assert [(part.coupon_id, part.amount.amount_minor) for part in rest.refund.coupons] == [
        (order.card.coupon_id, 3_001)
    ]
    assert_closed(world, order)


async def test_what_paid_for_an_order_later_is_refunded_with_it(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    first, second = await world.issue(await world.batch(gift_card()), user_id, quantity=2)
    await spent(world, first, "10.00", till, "order-1")
    assert fen((await world.one.call(refund_order(till, "order-1"), till)).refund.amount) == [1_000]
    await spent(world, second, "5.00", till, "order-1")
    await spent(world, first, "1.00", till, "order-1")
    reply = await world.two.call(refund_order(till, "order-1"), till)
    assert {part.coupon_id: part.amount.amount_minor for part in reply.refund.coupons} == {
        first.coupon_id: 100,
        second.coupon_id: 500,
    }
    assert len(reply.transactions) == 3


async def test_a_reversed_transaction_is_no_part_of_its_order(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (coupon,) = await world.issue(await world.batch(threshold("100.00", "20.00")), user_id)
    (card,) = await world.issue(await world.batch(gift_card()), user_id)
    await spent(world, coupon, "150.00", till, "order-1")
    paid = (await world.one.consume(card, "100.00", till, "taken-back", order_id="order-1")).transaction
    await world.one.call(Order(till, [card], "1.00").reverse(paid.request_id), till)
    reply = await world.one.call(refund_order(till, "order-1"), till)
    assert fen(reply.refund.amount, reply.refund.cash) == [15_000, 13_000]
    assert [part.coupon_id for part in reply.refund.coupons] == [coupon.coupon_id]
    world.books.assert_agree(card.coupon_id)


async def test_a_single_use_coupon_is_replaced_once_its_whole_order_is_refunded(world: World) -> None:
    policy = refund_terms_pb2.USED_COUPON_POLICY_REISSUE_ORIGINAL_EXPIRY
    order = await paid_order(world, terms=with_refund(threshold("100.00", "20.00"), used_coupon=policy))
    parts = {}
    for line in PRICES:
        reply = await world.one.call(refund_order(order.till, order.order_id, **{line: ""}), order.till)
        (parts[line],) = [part for part in reply.refund.coupons if part.coupon_id == order.coupon.coupon_id]
    assert [bool(part.replacement_coupon_id) for part in parts.values()] == [False, False, True]
    assert sum(part.amount.amount_minor for part in parts.values()) == 2_000
    assert_closed(world, order)


# --- what is refused ---


async def test_what_cannot_be_refunded_of_an_order_is_refused_and_changes_nothing(world: World) -> None:
    order = await paid_order(world)
    till, order_id = order.till, order.order_id
    twice = refund_order(till, order_id, a="")
    twice.lines.add(line_id="a")
    before = world.books.checksums()
    for request, reason, metadata in (
        (refund_order(till, "no-such-order"), "ORDER_NOT_FOUND", {"order_id": "no-such-order"}),
        (refund_order(till, order_id, d=""), "ORDER_LINE_NOT_FOUND", {"line_id": "d"}),
        (refund_order(till, order_id, **{"": "1.00"}), "ORDER_LINE_NOT_FOUND", {"line_id": ""}),
        (refund_order(till, order_id, a="1.00", b="33.35"), "REFUND_EXCEEDS_PAID", {"of": "b", "left": "33.34"}),
        (refund_order(till, order_id, a="0.00"), "AMOUNT_ZERO", {}),
        (refund_order(till, order_id, a="-1.00"), "AMOUNT_NEGATIVE", {}),
        (twice, "VALIDATION_FAILED", {}),
    ):
        refused = await refusal(world.one.call(request, till))
        assert refused.reason == reason
        assert metadata.items() <= refused.metadata.items()
    stranger = world.cashier()
    assert (await refusal(world.one.call(refund_order(stranger, order_id), stranger))).reason == "ORDER_NOT_FOUND"
    foreign = await refusal(world.one.call(refund_order(till, order_id), stranger))
    assert (foreign.code, foreign.reason) == (grpc.StatusCode.PERMISSION_DENIED, "MERCHANT_NOT_OWNED")
    assert world.books.checksums() == before
    await world.one.call(refund_order(till, order_id), Caller("desk", ("finance",)))


async def test_an_order_that_coupons_of_several_users_paid_for_is_refunded_by_transaction(world: World) -> None:
    till = world.cashier()
    first, second = await world.card(shard=3), await world.card(shard=100)
    paid = await spent(world, first, "10.00", till, "order-1")
    request = refund_order(till, "order-1")
    reply = await world.one.call_bytes(request, till)
    await spent(world, second, "10.00", till, "order-1")
    refused = await refusal(world.one.call(refund_order(till, "order-1"), till))
    assert refused.reason == "ORDER_NOT_REFUNDABLE"
    assert refused.metadata["problem"] == "coupons of several users paid for it"
    # What was answered before is answered again.
    assert await world.two.call_bytes(request, till) == reply
    assert (await refusal(world.one.call(refund(paid), till))).reason == "ALREADY_REFUNDED"


async def test_a_consume_for_the_order_that_comes_in_between_makes_the_refund_try_again(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    first, second = await world.issue(await world.batch(gift_card()), user_id, quantity=2)
    await spent(world, first, "10.00", till, "order-1")
    request = refund_order(till, "order-1")
    with world.books.coupon_held(first.coupon_id):
        waiting = asyncio.ensure_future(world.one.call(request, till))
        await world.books.until_waiting(first.coupon_id)
        await spent(world, second, "5.00", till, "order-1")
    refused = await refusal(waiting)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "COUPON_BUSY")
    reply = await until_answered(lambda: world.one.call(request, till))
    assert fen(reply.refund.amount) == [1_500]
