"""Ids route themselves, and two processes never make the same one."""

from __future__ import annotations

import asyncio
import re

from kazoo.client import KazooClient

from coupon_svc.domain.routing import home_shard
from couponmesh.coupon.v1 import batch_service_pb2 as batches
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from meshkit.codes import CodeFormat
from meshkit.snowflake import shard_of, worker_of
from tests.integration.coupon.world import SHARDS, CouponProcess, World, gift_card, request_id


async def issued_by(process: CouponProcess, world: World, batch_id: str, user_id: int, quantity: int) -> list[str]:
    request = coupons.IssueCouponsRequest(
        request_id=request_id(), batch_id=batch_id, user_id=user_id, quantity=quantity
    )
    return [coupon.coupon_id for coupon in (await process.call(request, world.operator())).coupons]


async def test_two_processes_hold_two_worker_ids_and_both_are_reserved_in_zookeeper(world: World) -> None:
    batch_id = await world.batch(gift_card())
    workers = []
    for process in world.both:
        ids = await issued_by(process, world, batch_id, world.user(), 10)
        (worker,) = {worker_of(int(coupon_id)) for coupon_id in ids}
        workers.append(worker)
    assert workers[0] != workers[1]
    zookeeper = KazooClient(world.stack.zookeeper_address)
    await asyncio.to_thread(zookeeper.start)
    try:
        reserved = await asyncio.to_thread(zookeeper.get_children, "/couponmesh/workers")
        held = await asyncio.to_thread(zookeeper.get_children, "/couponmesh/worker-holders")
    finally:
        await asyncio.to_thread(zookeeper.stop)
        await asyncio.to_thread(zookeeper.close)
    assert {f"{worker:04d}" for worker in workers} <= set(reserved) & set(held)


async def test_a_coupon_id_has_19_digits_and_carries_the_shard_of_its_user(world: World) -> None:
    batch_id = await world.batch(gift_card())
    for shard in (0, 1, 63, 64, 126, 127):
        user_id = world.user(shard)
        (coupon,) = await world.issue(batch_id, user_id)
        assert re.fullmatch(r"[0-9]{19}", coupon.coupon_id)
        assert shard_of(int(coupon.coupon_id)) == user_id % SHARDS == shard
        ((stored,),) = world.books.rows(shard, "SELECT shard FROM coupon_info WHERE coupon_id = %s", coupon.coupon_id)
        assert stored == shard


async def test_users_of_either_half_live_in_either_database(world: World) -> None:
    batch_id = await world.batch(gift_card())
    for shard, other in ((63, 64), (64, 63)):
        (coupon,) = await world.issue(batch_id, world.user(shard))
        question = "SELECT 1 FROM coupon_info WHERE coupon_id = %s"
        assert world.books.rows(shard, question, coupon.coupon_id)
        assert not world.books.rows(other, question, coupon.coupon_id)


async def test_a_batch_lives_in_the_home_shard_of_its_maker(world: World) -> None:
    operator = world.operator()
    reply = await world.two.call(
        batches.CreateBatchRequest(request_id=request_id(), name="at home", terms=gift_card()), operator
    )
    assert shard_of(int(reply.batch.batch_id)) == home_shard(operator.client_id)
    found = await world.one.call(batches.GetBatchRequest(batch_id=reply.batch.batch_id), operator)
    assert found.batch == reply.batch


async def test_ids_and_codes_made_by_both_processes_at_once_in_one_shard_are_all_different(world: World) -> None:
    batch_id, user_id = await world.batch(gift_card()), world.user(33)
    calls = [
        process.call(
            coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, user_id=user_id, quantity=200),
            world.operator(),
        )
        for process in world.both * 3
    ]
    made = [coupon for reply in await asyncio.gather(*calls) for coupon in reply.coupons]
    assert len({coupon.coupon_id for coupon in made}) == 1_200
    assert len({coupon.code for coupon in made}) == 1_200
    key = (world.stack.mesh / "secrets" / "code_key").read_text().strip()
    read = CodeFormat(bytes.fromhex(key))
    assert {read.parse(coupon.code).shard for coupon in made} == {33}
    assert len({read.counter_of(coupon.code) for coupon in made}) == 1_200


async def test_transaction_ids_carry_the_date_and_the_shard_and_are_all_different(world: World) -> None:
    cards, till = await world.cards(10, balance="10.00"), world.cashier()
    replies = await asyncio.gather(
        *(process.consume(card, "0.10", till) for card in cards for process in world.both * 5),
    )
    made = [reply.transaction for reply in replies]
    assert len({transaction.transaction_id for transaction in made}) == 100
    for transaction in made:
        assert re.fullmatch(r"TX20[0-9]{25}", transaction.transaction_id)
        assert int(transaction.transaction_id[-19:]) % SHARDS == transaction.user_id % SHARDS
        ((there,),) = world.books.rows(
            transaction.user_id,
            "SELECT COUNT(*) FROM coupon_transaction WHERE transaction_id = %s",
            transaction.transaction_id,
        )
        assert there == 1


async def test_codes_come_in_the_length_that_the_batch_asks_for(world: World) -> None:
    for length, shape in ((8, r"[0-9A-Z]{4}-[0-9A-Z]{4}"), (12, r"[0-9A-Z]{4}-[0-9A-Z]{4}-[0-9A-Z]{4}")):
        (coupon,) = await world.issue(await world.batch(gift_card(), code_length=length), world.user())
        assert re.fullmatch(shape, coupon.code)
        assert not set(coupon.code) & set("ILOU"), "letters that are mistaken for others do not occur"


async def test_of_a_code_only_its_hash_and_its_ciphertext_are_stored(world: World) -> None:
    card = await world.card()
    bare = card.code.replace("-", "")
    for table in ("coupon_info", "code_index", "coupon_journal", "outbox", "request_record"):
        for row in world.books.rows(card.shard, f"SELECT * FROM {table} WHERE shard = %s", card.shard):
            text = "|".join(value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in row)
            assert card.code not in text
            assert bare not in text
    ((hmac,),) = world.books.rows(
        card.shard, "SELECT LENGTH(code_hmac) FROM code_index WHERE coupon_id = %s", card.coupon_id
    )
    assert hmac == 32
