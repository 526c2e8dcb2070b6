"""Journal rows are listed by coupon, user, transaction and shard, page by page, and narrowed down by filters."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest

from couponmesh.coupon.v1 import coupon_pb2
from couponmesh.coupon.v1.coupon_service_pb2 import ListAuditEventsRequest
from tests.integration.coupon.audits import AUDITOR
from tests.integration.coupon.world import OwnedCoupon, World, gift_card, refusal


async def listed(world: World, **fields: Any) -> list[coupon_pb2.AuditEvent]:
    """All pages."""
    events: list[coupon_pb2.AuditEvent] = []
    token = ""
    while True:
        reply = await world.one.call(ListAuditEventsRequest(page_token=token, **fields), AUDITOR)
        events += reply.events
        token = reply.next_page_token
        if not token:
            return events


def keys(events: list[coupon_pb2.AuditEvent]) -> list[tuple[str, int]]:
    return [(event.coupon_id, event.seq) for event in events]


@pytest.fixture(scope="module")
async def cards(world: World) -> list[OwnedCoupon]:
    """Three cards of one user; from each 1.00, 2.00 and 3.00 were taken, the last at another till."""
    user_id = world.user()
    batch_id = await world.batch(gift_card("100.00"))
    cards = [(await world.issue(batch_id, user_id))[0] for _ in range(3)]
    cards.sort(key=lambda card: card.coupon_id)
    tills = [world.cashier(), world.cashier()]
    for card in cards:
        for number in (1, 2, 3):
            await world.one.consume(card, f"{number}.00", tills[number == 3], f"{number}-{uuid.uuid4().hex}")
    return cards


@pytest.mark.parametrize("page_size", [1, 3, 4, 5, 500])
async def test_rows_come_by_coupon_and_oldest_first_whatever_the_page(
    world: World, cards: list[OwnedCoupon], page_size: int
) -> None:
    card = cards[0]
    assert keys(await listed(world, coupon_id=card.coupon_id, page_size=page_size)) == [
        (card.coupon_id, seq) for seq in (1, 2, 3, 4)
    ]
    assert keys(await listed(world, user_id=card.user_id, page_size=page_size)) == [
        (each.coupon_id, seq) for each in cards for seq in (1, 2, 3, 4)
    ]
    of_shard = keys(await listed(world, shard=card.shard, page_size=max(page_size, 50)))
    assert of_shard == sorted(of_shard)
    assert {(each.coupon_id, seq) for each in cards for seq in (1, 2, 3, 4)} <= set(of_shard)


@pytest.mark.parametrize("page_size", [1, 2, 100])
async def test_filters_narrow_the_rows_down(world: World, cards: list[OwnedCoupon], page_size: int) -> None:
    events = await listed(world, user_id=cards[0].user_id)
    last = events[-1]
    for fields, wanted in (
        ({"kinds": [coupon_pb2.AUDIT_KIND_ISSUED]}, [event for event in events if event.seq == 1]),
        ({"kinds": [coupon_pb2.AUDIT_KIND_CONSUMED]}, [event for event in events if event.seq > 1]),
        ({"caller": last.caller}, [event for event in events if event.seq == 4]),
        ({"request_id": last.request_id}, [last]),
        ({"from_time": last.event_time}, [event for event in events if _ms(event) >= _ms(last)]),
        ({"to_time": events[5].event_time}, [event for event in events if _ms(event) < _ms(events[5])]),
        ({"kinds": [coupon_pb2.AUDIT_KIND_ISSUED], "request_id": last.request_id}, []),
    ):
        scope: dict[str, Any] = {"user_id": cards[0].user_id, "page_size": page_size, **fields}
        assert keys(await listed(world, **scope)) == keys(wanted), fields


def _ms(event: coupon_pb2.AuditEvent) -> int:
    return event.event_time.ToMilliseconds()


async def test_the_row_of_a_transaction_is_found_by_its_id(world: World, cards: list[OwnedCoupon]) -> None:
    event = (await listed(world, coupon_id=cards[1].coupon_id))[2]
    assert keys(await listed(world, transaction_id=event.transaction_id)) == [(cards[1].coupon_id, 3)]
    unknown = await refusal(listed(world, transaction_id="TX" + "9" * 27))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "TRANSACTION_NOT_FOUND")


async def test_exactly_one_scope_and_a_range_in_order_must_be_given(world: World, cards: list[OwnedCoupon]) -> None:
    moment = (await listed(world, coupon_id=cards[0].coupon_id))[0].event_time
    for fields in (
        {},
        {"coupon_id": cards[0].coupon_id, "user_id": 1},
        {"shard": 0, "user_id": 1},
        {"shard": 128},
        {"shard": 1, "from_time": moment, "to_time": moment},
        {"shard": 1, "kinds": [0]},
    ):
        refused = await refusal(world.one.call(ListAuditEventsRequest(**fields), AUDITOR))
        assert refused.reason == "VALIDATION_FAILED", fields
    unknown = await refusal(listed(world, coupon_id="9" * 19))
    assert unknown.reason == "COUPON_NOT_FOUND"


async def test_a_page_token_of_another_query_is_refused(world: World, cards: list[OwnedCoupon]) -> None:
    reply = await world.one.call(ListAuditEventsRequest(coupon_id=cards[0].coupon_id, page_size=1), AUDITOR)
    others: list[dict[str, Any]] = [{"coupon_id": cards[1].coupon_id}, {"coupon_id": cards[0].coupon_id, "caller": "x"}]
    for fields in others:
        refused = await refusal(
            world.one.call(ListAuditEventsRequest(page_token=reply.next_page_token, **fields), AUDITOR)
        )
        assert refused.reason == "PAGE_TOKEN_INVALID"


async def test_shard_zero_is_a_scope(world: World) -> None:
    card = await world.card(shard=0)
    assert (card.coupon_id, 1) in keys(await listed(world, shard=0))
