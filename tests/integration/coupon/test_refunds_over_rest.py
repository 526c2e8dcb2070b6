"""Refunds as REST callers see them, through the edge."""

from __future__ import annotations

from tests.integration.coupon.refunding import paid_order, spent
from tests.integration.coupon.world import World, request_id


def cny(minor: int) -> dict[str, str]:
    return {"currency_code": "CNY", "amount_minor": str(minor)}


async def test_a_till_refunds_a_transaction_over_rest(world: World) -> None:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "60.00", till)
    token = world.stack.token("cashier", merchant=till.merchant_id, client=till.client_id)
    async with world.stack.rest(token) as rest:
        body = {"request_id": request_id(), "transaction_id": paid, "amount": cny(2_500)}
        first = await rest.post("/api/v1/coupon/refund", json=body)
        again = await rest.post("/api/v1/coupon/refund", json=body)
        too_much = await rest.post(
            "/api/v1/coupon/refund", json={**body, "request_id": request_id(), "amount": cny(3_501)}
        )
        shown = await rest.get(f"/api/v1/transactions/{paid}")
    assert first.status_code == 200
    assert first.text == again.text
    data = first.json()["data"]
    assert data["refund"]["amount"] == cny(2_500)
    assert data["transaction"]["refundable"] == cny(3_500)
    assert data["coupon"]["balance"] == cny(6_500)
    assert (too_much.status_code, too_much.json()["reason"]) == (400, "REFUND_EXCEEDS_PAID")
    assert too_much.json()["message"] == f"无法退款 35.01：{paid} 剩余可退金额为 35.00。"
    assert shown.json()["data"]["refunds"] == [data["refund"]]
    world.books.assert_agree(card.coupon_id)


async def test_a_till_refunds_lines_of_an_order_over_rest(world: World) -> None:
    order = await paid_order(world)
    token = world.stack.token("cashier", merchant=order.till.merchant_id, client=order.till.client_id)
    body = {
        "request_id": request_id(),
        "merchant_id": order.till.merchant_id,
        "order_id": order.order_id,
        "lines": [{"line_id": "b"}, {"line_id": "a", "amount": cny(1)}],
    }
    async with world.stack.rest(token) as rest:
        reply = await rest.post("/api/v1/orders:refund", json=body)
        unknown = await rest.post("/api/v1/orders:refund", json={**body, "request_id": request_id(), "order_id": "x"})
    assert reply.status_code == 200
    lines = reply.json()["data"]["refund"]["lines"]
    assert [(line["line_id"], line["amount"]) for line in lines] == [("b", cny(3_334)), ("a", cny(1))]
    assert (unknown.status_code, unknown.json()["reason"]) == (404, "ORDER_NOT_FOUND")
