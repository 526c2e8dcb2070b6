"""What reservations and reversals need of the store beyond `ports`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coupon_svc.app.ports import Recorded, RequestKey, TransactionRow, Unit, VersionedUpdate
from coupon_svc.domain.hold import Hold
from coupon_svc.domain.reservation import Reservation
from meshkit.leader import Leadership


class ReservationKey(NamedTuple):
    """Names a reservation; unique within its owner's shard."""

    shard: int
    caller: str
    reservation_id: str

    @classmethod
    def of(cls, made: Reservation | Hold) -> ReservationKey:
        """The name of a reservation, or of the one that made a hold."""
        return cls(made.shard, made.caller, made.reservation_id)


@dataclass(frozen=True, slots=True)
class TransactionLine:
    """What a transaction took off one line of its order, in fen; `position` is the line's, from 0."""

    shard: int
    transaction_id: str
    position: int
    line_id: str
    amount_minor: int
    deduction_minor: int


class ReservationUnit(Unit, Protocol):
    """A write transaction that knows reservations. They are locked after accounts and before coupons."""

    async def hold_leadership(self, leadership: Leadership) -> None:
        """First of all: refuses a leader whose successor was here; raises LeadershipLost."""

    async def reservation(self, key: ReservationKey) -> Reservation | None:
        """A reservation as committed now, without a lock."""

    async def owners_of(self, keys: Sequence[ReservationKey]) -> set[tuple[int, int]]:
        """(shard, user_id) of reservations, which never change, without locks."""

    async def lock_reservations(self, keys: Sequence[ReservationKey]) -> Mapping[ReservationKey, Reservation]:
        """Locks reservations that were seen to exist, in key order."""

    async def insert_reservation(self, reservation: Reservation) -> None:
        """Adds a reservation; raises DuplicateKey."""

    async def update_reservations(self, reservations: Sequence[Reservation]) -> None:
        """Stores new states of locked reservations."""

    async def holds_of(self, keys: Sequence[ReservationKey]) -> Sequence[Hold]:
        """All holds of reservations, ended ones too, by reservation and position."""

    async def insert_holds(self, holds: Sequence[Hold]) -> None:
        """Adds holds of locked coupons."""

    async def update_holds(self, holds: Sequence[Hold]) -> None:
        """Stores new states of holds of locked coupons."""

    async def update_held_coupons(self, updates: Sequence[VersionedUpdate]) -> None:
        """As `update_coupons`, with the figures of their holds."""

    async def insert_transaction_lines(self, lines: Sequence[TransactionLine]) -> None:
        """Adds what transactions took off the lines of their order."""

    async def transactions_of(self, key: RequestKey) -> Sequence[TransactionRow]:
        """Consumptions that a request made."""

    async def given_back_otherwise(self, shard: int, transaction_ids: Sequence[str]) -> set[str]:
        """Which transactions of locked coupons have journal rows that give something of them back."""

    async def mark_reversed(self, rows: Sequence[TransactionRow]) -> None:
        """Stores `reverse_time_ms` of transactions."""

    async def replace_record(self, key: RequestKey, recorded: Recorded, now_ms: int) -> None:
        """Puts another answer in the place of a recorded one."""


class ReservationStore(Protocol):
    """The coupon databases as reservations use them."""

    @property
    def databases(self) -> Sequence[str]:
        """Names of all databases."""

    def unit(self, shard: int) -> AbstractAsyncContextManager[ReservationUnit]:
        """See `Store.unit`."""

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """See `Store.recorded`."""

    async def reservation(self, key: ReservationKey) -> Reservation | None:
        """A reservation as committed now."""

    async def expired_reservations(self, database: str, now_ms: int, limit: int) -> Sequence[ReservationKey]:
        """Some reservations of one database whose time is over and that were not released, the longest over first."""

    async def begin_leadership(self, database: str, leadership: Leadership) -> None:
        """Has a database refuse every earlier leader of the same job; raises LeadershipLost."""
