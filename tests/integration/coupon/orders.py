"""Requests of reservations and reversals, as a till sends them, and whether holds agree with what coupons say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from couponmesh.coupon.v1 import reservation_pb2 as pb
from couponmesh.type.v1 import order_line_pb2
from tests.integration.coupon.books import Books
from tests.integration.coupon.world import SHARDS, Caller, OwnedCoupon, request_id, yuan

HELD, CONSUMED, RELEASED = 1, 2, 3


@dataclass
class Order:
    """One order at a till, and the requests around its reservation; each request is made once and may be sent often.

    Attributes:
        coupons: The coupons in the order in which they apply.
        parts: Sums that gift cards pay, by coupon_id.
    """

    till: Caller
    coupons: Sequence[OwnedCoupon]
    amount: str
    parts: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[order_line_pb2.OrderLine] = ()
    ttl_s: int = 0
    name: str = field(default_factory=request_id)

    @property
    def user_id(self) -> int:
        return self.coupons[0].user_id

    def reserve(self, request: str = "", **fields: Any) -> pb.ReserveCouponsRequest:
        message = pb.ReserveCouponsRequest(
            request_id=request or f"reserve-{self.name}",
            reservation_id=self.name,
            merchant_id=self.till.merchant_id,
            order_id=f"order-{self.name}",
            amount=yuan(self.amount),
            coupons=[self._reserved(coupon) for coupon in self.coupons],
            lines=self.lines,
            ttl_s=self.ttl_s,
        )
        message.MergeFrom(pb.ReserveCouponsRequest(**fields))
        return message

    def _reserved(self, coupon: OwnedCoupon) -> pb.ReservedCoupon:
        part = self.parts.get(coupon.coupon_id)
        return pb.ReservedCoupon(coupon_id=coupon.coupon_id, amount=yuan(part) if part else None)

    def confirm(self, request: str = "", **taken: str) -> pb.ConfirmReservationRequest:
        """Takes everything, or by coupon_id (prefixed with an underscore, to be a name) the given sums."""
        return pb.ConfirmReservationRequest(
            request_id=request or f"confirm-{self.name}",
            reservation_id=self.name,
            merchant_id=self.till.merchant_id,
            user_id=self.user_id,
            coupons=[
                pb.ConfirmedCoupon(coupon_id=name.removeprefix("_"), amount=yuan(sum_) if sum_ else None)
                for name, sum_ in taken.items()
            ],
        )

    def cancel(self, request: str = "") -> pb.CancelReservationRequest:
        return pb.CancelReservationRequest(
            request_id=request or f"cancel-{self.name}",
            reservation_id=self.name,
            merchant_id=self.till.merchant_id,
            user_id=self.user_id,
        )

    def reverse(self, original: str = "", request: str = "") -> pb.ReverseTransactionRequest:
        """Takes back the confirmation, or another request."""
        return pb.ReverseTransactionRequest(
            request_id=request or f"reverse-{self.name}",
            original_request_id=original or f"confirm-{self.name}",
            merchant_id=self.till.merchant_id,
            user_id=self.user_id,
        )


def line(line_id: str, price: str, quantity: int = 1) -> order_line_pb2.OrderLine:
    return order_line_pb2.OrderLine(line_id=line_id, unit_price=yuan(price), quantity=quantity)


@dataclass(frozen=True)
class Holding:
    """What a coupon's row says of its holds; `held_minor` is in fen."""

    held_minor: int
    holds: int


def holding(books: Books, coupon: OwnedCoupon) -> Holding:
    ((held, holds),) = books.rows(
        coupon.shard, "SELECT held, holds FROM coupon_info WHERE coupon_id = %s", coupon.coupon_id
    )
    return Holding(int(held * 100), holds)


def assert_holds_agree(books: Books, coupon: OwnedCoupon) -> None:
    """The figures in the coupon's row are those of its unreleased holds, and never more than there is."""
    books.assert_agree(coupon.coupon_id)
    rows = books.rows(
        coupon.shard,
        "SELECT held_minor, expire_time FROM coupon_hold WHERE shard = %s AND coupon_id = %s AND state = %s",
        coupon.shard,
        coupon.coupon_id,
        HELD,
    )
    ((held, holds, expires, balance),) = books.rows(
        coupon.shard,
        "SELECT held, holds, hold_expires_at, balance FROM coupon_info WHERE coupon_id = %s",
        coupon.coupon_id,
    )
    assert (held * 100, holds) == (sum(row[0] for row in rows), len(rows))
    assert expires == min((row[1] for row in rows), default=None)
    assert held <= balance or rows
    assert int(coupon.coupon_id) % SHARDS == coupon.shard
