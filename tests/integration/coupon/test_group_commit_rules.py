"""Consumes that share a transaction: each fails or succeeds alone, and what goes wrong happens once or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import grpc
import pytest
from kazoo.client import KazooClient

from meshkit.shard_map import Dsn
from tests.integration.coupon.mutations import (
    MUTATIONS,
    MakeMutation,
    activate,
    import_codes,
    issue_codes,
    issue_to_a_user,
)
from tests.integration.coupon.world import (
    GROUPED,
    GROUPS,
    CouponProcess,
    OwnedCoupon,
    Refusal,
    World,
    consume_request,
    gift_card,
    outcomes,
    tally,
    threshold,
    yuan,
)
from tests.integration.mysql_proxy import MysqlProxy, mysql_proxy

LOWER, UPPER = 7, 99
"""A shard of either database."""

SEVERAL_STEPS = {issue_to_a_user, issue_codes, import_codes, activate}
"""Mutations of more than one transaction."""


async def test_whatever_arrives_while_a_group_is_at_work_shares_the_next_transaction(world: World) -> None:
    cards, till = await world.cards(30, shard=LOWER), world.cashier()
    await world.known_to(world.one, cards)
    async with world.one.observed() as rise:
        async with world.group_at_work(world.one, LOWER):
            arrived = [asyncio.ensure_future(world.one.consume(card, "1.00", till)) for card in cards]
            await world.one.until_in_flight(1 + len(cards))
        await asyncio.gather(*arrived)
    assert (rise[GROUPS], rise[GROUPED]) == (2, 31)


async def test_an_item_that_fails_its_checks_fails_alone(world: World) -> None:
    till = world.cashier()
    card, small, used, frozen = await world.cards(4, shard=LOWER)
    stranger = await world.coupon(gift_card(merchants=["somebody-else"]), shard=LOWER)
    reduced = await world.coupon(threshold("100.00", "20.00"), shard=LOWER)
    await world.one.consume(used, "100.00", till)
    world.books.change(LOWER, "UPDATE account_state SET status = 2 WHERE user_id = %s", frozen.user_id)
    asked = [
        (card, "60.00", "OK"),
        (small, "100.01", "BALANCE_INSUFFICIENT"),
        (used, "0.01", "COUPON_USED"),
        (frozen, "0.01", "ACCOUNT_FROZEN"),
        (stranger, "0.01", "MERCHANT_NOT_ELIGIBLE"),
        (reduced, "99.99", "BELOW_MIN_AMOUNT"),
        (card, "60.00", "BALANCE_INSUFFICIENT"),
        (reduced, "100.00", "OK"),
        (card, "40.00", "OK"),
        (card, "0.01", "COUPON_USED"),
    ]
    await world.known_to(world.one, [coupon for coupon, _, _ in asked])
    async with world.one.observed() as rise:
        async with world.group_at_work(world.one, LOWER):
            arrived = []
            for number, (coupon, amount, _) in enumerate(asked, start=1):
                # One after the other, since a group keeps the order of arrival.
                arrived.append(asyncio.ensure_future(world.one.consume(coupon, amount, till)))
                await world.one.until_in_flight(1 + number)
        results = await outcomes(arrived)
    assert (rise[GROUPS], rise[GROUPED]) == (2, 1 + len(asked))
    assert [result.reason if isinstance(result, Refusal) else "OK" for result in results] == [
        expected for _, _, expected in asked
    ]
    for coupon in (card, small, used, frozen, stranger, reduced):
        world.books.assert_agree(coupon.coupon_id)


async def test_a_group_never_spans_two_databases(world: World) -> None:
    lower, upper, till = await world.cards(5, shard=LOWER), await world.cards(5, shard=UPPER), world.cashier()
    await world.known_to(world.one, [*lower, *upper])
    async with world.one.observed() as rise:
        async with world.group_at_work(world.one, LOWER), world.group_at_work(world.one, UPPER):
            arrived = [asyncio.ensure_future(world.one.consume(card, "1.00", till)) for card in [*lower, *upper]]
            await world.one.until_in_flight(2 + len(arrived))
        await asyncio.gather(*arrived)
    assert (rise[GROUPS], rise[GROUPED]) == (4, 12), "two that kept the databases at work, and one of five for each"


async def test_a_database_whose_group_is_stuck_holds_up_no_other_database(world: World) -> None:
    (upper,), till = await world.cards(1, shard=UPPER), world.cashier()
    async with world.group_at_work(world.one, LOWER):
        # Answered while the lower database's group waits for a row.
        await world.one.consume(upper, "1.00", till)


# --- callers that leave ---


async def test_one_of_128_that_is_cancelled_takes_nobody_with_it_and_its_effect_shows_on_a_retry(
    world: World,
) -> None:
    card, till = await world.card(shard=LOWER, balance="128.00"), world.cashier()
    requests = [consume_request(card, "1.00", till) for _ in range(128)]
    await world.known_to(world.one, [card])
    async with world.one.observed() as rise:
        with world.books.coupon_held(card.coupon_id):
            async with world.group_at_work(world.one, LOWER):
                calls = [asyncio.ensure_future(world.one.call(request, till)) for request in requests]
                await world.one.until_in_flight(1 + 128)
            # All 128 are one group now, and wait for the card's row.
            await world.books.until_waiting(card.coupon_id)
            calls[64].cancel()
            await world.one.until_in_flight(127)
        results = await outcomes(call for number, call in enumerate(calls) if number != 64)
    assert (rise[GROUPS], rise[GROUPED]) == (2, 1 + 128)
    assert tally(results) == {"OK": 127}
    assert calls[64].cancelled()
    assert world.books.coupon(card.coupon_id).balance == 0, "the group went on with all 128"

    retried = await world.two.call(requests[64], till)

    assert retried.transaction.deduction == yuan("1.00")
    journal = world.books.assert_agree(card.coupon_id)
    assert len(journal) == 1 + 128


async def test_a_call_that_is_cancelled_before_its_group_starts_has_no_effect_until_it_is_made_again(
    world: World,
) -> None:
    card, till = await world.card(shard=LOWER), world.cashier()
    request = consume_request(card, "1.00", till)
    await world.known_to(world.one, [card])
    async with world.group_at_work(world.one, LOWER):
        call = asyncio.ensure_future(world.one.call(request, till))
        await world.one.until_in_flight(2)
        call.cancel()
        await world.one.until_in_flight(1)
    assert world.books.transactions(card.coupon_id) == []
    await world.one.call(request, till)
    assert len(world.books.assert_agree(card.coupon_id)) == 2


async def test_a_callers_deadline_does_not_cancel_the_group(world: World) -> None:
    hurried, patient = await world.cards(2, shard=LOWER)
    till = world.cashier()
    request = consume_request(hurried, "1.00", till)
    await world.known_to(world.one, [hurried, patient])
    with world.books.coupon_held(hurried.coupon_id):
        async with world.group_at_work(world.one, LOWER):
            calls = [
                asyncio.ensure_future(world.one.call(request, till, timeout_s=0.4)),
                asyncio.ensure_future(world.one.consume(patient, "1.00", till)),
            ]
            await world.one.until_in_flight(1 + len(calls))
        await world.books.until_waiting(hurried.coupon_id)
        (late,) = await outcomes(calls[:1])
    assert isinstance(late, Refusal)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await calls[1]
    assert (await world.two.call(request, till)).transaction.balance_after == yuan("99.00")
    assert len(world.books.assert_agree(hurried.coupon_id)) == 2


# --- 1062 ---


async def test_a_record_that_another_commits_while_the_group_waits_is_answered_and_the_rest_goes_on(
    world: World,
) -> None:
    twice, others, till = await world.card(shard=LOWER), await world.cards(4, shard=LOWER), world.cashier()
    request = consume_request(twice, "30.00", till)
    first = await world.one.call_bytes(request, till)
    # The record of the first time is taken away and put back by a transaction that is open while the group looks for
    # it, so that neither look finds it, and only the primary key says that it is there.
    key = ("request_record WHERE shard = %s AND request_id = %s", LOWER, request.request_id)
    ((*record,),) = world.books.rows(LOWER, f"SELECT * FROM {key[0]}", *key[1:])
    world.books.change(LOWER, f"DELETE FROM {key[0]}", *key[1:])
    await world.known_to(world.one, [twice, *others])
    async with world.one.observed() as rise:
        with world.books.transaction(LOWER) as tx:
            tx.run(f"INSERT INTO request_record VALUES ({', '.join(['%s'] * len(record))})", *record)
            async with world.group_at_work(world.one, LOWER):
                repeated = asyncio.ensure_future(world.one.call_bytes(request, till))
                fresh = [asyncio.ensure_future(world.one.consume(card, "1.00", till)) for card in others]
                await world.one.until_in_flight(1 + 1 + len(fresh))
            await world.books.until_waiting("INSERT INTO request_record")
            tx.commit()
        results = await outcomes(fresh)
        assert await repeated == first
    assert (rise[GROUPS], rise[GROUPED]) == (2, 6)
    assert tally(results) == {"OK": 4}
    for card in (twice, *others):
        assert len(world.books.assert_agree(card.coupon_id)) == 2, "one consume each"


async def test_a_record_of_another_payload_that_appears_while_the_group_waits_refuses_that_item_only(
    world: World,
) -> None:
    reused, other = await world.cards(2, shard=LOWER)
    till = world.cashier()
    request = consume_request(reused, "30.00", till)
    await world.known_to(world.one, [reused, other])
    with world.books.transaction(LOWER) as tx:
        tx.run(
            "INSERT INTO request_record VALUES (%s, %s, %s, REPEAT('x', 32), '', NOW(3), NOW(3) + INTERVAL 1 DAY)",
            LOWER,
            till.client_id,
            request.request_id,
        )
        async with world.group_at_work(world.one, LOWER):
            calls = [
                asyncio.ensure_future(world.one.call(request, till)),
                asyncio.ensure_future(world.one.consume(other, "1.00", till)),
            ]
            await world.one.until_in_flight(1 + len(calls))
        await world.books.until_waiting("INSERT INTO request_record")
        tx.commit()
    assert tally(await outcomes(calls)) == {"IDEMPOTENCY_KEY_REUSED": 1, "OK": 1}
    assert world.books.transactions(reused.coupon_id) == []
    assert len(world.books.assert_agree(other.coupon_id)) == 2


# --- a COMMIT whose outcome nobody told ---


@dataclass(frozen=True)
class Proxied:
    """A coupon_svc that reaches its databases through a proxy which can lose a reply."""

    process: CouponProcess
    proxy: MysqlProxy

    @contextmanager
    def losing_commit(self, number: int) -> Iterator[Callable[[], bool]]:
        """Swallows the server's answer to one COMMIT, counted from 1, and cuts the connection.

        Gives a question: has it happened?
        """
        proxy, commits = self.proxy, 0

        def note(statement: bytes) -> bytes:
            nonlocal commits
            if statement.startswith(b"COMMIT"):
                commits += 1
                proxy.lose_reply = b"COMMIT" if commits == number else None
            return statement

        lost_before, proxy.rewrite = proxy.replies_lost, note
        try:
            yield lambda: proxy.replies_lost == lost_before + 1
        finally:
            proxy.rewrite, proxy.lose_reply = lambda statement: statement, None


@pytest.fixture(scope="module")
async def proxied(world: World) -> AsyncIterator[Proxied]:
    place = Dsn.parse(world.books.dsns[0])
    async with mysql_proxy(place.port) as proxy, AsyncExitStack() as until_the_end:
        async with _shard_map_through(world, place.port, proxy.port):
            process = await until_the_end.enter_async_context(world.further_process(COUPON_MAX_WAITING="8"))
        yield Proxied(process, proxy)


@asynccontextmanager
async def _shard_map_through(world: World, server_port: int, proxy_port: int) -> AsyncIterator[None]:
    """Whoever reads the shard map in this block goes through the proxy; processes read it when they start."""
    zookeeper = KazooClient(world.stack.zookeeper_address)
    await asyncio.to_thread(zookeeper.start)
    path = "/couponmesh/shardmap/coupon"
    original, _ = await asyncio.to_thread(zookeeper.get, path)
    changed = json.loads(original)
    for entry in changed["ranges"]:
        entry["dsn"] = entry["dsn"].replace(f":{server_port}/", f":{proxy_port}/")
    try:
        await asyncio.to_thread(zookeeper.set, path, json.dumps(changed).encode())
        yield
    finally:
        await asyncio.to_thread(zookeeper.set, path, original)
        await asyncio.to_thread(zookeeper.stop)
        await asyncio.to_thread(zookeeper.close)


async def test_a_group_whose_commit_was_not_answered_happens_once_and_succeeds(world: World, proxied: Proxied) -> None:
    cards, till, process = await world.cards(6, shard=LOWER), world.cashier(), proxied.process
    requests = [consume_request(card, "1.00", till) for card in cards]
    await world.known_to(process, cards)
    # The first COMMIT is that of the group which keeps the database at work.
    with proxied.losing_commit(2) as lost:
        async with process.observed() as rise, world.group_at_work(process, LOWER):
            calls = [asyncio.ensure_future(process.call_bytes(request, till)) for request in requests]
            await process.until_in_flight(1 + len(calls))
        results = await outcomes(calls)
        assert lost()
    assert tally(results) == {"OK": 6}
    assert (rise[GROUPS], rise[GROUPED]) == (2, 7), "the group was run again, not made anew"
    assert [await world.two.call_bytes(request, till) for request in requests] == results
    for card in cards:
        assert len(world.books.assert_agree(card.coupon_id)) == 2


@pytest.mark.parametrize("make", MUTATIONS, ids=lambda make: make.__name__)
async def test_whichever_commit_was_not_answered_a_mutation_has_happened_once_when_it_is_answered(
    world: World, proxied: Proxied, make: MakeMutation
) -> None:
    number, was_lost = 0, True
    while was_lost:
        number += 1
        assert number < 10, "a mutation takes only some transactions"
        mutation = await make(world)
        with proxied.losing_commit(number) as lost:
            (reply,) = await outcomes([mutation.send(proxied.process)])
            if make in SEVERAL_STEPS and isinstance(reply, Refusal):
                # Between two steps it may say that it does not know; the same request then completes it.
                assert reply.reason == "UNAVAILABLE"
                reply = await mutation.send(proxied.process)
            was_lost = lost()
        assert await mutation.send(world.two) == reply
        assert mutation.effects() == 1
    assert number > 1, "at least one COMMIT was lost"


# --- bounds ---


async def test_beyond_the_bound_of_the_queue_a_consume_is_refused_at_once_with_the_time_to_come_back(
    world: World, proxied: Proxied
) -> None:
    till, process = world.cashier(), proxied.process
    cards: list[OwnedCoupon] = await world.cards(12, shard=LOWER)
    await world.known_to(process, cards)
    async with world.group_at_work(process, LOWER):
        waiting = [asyncio.ensure_future(process.consume(card, "1.00", till)) for card in cards[:8]]
        await process.until_in_flight(1 + len(waiting))
        refused = await outcomes(process.consume(card, "1.00", till) for card in cards[8:])
        assert not any(call.done() for call in waiting), "those who came before still wait"
    for refusal in refused:
        assert isinstance(refusal, Refusal)
        assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refusal.reason == "OVERLOADED"
        assert refusal.retry_after_ms == 200
    await asyncio.gather(*waiting)
    for card in cards[8:]:
        assert world.books.transactions(card.coupon_id) == []
        await process.consume(card, "1.00", till)
