"""Writes one refund that was decided: contra rows, coupons put right, new ones where the batch promises them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coupon_svc.app.caps import CapKeeper, Undone
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.coupon_steps import CouponSteps, StepFacts
from coupon_svc.app.issue import LONG_CODES_PER_SHARD, SHORT_CODE_LENGTH, SHORT_CODES_PER_SHARD, request_digest
from coupon_svc.app.minting import Mint
from coupon_svc.app.ports import Call, Clock, CodeBook, Ids, IndexedCode, TransactionRow, Unit
from coupon_svc.app.refund_ports import RefundBook, RefundedPart, RefundRow
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.journal import JournalKind, JournalRow, Sign
from coupon_svc.domain.refund import (
    Cells,
    GivenBack,
    by_tender,
    give_back,
    order_part_minor,
    replacement_expiry_ms,
)
from coupon_svc.domain.terms import Terms
from coupon_svc.domain.times import transaction_id
from meshkit.errors import MeshError

LONG_CODE_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is read before the locks since it never changes: terms by id, and the code lengths of batches."""

    terms: Mapping[str, Terms]
    batches: Mapping[str, Batch]


@dataclass(frozen=True, slots=True)
class Paid:
    """What paid, as it is under the locks: transactions that stand, what went back of each, what is left, coupons."""

    rows: Sequence[TransactionRow]
    given_back: Mapping[str, GivenBack]
    left: Cells
    coupons: Mapping[str, Coupon]

    def given(self, row: TransactionRow) -> GivenBack:
        """What went back of a transaction before."""
        return self.given_back.get(row.transaction_id, GivenBack())


@dataclass(frozen=True, slots=True)
class RefundedTransaction:
    """A consumption with what was refunded of it so far and what can still be; amounts are fen."""

    transaction: TransactionRow
    refunded_minor: int
    refundable_minor: int

    @classmethod
    def after(cls, row: TransactionRow, given: GivenBack, now_minor: int = 0) -> RefundedTransaction:
        """After `given` and another `now_minor` went back."""
        left_minor = row.deduction_minor - given.deduction_minor - now_minor
        return cls(row, given.refunded_minor + now_minor, left_minor)


@dataclass(frozen=True, slots=True)
class Refunded:
    """What a refund did: itself, what paid, the coupons it changed, and what is left of each cell."""

    refund: RefundRow
    transactions: Sequence[RefundedTransaction]
    coupons: Sequence[Coupon]
    left: Cells


@dataclass(slots=True)
class _Writing:
    """A refund on its way: what it knows, and what it will write; `opened` are the first rows of new coupons."""

    unit: Unit
    call: Call
    paid: Paid
    knowledge: Knowledge
    refund_id: str
    now_ms: int
    steps: CouponSteps
    opened: list[JournalRow] = field(default_factory=list)
    parts: list[RefundedPart] = field(default_factory=list)


