"""Coupons are held for an order, then taken or given up: all or nothing, once."""

from __future__ import annotations

import asyncio

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import coupon_service_pb2, reservation_pb2
from couponmesh.coupon.v1.reservation_pb2 import (
    RESERVATION_STATE_CANCELLED,
    RESERVATION_STATE_CONFIRMED,
    RESERVATION_STATE_HELD,
)
from tests.integration.coupon.orders import Holding, Order, assert_holds_agree, holding, line
from tests.integration.coupon.world import (
    Caller,
    OwnedCoupon,
    World,
    cash_voucher,
    discount,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    threshold,
    yuan,
)


async def wallet(world: World, *terms: object) -> list[OwnedCoupon]:
    """A coupon of each of these terms, all of one new user."""
    user = world.user()
    return [(await world.issue(await world.batch(each), user))[0] for each in terms]  # type: ignore[arg-type]


async def validated(
    world: World, coupon: OwnedCoupon, amount: str, till: Caller
) -> coupon_service_pb2.ValidateCouponResponse:
    reply: coupon_service_pb2.ValidateCouponResponse = await world.two.call(
        coupon_service_pb2.ValidateCouponRequest(
            coupon_id=coupon.coupon_id, merchant_id=till.merchant_id, amount=yuan(amount)
        ),
        till,
    )
    return reply


async def test_several_coupons_and_a_part_of_a_gift_card_are_held_then_taken_for_one_order(world: World) -> None:
    reduction, rebate, card = await wallet(world, threshold("100.00", "20.00"), discount("0.9"), gift_card("500.00"))
    till = world.cashier()
    order = Order(
        till,
        [reduction, rebate, card],
        "300.00",
        parts={card.coupon_id: "100.00"},
        lines=[line("a", "99.99"), line("b", "50.01", 2), line("c", "99.99")],
    )

    reserved = (await world.one.call(order.reserve(), till)).reservation

    assert reserved.state == RESERVATION_STATE_HELD
    assert [hold.deduction.amount_minor for hold in reserved.holds] == [2_000, 2_800, 10_000]
    assert reserved.payable == yuan("152.00")
    for hold in reserved.holds:
        assert sum(part.deduction.amount_minor for part in hold.lines) == hold.deduction.amount_minor
    assert holding(world.books, card) == Holding(10_000, 1)
    assert (await validated(world, card, "400.00", till)).usable
    shown = await validated(world, card, "400.01", till)
    assert shown.refusal_reason == "BALANCE_INSUFFICIENT"
    assert (shown.coupon.balance, shown.coupon.held, shown.coupon.available) == tuple(
        map(yuan, ("500.00", "100.00", "400.00"))
    )
    assert (await validated(world, reduction, "300.00", till)).refusal_reason == "COUPON_HELD"
    assert (await refusal(world.two.consume(reduction, "300.00", till))).reason == "COUPON_HELD"

    confirmed = await world.two.call(order.confirm(), till)

    assert confirmed.reservation.state == RESERVATION_STATE_CONFIRMED
    assert [row.deduction.amount_minor for row in confirmed.transactions] == [2_000, 2_800, 10_000]
    assert [row.payable.amount_minor for row in confirmed.transactions] == [28_000, 25_200, 0]
    assert {row.order_id for row in confirmed.transactions} == {f"order-{order.name}"}
    assert confirmed.reservation.payable == yuan("152.00")
    for coupon, status in ((reduction, CouponStatus.USED), (rebate, CouponStatus.USED), (card, CouponStatus.ACTIVATED)):
        assert world.books.coupon(coupon.coupon_id).status == status
        assert holding(world.books, coupon) == Holding(0, 0)
        assert_holds_agree(world.books, coupon)
    assert world.books.coupon(card.coupon_id).balance == 400
    kinds = [row.kind for row in world.books.journal(card.coupon_id)]
    assert kinds == [JournalKind.ISSUED, JournalKind.HELD, JournalKind.CONSUMED]


