"""Holds run out: nobody is blocked any more, the leader releases them, and who still confirms takes what is left."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coupon_svc.adapters.mysql_reservations import MysqlReservations
from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.app.hold_sweep import CALLER, CHUNK, HoldSweep
from coupon_svc.app.reservation_ports import ReservationKey
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2, coupon_service_pb2, reservation_pb2
from meshkit.leader import Leadership, StaleEpoch
from meshkit.mysql import Databases
from meshkit.zk import ZooKeeper
from tests.integration.coupon.orders import Holding, Order, assert_holds_agree, holding
from tests.integration.coupon.world import (
    OwnedCoupon,
    World,
    cash_voucher,
    eventually,
    gift_card,
    refusal,
    request_id,
    yuan,
)

SEAT = "/leaders/hold-sweep/leader"
EXPIRED = 4


def run_out(world: World, order: Order) -> None:
    """Puts the end of an order's holds into the past where consumes look, but not where the leader does."""
    for coupon in order.coupons:
        world.books.change(
            coupon.shard,
            "UPDATE coupon_hold SET expire_time = '2020-01-01' WHERE shard = %s AND coupon_id = %s AND "
            "reservation_id = %s",
            coupon.shard,
            coupon.coupon_id,
            order.name,
        )
        world.books.change(
            coupon.shard,
            "UPDATE coupon_info SET hold_expires_at = '2020-01-01' WHERE shard = %s AND coupon_id = %s",
            coupon.shard,
            coupon.coupon_id,
        )


def show_leader(world: World, order: Order) -> None:
    """Puts it into the past where the leader looks as well."""
    world.books.change(
        order.coupons[0].shard,
        "UPDATE reservation SET expire_time = '2020-01-01' WHERE shard = %s AND reservation_id = %s",
        order.coupons[0].shard,
        order.name,
    )


def state_of(world: World, order: Order) -> int:
    ((state,),) = world.books.rows(
        order.coupons[0].shard, "SELECT state FROM reservation WHERE reservation_id = %s", order.name
    )
    return int(state)


async def held_order(world: World, amount: str = "60.00", **fields: object) -> tuple[OwnedCoupon, OwnedCoupon, Order]:
    """A voucher of 5.00 and a card of 100.00, held for an order of 60.00."""
    user, till = world.user(), world.cashier()
    (voucher,) = await world.issue(await world.batch(cash_voucher("5.00")), user)
    (card,) = await world.issue(await world.batch(gift_card("100.00")), user)
    order = Order(till, [voucher, card], amount, **fields)  # type: ignore[arg-type]
    await world.one.call(order.reserve(), till)
    return voucher, card, order


async def test_a_hold_that_ran_out_blocks_nobody_though_it_is_not_released_yet(world: World) -> None:
    voucher, card, order = await held_order(world)
    till = world.cashier()
    assert (await refusal(world.two.consume(voucher, "20.00", till))).reason == "COUPON_HELD"
    assert (await refusal(world.two.consume(card, "45.01", till))).reason == "BALANCE_INSUFFICIENT"

    run_out(world, order)

    shown = await world.one.call(
        coupon_service_pb2.ValidateCouponRequest(
            coupon_id=card.coupon_id, merchant_id=till.merchant_id, amount=yuan("100.00")
        ),
        till,
    )
    assert (shown.usable, shown.coupon.held, shown.coupon.available) == (True, yuan("0.00"), yuan("100.00"))
    await world.two.consume(voucher, "20.00", till)
    await world.two.consume(card, "100.00", till)
    # The row still counts the hold: nobody waited for its release.
    assert holding(world.books, card) == Holding(5_500, 1)
    assert world.books.coupon(card.coupon_id).status == CouponStatus.USED


