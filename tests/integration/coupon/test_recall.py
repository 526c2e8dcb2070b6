"""A batch made by mistake: the stake is shown, the batch blocked for good, its unused coupons voided."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from coupon_svc.app import recall
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2, batch_service_pb2, coupon_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.coupon.v1 import recall_pb2 as pb
from meshkit.queries import load_queries
from meshkit.sql_literals import render
from tests.integration.coupon.sweeps import Sweeps, sweeping
from tests.integration.coupon.test_expiry import activate, ending, until_over
from tests.integration.coupon.test_freezing import RISK, freeze_coupon, shown
from tests.integration.coupon.world import (
    Caller,
    OwnedCoupon,
    World,
    cash_voucher,
    consume_request,
    discount,
    eventually,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    yuan,
)

OPERATOR = Caller("back-office", ("operator",))
ISSUED, CONSUMED, FROZEN, RECALLED = (
    JournalKind.ISSUED,
    JournalKind.CONSUMED,
    JournalKind.FROZEN,
    JournalKind.RECALLED,
)


def preview(batch_id: str) -> pb.RecallBatchRequest:
    return pb.RecallBatchRequest(request_id=request_id(), batch_id=batch_id, reason="a wrong face value")


def execution(batch_id: str, stake: batch_pb2.RecallStake) -> pb.RecallBatchRequest:
    request = preview(batch_id)
    request.expected_stake.CopyFrom(stake)
    return request


def stake(count: int, money: str, *, unbounded: bool = False) -> batch_pb2.RecallStake:
    return batch_pb2.RecallStake(coupons=count, money=yuan(money), unbounded=unbounded)


async def get_batch(world: World, batch_id: str) -> Any:
    return (await world.one.call(batch_service_pb2.GetBatchRequest(batch_id=batch_id), OPERATOR)).batch


async def begin(world: World, batch_id: str) -> Any:
    seen = await world.one.call(preview(batch_id), OPERATOR)
    return await world.one.call(execution(batch_id, seen.stake), OPERATOR)


async def until_done(world: World, sweeps: Sweeps, batch_id: str) -> Any:
    async def done() -> Any:
        await sweeps.void()
        batch = await get_batch(world, batch_id)
        return batch if batch.recall.state == batch_pb2.BATCH_RECALL_STATE_DONE else None

    return await eventually(done)


async def test_a_preview_shows_counts_and_money_and_changes_nothing(world: World) -> None:
    batch_id, till = await world.batch(gift_card("100.00")), world.cashier()
    partly, empty, frozen, alone = [(await world.issue(batch_id, world.user()))[0] for _ in range(4)]
    await world.codes(batch_id, 2)
    (activated,) = await world.codes(batch_id)
    await activate(world, activated.code, world.user())
    await world.one.consume(partly, "30.00", till)
    await world.one.consume(empty, "100.00", till)
    await world.one.call(freeze_coupon(frozen.coupon_id), RISK)
    request = preview(batch_id)

    reply = await world.two.call(request, OPERATOR)

    # Partly spent, frozen, untouched, two codes, and one that was activated: 70 + 5 × 100.
    assert reply.stake == stake(6, "570.00")
    assert {(count.status, count.coupons, count.balance.amount_minor) for count in reply.counts} == {
        (coupon_pb2.COUPON_STATUS_UNACTIVATED, 2, 20_000),
        (coupon_pb2.COUPON_STATUS_USED, 1, 0),
        (coupon_pb2.COUPON_STATUS_ACTIVATED, 3, 27_000),
        (coupon_pb2.COUPON_STATUS_FROZEN, 1, 10_000),
    }
    assert not reply.batch.HasField("recall")
    assert reply.batch.block_scope == batch_pb2.BLOCK_SCOPE_NONE
    assert world.books.records(request.request_id) == []
    await world.one.consume(alone, "1.00", till)


async def test_a_recall_voids_what_is_unused_journals_it_and_keeps_what_was_used(world: World) -> None:
    batch_id, till = await world.batch(gift_card("100.00")), world.cashier()
    partly, empty, frozen = [(await world.issue(batch_id, world.user()))[0] for _ in range(3)]
    code, activated = await world.codes(batch_id, 2)
    lasting = await activate(world, activated.code, world.user())
    await world.one.consume(partly, "30.00", till)
    await world.one.consume(empty, "100.00", till)
    await world.one.call(freeze_coupon(frozen.coupon_id), RISK)
    kept = [world.books.coupon(each) for each in (empty.coupon_id, activated.coupon_id)]

    reply = await begin(world, batch_id)

    assert reply.batch.recall.state == batch_pb2.BATCH_RECALL_STATE_RUNNING
    assert reply.batch.recall.stake == stake(4, "370.00")
    async with sweeping(world) as sweeps:
        batch = await until_done(world, sweeps, batch_id)
    assert batch.recall.voided == stake(4, "370.00")
    assert (batch.recall.reason, batch.block_scope) == ("a wrong face value", batch_pb2.BLOCK_SCOPE_BOTH)
    assert batch.recall.start_time.ToNanoseconds() <= batch.recall.finish_time.ToNanoseconds()
    for coupon_id, kinds, balance in (
        (partly.coupon_id, [ISSUED, CONSUMED, RECALLED], 7_000),
        (frozen.coupon_id, [ISSUED, FROZEN, RECALLED], 10_000),
        (code.coupon_id, [ISSUED, RECALLED], 10_000),
        (lasting.coupon_id, [JournalKind.ACTIVATED, RECALLED], 10_000),
    ):
        journal = world.books.assert_agree(coupon_id)
        assert [row.kind for row in journal] == kinds
        assert (journal[-1].status_after, journal[-1].balance_after_minor) == (CouponStatus.EXPIRED, balance)
        assert (journal[-1].reason, journal[-1].origin.caller) == ("a wrong face value", OPERATOR.client_id)
    assert [world.books.coupon(each) for each in (empty.coupon_id, activated.coupon_id)] == kept
    assert (await refusal(world.one.consume(partly, "1.00", till))).reason == "BATCH_RECALLED"
    assert (await shown(world.two, partly)).status == coupon_pb2.COUPON_STATUS_EXPIRED


async def test_a_recall_goes_on_by_itself(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    issued = await world.issue(batch_id, world.user(), 3)
    await begin(world, batch_id)

    async def voided() -> bool:
        return bool((await get_batch(world, batch_id)).recall.voided == stake(3, "15.00"))

    await eventually(voided, timeout_s=15.0)
    assert {world.books.coupon(each.coupon_id).status for each in issued} == {CouponStatus.EXPIRED}


async def test_a_recalled_batch_is_blocked_everywhere_at_once_and_for_good(world: World) -> None:
    batch_id, till = await world.batch(cash_voucher("5.00")), world.cashier()
    (coupon,), (code,) = await world.issue(batch_id, world.user()), await world.codes(batch_id)
    await world.known_to(world.two, [coupon])
    assert (await get_batch(world, batch_id)).batch_id
    await begin(world, batch_id)

    async def blocked() -> bool:
        (result,) = await outcomes([world.two.consume(coupon, "5.00", till)])
        return getattr(result, "reason", "") == "BATCH_RECALLED"

    # The process that recalled obeys at once; another may go by what it read for half a second, and meet a void coupon.
    assert (await refusal(world.one.consume(coupon, "5.00", till))).reason == "BATCH_RECALLED"
    await eventually(blocked, timeout_s=1.0)
    for request in (
        coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, quantity=1),
        coupons.ActivateCouponRequest(request_id=request_id(), code=code.code, user_id=world.user()),
        batch_service_pb2.BlockBatchRequest(
            request_id=request_id(), batch_id=batch_id, block_scope=batch_pb2.BLOCK_SCOPE_NONE
        ),
        preview(batch_id),
    ):
        assert (await refusal(world.two.call(request, OPERATOR))).reason == "BATCH_RECALLED"


async def test_more_than_what_was_confirmed_is_never_recalled(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    (coupon,) = await world.issue(batch_id, world.user())
    seen = (await world.one.call(preview(batch_id), OPERATOR)).stake
    await world.issue(batch_id, world.user())
    for wrong in (seen, stake(2, "9.99"), stake(1, "10.00"), stake(0, "0.00", unbounded=True)):
        refused = await refusal(world.two.call(execution(batch_id, wrong), OPERATOR))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RECALL_STAKE_CHANGED")
        assert (refused.metadata["coupons"], refused.metadata["money"]) == ("2", "10.00")
    dollars = stake(2, "10.00")
    dollars.money.currency_code = "USD"
    assert (await refusal(world.one.call(execution(batch_id, dollars), OPERATOR))).reason == "CURRENCY_NOT_SUPPORTED"
    await world.one.consume(coupon, "5.00", world.cashier())

    # What was consumed since is no longer at stake, and needs no second look.
    reply = await world.one.call(execution(batch_id, stake(2, "10.00")), OPERATOR)

    assert reply.batch.recall.stake == reply.stake == stake(1, "5.00")


async def test_a_discount_without_a_cap_has_no_bound(world: World) -> None:
    batch_id = await world.batch(discount("0.8"))
    await world.issue(batch_id, world.user(), 2)
    assert (await world.one.call(preview(batch_id), OPERATOR)).stake == stake(2, "0.00", unbounded=True)


async def test_what_is_expired_already_is_not_at_stake_and_not_voided(world: World) -> None:
    terms = ending(gift_card("100.00"), 1.5)
    batch_id = await world.batch(terms)
    (card,) = await world.issue(batch_id, world.user())
    await until_over(terms)
    reply = await begin(world, batch_id)
    assert reply.stake == stake(0, "0.00")
    assert [(count.status, count.coupons) for count in reply.counts] == [(coupon_pb2.COUPON_STATUS_EXPIRED, 1)]
    async with sweeping(world) as sweeps:
        assert (await until_done(world, sweeps, batch_id)).recall.voided.coupons == 0
    assert [row.kind for row in world.books.assert_agree(card.coupon_id)] == [ISSUED]


async def test_a_recall_is_repeated_by_its_request_id_and_another_is_refused(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    await world.issue(batch_id, world.user())
    request = execution(batch_id, stake(1, "5.00"))
    replies = await asyncio.gather(*(process.call_bytes(request, OPERATOR) for process in world.both * 3))
    assert len(set(replies)) == 1
    assert (await refusal(world.one.call(execution(batch_id, stake(1, "5.00")), OPERATOR))).reason == "BATCH_RECALLED"
    kinds = [row.kind for row in world.books.assert_chained(batch_id)]
    assert kinds == [JournalKind.BATCH_CREATED, JournalKind.BATCH_RECALLED]


async def test_a_batchs_changes_are_chained_in_the_journal_and_its_row_holds_the_head(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    await world.block(batch_id, batch_pb2.BLOCK_SCOPE_CLAIM)
    await world.block(batch_id, batch_pb2.BLOCK_SCOPE_NONE)
    await begin(world, batch_id)
    journal = world.books.assert_chained(batch_id)
    assert [(row.kind.name, row.status_before, row.status_after, row.reason) for row in journal] == [
        ("BATCH_CREATED", 0, 0, ""),
        ("BATCH_BLOCKED", 0, 1, ""),
        ("BATCH_BLOCKED", 1, 0, ""),
        ("BATCH_RECALLED", 0, 3, "a wrong face value"),
    ]
    head = world.books.rows(int(batch_id), "SELECT last_seq, last_hash FROM batch WHERE batch_id = %s", batch_id)
    assert head == [(4, journal[-1].hash)]
    auditor = Caller("audit-desk", ("auditor",))
    events = (await world.one.call(coupons.ListAuditEventsRequest(coupon_id=batch_id), auditor)).events
    assert [(event.kind, event.block_scope) for event in events] == [(20, 4), (21, 1), (21, 4), (22, 3)]
    assert {(event.status_before, event.status_after) for event in events} == {(0, 0)}


async def test_a_recall_that_was_cut_short_goes_on_and_counts_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "CHUNK_COUPONS", 10)
    batch_id = await world.batch(cash_voucher("5.00"))
    issued = await world.issue(batch_id, world.user(81), 25)
    last = max(each.coupon_id for each in issued)
    async with sweeping(world) as sweeps:
        with world.books.coupon_held(last):
            await begin(world, batch_id)
            sweep = asyncio.ensure_future(sweeps.void())
            await world.books.until_waiting(last)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
            assert (await get_batch(world, batch_id)).recall.voided.coupons < 25
        batch = await until_done(world, sweeps, batch_id)
    assert batch.recall.voided == stake(25, "125.00")
    for each in issued:
        assert [row.kind for row in world.books.assert_agree(each.coupon_id)] == [ISSUED, RECALLED]


async def test_consumes_that_race_with_a_recall_are_consumed_or_voided_and_never_both(world: World) -> None:
    batch_id, till = await world.batch(cash_voucher("5.00")), world.cashier()
    issued: list[OwnedCoupon] = [
        each for shard in (1, 70) for each in await world.issue(batch_id, world.user(shard), 200)
    ]
    for process in world.both:
        await world.known_to(process, issued)
    gate = asyncio.Semaphore(3)

    async def consume(coupon: OwnedCoupon) -> object:
        async with gate:
            return (await outcomes([world.two.call(consume_request(coupon, "5.00", till), till)]))[0]

    stream = [asyncio.ensure_future(consume(coupon)) for coupon in issued]
    await eventually(lambda: sum(task.done() for task in stream) >= 5)
    async with sweeping(world) as sweeps:
        await begin(world, batch_id)
        batch = await until_done(world, sweeps, batch_id)
    found = tally(await asyncio.gather(*stream))
    assert set(found) <= {"OK", "BATCH_RECALLED", "COUPON_EXPIRED"}
    last = [world.books.assert_agree(each.coupon_id)[-1].kind for each in issued]
    assert last.count(CONSUMED) == found["OK"] >= 5
    assert last.count(RECALLED) == batch.recall.voided.coupons == len(issued) - found["OK"] > 0


async def test_only_an_operator_may_recall(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    for role in ("risk", "finance", "auditor", "cashier", "user"):
        by = Caller("somebody", (role,), merchant_id="m", subject="1")
        assert (await refusal(world.one.call(preview(batch_id), by))).code is grpc.StatusCode.PERMISSION_DENIED
    unknown = preview(f"{int(batch_id) + 128:019d}")
    assert (await refusal(world.one.call(unknown, OPERATOR))).reason == "BATCH_NOT_FOUND"


@pytest.mark.parametrize("name", ["count_by_status", "unused_coupons"])
async def test_a_batchs_coupons_are_found_by_their_index(world: World, name: str) -> None:
    batch_id = await world.batch(cash_voucher("5.00"))
    await world.issue(batch_id, world.user(82), 5)
    sql = render(
        load_queries("coupon_svc", "sql/recall.sql")[name],
        {"shard": 82, "batch_id": batch_id, "now": datetime.now(UTC), "after": "", "limit": 200},
    )
    ((_, _, table, kind, _, key, _, _, rows, extra),) = world.books.rows(82, f"EXPLAIN {sql}")
    assert (table, key) == ("coupon_info", "idx_batch")
    assert kind in {"ref", "range"}
    assert int(rows) <= 10
    if name == "unused_coupons":
        assert "filesort" not in extra
