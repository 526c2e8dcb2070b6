"""Holds several coupons of one user for an order, all or none.

The reservation's row is inserted first, and a duplicate key caught: who was slower runs again and finds it. A
cancellation of what never arrived is such a row too, so that the late arrival meets it.

Caps of batches are looked at and not held: they refuse early what could not be confirmed now, but what is reserved may
still be refused when it is confirmed, since others took the last uses or the rest of the sum meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.caps import CapKeeper
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.coupon_steps import CouponSteps
from coupon_svc.app.holds import without_stale_holds
from coupon_svc.app.ports import (
    Call,
    Clock,
    CouponFacts,
    RiskAbsentError,
    RiskGate,
    RiskQuestion,
    Store,
    operation_id,
)
from coupon_svc.app.requests import replay, run_once
from coupon_svc.app.reservation_ports import ReservationKey, ReservationStore, ReservationUnit
from coupon_svc.app.reservation_steps import Outcome, hold_facts
from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.hold import Hold, HoldState, counted, recounted
from coupon_svc.domain.journal import JournalKind, Origin, Sign
from coupon_svc.domain.order_lines import Line, check_lines
from coupon_svc.domain.reservation import Planned, Reservation, ReservationState, Wanted, plan
from coupon_svc.domain.routing import user_shard
from meshkit.errors import InvalidFields, MeshError
from meshkit.mysql_errors import DatabaseError

DEFAULT_TTL_S = 900


@dataclass(frozen=True, slots=True)
class ReserveCommand:
    """What a caller asks for; `content_hash` covers all of it but the request_id. The amount is fen.

    `wanted` and `facts` name the same coupons, in the order in which they apply.
    """

    call: Call
    reservation_id: str
    merchant_id: str
    order_id: str
    amount_minor: int
    wanted: Sequence[Wanted]
    facts: Sequence[CouponFacts]
    lines: tuple[Line, ...]
    ttl_s: int
    by_code: bool
    content_hash: bytes
    encode: Callable[[Outcome], bytes]


class ReserveCoupons:
    """The use case."""

    def __init__(
        self,
        *,
        store: ReservationStore,
        coupons: Store,
        batches: BatchCache,
        caps: CapKeeper,
        risk: RiskGate,
        sign: Sign,
        clock: Clock,
        accept_without_risk_minor: int,
    ) -> None:
        """All adapters arrive here; `accept_without_risk_minor` is what is still held while risk control is away."""
        self._store = store
        self._coupons = coupons
        self._batches = batches
        self._caps = caps
        self._risk = risk
        self._sign = sign
        self._clock = clock
        self._accept_without_risk_minor = accept_without_risk_minor

    async def __call__(self, command: ReserveCommand) -> bytes:
        """Holds the coupons and gives the encoded reply.

        Raises:
            MeshError: the reasons that ReserveCoupons lists in the contract.
        """
        user_id = _owner(command.facts)
        check_lines(command.lines, command.amount_minor)
        shard = user_shard(user_id)
        key = ReservationKey(shard, command.call.caller, command.reservation_id)
        record = command.call.key(shard)
        earlier = (await self._store.recorded([record])).get(record)
        if earlier is not None:
            return replay(earlier, record, command.call.request_hash)
        settlement_held = await self._admit(command, key)

        async def work(unit: ReservationUnit) -> bytes:
            if await unit.frozen_accounts({(shard, user_id)}):
                raise MeshError("ACCOUNT_FROZEN", user_id=str(user_id))
            known = await unit.reservation(key)
            if known is not None:
                return _answer_of(known, command)
            reservation = _new(command, key, user_id, self._clock(), settlement_held=settlement_held)
            await unit.insert_reservation(reservation)
            holds = await self._hold(unit, reservation, command)
            response = command.encode(Outcome(reservation, holds))
            await unit.update_reservations([replace(reservation, reserve_response=response)])
            return response

        return await run_once(self._store, record, command.call.request_hash, self._clock, work)

    async def _admit(self, command: ReserveCommand, key: ReservationKey) -> bool:
        """Asks risk control and looks at the coupons; True when settlement is held because risk control was away."""
        if await self._store.reservation(key) is not None:
            # What is there already, perhaps as a cancellation, takes no risk decision.
            return False
        settlement_held = await self._assess(command)
        try:
            await self._refuse_hopeless(command)
        except MeshError:
            # A copy of this request may have been faster; what stands in the way is then its own hold.
            if await self._store.reservation(key) is None:
                raise
        return settlement_held

    async def _refuse_hopeless(self, command: ReserveCommand) -> None:
        """Refuses what cannot be held now before anything is inserted.

        Duplicates that wait for a row which is rolled back deadlock with each other, and are run again, once for each
        that was refused. Refused here, they never meet.
        """
        batches = await self._batches.batches(fact.batch_id for fact in command.facts)
        for batch in batches.values():
            batch.refuse_when_blocked(BlockScope.CONSUME)
        stored = await self._coupons.get_coupons(command.facts[0].shard, [fact.coupon_id for fact in command.facts])
        now_ms = self._clock()
        coupons = {coupon_id: each.coupon for coupon_id, each in stored.items()}
        planned = await self._plan(command, await without_stale_holds(self._coupons, coupons, now_ms), now_ms)
        await self._refuse_beyond_caps(command, batches, planned)

    async def _refuse_beyond_caps(
        self, command: ReserveCommand, batches: Mapping[str, Batch], planned: Sequence[Planned]
    ) -> None:
        facts = {fact.coupon_id: fact for fact in command.facts}
        deductions: defaultdict[str, list[int]] = defaultdict(list)
        for each in planned:
            deductions[facts[each.coupon_id].batch_id].append(each.deduction_minor)
        owner = command.facts[0]
        for batch_id, amounts in deductions.items():
            key = UseKey(owner.shard, owner.user_id, batch_id)
            try:
                await self._caps.preview(batches[batch_id], key, sum(amounts), uses=len(amounts))
            except DatabaseError:
                # The batch lives in a database that is away; whether there is enough is decided when it is confirmed.
                continue

    async def _plan(self, command: ReserveCommand, coupons: Mapping[str, Coupon], now_ms: int) -> list[Planned]:
        return plan(
            command.wanted,
            coupons,
            await self._batches.terms(coupon.terms_id for coupon in coupons.values()),
            merchant_id=command.merchant_id,
            amount_minor=command.amount_minor,
            now_ms=now_ms,
        )

    async def _assess(self, command: ReserveCommand) -> bool:
        """Asks risk control about each coupon; True when it was away and the amount is small enough to go on."""
        call = command.call
        questions = [
            RiskQuestion(
                operation_id=operation_id("RESERVE", call.caller, command.reservation_id, fact.coupon_id),
                kind="CONSUME",
                caller=call.caller,
                client=call.client,
                by_code=command.by_code,
                user_id=fact.user_id,
                merchant_id=command.merchant_id,
                batch_id=fact.batch_id,
                coupon_id=fact.coupon_id,
                amount_minor=command.amount_minor,
            )
            for fact in command.facts
        ]
        try:
            answers = await self._risk.assess(questions)
        except RiskAbsentError as absent:
            if command.amount_minor > self._accept_without_risk_minor:
                raise MeshError("RISK_UNAVAILABLE") from absent
            return True
        if not all(answer.allowed for answer in answers):
            refusing = sorted({rule for answer in answers if not answer.allowed for rule in answer.rules})
            raise MeshError("RISK_REJECTED", rules=",".join(refusing))
        return False

    async def _hold(self, unit: ReservationUnit, reservation: Reservation, command: ReserveCommand) -> Sequence[Hold]:
        now_ms = reservation.create_time_ms
        keys = {(reservation.shard, fact.coupon_id) for fact in command.facts}
        locked = await unit.lock_coupons(keys)
        unreleased = await unit.unreleased_holds(keys)
        usable = {coupon_id: counted(coupon, unreleased, now_ms) for coupon_id, coupon in locked.items()}
        planned = await self._plan(command, usable, now_ms)
        holds = [_new_hold(reservation, position, each) for position, each in enumerate(planned)]
        steps = self._steps(reservation, holds, locked, unreleased, command.call.origin(now_ms))
        await unit.insert_holds(holds)
        await unit.update_held_coupons(steps.updates)
        await unit.append_journal(steps.rows)
        return holds

    def _steps(
        self,
        reservation: Reservation,
        holds: Sequence[Hold],
        locked: Mapping[str, Coupon],
        unreleased: Sequence[Hold],
        origin: Origin,
    ) -> CouponSteps:
        steps = CouponSteps(locked, self._sign)
        for hold in holds:
            after = recounted(locked[hold.coupon_id], [*unreleased, hold])
            steps.take(after, hold_facts(JournalKind.HELD, origin, reservation, hold, hold.deduction_minor))
        return steps


def _owner(facts: Sequence[CouponFacts]) -> int:
    """The one owner of all coupons."""
    for fact in facts:
        if fact.user_id == 0:
            raise MeshError("COUPON_UNACTIVATED", coupon_id=fact.coupon_id)
    if len({fact.user_id for fact in facts}) > 1:
        raise InvalidFields([("coupons", "belong to more than one user")])
    if len({fact.coupon_id for fact in facts}) < len(facts):
        raise InvalidFields([("coupons", "name one coupon twice")])
    return facts[0].user_id


def _answer_of(known: Reservation, command: ReserveCommand) -> bytes:
    """What a reservation_id that is there already answers with."""
    if known.state is ReservationState.CANCELLED:
        raise MeshError("RESERVATION_CANCELLED", reservation_id=known.reservation_id)
    if known.reserve_hash != command.content_hash:
        raise MeshError("RESERVATION_ID_REUSED", reservation_id=known.reservation_id)
    return known.reserve_response


def _new(
    command: ReserveCommand, key: ReservationKey, user_id: int, now_ms: int, *, settlement_held: bool
) -> Reservation:
    return Reservation(
        shard=key.shard,
        caller=key.caller,
        reservation_id=key.reservation_id,
        state=ReservationState.HELD,
        user_id=user_id,
        merchant_id=command.merchant_id,
        order_id=command.order_id,
        amount_minor=command.amount_minor,
        lines=command.lines,
        settlement_held=settlement_held,
        reserve_hash=command.content_hash,
        expires_at_ms=now_ms + command.ttl_s * 1000,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )


def _new_hold(reservation: Reservation, position: int, planned: Planned) -> Hold:
    return Hold(
        shard=reservation.shard,
        caller=reservation.caller,
        reservation_id=reservation.reservation_id,
        position=position,
        coupon_id=planned.coupon_id,
        state=HoldState.HELD,
        base_minor=planned.base_minor,
        deduction_minor=planned.deduction_minor,
        held_minor=planned.held_minor,
        expires_at_ms=reservation.expires_at_ms,
    )