async def test_what_each_line_of_the_order_gets_is_stored_with_each_transaction(world: World) -> None:
    rebate, card = await wallet(world, discount("0.9"), gift_card("500.00"))
    till = world.cashier()
    lines = [line("a", "0.01"), line("b", "0.01"), line("c", "0.03", 1)]
    order = Order(till, [rebate, card], "0.05", parts={card.coupon_id: "0.02"}, lines=lines)

    await world.one.call(order.reserve(), till)
    confirmed = await world.one.call(order.confirm(), till)

    stored = world.books.rows(
        card.shard,
        "SELECT l.transaction_id, l.line_id, l.amount_minor, l.deduction_minor FROM transaction_line l "
        "JOIN coupon_transaction t ON t.shard = l.shard AND t.transaction_id = l.transaction_id "
        "WHERE t.order_id = %s ORDER BY t.transaction_id, l.position",
        f"order-{order.name}",
    )
    ids = [row.transaction_id for row in confirmed.transactions]
    # 10 % of 0.05 is 0.005, rounded half-up to 0.01: the largest remainder is that of c (3/5). Then 0.02 over 1, 1, 2.
    assert stored == [
        (ids[0], "a", 1, 0),
        (ids[0], "b", 1, 0),
        (ids[0], "c", 3, 1),
        (ids[1], "a", 1, 1),
        (ids[1], "b", 1, 0),
        (ids[1], "c", 3, 1),
    ]
    assert [[part.deduction.amount_minor for part in hold.lines] for hold in confirmed.reservation.holds] == [
        [0, 0, 1],
        [1, 0, 1],
    ]


async def test_one_coupon_that_cannot_be_held_leaves_all_of_them_free(world: World) -> None:
    voucher, used, card = await wallet(world, cash_voucher("5.00"), cash_voucher("5.00"), gift_card("10.00"))
    till = world.cashier()
    await world.one.consume(used, "20.00", till)
    order = Order(till, [voucher, used, card], "50.00")

    assert (await refusal(world.one.call(order.reserve(), till))).reason == "COUPON_USED"

    for coupon in (voucher, card):
        assert holding(world.books, coupon) == Holding(0, 0)
        assert [row.kind for row in world.books.assert_agree(coupon.coupon_id)] == [JournalKind.ISSUED]
    # A refusal is not recorded: without the used coupon the same reservation is made.
    order = Order(till, [voucher, card], "15.00", name=order.name)
    await world.one.call(order.reserve(), till)
    assert holding(world.books, card) == Holding(1_000, 1)


async def test_confirming_less_than_was_held_takes_that_and_frees_the_rest(world: World) -> None:
    voucher, card = await wallet(world, cash_voucher("5.00"), gift_card("100.00"))
    till = world.cashier()
    order = Order(till, [voucher, card], "85.00")
    await world.one.call(order.reserve(), till)
    assert holding(world.books, card) == Holding(8_000, 1)

    confirmed = await world.one.call(order.confirm(**{f"_{card.coupon_id}": "30.00"}), till)

    assert [row.coupon_id for row in confirmed.transactions] == [card.coupon_id]
    assert confirmed.reservation.payable == yuan("55.00")
    assert world.books.coupon(card.coupon_id).balance == 70
    assert world.books.coupon(voucher.coupon_id).status == CouponStatus.ACTIVATED
    for coupon in (voucher, card):
        assert holding(world.books, coupon) == Holding(0, 0)
        assert_holds_agree(world.books, coupon)
    kinds = [(row.kind, row.deduction_minor) for row in world.books.journal(card.coupon_id)][1:]
    assert kinds == [(JournalKind.HELD, 8_000), (JournalKind.CONSUMED, 3_000), (JournalKind.HOLD_RELEASED, 5_000)]
    # Both are free for the next order.
    await world.one.call(Order(till, [voucher, card], "75.00").reserve(), till)


async def test_more_than_was_held_is_not_confirmed_and_the_hold_stays(world: World) -> None:
    voucher, card, other = await wallet(world, cash_voucher("5.00"), gift_card("100.00"), gift_card("100.00"))
    till = world.cashier()
    order = Order(till, [voucher, card], "85.00", parts={card.coupon_id: "40.00"})
    await world.one.call(order.reserve(), till)

    more = await refusal(world.one.call(order.confirm(**{f"_{card.coupon_id}": "40.01"}), till))
    foreign = await refusal(world.one.call(order.confirm(**{f"_{other.coupon_id}": "1.00"}), till))
    part = await refusal(world.one.call(order.confirm(**{f"_{voucher.coupon_id}": "4.99"}), till))

    assert (more.reason, more.metadata["held"]) == ("CONFIRM_EXCEEDS_HOLD", "40.00")
    assert (foreign.reason, foreign.metadata["held"]) == ("CONFIRM_EXCEEDS_HOLD", "0.00")
    assert part.reason == "VALIDATION_FAILED"
    assert holding(world.books, card) == Holding(4_000, 1)
    await world.one.call(order.confirm(), till)


