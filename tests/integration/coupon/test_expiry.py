"""Coupons whose period is over: refused to the second, swept later, in chunks that can be cut short."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from coupon_svc.app import expiry
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2, batch_service_pb2, coupon_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from meshkit.queries import load_queries
from meshkit.sql_literals import render
from tests.integration.coupon.sweeps import now_ms, sweeping
from tests.integration.coupon.test_freezing import RISK, freeze_coupon, shown
from tests.integration.coupon.world import (
    OwnedCoupon,
    Refusal,
    World,
    cash_voucher,
    eventually,
    gift_card,
    outcomes,
    refusal,
    request_id,
)

EXPIRED = coupon_pb2.COUPON_STATUS_EXPIRED


def ending(terms: batch_pb2.BatchTerms, in_s: float) -> batch_pb2.BatchTerms:
    terms.expires_at.FromMilliseconds(now_ms() + round(in_s * 1000))
    return terms


def with_days(terms: batch_pb2.BatchTerms, days: int, zone: str = "") -> batch_pb2.BatchTerms:
    terms.ClearField("expires_at")
    terms.days_after_claim = days
    terms.time_zone = zone
    return terms


async def until_over(terms: batch_pb2.BatchTerms) -> None:
    await eventually(lambda: now_ms() >= terms.expires_at.ToMilliseconds())


async def activate(world: World, code: str, user_id: int) -> coupon_pb2.Coupon:
    reply = await world.one.call(
        coupons.ActivateCouponRequest(request_id=request_id(), code=code, user_id=user_id), world.operator()
    )
    coupon: coupon_pb2.Coupon = reply.coupon
    return coupon


async def test_a_coupon_is_refused_from_its_end_on_whether_it_was_swept_or_not(world: World) -> None:
    terms, till = ending(gift_card("100.00"), 1.5), world.cashier()
    card = await world.coupon(terms)
    await world.one.consume(card, "1.00", till)
    end_ms = terms.expires_at.ToMilliseconds()

    async def refused() -> bool:
        asked_ms = now_ms()
        (result,) = await outcomes([world.one.consume(card, "0.01", till)])
        if isinstance(result, Refusal):
            assert result.reason == "COUPON_EXPIRED"
            assert now_ms() >= end_ms, "not refused too early"
            return True
        assert asked_ms < end_ms, "not accepted too late"
        return False

    await eventually(refused)
    assert (await refusal(world.two.consume(card, "1.00", till))).reason == "COUPON_EXPIRED"
    assert world.books.coupon(card.coupon_id).status == CouponStatus.ACTIVATED, "nobody swept it yet"
    assert (await shown(world.one, card)).status == EXPIRED


async def test_the_sweep_ends_what_is_due_keeps_balances_and_leaves_everything_else(world: World) -> None:
    terms, till = ending(gift_card("100.00"), 3.0), world.cashier()
    batch_id = await world.batch(terms)
    spent, frozen, empty, bound_to = [(await world.issue(batch_id, world.user()))[0] for _ in range(4)]
    code, activated = await world.codes(batch_id, 2)
    await activate(world, activated.code, bound_to.user_id)
    await world.one.consume(spent, "30.00", till)
    await world.one.consume(empty, "100.00", till)
    await world.one.call(freeze_coupon(frozen.coupon_id), RISK)
    later = await world.card()
    untouched = [empty.coupon_id, activated.coupon_id, later.coupon_id]
    rows = [world.books.coupon(each) for each in untouched]

    async with sweeping(world) as sweeps:
        await until_over(terms)
        await sweeps.expire()

        for coupon_id, before, balance in (
            (spent.coupon_id, CouponStatus.ACTIVATED, 7_000),
            (frozen.coupon_id, CouponStatus.FROZEN, 10_000),
            (code.coupon_id, CouponStatus.UNACTIVATED, 10_000),
        ):
            journal = world.books.assert_agree(coupon_id)
            last = journal[-1]
            assert (last.kind, last.status_before, last.status_after) == (
                JournalKind.EXPIRED,
                before,
                CouponStatus.EXPIRED,
            )
            assert (last.balance_after_minor, last.amount_minor, last.origin.caller) == (balance, 0, "coupon_svc")
        assert [world.books.coupon(each) for each in untouched] == rows

        versions = world.books.coupon(spent.coupon_id)
        await sweeps.expire()
        assert world.books.coupon(spent.coupon_id) == versions, "a second visit finds nothing to do"


async def test_two_sweeps_at_once_expire_each_of_several_chunks_of_coupons_once(world: World) -> None:
    terms = ending(cash_voucher("1.00"), 4.0)
    user_id = world.user(77)
    issued = await world.issue(await world.batch(terms), user_id, 2 * expiry.CHUNK_COUPONS + 50)
    chunks: list[int] = []
    async with sweeping(world, observe=chunks.append) as one, sweeping(world, observe=chunks.append) as two:
        await until_over(terms)
        await asyncio.gather(one.expire(), two.expire())
    ended = world.books.rows(
        77,
        "SELECT COUNT(*), COUNT(DISTINCT j.coupon_id) FROM coupon_journal j JOIN coupon_info c "
        "ON c.shard = j.shard AND c.coupon_id = j.coupon_id WHERE j.user_id = %s AND j.kind = 13 AND c.status = 5",
        user_id,
    )
    assert ended == [(len(issued), len(issued))]
    assert max(chunks) <= expiry.CHUNK_COUPONS
    world.books.assert_agree(issued[-1].coupon_id)


async def test_a_sweep_that_was_cut_short_goes_on_with_the_next(world: World) -> None:
    terms = ending(cash_voucher("1.00"), 4.0)
    issued = await world.issue(await world.batch(terms), world.user(78), 2 * expiry.CHUNK_COUPONS)
    # Ids rise, and all are due at once: the second chunk holds the last.
    first, last = min(each.coupon_id for each in issued), max(each.coupon_id for each in issued)
    await until_over(terms)
    async with sweeping(world) as sweeps:
        with world.books.coupon_held(last):
            sweep = asyncio.ensure_future(sweeps.expire())
            await world.books.until_waiting(last)
            sweep.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sweep
        assert world.books.coupon(first).status == CouponStatus.EXPIRED, "what was committed stays"
        assert world.books.coupon(last).status == CouponStatus.ACTIVATED
    async with sweeping(world) as sweeps:
        await sweeps.expire()
    for coupon_id in (first, last):
        assert [row.kind for row in world.books.assert_agree(coupon_id)] == [JournalKind.ISSUED, JournalKind.EXPIRED]


async def test_what_is_due_is_found_by_its_index_and_nothing_else_is_read(world: World) -> None:
    await world.issue(await world.batch(gift_card()), world.user(79), 300)
    sql = render(
        load_queries("coupon_svc", "sql/expiry.sql")["due_coupons"],
        {
            "shard": 79,
            "after_due": datetime(1970, 1, 1, tzinfo=UTC),
            "after_id": "",
            "now": datetime.now(UTC),
            "limit": 200,
        },
    )
    ((_, _, table, kind, _, key, _, _, rows, extra),) = world.books.rows(79, f"EXPLAIN {sql}")
    assert (table, kind, key) == ("coupon_info", "range", "idx_due")
    assert int(rows) < 200
    assert "filesort" not in extra


async def test_a_coupon_lasts_its_days_after_the_claim_in_the_batchs_zone(world: World) -> None:
    zone = ZoneInfo("Pacific/Kiritimati")
    batch_id = await world.batch(with_days(cash_voucher("5.00"), 2, zone.key))
    ((owned,), (code,)) = await asyncio.gather(world.issue(batch_id, world.user()), world.codes(batch_id))
    before = await shown(world.one, OwnedCoupon(code.coupon_id, code.code, 0, batch_id))
    assert not before.HasField("expires_at"), "nobody claimed it yet"

    claimed = await activate(world, code.code, world.user())

    day = datetime.fromtimestamp(time.time(), zone).date() + timedelta(days=3)
    end = datetime(day.year, day.month, day.day, tzinfo=zone)
    for coupon in (claimed, await shown(world.one, owned)):
        assert coupon.expires_at.ToDatetime(UTC) == end
        assert coupon.terms.days_after_claim == 2
        assert not coupon.terms.HasField("expires_at")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda terms: terms.ClearField("expires_at"), "BATCH_TERMS_INVALID"),
        (lambda terms: setattr(terms, "days_after_claim", 3_651), "VALIDATION_FAILED"),
        (lambda terms: setattr(terms, "days_after_claim", -1), "VALIDATION_FAILED"),
    ],
)
async def test_terms_without_an_end_or_with_impossible_days_are_refused(world: World, change: Any, reason: str) -> None:
    terms = cash_voucher("5.00")
    change(terms)
    request = batch_service_pb2.CreateBatchRequest(request_id=request_id(), name="a batch", terms=terms)
    assert (await refusal(world.one.call(request, world.operator()))).reason == reason
    assert world.books.records(request.request_id) == []
