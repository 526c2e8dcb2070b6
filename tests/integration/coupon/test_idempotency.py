"""A request that is made again has happened once, and its reply is the same, byte for byte."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import client_context_pb2
from tests.integration.coupon.mutations import MUTATIONS, MakeMutation, Mutation, consume, with_
from tests.integration.coupon.world import (
    GROUPED,
    GROUPS,
    CouponProcess,
    Refusal,
    World,
    consume_request,
    eventually,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    until_answered,
    yuan,
)


@pytest.fixture(params=MUTATIONS, ids=lambda make: make.__name__)
async def mutation(world: World, request: pytest.FixtureRequest) -> Mutation:
    make: MakeMutation = request.param
    return await make(world)


async def test_a_repeated_request_happens_once_and_is_answered_with_the_same_bytes_by_either_process(
    world: World, mutation: Mutation
) -> None:
    assert mutation.effects() == 0
    first = await mutation.send(world.one)
    assert first
    assert mutation.effects() == 1
    assert await mutation.send(world.one) == first
    assert await mutation.send(world.two) == first
    assert mutation.effects() == 1


async def test_fifty_at_once_over_both_processes_have_one_effect_and_one_reply(
    world: World, mutation: Mutation
) -> None:
    sent, answered = [], []

    async def send(process: CouponProcess) -> bytes:
        sent.append(time.monotonic())
        reply = await until_answered(partial(mutation.send, process))
        answered.append(time.monotonic())
        return reply

    replies = await asyncio.gather(*(send(process) for process in world.both * 25))
    assert max(sent) < min(answered), "all were on their way before the first was answered"
    assert len(set(replies)) == 1
    assert mutation.effects() == 1


async def test_another_payload_under_a_used_request_id_is_refused_and_does_nothing(
    world: World, mutation: Mutation
) -> None:
    first = await mutation.send(world.one)
    for process in world.both:
        refused = await refusal(mutation.send_other(process))
        assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.reason == "IDEMPOTENCY_KEY_REUSED"
        assert refused.metadata["request_id"]
    assert mutation.effects() == 1
    assert await mutation.send(world.two) == first


async def test_fifty_at_once_of_two_payloads_have_one_effect_and_the_other_payload_is_refused(world: World) -> None:
    mutation = await consume(world)
    sent = [
        until_answered(partial(send, process))
        for send in (mutation.send, mutation.send_other)
        for process in world.both * 12
    ]
    results = await outcomes(sent)
    assert tally(results) == {"OK": 24, "IDEMPOTENCY_KEY_REUSED": 24}
    assert len({result for result in results if isinstance(result, bytes)}) == 1
    assert mutation.effects() == 1


async def test_a_refusal_is_not_recorded_so_that_a_retry_may_succeed(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    for process in world.both:
        assert (await refusal(process.call(request, till))).reason == "ACCOUNT_FROZEN"
    assert world.books.records(request.request_id) == []

    world.books.change(card.shard, "UPDATE account_state SET status = 1 WHERE user_id = %s", card.user_id)

    reply = await world.one.call(request, till)
    assert reply.transaction.balance_after == yuan("70.00")
    assert len(world.books.records(request.request_id)) == 1


async def test_a_reply_is_repeated_even_when_the_same_call_would_be_refused_by_now(world: World) -> None:
    card, till = await world.card(balance="30.00"), world.cashier()
    request = consume_request(card, "30.00", till)
    first = await world.one.call_bytes(request, till)
    assert (await refusal(world.one.consume(card, "30.00", till))).reason == "COUPON_USED"
    assert await world.two.call_bytes(request, till) == first


async def test_a_replay_takes_neither_a_lock_nor_the_time_of_risk_control(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    first = await world.one.call_bytes(request, till)
    async with Redis.from_url(world.stack.redis_url(0)) as redis:
        await redis.set(f"LOCK_COUPON:{card.coupon_id}", "somebody", px=30_000)
        asked = await world.stack.metric("mesh_rpc_requests_total", "risk")
        for process in world.both:
            assert await process.call_bytes(request, till) == first
        assert await world.stack.metric("mesh_rpc_requests_total", "risk") == asked
        assert (await refusal(world.one.consume(card, "1.00", till))).reason == "COUPON_BUSY"
        await redis.delete(f"LOCK_COUPON:{card.coupon_id}")


async def test_twins_inside_one_group_fold_into_one_effect(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    await world.known_to(world.one, [card])
    async with world.one.observed() as rise:
        async with world.group_at_work(world.one, card.shard):
            twins = [asyncio.ensure_future(world.one.call_bytes(request, till)) for _ in range(5)]
            stranger = asyncio.ensure_future(world.one.call_bytes(with_(request, amount=yuan("1.00")), till))
            await world.one.until_in_flight(1 + len(twins) + 1)
        results = await outcomes([*twins, stranger])
    assert (rise[GROUPS], rise[GROUPED]) == (2, 7), "all six were in the second group"
    assert tally(results) == {"OK": 5, "IDEMPOTENCY_KEY_REUSED": 1}
    assert len(set(results[:5])) == 1
    world.books.assert_agree(card.coupon_id)
    assert len(world.books.transactions(card.coupon_id)) == 1


async def test_five_percent_of_duplicates_under_load_make_no_request_fail(world: World) -> None:
    cards, till = await world.cards(24), world.cashier()
    requests = [consume_request(cards[number % len(cards)], "0.01", till) for number in range(480)]
    # Every twentieth is sent to both processes at once.
    sent = [
        (request, process)
        for number, request in enumerate(requests)
        for process in (world.both if number % 20 == 0 else [world.both[number % 2]])
    ]
    gate = asyncio.Semaphore(64)

    async def send(request: coupons.ConsumeCouponRequest, process: CouponProcess) -> tuple[str, bytes]:
        async with gate:
            return request.request_id, await until_answered(partial(process.call_bytes, request, till))

    async with world.one.observed() as one, world.two.observed() as two:
        results = await outcomes([send(request, process) for request, process in sent])
    assert tally(results) == {"OK": 504}
    assert len(set(results)) == 480, "twins were answered alike"
    assert one[GROUPED] + two[GROUPED] > one[GROUPS] + two[GROUPS], "requests met in groups"
    for card in cards:
        journal = world.books.assert_agree(card.coupon_id)
        assert len(journal) == 1 + 480 // len(cards)


async def test_after_a_lost_reply_the_transaction_is_found_by_the_request_that_made_it(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    with world.books.coupon_held(card.coupon_id):
        waiting = asyncio.ensure_future(world.one.call(request, till))
        await world.books.until_waiting(card.coupon_id)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def found() -> Any:
        lookup = coupons.GetTransactionRequest(request_id=request.request_id)
        result = (await outcomes([world.two.call(lookup, till)]))[0]
        return None if isinstance(result, Refusal) else result

    transaction = (await eventually(found)).transaction
    assert (transaction.coupon_id, transaction.request_id) == (card.coupon_id, request.request_id)
    assert transaction.deduction == yuan("30.00")
    # Asking again is the other way to learn of it.
    repeated = await world.two.call(request, till)
    assert repeated.transaction == transaction
    assert len(world.books.transactions(card.coupon_id)) == 1


async def test_request_ids_belong_to_their_caller(world: World) -> None:
    card = await world.card()
    tills = [world.cashier(), world.cashier()]
    same = request_id()
    for till in tills:
        await world.one.consume(card, "30.00", till, same)
    assert len(world.books.transactions(card.coupon_id)) == 2
    for till in tills:
        found = await world.one.call(coupons.GetTransactionRequest(request_id=same), till)
        assert found.transaction.merchant_id == till.merchant_id


async def test_the_shoppers_device_and_address_are_not_part_of_what_makes_two_requests_equal(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    first = await world.one.call_bytes(request, till)
    moved = with_(request, client=client_context_pb2.ClientContext(ip="203.0.113.7", device_id="another"))
    assert await world.one.call_bytes(moved, till) == first


async def test_one_request_id_cannot_stand_for_two_rpcs(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till)
    await world.one.call(request, till)
    same = cashiers.ConsumeRequest(
        coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0, request_id=request.request_id
    )
    assert (await refusal(world.one.call(same, till))).reason == "IDEMPOTENCY_KEY_REUSED"
    assert len(world.books.transactions(card.coupon_id)) == 1


async def test_a_cashiers_consume_without_a_key_is_a_new_spend_each_time(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0)
    replies = [await process.call(request, till) for process in world.both]
    assert [reply.balance_after for reply in replies] == [yuan("70.00"), yuan("40.00")]
    assert replies[0].transaction_id != replies[1].transaction_id


async def test_the_header_and_the_field_name_the_same_request_and_must_not_differ(world: World) -> None:
    card, till = await world.card(), world.cashier()
    key = request_id()
    by_field = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0, request_id=key)
    by_header = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0)
    first = await world.one.call_bytes(by_field, till)
    assert await world.two.call_bytes(by_header, till, metadata=(("idempotency-key", key),)) == first
    assert await world.one.call_bytes(by_field, till, metadata=(("idempotency-key", key),)) == first

    refused = await refusal(world.one.call(by_field, till, metadata=(("idempotency-key", f"{key}-2"),)))

    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "IDEMPOTENCY_KEY_CONFLICT"
    assert len(world.books.transactions(card.coupon_id)) == 1


async def test_the_record_of_an_issue_holds_ids_and_no_code(world: World) -> None:
    request = coupons.IssueCouponsRequest(
        request_id=request_id(), batch_id=await world.batch(gift_card()), user_id=world.user(), quantity=2
    )
    issued = (await world.one.call(request, world.operator())).coupons
    ((_, _, _, response),) = world.books.records(request.request_id)
    assert all(coupon.coupon_id.encode() in response for coupon in issued)
    assert not any(
        code.encode() in response for coupon in issued for code in (coupon.code, coupon.code.replace("-", ""))
    )


async def test_a_record_is_kept_for_its_stated_retention(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "1.00", till)
    await world.one.call(request, till)
    rows = world.books.rows(
        card.shard,
        "SELECT shard, caller, DATEDIFF(expire_time, create_time) FROM request_record WHERE request_id = %s",
        request.request_id,
    )
    assert rows == [(card.shard, till.client_id, 30)]
