"""Quotes, explanations and scoped coupons, on the real stack."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from couponmesh.coupon.v1 import batch_pb2, quote_pb2, reservation_pb2
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import order_line_pb2
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    Caller,
    OwnedCoupon,
    World,
    cash_voucher,
    consume_request,
    discount,
    gift_card,
    refusal,
    threshold,
    yuan,
)


def line(name: str, price: str, category: str = "", merchant: str = "", quantity: int = 1) -> order_line_pb2.OrderLine:
    return order_line_pb2.OrderLine(
        line_id=name, category=category, merchant_id=merchant, unit_price=yuan(price), quantity=quantity
    )


def shopper(user_id: int) -> Caller:
    return Caller("app", ("user",), subject=str(user_id))


def stacked(
    terms: batch_pb2.BatchTerms,
    level: str = "PLATFORM",
    *,
    base: str = "REMAINING",
    group: str = "",
    exclusive: bool = False,
    categories: tuple[str, ...] = (),
) -> batch_pb2.BatchTerms:
    terms.stacking.level = batch_pb2.CouponLevel.Value(f"COUPON_LEVEL_{level}")
    terms.stacking.base = batch_pb2.DeductionBase.Value(f"DEDUCTION_BASE_{base}")
    terms.stacking.stacking_group = group
    terms.stacking.exclusive = exclusive
    terms.categories.extend(categories)
    return terms


async def wallet(world: World, user_id: int, *terms: batch_pb2.BatchTerms) -> list[OwnedCoupon]:
    """One coupon of each of these terms, all of one user."""
    return [(await world.issue(await world.batch(each), user_id))[0] for each in terms]


def shares(lines: Iterable[reservation_pb2.LineDeduction]) -> dict[str, int]:
    return {each.line_id: each.deduction.amount_minor for each in lines}


async def test_a_quote_combines_levels_and_gift_cards_and_says_why_the_rest_stays(world: World) -> None:
    user_id = world.user()
    item, shop, platform, lesser, books, card = await wallet(
        world,
        user_id,
        stacked(discount("0.9"), "ITEM", categories=("tea",)),
        stacked(threshold("200.00", "30.00"), "SHOP"),
        stacked(discount("0.9"), "PLATFORM"),
        stacked(cash_voucher("1.00"), "PLATFORM"),
        stacked(cash_voucher("5.00"), "ITEM", categories=("books",)),
        gift_card("100.00"),
    )
    request = quote_pb2.QuoteOrderRequest(
        merchant_id="m", user_id=user_id, lines=[line("a", "100.00", "tea", quantity=2), line("b", "100.00", "toys")]
    )
    reply = await world.one.call(request, shopper(user_id))
    assert [each.coupon_id for each in reply.coupons] == [
        item.coupon_id,
        shop.coupon_id,
        platform.coupon_id,
        card.coupon_id,
    ]
    # 20.00 of the tea; 30.00 of 180.00 + 100.00; 10 % of the remaining 250.00; then the card.
    assert [each.deduction.amount_minor for each in reply.coupons] == [2_000, 3_000, 2_500, 10_000]
    assert shares(reply.coupons[1].lines) == {"a": 1_929, "b": 1_071}
    assert [each.gift_card for each in reply.coupons] == [False, False, False, True]
    assert (reply.amount, reply.deduction, reply.gift_card_payment) == (yuan("300.00"), yuan("75.00"), yuan("100.00"))
    assert reply.payable == yuan("125.00")
    assert reply.proven
    assert {each.coupon_id: (each.reason, each.in_favour_of) for each in reply.unused} == {
        lesser.coupon_id: ("STACKING_GROUP_TAKEN", platform.coupon_id),
        books.coupon_id: ("LINES_NOT_ELIGIBLE", ""),
    }
    assert await world.two.call(request, shopper(user_id)) == reply


async def test_validating_and_consuming_take_what_was_quoted(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (coupon,) = await wallet(world, user_id, stacked(discount("0.85"), "ITEM", categories=("tea",)))
    lines = [line("a", "3.33", "tea"), line("b", "7.77", "books"), line("c", "3.34", "tea")]
    quoted = await world.one.call(
        quote_pb2.QuoteOrderRequest(
            merchant_id=till.merchant_id, coupons=[quote_pb2.NamedCoupon(code=coupon.code)], lines=lines
        ),
        till,
    )
    validated = await world.two.call(
        coupons.ValidateCouponRequest(
            coupon_id=coupon.coupon_id, merchant_id=till.merchant_id, amount=yuan("14.44"), lines=lines
        ),
        till,
    )
    consumed = await world.two.consume(coupon, "14.44", till, lines=lines)
    assert quoted.deduction == validated.deduction == consumed.transaction.deduction == yuan("1.00")
    assert quoted.payable == validated.payable == consumed.transaction.payable == yuan("13.44")
    assert shares(quoted.coupons[0].lines) == shares(consumed.lines) == {"a": 50, "c": 50}
    world.books.assert_agree(coupon.coupon_id)


async def test_a_scoped_coupon_is_consumed_with_lines_only_and_a_refusal_changes_nothing(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (coupon,) = await wallet(world, user_id, stacked(cash_voucher("5.00"), categories=("tea",)))
    before = world.books.coupon(coupon.coupon_id)
    for reason, amount, lines in (
        ("LINES_REQUIRED", "10.00", []),
        ("LINES_AMOUNT_MISMATCH", "10.00", [line("a", "9.99", "tea")]),
        ("LINES_NOT_ELIGIBLE", "10.00", [line("a", "10.00", "books")]),
        ("MERCHANT_NOT_OWNED", "10.00", [line("a", "10.00", "tea", merchant="another")]),
        ("VALIDATION_FAILED", "10.00", [line("a", "5.00", "tea"), line("a", "5.00", "tea")]),
    ):
        refused = await refusal(world.one.consume(coupon, amount, till, lines=lines))
        assert_as_the_contract_says(refused, reason)
    assert world.books.coupon(coupon.coupon_id) == before
    request = consume_request(coupon, "10.00", till, lines=[line("a", "4.00", "tea"), line("b", "6.00", "books")])
    reply = await world.one.call(request, till)
    assert (shares(reply.lines), reply.transaction.deduction) == ({"a": 400}, yuan("4.00"))
    assert await world.two.call(request, till) == reply


async def test_outside_its_hours_a_coupon_is_refused_with_the_next_opening(world: World) -> None:
    till = world.cashier()
    soon = datetime.now(UTC) + timedelta(hours=2)
    terms = cash_voucher("5.00")
    terms.time_zone = "UTC"
    terms.usable_hours.add(weekdays=[soon.isoweekday()], start=f"{soon:%H}:00", end=f"{soon:%H}:59")
    coupon = await world.coupon(terms)
    refused = await refusal(world.one.consume(coupon, "10.00", till))
    assert_as_the_contract_says(refused, "OUTSIDE_HOURS")
    assert refused.metadata["next_from"] == f"{soon:%Y-%m-%dT%H}:00:00Z"
    always = cash_voucher("5.00")
    always.usable_hours.add(start="00:00", end="24:00")
    await world.one.consume(await world.coupon(always), "10.00", till)


async def test_who_may_quote_what(world: World) -> None:
    user_id, till = world.user(), world.cashier()
    (coupon,) = await wallet(world, user_id, cash_voucher("5.00"))
    named = [quote_pb2.NamedCoupon(coupon_id=coupon.coupon_id)]
    lines = [line("a", "10.00")]

    async def reason(by: Caller, **fields: Any) -> str:
        request = quote_pb2.QuoteOrderRequest(lines=lines, **fields)
        refused = await refusal(world.one.call(request, by))
        assert_as_the_contract_says(refused, refused.reason)
        return refused.reason

    at_till: dict[str, Any] = {"merchant_id": till.merchant_id}
    assert await reason(till, user_id=user_id, **at_till) == "COUPONS_REQUIRED"
    assert await reason(till, merchant_id="another", coupons=named) == "MERCHANT_NOT_OWNED"
    stranger = world.user()
    assert await reason(shopper(stranger), user_id=user_id, merchant_id="m") == "USER_NOT_OWNED"
    assert await reason(shopper(stranger), user_id=stranger, merchant_id="m", coupons=named) == "COUPON_NOT_FOUND"
    assert await reason(till, **at_till, coupons=[quote_pb2.NamedCoupon(code="!!!!")]) == "CODE_MISTYPED"
    # Of two owners' coupons, those of the second stay unused.
    (foreign,) = await wallet(world, stranger, cash_voucher("5.00"))
    reply = await world.one.call(
        quote_pb2.QuoteOrderRequest(
            **at_till, lines=lines, coupons=[*named, quote_pb2.NamedCoupon(coupon_id=foreign.coupon_id)]
        ),
        till,
    )
    assert [each.coupon_id for each in reply.coupons] == [coupon.coupon_id]
    assert [(each.coupon_id, each.reason) for each in reply.unused] == [(foreign.coupon_id, "COUPON_NOT_OWNED")]


async def test_of_more_than_thirty_coupons_those_that_take_most_are_weighed(world: World) -> None:
    user_id = world.user()
    many = await world.issue(await world.batch(cash_voucher("1.00")), user_id, 30)
    (best,) = await wallet(world, user_id, cash_voucher("2.00"))
    request = quote_pb2.QuoteOrderRequest(merchant_id="m", user_id=user_id, lines=[line("a", "10.00")])
    reply = await world.one.call(request, shopper(user_id))
    assert [each.coupon_id for each in reply.coupons] == [best.coupon_id]
    assert reply.more_coupons
    reasons = [each.reason for each in reply.unused]
    assert (reasons.count("STACKING_GROUP_TAKEN"), reasons.count("NOT_CONSIDERED")) == (29, 1)
    assert {each.coupon_id for each in reply.unused} == {coupon.coupon_id for coupon in many}


async def test_an_explanation_names_every_check_that_fails_and_what_would_help(world: World) -> None:
    user_id = world.user()
    terms = stacked(threshold("100.00", "20.00", merchants=["tea-house"]), categories=("tea",))
    (coupon,) = await wallet(world, user_id, terms)
    await world.block(coupon.batch_id, batch_pb2.BLOCK_SCOPE_CONSUME)
    request = quote_pb2.ExplainCouponRequest(
        coupon_id=coupon.coupon_id,
        user_id=world.user(),
        merchant_id="elsewhere",
        amount=yuan("50.00"),
        lines=[line("a", "50.00", "books")],
    )
    # The other process may know the batch as it was half a second ago.
    reply = await world.one.call(request, world.operator())
    assert not reply.usable
    assert [each.reason for each in reply.failures] == [
        "COUPON_NOT_OWNED",
        "BATCH_BLOCKED",
        "MERCHANT_NOT_ELIGIBLE",
        "LINES_NOT_ELIGIBLE",
        "BELOW_MIN_AMOUNT",
    ]
    last = reply.failures[-1]
    assert dict(last.metadata) == {"min_amount": "100.00", "amount": "0.00"}
    assert last.remedy_en == "Buy eligible goods for 100.00 at least; the order has 0.00."
    assert last.remedy_zh == "适用商品需满 100.00，当前为 0.00。"
    first = await refusal(
        world.one.call(
            coupons.ConsumeCouponRequest(
                request_id="explained", coupon_id=coupon.coupon_id, merchant_id="elsewhere", amount=yuan("50.00")
            ),
            Caller("till", ("cashier",), merchant_id="elsewhere"),
        )
    )
    assert first.reason == reply.failures[1].reason

    await world.block(coupon.batch_id, batch_pb2.BLOCK_SCOPE_NONE)
    good = quote_pb2.ExplainCouponRequest(
        code=coupon.code,
        user_id=user_id,
        merchant_id="tea-house",
        amount=yuan("100.00"),
        lines=[line("a", "100.00", "tea")],
    )
    reply = await world.one.call(good, shopper(user_id))
    assert (reply.usable, list(reply.failures)) == (True, [])
    good.user_id = world.user()
    assert (await refusal(world.one.call(good, shopper(good.user_id)))).reason == "COUPON_NOT_FOUND"


@pytest.mark.parametrize("count", [0, 101])
async def test_a_quote_has_one_to_a_hundred_lines(world: World, count: int) -> None:
    lines = [line(str(number), "1.00") for number in range(count)]
    request = quote_pb2.QuoteOrderRequest(merchant_id="m", user_id=1, lines=lines)
    refused = await refusal(world.one.call(request, shopper(1)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "VALIDATION_FAILED")


async def test_a_quote_over_rest(world: World) -> None:
    user_id = world.user()
    (coupon,) = await wallet(world, user_id, cash_voucher("5.00"))
    price = {"currency_code": "CNY", "amount_minor": "1000"}
    body = {
        "merchant_id": "10086",
        "user_id": str(user_id),
        "lines": [{"line_id": "a", "unit_price": price, "quantity": 2}],
    }
    async with world.stack.rest(world.stack.token("user", user=str(user_id))) as rest:
        reply = (await rest.post("/api/v1/coupon/quote", json=body)).json()
        explained = await rest.post(
            "/api/v1/coupon/explain",
            json={
                "coupon_id": coupon.coupon_id,
                "user_id": str(user_id),
                "merchant_id": "10086",
                "amount": {"currency_code": "CNY", "amount_minor": "2000"},
            },
        )
    assert reply["code"] == 200
    assert reply["data"]["coupons"][0]["coupon_id"] == coupon.coupon_id
    assert reply["data"]["payable"] == {"currency_code": "CNY", "amount_minor": "1500"}
    assert explained.json()["data"]["usable"] is True
