"""Whoever moves a shard or freezes an account changes one row first, and no write slips past it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pymysql
import pytest

from coupon_svc.domain.routing import home_shard
from couponmesh.coupon.v1 import batch_pb2
from couponmesh.coupon.v1 import batch_service_pb2 as batches
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    GROUPED,
    GROUPS,
    Caller,
    Refusal,
    World,
    consume_request,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
)

MOVED, STAYS = 20, 21
"""Two shards of one database."""

OWNED, MOVING, GONE = 1, 2, 3


@contextmanager
def moved(world: World, change: str) -> Iterator[None]:
    """A shard whose owner row says something else while the block runs."""
    world.books.change(MOVED, f"UPDATE shard_owner SET {change} WHERE shard = %s", MOVED)
    try:
        yield
    finally:
        world.books.change(MOVED, "UPDATE shard_owner SET epoch = 1, state = 1 WHERE shard = %s", MOVED)


@pytest.mark.parametrize("change", ["epoch = 2", f"state = {MOVING}", f"state = {GONE}", "epoch = 2, state = 2"])
async def test_items_of_a_moved_shard_are_refused_and_those_of_other_shards_in_the_group_are_not(
    world: World, change: str
) -> None:
    (gone,), (here, first), till = await world.cards(1, shard=MOVED), await world.cards(2, shard=STAYS), world.cashier()
    request = consume_request(gone, "1.00", till)
    await world.known_to(world.one, [gone, here])
    with moved(world, change):
        async with world.one.observed() as rise:
            async with world.group_at_work(world.one, STAYS, card=first):
                calls = [
                    asyncio.ensure_future(world.one.call(request, till)),
                    asyncio.ensure_future(world.one.consume(here, "1.00", till)),
                ]
                await world.one.until_in_flight(1 + len(calls))
            refused, answered = await outcomes(calls)
        assert (rise[GROUPS], rise[GROUPED]) == (2, 3), "both were in one group"
        assert isinstance(refused, Refusal)
        assert_as_the_contract_says(refused, "SHARD_MOVED")
        assert refused.metadata == {"shard": str(MOVED)}
        assert not isinstance(answered, Refusal)
        assert (await refusal(world.two.call(request, till))).reason == "SHARD_MOVED"
    assert world.books.transactions(gone.coupon_id) == []
    # It was not recorded: the same request succeeds where the shard is now.
    await world.two.call(request, till)
    world.books.assert_agree(gone.coupon_id)


async def test_no_mutation_writes_to_a_moved_shard(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    (card,) = await world.issue(batch_id, world.user(MOVED))
    (issued,) = await world.codes(batch_id)
    at_home = at_home_in(world, MOVED)
    batch_there = (
        await world.one.call(
            batches.CreateBatchRequest(request_id=request_id(), name="there", terms=gift_card()), at_home
        )
    ).batch.batch_id
    await world.one.consume(card, "1.00", world.cashier())
    requests: list[tuple[Caller, Any]] = [
        (operator, coupons.IssueCouponsRequest(batch_id=batch_id, user_id=card.user_id, quantity=1)),
        (operator, coupons.ActivateCouponRequest(code=issued.code, user_id=world.user(MOVED))),
        (operator, coupons.IssueCouponsRequest(batch_id=batch_there, user_id=world.user(STAYS), quantity=1)),
        (
            operator,
            coupons.ImportCodesRequest(
                batch_id=batch_id,
                codes=[coupons.ImportedCode(code=f"MOVED-{request_id()[:12]}", user_id=card.user_id)],
            ),
        ),
        (operator, batches.BlockBatchRequest(batch_id=batch_there, block_scope=batch_pb2.BLOCK_SCOPE_BOTH)),
        (at_home, batches.CreateBatchRequest(name="there", terms=gift_card())),
    ]
    count = "SELECT COUNT(*) FROM {} WHERE shard = %s"
    tables = ("coupon_info", "coupon_journal", "batch", "request_record", "batch_draw", "outbox")
    with moved(world, "epoch = 2"):
        before = [world.books.rows(MOVED, count.format(table), MOVED) for table in tables]
        for caller, request in requests:
            request.request_id = request_id()
            assert_as_the_contract_says(await refusal(world.one.call(request, caller)), "SHARD_MOVED")
        assert [world.books.rows(MOVED, count.format(table), MOVED) for table in tables] == before
    for caller, request in requests:
        await world.one.call(request, caller)


def at_home_in(world: World, shard: int) -> Caller:
    """An operator whose own requests and batches live in a shard."""
    return next(
        caller
        for caller in (world.operator(f"operator-at-{number}-of-{request_id()}") for number in range(10_000))
        if home_shard(caller.client_id) == shard
    )


async def test_a_consume_that_meets_a_move_waits_for_it_and_is_refused(world: World) -> None:
    card, till = await world.card(shard=MOVED), world.cashier()
    try:
        with world.books.transaction(MOVED) as mover:
            mover.run("UPDATE shard_owner SET epoch = 2, state = 2 WHERE shard = %s", MOVED)
            meeting = asyncio.ensure_future(world.one.consume(card, "1.00", till))
            await world.books.until_waiting("FROM shard_owner")
            mover.commit()
        assert tally(await outcomes([meeting])) == {"SHARD_MOVED": 1}
        assert world.books.transactions(card.coupon_id) == []
    finally:
        world.books.change(MOVED, "UPDATE shard_owner SET epoch = 1, state = 1 WHERE shard = %s", MOVED)


async def test_an_account_frozen_while_a_consume_is_on_its_way_is_refused(world: World) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.transaction(card.shard) as freezer:
        freezer.run("UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
        meeting = asyncio.ensure_future(world.one.consume(card, "1.00", till))
        # It has its lock and risk control's word by now, and waits for the account.
        await world.books.until_waiting("FROM account_state")
        freezer.commit()
    (refused,) = await outcomes([meeting])
    assert isinstance(refused, Refusal)
    assert_as_the_contract_says(refused, "ACCOUNT_FROZEN")
    assert refused.metadata == {"user_id": str(card.user_id)}
    assert len(world.books.assert_agree(card.coupon_id)) == 1


async def test_whoever_freezes_an_account_or_moves_a_shard_waits_for_the_consumes_under_way(world: World) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.coupon_held(card.coupon_id):
        consuming = asyncio.ensure_future(world.one.consume(card, "1.00", till))
        await world.books.until_waiting(card.coupon_id)
        for statement, value in (
            ("UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id),
            ("UPDATE shard_owner SET epoch = 2 WHERE shard = %s", card.shard),
        ):
            with world.books.transaction(card.shard) as other:
                other.run("SET SESSION innodb_lock_wait_timeout = 0")
                with pytest.raises(pymysql.err.OperationalError, match="Lock wait timeout"):
                    other.run(statement, value)
    await consuming
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    assert (await refusal(world.two.consume(card, "1.00", till))).reason == "ACCOUNT_FROZEN"


async def test_a_frozen_account_neither_gets_nor_activates_nor_imports(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    (card,), (issued,) = await world.issue(batch_id, world.user()), await world.codes(batch_id)
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    line = coupons.ImportedCode(code=f"FROZEN-{request_id()[:12]}", user_id=card.user_id)
    with world.books.unchanged():
        for request in (
            coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, user_id=card.user_id, quantity=1),
            coupons.ActivateCouponRequest(request_id=request_id(), code=issued.code, user_id=card.user_id),
            coupons.ImportCodesRequest(request_id=request_id(), batch_id=batch_id, codes=[line]),
        ):
            assert_as_the_contract_says(await refusal(world.one.call(request, operator)), "ACCOUNT_FROZEN")
    shown = (await world.two.call(coupons.GetCouponRequest(coupon_id=card.coupon_id), operator)).coupon
    assert shown.status == 4, "its coupons show FROZEN, though their rows do not change"
    assert world.books.coupon(card.coupon_id).status == 3
