"""An unactivated code becomes one user's coupon, whoever asks at the same time and whatever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    SHARDS,
    Caller,
    CouponProcess,
    Refusal,
    World,
    eventually,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    yuan,
)


def activate(code: str, user_id: int, request: str = "") -> coupons.ActivateCouponRequest:
    return coupons.ActivateCouponRequest(request_id=request or request_id(), code=code, user_id=user_id)


def consume(code: str, till: Caller) -> cashiers.ConsumeRequest:
    return cashiers.ConsumeRequest(coupon_code=code, merchant_id=till.merchant_id, amount=1.0)


async def unactivated(world: World) -> coupons.IssuedCoupon:
    (issued,) = await world.codes(await world.batch(gift_card("100.00")))
    return issued


def elsewhere(issued: coupons.IssuedCoupon) -> int:
    """A shard of the database in which the code does not lie."""
    return (int(issued.coupon_id) + SHARDS // 2) % SHARDS


def owned_by(world: World, user_id: int) -> list[str]:
    rows = world.books.rows(user_id, "SELECT coupon_id FROM coupon_info WHERE user_id = %s", user_id)
    return [coupon_id for (coupon_id,) in rows]


def assert_finished(world: World, issued: coupons.IssuedCoupon, user_id: int) -> str:
    """The user owns the coupon, the old row is closed, and both journals hold; gives the lasting id."""
    (lasting_id,) = owned_by(world, user_id)
    assert int(lasting_id) % SHARDS == user_id % SHARDS
    origin, lasting = world.books.coupon(issued.coupon_id), world.books.coupon(lasting_id)
    assert (origin.bound_user_id, origin.bound_coupon_id) == (user_id, lasting_id)
    assert origin.status == lasting.status == CouponStatus.ACTIVATED
    assert [row.kind for row in world.books.assert_agree(issued.coupon_id)] == [
        JournalKind.ISSUED,
        JournalKind.ACTIVATION_MARKED,
        JournalKind.ACTIVATED,
    ]
    assert world.books.assert_agree(lasting_id)[0].kind is JournalKind.ACTIVATED
    return lasting_id


async def test_an_activated_code_leads_to_the_lasting_id_on_both_processes(world: World) -> None:
    issued, till, user_id = await unactivated(world), world.cashier(), world.user()
    for process in world.both:
        # Both have looked the code up before.
        assert_as_the_contract_says(await refusal(process.call(consume(issued.code, till), till)), "COUPON_UNACTIVATED")
        shown = (await process.call(coupons.GetCouponRequest(coupon_id=issued.coupon_id), world.operator())).coupon
        assert shown.status == coupon_pb2.COUPON_STATUS_UNACTIVATED

    given = (await world.one.call(activate(issued.code, user_id), world.operator())).coupon

    assert (given.user_id, given.status, given.balance) == (
        user_id,
        coupon_pb2.COUPON_STATUS_ACTIVATED,
        yuan("100.00"),
    )
    assert given.masked_code == f"****-****-{issued.code[-4:]}"
    lasting_id = assert_finished(world, issued, user_id)
    assert given.coupon_id == lasting_id
    for number, process in enumerate(world.both, start=1):
        reply = await process.call(consume(issued.code.lower(), till), till)
        assert reply.coupon_id == lasting_id
        assert reply.balance_after.amount_minor == 10_000 - number * 100
        # The id that was printed with the code leads there as well.
        shown = (await process.call(coupons.GetCouponRequest(coupon_id=issued.coupon_id), world.operator())).coupon
        assert shown.coupon_id == lasting_id
    listed = await world.two.call(coupons.ListCouponsRequest(user_id=user_id), world.operator())
    assert [coupon.coupon_id for coupon in listed.coupons] == [lasting_id]
    world.books.assert_agree(lasting_id)


@pytest.mark.parametrize("shard_offset", [0, 1, 64], ids=["same-shard", "same-database", "other-database"])
async def test_code_and_user_may_lie_anywhere(world: World, shard_offset: int) -> None:
    issued = await unactivated(world)
    user_id = world.user((int(issued.coupon_id) + shard_offset) % SHARDS)
    await world.one.call(activate(issued.code, user_id), world.operator())
    assert_finished(world, issued, user_id)


async def test_of_many_users_at_once_exactly_one_gets_the_coupon(world: World) -> None:
    issued, operator = await unactivated(world), world.operator()
    users = [world.user() for _ in range(20)]
    results = await outcomes(
        process.call(activate(issued.code, user_id), operator)
        for user_id, process in zip(users, world.both * 10, strict=True)
    )
    assert tally(results) == {"OK": 1, "COUPON_ALREADY_ACTIVATED": 19}
    (winner,) = [user_id for user_id in users if owned_by(world, user_id)]
    (reply,) = [result for result in results if not isinstance(result, Refusal)]
    assert reply.coupon.user_id == winner  # type: ignore[attr-defined]  # a reply
    assert_finished(world, issued, winner)
    for result in results:
        if isinstance(result, Refusal):
            assert_as_the_contract_says(result, "COUPON_ALREADY_ACTIVATED")


async def test_a_code_is_activated_once_even_for_its_owner(world: World) -> None:
    issued, operator, user_id = await unactivated(world), world.operator(), world.user()
    await world.one.call(activate(issued.code, user_id), operator)
    for process in world.both:
        assert_as_the_contract_says(
            await refusal(process.call(activate(issued.code, user_id), operator)), "COUPON_ALREADY_ACTIVATED"
        )
    (card,) = await world.cards(1)
    assert (await refusal(world.one.call(activate(card.code, user_id), operator))).reason == "COUPON_ALREADY_ACTIVATED"


async def test_a_user_activates_for_itself_only(world: World) -> None:
    issued, user_id = await unactivated(world), world.user()
    shopper = Caller("app", ("user",), subject=str(user_id))
    with world.books.unchanged():
        refused = await refusal(world.one.call(activate(issued.code, world.user()), shopper))
        assert_as_the_contract_says(refused, "USER_NOT_OWNED")
    await world.one.call(activate(issued.code, user_id), shopper)
    assert_finished(world, issued, user_id)


async def test_a_code_that_is_over_or_unknown_activates_nothing(world: World) -> None:
    issued, operator, user_id = await unactivated(world), world.operator(), world.user()
    world.books.change(
        int(issued.coupon_id),
        "UPDATE coupon_info SET expires_at = NOW(3) - INTERVAL 1 SECOND WHERE coupon_id = %s",
        issued.coupon_id,
    )
    refused = await refusal(world.one.call(activate(issued.code, user_id), operator))
    assert_as_the_contract_says(refused, "COUPON_EXPIRED")
    mistyped = ("1" if issued.code[0] != "1" else "2") + issued.code[1:]
    refused = await refusal(world.one.call(activate(mistyped, user_id), operator))
    assert_as_the_contract_says(refused, "CODE_MISTYPED")
    assert owned_by(world, user_id) == []


# --- killed between the steps ---


@pytest.fixture
async def victim(world: World) -> AsyncIterator[CouponProcess]:
    """A coupon_svc to be killed."""
    async with world.further_process() as process:
        yield process


async def killed_after_the_mark(
    world: World, victim: CouponProcess, issued: coupons.IssuedCoupon, request: coupons.ActivateCouponRequest
) -> None:
    """The mark is committed; the insert into the user's shard never happens."""
    with world.books.shard_held(request.user_id % SHARDS):
        calling = asyncio.ensure_future(victim.call(request, Caller("the-same", ("operator",))))
        await eventually(lambda: world.books.coupon(issued.coupon_id).bound_user_id == request.user_id)
        # It waits where the owner's coupons lie.
        await world.books.until_waiting("FROM shard_owner")
        victim.service.kill()
    assert isinstance((await outcomes([calling]))[0], Refusal)
    assert owned_by(world, request.user_id) == []
    assert world.books.coupon(issued.coupon_id).status == CouponStatus.UNACTIVATED


