"""A chapter of the demonstration: an order is returned line by line, a card and a voucher are refunded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl.demo.calls import Rest, expect
from meshctl.demo.people import MERCHANT, Step, Tokens, cny

_SHOPPER = 20_251_116
_EXPIRES = "2036-01-01T00:00:00+08:00"
_ORDER = "demo-returned"


class RefundChapter:
    """Tells it over REST."""

    def __init__(self, rest: Rest, tokens: Tokens) -> None:
        """The way through the edge, and who speaks."""
        self._rest = rest
        self._tokens = tokens
        self._coupons: dict[str, str] = {}
        self._voucher_spend = ""
        self._card_spend = ""

    def steps(self) -> list[Step]:
        """Titles and what they do, in order."""
        return [
            ("A shopper has a 满减券, a gift card of 60.01 and a voucher that a refund replaces", self.issue),
            ("An order of 150.00 is paid: 20.00 off, 60.01 by card, the rest in cash", self.pay),
            (
                "A line comes back: 33.34 go to what had paid for it, cash among it",
                self.return_line,
            ),
            ("The rest comes back: coupon, card and cash close to the fen", self.return_rest),
            ("More than was paid is refused, with what is left", self.refund_too_much),
            ("A spend of the card is refunded in parts; the transaction shows what is left", self.refund_in_parts),
            ("A used voucher is refunded: the shopper gets a new one", self.refund_voucher),
            ("The journal tells USED → REFUNDED → ACTIVATED of the emptied card", self.show_journal),
        ]

    def issue(self) -> None:
        """One of each."""
        replaced = {"used_coupon": "USED_COUPON_POLICY_REISSUE_FRESH_EXPIRY", "fresh_days": 30}
        kinds: dict[str, dict[str, Any]] = {
            "threshold": {"threshold": {"min_amount": cny("100.00"), "reduce": cny("20.00")}},
            "gift_card": {"gift_card": {"balance": cny("60.01")}},
            "cash_voucher": {"cash_voucher": {"face_value": cny("30.00")}, "refund": replaced},
        }
        for kind, terms in kinds.items():
            body: dict[str, Any] = {
                "request_id": f"demo-refund-{kind}",
                "name": f"Demo refund {kind}",
                "terms": {**terms, "expires_at": _EXPIRES},
            }
            batch = self._rest.post("/api/v1/batches", body, token=self._tokens.operator).data["batch"]
            body = {"request_id": f"demo-refund-issue-{kind}", "user_id": str(_SHOPPER), "quantity": 1}
            path = f"/api/v1/batches/{batch['batch_id']}/coupons:issue"
            (issued,) = self._rest.post(path, body, token=self._tokens.operator).data["coupons"]
            self._coupons[kind] = issued["coupon_id"]

    def pay(self) -> None:
        """Three lines, of 100.00, 33.34 and 16.66."""
        reserve = {
            "request_id": "demo-refund-reserve",
            "reservation_id": _ORDER,
            "merchant_id": MERCHANT,
            "order_id": _ORDER,
            "amount": cny("150.00"),
            "coupons": [
                {"coupon_id": self._coupons["threshold"]},
                {"coupon_id": self._coupons["gift_card"], "amount": cny("60.01")},
            ],
            "lines": [
                {"line_id": name, "unit_price": cny(price), "quantity": 1}
                for name, price in (("kettle", "100.00"), ("tea", "33.34"), ("cup", "16.66"))
            ],
        }
        self._post("reserve", reserve)
        confirm = {
            "request_id": "demo-refund-confirm",
            "reservation_id": _ORDER,
            "merchant_id": MERCHANT,
            "user_id": str(_SHOPPER),
        }
        reservation = self._post("confirm", confirm)["reservation"]
        expect(reservation["payable"], cny("69.99"), "payable")

    def return_line(self) -> None:
        """The tea."""
        reply = self._return("demo-return-tea", lines=[{"line_id": "tea"}])
        expect(reply["refund"]["amount"], cny("33.34"), "amount")
        expect(reply["refund"]["cash"], cny("15.55"), "cash")
        parts = {part["coupon_id"]: part["amount"] for part in reply["refund"]["coupons"]}
        expect(parts[self._coupons["threshold"]], cny("4.45"), "what the threshold coupon had taken off the tea")
        expect(parts[self._coupons["gift_card"]], cny("13.34"), "what the card had paid of the tea")
        statuses = {coupon["coupon_id"]: coupon["status"] for coupon in reply["coupons"]}
        expect(statuses[self._coupons["threshold"]], "COUPON_STATUS_USED", "the threshold coupon")
        expect(statuses[self._coupons["gift_card"]], "COUPON_STATUS_ACTIVATED", "the card")

    def return_rest(self) -> None:
        """15.55 + 54.44 = 69.99."""
        reply = self._return("demo-return-rest")
        expect(reply["refund"]["cash"], cny("54.44"), "cash")
        expect({line["amount"]["amount_minor"] for line in reply["left"]}, {"0"}, "what is left of the lines")
        statuses = {coupon["coupon_id"]: coupon["status"] for coupon in reply["coupons"]}
        expect(statuses[self._coupons["threshold"]], "COUPON_STATUS_REFUNDED", "the threshold coupon")
        balances = {coupon["coupon_id"]: coupon["balance"] for coupon in reply["coupons"]}
        expect(balances[self._coupons["gift_card"]], cny("60.01"), "the card's balance")

    def refund_too_much(self) -> None:
        """A spend of 20.00."""
        spend = self._spend("gift_card", "20.00")
        self._card_spend = spend["transaction_id"]
        body = {"request_id": "demo-refund-more", "transaction_id": self._card_spend, "amount": cny("20.01")}
        refused = self._rest.post("/api/v1/coupon/refund", body, token=self._tokens.cashier, status=400)
        expect(refused.envelope["reason"], "REFUND_EXCEEDS_PAID", "reason")

    def refund_in_parts(self) -> None:
        """12.50 and 7.50 of 20.00."""
        for number, (amount, left) in enumerate((("12.50", "7.50"), ("7.50", "0.00"))):
            body = {
                "request_id": f"demo-refund-part-{number}",
                "transaction_id": self._card_spend,
                "amount": cny(amount),
            }
            expect(self._post("refund", body)["transaction"]["refundable"], cny(left), "refundable")
        shown = self._rest.get(f"/api/v1/transactions/{self._card_spend}", token=self._tokens.cashier)
        expect(shown.data["transaction"]["refunded"], cny("20.00"), "refunded")
        expect(len(shown.data["refunds"]), 2, "refunds")

    def refund_voucher(self) -> None:
        """It can be used in place of the old one."""
        self._voucher_spend = self._spend("cash_voucher", "50.00")["transaction_id"]
        body = {"request_id": "demo-refund-voucher", "transaction_id": self._voucher_spend}
        reply = self._post("refund", body)
        expect(reply["coupon"]["status"], "COUPON_STATUS_REFUNDED", "the old one")
        (part,) = reply["refund"]["coupons"]
        new = self._rest.get(f"/api/v1/coupons/{part['replacement_coupon_id']}", token=self._tokens.operator)
        expect(new.data["coupon"]["status"], "COUPON_STATUS_ACTIVATED", "the new one")
        expect(new.data["coupon"]["user_id"], str(_SHOPPER), "its owner")

    def show_journal(self) -> None:
        """Contra rows are negative, and name what they undo."""
        path = f"/api/v1/coupons/{self._coupons['gift_card']}/audit-events"
        events = self._rest.get(path, token=self._tokens.auditor).data["events"]
        kinds = [event["kind"].removeprefix("AUDIT_KIND_") for event in events]
        told = ["ISSUED", "HELD", "CONSUMED", "REFUNDED", "REACTIVATED", "REFUNDED", "CONSUMED", "REFUNDED", "REFUNDED"]
        expect(kinds, told, "the journal's rows")
        contra = [event for event in events if event["kind"] == "AUDIT_KIND_REFUNDED"]
        expect(
            [event["deduction"]["amount_minor"] for event in contra],
            ["-1334", "-4667", "-1250", "-750"],
            "what went back",
        )
        expect({event["original_transaction_id"] for event in contra[2:]}, {self._card_spend}, "what they undo")

    def _post(self, verb: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._rest.post(f"/api/v1/coupon/{verb}", body, token=self._tokens.cashier).data

    def _return(self, request_id: str, **lines: Any) -> Mapping[str, Any]:
        body = {"request_id": request_id, "merchant_id": MERCHANT, "order_id": _ORDER, **lines}
        return self._rest.post("/api/v1/orders:refund", body, token=self._tokens.cashier).data

    def _spend(self, kind: str, amount: str) -> Mapping[str, Any]:
        body = {
            "request_id": f"demo-refund-spend-{kind}",
            "coupon_id": self._coupons[kind],
            "merchant_id": MERCHANT,
            "amount": cny(amount),
        }
        reply = self._rest.post("/api/v1/coupons:consume", body, token=self._tokens.cashier)
        transaction: Mapping[str, Any] = reply.data["transaction"]
        return transaction
