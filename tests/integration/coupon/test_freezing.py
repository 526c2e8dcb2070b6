"""Freezing and unfreezing coupons and accounts, also while consumes go on."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import grpc
import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind, account_chain
from couponmesh.coupon.v1 import coupon_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.coupon.v1 import freeze_pb2 as freezes
from tests.integration.coupon.world import (
    Caller,
    CouponProcess,
    OwnedCoupon,
    Refusal,
    World,
    cash_voucher,
    consume_request,
    eventually,
    outcomes,
    refusal,
    request_id,
    tally,
    yuan,
)

RISK = Caller("risk-desk", ("risk",))
ACTIVATED, FROZEN = coupon_pb2.COUPON_STATUS_ACTIVATED, coupon_pb2.COUPON_STATUS_FROZEN


def freeze_coupon(coupon_id: str, why: str = "reported stolen") -> freezes.FreezeCouponRequest:
    return freezes.FreezeCouponRequest(request_id=request_id(), coupon_id=coupon_id, reason=why)


def unfreeze_coupon(coupon_id: str, why: str = "cleared") -> freezes.UnfreezeCouponRequest:
    return freezes.UnfreezeCouponRequest(request_id=request_id(), coupon_id=coupon_id, reason=why)


def freeze_account(user_id: int, why: str = "刷券") -> freezes.FreezeAccountRequest:
    return freezes.FreezeAccountRequest(request_id=request_id(), user_id=user_id, reason=why)


def unfreeze_account(user_id: int, why: str = "cleared") -> freezes.UnfreezeAccountRequest:
    return freezes.UnfreezeAccountRequest(request_id=request_id(), user_id=user_id, reason=why)


async def shown(process: CouponProcess, coupon: OwnedCoupon) -> Any:
    return (await process.call(coupons.GetCouponRequest(coupon_id=coupon.coupon_id), RISK)).coupon


async def test_a_frozen_coupon_is_refused_and_is_what_it_was_once_it_is_unfrozen(world: World) -> None:
    card, till = await world.card(balance="100.00"), world.cashier()
    await world.one.consume(card, "30.00", till)

    frozen = await world.one.call(freeze_coupon(card.coupon_id), RISK)

    assert (frozen.coupon.status, frozen.coupon.balance) == (FROZEN, yuan("70.00"))
    for process in world.both:
        assert (await refusal(process.consume(card, "1.00", till))).reason == "COUPON_FROZEN"
        assert (await shown(process, card)).status == FROZEN
    back = await world.two.call(unfreeze_coupon(card.coupon_id), RISK)
    assert (back.coupon.status, back.coupon.balance) == (ACTIVATED, yuan("70.00"))
    await world.one.consume(card, "70.00", till)
    journal = world.books.assert_agree(card.coupon_id)
    assert [(row.kind, row.reason) for row in journal[2:4]] == [
        (JournalKind.FROZEN, "reported stolen"),
        (JournalKind.UNFROZEN, "cleared"),
    ]
    assert {row.balance_after_minor for row in journal[1:4]} == {7_000}


async def test_only_an_activated_coupon_can_be_frozen_and_only_a_frozen_one_unfrozen(world: World) -> None:
    till = world.cashier()
    used, fresh, frozen = [await world.coupon(cash_voucher("5.00")) for _ in range(3)]
    (code,) = await world.codes(fresh.batch_id)
    await world.one.consume(used, "5.00", till)
    await world.one.call(freeze_coupon(frozen.coupon_id), RISK)
    versions = {each: world.books.coupon(each) for each in (used.coupon_id, fresh.coupon_id, frozen.coupon_id)}
    for request, step in (
        (freeze_coupon(used.coupon_id), {"from": "USED", "to": "FROZEN"}),
        (freeze_coupon(frozen.coupon_id), {"from": "FROZEN", "to": "FROZEN"}),
        (freeze_coupon(code.coupon_id), {"from": "UNACTIVATED", "to": "FROZEN"}),
        (unfreeze_coupon(used.coupon_id), {"from": "USED", "to": "ACTIVATED"}),
        (unfreeze_coupon(fresh.coupon_id), {"from": "ACTIVATED", "to": "ACTIVATED"}),
        (unfreeze_coupon(code.coupon_id), {"from": "UNACTIVATED", "to": "ACTIVATED"}),
    ):
        refused = await refusal(world.one.call(request, RISK))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STATUS_TRANSITION_REFUSED")
        assert refused.metadata == step
    assert {each: world.books.coupon(each) for each in versions} == versions, "nothing changed"


async def test_a_frozen_account_shows_its_coupons_as_frozen_and_changes_none_of_them(world: World) -> None:
    user_id = world.user()
    card, other = await world.issue(await world.batch(cash_voucher("5.00")), user_id, 2)
    await world.one.call(freeze_coupon(other.coupon_id), RISK)
    rows = [world.books.coupon(each.coupon_id) for each in (card, other)]

    frozen = (await world.one.call(freeze_account(user_id), RISK)).account

    assert (frozen.status, frozen.reason, frozen.version) == (freezes.ACCOUNT_STATUS_FROZEN, "刷券", 1)
    till = world.cashier()
    for process in world.both:
        assert [(await shown(process, each)).status for each in (card, other)] == [FROZEN, FROZEN]
        assert (await refusal(process.consume(card, "5.00", till))).reason == "ACCOUNT_FROZEN"
        validation = await process.call(
            coupons.ValidateCouponRequest(coupon_id=card.coupon_id, merchant_id=till.merchant_id, amount=yuan("5.00")),
            till,
        )
        assert (validation.usable, validation.refusal_reason) == (False, "ACCOUNT_FROZEN")
    assert [world.books.coupon(each.coupon_id) for each in (card, other)] == rows

    normal = (await world.two.call(unfreeze_account(user_id), RISK)).account

    assert (normal.status, normal.reason, normal.version) == (freezes.ACCOUNT_STATUS_NORMAL, "", 2)
    # What was frozen on its own stays frozen.
    assert [(await shown(world.one, each)).status for each in (card, other)] == [ACTIVATED, FROZEN]
    assert [world.books.coupon(each.coupon_id) for each in (card, other)] == rows
    await world.one.consume(card, "5.00", till)


async def test_a_coupon_can_be_frozen_and_unfrozen_while_its_account_is_frozen(world: World) -> None:
    card = await world.card()
    await world.one.call(freeze_account(card.user_id), RISK)
    await world.one.call(freeze_coupon(card.coupon_id), RISK)
    assert (await world.one.call(unfreeze_coupon(card.coupon_id), RISK)).coupon.status == FROZEN
    assert world.books.coupon(card.coupon_id).status == CouponStatus.ACTIVATED
    await world.one.call(unfreeze_account(card.user_id), RISK)
    assert (await shown(world.one, card)).status == ACTIVATED


async def test_somebody_without_a_coupon_can_be_frozen_and_gets_none(world: World) -> None:
    user_id = world.user()
    batch_id = await world.batch(cash_voucher("5.00"))
    await world.one.call(freeze_account(user_id), RISK)
    refused = await outcomes([world.issue(batch_id, user_id)])
    assert tally(refused) == {"ACCOUNT_FROZEN": 1}
    await world.one.call(unfreeze_account(user_id), RISK)
    assert len(await world.issue(batch_id, user_id)) == 1


async def test_freezing_twice_and_unfreezing_what_is_not_frozen_is_refused(world: World) -> None:
    stranger, user_id = world.user(), world.user()
    assert (await refusal(world.one.call(unfreeze_account(stranger), RISK))).reason == "ACCOUNT_NOT_FROZEN"
    assert world.books.rows(stranger, "SELECT user_id FROM account_state WHERE user_id = %s", stranger) == []
    await world.one.call(freeze_account(user_id), RISK)
    assert (await refusal(world.two.call(freeze_account(user_id), RISK))).reason == "ACCOUNT_FROZEN"
    await world.one.call(unfreeze_account(user_id), RISK)
    assert (await refusal(world.two.call(unfreeze_account(user_id), RISK))).reason == "ACCOUNT_NOT_FROZEN"


async def test_each_of_the_four_is_repeated_by_its_request_id_and_happens_once(world: World) -> None:
    card = await world.card()
    for request in (
        freeze_coupon(card.coupon_id),
        unfreeze_coupon(card.coupon_id),
        freeze_account(card.user_id),
        unfreeze_account(card.user_id),
    ):
        replies = await asyncio.gather(*(process.call_bytes(request, RISK) for process in world.both * 3))
        assert len(set(replies)) == 1
        other = copy.deepcopy(request)
        other.reason = "another"
        assert (await refusal(world.one.call(other, RISK))).reason == "IDEMPOTENCY_KEY_REUSED"
    kinds = [row.kind for row in world.books.assert_agree(card.coupon_id)]
    assert kinds == [JournalKind.ISSUED, JournalKind.FROZEN, JournalKind.UNFROZEN]


async def test_an_accounts_changes_are_chained_in_the_journal_and_its_row_holds_the_head(world: World) -> None:
    user_id = world.user()
    for _ in range(2):
        await world.one.call(freeze_account(user_id), RISK)
        await world.two.call(unfreeze_account(user_id, "a false alarm"), RISK)
    journal = world.books.assert_chained(account_chain(user_id))
    assert [(row.kind, row.status_before, row.status_after, row.reason) for row in journal] == [
        (JournalKind.ACCOUNT_FROZEN, 1, 2, "刷券"),
        (JournalKind.ACCOUNT_UNFROZEN, 2, 1, "a false alarm"),
    ] * 2
    ((last_seq, last_hash),) = world.books.rows(
        user_id, "SELECT last_seq, last_hash FROM account_state WHERE user_id = %s", user_id
    )
    assert (last_seq, last_hash) == (4, journal[-1].hash)


@pytest.mark.parametrize("roles", [("cashier",), ("user",), ("finance",), ("auditor",)])
async def test_whoever_is_neither_risk_operator_nor_a_service_may_not_freeze(
    world: World, roles: tuple[str, ...]
) -> None:
    card = await world.card()
    by = Caller("somebody", roles, merchant_id="m", subject=str(card.user_id))
    for request in (freeze_coupon(card.coupon_id), freeze_account(card.user_id)):
        assert (await refusal(world.one.call(request, by))).code is grpc.StatusCode.PERMISSION_DENIED
    assert (await shown(world.one, card)).status == ACTIVATED


# --- races ---


async def test_freezing_an_account_waits_for_the_consume_under_way_and_refuses_the_next(world: World) -> None:
    card, till = await world.card(), world.cashier()
    with world.books.coupon_held(card.coupon_id):
        # The consume holds the account's row, and waits for the coupon's.
        under_way = asyncio.ensure_future(world.one.consume(card, "30.00", till))
        await world.books.until_waiting(card.coupon_id)
        freezing = asyncio.ensure_future(world.two.call(freeze_account(card.user_id), RISK))
        await world.books.until_waiting("FROM account_state FORCE INDEX (PRIMARY) WHERE shard =")
        # This one comes after the freeze: it waits behind it in another process, and must not overtake it.
        later = asyncio.ensure_future(world.two.consume(card, "30.00", till))
        assert not under_way.done()
        assert not freezing.done()
    assert (await under_way).transaction.balance_after == yuan("70.00")
    await freezing
    late = (await outcomes([later]))[0]
    assert isinstance(late, Refusal)
    assert late.reason in {"ACCOUNT_FROZEN", "COUPON_BUSY"}
    assert len(world.books.transactions(card.coupon_id)) == 1


async def test_once_freezing_an_account_is_answered_no_consume_of_it_commits(world: World) -> None:
    user_id = world.user()
    cards = await world.issue(await world.batch(cash_voucher("1.00")), user_id, 150)
    till = world.cashier()
    for process in world.both:
        await world.known_to(process, cards)
    counted = "SELECT COUNT(*) FROM coupon_transaction WHERE user_id = %s"
    gate = asyncio.Semaphore(8)

    async def consume(card: OwnedCoupon, process: CouponProcess) -> object:
        async with gate:
            return (await outcomes([process.call(consume_request(card, "1.00", till), till)]))[0]

    stream = [
        asyncio.ensure_future(consume(card, process))
        for card, process in zip(cards, world.both * len(cards), strict=False)
    ]
    await eventually(lambda: world.books.rows(user_id, counted, user_id)[0][0] >= 10)
    await world.one.call(freeze_account(user_id), RISK)
    ((at_the_answer,),) = world.books.rows(user_id, counted, user_id)
    results = await asyncio.gather(*stream)
    ((in_the_end,),) = world.books.rows(user_id, counted, user_id)

    assert in_the_end == at_the_answer
    found = tally(results)
    assert found["OK"] == in_the_end
    # The race did happen: some came before and some after.
    assert found["OK"] >= 10
    assert found["ACCOUNT_FROZEN"] >= 10
    assert found["OK"] + found["ACCOUNT_FROZEN"] == len(cards)
