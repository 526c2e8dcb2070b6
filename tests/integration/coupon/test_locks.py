"""Locks in Redis save work and decide nothing: whatever happens to them, no coupon is spent twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
from redis.asyncio import Redis

from tests.integration.coupon.world import (
    CouponProcess,
    OwnedCoupon,
    Refusal,
    World,
    consume_request,
    eventually,
    outcomes,
    tally,
    until_answered,
    yuan,
)

LOWER, UPPER = 11, 75
ACQUIRED = "coupon_lock_keys_total{event=acquired}"
UNAVAILABLE = "coupon_lock_keys_total{event=unavailable}"


@pytest.fixture
async def redis(world: World) -> AsyncIterator[Redis]:
    """The Redis that holds the locks."""
    async with Redis.from_url(world.stack.redis_url(0), decode_responses=True) as redis:
        yield redis


async def until_locking(world: World) -> None:
    """Waits until both processes take locks again."""
    await world.stack.wait_until_serving()
    card, till = await world.card(), world.cashier()

    async def locks(process: CouponProcess) -> bool:
        async with process.observed() as rise:
            await process.consume(card, "0.01", till)
        return rise[ACQUIRED] == 1

    for process in world.both:
        await eventually(partial(locks, process))


async def lacks(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def number_at(redis: Redis, key: str) -> int:
    value = await redis.get(key)
    assert value is not None
    return int(value)


def lock_of(coupon: OwnedCoupon) -> str:
    return f"LOCK_COUPON:{coupon.coupon_id}"


async def test_a_consume_locks_its_coupon_and_lets_go_of_it(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.coupon_held(card.coupon_id):
        consuming = asyncio.ensure_future(world.one.consume(card, "1.00", till))
        await world.books.until_waiting(card.coupon_id)
        lease_ms = await redis.pttl(lock_of(card))
        assert 0 < lease_ms <= 3_000
        fence = await number_at(redis, "LOCK_FENCE")
    await consuming
    # It is let go of once the reply is on its way.
    await eventually(partial(lacks, redis, lock_of(card)))
    journal = world.books.assert_agree(card.coupon_id)
    assert journal[-1].lock_fence is not None, "the fence is journaled, for diagnosis"
    assert journal[-1].lock_fence <= fence


# --- a process that is stopped while it holds the lock ---


async def frozen_with_the_lock(world: World, redis: Redis, process: CouponProcess, card: OwnedCoupon) -> None:
    """Stops a process that has a card's lock and has not begun its transaction: while it asks risk control."""
    await eventually(lambda: redis.exists(lock_of(card)))
    world.stack.coupon(world.both.index(process) + 1).freeze()


