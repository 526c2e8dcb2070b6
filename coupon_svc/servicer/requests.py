"""From protobuf requests to domain values, the same for every service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from coupon_svc.app.ports import Call, Client
from coupon_svc.domain.batch import Caps
from coupon_svc.domain.hours import EVERY_DAY, Hours, minute_of
from coupon_svc.domain.money import positive_minor, rate_e4_from_text
from coupon_svc.domain.order_lines import Line, check_names
from coupon_svc.domain.refund_terms import DEFAULT_DAYS, ExpiredCardPolicy, RefundTerms, UsedCouponPolicy
from coupon_svc.domain.terms import (
    DEFAULT_TIME_ZONE,
    Base,
    CashVoucher,
    Discount,
    GiftCard,
    Kind,
    Level,
    Stacking,
    Terms,
    Threshold,
)
from couponmesh.coupon.v1 import batch_pb2, refund_terms_pb2
from couponmesh.type.v1 import client_context_pb2, money_pb2, order_line_pb2
from meshkit import context
from meshkit.errors import MeshError


class CallReader:
    """Makes a `Call` of a request: who asks, and what exactly is asked."""

    def __init__(self, trusted_clients: frozenset[str]) -> None:
        """`trusted_clients` are client ids whose ClientContext is believed; "*" believes everybody's."""
        self._trusted = trusted_clients

    def read(self, request: Message, request_id: str, client: client_context_pb2.ClientContext | None = None) -> Call:
        """The call of a request; its ClientContext is not part of what makes two requests equal."""
        current = context.current()
        payload = type(request)()
        payload.CopyFrom(request)
        if client is not None:
            payload.ClearField("client")
        digest = hashlib.sha256(current.method.encode() + b"\0" + payload.SerializeToString(deterministic=True))
        return Call(
            caller=current.principal.client_id,
            request_id=request_id,
            request_hash=digest.digest(),
            trace_id=current.trace_id,
            client=self._client(current, client),
        )

    @staticmethod
    def content_hash(request: Message) -> bytes:
        """SHA-256 of what is asked, whatever request_id it is asked with and wherever the shopper is."""
        payload = type(request)()
        payload.CopyFrom(request)
        for field in ("request_id", "client"):
            if field in payload.DESCRIPTOR.fields_by_name:
                payload.ClearField(field)
        return hashlib.sha256(payload.SerializeToString(deterministic=True)).digest()

    def _client(self, current: context.RequestContext, said: client_context_pb2.ClientContext | None) -> Client:
        who = current.principal
        if said is not None and (who.service or who.client_id in self._trusted or "*" in self._trusted):
            return Client(
                ip=said.ip or current.edge_ip,
                device_id=said.device_id,
                phone=said.phone,
                channel=said.channel or who.channel,
                store_id=said.store_id,
                terminal_id=said.terminal_id,
            )
        return Client(ip=current.edge_ip, channel=who.channel)


def amount_minor(money: money_pb2.Money, field: str) -> int:
    """A positive amount in fen; raises MeshError as `positive_minor` does."""
    return positive_minor(money.amount_minor, money.currency_code, field=field)


def terms_from(message: batch_pb2.BatchTerms) -> Terms:
    """The terms of a batch.

    Raises:
        MeshError: CURRENCY_NOT_SUPPORTED, AMOUNT_* or BATCH_TERMS_INVALID.
    """
    return Terms(
        kind=_kind_from(message),
        expires_at_ms=_instant_ms(message.expires_at, "expires_at") if message.HasField("expires_at") else None,
        valid_from_ms=_instant_ms(message.valid_from, "valid_from") if message.HasField("valid_from") else None,
        time_zone=message.time_zone or DEFAULT_TIME_ZONE,
        merchant_ids=frozenset(message.merchant_ids),
        days_after_claim=message.days_after_claim if message.HasField("days_after_claim") else None,
        refund=_refund_from(message.refund),
        categories=frozenset(message.categories),
        skus=frozenset(message.skus),
        hours=tuple(
            Hours(frozenset(each.weekdays) or EVERY_DAY, minute_of(each.start), minute_of(each.end))
            for each in message.usable_hours
        ),
        stacking=Stacking(
            level=Level(message.stacking.level or Level.PLATFORM),
            base=Base(message.stacking.base or Base.REMAINING),
            group=message.stacking.stacking_group,
            exclusive=message.stacking.exclusive,
        ),
    )


