"""A chapter of the demonstration: the best combination for a cart, and coupons for some goods only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl.demo.calls import Rest, expect
from meshctl.demo.people import MERCHANT, Step, Tokens, cny

# An owner of its own, so that the coupons of other chapters don't join in.
_SHOPPER = 20_251_120
_EXPIRES = "2036-01-01T00:00:00+08:00"
_LINES: list[dict[str, Any]] = [
    {
        "line_id": "tea",
        "category": "drinks",
        "unit_price": cny("100.00"),
        "quantity": 2,
    },
    {
        "line_id": "book",
        "category": "books",
        "unit_price": cny("100.00"),
        "quantity": 1,
    },
]


class QuoteChapter:
    """Tells it over REST; a reply that is not as it must be ends it."""

    def __init__(self, rest: Rest, tokens: Tokens) -> None:
        """The way through the edge, and who speaks."""
        self._rest = rest
        self._tokens = tokens
        self._coupons: dict[str, Mapping[str, str]] = {}

    def steps(self) -> list[Step]:
        """Titles and what they do, in order."""
        return [
            ("A shopper gets coupons of three levels and a gift card of 100.00", self.issue),
            ("A quote for 300.00 finds the best combination: 75.00 off, 100.00 by card, 125.00 to pay", self.quote),
            ("ExplainCoupon says all that is in the way, and what would help", self.explain),
            ("A coupon for drinks only is consumed with the order's lines", self.consume),
        ]

    def issue(self) -> None:
        """One batch and one coupon each."""
        batches: dict[str, dict[str, Any]] = {
            "drinks": {
                "discount": {"discount_rate": "0.9"},
                "categories": ["drinks"],
                "stacking": {"level": "COUPON_LEVEL_ITEM"},
            },
            "shop": {
                "threshold": {"min_amount": cny("200.00"), "reduce": cny("30.00")},
                "stacking": {"level": "COUPON_LEVEL_SHOP"},
            },
            "platform": {"discount": {"discount_rate": "0.9"}},
            "lesser": {"cash_voucher": {"face_value": cny("1.00")}},
            "card": {"gift_card": {"balance": cny("100.00")}},
        }
        for name, terms in batches.items():
            body = {"request_id": f"quote-batch-{name}", "name": name, "terms": {**terms, "expires_at": _EXPIRES}}
            batch = self._rest.post("/api/v1/batches", body, token=self._tokens.operator).data["batch"]
            path = f"/api/v1/batches/{batch['batch_id']}/coupons:issue"
            request = {"request_id": f"quote-issue-{name}", "user_id": str(_SHOPPER), "quantity": 1}
            (self._coupons[name],) = self._rest.post(path, request, token=self._tokens.operator).data["coupons"]

    def quote(self) -> None:
        """A cashier names the codes that the shopper shows."""
        body = {
            "merchant_id": MERCHANT,
            "coupons": [{"code": coupon["code"]} for coupon in self._coupons.values()],
            "lines": _LINES,
        }
        data = self._rest.post("/api/v1/coupon/quote", body, token=self._tokens.cashier).data
        taken = [(each["coupon_id"], each["deduction"]["amount_minor"]) for each in data["coupons"]]
        names = {coupon["coupon_id"]: name for name, coupon in self._coupons.items()}
        wanted = [("drinks", "2000"), ("shop", "3000"), ("platform", "2500"), ("card", "10000")]
        expect([(names[coupon_id], amount) for coupon_id, amount in taken], wanted, "what each coupon takes")
        expect(data["payable"], cny("125.00"), "payable")
        (unused,) = data["unused"]
        expect((names[unused["coupon_id"]], unused["reason"]), ("lesser", "STACKING_GROUP_TAKEN"), "the unused coupon")

    def explain(self) -> None:
        """The drinks coupon, for a book."""
        body = {
            "coupon_id": self._coupons["drinks"]["coupon_id"],
            "merchant_id": MERCHANT,
            "amount": cny("100.00"),
            "lines": _LINES[1:],
        }
        data = self._rest.post("/api/v1/coupon/explain", body, token=self._tokens.cashier).data
        expect([failure["reason"] for failure in data["failures"]], ["LINES_NOT_ELIGIBLE"], "the failures")

    def consume(self) -> None:
        """Without lines it is refused, with lines it takes 10 % of the drinks."""
        body: dict[str, Any] = {
            "request_id": "quote-consume",
            "coupon_id": self._coupons["drinks"]["coupon_id"],
            "merchant_id": MERCHANT,
            "order_id": "order-quote",
            "amount": cny("300.00"),
        }
        refused = self._rest.post("/api/v1/coupons:consume", body, token=self._tokens.cashier, status=400)
        expect(refused.envelope["reason"], "LINES_REQUIRED", "reason")
        body["lines"] = _LINES
        data = self._rest.post("/api/v1/coupons:consume", body, token=self._tokens.cashier).data
        expect(data["lines"], [{"line_id": "tea", "deduction": cny("20.00")}], "what is taken of each line")
