"""What refunds need of the store beyond `ports`: contra sums, lines of orders, and the refunds themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from coupon_svc.app.ports import TransactionRow, Unit, VersionedUpdate
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.refund import Cell, GivenBack, PaidLine


@dataclass(frozen=True, slots=True)
class RefundedPart:
    """What a refund gave back of one transaction, in fen."""

    original_transaction_id: str
    coupon_id: str
    amount_minor: int
    replacement_coupon_id: str | None = None


@dataclass(frozen=True, slots=True)
class RefundRow:
    """A refund: what it gave back by transaction, and by line and tender; amounts are fen and never zero."""

    shard: int
    refund_id: str
    merchant_id: str
    order_id: str
    caller: str
    request_id: str
    refund_time_ms: int
    coupons: tuple[RefundedPart, ...]
    cells: tuple[tuple[Cell, int], ...]


class RefundBook(Protocol):
    """The refunds of the coupon databases; what takes a unit runs in it, under the locks of all coupons concerned."""

    async def transactions_of_order(self, merchant_id: str, order_id: str, *, limit: int) -> Sequence[TransactionRow]:
        """Consumptions of an order over all databases, oldest first; at most `limit` of each."""

    async def locked_transactions_of_order(
        self, unit: Unit, merchant_id: str, order_id: str, *, limit: int
    ) -> Sequence[TransactionRow]:
        """The same in the unit's database, as committed now."""

    async def given_back(self, unit: Unit, transaction_ids: Sequence[str]) -> Mapping[str, GivenBack]:
        """What contra rows gave back of transactions so far; absent where nothing."""

    async def paid_lines(self, unit: Unit, keys: Sequence[tuple[int, str]]) -> Mapping[str, Sequence[PaidLine]]:
        """Lines of (shard, transaction_id), in their order; absent where it was consumed without."""

    async def order_amounts(self, unit: Unit, rows: Sequence[TransactionRow]) -> Mapping[str, int]:
        """What the orders of confirmed reservations amount to, by transaction; absent for plain consumptions."""

    async def refunded_lines(self, unit: Unit, transaction_ids: Sequence[str]) -> Mapping[Cell, int]:
        """What was given back of transactions so far, by line."""

    async def refunded_cash(self, unit: Unit, shard: int, merchant_id: str, order_id: str) -> Mapping[Cell, int]:
        """What was given back of an order in cash so far, by line."""

    async def ended_by(self, unit: Unit, shard: int, coupon_id: str) -> tuple[JournalKind, int]:
        """The kind of the journal row that made a coupon EXPIRED, and the status before it."""

    async def store_coupons(self, unit: Unit, updates: Sequence[VersionedUpdate]) -> None:
        """Stores new states with their periods; raises when a row's version is not the one read."""

    async def insert(self, unit: Unit, refund: RefundRow) -> None:
        """Adds a refund."""

    async def refunded_of(self, transaction: TransactionRow) -> GivenBack:
        """What contra rows gave back of a transaction so far, without locks."""

    async def refunds_of(self, transaction: TransactionRow, *, limit: int) -> Sequence[RefundRow]:
        """The refunds of a transaction, oldest first, without locks."""

    async def get(self, refund_id: str) -> RefundRow | None:
        """One refund."""

    async def of_request(self, caller: str, request_id: str) -> RefundRow | None:
        """The refund that a caller's request made, over all databases."""
