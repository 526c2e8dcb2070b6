"""Gives a reservation up, or refuses it before it arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coupon_svc.app.ports import Call, Clock
from coupon_svc.app.requests import run_once
from coupon_svc.app.reservation_ports import ReservationKey, ReservationStore, ReservationUnit
from coupon_svc.app.reservation_steps import release_holds
from coupon_svc.domain.journal import Sign
from coupon_svc.domain.reservation import NO_HASH, Reservation, ReservationState
from coupon_svc.domain.routing import user_shard
from meshkit.errors import MeshError

_NOTHING_LEFT = (ReservationState.CANCELLED, ReservationState.REVERSED)


@dataclass(frozen=True, slots=True)
class CancelCommand:
    """What a caller asks for; `encode` makes the reply that is recorded."""

    call: Call
    reservation_id: str
    merchant_id: str
    user_id: int
    encode: Callable[[ReservationState], bytes]


class CancelReservation:
    """The use case."""

    def __init__(self, *, store: ReservationStore, sign: Sign, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._sign = sign
        self._clock = clock

    async def __call__(self, command: CancelCommand) -> bytes:
        """Releases the holds, or notes that there never shall be any, and gives the encoded reply.

        Raises:
            MeshError: the reasons that CancelReservation lists in the contract.
        """
        call = command.call
        key = ReservationKey(user_shard(command.user_id), call.caller, command.reservation_id)

        async def work(unit: ReservationUnit) -> bytes:
            now_ms = self._clock()
            seen = await unit.reservation(key)
            if seen is None:
                await unit.insert_reservation(_never(command, key, now_ms))
                return command.encode(ReservationState.CANCELLED)
            if (seen.user_id, seen.merchant_id) != (command.user_id, command.merchant_id):
                raise MeshError("RESERVATION_NOT_FOUND", reservation_id=command.reservation_id)
            if seen.order_id:
                # What a frozen account holds can be given up; its row is held so that who freezes it waits.
                await unit.frozen_accounts({(key.shard, seen.user_id)})
            reservation = (await unit.lock_reservations([key]))[key]
            if reservation.state not in _NOTHING_LEFT:
                reservation = reservation.moved(ReservationState.CANCELLED, now_ms)
                await release_holds(unit, [reservation], call.origin(now_ms), self._sign)
            return command.encode(reservation.state)

        return await run_once(self._store, call.key(key.shard), call.request_hash, self._clock, work)


def _never(command: CancelCommand, key: ReservationKey, now_ms: int) -> Reservation:
    """The empty rollback: a reservation that is cancelled before it arrives."""
    return Reservation(
        shard=key.shard,
        caller=key.caller,
        reservation_id=key.reservation_id,
        state=ReservationState.CANCELLED,
        user_id=command.user_id,
        merchant_id=command.merchant_id,
        order_id="",
        amount_minor=0,
        lines=(),
        settlement_held=False,
        reserve_hash=NO_HASH,
        expires_at_ms=now_ms,
        create_time_ms=now_ms,
        update_time_ms=now_ms,
    )
