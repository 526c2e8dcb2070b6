"""Who may look at what, page by page."""

from __future__ import annotations

import pytest

from couponmesh.coupon.v1 import coupon_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import Caller, World, gift_card, refusal, yuan


async def pages(world: World, user_id: int, size: int, status: int = 0) -> list[list[str]]:
    """A user's coupon ids, page by page, asked of both processes in turn."""
    found: list[list[str]] = []
    token = ""
    while len(found) < 20:
        request = coupons.ListCouponsRequest(
            user_id=user_id, page_size=size, page_token=token, status=coupon_pb2.CouponStatus.ValueType(status)
        )
        reply = await world.both[len(found) % 2].call(request, world.operator())
        found.append([coupon.coupon_id for coupon in reply.coupons])
        token = reply.next_page_token
        if not token:
            return found
    raise AssertionError("the pages have no end")


async def test_a_users_coupons_come_newest_first_page_by_page(world: World) -> None:
    user_id = world.user()
    issued = [coupon.coupon_id for coupon in await world.issue(await world.batch(gift_card()), user_id, 7)]
    await world.issue(await world.batch(gift_card()), world.user(user_id % 128), 3)
    newest_first = sorted(issued, reverse=True)
    assert await pages(world, user_id, 3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]
    assert await pages(world, user_id, 7) == [newest_first]
    assert await pages(world, user_id, 0) == [newest_first]
    assert await pages(world, world.user(), 3) == [[]]


async def test_coupons_are_listed_by_status(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    spent, kept = await world.issue(await world.batch(gift_card()), user_id, 2)
    await world.one.consume(spent, "100.00", till)
    assert await pages(world, user_id, 10, coupon_pb2.COUPON_STATUS_USED) == [[spent.coupon_id]]
    assert await pages(world, user_id, 10, coupon_pb2.COUPON_STATUS_ACTIVATED) == [[kept.coupon_id]]


async def test_a_page_token_belongs_to_its_query(world: World) -> None:
    user_id, other, operator = world.user(), world.user(), world.operator()
    await world.issue(await world.batch(gift_card()), user_id, 3)
    first = await world.one.call(coupons.ListCouponsRequest(user_id=user_id, page_size=1), operator)
    token = first.next_page_token
    for request in (
        coupons.ListCouponsRequest(user_id=other, page_size=1, page_token=token),
        coupons.ListCouponsRequest(
            user_id=user_id, page_size=1, page_token=token, status=coupon_pb2.COUPON_STATUS_USED
        ),
        coupons.ListCouponsRequest(user_id=user_id, page_size=1, page_token=token[:-4]),
        coupons.ListCouponsRequest(user_id=user_id, page_size=1, page_token="nonsense"),
        coupons.ListCouponsRequest(user_id=user_id, page_size=1, page_token="券"),
    ):
        assert_as_the_contract_says(await refusal(world.two.call(request, operator)), "PAGE_TOKEN_INVALID")


async def test_a_shopper_sees_its_own_coupons_only(world: World) -> None:
    card = await world.card()
    owner = Caller("app", ("user",), subject=str(card.user_id))
    stranger = Caller("app", ("user",), subject=str(world.user()))
    shown = (await world.one.call(coupons.GetCouponRequest(coupon_id=card.coupon_id), owner)).coupon
    assert (shown.coupon_id, shown.balance, shown.batch_id) == (card.coupon_id, yuan("100.00"), card.batch_id)
    assert shown.masked_code == f"****-****-{card.code[-4:]}"
    for request in (coupons.GetCouponRequest(coupon_id=card.coupon_id),):
        assert_as_the_contract_says(await refusal(world.two.call(request, stranger)), "COUPON_NOT_FOUND")
    listing = coupons.ListCouponsRequest(user_id=card.user_id)
    assert len((await world.one.call(listing, owner)).coupons) == 1
    assert_as_the_contract_says(await refusal(world.one.call(listing, stranger)), "USER_NOT_OWNED")


async def test_a_cashier_sees_its_own_merchants_transactions_only(world: World) -> None:
    card, till, other = await world.card(), world.cashier(), world.cashier()
    made = (await world.one.consume(card, "1.00", till, order_id="order-9")).transaction
    colleague = world.cashier(till.merchant_id)
    finance = Caller("finance", ("finance",))
    by_id = coupons.GetTransactionRequest(transaction_id=made.transaction_id)
    by_order = coupons.GetTransactionRequest(
        merchant_order=coupons.MerchantOrder(merchant_id=till.merchant_id, order_id="order-9")
    )
    by_request = coupons.GetTransactionRequest(request_id=made.request_id)
    for caller in (till, colleague, finance):
        for request in (by_id, by_order):
            assert (await world.two.call(request, caller)).transaction == made
    assert (await world.two.call(by_request, till)).transaction == made
    for caller, request in ((other, by_id), (other, by_order), (other, by_request), (finance, by_request)):
        assert_as_the_contract_says(await refusal(world.two.call(request, caller)), "TRANSACTION_NOT_FOUND")
    unknown = coupons.GetTransactionRequest(transaction_id="TX20260101" + "0" * 19)
    assert_as_the_contract_says(await refusal(world.one.call(unknown, finance)), "TRANSACTION_NOT_FOUND")


async def test_of_an_order_with_several_transactions_the_latest_is_given(world: World) -> None:
    lower, upper, till = await world.card(shard=1), await world.card(shard=127), world.cashier()
    by_order = coupons.GetTransactionRequest(
        merchant_order=coupons.MerchantOrder(merchant_id=till.merchant_id, order_id="order-1")
    )
    for card in (lower, upper, lower):
        made = (await world.one.consume(card, "1.00", till, order_id="order-1")).transaction
        assert (await world.two.call(by_order, till)).transaction == made


async def test_the_audit_trail_comes_oldest_first_page_by_page(world: World) -> None:
    card, till, auditor = await world.card(), world.cashier(), Caller("auditor", ("auditor",))
    for _ in range(4):
        await world.one.consume(card, "1.00", till)
    seqs, token = [], ""
    for page in range(3):
        request = coupons.ListAuditEventsRequest(coupon_id=card.coupon_id, page_size=2, page_token=token)
        reply = await world.both[page % 2].call(request, auditor)
        seqs.append([event.seq for event in reply.events])
        token = reply.next_page_token
    assert seqs == [[1, 2], [3, 4], [5]]
    assert token == ""
    unknown = coupons.ListAuditEventsRequest(coupon_id="0" * 19)
    assert_as_the_contract_says(await refusal(world.one.call(unknown, auditor)), "COUPON_NOT_FOUND")
    trail = coupons.ListAuditEventsRequest(coupon_id=card.coupon_id)
    assert_as_the_contract_says(await refusal(world.one.call(trail, till)), "PERMISSION_DENIED")


@pytest.mark.parametrize("role", ["operator", "risk", "auditor"])
async def test_staff_see_every_coupon(world: World, role: str) -> None:
    card = await world.card()
    shown = await world.one.call(coupons.GetCouponRequest(coupon_id=card.coupon_id), Caller("staff", (role,)))
    assert shown.coupon.user_id == card.user_id
