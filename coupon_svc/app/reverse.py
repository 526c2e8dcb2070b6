"""Takes a consumption back by the request that made it, also when that request never arrived.

What decides is the record under the original request's name. The consume path looks it up under its locks anyway: when
it finds the mark of a reversal, or meets it as a duplicate key, the late request is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache, NotRead
from coupon_svc.app.caps import CapKeeper, Undone
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.coupon_steps import CouponSteps, StepFacts
from coupon_svc.app.ports import Call, Clock, Recorded, RequestKey, TransactionRow
from coupon_svc.app.requests import MAX_RUNS, REVERSED_HASH, run_once
from coupon_svc.app.reservation_ports import ReservationKey, ReservationStore, ReservationUnit
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.journal import JournalKind, Sign
from coupon_svc.domain.reservation import Reservation, ReservationState, given_back
from coupon_svc.domain.routing import user_shard
from meshkit.errors import MeshError


@dataclass(frozen=True, slots=True)
class ReverseCommand:
    """What a caller asks for; `encode` makes the reply that is recorded."""

    call: Call
    original_request_id: str
    merchant_id: str
    user_id: int
    encode: Callable[[Sequence[TransactionRow]], bytes]


@dataclass(frozen=True, slots=True)
class _Locked:
    """What a request took, and the rows that are locked for giving it back."""

    taken: Sequence[TransactionRow]
    reservations: Sequence[Reservation]
    coupons: Mapping[str, Coupon]


class ReverseTransaction:
    """The use case."""

    def __init__(
        self, *, store: ReservationStore, batches: BatchCache, caps: CapKeeper, sign: Sign, clock: Clock
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._batches = batches
        self._caps = caps
        self._sign = sign
        self._clock = clock

    async def __call__(self, command: ReverseCommand) -> bytes:
        """Gives back what the original request took, refuses it from now on, and gives the encoded reply.

        Raises:
            MeshError: the reasons that ReverseTransaction lists in the contract.
        """
        call = command.call
        shard = user_shard(command.user_id)
        original = RequestKey(shard, call.caller, command.original_request_id)
        if original == call.key(shard):
            raise MeshError("REVERSAL_REFUSED", request_id=call.request_id, problem="it would reverse itself")

        async def work(unit: ReservationUnit) -> bytes:
            now_ms = self._clock()
            recorded = (await unit.recorded([original])).get(original)
            taken = await unit.transactions_of(original)
            locked = await self._lock(unit, taken) if taken else None
            if locked is not None:
                # Another reversal of the same request may have been faster; under the locks it shows.
                recorded = (await unit.recorded([original])).get(original)
            if recorded is not None and recorded.request_hash == REVERSED_HASH:
                return recorded.response
            if recorded is not None or taken:
                _refuse_foreign(command, taken)
            reversed_rows = await self._give_back(unit, command, locked, now_ms) if locked is not None else ()
            mark = Recorded(REVERSED_HASH, command.encode(reversed_rows))
            if recorded is None:
                await unit.record([(original, mark)], now_ms)
            else:
                await unit.replace_record(original, mark, now_ms)
            return mark.response

        # Which batches it concerns shows under the locks, and shards are fenced before.
        fenced = [self._caps.holder(shard)]
        for _ in range(MAX_RUNS):
            try:
                return await run_once(self._store, call.key(shard), call.request_hash, self._clock, work, fenced=fenced)
            except NotRead as missing:
                await self._batches.read(missing)
        raise MeshError("UNAVAILABLE", part="mysql")

    @staticmethod
    async def _lock(unit: ReservationUnit, taken: Sequence[TransactionRow]) -> _Locked:
        shard = taken[0].shard
        # Giving back to a frozen account is no use of it; its row is held so that who freezes it waits.
        await unit.frozen_accounts({(shard, row.user_id) for row in taken})
        reservations = await unit.lock_reservations(_confirmed_by(taken))
        coupons = await unit.lock_coupons({(shard, row.coupon_id) for row in taken})
        return _Locked(taken, list(reservations.values()), coupons)

    async def _give_back(
        self, unit: ReservationUnit, command: ReverseCommand, locked: _Locked, now_ms: int
    ) -> Sequence[TransactionRow]:
        taken = locked.taken
        if await unit.given_back_otherwise(taken[0].shard, [row.transaction_id for row in taken]):
            raise _refused(command, "some of it was given back since")
        batches, terms = self._batches.lasting(locked.coupons.values())
        undone = []
        steps = CouponSteps(locked.coupons, self._sign)
        for row in taken:
            coupon = steps.current(row.coupon_id)
            facts = StepFacts(
                kind=JournalKind.REVERSED,
                origin=command.call.origin(now_ms),
                merchant_id=row.merchant_id,
                order_id=row.order_id,
                order_amount_minor=-row.amount_minor,
                deduction_minor=-row.deduction_minor,
                original_transaction_id=row.transaction_id,
                settlement_held=row.settlement_held,
            )
            steps.take(given_back(coupon, terms[coupon.terms_id], row.deduction_minor), facts)
            use = UseKey(row.shard, row.user_id, coupon.batch_id)
            undone.append(Undone(batches[coupon.batch_id], use, row.transaction_id, row.deduction_minor, whole=True))
        reversed_rows = [replace(row, reverse_time_ms=now_ms) for row in taken]
        await self._caps.give_back(unit, undone)
        await unit.update_coupons(steps.updates)
        await unit.append_journal(steps.rows)
        await unit.mark_reversed(reversed_rows)
        await unit.update_reservations(
            [reservation.moved(ReservationState.REVERSED, now_ms) for reservation in locked.reservations]
        )
        return reversed_rows


def _confirmed_by(taken: Sequence[TransactionRow]) -> Sequence[ReservationKey]:
    """The reservation whose confirmation made the consumptions; none for a plain consumption."""
    return sorted({ReservationKey(row.shard, row.caller, row.reservation_id) for row in taken if row.reservation_id})


def _refuse_foreign(command: ReverseCommand, taken: Sequence[TransactionRow]) -> None:
    if not taken:
        raise _refused(command, "it took nothing from a coupon")
    if any(row.merchant_id != command.merchant_id for row in taken):
        raise _refused(command, "it was at another merchant")


def _refused(command: ReverseCommand, problem: str) -> MeshError:
    return MeshError("REVERSAL_REFUSED", request_id=command.original_request_id, problem=problem)
