"""The story the demonstration tells: four kinds of coupons, issued, consumed, refused and accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

from couponmesh.coupon.v1 import cashier_service_pb2, cashier_service_pb2_grpc, coupon_service_pb2
from couponmesh.coupon.v1 import coupon_service_pb2_grpc as coupon_grpc
from couponmesh.type.v1 import money_pb2
from meshctl.demo.calls import Grpc, Rest, UnexpectedReplyError, expect
from meshctl.demo.people import MERCHANT, Step, Tokens, cny
from meshctl.demo.story_audit import AuditChapter
from meshctl.demo.story_freeze import FreezeChapter
from meshctl.demo.story_quote import QuoteChapter
from meshctl.demo.story_refunds import RefundChapter
from meshctl.demo.story_reservations import ReservationChapter
from meshctl.stack.stack import LocalStack

SHOPPER = 20_251_111
CODE = "7XK9-B2T4"
# The request as cashier systems send it, byte for byte.
GIVEN_REQUEST = '{"coupon_code":"7XK9-B2T4","merchant_id":"10086","amount":150.00}'
EXPIRES = "2036-01-01T00:00:00+08:00"


def _yuan(money: Mapping[str, str]) -> str:
    return f"{Decimal(money['amount_minor']) / 100:.2f}"


class Story:
    """Tells it, step by step; a reply that is not as it must be ends it."""

    def __init__(self, rest: Rest, grpc: Grpc, tokens: Tokens, console: Console, stack: LocalStack) -> None:
        """Both ways through the edge, and what lies behind it."""
        self._stack = stack
        self._rest = rest
        self._grpc = grpc
        self._coupons = coupon_grpc.CouponServiceStub(grpc.channel)
        self._cashier = cashier_service_pb2_grpc.CashierServiceStub(grpc.channel)
        self._tokens = tokens
        self._console = console
        self._batches: dict[str, str] = {}
        self._issued: dict[str, Mapping[str, str]] = {}
        self._card_id = ""

    def tell(self) -> int:
        """Runs every step and returns how many there were.

        Raises:
            UnexpectedReplyError: a reply is not as it must be; names the step.
        """
        steps: list[Step] = [
            ("An operator makes a batch of each kind", self.make_batches),
            (f"The operator imports the code {CODE} of another system as a gift card of 500.00", self.import_code),
            ("A cashier sends the given request, byte for byte, over HTTPS", self.send_given_request),
            ("The operator issues one coupon of each other kind to a shopper", self.issue),
            ("折扣券, 20 % off at most 500.00, over REST: 300.00 becomes 240.00", self.consume_discount),
            ("满减券, 20.00 off from 100.00, over native gRPC: 150.00 becomes 130.00", self.consume_threshold),
            ("代金券, face value 30.00, over native gRPC: 12.50 becomes 0.00, no change given", self.consume_voucher),
            ("礼品卡: 350.00 left, another 200.00 is taken", self.spend_card_in_part),
            ("An overdraft is refused and takes nothing", self.overdraw),
            ("A cashier repeats a request whose reply was lost: same reply, taken once", self.replay),
            ("The same key for another amount is refused", self.reuse_key),
            ("A coupon cannot be spent twice", self.spend_twice),
            ("A mistyped code is recognised without a query", self.mistype),
            ("Below the minimum nothing happens, and the coupon stays", self.below_minimum),
            ("An auditor reads the gift card's journal", self.show_journal),
            *ReservationChapter(self._rest, self._tokens).steps(),
            *FreezeChapter(self._rest, self._tokens).steps(),
            *RefundChapter(self._rest, self._tokens).steps(),
            *QuoteChapter(self._rest, self._tokens).steps(),
            *AuditChapter(
                self._rest,
                self._grpc,
                self._tokens.auditor,
                console=self._console,
                stack=self._stack,
                card_id=lambda: self._card_id,
            ).steps(),
        ]
        for number, (title, step) in enumerate(steps, start=1):
            self._console.rule(f"[bold]{number}. {title}", align="left")
            try:
                step()
            except UnexpectedReplyError as error:
                raise UnexpectedReplyError(f"step {number} ({title}): {error}") from error
        return len(steps)

    def make_batches(self) -> None:
        """One batch each, over REST."""
        kinds: dict[str, dict[str, Any]] = {
            "discount": {"discount_rate": "0.8", "max_deduction": cny("500.00")},
            "threshold": {"min_amount": cny("100.00"), "reduce": cny("20.00")},
            "cash_voucher": {"face_value": cny("30.00")},
            "gift_card": {"balance": cny("500.00")},
        }
        for kind, terms in kinds.items():
            body = {
                "request_id": f"demo-batch-{kind}",
                "name": f"Demo {kind}",
                "terms": {kind: terms, "expires_at": EXPIRES},
                "total_quantity": "1000",
            }
            reply = self._rest.post("/api/v1/batches", body, token=self._tokens.operator)
            self._batches[kind] = reply.data["batch"]["batch_id"]

    def import_code(self) -> None:
        """The given code belongs to the shopper from here on."""
        path = f"/api/v1/batches/{self._batches['gift_card']}/codes:import"
        body = {"request_id": "demo-import", "codes": [{"code": CODE, "user_id": str(SHOPPER)}]}
        reply = self._rest.post(path, body, token=self._tokens.operator)
        (self._card_id,) = reply.data["coupon_ids"]

    def send_given_request(self) -> None:
        """150.00 of 500.00."""
        reply = self._rest.post("/api/v1/coupon/consume", GIVEN_REQUEST, token=self._tokens.cashier)
        expect(reply.data["transaction_id"][:2], "TX", "the beginning of transaction_id")
        expect(reply.data["balance_after"], cny("350.00"), "balance_after")

    def issue(self) -> None:
        """Over REST; the reply shows the codes."""
        for kind in ("discount", "threshold", "cash_voucher"):
            path = f"/api/v1/batches/{self._batches[kind]}/coupons:issue"
            body = {"request_id": f"demo-issue-{kind}", "user_id": str(SHOPPER), "quantity": 1}
            reply = self._rest.post(path, body, token=self._tokens.operator)
            (self._issued[kind],) = reply.data["coupons"]

    def consume_discount(self) -> None:
        """CashierService over REST."""
        body = {"coupon_code": self._issued["discount"]["code"], "merchant_id": MERCHANT, "amount": 300.00}
        reply = self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier)
        expect(reply.data["deduction"], cny("60.00"), "deduction")
        expect(reply.data["payable"], cny("240.00"), "payable")
        expect(reply.data["status"], "COUPON_STATUS_USED", "status")

    def consume_threshold(self) -> None:
        """CouponService over native gRPC, by code."""
        request = coupon_service_pb2.ConsumeCouponRequest(
            request_id="demo-threshold",
            code=self._issued["threshold"]["code"],
            merchant_id=MERCHANT,
            order_id="order-1",
            amount=money_pb2.Money(currency_code="CNY", amount_minor=15_000),
        )
        reply = self._grpc.call(self._coupons.ConsumeCoupon, request, token=self._tokens.cashier)
        expect(reply.transaction.deduction.amount_minor, 2_000, "deduction")
        expect(reply.transaction.payable.amount_minor, 13_000, "payable")

    def consume_voucher(self) -> None:
        """CouponService over native gRPC, by id."""
        request = coupon_service_pb2.ConsumeCouponRequest(
            request_id="demo-voucher",
            coupon_id=self._issued["cash_voucher"]["coupon_id"],
            merchant_id=MERCHANT,
            order_id="order-2",
            amount=money_pb2.Money(currency_code="CNY", amount_minor=1_250),
        )
        reply = self._grpc.call(self._coupons.ConsumeCoupon, request, token=self._tokens.cashier)
        expect(reply.transaction.deduction.amount_minor, 1_250, "deduction")
        expect(reply.transaction.payable.amount_minor, 0, "payable")

    def spend_card_in_part(self) -> None:
        """CashierService over native gRPC."""
        request = cashier_service_pb2.ConsumeRequest(coupon_code=CODE, merchant_id=MERCHANT, amount=200.00)
        reply = self._grpc.call(self._cashier.Consume, request, token=self._tokens.cashier)
        expect(reply.balance_after.amount_minor, 15_000, "balance_after")

    def overdraw(self) -> None:
        """150.01 of 150.00."""
        body = {"coupon_code": CODE, "merchant_id": MERCHANT, "amount": 150.01}
        reply = self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier, status=400)
        expect(reply.envelope["reason"], "BALANCE_INSUFFICIENT", "reason")

    def replay(self) -> None:
        """Twice the same Idempotency-Key."""
        body = {"coupon_code": CODE, "merchant_id": MERCHANT, "amount": 50.00}
        first, second = (
            self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier, key="till-7-receipt-4711")
            for _ in range(2)
        )
        expect(second.text, first.text, "the second reply")
        expect(second.data["balance_after"], cny("100.00"), "balance_after")

    def reuse_key(self) -> None:
        """The key of the step before, another amount."""
        body = {"coupon_code": CODE, "merchant_id": MERCHANT, "amount": 60.00}
        reply = self._rest.post(
            "/api/v1/coupon/consume", body, token=self._tokens.cashier, key="till-7-receipt-4711", status=400
        )
        expect(reply.envelope["reason"], "IDEMPOTENCY_KEY_REUSED", "reason")

    def spend_twice(self) -> None:
        """The voucher of before."""
        request = coupon_service_pb2.ConsumeCouponRequest(
            request_id="demo-voucher-again",
            code=self._issued["cash_voucher"]["code"],
            merchant_id=MERCHANT,
            amount=money_pb2.Money(currency_code="CNY", amount_minor=1_250),
        )
        refusal = self._grpc.refused(self._coupons.ConsumeCoupon, request, token=self._tokens.cashier)
        expect(refusal, ("FAILED_PRECONDITION", "COUPON_USED"), "the refusal")

    def mistype(self) -> None:
        """One wrong letter."""
        code = self._issued["discount"]["code"]
        typo = ("3" if code[0] != "3" else "4") + code[1:]
        body = {"coupon_code": typo, "merchant_id": MERCHANT, "amount": 10.00}
        reply = self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier, status=400)
        expect(reply.envelope["reason"], "CODE_MISTYPED", "reason")

    def below_minimum(self) -> None:
        """A new threshold coupon, 99.99."""
        path = f"/api/v1/batches/{self._batches['threshold']}/coupons:issue"
        body: dict[str, Any] = {"request_id": "demo-issue-minimum", "user_id": str(SHOPPER), "quantity": 1}
        (coupon,) = self._rest.post(path, body, token=self._tokens.operator).data["coupons"]
        body = {"coupon_code": coupon["code"], "merchant_id": MERCHANT, "amount": 99.99}
        refused = self._rest.post("/api/v1/coupon/consume", body, token=self._tokens.cashier, status=400)
        expect(refused.envelope["reason"], "BELOW_MIN_AMOUNT", "reason")
        shown = self._rest.get(f"/api/v1/coupons/{coupon['coupon_id']}", token=self._tokens.operator)
        expect(shown.data["coupon"]["status"], "COUPON_STATUS_ACTIVATED", "status")

    def show_journal(self) -> None:
        """Each row continues the hash of the one before; the balance falls from 500.00 to 100.00."""
        path = f"/api/v1/coupons/{self._card_id}/audit-events"
        events = self._rest.get(path, token=self._tokens.auditor).data["events"]
        table = Table("seq", "kind", "status", "taken", "balance", "transaction", "hash", box=None)
        for event in events:
            table.add_row(
                event["seq"],
                event["kind"].removeprefix("AUDIT_KIND_"),
                event["status_after"].removeprefix("COUPON_STATUS_"),
                _yuan(event["deduction"]),
                _yuan(event["balance_after"]),
                event["transaction_id"] or "-",
                f"{event['hash'][:12]}…",
            )
        self._console.print(table)
        balances = [event["balance_after"]["amount_minor"] for event in events]
        expect(balances, ["50000", "35000", "15000", "10000"], "the balances in the journal")
        expect([event["seq"] for event in events], ["1", "2", "3", "4"], "the numbers of the rows")
        chain = [event["prev_hash"] for event in events[1:]]
        expect(chain, [event["hash"] for event in events[:-1]], "the chain of hashes")
