"""Batches and accounts have chains like coupons; what becomes of them leaves a trail that can be verified."""

from __future__ import annotations

from typing import Any

import pytest

from couponmesh.coupon.v1 import batch_pb2, coupon_pb2, freeze_pb2
from couponmesh.coupon.v1.coupon_service_pb2 import ListAuditEventsRequest
from tests.integration.coupon.audits import AUDITOR, Verdict, differences, spent_card, verify
from tests.integration.coupon.world import Caller, World, gift_card, request_id

RISK = Caller("risk-desk", ("risk",))
ROW = "WHERE shard = %s AND coupon_id = %s AND seq = %s"


async def frozen_user(world: World) -> tuple[int, int, str]:
    """A user whose account was frozen, unfrozen and frozen again; its shard and the name of its chain."""
    card = await spent_card(world)
    for number, request in enumerate((freeze_pb2.FreezeAccountRequest, freeze_pb2.UnfreezeAccountRequest) * 2):
        if number < 3:
            await world.one.call(request(request_id=request_id(), user_id=card.user_id, reason="looked odd"), RISK)
    return card.user_id, card.shard, f"U{card.user_id:019d}"


def of_chain(verdict: Verdict, chain_id: str) -> list[tuple[str, int]]:
    return [
        (kind, each.seq)
        for kind, each in zip(verdict.kinds, verdict.findings, strict=True)
        if each.coupon_id == chain_id
    ]


async def test_a_batchs_chain_is_verified_by_its_id(world: World) -> None:
    batch_id = await world.batch(gift_card())
    for scope in (batch_pb2.BLOCK_SCOPE_CLAIM, batch_pb2.BLOCK_SCOPE_BOTH):
        await world.block(batch_id, scope)
    shard = int(batch_id) % 128
    verdict = await verify(world.one, coupon_id=batch_id)
    assert (verdict.findings, verdict.total("rows")) == ([], 3)
    world.books.change(shard, f"UPDATE coupon_journal SET caller = 'nobody' {ROW}", shard, batch_id, 2)
    assert of_chain(await verify(world.one, shard=shard), batch_id) == [("ROW_ALTERED", 2)]
    world.books.change(shard, f"DELETE FROM coupon_journal {ROW}", shard, batch_id, 2)
    world.books.change(shard, f"DELETE FROM coupon_journal {ROW}", shard, batch_id, 3)
    assert of_chain(await verify(world.one, coupon_id=batch_id), batch_id) == [("TAIL_CUT", 2)]
    world.books.change(shard, f"DELETE FROM coupon_journal {ROW}", shard, batch_id, 1)
    assert of_chain(await verify(world.one, shard=shard), batch_id) == [("CHAIN_UNMATCHED", 1)]


async def test_what_a_batch_blocks_is_compared_with_the_end_of_its_chain(world: World) -> None:
    batch_id = await world.batch(gift_card())
    await world.block(batch_id, batch_pb2.BLOCK_SCOPE_BOTH)
    world.books.change(int(batch_id), "UPDATE batch SET block_scope = 0 WHERE batch_id = %s", batch_id)
    (finding,) = (await verify(world.one, coupon_id=batch_id)).findings
    assert differences(finding) == {"status": ("0", "3")}


async def test_an_accounts_chain_is_verified_and_listed_with_its_user(world: World) -> None:
    user_id, shard, chain_id = await frozen_user(world)
    for scope in ({"user_id": user_id}, {"shard": shard}):
        assert of_chain(await verify(world.one, **scope), chain_id) == []
    listed = await world.one.call(ListAuditEventsRequest(user_id=user_id), AUDITOR)
    assert [event.kind for event in listed.events if event.coupon_id == chain_id] == [
        coupon_pb2.AUDIT_KIND_ACCOUNT_FROZEN,
        coupon_pb2.AUDIT_KIND_ACCOUNT_UNFROZEN,
        coupon_pb2.AUDIT_KIND_ACCOUNT_FROZEN,
    ]
    world.books.change(shard, f"UPDATE coupon_journal SET reason = 'nothing' {ROW}", shard, chain_id, 1)
    for scope in ({"user_id": user_id}, {"shard": shard}):
        assert of_chain(await verify(world.one, **scope), chain_id) == [("ROW_ALTERED", 1)]


async def test_an_account_that_was_unfrozen_past_the_service_is_found(world: World) -> None:
    user_id, shard, chain_id = await frozen_user(world)
    world.books.change(shard, "UPDATE account_state SET status = 1 WHERE shard = %s AND user_id = %s", shard, user_id)
    assert of_chain(await verify(world.one, user_id=user_id), chain_id) == [("HEAD_MISMATCH", 3)]


@pytest.mark.parametrize("page_size", [1, 2, 50])
async def test_pages_go_on_behind_an_accounts_rows(world: World, page_size: int) -> None:
    user_id, shard, chain_id = await frozen_user(world)
    scopes: list[dict[str, Any]] = [{"user_id": user_id}, {"shard": shard}]
    for scope in scopes:
        found, token = [], ""
        for _ in range(2_000):
            reply = await world.one.call(
                ListAuditEventsRequest(page_size=page_size, page_token=token, **scope), AUDITOR
            )
            found += [event.seq for event in reply.events if event.coupon_id == chain_id]
            token = reply.next_page_token
            if not token:
                break
        assert found == [1, 2, 3]
