"""A chapter of the demonstration: the audit trail holds, a row altered by hand is found, and the books agree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from couponmesh.coupon.v1 import coupon_service_pb2_grpc as coupon_grpc
from meshctl.audit import Verdict, describe, verify_scope
from meshctl.demo.calls import Grpc, Rest, expect
from meshctl.reconcile import reconcile_all
from meshctl.stack.stack import LocalStack

_SHARDS = 128
_ALTERATION = (
    "UPDATE `{schema}`.coupon_journal SET deduction_minor = {value} WHERE coupon_id = '{coupon_id}' AND seq = 2"
)


class AuditChapter:
    """Tells it of a gift card of which the story took 150.00 in its second row."""

    def __init__(
        self, rest: Rest, grpc: Grpc, auditor: str, *, console: Console, stack: LocalStack, card_id: Callable[[], str]
    ) -> None:
        """Both ways through the edge, an auditor's token, and the database, past all services."""
        self._rest = rest
        self._coupons = coupon_grpc.CouponServiceStub(grpc.channel)
        self._auditor = auditor
        self._console = console
        self._stack = stack
        self._card_id = card_id

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        """Titles and what they do, in order."""
        return [
            ("The auditor verifies every chain of hashes, over a gRPC stream per shard", self.verify_all),
            (
                "Somebody alters a row of the journal by hand in MariaDB: it is found, and which field it was",
                self.alter,
            ),
            ("The books agree: issued = available + held + consumed - refunded + expired + recalled", self.reconcile),
        ]

    def verify_all(self) -> None:
        """All 128 shards."""
        verdict = self._verify()
        text = f"  {verdict.rows} rows of {verdict.chains} chains, {verdict.transactions} transactions"
        self._console.print(text, style="green", highlight=False)
        expect(len(verdict.findings), 0, "the number of findings")
        expect(verdict.rows > 0, True, "having rows")

    def alter(self) -> None:
        """150.00 becomes 1.50, and back."""
        self._change(150)
        try:
            (finding,) = self._verify().findings
            self._console.print(f"  {describe(finding)}", style="bold red", highlight=False, markup=False)
            (difference,) = self._look()
            expect(difference, {"field": "deduction_minor", "stored": "150", "expected": "15000"}, "the finding")
        finally:
            self._change(15_000)
        expect(self._look(), [], "what is found after it was put right")

    def reconcile(self) -> None:
        """Every coupon with its journal, straight in the databases."""
        result = asyncio.run(reconcile_all(self._stack.layout))
        expect([each.problem for each in result.disagreements], [], "the differences")
        expect(result.agrees, True, "the books")
        self._console.print(f"  {result.coupons} coupons", style="green", highlight=False)

    def _verify(self) -> Verdict:
        verdict = Verdict()
        options = {"timeout": 9.0, "metadata": (("authorization", f"Bearer {self._auditor}"),)}
        for shard in range(_SHARDS):
            for _ in verify_scope(self._coupons, {"shard": shard}, verdict, lambda: options):
                pass
        return verdict

    def _look(self) -> list[Mapping[str, Any]]:
        """The differences that a REST caller is told of the card."""
        path = f"/api/v1/audit:verify?coupon_id={self._card_id()}"
        reply = self._rest.get(path, token=self._auditor)
        messages: Any = reply.envelope["data"]
        expect(messages[-1]["complete"], True, "complete")
        return [each for message in messages for finding in message["findings"] for each in finding["differences"]]

    def _change(self, deduction_minor: int) -> None:
        card_id = self._card_id()
        schema = "coupon_0" if int(card_id) % _SHARDS < _SHARDS // 2 else "coupon_1"
        statement = _ALTERATION.format(schema=schema, value=deduction_minor, coupon_id=card_id)
        self._console.print(f"  MariaDB> {statement}", style="cyan", highlight=False, markup=False)
        self._stack.mariadb.administer(statement)
