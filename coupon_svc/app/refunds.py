"""Refunds transactions and orders: contra rows in the journal, balances put back, and what is to be paid back in cash.

All that a refund depends on is read again under the locks of every coupon that paid, so refunds, consumes and reversals
of the same money follow one another, and what is refunded never sums to more than was paid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.giving_back import GiveBack, Knowledge, Paid, Refunded, RefundedTransaction
from coupon_svc.app.ports import Call, Clock, Store, TransactionRow, Unit
from coupon_svc.app.refund_ports import RefundBook, RefundRow
from coupon_svc.app.requests import replay, run_once
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.refund import (
    Cells,
    GivenBack,
    Tender,
    WantedLine,
    by_tender,
    left_cells,
    paid_cells,
    refund_of_lines,
    refund_of_transaction,
)
from coupon_svc.domain.terms import GiftCard
from meshkit.errors import MeshError

# An order that more transactions paid for is refunded transaction by transaction.
MAX_ORDER_TRANSACTIONS = 100
MAX_SHOWN_REFUNDS = 100

Encode = Callable[[Refunded], bytes]


class Refunds:
    """The refunding use cases."""

    def __init__(
        self,
        *,
        store: Store,
        book: RefundBook,
        directory: CouponDirectory,
        batches: BatchCache,
        give_back: GiveBack,
        clock: Clock,
    ) -> None:
        """All adapters arrive here; `give_back` writes what was decided."""
        self._store = store
        self._book = book
        self._directory = directory
        self._batches = batches
        self._give_back = give_back
        self._clock = clock

    async def transaction(
        self, call: Call, *, transaction_id: str, amount_minor: int | None, only_merchant: str, encode: Encode
    ) -> bytes:
        """Gives back `amount_minor` fen of a consumption, or all that is left of it; gives the encoded reply.

        Raises:
            MeshError: TRANSACTION_NOT_FOUND, also for another merchant's with `only_merchant`; REFUND_EXCEEDS_PAID,
                ALREADY_REFUNDED, REFUND_INDIVISIBLE, REFUND_CARD_EXPIRED, IDEMPOTENCY_KEY_REUSED.
        """
        row = await self._store.get_transaction(transaction_id)
        if row is None or (only_merchant and row.merchant_id != only_merchant):
            raise MeshError("TRANSACTION_NOT_FOUND")
        knowledge = await self._knowledge([row])

        async def work(unit: Unit) -> bytes:
            coupons = await self._lock(unit, [row])
            earlier = await self._recorded_since(unit, call, row.shard)
            if earlier is not None:
                return earlier
            paid = await self._paid(unit, [row], coupons, knowledge, cash={})
            if not paid.rows:
                raise MeshError("ALREADY_REFUNDED", of=row.transaction_id)
            own = {cell: minor for cell, minor in paid.left.items() if cell.tender == row.transaction_id}
            given = refund_of_transaction(own, amount_minor, of=row.transaction_id)
            terms = knowledge.terms[coupons[row.coupon_id].terms_id]
            left_minor = sum(own.values())
            if not isinstance(terms.kind, GiftCard) and sum(given.values()) != left_minor:
                raise MeshError("REFUND_INDIVISIBLE", coupon_id=row.coupon_id, left=format_yuan(left_minor))
            return encode(await self._give_back(unit, call, paid, given, knowledge))

        fenced = self._give_back.fenced(row.shard, knowledge)
        return await run_once(self._store, call.key(row.shard), call.request_hash, self._clock, work, fenced=fenced)

    async def order(
        self, call: Call, *, merchant_id: str, order_id: str, lines: Sequence[WantedLine], encode: Encode
    ) -> bytes:
        """Refunds lines of an order, or all that is left of it, to whatever paid for them; gives the encoded reply.

        Raises:
            MeshError: ORDER_NOT_FOUND, ORDER_NOT_REFUNDABLE, ORDER_LINE_NOT_FOUND, REFUND_EXCEEDS_PAID,
                ALREADY_REFUNDED, REFUND_CARD_EXPIRED, COUPON_BUSY, IDEMPOTENCY_KEY_REUSED.
        """
        limit = MAX_ORDER_TRANSACTIONS + 1
        rows = await self._book.transactions_of_order(merchant_id, order_id, limit=limit)
        if not rows:
            raise MeshError("ORDER_NOT_FOUND", merchant_id=merchant_id, order_id=order_id)
        earlier = await self._answered(call, rows)
        if earlier is not None:
            return earlier
        _check_refundable(rows, order_id)
        first = rows[0]
        knowledge = await self._knowledge(rows)

        async def work(unit: Unit) -> bytes:
            coupons = await self._lock(unit, rows)
            earlier = await self._recorded_since(unit, call, first.shard)
            if earlier is not None:
                return earlier
            now_paid = await self._book.locked_transactions_of_order(unit, merchant_id, order_id, limit=limit)
            for row in now_paid:
                if row.coupon_id not in coupons:
                    # It was consumed since; the retry locks it as well.
                    raise MeshError("COUPON_BUSY", coupon_id=row.coupon_id)
            cash = await self._book.refunded_cash(unit, first.shard, merchant_id, order_id)
            paid = await self._paid(unit, now_paid, coupons, knowledge, cash=cash)
            if not paid.rows:
                raise MeshError("ORDER_NOT_FOUND", merchant_id=merchant_id, order_id=order_id)
            given = refund_of_lines(paid.left, lines, order_id=order_id)
            return encode(await self._give_back(unit, call, paid, given, knowledge))

        fenced = self._give_back.fenced(first.shard, knowledge)
        return await run_once(self._store, call.key(first.shard), call.request_hash, self._clock, work, fenced=fenced)

    async def of_transaction(self, row: TransactionRow) -> tuple[RefundedTransaction, Sequence[RefundRow]]:
        """What was refunded of a consumption so far, and by which refunds."""
        refunds = await self._book.refunds_of(row, limit=MAX_SHOWN_REFUNDS)
        return RefundedTransaction.after(row, await self._book.refunded_of(row)), refunds

    async def refund(self, *, refund_id: str, caller: str, request_id: str, only_merchant: str) -> RefundRow | None:
        """A refund by its id or by the request that made it; None when there is none, or only another merchant's."""
        if refund_id:
            found = await self._book.get(refund_id)
        else:
            found = await self._book.of_request(caller, request_id) if request_id else None
        return None if found is None or (only_merchant and found.merchant_id != only_merchant) else found

    # --- before the locks ---

    async def _knowledge(self, rows: Sequence[TransactionRow]) -> Knowledge:
        ids = {row.coupon_id for row in rows}
        facts = await asyncio.gather(*(self._directory.by_id(coupon_id) for coupon_id in sorted(ids)))
        terms = await self._batches.terms(fact.terms_id for fact in facts)
        return Knowledge(terms, await self._batches.batches(fact.batch_id for fact in facts))

    async def _answered(self, call: Call, rows: Sequence[TransactionRow]) -> bytes | None:
        """What this request was answered, in whichever shard, even if other coupons paid for the order since."""
        for shard in sorted({row.shard for row in rows}):
            key = call.key(shard)
            recorded = (await self._store.recorded([key])).get(key)
            if recorded is not None:
                return replay(recorded, key, call.request_hash)
        return None

    # --- under the locks ---

    async def _lock(self, unit: Unit, rows: Sequence[TransactionRow]) -> Mapping[str, Coupon]:
        # A frozen account gets its money back and stays frozen.
        await unit.frozen_accounts({(row.shard, row.user_id) for row in rows})
        return await unit.lock_coupons({(row.shard, row.coupon_id) for row in rows})

    async def _recorded_since(self, unit: Unit, call: Call, shard: int) -> bytes | None:
        """The reply of a twin that was faster. Recording it once more is refused, and the rerun then replays it."""
        key = call.key(shard)
        recorded = (await unit.recorded([key])).get(key)
        return None if recorded is None else replay(recorded, key, call.request_hash)

    async def _paid(
        self,
        unit: Unit,
        rows: Sequence[TransactionRow],
        coupons: Mapping[str, Coupon],
        knowledge: Knowledge,
        *,
        cash: Cells,
    ) -> Paid:
        ids = [row.transaction_id for row in rows]
        given_back = await self._book.given_back(unit, ids)
        lines = await self._book.paid_lines(unit, [(row.shard, row.transaction_id) for row in rows])
        order_amounts = await self._book.order_amounts(unit, rows)
        refunded = {**await self._book.refunded_lines(unit, ids), **cash}
        standing = []
        tenders = []
        for row in rows:
            given = given_back.get(row.transaction_id, GivenBack())
            if given.deduction_minor != given.refunded_minor:
                # Reversed: as if it had never been.
                continue
            standing.append(row)
            terms = knowledge.terms[coupons[row.coupon_id].terms_id]
            tenders.append(
                Tender(
                    transaction_id=row.transaction_id,
                    deduction_minor=row.deduction_minor,
                    order_minor=order_amounts.get(
                        row.transaction_id, 0 if isinstance(terms.kind, GiftCard) else row.amount_minor
                    ),
                    lines=tuple(lines.get(row.transaction_id, ())),
                )
            )
        left = left_cells(paid_cells(tenders), refunded)
        _check_journal(standing, given_back, left)
        return Paid(standing, given_back, left, coupons)


def _check_refundable(rows: Sequence[TransactionRow], order_id: str) -> None:
    if len(rows) > MAX_ORDER_TRANSACTIONS:
        raise MeshError(
            "ORDER_NOT_REFUNDABLE", order_id=order_id, problem=f"it has more than {MAX_ORDER_TRANSACTIONS} transactions"
        )
    if len({row.user_id for row in rows}) > 1:
        raise MeshError("ORDER_NOT_REFUNDABLE", order_id=order_id, problem="coupons of several users paid for it")


def _check_journal(rows: Sequence[TransactionRow], given_back: Mapping[str, GivenBack], left: Cells) -> None:
    """The journal decides what was given back; the lines must say the same."""
    by_lines = by_tender(left)
    for row in rows:
        given = given_back.get(row.transaction_id, GivenBack())
        if by_lines[row.transaction_id] != row.deduction_minor - given.deduction_minor:
            raise LookupError(f"the refunds of {row.transaction_id} differ between its journal and its lines")
