"""A chapter of the demonstration: coupons are held for an order, confirmed, cancelled, and a lost spend is reversed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl.demo.calls import Rest, expect
from meshctl.demo.people import MERCHANT, Step, Tokens, cny

_SHOPPER = 20_251_113
_EXPIRES = "2036-01-01T00:00:00+08:00"


class ReservationChapter:
    """Tells it over REST."""

    def __init__(self, rest: Rest, tokens: Tokens) -> None:
        """The way through the edge, and who speaks."""
        self._rest = rest
        self._tokens = tokens
        self._coupons: dict[str, Mapping[str, str]] = {}

    def steps(self) -> list[Step]:
        """Titles and what they do, in order."""
        return [
            ("A shopper has a voucher of 5.00 and a gift card of 100.00", self.issue),
            ("A till holds both for an order of 80.00: 5.00 off, 60.00 from the card, 15.00 to pay", self.reserve),
            ("What is held is not there for others: 40.00 of the card are available, the voucher is held", self.look),
            ("The order is paid: the till confirms, and each line's part is written down", self.confirm),
            ("Another order is given up: the hold is released", self.cancel),
            ("A cancellation overtakes its reservation: the late reservation is refused", self.cancel_first),
            ("A spend whose reply was lost is reversed: the balance is back, the late repeat refused", self.reverse),
            ("The journal tells all of it", self.show_journal),
        ]

    def issue(self) -> None:
        """One of each."""
        kinds: dict[str, dict[str, Any]] = {
            "cash_voucher": {"face_value": cny("5.00")},
            "gift_card": {"balance": cny("100.00")},
        }
        for kind, terms in kinds.items():
            body: dict[str, Any] = {
                "request_id": f"demo-held-{kind}",
                "name": f"Demo held {kind}",
                "terms": {kind: terms, "expires_at": _EXPIRES},
            }
            batch = self._rest.post("/api/v1/batches", body, token=self._tokens.operator).data["batch"]
            body = {"request_id": f"demo-held-issue-{kind}", "user_id": str(_SHOPPER), "quantity": 1}
            path = f"/api/v1/batches/{batch['batch_id']}/coupons:issue"
            (self._coupons[kind],) = self._rest.post(path, body, token=self._tokens.operator).data["coupons"]

    def reserve(self) -> None:
        """Two lines, of 50.00 and 30.00."""
        lines = [
            {"line_id": "tea", "unit_price": cny("25.00"), "quantity": 2},
            {"line_id": "cup", "unit_price": cny("30.00"), "quantity": 1},
        ]
        reply = self._reserve("demo-order-1", "80.00", "60.00", lines=lines)
        expect(reply["state"], "RESERVATION_STATE_HELD", "state")
        expect(reply["payable"], cny("15.00"), "payable")
        voucher = {part["line_id"]: part["deduction"]["amount_minor"] for part in reply["holds"][0]["lines"]}
        expect(voucher, {"tea": "313", "cup": "187"}, "the voucher's 5.00 over the lines")

    def look(self) -> None:
        """Another till asks."""
        shown = self._validate("gift_card", "40.01")
        expect(shown["refusal_reason"], "BALANCE_INSUFFICIENT", "reason")
        expect((shown["coupon"]["held"], shown["coupon"]["available"]), (cny("60.00"), cny("40.00")), "the card")
        expect(self._validate("gift_card", "40.00")["usable"], True, "40.00")
        expect(self._validate("cash_voucher", "40.00")["refusal_reason"], "COUPON_HELD", "reason")

    def confirm(self) -> None:
        """Two consumptions."""
        body = self._owned("demo-order-1", "demo-confirm-1")
        reply = self._rest.post("/api/v1/coupon/confirm", body, token=self._tokens.cashier)
        expect(reply.data["reservation"]["state"], "RESERVATION_STATE_CONFIRMED", "state")
        expect(len(reply.data["transactions"]), 2, "consumptions")
        expect(reply.data["transactions"][1]["balance_after"], cny("40.00"), "balance_after")
        again = self._rest.post("/api/v1/coupon/confirm", body, token=self._tokens.cashier)
        expect(again.text, reply.text, "the reply to the same request")

    def cancel(self) -> None:
        """10.00 of the card."""
        self._reserve("demo-order-2", "10.00", "10.00", voucher=False)
        body = self._owned("demo-order-2", "demo-cancel-2")
        reply = self._rest.post("/api/v1/coupon/cancel", body, token=self._tokens.cashier)
        expect(reply.data["state"], "RESERVATION_STATE_CANCELLED", "state")
        expect(self._validate("gift_card", "40.00")["usable"], True, "40.00")

    def cancel_first(self) -> None:
        """The empty rollback of a distributed transaction."""
        body = self._owned("demo-order-3", "demo-cancel-3")
        self._rest.post("/api/v1/coupon/cancel", body, token=self._tokens.cashier)
        refused = self._rest.post(
            "/api/v1/coupon/reserve",
            self._order("demo-order-3", "10.00", "10.00", voucher=False),
            token=self._tokens.cashier,
            status=400,
        )
        expect(refused.envelope["reason"], "RESERVATION_CANCELLED", "reason")

    def reverse(self) -> None:
        """25.00 of the card, by its code and Idempotency-Key."""
        spend = {"coupon_code": self._coupons["gift_card"]["code"], "merchant_id": MERCHANT, "amount": 25.00}
        self._rest.post("/api/v1/coupon/consume", spend, token=self._tokens.cashier, key="demo-lost-spend")
        body = {
            "request_id": "demo-reverse",
            "original_request_id": "demo-lost-spend",
            "merchant_id": MERCHANT,
            "code": self._coupons["gift_card"]["code"],
        }
        reply = self._rest.post("/api/v1/coupon/reverse", body, token=self._tokens.cashier)
        expect([row["deduction"] for row in reply.data["transactions"]], [cny("25.00")], "what was given back")
        late = self._rest.post(
            "/api/v1/coupon/consume", spend, token=self._tokens.cashier, key="demo-lost-spend", status=400
        )
        expect(late.envelope["reason"], "TRANSACTION_REVERSED", "reason")
        expect(self._validate("gift_card", "40.00")["usable"], True, "40.00")

    def show_journal(self) -> None:
        """Held, taken, held, released, spent, reversed."""
        path = f"/api/v1/coupons/{self._coupons['gift_card']['coupon_id']}/audit-events"
        events = self._rest.get(path, token=self._tokens.auditor).data["events"]
        kinds = [event["kind"].removeprefix("AUDIT_KIND_") for event in events]
        expect(
            kinds, ["ISSUED", "HELD", "CONSUMED", "HELD", "HOLD_RELEASED", "CONSUMED", "REVERSED"], "the journal's rows"
        )
        expect([event["seq"] for event in events], [str(seq) for seq in range(1, 8)], "the numbers of the rows")

    def _order(
        self, name: str, amount: str, part: str, *, voucher: bool = True, lines: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        card = {"coupon_id": self._coupons["gift_card"]["coupon_id"], "amount": cny(part)}
        first = [{"code": self._coupons["cash_voucher"]["code"]}] if voucher else []
        return {
            "request_id": f"{name}-reserve",
            "reservation_id": name,
            "merchant_id": MERCHANT,
            "order_id": name,
            "amount": cny(amount),
            "coupons": [*first, card],
            "lines": lines or [],
            "ttl_s": 600,
        }

    def _reserve(self, name: str, amount: str, part: str, **more: Any) -> Mapping[str, Any]:
        body = self._order(name, amount, part, **more)
        reply = self._rest.post("/api/v1/coupon/reserve", body, token=self._tokens.cashier)
        reservation: Mapping[str, Any] = reply.data["reservation"]
        return reservation

    def _owned(self, name: str, request_id: str) -> dict[str, str]:
        return {
            "request_id": request_id,
            "reservation_id": name,
            "merchant_id": MERCHANT,
            "user_id": str(_SHOPPER),
        }

    def _validate(self, kind: str, amount: str) -> Mapping[str, Any]:
        body = {"coupon_id": self._coupons[kind]["coupon_id"], "merchant_id": MERCHANT, "amount": cny(amount)}
        shown: Mapping[str, Any] = self._rest.post("/api/v1/coupon/validate", body, token=self._tokens.cashier).data
        return shown
