"""Codes of another system are taken over all together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import JournalKind
from couponmesh.coupon.v1 import batch_pb2
from couponmesh.coupon.v1 import batch_service_pb2 as batches
from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    SHARDS,
    Caller,
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

Line = tuple[str, int | None]


def code() -> str:
    """A code that nobody has imported; its length is that of no code made here."""
    return f"OLD-{request_id()[:10].upper()}"


def importing(batch_id: str, lines: Sequence[Line], request: str = "") -> coupons.ImportCodesRequest:
    return coupons.ImportCodesRequest(
        request_id=request or request_id(),
        batch_id=batch_id,
        codes=[coupons.ImportedCode(code=text, user_id=user_id) for text, user_id in lines],
    )


def consume(text: str, till: Caller) -> cashiers.ConsumeRequest:
    return cashiers.ConsumeRequest(coupon_code=text, merchant_id=till.merchant_id, amount=1.0)


def there(world: World, batch_id: str) -> tuple[int, int, int]:
    """How many the batch counts, how many coupons there are, and how many codes are indexed."""
    ((counted,),) = world.books.everywhere("SELECT issued_quantity FROM batch WHERE batch_id = %s", batch_id)
    return (
        counted,
        len(world.books.everywhere("SELECT 1 FROM coupon_info WHERE batch_id = %s", batch_id)),
        len(world.books.everywhere("SELECT 1 FROM code_index WHERE batch_id = %s", batch_id)),
    )


async def until_lengths_are_known(world: World, text: str) -> None:
    """Waits until the other process takes codes of a length that was imported for the first time."""

    async def taken() -> bool:
        looked_up = coupons.ValidateCouponRequest(code=text, merchant_id=till.merchant_id, amount=yuan("1.00"))
        (result,) = await outcomes([world.two.call(looked_up, till)])
        return not isinstance(result, Refusal)

    till = world.cashier()
    await eventually(taken, timeout_s=1.5)


async def test_a_code_of_a_length_that_is_new_is_known_at_once_to_the_process_that_imported_it(world: World) -> None:
    till, text = world.cashier(), "L" * 27 + "12"
    assert (await refusal(world.one.call(consume(text, till), till))).reason == "CODE_MISTYPED"
    await world.one.call(importing(await world.batch(gift_card()), [(text, world.user())]), world.operator())
    await world.one.call(consume(text, till), till)
    await until_lengths_are_known(world, text)


async def test_codes_with_and_without_user_are_taken_in_the_order_of_their_lines(world: World) -> None:
    batch_id, till = await world.batch(gift_card()), world.cashier()
    lines: list[Line] = [(code(), world.user(3)), (code(), None), (code(), world.user(90)), (code(), None)]

    reply = await world.one.call(importing(batch_id, lines), world.operator())

    assert there(world, batch_id) == (4, 4, 4)
    await until_lengths_are_known(world, lines[0][0])
    for (text, user_id), coupon_id in zip(lines, reply.coupon_ids, strict=True):
        (row,) = world.books.assert_agree(coupon_id)
        assert row.kind is JournalKind.IMPORTED
        for process in world.both:
            for typed in (text, text.lower(), text.replace("-", ""), "-".join(text.replace("-", ""))):
                result = (await outcomes([process.call(consume(typed, till), till)]))[0]
                if user_id is None:
                    assert isinstance(result, Refusal)
                    assert result.reason == "COUPON_UNACTIVATED"
                else:
                    assert not isinstance(result, Refusal)
        if user_id is not None:
            assert int(coupon_id) % SHARDS == user_id % SHARDS
            assert world.books.coupon(coupon_id).user_id == user_id


async def test_an_imported_code_without_user_is_activated_like_any(world: World) -> None:
    batch_id, till, text, user_id = await world.batch(gift_card()), world.cashier(), code(), world.user()
    (origin_id,) = (await world.one.call(importing(batch_id, [(text, None)]), world.operator())).coupon_ids
    await until_lengths_are_known(world, text)
    given = await world.two.call(
        coupons.ActivateCouponRequest(request_id=request_id(), code=text, user_id=user_id), world.operator()
    )
    assert given.coupon.user_id == user_id
    assert (await world.one.call(consume(text, till), till)).coupon_id == given.coupon.coupon_id != origin_id
    assert world.books.coupon(origin_id).status == CouponStatus.ACTIVATED


@pytest.mark.parametrize(
    "twin",
    ["OLD-TWIN-{}", "old-twin-{}", "OLDTWIN{}", "0LD-TW1N-{}", "O-L-D-T-W-I-N-{}"],
    ids=["equal", "case", "hyphens", "letters like digits", "more hyphens"],
)
async def test_a_code_that_stands_twice_in_an_import_refuses_all_of_it_and_names_the_line(
    world: World, twin: str
) -> None:
    batch_id, own = await world.batch(gift_card()), request_id()[:6].upper()
    lines: list[Line] = [
        (code(), world.user()),
        (f"OLD-TWIN-{own}", None),
        (code(), None),
        (twin.format(own), world.user()),
    ]
    with world.books.unchanged():
        refused = await refusal(world.one.call(importing(batch_id, lines), world.operator()))
        assert_as_the_contract_says(refused, "CODE_DUPLICATED")
    assert refused.metadata == {"line": "4"}


async def test_a_code_that_is_known_already_refuses_all_lines_and_names_the_first(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    known = [code(), code()]
    await world.one.call(importing(batch_id, [(text, None) for text in known]), operator)
    native = (await world.card()).code
    for already in (known[0], known[1].lower(), native):
        lines: list[Line] = [(code(), world.user(5)), (code(), world.user(99)), (already, None), (known[0], None)]
        if already != native:
            lines = lines[:3]
        with_accounts = importing(batch_id, lines)
        # The first try makes the account rows of its users, which is no effect that anyone sees.
        await refusal(world.one.call(with_accounts, operator))
        with world.books.unchanged():
            refused = await refusal(world.two.call(with_accounts, world.operator()))
            assert_as_the_contract_says(refused, "CODE_ALREADY_EXISTS")
        assert refused.metadata == {"line": "3"}
    assert there(world, batch_id) == (2, 2, 2)


async def test_of_two_imports_that_share_a_code_one_is_taken_whole_and_the_other_leaves_nothing(
    world: World,
) -> None:
    operator = world.operator()
    for _ in range(5):
        shared = code()
        batch_ids = [await world.batch(gift_card()), await world.batch(gift_card())]
        requests = [
            importing(batch_id, [(code(), world.user(10)), (code(), world.user(70)), (code(), None), (shared, None)])
            for batch_id in batch_ids
        ]
        results = await outcomes(
            process.call(request, operator) for process, request in zip(world.both, requests, strict=True)
        )
        assert tally(results) in ({"OK": 1, "CODE_ALREADY_EXISTS": 1}, {"CODE_ALREADY_EXISTS": 2})
        for batch_id, result in zip(batch_ids, results, strict=True):
            _, made, indexed = there(world, batch_id)
            assert (made, indexed) == ((0, 0) if isinstance(result, Refusal) else (4, 4))


async def test_an_import_beyond_the_batchs_total_takes_nothing(world: World) -> None:
    batch_id, operator = await world.batch(gift_card(), total_quantity=2), world.operator()
    with world.books.unchanged():
        refused = await refusal(world.one.call(importing(batch_id, [(code(), None)] * 1 + _three()), operator))
        assert_as_the_contract_says(refused, "BATCH_EXHAUSTED")
    await world.one.call(importing(batch_id, [(code(), None), (code(), None)]), operator)
    assert there(world, batch_id) == (2, 2, 2)


def _three() -> list[Line]:
    return [(code(), None) for _ in range(3)]


async def test_a_thousand_lines_over_all_shards_are_one_import(world: World) -> None:
    batch_id = await world.batch(gift_card())
    lines: list[Line] = [(code(), world.user() if number % 2 else None) for number in range(1_000)]
    reply = await world.one.call(importing(batch_id, lines), world.operator())
    assert len(set(reply.coupon_ids)) == 1_000
    assert there(world, batch_id) == (1_000, 1_000, 1_000)


@pytest.mark.parametrize("text", ["12345", "A" * 33, "UNDER_SCORE", "-BEGINS", "ENDS-", "中文券码中文", ""])
async def test_a_line_that_is_no_code_is_named_by_its_place(world: World, text: str) -> None:
    batch_id = await world.batch(gift_card())
    with world.books.unchanged():
        refused = await refusal(world.one.call(importing(batch_id, [(code(), None), (text, None)]), world.operator()))
        assert_as_the_contract_says(refused, "VALIDATION_FAILED")
    assert refused.fields == ("codes[1].code",)


async def test_an_import_that_was_killed_halfway_is_unknown_until_its_retry_completes_it(world: World) -> None:
    batch_id, till, operator = await world.batch(gift_card(), total_quantity=4), world.cashier(), world.operator()
    here, away = world.user(30), (await world.card(shard=110)).user_id
    lines: list[Line] = [(code(), here), (code(), away), (code(), here), (code(), away)]
    request = importing(batch_id, lines)
    async with world.further_process() as victim:
        # The account in the second database is held, so that the coupons there cannot be added.
        with world.books.account_held(away):
            calling = asyncio.ensure_future(victim.call(request, operator))
            await eventually(lambda: there(world, batch_id)[1] == 2)
            victim.service.kill()
        assert isinstance((await outcomes([calling]))[0], Refusal)
    assert there(world, batch_id) == (4, 2, 4), "drawn, claimed, and half of the coupons added"
    for process in world.both:
        refused = await refusal(process.call(consume(lines[1][0], till), till))
        assert_as_the_contract_says(refused, "COUPON_NOT_FOUND")
        # Nobody else can have the codes meanwhile.
        other = importing(await world.batch(gift_card()), [(lines[1][0], None)])
        assert (await refusal(process.call(other, world.operator()))).reason == "CODE_ALREADY_EXISTS"

    reply = await world.two.call(request, operator)

    assert there(world, batch_id) == (4, 4, 4)
    assert await world.one.call(request, operator) == reply
    for (text, user_id), coupon_id in zip(lines, reply.coupon_ids, strict=True):
        world.books.assert_agree(coupon_id)
        assert world.books.coupon(coupon_id).user_id == user_id
        assert (await world.one.call(consume(text, till), till)).coupon_id == coupon_id


async def test_an_import_that_was_killed_before_any_coupon_was_added_is_completed_by_its_retry(world: World) -> None:
    batch_id, operator = await world.batch(gift_card(), total_quantity=2), world.operator()
    user_id = (await world.card(shard=31)).user_id
    request = importing(batch_id, [(code(), user_id), (code(), user_id)])
    async with world.further_process() as victim:
        with world.books.account_held(user_id):
            calling = asyncio.ensure_future(victim.call(request, operator))
            await eventually(lambda: there(world, batch_id)[2] == 2)
            victim.service.kill()
        await outcomes([calling])
    assert there(world, batch_id) == (2, 0, 2)
    reply = await world.one.call(request, operator)
    assert await world.two.call(request, operator) == reply
    assert there(world, batch_id) == (2, 2, 2)


async def test_a_blocked_or_finished_batch_takes_over_nothing(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    await world.one.call(
        batches.BlockBatchRequest(request_id=request_id(), batch_id=batch_id, block_scope=batch_pb2.BLOCK_SCOPE_BOTH),
        operator,
    )
    with world.books.unchanged():
        refused = await refusal(world.one.call(importing(batch_id, [(code(), None)]), operator))
        assert_as_the_contract_says(refused, "BATCH_BLOCKED")
