"""Codes are exported page by page, to who may see them, and each page leaves its trace."""

from __future__ import annotations

from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.coupon.v1 import job_pb2
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.test_jobs import issuing, until_ended
from tests.integration.coupon.world import Caller, World, gift_card, refusal, request_id

HEADER = "coupon_id,code,status"


async def exported(world: World, by: Caller, batch_id: str, *, job_id: str = "", page_size: int = 0) -> list[str]:
    """All pages one after the other, as lines."""
    text, token, counted = "", "", 0
    while True:
        request = job_pb2.ExportCodesRequest(batch_id=batch_id, job_id=job_id, page_size=page_size, page_token=token)
        reply = await world.one.call(request, by)
        text, counted = text + reply.csv, counted + reply.line_count
        if not (token := reply.next_page_token):
            break
    lines: list[str] = text.splitlines()
    assert len(lines) == counted + 1
    return lines


async def test_a_batch_is_exported_whole_whatever_the_pages(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    issued: dict[str, str] = {}
    for user_id in (None, world.user(5), world.user(100), None):
        reply = await world.one.call(issuing(batch_id, 7, user_id), operator)
        status = "ACTIVATED" if user_id else "UNACTIVATED"
        issued |= {coupon.coupon_id: f"{coupon.coupon_id},{coupon.code},{status}" for coupon in reply.coupons}
    for page_size in (1, 5, 28, 0):
        header, *lines = await exported(world, operator, batch_id, page_size=page_size)
        assert header == HEADER
        assert sorted(lines) == sorted(issued.values())


async def test_what_a_job_made_is_exported_with_the_state_it_is_in_now(world: World) -> None:
    batch_id, operator, user_id = await world.batch(gift_card("5.00")), world.operator(), world.user()
    await world.one.call(issuing(batch_id, 3), operator)
    reply = await world.one.call(issuing(batch_id, 1_300), operator)
    await until_ended(world, reply.job.job_id)
    header, *lines = await exported(world, operator, batch_id, job_id=reply.job.job_id, page_size=600)
    assert header == HEADER
    assert len({line.split(",")[1] for line in lines}) == 1_300
    _, code, _ = lines[700].split(",")
    activating = coupons.ActivateCouponRequest(request_id=request_id(), code=code, user_id=user_id)
    lasting_id = (await world.one.call(activating, operator)).coupon.coupon_id

    _, *later = await exported(world, operator, batch_id, job_id=reply.job.job_id, page_size=600)
    _, *whole = await exported(world, operator, batch_id, page_size=600)

    assert later[:700] + later[701:] == lines[:700] + lines[701:]
    assert later[700] == f"{lasting_id},{code},ACTIVATED"
    assert len(whole) == 1_303
    assert [line for line in whole if code in line] == [later[700]]


async def test_an_auditor_sees_masked_codes_and_a_cashier_none(world: World) -> None:
    batch_id = await world.batch(gift_card())
    (coupon,) = await world.codes(batch_id)
    auditor = Caller("audit-desk", ("auditor",))
    assert await exported(world, auditor, batch_id) == [
        HEADER,
        f"{coupon.coupon_id},****-****-{coupon.code[-4:]},UNACTIVATED",
    ]
    refused = await refusal(world.one.call(job_pb2.ExportCodesRequest(batch_id=batch_id), world.cashier()))
    assert_as_the_contract_says(refused, "PERMISSION_DENIED")


async def test_each_page_is_journaled_in_a_chain_before_it_is_given(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    codes = sorted(coupon.coupon_id for coupon in await world.codes(batch_id, 5))
    await exported(world, operator, batch_id, page_size=2)
    await exported(world, Caller("audit-desk", ("auditor",)), batch_id)
    rows = world.books.everywhere(
        "SELECT seq, caller, masked, line_count, first_coupon_id, last_coupon_id, prev_hash, hash FROM code_export "
        "WHERE batch_id = %s ORDER BY seq",
        batch_id,
    )
    assert [row[:4] for row in rows] == [
        (1, operator.client_id, 0, 2),
        (2, operator.client_id, 0, 2),
        (3, operator.client_id, 0, 1),
        (4, "audit-desk", 1, 5),
    ]
    assert [row[4:6] for row in rows] == [
        (codes[0], codes[1]),
        (codes[2], codes[3]),
        (codes[4], codes[4]),
        (codes[0], codes[4]),
    ]
    assert [row[6] for row in rows] == [bytes(32), *(row[7] for row in rows[:-1])]


async def test_what_is_not_there_or_not_done_is_not_exported(world: World) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    nowhere = job_pb2.ExportCodesRequest(batch_id="0" * 19)
    assert_as_the_contract_says(await refusal(world.one.call(nowhere, operator)), "BATCH_NOT_FOUND")
    other = job_pb2.ExportCodesRequest(batch_id=batch_id, job_id="0" * 19)
    assert_as_the_contract_says(await refusal(world.one.call(other, operator)), "JOB_NOT_FOUND")
    forged = job_pb2.ExportCodesRequest(batch_id=batch_id, page_token="x")
    assert_as_the_contract_says(await refusal(world.one.call(forged, operator)), "PAGE_TOKEN_INVALID")
    reply = await world.one.call(issuing(batch_id, 5_000), operator)
    early = job_pb2.ExportCodesRequest(batch_id=batch_id, job_id=reply.job.job_id)
    assert_as_the_contract_says(await refusal(world.one.call(early, operator)), "JOB_NOT_DONE")
    await until_ended(world, reply.job.job_id)


async def test_jobs_and_exports_work_over_rest(world: World) -> None:
    batch_id = await world.batch(gift_card())
    async with world.stack.rest(world.stack.token("operator", client="rest-office")) as rest:
        body = {"request_id": request_id(), "quantity": 1_001}
        reply = await rest.post(f"/api/v1/batches/{batch_id}/coupons:issue", json=body)
        assert reply.status_code == 200, reply.text
        job_id = reply.json()["data"]["job"]["job_id"]
        await until_ended(world, job_id)
        shown = (await rest.get(f"/api/v1/jobs/{job_id}")).json()["data"]["job"]
        assert (shown["state"], shown["done_count"], shown["total_count"]) == ("JOB_STATE_SUCCEEDED", 1_001, 1_001)
        page = await rest.post(f"/api/v1/batches/{batch_id}/codes:export", json={"job_id": job_id, "page_size": 1_000})
        data = page.json()["data"]
        assert data["csv"].startswith(f"{HEADER}\n")
        assert (data["line_count"], data["csv"].count("\n")) == (1_000, 1_001)
        assert data["next_page_token"]
        lines = {"request_id": request_id(), "csv": f"code,user_id\nREST-{request_id()[:8]},{world.user()}\n"}
        reply = await rest.post(f"/api/v1/batches/{batch_id}/codes:import", json=lines)
        assert reply.status_code == 200, reply.text
        assert (await until_ended(world, reply.json()["data"]["job"]["job_id"])).done_count == 1
        wrong = {"request_id": request_id(), "codes": [{"code": "no_code"}]}
        reply = await rest.post(f"/api/v1/batches/{batch_id}/codes:import", json=wrong)
        assert (reply.status_code, reply.json()["reason"]) == (400, "VALIDATION_FAILED")
        assert "codes[0].code" in reply.text
