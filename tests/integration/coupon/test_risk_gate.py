"""Risk control is asked before anything is committed, once per request, and its word is obeyed."""

from __future__ import annotations

from functools import partial

from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import client_context_pb2
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    Caller,
    World,
    consume_request,
    gift_card,
    outcomes,
    refusal,
    request_id,
    tally,
    until_answered,
    yuan,
)

VELOCITY_LIMIT, GUESS_LIMIT = 300, 10
"""As risk_svc has them by default: consumes per user and merchant in a minute, bad codes per caller and address."""


async def test_the_consume_beyond_a_users_limit_at_a_merchant_is_refused_over_both_processes(world: World) -> None:
    card, till, elsewhere = await world.card(), world.cashier(), world.cashier()
    requests = [consume_request(card, "0.01", till) for _ in range(VELOCITY_LIMIT)]
    results = await outcomes(
        until_answered(partial(world.both[number % 2].call, request, till)) for number, request in enumerate(requests)
    )
    assert tally(results) == {"OK": VELOCITY_LIMIT}
    one_more = consume_request(card, "0.01", till)
    with world.books.unchanged():
        for process in world.both:
            refused = await refusal(process.call(one_more, till))
            assert_as_the_contract_says(refused, "RISK_REJECTED")
            assert refused.metadata == {"rules": "user-merchant-velocity"}
        # What was answered before is repeated without asking risk control.
        assert await world.two.call(requests[7], till) == results[7]
    await world.one.consume(card, "0.01", elsewhere)
    world.books.assert_agree(card.coupon_id)


async def test_a_request_is_counted_once_however_often_it_is_made(world: World) -> None:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "100.01", till)
    for _ in range(VELOCITY_LIMIT + 20):
        # Refused each time, and so looked at anew each time.
        assert (await refusal(world.one.call(request, till))).reason == "BALANCE_INSUFFICIENT"


async def test_who_gives_too_many_bad_codes_is_refused_the_good_one_too_at_that_address(world: World) -> None:
    card, till, other = await world.card(), world.cashier(), world.cashier()
    (unactivated,) = await world.codes(await world.batch(gift_card()))
    here, there = (client_context_pb2.ClientContext(ip=ip) for ip in ("203.0.113.9", "203.0.113.10"))

    def by_code(code: str, by: Caller, client: client_context_pb2.ClientContext) -> cashiers.ConsumeRequest:
        return cashiers.ConsumeRequest(coupon_code=code, merchant_id=by.merchant_id, amount=0.01, client=client)

    wrong = [letter for letter in "ABCDEFGHJKMN" if letter != card.code[0]]
    for number in range(GUESS_LIMIT + 1):
        guess = f"{wrong[number]}{card.code[1:]}"
        reason = (await refusal(world.both[number % 2].call(by_code(guess, till, here), till))).reason
        assert reason in {"CODE_MISTYPED", "RISK_REJECTED"}

    for process in world.both:
        refused = await refusal(process.call(by_code(card.code, till, here), till))
        assert_as_the_contract_says(refused, "RISK_REJECTED")
        assert refused.metadata == {"rules": "guessed-codes"}
    asked: dict[str, object] = {"merchant_id": till.merchant_id, "amount": yuan("0.01"), "client": here}
    validating = coupons.ValidateCouponRequest(code=card.code, **asked)  # type: ignore[arg-type]  # each by its name
    assert (await refusal(world.one.call(validating, till))).reason == "RISK_REJECTED"
    same_client = Caller(till.client_id, ("operator",))
    activating = coupons.ActivateCouponRequest(
        request_id=request_id(), code=unactivated.code, user_id=world.user(), client=here
    )
    assert (await refusal(world.one.call(activating, same_client))).reason == "RISK_REJECTED"
    # Another address of the same caller, another caller at the same address, and ids, which nobody guesses.
    await world.one.call(by_code(card.code, till, there), till)
    await world.one.call(by_code(card.code, other, here), other)
    await world.one.consume(card, "0.01", till, client=here)
    world.books.assert_agree(card.coupon_id)