async def test_a_cancelled_reservation_frees_everything_and_cannot_be_confirmed(world: World) -> None:
    voucher, card = await wallet(world, cash_voucher("5.00"), gift_card("100.00"))
    till = world.cashier()
    order = Order(till, [voucher, card], "85.00")
    await world.one.call(order.reserve(), till)

    assert (await world.two.call(order.cancel(), till)).state == RESERVATION_STATE_CANCELLED

    assert (await refusal(world.one.call(order.confirm(), till))).reason == "RESERVATION_CANCELLED"
    for coupon in (voucher, card):
        assert holding(world.books, coupon) == Holding(0, 0)
        kinds = [row.kind for row in world.books.assert_agree(coupon.coupon_id)]
        assert kinds == [JournalKind.ISSUED, JournalKind.HELD, JournalKind.HOLD_RELEASED]


async def test_a_cancellation_that_comes_first_refuses_the_late_reservation(world: World) -> None:
    (voucher,) = await wallet(world, cash_voucher("5.00"))
    till = world.cashier()
    order = Order(till, [voucher], "85.00")

    assert (await world.one.call(order.cancel(), till)).state == RESERVATION_STATE_CANCELLED
    assert (await refusal(world.two.call(order.reserve(), till))).reason == "RESERVATION_CANCELLED"
    assert (await refusal(world.two.call(order.confirm(), till))).reason == "RESERVATION_CANCELLED"
    # Another till's reservation of the same name is another one.
    other = world.cashier()
    await world.one.call(Order(other, [voucher], "85.00", name=order.name).reserve(), other)


async def test_fifty_concurrent_cancellations_of_an_unknown_reservation_all_succeed(world: World) -> None:
    (voucher,) = await wallet(world, cash_voucher("5.00"))
    till = world.cashier()
    order = Order(till, [voucher], "85.00")
    deadlocks = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'innodb_deadlocks'"
    before = world.books.rows(0, deadlocks)

    # Each with a request_id of its own: nothing but the reservation itself makes them one.
    results = await outcomes(
        world.both[number % 2].call(order.cancel(request=f"{order.name}-{number}"), till) for number in range(50)
    )

    assert tally(results) == {"OK": 50}
    assert world.books.rows(0, deadlocks) == before
    rows = world.books.rows(
        voucher.shard, "SELECT state, order_id FROM reservation WHERE reservation_id = %s", order.name
    )
    assert rows == [(3, "")]


async def test_thirty_copies_of_a_reservation_that_is_refused_are_all_told_why(world: World) -> None:
    used, card = await wallet(world, cash_voucher("5.00"), gift_card("100.00"))
    till = world.cashier()
    await world.one.consume(used, "20.00", till)
    order = Order(till, [card, used], "85.00", parts={card.coupon_id: "1.00"})
    results = await outcomes(world.both[number % 2].call(order.reserve(), till) for number in range(30))
    assert tally(results) == {"COUPON_USED": 30}
    assert holding(world.books, card) == Holding(0, 0)


async def test_a_repeated_request_is_answered_byte_for_byte_and_another_one_for_the_same_by_what_happened(
    world: World,
) -> None:
    (card,) = await wallet(world, gift_card("100.00"))
    till = world.cashier()
    order = Order(till, [card], "40.00")
    for request in (order.reserve(), order.confirm(), order.reverse()):
        first = await world.one.call_bytes(request, till)
        assert await world.two.call_bytes(request, till) == first
    assert world.books.coupon(card.coupon_id).balance == 100

    order = Order(till, [card], "40.00")
    for request, again in (
        (order.reserve(), order.reserve("again-1" + order.name)),
        (order.confirm(), order.confirm("again-2" + order.name)),
        (order.reverse(), order.reverse(request="again-3" + order.name)),
    ):
        assert await world.one.call_bytes(request, till) == await world.two.call_bytes(again, till)
    assert_holds_agree(world.books, card)


async def test_one_name_for_two_different_reservations_is_refused(world: World) -> None:
    (card,) = await wallet(world, gift_card("100.00"))
    till = world.cashier()
    order = Order(till, [card], "40.00")
    await world.one.call(order.reserve(), till)
    other = Order(till, [card], "41.00", name=order.name)
    assert (await refusal(world.one.call(other.reserve(request_id()), till))).reason == "RESERVATION_ID_REUSED"
    assert (await refusal(world.one.call(other.reserve(), till))).reason == "IDEMPOTENCY_KEY_REUSED"
    await world.one.call(order.confirm(), till)
    less = order.confirm(request_id(), **{f"_{card.coupon_id}": "1.00"})
    assert (await refusal(world.one.call(less, till))).reason == "RESERVATION_CONFIRMED"
    assert (await refusal(world.one.call(order.cancel(), till))).reason == "RESERVATION_CONFIRMED"
    assert world.books.coupon(card.coupon_id).balance == 60