async def test_another_order_may_hold_what_an_expired_hold_still_counts(world: World) -> None:
    voucher, card, order = await held_order(world)
    run_out(world, order)
    till = world.cashier()
    later = Order(till, [voucher, card], "105.00")
    await world.two.call(later.reserve(), till)
    # The first order's time is over and the coupons are another's: it gets nothing, and says why.
    late = await refusal(world.one.call(order.confirm(), order.till))
    assert (late.reason, late.metadata["coupon_id"]) == ("HOLD_EXPIRED", voucher.coupon_id)
    assert (await refusal(world.one.consume(card, "0.01", till))).reason == "BALANCE_INSUFFICIENT"
    await world.one.call(later.confirm(), till)
    assert world.books.coupon(card.coupon_id).balance == 0
    show_leader(world, order)
    await eventually(lambda: state_of(world, order) == EXPIRED)
    for coupon in (voucher, card):
        assert_holds_agree(world.books, coupon)
        assert holding(world.books, coupon) == Holding(0, 0)


async def test_the_leader_releases_what_ran_out_and_says_so_in_the_journal(world: World) -> None:
    voucher, card, order = await held_order(world, ttl_s=1)
    await eventually(lambda: state_of(world, order) == EXPIRED)
    for coupon in (voucher, card):
        assert holding(world.books, coupon) == Holding(0, 0)
        assert_holds_agree(world.books, coupon)
        last = world.books.journal(coupon.coupon_id)[-1]
        assert (last.kind, last.origin.caller) == (JournalKind.HOLD_RELEASED, CALLER)
        assert last.order_id == f"order-{order.name}"


@pytest.mark.parametrize("is_released", [False, True])
async def test_a_confirmation_after_the_end_takes_the_coupons_again_when_nobody_else_did(
    world: World, is_released: bool
) -> None:
    voucher, card, order = await held_order(world)
    run_out(world, order)
    if is_released:
        show_leader(world, order)
        await eventually(lambda: state_of(world, order) == EXPIRED)
    # Somebody took a part that the order does not need.
    await world.two.consume(card, "45.00", world.cashier())

    confirmed = await world.one.call(order.confirm(), order.till)

    assert confirmed.reservation.state == reservation_pb2.RESERVATION_STATE_CONFIRMED
    assert world.books.coupon(card.coupon_id).balance == 0
    for coupon in (voucher, card):
        assert world.books.coupon(coupon.coupon_id).status == CouponStatus.USED
        assert holding(world.books, coupon) == Holding(0, 0)
        assert_holds_agree(world.books, coupon)


@pytest.mark.parametrize("is_released", [False, True])
async def test_a_confirmation_after_the_end_is_refused_whole_when_the_balance_is_gone(
    world: World, is_released: bool
) -> None:
    voucher, card, order = await held_order(world)
    run_out(world, order)
    if is_released:
        show_leader(world, order)
        await eventually(lambda: state_of(world, order) == EXPIRED)
    await world.two.consume(card, "45.01", world.cashier())

    late = await refusal(world.one.call(order.confirm(), order.till))

    assert (late.reason, late.metadata["coupon_id"]) == ("HOLD_EXPIRED", card.coupon_id)
    assert world.books.coupon(voucher.coupon_id).status == CouponStatus.ACTIVATED
    # What is left can be taken, and a cancellation is still good.
    less = order.confirm(request_id(), **{f"_{card.coupon_id}": "54.99"})
    await world.one.call(less, order.till)
    assert world.books.coupon(card.coupon_id).balance == 0
    assert_holds_agree(world.books, card)


def set_expiry(world: World, coupon: OwnedCoupon, moment: str) -> None:
    world.books.change(
        coupon.shard, "UPDATE coupon_info SET expires_at = %s WHERE coupon_id = %s", moment, coupon.coupon_id
    )


