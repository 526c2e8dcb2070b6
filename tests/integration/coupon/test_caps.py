"""Caps of a batch: uses per user, and a spend cap over two databases."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from coupon_svc.domain.caps import slice_minor
from couponmesh.coupon.v1 import batch_pb2, batch_service_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import money_pb2
from tests.integration.coupon.world import (
    GROUPED,
    GROUPS,
    OwnedCoupon,
    World,
    cash_voucher,
    consume_request,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    yuan,
)


def caps(*, uses: int | None = None, cap: str = "") -> batch_pb2.BatchCaps:
    message = batch_pb2.BatchCaps(uses_per_user=uses)
    if cap:
        message.spend_cap.CopyFrom(yuan(cap))
    return message


def deducted(world: World, coupons_of: list[OwnedCoupon]) -> Decimal:
    rows = [world.books.transactions(each.coupon_id) for each in coupons_of]
    return Decimal(sum(row[2] for found in rows for row in found)) / 100


async def test_a_user_uses_a_batch_as_often_as_it_says_and_another_user_as_often_again(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"), caps=caps(uses=2))
    till = world.cashier()
    for user_id in (world.user(), world.user()):
        first, second, third = await world.issue(batch_id, user_id, 3)
        await world.one.consume(first, "10.00", till)
        await world.two.consume(second, "10.00", till)
        validation = await world.one.call(
            coupons.ValidateCouponRequest(
                coupon_id=third.coupon_id, merchant_id=till.merchant_id, amount=yuan("10.00")
            ),
            till,
        )
        assert (validation.usable, validation.refusal_reason) == (False, "USES_LIMIT_REACHED")
        refused = await refusal(world.one.consume(third, "10.00", till))
        assert (refused.reason, refused.metadata["uses_per_user"]) == ("USES_LIMIT_REACHED", "2")
        assert [row.kind.name for row in world.books.assert_agree(third.coupon_id)] == ["ISSUED"]


async def test_each_spend_from_a_gift_card_is_a_use_and_a_replay_is_none(world: World) -> None:
    batch_id = await world.batch(gift_card("100.00"), caps=caps(uses=2))
    ((card,), till) = await world.issue(batch_id, world.user()), world.cashier()
    request = consume_request(card, "1.00", till)
    assert len({await process.call_bytes(request, till) for process in world.both * 2}) == 1
    await world.one.consume(card, "1.00", till)
    assert (await refusal(world.one.consume(card, "1.00", till))).reason == "USES_LIMIT_REACHED"
    assert world.books.coupon(card.coupon_id).balance == 98


async def test_uses_that_two_processes_take_at_once_never_exceed_the_limit(world: World) -> None:
    batch_id = await world.batch(cash_voucher("1.00"), caps=caps(uses=5))
    issued = await world.issue(batch_id, world.user(), 24)
    till = world.cashier()
    for process in world.both:
        await world.known_to(process, issued)
    results = await outcomes(
        process.call(consume_request(each, "1.00", till), till)
        for each, process in zip(issued, world.both * len(issued), strict=False)
    )
    assert tally(results) == {"OK": 5, "USES_LIMIT_REACHED": 19}
    ordinals = world.books.rows(
        issued[0].user_id, "SELECT ordinal FROM batch_use WHERE batch_id = %s ORDER BY ordinal", batch_id
    )
    assert [ordinal for (ordinal,) in ordinals] == [1, 2, 3, 4, 5]


async def test_a_deduction_that_the_cap_does_not_cover_whole_is_refused(world: World) -> None:
    batch_id = await world.batch(cash_voucher("6.00"), caps=caps(cap="10.00"))
    till = world.cashier()
    first, second, third = await world.issue(batch_id, world.user(5), 3)
    await world.one.consume(first, "20.00", till)
    refused = await refusal(world.one.consume(second, "20.00", till))
    assert (refused.reason, refused.metadata["deduction"]) == ("SPEND_CAP_REACHED", "6.00")
    validation = await world.two.call(
        coupons.ValidateCouponRequest(coupon_id=second.coupon_id, merchant_id=till.merchant_id, amount=yuan("20.00")),
        till,
    )
    assert validation.refusal_reason == "SPEND_CAP_REACHED"
    # 4.00 are left: what takes no more than that goes on.
    assert (await world.two.consume(third, "4.00", till)).transaction.deduction == yuan("4.00")
    assert (await refusal(world.one.consume(second, "0.01", till))).reason == "SPEND_CAP_REACHED"


@pytest.mark.parametrize("face_value", ["1.00", "0.37"])
async def test_a_cap_over_two_databases_and_processes_is_never_exceeded_and_used_but_for_a_slice(
    world: World, face_value: str
) -> None:
    cap, face = Decimal("30.00"), Decimal(face_value)
    batch_id = await world.batch(cash_voucher(face_value), caps=caps(cap=str(cap)))
    wanted = int(cap / face) + 40
    issued = [
        each for shard in (3, 100, 17, 90) for each in await world.issue(batch_id, world.user(shard), wanted // 4 + 1)
    ]
    till = world.cashier()
    for process in world.both:
        await world.known_to(process, issued)
    async with world.one.observed() as one, world.two.observed() as two:
        results = await outcomes(
            process.call(consume_request(each, "5.00", till), till)
            for each, process in zip(issued, world.both * len(issued), strict=False)
        )
    found = tally(results)
    spent = deducted(world, issued)
    assert set(found) == {"OK", "SPEND_CAP_REACHED"}
    assert found["OK"] * face == spent <= cap
    # Each database may be left with less than a slice, or than one deduction.
    least = max(Decimal(slice_minor(int(cap * 100), 2)) / 100, face)
    assert spent > cap - 2 * least
    assert one[GROUPED] + two[GROUPED] > one[GROUPS] + two[GROUPS], "consumes met in groups"
    held = world.books.everywhere("SELECT leased_minor, spent_minor FROM spend_slice WHERE batch_id = %s", batch_id)
    assert len(held) == 2, "both databases leased slices"
    assert sum(row[1] for row in held) == spent * 100
    ((granted,),) = world.books.rows(
        int(batch_id), "SELECT spend_granted_minor FROM batch WHERE batch_id = %s", batch_id
    )
    assert sum(row[0] for row in held) == granted <= cap * 100


async def test_a_refused_neighbour_in_the_same_group_harms_nobody(world: World) -> None:
    capped = await world.batch(cash_voucher("6.00"), caps=caps(cap="10.00"))
    (first, second), (card,) = await world.issue(capped, world.user(9), 2), await world.cards(1, shard=9)
    till = world.cashier()
    await world.known_to(world.one, [first, second, card])
    async with world.one.observed() as rise:
        async with world.group_at_work(world.one, 9):
            calls = [asyncio.ensure_future(world.one.consume(each, "6.00", till)) for each in (first, card, second)]
            await world.one.until_in_flight(1 + len(calls))
        results = await outcomes(calls)
    assert (rise[GROUPS], rise[GROUPED]) == (2, 4), "all three were in the second group"
    assert tally(results) == {"OK": 2, "SPEND_CAP_REACHED": 1}
    assert world.books.coupon(card.coupon_id).balance == 94
    assert deducted(world, [first, second]) == 6


async def test_a_grant_that_never_reached_its_slice_is_used_before_another_is_made(world: World) -> None:
    batch_id = await world.batch(cash_voucher("6.00"), caps=caps(cap="10.00"))
    (coupon,) = await world.issue(batch_id, world.user(11))
    # As left behind by a process that died between the two databases.
    world.books.change(
        int(batch_id),
        "INSERT INTO spend_grant (shard, batch_id, holder, granted_minor) VALUES (%s, %s, 0, 1000)",
        int(batch_id) % 128,
        batch_id,
    )
    world.books.change(int(batch_id), "UPDATE batch SET spend_granted_minor = 1000 WHERE batch_id = %s", batch_id)
    await world.one.consume(coupon, "20.00", world.cashier())
    assert world.books.rows(11, "SELECT leased_minor, spent_minor FROM spend_slice WHERE batch_id = %s", batch_id) == [
        (1_000, 600)
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (caps(uses=0), "VALIDATION_FAILED"),
        (caps(uses=-1), "VALIDATION_FAILED"),
        (batch_pb2.BatchCaps(spend_cap=money_pb2.Money(currency_code="CNY", amount_minor=0)), "AMOUNT_ZERO"),
        (batch_pb2.BatchCaps(spend_cap=money_pb2.Money(currency_code="USD", amount_minor=1)), "CURRENCY_NOT_SUPPORTED"),
    ],
)
async def test_caps_of_nothing_or_of_another_currency_are_refused(
    world: World, wrong: batch_pb2.BatchCaps, reason: str
) -> None:
    request = batch_service_pb2.CreateBatchRequest(
        request_id=request_id(), name="a batch", terms=cash_voucher("5.00"), caps=wrong
    )
    assert (await refusal(world.one.call(request, world.operator()))).reason == reason


async def test_a_batch_shows_its_caps(world: World) -> None:
    batch_id = await world.batch(cash_voucher("5.00"), caps=caps(uses=3, cap="1000.00"))
    shown = await world.two.call(batch_service_pb2.GetBatchRequest(batch_id=batch_id), world.operator())
    assert shown.batch.caps == caps(uses=3, cap="1000.00")
