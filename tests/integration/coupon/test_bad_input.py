"""What cannot be consumed is refused with a reason of its own, in both languages, and changes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from coupon_svc.domain.coupon import CouponStatus
from couponmesh.coupon.v1 import batch_pb2
from couponmesh.coupon.v1 import batch_service_pb2 as batches
from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from couponmesh.type.v1 import money_pb2
from meshkit.codes import CodeFormat
from tests.integration.coupon.contract import assert_as_the_contract_says
from tests.integration.coupon.world import (
    Caller,
    CouponProcess,
    OwnedCoupon,
    Refusal,
    World,
    cash_voucher,
    discount,
    eventually,
    gift_card,
    outcomes,
    refusal,
    request_id,
    threshold,
    yuan,
)

CNY = 100
LARGEST_MINOR = 999_999_999_999


@dataclass(frozen=True)
class Order:
    """A consume that is refused.

    Attributes:
        coupon_id: Of the coupon, when it is named by id.
        code: Its code.
        minor: The amount in fen.
        by: Who asks.
        merchant_id: At which merchant; the caller's own by default.
    """

    by: Caller
    coupon_id: str = ""
    code: str = ""
    minor: int = CNY
    merchant_id: str = ""

    def by_id(self) -> Message:
        return coupons.ConsumeCouponRequest(
            request_id=request_id(),
            coupon_id=self.coupon_id,
            merchant_id=self.merchant_id or self.by.merchant_id,
            amount=money_pb2.Money(currency_code="CNY", amount_minor=self.minor),
        )

    def by_code(self) -> Message:
        return coupons.ConsumeCouponRequest(
            request_id=request_id(),
            code=self.code,
            merchant_id=self.merchant_id or self.by.merchant_id,
            amount=money_pb2.Money(currency_code="CNY", amount_minor=self.minor),
        )

    def at_the_cashier(self) -> Message:
        return cashiers.ConsumeRequest(
            request_id=request_id(),
            coupon_code=self.code,
            merchant_id=self.merchant_id or self.by.merchant_id,
            amount=self.minor / 100,
        )


async def own(world: World, coupon: OwnedCoupon, minor: int = CNY) -> Order:
    return Order(world.cashier(), coupon.coupon_id, coupon.code, minor)


async def in_status(world: World, status: CouponStatus) -> Order:
    coupon = await world.coupon(threshold("1.00", "0.50"))
    world.books.change(
        coupon.shard, "UPDATE coupon_info SET status = %s WHERE coupon_id = %s", int(status), coupon.coupon_id
    )
    return await own(world, coupon)


async def frozen(world: World) -> Order:
    return await in_status(world, CouponStatus.FROZEN)


async def refunded(world: World) -> Order:
    return await in_status(world, CouponStatus.REFUNDED)


async def swept_after_its_end(world: World) -> Order:
    return await in_status(world, CouponStatus.EXPIRED)


async def expired(world: World) -> Order:
    card = await world.card()
    past = datetime.now(UTC).replace(tzinfo=None) - timedelta(milliseconds=1)
    world.books.change(card.shard, "UPDATE coupon_info SET expires_at = %s WHERE coupon_id = %s", past, card.coupon_id)
    return await own(world, card)


async def not_started(world: World) -> Order:
    return await own(world, await world.coupon(gift_card(valid_from="2098-01-01T00:00:00Z")))


async def unactivated(world: World) -> Order:
    (issued,) = await world.codes(await world.batch(gift_card()))
    return Order(world.cashier(), issued.coupon_id, issued.code)


async def used(world: World) -> Order:
    card = await world.card()
    await world.one.consume(card, "100.00", world.cashier())
    return await own(world, card)


async def at_another_merchant_than_the_batchs(world: World) -> Order:
    return await own(world, await world.coupon(gift_card(merchants=["10086", "10010"])))


async def at_another_merchant_than_the_cashiers(world: World) -> Order:
    card = await world.card()
    return Order(world.cashier(), card.coupon_id, card.code, merchant_id="somebody-else")


async def below_the_minimum(world: World) -> Order:
    return await own(world, await world.coupon(threshold("100.00", "20.00")), 9_999)


async def below_the_minimum_of_a_discount(world: World) -> Order:
    return await own(world, await world.coupon(discount("0.8", minimum="50.00")), 4_999)


async def below_the_minimum_of_a_voucher(world: World) -> Order:
    return await own(world, await world.coupon(cash_voucher("10.00", minimum="50.00")), 4_999)


async def more_than_the_balance(world: World) -> Order:
    return await own(world, await world.card(balance="100.00"), 10_001)


async def without_effect(world: World) -> Order:
    # A tenth of four fen is rounded to nothing.
    return await own(world, await world.coupon(discount("0.9")), 4)


async def of_a_frozen_account(world: World) -> Order:
    card = await world.card()
    world.books.change(card.shard, "UPDATE account_state SET status = 2 WHERE user_id = %s", card.user_id)
    return await own(world, card)


async def of_a_blocked_batch(world: World) -> Order:
    card = await world.card()
    await world.block(card.batch_id, batch_pb2.BLOCK_SCOPE_CONSUME)
    return await own(world, card)


async def of_zero(world: World) -> Order:
    return await own(world, await world.card(), 0)


async def of_less_than_nothing(world: World) -> Order:
    return await own(world, await world.card(), -1)


async def of_more_than_there_is_money(world: World) -> Order:
    return await own(world, await world.card(), LARGEST_MINOR + 1)


async def of_the_largest_number(world: World) -> Order:
    return await own(world, await world.card(), 2**63 - 1)


async def of_the_smallest_number(world: World) -> Order:
    return await own(world, await world.card(), -(2**63))


async def of_an_unknown_coupon(world: World) -> Order:
    key = (world.stack.mesh / "secrets" / "code_key").read_text().strip()
    # A code of the right form whose counter was never reached.
    code = CodeFormat(bytes.fromhex(key)).encode(77, 2**40, 12)
    return Order(world.cashier(), "0000000000000000077", code)


MakeOrder = Callable[[World], Awaitable[Order]]
REFUSED: list[tuple[MakeOrder, str]] = [
    (of_an_unknown_coupon, "COUPON_NOT_FOUND"),
    (expired, "COUPON_EXPIRED"),
    (not_started, "COUPON_NOT_STARTED"),
    (unactivated, "COUPON_UNACTIVATED"),
    (used, "COUPON_USED"),
    (frozen, "COUPON_FROZEN"),
    (refunded, "COUPON_REFUNDED"),
    (swept_after_its_end, "COUPON_EXPIRED"),
    (at_another_merchant_than_the_batchs, "MERCHANT_NOT_ELIGIBLE"),
    (at_another_merchant_than_the_cashiers, "MERCHANT_NOT_OWNED"),
    (below_the_minimum, "BELOW_MIN_AMOUNT"),
    (below_the_minimum_of_a_discount, "BELOW_MIN_AMOUNT"),
    (below_the_minimum_of_a_voucher, "BELOW_MIN_AMOUNT"),
    (more_than_the_balance, "BALANCE_INSUFFICIENT"),
    (without_effect, "COUPON_NO_EFFECT"),
    (of_a_frozen_account, "ACCOUNT_FROZEN"),
    (of_a_blocked_batch, "BATCH_BLOCKED"),
    (of_zero, "AMOUNT_ZERO"),
    (of_less_than_nothing, "AMOUNT_NEGATIVE"),
    (of_more_than_there_is_money, "AMOUNT_TOO_LARGE"),
    (of_the_largest_number, "AMOUNT_TOO_LARGE"),
    (of_the_smallest_number, "AMOUNT_NEGATIVE"),
]


SAID_BY_THE_COUPON = {
    make
    for make, reason in REFUSED
    if not reason.startswith("AMOUNT_") and reason not in {"COUPON_NOT_FOUND", "MERCHANT_NOT_OWNED"}
}


@pytest.mark.parametrize("way", [Order.by_id, Order.by_code, Order.at_the_cashier], ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("make", "reason"),
    REFUSED,
    ids=[f"{make.__name__}-{reason}" for make, reason in REFUSED],
)
async def test_a_consume_is_refused_for_its_own_reason_and_changes_nothing(
    world: World, make: MakeOrder, reason: str, way: Callable[[Order], Message]
) -> None:
    order = await make(world)
    request = way(order)

    async def refused_by(process: CouponProcess) -> Refusal:
        return await refusal(process.call(request, order.by))

    # A block is obeyed within half a second by the process that was not asked to make it.
    await eventually(lambda: _has(refused_by(world.two), reason), timeout_s=1.0)
    with world.books.unchanged():
        for process in world.both:
            assert_as_the_contract_says(await refused_by(process), reason)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(make, reason) for make, reason in REFUSED if make in SAID_BY_THE_COUPON],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_validating_answers_with_the_reason_that_consuming_would_give(
    world: World, make: MakeOrder, reason: str
) -> None:
    order = await make(world)
    asked = coupons.ValidateCouponRequest(
        coupon_id=order.coupon_id,
        merchant_id=order.by.merchant_id,
        amount=money_pb2.Money(currency_code="CNY", amount_minor=order.minor),
    )
    with world.books.unchanged():
        reply = await world.one.call(asked, order.by)
    assert not reply.usable
    assert reply.refusal_reason == reason
    assert (reply.deduction.amount_minor, reply.payable.amount_minor) == (0, order.minor)


async def _has(refused: Awaitable[Refusal], reason: str) -> bool:
    return (await refused).reason == reason


@pytest.mark.parametrize(
    ("amount", "reason"),
    [
        (1.005, "AMOUNT_PRECISION"),
        (0.001, "AMOUNT_PRECISION"),
        (0.1 + 0.2, "AMOUNT_PRECISION"),
        (5e-324, "AMOUNT_PRECISION"),
        (0.0, "AMOUNT_ZERO"),
        (-0.0, "AMOUNT_ZERO"),
        (-0.01, "AMOUNT_NEGATIVE"),
        (-1e300, "AMOUNT_NEGATIVE"),
        (10_000_000_000.00, "AMOUNT_TOO_LARGE"),
        (1e300, "AMOUNT_TOO_LARGE"),
        (math.nan, "AMOUNT_NOT_FINITE"),
        (math.inf, "AMOUNT_NOT_FINITE"),
        (-math.inf, "AMOUNT_NOT_FINITE"),
    ],
)
async def test_a_cashiers_amount_is_never_rounded(world: World, amount: float, reason: str) -> None:
    card, till = await world.card(), world.cashier()
    request = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=amount)
    with world.books.unchanged():
        refused = await refusal(world.one.call(request, till))
        assert_as_the_contract_says(refused, reason)
    assert refused.metadata["field"] == "amount"


@pytest.mark.parametrize("amount", [0.01, 1.1, 150.1, 99_999.99, 9_999_999_999.99])
async def test_every_amount_of_two_decimals_is_taken_exactly(world: World, amount: float) -> None:
    card, till = await world.card(balance="9999999999.99"), world.cashier()
    request = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=amount)
    reply = await world.one.call(request, till)
    assert reply.deduction == yuan(f"{amount:.2f}")
    assert world.books.journal(card.coupon_id)[-1].amount_minor == -round(amount * 100)


async def test_a_typing_error_in_any_place_of_a_code_is_told_without_a_query(world: World) -> None:
    card, till = await world.card(), world.cashier()
    typed = card.code.replace("-", "")
    mistyped = [typed[:place] + ("Z" if typed[place] != "Z" else "Y") + typed[place + 1 :] for place in range(12)]
    with world.books.unchanged():
        for code in mistyped:
            refused = await refusal(world.one.call(consume_by_code(code, till), till))
            assert_as_the_contract_says(refused, "CODE_MISTYPED")
    # The one that was meant, as a person may type it.
    await world.one.call(consume_by_code(card.code.lower().replace("-", ""), till), till)


@pytest.mark.parametrize("code", ["!", "券码", "A" * 64, "7XK9_B2T4", "' OR '1'='1", "\x00"])
async def test_what_is_no_code_at_all_counts_as_mistyped(world: World, code: str) -> None:
    till = world.cashier()
    with world.books.unchanged():
        for request in (
            consume_by_code(code, till),
            cashiers.ConsumeRequest(coupon_code=code, merchant_id=till.merchant_id, amount=1.0),
        ):
            assert_as_the_contract_says(await refusal(world.one.call(request, till)), "CODE_MISTYPED")


def consume_by_code(code: str, till: Caller) -> coupons.ConsumeCouponRequest:
    return coupons.ConsumeCouponRequest(
        request_id=request_id(), code=code, merchant_id=till.merchant_id, amount=yuan("1.00")
    )


@pytest.mark.parametrize(
    ("terms", "amount", "deduction"),
    [
        (threshold("100.00", "20.00"), "100.00", "20.00"),
        (discount("0.8", minimum="50.00"), "50.00", "10.00"),
        (cash_voucher("10.00", minimum="50.00"), "50.00", "10.00"),
    ],
    ids=["threshold", "discount", "cash_voucher"],
)
async def test_a_minimum_is_met_at_equality(
    world: World, terms: batch_pb2.BatchTerms, amount: str, deduction: str
) -> None:
    coupon, till = await world.coupon(terms), world.cashier()
    reply = await world.one.consume(coupon, amount, till)
    assert reply.transaction.deduction == yuan(deduction)


async def test_a_blocked_batch_is_refused_by_both_processes_within_one_second_and_lifted_as_fast(
    world: World,
) -> None:
    card, till = await world.card(), world.cashier()
    # Both processes have just read the batch as not blocked.
    for process in world.both:
        await process.consume(card, "1.00", till)

    async def answers(process: CouponProcess, expected: bool) -> bool:
        (result,) = await outcomes([process.consume(card, "0.01", till)])
        return isinstance(result, Refusal) == expected

    for scope, blocked in ((batch_pb2.BLOCK_SCOPE_CONSUME, True), (batch_pb2.BLOCK_SCOPE_NONE, False)):
        began = time.monotonic()
        await world.block(card.batch_id, scope)
        for process in world.both:
            await eventually(lambda p=process, b=blocked: answers(p, b), timeout_s=2.0)  # type: ignore[misc]
        # One second is promised; the other is for a busy machine.
        assert time.monotonic() - began < 2.0
    world.books.assert_agree(card.coupon_id)


async def test_a_batch_blocked_for_claiming_issues_and_activates_nothing_but_its_coupons_are_consumed(
    world: World,
) -> None:
    batch_id, operator = await world.batch(gift_card()), world.operator()
    (card,), (code,) = await world.issue(batch_id, world.user()), await world.codes(batch_id)
    await world.block(batch_id, batch_pb2.BLOCK_SCOPE_CLAIM)
    with world.books.unchanged():
        for request in (
            coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, user_id=1, quantity=1),
            coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, quantity=1),
            coupons.ImportCodesRequest(
                request_id=request_id(), batch_id=batch_id, codes=[coupons.ImportedCode(code="BLOCKED-CODE-1")]
            ),
            coupons.ActivateCouponRequest(request_id=request_id(), code=code.code, user_id=world.user()),
        ):
            refused = await refusal(world.one.call(request, operator))
            assert_as_the_contract_says(refused, "BATCH_BLOCKED")
            assert refused.metadata["scope"] == "CLAIM"
    await world.one.consume(card, "1.00", world.cashier())


# --- the form of a request ---


async def test_text_that_is_not_utf8_is_refused_and_changes_nothing(world: World) -> None:
    card, till = await world.card(), world.cashier()
    good = coupons.ConsumeCouponRequest(
        request_id=request_id(), coupon_id=card.coupon_id, merchant_id="MERCHANT", amount=yuan("1.00")
    ).SerializeToString()
    cashiers_good = cashiers.ConsumeRequest(
        coupon_code=card.code, merchant_id="MERCHANT", amount=1.0
    ).SerializeToString()
    with world.books.unchanged():
        for kind, raw in ((coupons.ConsumeCouponRequest, good), (cashiers.ConsumeRequest, cashiers_good)):
            bad = raw.replace(b"MERCHANT", b"MERCH\xff\xfeT")
            refused = await refusal(world.one.call_raw(kind, bad, till.metadata))
            assert_as_the_contract_says(refused, "INVALID_UTF8")


async def test_bytes_that_are_no_message_are_refused_as_a_bad_request(world: World) -> None:
    till = world.cashier()
    with world.books.unchanged():
        refused = await refusal(world.one.call_raw(coupons.ConsumeCouponRequest, b"\xff\xff\xff", till.metadata))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason


INVALID: list[tuple[str, dict[str, Any]]] = [
    ("request_id", {"request_id": ""}),
    ("request_id", {"request_id": "has a space"}),
    ("request_id", {"request_id": "x" * 65}),
    ("coupon_id", {"coupon_id": "12"}),
    ("coupon_id", {"coupon_id": "12345678901234567ab"}),
    ("coupon", {"coupon_id": None}),
    ("merchant_id", {"merchant_id": ""}),
    ("merchant_id", {"merchant_id": "m" * 33}),
    ("order_id", {"order_id": "o" * 65}),
    ("amount", {"amount": None}),
]


@pytest.mark.parametrize(("field", "change"), INVALID)
async def test_a_field_that_breaks_the_contract_is_named(world: World, field: str, change: dict[str, Any]) -> None:
    card, till = await world.card(), world.cashier()
    fields = {
        "request_id": request_id(),
        "coupon_id": card.coupon_id,
        "merchant_id": till.merchant_id,
        "amount": yuan("1.00"),
        **change,
    }
    request = coupons.ConsumeCouponRequest(**{name: value for name, value in fields.items() if value is not None})
    with world.books.unchanged():
        refused = await refusal(world.one.call(request, till))
        assert_as_the_contract_says(refused, "VALIDATION_FAILED")
    assert refused.fields == (field,)


async def test_another_currency_is_refused(world: World) -> None:
    card, till = await world.card(), world.cashier()
    for code in ("USD", "", "cny"):
        request = coupons.ConsumeCouponRequest(
            request_id=request_id(),
            coupon_id=card.coupon_id,
            merchant_id=till.merchant_id,
            amount=money_pb2.Money(currency_code=code, amount_minor=1),
        )
        with world.books.unchanged():
            refused = await refusal(world.one.call(request, till))
        assert_as_the_contract_says(refused, "CURRENCY_NOT_SUPPORTED")
        assert refused.metadata["currency_code"] == code


async def test_nobody_and_the_wrong_role_are_turned_away(world: World) -> None:
    card = await world.card()
    request = coupons.ConsumeCouponRequest(
        request_id=request_id(), coupon_id=card.coupon_id, merchant_id="m", amount=yuan("1.00")
    )
    with world.books.unchanged():
        nobody = await refusal(world.one.call_raw(type(request), request.SerializeToString(), ()))
        assert_as_the_contract_says(nobody, "UNAUTHENTICATED")
        for caller in (world.operator(), Caller("shopper", ("user",), subject=str(card.user_id)), Caller("x", ())):
            assert_as_the_contract_says(await refusal(world.one.call(request, caller)), "PERMISSION_DENIED")


# --- batches ---


def terms(**kind: Any) -> batch_pb2.BatchTerms:
    found = batch_pb2.BatchTerms(**kind)
    found.expires_at.FromJsonString("2099-01-01T00:00:00Z")
    return found


def over(found: batch_pb2.BatchTerms, expires_at: str, valid_from: str = "", zone: str = "") -> batch_pb2.BatchTerms:
    found.expires_at.FromJsonString(expires_at)
    if valid_from:
        found.valid_from.FromJsonString(valid_from)
    found.time_zone = zone
    return found


BAD_TERMS: list[tuple[str, batch_pb2.BatchTerms, str]] = [
    ("reduces all", threshold("100.00", "100.00"), "BATCH_TERMS_INVALID"),
    ("reduces more", threshold("100.00", "100.01"), "BATCH_TERMS_INVALID"),
    ("is over", over(gift_card(), "2020-01-01T00:00:00Z"), "BATCH_TERMS_INVALID"),
    ("ends first", over(gift_card(), "2098-01-01T00:00:00Z", "2099-01-01T00:00:00Z"), "BATCH_TERMS_INVALID"),
    ("never begins", over(gift_card(), "2099-01-01T00:00:00Z", "2099-01-01T00:00:00Z"), "BATCH_TERMS_INVALID"),
    ("nowhere", over(gift_card(), "2099-01-01T00:00:00Z", zone="Asia/Nowhere"), "BATCH_TERMS_INVALID"),
    ("up the tree", over(gift_card(), "2099-01-01T00:00:00Z", zone="../../etc/passwd"), "BATCH_TERMS_INVALID"),
    ("rate of nothing", terms(discount={"discount_rate": "0.0"}), "BATCH_TERMS_INVALID"),
    ("rate of one", terms(discount={"discount_rate": "1.0"}), "VALIDATION_FAILED"),
    ("rate too fine", terms(discount={"discount_rate": "0.12345"}), "VALIDATION_FAILED"),
    ("empty card", gift_card("0.00"), "AMOUNT_ZERO"),
    ("owing card", gift_card("-1.00"), "AMOUNT_NEGATIVE"),
    ("too much", gift_card("10000000000.00"), "AMOUNT_TOO_LARGE"),
    ("worthless voucher", cash_voucher("0.00"), "AMOUNT_ZERO"),
    ("no kind", terms(), "VALIDATION_FAILED"),
]


@pytest.mark.parametrize(("terms", "reason"), [bad[1:] for bad in BAD_TERMS], ids=[bad[0] for bad in BAD_TERMS])
async def test_a_batch_whose_terms_contradict_themselves_is_not_made(
    world: World, terms: batch_pb2.BatchTerms, reason: str
) -> None:
    request = batches.CreateBatchRequest(request_id=request_id(), name="bad", terms=terms)
    with world.books.unchanged():
        assert_as_the_contract_says(await refusal(world.one.call(request, world.operator())), reason)


async def test_a_block_is_not_lifted_by_leaving_the_scope_out(world: World) -> None:
    card = await world.card()
    request = batches.BlockBatchRequest(request_id=request_id(), batch_id=card.batch_id)
    await world.block(card.batch_id, batch_pb2.BLOCK_SCOPE_BOTH)
    with world.books.unchanged():
        refused = await refusal(world.one.call(request, world.operator()))
    assert_as_the_contract_says(refused, "VALIDATION_FAILED")
    assert refused.fields == ("block_scope",)

    request.block_scope = batch_pb2.BLOCK_SCOPE_NONE
    reply = await world.one.call(request, world.operator())
    assert reply.batch.block_scope == batch_pb2.BLOCK_SCOPE_NONE


async def test_an_unknown_batch_is_named(world: World) -> None:
    unknown, operator = "0000000000000000042", world.operator()
    requests: list[Message] = [
        batches.GetBatchRequest(batch_id=unknown),
        batches.BlockBatchRequest(request_id=request_id(), batch_id=unknown, block_scope=batch_pb2.BLOCK_SCOPE_NONE),
        coupons.IssueCouponsRequest(request_id=request_id(), batch_id=unknown, quantity=1),
        coupons.ImportCodesRequest(
            request_id=request_id(), batch_id=unknown, codes=[coupons.ImportedCode(code="UNKNOWN-1")]
        ),
    ]
    with world.books.unchanged():
        for request in requests:
            refused = await refusal(world.one.call(request, operator))
            assert_as_the_contract_says(refused, "BATCH_NOT_FOUND")
            assert refused.metadata == {"batch_id": unknown}


async def test_a_batch_never_issues_more_than_its_total(world: World) -> None:
    batch_id, operator = await world.batch(gift_card(), total_quantity=10), world.operator()
    calls = [
        process.call(
            coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, user_id=world.user(), quantity=3),
            operator,
        )
        for process in world.both * 4
    ]
    results = await outcomes(calls)
    issued = [result for result in results if not isinstance(result, Refusal)]
    assert len(issued) == 3
    for refused in results:
        if isinstance(refused, Refusal):
            assert_as_the_contract_says(refused, "BATCH_EXHAUSTED")
            assert refused.metadata["left"] == "1"
    assert len(world.books.everywhere("SELECT 1 FROM coupon_info WHERE batch_id = %s", batch_id)) == 9