class GiveBack:
    """Gives back cells of an order."""

    def __init__(
        self,
        *,
        book: RefundBook,
        caps: CapKeeper,
        mint: Mint,
        codes: CodeBook,
        ids: Ids,
        sign: Sign,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._book = book
        self._caps = caps
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._sign = sign
        self._clock = clock

    def fenced(self, shard: int, knowledge: Knowledge) -> set[int]:
        """Shards that a refund in `shard` writes besides it."""
        return self._caps.holders([shard], knowledge.batches.values())

    async def __call__(self, unit: Unit, call: Call, paid: Paid, given: Cells, knowledge: Knowledge) -> Refunded:
        """Writes the refund of the `given` cells, none above what is left, under the locks of all coupons of `paid`.

        Raises:
            MeshError: REFUND_CARD_EXPIRED.
        """
        first = paid.rows[0]
        now_ms = self._clock()
        zone = knowledge.terms[paid.coupons[first.coupon_id].terms_id].time_zone
        refund_id = transaction_id(now_ms, zone, self._ids.next(first.shard))
        writing = _Writing(unit, call, paid, knowledge, refund_id, now_ms, CouponSteps(paid.coupons, self._sign))
        amounts = by_tender(given)
        await self._give_to_caps(writing, amounts)
        for row in paid.rows:
            if amounts.get(row.transaction_id):
                await self._contra(writing, row, amounts[row.transaction_id])
        refund = RefundRow(
            shard=first.shard,
            refund_id=refund_id,
            merchant_id=first.merchant_id,
            order_id=first.order_id,
            caller=call.caller,
            request_id=call.request_id,
            refund_time_ms=now_ms,
            coupons=tuple(writing.parts),
            cells=tuple((cell, minor) for cell, minor in given.items() if minor),
        )
        updates = writing.steps.updates
        if updates:
            await self._book.store_coupons(unit, updates)
            await unit.append_journal([*writing.steps.rows, *writing.opened])
        await self._book.insert(unit, refund)
        return Refunded(
            refund,
            [RefundedTransaction.after(row, paid.given(row), amounts.get(row.transaction_id, 0)) for row in paid.rows],
            [update.after for update in updates],
            {cell: minor - given.get(cell, 0) for cell, minor in paid.left.items()},
        )

    async def _give_to_caps(self, writing: _Writing, amounts: Mapping[str, int]) -> None:
        """Gives back to caps each sum, and the use of what is refunded to the last fen."""
        paid = writing.paid
        left = by_tender(paid.left)
        undone = []
        for row in paid.rows:
            amount_minor = amounts.get(row.transaction_id, 0)
            if amount_minor:
                batch = writing.knowledge.batches[paid.coupons[row.coupon_id].batch_id]
                use = UseKey(row.shard, row.user_id, batch.batch_id)
                whole = amount_minor == left[row.transaction_id]
                undone.append(Undone(batch, use, row.transaction_id, amount_minor, whole))
        await self._caps.give_back(writing.unit, undone)

    async def _contra(self, writing: _Writing, row: TransactionRow, amount_minor: int) -> None:
        coupon = writing.steps.current(row.coupon_id)
        left_minor = by_tender(writing.paid.left)[row.transaction_id]
        steps = give_back(
            coupon,
            writing.knowledge.terms[coupon.terms_id],
            amount_minor=amount_minor,
            closes=amount_minor == left_minor,
            ended_from=await self._ended_from(writing.unit, coupon),
            now_ms=writing.now_ms,
        )
        order_left_minor = row.amount_minor - writing.paid.given(row).order_amount_minor
        # The first step gives back; those after it only change where the coupon stands.
        contra = (amount_minor, order_part_minor(order_left_minor, amount_minor, left_minor))
        for step in steps:
            coupon = writing.steps.take(step.coupon, _facts(writing, row, step.kind, contra))
            contra = (0, 0)
        replacement = await self._replace(writing, row, coupon) if coupon.status is CouponStatus.REFUNDED else None
        writing.parts.append(RefundedPart(row.transaction_id, row.coupon_id, amount_minor, replacement))

    async def _ended_from(self, unit: Unit, coupon: Coupon) -> CouponStatus | None:
        """The status an expired coupon had before; None for one that was voided and stays so."""
        if coupon.status is not CouponStatus.EXPIRED:
            return None
        kind, status_before = await self._book.ended_by(unit, coupon.shard, coupon.coupon_id)
        return CouponStatus(status_before) if kind is JournalKind.EXPIRED else None

    async def _replace(self, writing: _Writing, row: TransactionRow, coupon: Coupon) -> str | None:
        """Makes the new coupon that the batch promises for a refunded one; gives its id, or None.

        It is the old one's promise kept, so nothing is drawn from the batch.
        """
        terms = writing.knowledge.terms[coupon.terms_id]
        expires_at_ms = replacement_expiry_ms(coupon, terms, now_ms=writing.now_ms)
        if expires_at_ms is None:
            return None
        code = await self._new_code(writing, coupon)
        minted = self._mint.mint(
            coupon_id=f"{self._ids.next(coupon.shard):019d}",
            shard=coupon.shard,
            user_id=coupon.user_id,
            batch_id=coupon.batch_id,
            terms_id=coupon.terms_id,
            terms=terms,
            code=code,
            kind=JournalKind.ISSUED,
            origin=writing.call.origin(writing.now_ms),
            transaction_id=writing.refund_id,
            original_transaction_id=row.transaction_id,
        )
        new = replace(minted.stored.coupon, expires_at_ms=expires_at_ms)
        key_id, mac = self._codes.mac(self._codes.normalise(code))
        indexed = IndexedCode(new.shard, key_id, mac, new.coupon_id, new.batch_id, request_digest(writing.call))
        await writing.unit.insert_coupons([replace(minted.stored, coupon=new)])
        await writing.unit.index_codes([indexed])
        writing.opened.append(minted.journal)
        return new.coupon_id

    async def _new_code(self, writing: _Writing, coupon: Coupon) -> str:
        """A code as long as the batch's; a long one where short ones are used up, since no refund fails for that."""
        shard = coupon.shard
        if writing.knowledge.batches[coupon.batch_id].code_length == SHORT_CODE_LENGTH:
            counter = await writing.unit.lease_codes(shard, SHORT_CODE_LENGTH, 1, SHORT_CODES_PER_SHARD)
            if counter is not None:
                return self._codes.encode(shard, counter, SHORT_CODE_LENGTH)
        counter = await writing.unit.lease_codes(shard, LONG_CODE_LENGTH, 1, LONG_CODES_PER_SHARD)
        if counter is None:
            raise MeshError("CODE_SPACE_EXHAUSTED", code_length=str(LONG_CODE_LENGTH))
        return self._codes.encode(shard, counter, LONG_CODE_LENGTH)


def _facts(writing: _Writing, row: TransactionRow, kind: JournalKind, contra: tuple[int, int]) -> StepFacts:
    """What the journal says of a step that gives back `contra`: of the deduction, and of the order amount."""
    deduction_minor, order_amount_minor = contra
    return StepFacts(
        kind=kind,
        origin=writing.call.origin(writing.now_ms),
        merchant_id=row.merchant_id,
        order_id=row.order_id,
        order_amount_minor=-order_amount_minor,
        deduction_minor=-deduction_minor,
        transaction_id=writing.refund_id,
        original_transaction_id=row.transaction_id,
        settlement_held=row.settlement_held,
    )
