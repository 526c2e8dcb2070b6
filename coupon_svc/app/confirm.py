"""Takes what a reservation holds, or less, once the order is paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.caps import MAX_REFILLS, CapKeeper, SliceShort
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.coupon_steps import CouponSteps
from coupon_svc.app.ports import Call, Clock, Ids, TransactionRow
from coupon_svc.app.requests import run_once
from coupon_svc.app.reservation_ports import ReservationKey, ReservationStore, ReservationUnit, TransactionLine
from coupon_svc.app.reservation_steps import Outcome, hold_facts
from coupon_svc.domain.batch import BlockScope
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.hold import Hold, HoldState, counted, recounted
from coupon_svc.domain.journal import JournalKind, Sign
from coupon_svc.domain.reservation import (
    Reservation,
    ReservationState,
    Wanted,
    confirmed_amounts,
    released,
    take_held,
)
from coupon_svc.domain.routing import user_shard
from coupon_svc.domain.times import transaction_id
from meshkit.errors import MeshError


@dataclass(frozen=True, slots=True)
class ConfirmCommand:
    """What a caller asks for; nothing `wanted` means everything as it was reserved.

    `content_hash` covers all of it but the request_id.
    """

    call: Call
    reservation_id: str
    merchant_id: str
    user_id: int
    wanted: Sequence[Wanted]
    content_hash: bytes
    encode: Callable[[Outcome], bytes]


class ConfirmReservation:
    """The use case."""

    def __init__(
        self,
        *,
        store: ReservationStore,
        batches: BatchCache,
        caps: CapKeeper,
        ids: Ids,
        sign: Sign,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._batches = batches
        self._caps = caps
        self._ids = ids
        self._sign = sign
        self._clock = clock

    async def __call__(self, command: ConfirmCommand) -> bytes:
        """Consumes what is held and gives the encoded reply.

        Raises:
            MeshError: the reasons that ConfirmReservation lists in the contract.
        """
        careful: frozenset[str] = frozenset()
        for _ in range(MAX_REFILLS):
            try:
                return await self._run(command, careful)
            except SliceShort as short:
                careful |= await self._caps.refill(short, await self._batches.of_any_age(short.wanted))
        raise MeshError("UNAVAILABLE", part="mysql")

    async def _run(self, command: ConfirmCommand, careful: frozenset[str]) -> bytes:
        call = command.call
        key = ReservationKey(user_shard(command.user_id), call.caller, command.reservation_id)

        async def work(unit: ReservationUnit) -> bytes:
            seen = await unit.reservation(key)
            if seen is None or (seen.user_id, seen.merchant_id) != (command.user_id, command.merchant_id):
                raise MeshError("RESERVATION_NOT_FOUND", reservation_id=command.reservation_id)
            # A cancellation that came first may name a user who never had a coupon, and so has no account.
            frozen = bool(seen.order_id) and bool(await unit.frozen_accounts({(key.shard, seen.user_id)}))
            reservation = (await unit.lock_reservations([key]))[key]
            if reservation.state is ReservationState.REVERSED:
                raise MeshError("TRANSACTION_REVERSED", request_id=call.request_id)
            if reservation.confirm_hash == command.content_hash:
                return reservation.confirm_response
            now_ms = self._clock()
            confirmed = reservation.moved(ReservationState.CONFIRMED, now_ms)
            if frozen:
                raise MeshError("ACCOUNT_FROZEN", user_id=str(reservation.user_id))
            outcome = await self._take(unit, confirmed, command, now_ms, careful)
            response = command.encode(outcome)
            await unit.update_reservations(
                [replace(confirmed, confirm_hash=command.content_hash, confirm_response=response)]
            )
            return response

        # Which batches it concerns shows under the locks, and shards are fenced before.
        fenced = [self._caps.holder(key.shard)]
        return await run_once(self._store, call.key(key.shard), call.request_hash, self._clock, work, fenced=fenced)

    async def _take(
        self,
        unit: ReservationUnit,
        reservation: Reservation,
        command: ConfirmCommand,
        now_ms: int,
        careful: frozenset[str],
    ) -> Outcome:
        own = await unit.holds_of([ReservationKey.of(reservation)])
        amounts = confirmed_amounts(reservation, own, command.wanted)
        keys = {(hold.shard, hold.coupon_id) for hold in own}
        locked = await unit.lock_coupons(keys)
        unreleased = await unit.unreleased_holds(keys)
        others = [hold for hold in unreleased if ReservationKey.of(hold) != ReservationKey.of(reservation)]
        batches = await self._batches.batches(coupon.batch_id for coupon in locked.values())
        terms = await self._batches.terms(coupon.terms_id for coupon in locked.values())
        uses = {
            coupon_id: (
                batches[locked[coupon_id].batch_id],
                UseKey(reservation.shard, reservation.user_id, locked[coupon_id].batch_id),
            )
            for coupon_id in amounts
        }
        tally = await self._caps.begin(unit, uses.values(), careful)
        taking = _Taking(CouponSteps(locked, self._sign), reservation, command.call, now_ms)
        for hold in own:
            coupon = locked[hold.coupon_id]
            if hold.coupon_id not in amounts:
                taking.give_up(hold, recounted(coupon, others))
                continue
            amount_minor = amounts[hold.coupon_id]
            batches[coupon.batch_id].refuse_when_blocked(BlockScope.CONSUME)
            # What others hold counts while it lives; what is stored counts until it is released.
            after = take_held(counted(coupon, others, now_ms), hold, amount_minor, now_ms=now_ms)
            number = self._ids.next(reservation.shard)
            taken = transaction_id(now_ms, terms[coupon.terms_id].time_zone, number)
            if tally is not None:
                batch, use = uses[coupon.coupon_id]
                tally.take(batch, use, deduction_minor=amount_minor, transaction_id=taken)
            taking.consume(hold, recounted(after, others), amount_minor, taken)
        await self._caps.settle(unit, tally)
        return await taking.write(unit)


class _Taking:
    """The effects of one confirmation."""

    def __init__(self, steps: CouponSteps, reservation: Reservation, call: Call, now_ms: int) -> None:
        self._steps = steps
        self._reservation = reservation
        self._call = call
        self._now_ms = now_ms
        self._holds: list[Hold] = []
        self._transactions: list[TransactionRow] = []

    def consume(self, hold: Hold, after: Coupon, amount_minor: int, taken: str) -> None:
        """Takes a hold, in part when it holds more, by the transaction `taken`."""
        reservation, origin = self._reservation, self._call.origin(self._now_ms)
        asked_minor = amount_minor if hold.held_minor else hold.base_minor
        facts = hold_facts(JournalKind.CONSUMED, origin, reservation, hold, amount_minor)
        moved = self._steps.take(after, replace(facts, transaction_id=taken, order_amount_minor=asked_minor))
        if hold.state is HoldState.HELD and amount_minor < hold.deduction_minor:
            rest_minor = hold.deduction_minor - amount_minor
            self._steps.take(moved, hold_facts(JournalKind.HOLD_RELEASED, origin, reservation, hold, rest_minor))
        self._holds.append(replace(hold, state=HoldState.CONSUMED, deduction_minor=amount_minor, transaction_id=taken))
        self._transactions.append(
            TransactionRow(
                shard=hold.shard,
                transaction_id=taken,
                coupon_id=hold.coupon_id,
                user_id=reservation.user_id,
                merchant_id=reservation.merchant_id,
                order_id=reservation.order_id,
                amount_minor=asked_minor,
                deduction_minor=amount_minor,
                balance_after_minor=moved.balance_minor,
                settlement_held=reservation.settlement_held,
                caller=self._call.caller,
                request_id=self._call.request_id,
                consume_time_ms=self._now_ms,
                reservation_id=reservation.reservation_id,
            )
        )

    def give_up(self, hold: Hold, after: Coupon) -> None:
        """Releases a hold that is not wanted any more."""
        if hold.state is HoldState.HELD:
            origin = self._call.origin(self._now_ms)
            facts = hold_facts(JournalKind.HOLD_RELEASED, origin, self._reservation, hold, hold.deduction_minor)
            self._steps.take(after, facts)
        self._holds.append(released(hold))

    async def write(self, unit: ReservationUnit) -> Outcome:
        """Stores it all."""
        outcome = Outcome(self._reservation, self._holds, self._transactions)
        await unit.update_held_coupons(self._steps.updates)
        await unit.append_journal(self._steps.rows)
        await unit.update_holds(self._holds)
        await unit.insert_transactions(self._transactions)
        await unit.insert_transaction_lines(_lines_of(outcome))
        return outcome


def _lines_of(outcome: Outcome) -> list[TransactionLine]:
    """Each consumption's part of each line of the order."""
    return [
        TransactionLine(hold.shard, hold.transaction_id, position, line.line_id, line.amount_minor, share_minor)
        for hold, shares_minor in zip(outcome.holds, outcome.shares_minor(), strict=True)
        if hold.transaction_id is not None
        for position, (line, share_minor) in enumerate(zip(outcome.reservation.lines, shares_minor, strict=True))
    ]
