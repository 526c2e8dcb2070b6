"""Caps of a batch where reservations are confirmed and money goes back; what ends a coupon that is held."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import reservation_pb2 as pb
from tests.integration.coupon.orders import Holding, Order, assert_holds_agree, holding
from tests.integration.coupon.refunding import refund, refund_order
from tests.integration.coupon.sweeps import sweeping
from tests.integration.coupon.test_caps import caps, deducted
from tests.integration.coupon.test_expiry import ending, until_over
from tests.integration.coupon.test_hold_expiry import EXPIRED, run_out, show_leader, state_of
from tests.integration.coupon.test_recall import OPERATOR, begin, preview, stake, until_done
from tests.integration.coupon.world import (
    OwnedCoupon,
    World,
    cash_voucher,
    consume_request,
    eventually,
    gift_card,
    outcomes,
    refusal,
    tally,
)


def used(world: World, coupon: OwnedCoupon) -> list[int]:
    """Numbers of the uses that the coupon's owner has taken of its batch."""
    rows = world.books.rows(
        coupon.shard,
        "SELECT ordinal FROM batch_use WHERE user_id = %s AND batch_id = %s ORDER BY ordinal",
        coupon.user_id,
        coupon.batch_id,
    )
    return [ordinal for (ordinal,) in rows]


def spent_minor(world: World, batch_id: str) -> int:
    rows = world.books.everywhere("SELECT leased_minor, spent_minor FROM spend_slice WHERE batch_id = %s", batch_id)
    assert all(spent <= leased for leased, spent in rows)
    return int(sum(spent for _, spent in rows))


async def taken(world: World, order: Order) -> list[str]:
    """Reserves and confirms; gives the transaction_ids."""
    await world.one.call(order.reserve(), order.till)
    confirmed = await world.two.call(order.confirm(), order.till)
    return [row.transaction_id for row in confirmed.transactions]


# --- confirmations ---


async def test_a_confirmation_takes_uses_and_is_refused_whole_when_they_are_gone(world: World) -> None:
    batch_id, till = await world.batch(cash_voucher("5.00"), caps=caps(uses=2)), world.cashier()
    first, second, third, fourth = await world.issue(batch_id, world.user(), 4)
    (card,) = await world.issue(await world.batch(gift_card("100.00")), first.user_id)
    late = Order(till, [card, fourth], "50.00", parts={card.coupon_id: "10.00"})
    await world.one.call(late.reserve(), till)
    await taken(world, Order(till, [first], "10.00"))
    await world.one.consume(second, "10.00", till)
    assert used(world, first) == [1, 2]

    refused = await refusal(world.two.call(late.confirm(), till))

    assert (refused.reason, refused.metadata["uses_per_user"]) == ("USES_LIMIT_REACHED", "2")
    assert holding(world.books, card) == Holding(1_000, 1)
    assert world.books.coupon(fourth.coupon_id).status == CouponStatus.ACTIVATED
    # What else the order holds can still be taken, and who has no use left need not begin.
    await world.two.call(late.confirm("without-it", **{f"_{card.coupon_id}": ""}), till)
    assert world.books.coupon(card.coupon_id).balance == 90
    hopeless = Order(till, [third], "10.00")
    assert (await refusal(world.one.call(hopeless.reserve(), till))).reason == "USES_LIMIT_REACHED"
    for coupon in (first, second, third, fourth, card):
        assert_holds_agree(world.books, coupon)


async def test_a_reservation_that_wants_more_than_a_cap_has_left_is_refused_and_holds_nothing(world: World) -> None:
    batch_id, till = await world.batch(cash_voucher("6.00"), caps=caps(cap="10.00")), world.cashier()
    pair = await world.issue(batch_id, world.user(5), 2)
    refused = await refusal(world.one.call(Order(till, pair, "50.00").reserve(), till))
    assert (refused.reason, refused.metadata["deduction"]) == ("SPEND_CAP_REACHED", "12.00")
    assert holding(world.books, pair[0]) == Holding(0, 0)
    # Looked at, not held: two orders may be let in for what only one of them will get.
    orders = [Order(till, [each], "50.00") for each in pair]
    for order in orders:
        await world.one.call(order.reserve(), till)
    results = await outcomes(
        process.call(order.confirm(), till) for process, order in zip(world.both, orders, strict=True)
    )
    assert tally(results) == {"OK": 1, "SPEND_CAP_REACHED": 1}
    assert spent_minor(world, batch_id) == 600


