"""Codes of eight characters are rationed; a call takes them from wherever there are some."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coupon_svc.app.issuing import SHORT_CODES_PER_SHARD
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.coupon.v1 import job_pb2
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.test_jobs import issuing, until_ended
from tests.integration.coupon.world import SHARDS, World, gift_card, refusal, request_id

# Above what other tests use, and below what the tests here use.
REOPENED = 1_000


class Room:
    """How many short codes each shard has left, as a test wants it; each test uses shards of its own, from the end."""

    def __init__(self, world: World) -> None:
        self._world = world

    def leave(self, left: dict[int, int]) -> None:
        """Leaves these shards so many codes, and the others none."""
        self._set({shard: SHORT_CODES_PER_SHARD - left.get(shard, 0) for shard in range(SHARDS)})

    def left(self) -> dict[int, int]:
        rows = self._world.books.everywhere("SELECT shard, next_counter FROM code_counter WHERE code_length = 8")
        return {shard: SHORT_CODES_PER_SHARD - used for shard, used in rows if used < SHORT_CODES_PER_SHARD}

    def reopen(self) -> None:
        """Leaves every shard codes that no test has used."""
        self._set(dict.fromkeys(range(SHARDS), REOPENED))

    def _set(self, used: dict[int, int]) -> None:
        for first in (0, SHARDS // 2):
            rows = ", ".join(f"({shard}, 8, {used[shard]})" for shard in range(first, first + SHARDS // 2))
            with self._world.books.transaction(first) as tx:
                tx.run(
                    f"INSERT INTO code_counter VALUES {rows} "
                    "ON DUPLICATE KEY UPDATE next_counter = VALUES(next_counter)"
                )
                tx.commit()


@pytest.fixture(scope="module")
def room(world: World) -> Iterator[Room]:
    room = Room(world)
    yield room
    room.reopen()


async def short(world: World) -> str:
    return await world.batch(gift_card(), code_length=8)


async def test_a_call_takes_its_codes_from_several_shards_when_one_has_too_few(world: World, room: Room) -> None:
    batch_id = await short(world)
    room.leave({3: 4, 40: 5, 41: 6})
    reply = await world.one.call(issuing(batch_id, 12), world.operator())
    assert len({coupon.code for coupon in reply.coupons}) == 12
    for coupon in reply.coupons:
        # A code without owner lies with its coupon.
        assert int(coupon.coupon_id) % SHARDS in {3, 40, 41}
        activating = coupons.ActivateCouponRequest(request_id=request_id(), code=coupon.code, user_id=world.user())
        assert (await world.two.call(activating, world.operator())).coupon.user_id
    assert sum(room.left().values()) == 3


@pytest.mark.parametrize("only", [5, 100], ids=["first-database", "second-database"])
async def test_codes_come_from_the_other_database_when_one_has_none_and_a_retry_finds_them(
    world: World, room: Room, only: int
) -> None:
    batch_id, operator = await short(world), world.operator()
    requests = [issuing(batch_id, 2) for _ in range(8)]
    room.leave({only: 16})
    replies = [await world.one.call_bytes(request, operator) for request in requests]
    assert room.left() == {}
    assert [await world.two.call_bytes(request, operator) for request in requests] == replies
    refused = await refusal(world.one.call(issuing(batch_id, 1), operator))
    assert_as_the_contract_says(refused, "CODE_SPACE_EXHAUSTED")
    rows = world.books.everywhere("SELECT shard FROM code_index WHERE batch_id = %s", batch_id)
    assert rows == [(only,)] * 16


async def test_a_users_coupons_take_codes_of_other_shards_of_the_same_database(world: World, room: Room) -> None:
    batch_id, user_id = await short(world), world.user(7)
    room.leave({8: 2, 60: 3, 90: 50})
    reply = await world.one.call(issuing(batch_id, 5, user_id), world.operator())
    assert {int(coupon.coupon_id) % SHARDS for coupon in reply.coupons} == {7}
    assert room.left() == {90: 50}
    refused = await refusal(world.one.call(issuing(batch_id, 1, user_id), world.operator()))
    assert_as_the_contract_says(refused, "CODE_SPACE_EXHAUSTED")


async def test_a_job_that_runs_out_of_codes_keeps_what_it_made_and_gives_the_rest_back(
    world: World, room: Room
) -> None:
    batch_id = await world.batch(gift_card(), code_length=8, total_quantity=2_000)
    room.leave({1: 300, 64: 300, 65: 500, 20: 150})
    reply = await world.one.call(issuing(batch_id, 1_500), world.operator())
    job = await until_ended(world, reply.job.job_id)
    assert (job.state, job.error_reason) == (job_pb2.JOB_STATE_FAILED, "CODE_SPACE_EXHAUSTED")
    ((counted,),) = world.books.everywhere("SELECT issued_quantity FROM batch WHERE batch_id = %s", batch_id)
    there = len(world.books.everywhere("SELECT 1 FROM coupon_info WHERE batch_id = %s", batch_id))
    assert counted == there == job.done_count == 500
    assert sum(room.left().values()) == 750