async def killed_before_the_close(
    world: World, victim: CouponProcess, issued: coupons.IssuedCoupon, request: coupons.ActivateCouponRequest
) -> None:
    """The coupon is there under its lasting id; the old row was not closed."""
    with world.books.shard_held(request.user_id % SHARDS) as owners:
        calling = asyncio.ensure_future(victim.call(request, Caller("the-same", ("operator",))))
        await eventually(lambda: world.books.coupon(issued.coupon_id).bound_user_id == request.user_id)
        await world.books.until_waiting("FROM shard_owner")
        with world.books.shard_held(int(issued.coupon_id) % SHARDS):
            owners.rollback()
            await eventually(lambda: owned_by(world, request.user_id))
            await world.books.until_waiting("FROM shard_owner")
            victim.service.kill()
    assert isinstance((await outcomes([calling]))[0], Refusal)
    assert len(owned_by(world, request.user_id)) == 1
    assert world.books.coupon(issued.coupon_id).status == CouponStatus.UNACTIVATED


KILLED = [killed_after_the_mark, killed_before_the_close]


@pytest.mark.parametrize("kill", KILLED, ids=lambda kill: kill.__name__)
async def test_the_same_request_completes_what_a_killed_process_began(
    world: World, victim: CouponProcess, kill: object
) -> None:
    issued = await unactivated(world)
    request = activate(issued.code, world.user(elsewhere(issued)))
    await kill(world, victim, issued, request)  # type: ignore[operator]  # one of KILLED
    caller = Caller("the-same", ("operator",))

    first = await world.one.call(request, caller)

    assert first.coupon.coupon_id == assert_finished(world, issued, request.user_id)
    assert await world.two.call(request, caller) == first


@pytest.mark.parametrize("kill", KILLED, ids=lambda kill: kill.__name__)
async def test_whoever_comes_next_completes_it_for_the_marked_owner_and_not_for_itself(
    world: World, victim: CouponProcess, kill: object
) -> None:
    issued, till, stranger = await unactivated(world), world.cashier(), world.user()
    request = activate(issued.code, world.user(elsewhere(issued)))
    await kill(world, victim, issued, request)  # type: ignore[operator]  # one of KILLED

    refused = await refusal(world.one.call(activate(issued.code, stranger), world.operator()))

    assert_as_the_contract_says(refused, "COUPON_ALREADY_ACTIVATED")
    assert owned_by(world, stranger) == []
    lasting_id = assert_finished(world, issued, request.user_id)
    assert (await world.two.call(consume(issued.code, till), till)).coupon_id == lasting_id
    # The one whose request it was learns what became of it, whatever happened since.
    late = await world.two.call(request, Caller("the-same", ("operator",)))
    assert late.coupon.coupon_id == lasting_id
    assert len(owned_by(world, request.user_id)) == 1


async def test_a_coupon_that_is_only_marked_cannot_be_consumed_yet(world: World, victim: CouponProcess) -> None:
    issued, till = await unactivated(world), world.cashier()
    request = activate(issued.code, world.user(elsewhere(issued)))
    await killed_after_the_mark(world, victim, issued, request)
    with world.books.unchanged():
        for process in world.both:
            refused = await refusal(process.call(consume(issued.code, till), till))
            assert_as_the_contract_says(refused, "COUPON_UNACTIVATED")
    await world.one.call(request, Caller("the-same", ("operator",)))
    for process in world.both:
        await process.call(consume(issued.code, till), till)