async def test_a_coupon_that_expires_while_it_is_held_is_still_confirmed_but_not_after_the_hold(world: World) -> None:
    voucher, card, order = await held_order(world)
    _, other_card, other = await held_order(world)
    for coupon in (voucher, card, *other.coupons):
        set_expiry(world, coupon, "2020-01-01")
    run_out(world, other)
    assert (await refusal(world.two.consume(card, "1.00", world.cashier()))).reason == "COUPON_EXPIRED"

    await world.one.call(order.confirm(), order.till)
    assert world.books.coupon(voucher.coupon_id).status == CouponStatus.USED

    assert (await refusal(world.one.call(other.confirm(), other.till))).reason == "HOLD_EXPIRED"
    assert world.books.coupon(other_card.coupon_id).balance == 100


async def test_a_frozen_coupon_or_account_or_a_blocked_batch_is_not_confirmed_until_it_is_free_again(
    world: World,
) -> None:
    _, card, order = await held_order(world)

    def set_status(status: CouponStatus) -> None:
        world.books.change(
            card.shard, "UPDATE coupon_info SET status = %s WHERE coupon_id = %s", int(status), card.coupon_id
        )

    def set_account(status: int) -> None:
        world.books.change(card.shard, "UPDATE account_state SET status = %s WHERE user_id = %s", status, card.user_id)

    set_status(CouponStatus.FROZEN)
    assert (await refusal(world.one.call(order.confirm(), order.till))).reason == "COUPON_FROZEN"
    set_status(CouponStatus.ACTIVATED)
    set_account(2)
    assert (await refusal(world.one.call(order.confirm(), order.till))).reason == "ACCOUNT_FROZEN"
    assert (await refusal(world.two.call(Order(order.till, [card], "1.00").reserve(), order.till))).reason == (
        "ACCOUNT_FROZEN"
    )
    set_account(1)
    await world.block(card.batch_id, batch_pb2.BLOCK_SCOPE_CONSUME)
    # Every process obeys within a second.
    await eventually(lambda: _is_refused(world, order, "BATCH_BLOCKED"), timeout_s=2)
    await world.block(card.batch_id, batch_pb2.BLOCK_SCOPE_NONE)

    async def confirmed() -> bool:
        return not await _is_refused(world, order, "BATCH_BLOCKED")

    await eventually(confirmed, timeout_s=2)
    assert world.books.coupon(card.coupon_id).balance == 45


async def _is_refused(world: World, order: Order, reason: str) -> bool:
    probe = Order(order.till, order.coupons, order.amount, name=order.name)
    call = world.one.call(probe.confirm(f"probe-{order.name}"), order.till)
    try:
        return (await refusal(call)).reason == reason
    except AssertionError:
        return False


async def test_a_frozen_account_can_still_give_its_holds_up(world: World) -> None:
    voucher, card, order = await held_order(world)
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    await world.one.call(order.cancel(), order.till)
    for coupon in (voucher, card):
        assert holding(world.books, coupon) == Holding(0, 0)


async def test_without_risk_control_small_orders_are_held_with_their_settlement_and_large_ones_refused(
    world: World,
) -> None:
    user, till = world.user(), world.cashier()
    (card,) = await world.issue(await world.batch(gift_card("900.00")), user)
    small, large = Order(till, [card], "200.00"), Order(till, [card], "200.01")
    with world.stack.risk.frozen():
        assert (await refusal(world.one.call(large.reserve(), till))).reason == "RISK_UNAVAILABLE"
        reserved = await world.one.call(small.reserve(), till)
    await world.stack.risk.wait_ready()
    assert reserved.reservation.settlement_held
    confirmed = await world.two.call(small.confirm(), till)
    assert [row.settlement_held for row in confirmed.transactions] == [True]
    assert [row.settlement_held for row in world.books.journal(card.coupon_id)] == [False, True, True]


# --- the leader ---


