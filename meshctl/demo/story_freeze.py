"""A chapter of the demonstration: coupons and accounts are frozen, expire, are capped, and a batch is recalled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshctl.demo.calls import Rest, expect
from meshctl.demo.people import MERCHANT, Step, Tokens, cny

_SHOPPER = 20_251_112


class FreezeChapter:
    """Tells it over REST."""

    def __init__(self, rest: Rest, tokens: Tokens) -> None:
        """The way through the edge, and who speaks."""
        self._rest = rest
        self._tokens = tokens
        self._batch_id = ""
        self._coupons: list[Mapping[str, str]] = []

    def steps(self) -> list[Step]:
        """Titles and what they do, in order."""
        return [
            ("A batch of vouchers of 20.00, three uses per user, 50.00 in all, seven days from the claim", self.issue),
            ("Risk freezes one coupon, with a reason: it cannot be used until it is unfrozen", self.freeze_coupon),
            ("Risk freezes the account: one row, and every coupon of it shows as frozen", self.freeze_account),
            ("Unfreezing the account restores exactly what was", self.unfreeze_account),
            ("The batch's spend cap: two vouchers fit into 50.00, the third does not", self.reach_cap),
            ("The batch was a mistake: the operator sees what is at stake, then recalls it", self.recall),
        ]

    def issue(self) -> None:
        """Three coupons for one shopper."""
        body: dict[str, Any] = {
            "request_id": "demo-capped",
            "name": "Demo capped vouchers",
            "terms": {"cash_voucher": {"face_value": cny("20.00")}, "days_after_claim": 7},
            "caps": {"uses_per_user": 3, "spend_cap": cny("50.00")},
        }
        reply = self._rest.post("/api/v1/batches", body, token=self._tokens.operator)
        self._batch_id = reply.data["batch"]["batch_id"]
        path = f"/api/v1/batches/{self._batch_id}/coupons:issue"
        body = {"request_id": "demo-capped-issue", "user_id": str(_SHOPPER), "quantity": 3}
        self._coupons = self._rest.post(path, body, token=self._tokens.operator).data["coupons"]
        expect(len(self._coupons), 3, "the number of coupons")
        expect(bool(self._look(0)["expires_at"]), True, "having an end")

    def freeze_coupon(self) -> None:
        """The first of them."""
        path = f"/api/v1/coupons/{self._coupons[0]['coupon_id']}"
        reply = self._rest.post(
            f"{path}:freeze", {"request_id": "demo-freeze", "reason": "reported stolen"}, token=self._tokens.risk
        )
        expect(reply.data["coupon"]["status"], "COUPON_STATUS_FROZEN", "status")
        expect(self._consume(0, status=400)["reason"], "COUPON_FROZEN", "reason")

    def freeze_account(self) -> None:
        """While it is frozen, nothing is taken."""
        path = f"/api/v1/users/{_SHOPPER}:freeze"
        reply = self._rest.post(path, {"request_id": "demo-freeze-account", "reason": "刷券"}, token=self._tokens.risk)
        expect(reply.data["account"]["status"], "ACCOUNT_STATUS_FROZEN", "status")
        expect(self._look(1)["status"], "COUPON_STATUS_FROZEN", "status")
        expect(self._consume(1, status=400)["reason"], "ACCOUNT_FROZEN", "reason")

    def unfreeze_account(self) -> None:
        """What was frozen on its own stays frozen."""
        path = f"/api/v1/users/{_SHOPPER}:unfreeze"
        self._rest.post(path, {"request_id": "demo-unfreeze-account", "reason": "cleared"}, token=self._tokens.risk)
        expect(self._look(0)["status"], "COUPON_STATUS_FROZEN", "status of the coupon that was frozen on its own")
        expect(self._look(1)["status"], "COUPON_STATUS_ACTIVATED", "status of another")
        path = f"/api/v1/coupons/{self._coupons[0]['coupon_id']}:unfreeze"
        self._rest.post(path, {"request_id": "demo-unfreeze", "reason": "found again"}, token=self._tokens.risk)

    def reach_cap(self) -> None:
        """40.00 of 50.00 are taken, and 20.00 more do not fit whole."""
        for number in (0, 1):
            expect(self._consume(number)["data"]["deduction"], cny("20.00"), "deduction")
        expect(self._consume(2, status=400)["reason"], "SPEND_CAP_REACHED", "reason")

    def recall(self) -> None:
        """One coupon of 20.00 is left to be voided."""
        path = f"/api/v1/batches/{self._batch_id}:recall"
        body: dict[str, Any] = {"request_id": "demo-recall", "reason": "a wrong face value"}
        seen = self._rest.post(path, body, token=self._tokens.operator).data
        expect(seen["stake"]["coupons"], "1", "coupons at stake")
        expect(seen["stake"]["money"], cny("20.00"), "money at stake")
        body["expected_stake"] = seen["stake"]
        reply = self._rest.post(path, body, token=self._tokens.operator)
        expect(reply.data["batch"]["recall"]["state"], "BATCH_RECALL_STATE_RUNNING", "state")
        expect(self._consume(2, status=400)["reason"], "BATCH_RECALLED", "reason")

    def _look(self, number: int) -> Mapping[str, Any]:
        path = f"/api/v1/coupons/{self._coupons[number]['coupon_id']}"
        coupon: Mapping[str, Any] = self._rest.get(path, token=self._tokens.operator).data["coupon"]
        return coupon

    def _consume(self, number: int, *, status: int = 200) -> Mapping[str, Any]:
        body = {"coupon_code": self._coupons[number]["code"], "merchant_id": MERCHANT, "amount": 100.00}
        return self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier, status=status).envelope
