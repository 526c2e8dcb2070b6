"""Every mutation of the coupon service: how it is asked for, with which other payload, and how often it happened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from couponmesh.coupon.v1 import batch_pb2, refund_terms_pb2
from couponmesh.coupon.v1 import batch_service_pb2 as batches
from couponmesh.coupon.v1 import cashier_service_pb2 as cashiers
from couponmesh.coupon.v1 import coupon_service_pb2 as coupons
from tests.integration.coupon.refunding import contra, paid_order, refund, refund_order, spent, with_refund
from tests.integration.coupon.world import (
    Caller,
    CouponProcess,
    World,
    cash_voucher,
    consume_request,
    gift_card,
    request_id,
    yuan,
)

NO_HEADERS: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Mutation:
    """A request that changes something.

    Attributes:
        request: What is sent.
        other: Another payload under the same request_id.
        by: Who sends it.
        effects: How often it happened.
        headers: Sent with each.
    """

    request: Message
    other: Message
    by: Caller
    effects: Callable[[], int]
    headers: tuple[tuple[str, str], ...] = NO_HEADERS

    async def send(self, process: CouponProcess) -> bytes:
        return await process.call_bytes(self.request, self.by, metadata=self.headers)

    async def send_other(self, process: CouponProcess) -> bytes:
        return await process.call_bytes(self.other, self.by, metadata=self.headers)


def with_(request: Message, **fields: Any) -> Message:
    """A copy with other values in some fields."""
    changed = type(request)()
    changed.CopyFrom(request)
    changed.MergeFrom(type(request)(**fields))
    return changed


async def create_batch(world: World) -> Mutation:
    name = f"batch {request_id()}"
    request = batches.CreateBatchRequest(request_id=request_id(), name=name, terms=gift_card("5.00"))
    return Mutation(
        request,
        with_(request, terms=gift_card("6.00")),
        world.operator(),
        lambda: len(world.books.everywhere("SELECT 1 FROM batch WHERE name = %s", name)),
    )


async def block_batch(world: World) -> Mutation:
    batch_id = await world.batch(gift_card())
    request = batches.BlockBatchRequest(
        request_id=request_id(), batch_id=batch_id, block_scope=batch_pb2.BLOCK_SCOPE_CLAIM
    )

    def effects() -> int:
        ((version, scope),) = world.books.everywhere(
            "SELECT version, block_scope FROM batch WHERE batch_id = %s", batch_id
        )
        assert scope in (0, batch_pb2.BLOCK_SCOPE_CLAIM)
        return int(version) - 1

    return Mutation(request, with_(request, block_scope=batch_pb2.BLOCK_SCOPE_BOTH), world.operator(), effects)


async def issue_to_a_user(world: World) -> Mutation:
    batch_id = await world.batch(gift_card(), total_quantity=4)
    request = coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, user_id=world.user(), quantity=2)
    return Mutation(
        request, with_(request, quantity=1), world.operator(), lambda: issued_together(world, batch_id, quantity=2)
    )


async def issue_codes(world: World) -> Mutation:
    batch_id = await world.batch(gift_card(), total_quantity=4)
    request = coupons.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, quantity=2)
    return Mutation(
        request, with_(request, quantity=1), world.operator(), lambda: issued_together(world, batch_id, quantity=2)
    )


async def import_codes(world: World) -> Mutation:
    batch_id = await world.batch(gift_card(), total_quantity=4)
    lines = [
        coupons.ImportedCode(code=f"IMPORT-{request_id()[:10]}"),
        coupons.ImportedCode(code=f"IMPORT-{request_id()[:10]}", user_id=world.user(5)),
        coupons.ImportedCode(code=f"IMPORT-{request_id()[:10]}", user_id=world.user(100)),
    ]
    request = coupons.ImportCodesRequest(request_id=request_id(), batch_id=batch_id, codes=lines)
    other = coupons.ImportCodesRequest(request_id=request.request_id, batch_id=batch_id, codes=lines[:2])
    return Mutation(request, other, world.operator(), lambda: issued_together(world, batch_id, quantity=3))


def issued_together(world: World, batch_id: str, *, quantity: int) -> int:
    """How often `quantity` coupons were issued from a batch; the batch counts the same as there are."""
    ((counted,),) = world.books.everywhere("SELECT issued_quantity FROM batch WHERE batch_id = %s", batch_id)
    there = len(world.books.everywhere("SELECT 1 FROM coupon_info WHERE batch_id = %s", batch_id))
    indexed = len(world.books.everywhere("SELECT 1 FROM code_index WHERE batch_id = %s", batch_id))
    assert counted == there == indexed
    assert there % quantity == 0
    return there // quantity


async def activate(world: World) -> Mutation:
    (issued,) = await world.codes(await world.batch(gift_card()))
    user_id = world.user()
    request = coupons.ActivateCouponRequest(request_id=request_id(), code=issued.code, user_id=user_id)
    return Mutation(
        request,
        with_(request, code=issued.code.lower()),
        world.operator(),
        lambda: len(world.books.rows(user_id, "SELECT 1 FROM coupon_info WHERE user_id = %s", user_id)),
    )


async def consume(world: World) -> Mutation:
    card, till = await world.card(), world.cashier()
    request = consume_request(card, "30.00", till, order_id="order-1")
    return Mutation(
        request,
        with_(request, amount=yuan("0.01")),
        till,
        lambda: len(world.books.transactions(card.coupon_id)),
    )


async def consume_by_code(world: World) -> Mutation:
    card, till = await world.card(), world.cashier()
    request = coupons.ConsumeCouponRequest(
        request_id=request_id(), code=card.code, merchant_id=till.merchant_id, amount=yuan("30.00")
    )
    return Mutation(
        request,
        with_(request, order_id="order-2"),
        till,
        lambda: len(world.books.transactions(card.coupon_id)),
    )


async def cashier_consume(world: World) -> Mutation:
    card, till = await world.card(), world.cashier()
    request = cashiers.ConsumeRequest(
        coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0, request_id=request_id()
    )
    return Mutation(request, with_(request, amount=30.01), till, lambda: len(world.books.transactions(card.coupon_id)))


async def cashier_consume_with_a_header(world: World) -> Mutation:
    card, till = await world.card(), world.cashier()
    request = cashiers.ConsumeRequest(coupon_code=card.code, merchant_id=till.merchant_id, amount=30.0)
    return Mutation(
        request,
        with_(request, amount=30.01),
        till,
        lambda: len(world.books.transactions(card.coupon_id)),
        headers=(("idempotency-key", request_id()),),
    )


async def refund_transaction(world: World) -> Mutation:
    card, till = await world.card(), world.cashier()
    paid = await spent(world, card, "30.00", till)
    request = refund(paid, "10.00")
    return Mutation(
        request,
        with_(request, amount=yuan("0.01")),
        till,
        lambda: len(contra(world.books.assert_agree(card.coupon_id), paid)),
    )


async def refund_the_whole_transaction(world: World) -> Mutation:
    policy = refund_terms_pb2.USED_COUPON_POLICY_REISSUE_FRESH_EXPIRY
    coupon, till = await world.coupon(with_refund(cash_voucher("30.00"), used_coupon=policy)), world.cashier()
    paid = await spent(world, coupon, "30.00", till)
    request = refund(paid)

    def effects() -> int:
        refunds = len(contra(world.books.assert_agree(coupon.coupon_id), paid))
        owned = len(world.books.everywhere("SELECT 1 FROM coupon_info WHERE user_id = %s", coupon.user_id))
        assert owned == 1 + refunds
        return refunds

    return Mutation(request, with_(request, amount=yuan("30.00")), till, effects)


async def refund_lines_of_an_order(world: World) -> Mutation:
    order = await paid_order(world)
    request = refund_order(order.till, order.order_id, a="", b="10.00")

    def effects() -> int:
        # Emptied by the order, the card goes over REFUNDED: two rows for one refund.
        card = len(contra(world.books.assert_agree(order.card.coupon_id), order.card_transaction))
        coupon = len(contra(world.books.assert_agree(order.coupon.coupon_id), order.coupon_transaction))
        assert card == 2 * coupon
        return coupon

    return Mutation(request, refund_order(order.till, order.order_id, request.request_id), order.till, effects)


MakeMutation = Callable[[World], Awaitable[Mutation]]

MUTATIONS: list[MakeMutation] = [
    create_batch,
    block_batch,
    issue_to_a_user,
    issue_codes,
    import_codes,
    activate,
    consume,
    consume_by_code,
    cashier_consume,
    cashier_consume_with_a_header,
    refund_transaction,
    refund_the_whole_transaction,
    refund_lines_of_an_order,
]