@asynccontextmanager
async def sweep_of_this_process(world: World) -> AsyncIterator[tuple[HoldSweep, MysqlReservations]]:
    """The leader's work under the test's own hands, beside the services' own."""
    async with Databases.open(world.stack.shard_map("coupon"), pool_size=4) as databases:
        base = MysqlStore(databases, timeout_s=5, record_retention_days=1)
        await base.learn_epochs()
        store = MysqlReservations(base, timeout_s=5)
        yield (
            HoldSweep(
                store=store,
                sign=lambda data: world.books._audit.mac("coupon-journal", data),
                clock=lambda: time.time_ns() // 1_000_000,
                every_s=0.1,
                observe=lambda _: None,
            ),
            store,
        )


async def test_what_a_leader_of_before_releases_is_refused_by_the_database(world: World) -> None:
    _, card, order = await held_order(world)
    before, after = (Leadership(f"sweep-{uuid.uuid4().hex[:8]}", epoch) for epoch in (1, 2))
    after.job = before.job
    async with sweep_of_this_process(world) as (sweep, store):
        database = store._store.database_of(card.shard)
        key = ReservationKey(card.shard, order.till.client_id, order.name)
        await store.begin_leadership(database, before)
        await store.begin_leadership(database, after)
        with pytest.raises(StaleEpoch):
            await sweep.release([key], before)
        # The one in office finds that it is not over yet.
        assert (await sweep.release([key], after)).reservations == 0
    assert holding(world.books, card) == Holding(5_500, 1)


async def test_more_than_a_chunk_is_released_and_two_who_believe_they_lead_release_nothing_twice(world: World) -> None:
    count = CHUNK + 10
    user, till = world.user(shard=3), world.cashier()
    cards = await world.issue(await world.batch(gift_card("10.00")), user, quantity=count)
    orders = [Order(till, [card], "1.00") for card in cards]
    await asyncio.gather(*(world.both[n % 2].call(order.reserve(), till) for n, order in enumerate(orders)))
    one, two = (Leadership(f"sweep-{uuid.uuid4().hex[:8]}", 1) for _ in range(2))
    async with sweep_of_this_process(world) as (sweep, store):
        database = store._store.database_of(3)
        for leadership in (one, two):
            await store.begin_leadership(database, leadership)
        with world.books.transaction(3) as tx:
            tx.run("UPDATE reservation SET expire_time = '2020-01-01' WHERE shard = 3 AND caller = %s", till.client_id)
            tx.commit()
        # The services' own leader is at it as well.
        await asyncio.gather(sweep.visit(database, one), sweep.visit(database, two))
        await eventually(lambda: all(state_of(world, order) == EXPIRED for order in orders))
    for card in cards:
        kinds = [row.kind for row in world.books.assert_agree(card.coupon_id)]
        assert kinds == [JournalKind.ISSUED, JournalKind.HELD, JournalKind.HOLD_RELEASED]
        assert holding(world.books, card) == Holding(0, 0)


async def test_when_the_leading_process_is_killed_another_one_goes_on(world: World) -> None:
    async with ZooKeeper(world.stack.zookeeper_address) as zookeeper:
        root = next(iter(world.stack.local.replicas_of("coupon"))).environment()["COUPON_ZOOKEEPER_ROOT"]

        async def leader() -> str:
            seat = await zookeeper.find(f"{root}{SEAT}")
            return "" if seat is None else seat.data.decode()

        first = await eventually(leader)
        number = world.stack.coupon_targets.index(first) + 1
        survivor = world.both[2 - number]
        till = world.cashier()
        (card,) = await world.issue(await world.batch(gift_card("10.00")), world.user())
        order = Order(till, [card], "1.00", ttl_s=1)
        world.stack.coupon(number).kill()
        try:
            await survivor.call(order.reserve(), till)
            await eventually(lambda: state_of(world, order) == EXPIRED, timeout_s=20)
            assert await leader() == survivor.service.endpoint
        finally:
            await world.stack.coupon(number).start()
            await world.stack.wait_until_serving()
    assert holding(world.books, card) == Holding(0, 0)
