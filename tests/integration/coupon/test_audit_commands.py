"""`meshctl audit` and `meshctl reconcile` on a stack of their own: clean first, then with what somebody did to it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from couponmesh.coupon.v1 import coupon_service_pb2
from tests.harness.stack import PrivateStack
from tests.integration.coupon.audits import spent_card
from tests.integration.coupon.world import World, cash_voucher, request_id


@pytest.fixture(scope="module")
async def shop() -> AsyncIterator[World]:
    """A stack on which a card was spent from, a voucher used, and a code activated."""
    stack = PrivateStack(replicas={"coupon": 2})
    try:
        await asyncio.to_thread(stack.start_stores)
        await asyncio.to_thread(stack.start_services)
        world = World(stack)
        voucher = await world.coupon(cash_voucher("10.00"))
        await world.one.consume(voucher, "20.00", world.cashier())
        (code, _) = await world.codes(await world.batch(cash_voucher("10.00")), 2)
        await world.one.call(
            coupon_service_pb2.ActivateCouponRequest(request_id=request_id(), code=code.code, user_id=world.user()),
            world.operator(),
        )
        yield world
        await world.close()
    finally:
        stack.close()


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def meshctl(world: World, *arguments: str) -> Ran:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "meshctl", *arguments, "--dir", str(world.stack.mesh)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), error.decode())


async def test_a_row_altered_by_hand_is_found_and_named_by_verifying_everything(shop: World) -> None:
    card = await spent_card(shop)
    clean = await meshctl(shop, "audit", "verify", "--all", "--json")
    assert (clean.status, clean.json["findings"]) == (0, []), clean
    assert clean.json["rows"] > 5
    row = (card.shard, card.coupon_id)
    alter = "UPDATE coupon_journal SET deduction_minor = {} WHERE shard = %s AND coupon_id = %s AND seq = 3"
    shop.books.change(card.shard, alter.format(1), *row)
    found = await meshctl(shop, "audit", "verify", "--all")
    assert found.status == 1
    assert f"ROW_ALTERED: shard {card.shard}, coupon {card.coupon_id}, row 3" in found.out
    assert "deduction_minor: stored 1, expected 200" in found.out
    for scope in (("--coupon", card.coupon_id), ("--user", str(card.user_id)), ("--shard", str(card.shard))):
        told = await meshctl(shop, "audit", "verify", *scope, "--json")
        assert (told.status, [each["kind"] for each in told.json["findings"]]) == (1, ["ROW_ALTERED"])
    shop.books.change(card.shard, alter.format(200), *row)
    assert (await meshctl(shop, "audit", "verify", "--all")).status == 0


async def test_a_journal_is_shown_with_yuan_and_its_verdict(shop: World) -> None:
    card = await spent_card(shop)
    shown = await meshctl(shop, "audit", "show", card.coupon_id)
    assert shown.status == 0, shown
    assert "the audit trail holds" in shown.out
    assert all(text in shown.out for text in ("100.00", "99.00", "97.00", "90.00", "ISSUED", "CONSUMED"))
    assert [
        event["seq"] for event in (await meshctl(shop, "audit", "show", card.coupon_id, "--json")).json["events"]
    ] == [str(number) for number in range(1, 6)]


async def test_what_cannot_be_verified_is_no_clean_bill(shop: World) -> None:
    unknown = await meshctl(shop, "audit", "verify", "--coupon", "9" * 19)
    assert unknown.status == 2
    assert "NOT_FOUND" in unknown.out
    assert (await meshctl(shop, "audit", "verify")).status == 2
    assert (await meshctl(shop, "audit", "verify", "--all", "--shard", "3")).status == 2


async def test_the_books_agree_until_a_difference_is_planted_which_is_named(shop: World) -> None:
    card = await spent_card(shop)
    clean = await meshctl(shop, "reconcile", "--json")
    assert (clean.status, clean.json["disagreements"]) == (0, []), clean
    books = {(each["batch_id"], each["shard"]): each for each in clean.json["books"]}
    minor = books[card.batch_id, card.shard]["minor"]
    assert (minor["issued"], minor["available"], minor["consumed"], minor["difference"]) == (10_000, 9_000, 1_000, 0)
    row = (card.shard, card.coupon_id)
    plant = "UPDATE coupon_info SET balance = {} WHERE shard = %s AND coupon_id = %s"
    shop.books.change(card.shard, plant.format("90.01"), *row)
    found = await meshctl(shop, "reconcile")
    assert found.status == 1
    assert (
        f"shard {card.shard}, coupon {card.coupon_id}: balance is 90.01 in coupon_info, 90.00 by its journal"
        in found.out
    )
    shop.books.change(card.shard, plant.format("90.00"), *row)


@pytest.mark.parametrize(
    ("plant", "problem"),
    [
        ("UPDATE coupon_info SET status = 2", "status is USED in coupon_info, ACTIVATED by its journal"),
        ("UPDATE coupon_info SET version = 4", "version is 4 in coupon_info, 5 by its journal"),
        ("DELETE FROM coupon_info", "it has a journal, but coupon_info lacks it"),
        ("DELETE FROM coupon_journal", "coupon_info has it, but its journal is empty"),
        ("UPDATE coupon_journal SET amount_minor = amount_minor - 1, seq = seq", "its journal's amounts sum to"),
    ],
    ids=["status", "version", "no coupon", "no journal", "amounts"],
)
async def test_each_kind_of_planted_difference_names_its_coupon(shop: World, plant: str, problem: str) -> None:
    card = await spent_card(shop)
    with shop.books.transaction(card.shard) as tx:
        tx.run(f"{plant} WHERE shard = %s AND coupon_id = %s", card.shard, card.coupon_id)
        tx.commit()
    found = (await meshctl(shop, "reconcile", "--json")).json
    named = [each["problem"] for each in found["disagreements"] if each["coupon_id"] == card.coupon_id]
    assert any(each.startswith(problem) for each in named), found["disagreements"]


async def test_a_batch_that_issued_more_than_was_drawn_is_named(shop: World) -> None:
    batch_id = await shop.batch(cash_voucher("10.00"))
    await shop.issue(batch_id, shop.user(), 3)
    shop.books.change(int(batch_id), "UPDATE batch_draw SET quantity = 2 WHERE batch_id = %s", batch_id)
    found = (await meshctl(shop, "reconcile", "--json")).json
    assert [each["problem"] for each in found["disagreements"] if each["batch_id"] == batch_id] == [
        "issued_quantity is 3, but its draws sum to 2",
        "3 coupons were issued, but only 2 drawn",
    ]


async def test_the_books_agree_at_every_moment_of_a_stream_of_consumes(shop: World) -> None:
    cards = await shop.cards(4)
    stop = asyncio.Event()
    consumed = 0

    async def spend(number: int) -> None:
        nonlocal consumed
        while not stop.is_set():
            await shop.both[number % 2].consume(cards[number], "0.01", shop.cashier())
            consumed += 1

    spending = [asyncio.ensure_future(spend(number)) for number in range(len(cards))]
    try:
        for _ in range(3):
            before = consumed
            found = (await meshctl(shop, "reconcile", "--json")).json
            named = {each["coupon_id"] for each in found["disagreements"]}
            assert named.isdisjoint(card.coupon_id for card in cards)
            assert consumed > before
    finally:
        stop.set()
        await asyncio.gather(*spending)