async def test_a_process_stopped_past_its_lease_doubles_nothing_when_it_goes_on(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    await world.known_to(world.one, [card])
    same = consume_request(card, "60.00", till)
    with world.stack.risk.frozen():
        first = asyncio.ensure_future(world.one.call(same, till))
        await frozen_with_the_lock(world, redis, world.one, card)
    try:
        await world.stack.risk.wait_ready()
        assert not first.done()
        # The other process waits for the lock as for any; it is free once the lease has run out.
        again = await until_answered(partial(world.two.call, same, till))
        assert world.books.coupon(card.coupon_id).version == 2
    finally:
        world.stack.coupon(1).thaw()
    assert await first == again, "the stopped process found what the other one had recorded"
    assert len(world.books.assert_agree(card.coupon_id)) == 2


async def test_what_a_stopped_process_had_read_does_not_count_when_it_goes_on(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    await world.known_to(world.one, [card])
    with world.stack.risk.frozen():
        stopped = asyncio.ensure_future(world.one.consume(card, "60.00", till))
        await frozen_with_the_lock(world, redis, world.one, card)
    try:
        await world.stack.risk.wait_ready()
        await until_answered(partial(world.two.consume, card, "60.00", till, "the-other-one"))
    finally:
        world.stack.coupon(1).thaw()
    (result,) = await outcomes([stopped])
    assert isinstance(result, Refusal)
    assert result.reason == "BALANCE_INSUFFICIENT"
    assert result.metadata["balance"] == "40.00"
    assert len(world.books.assert_agree(card.coupon_id)) == 2


async def test_a_lock_that_ran_out_is_not_released_by_its_first_holder(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.coupon_held(card.coupon_id):
        consuming = asyncio.ensure_future(world.one.consume(card, "1.00", till))
        await world.books.until_waiting(card.coupon_id)
        # As if the lease had run out and another process had the lock by now.
        await redis.set(lock_of(card), "the next holder", px=10_000)
    await consuming
    assert await redis.get(lock_of(card)) == "the next holder"


# --- Redis loses its data, or goes away ---


async def test_a_flushed_redis_lets_two_processes_hold_one_lock_and_the_row_decides(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.coupon_held(card.coupon_id):
        calls = [asyncio.ensure_future(world.one.consume(card, "60.00", till))]
        await world.books.until_waiting(card.coupon_id)
        await redis.flushdb()
        calls.append(asyncio.ensure_future(world.two.consume(card, "60.00", till)))
        await world.books.until_waiting(card.coupon_id, count=2)
    assert tally(await outcomes(calls)) == {"OK": 1, "BALANCE_INSUFFICIENT": 1}
    assert len(world.books.assert_agree(card.coupon_id)) == 2

    # The fence begins anew, and that is no reason to refuse.
    assert await number_at(redis, "LOCK_FENCE") < 10
    await world.one.consume(card, "40.00", till)
    assert world.books.coupon(card.coupon_id).balance == 0


async def test_consumes_go_on_without_redis_under_the_row_lock_alone(world: World) -> None:
    cards, till = await world.cards(4), world.cashier()
    requests = [consume_request(cards[number % len(cards)], "1.00", till) for number in range(80)]
    async with world.one.observed() as one:
        world.stack.redis.kill()
        try:
            results = await outcomes(
                until_answered(partial(process.call, request, till))
                for request, process in zip(requests, world.both * 40, strict=True)
            )
        finally:
            await world.stack.redis.start()
    assert tally(results) == {"OK": 80}
    assert one[UNAVAILABLE] > 0
    for card in cards:
        journal = world.books.assert_agree(card.coupon_id)
        assert len(journal) == 1 + 20
        assert {row.lock_fence for row in journal} == {None}
    await until_locking(world)


async def test_consumes_go_on_while_redis_hangs(world: World) -> None:
    (card,), till = await world.cards(1), world.cashier()
    with world.stack.redis.frozen():
        began = time.monotonic()
        for _ in range(5):
            await world.one.consume(card, "1.00", till)
        took_s = time.monotonic() - began
    # Once it is known that Redis does not answer it is not asked; only risk control still waits for its own.
    assert took_s < 5 * 2
    assert len(world.books.assert_agree(card.coupon_id)) == 6
    await until_locking(world)


# --- a lock that somebody else holds ---


async def test_a_coupon_whose_lock_is_held_elsewhere_is_waited_for_and_then_refused_as_busy(
    world: World, redis: Redis
) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "1.00", till)
    await redis.set(lock_of(card), "somebody", px=30_000)
    began = time.monotonic()
    (refused,) = await outcomes([world.one.call(request, till)])
    took_s = time.monotonic() - began
    assert isinstance(refused, Refusal)
    assert refused.code is grpc.StatusCode.ABORTED
    assert refused.reason == "COUPON_BUSY"
    assert refused.metadata == {"coupon_id": card.coupon_id}
    assert refused.retry_after_ms == 100
    assert 0.5 <= took_s < 5
    assert world.books.records(request.request_id) == []
    assert await redis.get(lock_of(card)) == "somebody"

    await redis.delete(lock_of(card))

    assert (await world.one.call(request, till)).transaction.balance_after == yuan("99.00")


async def test_a_lock_that_comes_free_within_half_a_second_is_waited_for(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    await redis.set(lock_of(card), "somebody", px=200)
    await world.one.consume(card, "1.00", till)
    assert len(world.books.assert_agree(card.coupon_id)) == 2


async def test_other_coupons_of_the_group_are_not_held_up_by_a_busy_one(world: World, redis: Redis) -> None:
    busy, *others = await world.cards(9, shard=LOWER)
    till = world.cashier()
    await world.known_to(world.one, [busy, *others])
    await redis.set(lock_of(busy), "somebody", px=30_000)
    async with world.group_at_work(world.one, LOWER):
        waiting = asyncio.ensure_future(world.one.consume(busy, "1.00", till))
        arrived = [asyncio.ensure_future(world.one.consume(card, "1.00", till)) for card in others]
        await world.one.until_in_flight(1 + 9)
    await asyncio.gather(*arrived)
    assert not waiting.done(), "the others are answered while it still waits"
    assert tally(await outcomes([waiting])) == {"COUPON_BUSY": 1}
    await redis.delete(lock_of(busy))


async def test_a_busy_coupon_is_not_waited_for_beyond_its_callers_deadline(world: World, redis: Redis) -> None:
    card, till = await world.card(), world.cashier()
    await redis.set(lock_of(card), "somebody", px=30_000)
    began = time.monotonic()
    (refused,) = await outcomes([world.one.call(consume_request(card, "1.00", till), till, timeout_s=0.2)])
    assert isinstance(refused, Refusal)
    assert refused.code in (grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 5
    assert len(world.books.assert_agree(card.coupon_id)) == 1
    await redis.delete(lock_of(card))