async def test_two_orders_race_for_one_coupon_over_two_processes_and_one_gets_it(world: World) -> None:
    voucher, card = await wallet(world, cash_voucher("5.00"), gift_card("100.00"))
    tills = [world.cashier() for _ in range(20)]
    orders = [Order(till, [voucher, card], "15.00") for till in tills]
    with world.books.coupon_held(voucher.coupon_id):
        racing = [
            asyncio.ensure_future(world.both[number % 2].call(order.reserve(), order.till))
            for number, order in enumerate(orders)
        ]
        # They do meet: more than one waits for the coupon's row.
        await world.books.until_waiting("FROM coupon_info FORCE INDEX (PRIMARY)", count=16)
    assert tally(await outcomes(racing)) == {"OK": 1, "COUPON_HELD": 19}
    assert holding(world.books, card) == Holding(1_000, 1)
    for coupon in (voucher, card):
        assert_holds_agree(world.books, coupon)


async def test_holds_of_several_orders_never_exceed_a_card_and_consumes_take_only_what_is_free(world: World) -> None:
    card = await world.card(balance="100.00")
    tills = [world.cashier() for _ in range(12)]
    orders = [Order(till, [card], "10.00") for till in tills]
    reserving = [world.both[number % 2].call(order.reserve(), order.till) for number, order in enumerate(orders[:6])]
    consuming = [world.both[number % 2].consume(card, "10.00", till) for number, till in enumerate(tills[6:])]
    results = await outcomes([*reserving, *consuming])
    assert tally(results)["OK"] == 10
    assert tally(results)["BALANCE_INSUFFICIENT"] + tally(results)["COUPON_BUSY"] == 2
    assert_holds_agree(world.books, card)
    held = [
        order
        for order, result in zip(orders, results, strict=False)
        if isinstance(result, reservation_pb2.ReserveCouponsResponse)
    ]
    confirmed = await outcomes(world.one.call(order.confirm(), order.till) for order in held)
    assert tally(confirmed) == {"OK": len(held)}
    assert_holds_agree(world.books, card)


@pytest.mark.parametrize("by", ["code", "coupon_id"])
async def test_a_coupon_or_its_code_leads_to_the_reservation_as_well_as_the_user(world: World, by: str) -> None:
    (voucher,) = await wallet(world, cash_voucher("5.00"))
    till = world.cashier()
    order = Order(till, [voucher], "85.00")
    request = order.reserve()
    request.coupons[0].code = voucher.code
    await world.one.call(request, till)
    confirm = order.confirm()
    confirm.ClearField("user_id")
    setattr(confirm, by, getattr(voucher, by))
    await world.one.call(confirm, till)
    reverse = order.reverse()
    reverse.ClearField("user_id")
    setattr(reverse, by, getattr(voucher, by))
    assert len((await world.one.call(reverse, till)).transactions) == 1


async def test_bad_orders_are_refused_by_name_and_change_nothing(world: World) -> None:
    voucher, card = await wallet(world, cash_voucher("5.00"), gift_card("100.00"))
    foreign = await world.card()
    till = world.cashier()
    before = world.books.checksums()

    async def reason(order: Order, **fields: object) -> str:
        return (await refusal(world.one.call(order.reserve(request_id(), **fields), till))).reason

    assert await reason(Order(till, [voucher, foreign], "10.00")) == "VALIDATION_FAILED"
    assert await reason(Order(till, [voucher, voucher], "10.00")) == "VALIDATION_FAILED"
    assert await reason(Order(till, [voucher], "10.00", parts={voucher.coupon_id: "1.00"})) == "VALIDATION_FAILED"
    assert await reason(Order(till, [card], "10.00", parts={card.coupon_id: "10.01"})) == "VALIDATION_FAILED"
    assert await reason(Order(till, [card], "100.01")) == "BALANCE_INSUFFICIENT"
    assert await reason(Order(till, [voucher, card], "5.00")) == "COUPON_NO_EFFECT"
    assert await reason(Order(till, [card], "10.00", lines=[line("a", "9.99")])) == "LINES_AMOUNT_MISMATCH"
    assert await reason(Order(till, [card], "10.00", lines=[line("a", "5.00"), line("a", "5.00")])) == (
        "VALIDATION_FAILED"
    )
    assert await reason(Order(till, [card], "10.00"), ttl_s=86_401) == "VALIDATION_FAILED"
    unknown = Order(till, [card], "10.00")
    assert (await refusal(world.one.call(unknown.confirm(), till))).reason == "RESERVATION_NOT_FOUND"
    assert world.books.checksums() == before