async def reserved(world: World, coupons: list[OwnedCoupon]) -> list[Order]:
    orders = [Order(world.cashier(), [each], "5.00") for each in coupons]
    for order, process in zip(orders, world.both * len(orders), strict=False):
        await process.call(order.reserve(), order.till)
    return orders


async def test_uses_that_consumes_and_confirmations_take_at_once_never_exceed_the_limit(world: World) -> None:
    batch_id, till = await world.batch(cash_voucher("1.00"), caps=caps(uses=5)), world.cashier()
    issued = await world.issue(batch_id, world.user(), 24)
    orders = await reserved(world, issued[:12])
    for process in world.both:
        await world.known_to(process, issued)
    results = await outcomes(
        call
        for order, coupon, process in zip(orders, issued[12:], world.both * 6, strict=True)
        for call in (
            process.call(order.confirm(), order.till),
            process.call(consume_request(coupon, "1.00", till), till),
        )
    )
    assert tally(results) == {"OK": 5, "USES_LIMIT_REACHED": 19}
    assert used(world, issued[0]) == [1, 2, 3, 4, 5]
    for each in issued:
        assert_holds_agree(world.books, each)


async def test_a_cap_that_consumes_and_confirmations_spend_at_once_is_never_exceeded(world: World) -> None:
    cap, till = Decimal("20.00"), world.cashier()
    batch_id = await world.batch(cash_voucher("1.00"), caps=caps(cap=str(cap)))
    issued = [each for shard in (3, 100) for each in await world.issue(batch_id, world.user(shard), 28)]
    orders = await reserved(world, issued[::2])
    for process in world.both:
        await world.known_to(process, issued)
    results = await outcomes(
        call
        for order, coupon, process in zip(orders, issued[1::2], world.both * 14, strict=True)
        for call in (
            process.call(order.confirm(), order.till),
            process.call(consume_request(coupon, "5.00", till), till),
        )
    )
    found = tally(results)
    assert set(found) == {"OK", "SPEND_CAP_REACHED"}
    spent = deducted(world, issued)
    # Each database may be left with less than one deduction.
    assert cap - 2 < spent == found["OK"] <= cap
    assert spent_minor(world, batch_id) == spent * 100
    confirmed = sum(state_of(world, order) == pb.RESERVATION_STATE_CONFIRMED for order in orders)
    assert 0 < confirmed < found["OK"], "both kinds took part"


async def test_nothing_is_spent_from_a_slice_whose_shard_has_moved_away(world: World) -> None:
    capped, till = await world.batch(cash_voucher("1.00"), caps=caps(cap="20.00")), world.cashier()
    first, second, third = await world.issue(capped, world.user(37), 3)
    free = await world.card(shard=37)
    order, paid = Order(till, [first], "5.00"), Order(till, [second], "5.00")
    await taken(world, paid)
    await world.one.call(order.reserve(), till)
    calls = (order.confirm(), paid.reverse(), consume_request(third, "5.00", till))
    # The slices of the database are stored under its lowest shard.
    world.books.change(0, "UPDATE shard_owner SET epoch = 2 WHERE shard = 0")
    try:
        for request in calls:
            refused = await refusal(world.two.call(request, till))
            assert (refused.reason, refused.metadata["shard"]) == ("SHARD_MOVED", "0")
        await world.two.consume(free, "1.00", till)
    finally:
        world.books.change(0, "UPDATE shard_owner SET epoch = 1 WHERE shard = 0")
    for request in calls:
        await world.two.call(request, till)
    assert spent_minor(world, capped) == 200


# --- reversals and refunds ---


