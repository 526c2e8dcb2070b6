"""A process dies in the middle of reserving, confirming, cancelling or reversing: another one finishes, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from google.protobuf.message import Message

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from tests.integration.coupon.orders import Holding, Order, assert_holds_agree, holding
from tests.integration.coupon.world import CouponProcess, OwnedCoupon, World, cash_voucher, eventually, gift_card


async def fresh_order(world: World) -> tuple[OwnedCoupon, OwnedCoupon, Order]:
    """A voucher of 5.00 and a card of 100.00 for an order of 60.00; nothing is held yet."""
    user, till = world.user(), world.cashier()
    (voucher,) = await world.issue(await world.batch(cash_voucher("5.00")), user)
    (card,) = await world.issue(await world.batch(gift_card("100.00")), user)
    return voucher, card, Order(till, [voucher, card], "60.00")


async def die_in_the_middle(world: World, victim: CouponProcess, order: Order, request: Message) -> None:
    """Kills a process whose transaction has the reservation and waits for the last coupon's row."""
    last = max(coupon.coupon_id for coupon in order.coupons)
    with world.books.coupon_held(last):
        call = asyncio.ensure_future(victim.call(request, order.till))
        await world.books.until_waiting("FROM coupon_info FORCE INDEX (PRIMARY)", count=1)
        victim.service.kill()
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await call
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("step", ["reserve", "confirm", "cancel", "reverse"])
async def test_what_a_killed_process_had_begun_is_as_if_it_never_was_and_the_retry_does_it_once(
    world: World, step: str
) -> None:
    voucher, card, order = await fresh_order(world)
    requests = {
        "reserve": order.reserve(),
        "confirm": order.confirm(),
        "cancel": order.cancel(),
        "reverse": order.reverse(),
    }
    earlier = {"reserve": (), "confirm": ("reserve",), "cancel": ("reserve",), "reverse": ("reserve", "confirm")}
    for name in earlier[step]:
        await world.one.call(requests[name], order.till)
    rows = [world.books.journal(coupon.coupon_id) for coupon in (voucher, card)]
    held = [holding(world.books, coupon) for coupon in (voucher, card)]

    async with world.further_process() as victim:
        await die_in_the_middle(world, victim, order, requests[step])

    assert [world.books.journal(coupon.coupon_id) for coupon in (voucher, card)] == rows
    assert [holding(world.books, coupon) for coupon in (voucher, card)] == held

    replies = [await process.call_bytes(requests[step], order.till) for process in (world.one, world.two)]
    assert replies[0] == replies[1]
    status, balance, held_after = {
        "reserve": (CouponStatus.ACTIVATED, 100, Holding(5_500, 1)),
        "confirm": (CouponStatus.USED, 45, Holding(0, 0)),
        "cancel": (CouponStatus.ACTIVATED, 100, Holding(0, 0)),
        "reverse": (CouponStatus.ACTIVATED, 100, Holding(0, 0)),
    }[step]
    assert world.books.coupon(voucher.coupon_id).status == status
    assert world.books.coupon(card.coupon_id).balance == balance
    assert holding(world.books, card) == held_after
    for coupon, was in zip((voucher, card), rows, strict=True):
        assert_holds_agree(world.books, coupon)
        assert len(world.books.journal(coupon.coupon_id)) == len(was) + 1


def confirmed(world: World, orders: Sequence[Order]) -> int:
    """How many consumptions these orders' cards have."""
    cards = tuple(order.coupons[0].coupon_id for order in orders)
    found = world.books.everywhere("SELECT COUNT(*) FROM coupon_transaction WHERE coupon_id IN %s", cards)
    return sum(count for (count,) in found)


async def test_orders_in_full_swing_while_a_process_is_killed_are_each_done_once(world: World) -> None:
    batch = await world.batch(gift_card("100.00"))
    orders = []
    for _ in range(24):
        (card,) = await world.issue(batch, world.user())
        orders.append(Order(world.cashier(), [card], "10.00"))
    lost = 0

    async def until_done(victim: CouponProcess, request: Message, order: Order) -> None:
        """Sends to the victim first, and the very same request to others until it is answered."""
        nonlocal lost
        for process in (victim, world.one, world.two, world.one):
            try:
                await process.call(request, order.till)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                lost += 1
                continue
            return
        raise AssertionError("no process answered")

    async def whole(victim: CouponProcess, order: Order) -> None:
        for round_ in range(3):
            again = Order(order.till, order.coupons, order.amount, name=f"{order.name}-{round_}")
            await until_done(victim, again.reserve(), again)
            await until_done(victim, again.confirm(), again)

    async with world.further_process() as victim, asyncio.TaskGroup() as group:
        for order in orders:
            group.create_task(whole(victim, order))
        # It dies as soon as some orders are confirmed and the others are under way.
        await eventually(lambda: confirmed(world, orders) >= 8)
        victim.service.kill()
    assert lost > 0, "some requests were lost with the process"
    for order in orders:
        (card,) = order.coupons
        kinds = [row.kind for row in world.books.journal(card.coupon_id)]
        assert kinds == [JournalKind.ISSUED, *[JournalKind.HELD, JournalKind.CONSUMED] * 3]
        assert world.books.coupon(card.coupon_id).balance == 70
        assert_holds_agree(world.books, card)