def lines_from(messages: Iterable[order_line_pb2.OrderLine], merchant_id: str) -> tuple[Line, ...]:
    """The lines of an order at `merchant_id`; a caller who acts for one merchant may name no other.

    Raises:
        MeshError: CURRENCY_NOT_SUPPORTED, AMOUNT_*, VALIDATION_FAILED or MERCHANT_NOT_OWNED.
    """
    who = context.current().principal
    lines = tuple(
        Line(
            line_id=each.line_id,
            sku=each.sku,
            category=each.category,
            merchant_id=each.merchant_id,
            unit_price_minor=amount_minor(each.unit_price, f"lines[{number}].unit_price"),
            quantity=each.quantity,
        )
        for number, each in enumerate(messages)
    )
    check_names(lines)
    for line in lines:
        if who.merchant_id and not who.service and line.merchant_id not in {"", merchant_id}:
            raise MeshError("MERCHANT_NOT_OWNED", merchant_id=line.merchant_id)
    return lines


def caps_from(message: batch_pb2.BatchCaps) -> Caps:
    """The caps of a batch.

    Raises:
        MeshError: CURRENCY_NOT_SUPPORTED or AMOUNT_*.
    """
    return Caps(
        uses_per_user=message.uses_per_user if message.HasField("uses_per_user") else None,
        spend_cap_minor=amount_minor(message.spend_cap, "caps.spend_cap") if message.HasField("spend_cap") else None,
    )


def _refund_from(message: refund_terms_pb2.RefundTerms) -> RefundTerms:
    return RefundTerms(
        UsedCouponPolicy(message.used_coupon or UsedCouponPolicy.VOID),
        message.fresh_days or DEFAULT_DAYS,
        ExpiredCardPolicy(message.expired_card or ExpiredCardPolicy.CREDIT_AND_EXTEND),
        message.extend_days or DEFAULT_DAYS,
    )


def _kind_from(message: batch_pb2.BatchTerms) -> Kind:
    kind = message.WhichOneof("kind")
    if kind == "discount":
        discount = message.discount
        return Discount(
            rate_e4_from_text(discount.discount_rate),
            amount_minor(discount.max_deduction, "terms.discount.max_deduction")
            if discount.HasField("max_deduction")
            else None,
            _optional_minor(discount, "terms.discount.min_amount"),
        )
    if kind == "threshold":
        return Threshold(
            amount_minor(message.threshold.min_amount, "terms.threshold.min_amount"),
            amount_minor(message.threshold.reduce, "terms.threshold.reduce"),
        )
    if kind == "cash_voucher":
        return CashVoucher(
            amount_minor(message.cash_voucher.face_value, "terms.cash_voucher.face_value"),
            _optional_minor(message.cash_voucher, "terms.cash_voucher.min_amount"),
        )
    return GiftCard(amount_minor(message.gift_card.balance, "terms.gift_card.balance"))


def _optional_minor(message: batch_pb2.DiscountTerms | batch_pb2.CashVoucherTerms, field: str) -> int:
    return amount_minor(message.min_amount, field) if message.HasField("min_amount") else 0


def _instant_ms(moment: Timestamp, field: str) -> int:
    if moment.nanos % 1_000_000:
        raise MeshError("BATCH_TERMS_INVALID", problem=f"{field} is finer than a millisecond")
    if not 0 <= moment.seconds < 253_402_300_800:
        raise MeshError("BATCH_TERMS_INVALID", problem=f"{field} is outside 1970 to 9999")
    return moment.seconds * 1000 + moment.nanos // 1_000_000