async def test_a_reversal_gives_back_the_use_and_the_spend_exactly_once(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"), caps=caps(uses=2, cap="10.00"))
    first, second, third = await world.issue(batch_id, world.user(7), 3)
    till = world.cashier()
    order = Order(till, [first], "20.00")
    await taken(world, order)
    await world.one.consume(second, "20.00", till, "consume-" + order.name)
    assert (used(world, first), spent_minor(world, batch_id)) == ([1, 2], 1_000)
    assert (await refusal(world.one.consume(third, "20.00", till))).reason == "USES_LIMIT_REACHED"

    await asyncio.gather(
        *(
            process.call(order.reverse(request=name), till)
            for process in world.both
            for name in ("", "again-" + order.name)
        )
    )
    assert (used(world, first), spent_minor(world, batch_id)) == ([2], 500)
    await world.one.call(order.reverse(f"consume-{order.name}", "third-" + order.name), till)
    assert (used(world, first), spent_minor(world, batch_id)) == ([], 0)

    # What was given back can be taken again, and no more than that.
    await taken(world, Order(till, [third], "20.00"))
    await world.two.consume(first, "20.00", till)
    assert (await refusal(world.one.consume(second, "20.00", till))).reason == "USES_LIMIT_REACHED"
    assert (used(world, first), spent_minor(world, batch_id)) == ([1, 2], 1_000)


async def test_a_part_that_is_refunded_gives_back_its_spend_and_the_last_part_the_use(world: World) -> None:
    batch_id = await world.batch(gift_card("100.00"), caps=caps(uses=1, cap="50.00"))
    (card,), till = await world.issue(batch_id, world.user(9)), world.cashier()
    (transaction_id,) = await taken(world, Order(till, [card], "40.00"))
    part = refund(transaction_id, "15.00")
    assert len({await process.call_bytes(part, till) for process in world.both * 2}) == 1
    assert (used(world, card), spent_minor(world, batch_id)) == ([1], 2_500)
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "USES_LIMIT_REACHED"

    rest = [refund(transaction_id) for _ in range(4)]
    results = await outcomes(process.call(request, till) for process, request in zip(world.both * 2, rest, strict=True))

    assert tally(results) == {"OK": 1, "ALREADY_REFUNDED": 3}
    assert (used(world, card), spent_minor(world, batch_id)) == ([], 0)
    await world.one.consume(card, "50.00", till)
    assert (used(world, card), spent_minor(world, batch_id)) == ([1], 5_000)


async def test_a_refunded_order_gives_back_what_each_coupon_took_from_its_batch(world: World) -> None:
    user_id, till = world.user(70), world.cashier()
    vouchers = await world.batch(cash_voucher("5.00"), caps=caps(uses=1))
    cards = await world.batch(gift_card("100.00"), caps=caps(cap="80.00"))
    (voucher,), (card,) = await world.issue(vouchers, user_id), await world.issue(cards, user_id)
    order = Order(till, [voucher, card], "60.00")
    await taken(world, order)
    assert (used(world, voucher), spent_minor(world, cards)) == ([1], 5_500)
    request = refund_order(till, f"order-{order.name}")
    assert len({await process.call_bytes(request, till) for process in world.both}) == 1
    assert (used(world, voucher), spent_minor(world, cards)) == ([], 0)


async def test_a_reversal_and_a_refund_of_the_same_consumption_give_it_back_once(world: World) -> None:
    batch_id = await world.batch(gift_card("100.00"), caps=caps(uses=9, cap="90.00"))
    till = world.cashier()
    cards = [each for shard in (12, 77) for each in await world.issue(batch_id, world.user(shard), 4)]
    orders = [Order(till, [card], "10.00") for card in cards]
    ids = [transaction_id for order in orders for transaction_id in await taken(world, order)]
    assert spent_minor(world, batch_id) == 8_000
    results = await outcomes(
        call
        for order, transaction_id in zip(orders, ids, strict=True)
        for call in (world.one.call(order.reverse(), till), world.two.call(refund(transaction_id), till))
    )
    assert tally(results)["OK"] == len(orders)
    assert set(tally(results)) <= {"OK", "REVERSAL_REFUSED", "ALREADY_REFUNDED"}
    assert [used(world, card) for card in cards] == [[]] * len(cards)
    assert spent_minor(world, batch_id) == 0
    for card in cards:
        assert_holds_agree(world.books, card)
        assert world.books.coupon(card.coupon_id).balance == 100


async def test_what_another_databases_slice_paid_for_is_given_back_where_the_coupon_is_now(world: World) -> None:
    batch_id = await world.batch(cash_voucher("6.00"), caps=caps(cap="10.00"))
    (coupon,), till = await world.issue(batch_id, world.user(13)), world.cashier()
    order = Order(till, [coupon], "20.00")
    await taken(world, order)
    # As after a move of the shard to a database that has no slice of this batch yet.
    world.books.change(coupon.shard, "DELETE FROM spend_slice WHERE batch_id = %s", batch_id)
    await world.one.call(order.reverse(), till)
    assert world.books.everywhere("SELECT shard, spent_minor FROM spend_slice WHERE batch_id = %s", batch_id) == [
        (0, -600)
    ]


# --- what a hold outlasts ---


async def test_a_coupon_is_not_expired_while_it_is_held_and_is_swept_afterwards(world: World) -> None:
    till, terms = world.cashier(), ending(gift_card("100.00"), 2.5)
    batch_id = await world.batch(terms)
    confirmed, left, free = [(await world.issue(batch_id, world.user()))[0] for _ in range(3)]
    paid, abandoned = Order(till, [confirmed], "60.00"), Order(till, [left], "60.00")
    for order in (paid, abandoned):
        await world.one.call(order.reserve(), till)

    def kinds(coupon: OwnedCoupon) -> list[JournalKind]:
        return [JournalKind(row.kind) for row in world.books.assert_agree(coupon.coupon_id)]

    async with sweeping(world) as sweeps:
        await until_over(terms)
        await sweeps.expire()
        assert kinds(free)[-1] == JournalKind.EXPIRED, "the sweep came by"
        assert kinds(confirmed) == kinds(left) == [JournalKind.ISSUED, JournalKind.HELD]

        await world.two.call(paid.confirm(), till)
        assert world.books.coupon(confirmed.coupon_id).balance == 40
        run_out(world, abandoned)
        show_leader(world, abandoned)
        await eventually(lambda: state_of(world, abandoned) == EXPIRED)
        await sweeps.expire()

    # What the confirmation left on the card, and what nobody took, ends as if there had been no hold.
    assert kinds(confirmed) == [JournalKind.ISSUED, JournalKind.HELD, JournalKind.CONSUMED, JournalKind.EXPIRED]
    assert kinds(left) == [JournalKind.ISSUED, JournalKind.HELD, JournalKind.HOLD_RELEASED, JournalKind.EXPIRED]
    assert (await refusal(world.one.call(abandoned.confirm(), till))).reason == "HOLD_EXPIRED"
    for coupon in (confirmed, left):
        assert world.books.coupon(coupon.coupon_id).status == CouponStatus.EXPIRED
        assert holding(world.books, coupon) == Holding(0, 0)
        assert_holds_agree(world.books, coupon)


@pytest.mark.parametrize("is_swept", [False, True])
async def test_a_recall_voids_what_is_held_and_no_confirmation_takes_it_any_more(world: World, is_swept: bool) -> None:
    till, user_id = world.cashier(), world.user()
    batch_id = await world.batch(gift_card("100.00"), caps=caps(cap="900.00"))
    (card,) = await world.issue(batch_id, user_id)
    (other,) = await world.issue(await world.batch(cash_voucher("5.00")), user_id)
    order = Order(till, [other, card], "60.00")
    await world.one.call(order.reserve(), till)
    assert (await world.one.call(preview(batch_id), OPERATOR)).stake == stake(1, "100.00")

    await begin(world, batch_id)
    if is_swept:
        async with sweeping(world) as sweeps:
            assert (await until_done(world, sweeps, batch_id)).recall.voided == stake(1, "100.00")
        assert world.books.coupon(card.coupon_id).status == CouponStatus.EXPIRED

    for process in world.both:
        assert (await refusal(process.call(order.confirm(), till))).reason == "BATCH_RECALLED"
    # The rest of the order can be paid for without it, and the hold of the void card ends with that.
    await world.two.call(order.confirm(f"rest-{order.name}", **{f"_{other.coupon_id}": ""}), till)
    assert world.books.coupon(other.coupon_id).status == CouponStatus.USED
    assert holding(world.books, card) == Holding(0, 0)
    assert world.books.coupon(card.coupon_id).balance == 100
    assert spent_minor(world, batch_id) == 0
    assert_holds_agree(world.books, card)
