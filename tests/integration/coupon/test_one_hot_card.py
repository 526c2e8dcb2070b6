"""Many tills take from one gift card at once, over two processes."""

from __future__ import annotations

import asyncio
from functools import partial

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from tests.integration.coupon.world import (
    CONTENDED,
    GROUPED,
    GROUPS,
    World,
    consume_request,
    eventually,
    outcomes,
    tally,
    until_answered,
)

SPENDS = 200


async def test_two_hundred_spends_of_one_yuan_leave_a_card_of_a_hundred_yuan_empty_and_no_fen_is_lost(
    world: World,
) -> None:
    card = await world.card(balance="100.00")
    till = world.cashier()
    requests = [consume_request(card, "1.00", till) for _ in range(SPENDS)]

    async def contended() -> bool:
        return sum([(await process.metrics())[CONTENDED] for process in world.both]) > contended_before

    contended_before = sum([(await process.metrics())[CONTENDED] for process in world.both])
    async with world.one.observed() as one, world.two.observed() as two:
        with world.books.coupon_held(card.coupon_id):
            # While the row is held, every request arrives, so that they do meet.
            spends = [
                asyncio.ensure_future(until_answered(partial(process.call, request, till)))
                for request, process in zip(requests, world.both * (SPENDS // 2), strict=True)
            ]
            await eventually(contended)
        results = await outcomes(spends)

    assert tally(results) == {"OK": 100, "COUPON_USED": 100}
    coupon = world.books.coupon(card.coupon_id)
    assert coupon.balance == 0
    assert coupon.status == CouponStatus.USED
    journal = world.books.assert_agree(card.coupon_id)
    consumed = [row for row in journal if row.kind is JournalKind.CONSUMED]
    assert [row.balance_after_minor for row in consumed] == [*range(9_900, -1, -100)]
    assert {row.origin.request_id for row in consumed} <= {request.request_id for request in requests}
    assert len({row.transaction_id for row in consumed}) == 100
    # The race did happen: requests shared transactions, and one process held what the other wanted.
    assert one[GROUPED] + two[GROUPED] > one[GROUPS] + two[GROUPS]
    assert one[CONTENDED] + two[CONTENDED] > 0
    assert min(one[GROUPS], two[GROUPS]) > 0
