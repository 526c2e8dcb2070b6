"""A file of codes is imported as a whole or not at all, and every wrong line of it is named."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.coupon.v1 import job_pb2
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.test_import import code, importing, there
from tests.integration.coupon.test_jobs import LOST, TAKEN, until_ended, until_under_way
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
)


def file_of(batch_id: str, lines: Sequence[str]) -> coupons.ImportCodesRequest:
    return coupons.ImportCodesRequest(request_id=request_id(), batch_id=batch_id, csv="\n".join(lines) + "\n")


def consume(text: str, till: Caller) -> cashiers.ConsumeRequest:
    return cashiers.ConsumeRequest(coupon_code=text, merchant_id=till.merchant_id, amount=1.0)


async def until_known(process: CouponProcess, text: str, till: Caller) -> None:
    """Waits until a process takes codes of a length that was imported for the first time."""

    async def known() -> bool:
        (result,) = await outcomes([process.call(consume(text, till), till)])
        return not isinstance(result, Refusal)

    await eventually(known, timeout_s=2.0)


async def test_a_file_with_header_becomes_one_coupon_a_line_in_both_databases(world: World) -> None:
    batch_id, till, owner = await world.batch(gift_card(), total_quantity=1_200), world.cashier(), world.user(9)
    texts = [code() for _ in range(1_200)]
    lines = ["code,user_id", *(f"{text},{owner if number % 3 == 0 else ''}" for number, text in enumerate(texts))]

    reply = await world.one.call(file_of(batch_id, lines), world.operator())

    assert reply.job.kind == job_pb2.JOB_KIND_IMPORT_CODES
    assert (reply.job.total_count, list(reply.coupon_ids)) == (1_200, [])
    job = await until_ended(world, reply.job.job_id)
    assert (job.state, job.done_count) == (job_pb2.JOB_STATE_SUCCEEDED, 1_200)
    assert there(world, batch_id) == (1_200, 1_200, 1_200)
    rows = world.books.everywhere("SELECT coupon_id, shard, user_id FROM coupon_info WHERE batch_id = %s", batch_id)
    assert sum(user_id == owner for _, _, user_id in rows) == 400
    assert {shard < SHARDS // 2 for _, shard, user_id in rows if not user_id} == {True, False}
    world.books.assert_agree(rows[0][0])
    for process in world.both:
        await until_known(process, texts[0], world.cashier())
    assert (await world.two.call(consume(texts[0], till), till)).deduction.amount_minor == 100
    assert (await refusal(world.one.call(consume(texts[1], till), till))).reason == "COUPON_UNACTIVATED"
    assert world.books.everywhere("SELECT 1 FROM job_lines WHERE job_id = %s", job.job_id) == []


async def test_every_wrong_line_of_a_file_is_named_with_its_reason_and_nothing_is_imported(world: World) -> None:
    batch_id, operator = await world.batch(gift_card(), total_quantity=2_000), world.operator()
    known, twin, frozen = code(), code(), await world.card(shard=3)
    await world.one.call(importing(batch_id, [(known, None)]), operator)
    world.books.change(frozen.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", frozen.user_id)
    lines = [code() for _ in range(1_500)]
    lines[0] = twin
    lines[10] = "no_code"
    lines[499] = f"{code()},twelve"
    lines[500] = f"{code()},0"
    lines[700] = known.lower()
    lines[1_200] = twin.replace("-", "")
    lines[1_499] = f"{code()},{frozen.user_id}"

    reply = await world.one.call(file_of(batch_id, lines), operator)
    job = await until_ended(world, reply.job.job_id)

    assert (job.state, job.error_reason, job.line_error_count) == (job_pb2.JOB_STATE_FAILED, "VALIDATION_FAILED", 6)
    assert (job.error_metadata["line"], job.done_count) == ("11", 0)
    found, token = [], ""
    while True:
        page = await world.two.call(job_pb2.GetJobRequest(job_id=job.job_id, page_size=4, page_token=token), operator)
        found += [(each.line, each.field, each.reason) for each in page.line_errors]
        if not (token := page.next_page_token):
            break
    assert found == [
        (11, "code", "VALIDATION_FAILED"),
        (500, "user_id", "VALIDATION_FAILED"),
        (501, "user_id", "VALIDATION_FAILED"),
        (701, "code", "CODE_ALREADY_EXISTS"),
        (1_201, "code", "CODE_DUPLICATED"),
        (1_500, "user_id", "ACCOUNT_FROZEN"),
    ]
    assert there(world, batch_id) == (1, 1, 1)
    refused = await refusal(world.one.call(job_pb2.GetJobRequest(job_id=job.job_id, page_token="x"), operator))
    assert_as_the_contract_says(refused, "PAGE_TOKEN_INVALID")


async def test_all_wrong_lines_of_a_call_are_named_and_checking_alone_changes_nothing(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    twin = code()
    request = importing(batch_id, [(twin, None), ("no_code", None), (twin, None), (code(), -1), (code(), None)])
    checking = coupons.ImportCodesRequest()
    checking.CopyFrom(request)
    checking.validate_only = True
    with world.books.unchanged():
        refused = await refusal(world.one.call(request, operator))
        checked = await world.one.call(checking, operator)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.metadata["line"], refused.metadata["wrong_lines"]) == (
        "VALIDATION_FAILED",
        "2",
        "3",
    )
    assert refused.fields == ("codes[1].code", "codes[2].code", "codes[3].user_id")
    assert [(each.line, each.field, each.reason) for each in checked.line_errors] == [
        (2, "code", "VALIDATION_FAILED"),
        (3, "code", "CODE_DUPLICATED"),
        (4, "user_id", "VALIDATION_FAILED"),
    ]
    right = importing(batch_id, [(twin, None)])
    right.validate_only = True
    assert not (await world.one.call(right, operator)).line_errors
    assert there(world, batch_id) == (0, 0, 0)


async def test_a_call_has_either_lines_or_a_file(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    both = importing(batch_id, [(code(), None)])
    both.csv = code()
    for request in (both, importing(batch_id, []), file_of(batch_id, ["code"])):
        with world.books.unchanged():
            refused = await refusal(world.one.call(request, operator))
            assert_as_the_contract_says(refused, "VALIDATION_FAILED")


async def test_a_file_that_loses_a_code_to_another_import_takes_everything_back(world: World) -> None:
    shared, operator = code(), world.operator()
    lines = [code() for _ in range(1_100)]
    batch_ids = [await world.batch(gift_card(), total_quantity=1_101) for _ in range(2)]
    replies = await asyncio.gather(
        *(
            process.call(file_of(batch_id, [*lines[number::2], shared]), operator)
            for number, (process, batch_id) in enumerate(zip(world.both, batch_ids, strict=True))
        )
    )
    jobs = [await until_ended(world, reply.job.job_id) for reply in replies]
    # Either may find the other's code; where both do, nobody has it.
    states = sorted((job.state, job.error_reason) for job in jobs)
    assert states[-1] == (job_pb2.JOB_STATE_FAILED, "CODE_ALREADY_EXISTS")
    for job, batch_id in zip(jobs, batch_ids, strict=True):
        wanted = 551 if job.state == job_pb2.JOB_STATE_SUCCEEDED else 0
        assert there(world, batch_id) == (wanted, wanted, wanted)
    again = await world.one.call(importing(batch_ids[0], [(lines[1], None)]), operator) if states[0][0] == 3 else None
    assert again is None or len(again.coupon_ids) == 1


# --- killed in between ---


async def test_no_code_of_a_killed_import_can_be_used_before_all_of_them_can(world: World) -> None:
    batch_id, till, held = (
        await world.batch(gift_card(), total_quantity=4),
        world.cashier(),
        await world.card(shard=100),
    )
    here = (await world.card(shard=20)).user_id
    lines = [(code(), here), (code(), held.user_id), (code(), None), (code(), None)]
    await world.one.call(importing(await world.batch(gift_card()), [(code(), None)]), world.operator())
    async with world.further_process(COUPON_JOB_LEASE_MS="3000") as victim:
        # The coupons of one database are added, those of the other can't be.
        with world.books.account_held(held.user_id):
            calling = asyncio.ensure_future(victim.call(importing(batch_id, lines), world.operator()))
            await eventually(lambda: 0 < there(world, batch_id)[1] < 4)
            victim.service.kill()
            for text, _ in lines:
                for process in world.both:
                    refused = await refusal(process.call(consume(text, till), till))
                    assert refused.reason in {"COUPON_NOT_FOUND", "CODE_MISTYPED"}
            assert 0 < there(world, batch_id)[1] < 4
        assert isinstance((await outcomes([calling]))[0], Refusal)
    # Nobody asks again; another process completes it by itself.
    await eventually(lambda: there(world, batch_id) == (4, 4, 4))

    async def usable() -> bool:
        (result,) = await outcomes([world.one.call(consume(lines[0][0], till), till)])
        return not isinstance(result, Refusal)

    await eventually(usable)
    assert (await refusal(world.one.call(consume(lines[2][0], till), till))).reason == "COUPON_UNACTIVATED"


async def test_a_file_whose_process_was_killed_is_imported_by_another(world: World) -> None:
    batch_id = await world.batch(gift_card(), total_quantity=6_000)
    async with world.further_process(COUPON_JOB_LEASE_MS="1000") as victim:
        reply = await victim.call(file_of(batch_id, [code() for _ in range(6_000)]), world.operator())
        await until_under_way(world, reply.job.job_id)
        assert (await victim.metrics())[TAKEN] == 1
        victim.service.kill()
        job = await until_ended(world, reply.job.job_id)
    assert (job.state, job.done_count) == (job_pb2.JOB_STATE_SUCCEEDED, 6_000)
    assert there(world, batch_id) == (6_000, 6_000, 6_000)


async def test_a_process_that_slept_while_its_import_was_undone_claims_nothing_more(world: World) -> None:
    """It sleeps right before it claims; the code it wants is taken meanwhile, so the import fails without it."""
    batch_id, shared = await world.batch(gift_card(), total_quantity=2), code()
    lines = [(shared, None), (code(), None)]

    async def gave_up() -> bool:
        return (await victim.metrics())[LOST] == 1

    async with world.further_process(COUPON_JOB_LEASE_MS="500") as victim:
        home = int(batch_id) % SHARDS
        request = importing(batch_id, lines)
        with world.books.shard_held(home):
            # It waits to draw from the batch.
            calling = asyncio.ensure_future(victim.call(request, Caller("a-sleeper", ("operator",))))
            await world.books.until_waiting("FROM shard_owner")
            victim.service.freeze()
        await world.one.call(importing(await world.batch(gift_card()), [(shared, None)]), world.operator())

        def failed() -> bool:
            rows = world.books.everywhere("SELECT state FROM job WHERE request_id = %s", request.request_id)
            return rows == [(3,)]

        try:
            await eventually(failed, timeout_s=15)
        finally:
            victim.service.thaw()
        await eventually(gave_up)
        assert isinstance((await outcomes([calling]))[0], Refusal)
    assert there(world, batch_id) == (0, 0, 0)
