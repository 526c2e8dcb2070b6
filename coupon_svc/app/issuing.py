"""Makes coupons of a batch with new codes, once per order, however often the order is given.

All coupons of an order are made in one transaction of one database. A code lies in a shard of its own: the coupon's
when there is no owner yet, any of the same database when there is one. Twelve symbols never run out; codes of eight are
rationed per shard, so an order takes them from as many shards as it needs, and goes to another database when its first
one has too few. What is left only falls, so a repeated order passes the same databases by and finds its record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.job_ports import JobStore
from coupon_svc.app.minting import Mint
from coupon_svc.app.pace import Pace
from coupon_svc.app.ports import Clock, CodeBook, Ids, IndexedCode, RequestKey, Store, StoredCoupon, Unit
from coupon_svc.app.requests import refuse_moved, replay, run_once
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.journal import JournalKind, JournalRow, Origin
from coupon_svc.domain.routing import SHARDS
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError

# At most 300,000 live codes of 8 characters per deployment, so that a guess hits one in 10^5; counted per shard.
SHORT_CODES_PER_SHARD = 300_000 // SHARDS
SHORT_CODE_LENGTH = 8
# A 48-bit body is never used up; the bound keeps counters inside it.
LONG_CODES_PER_SHARD = 1 << 48
# Rows in one statement: more would keep the event loop for longer while they are written out.
ROWS_AT_ONCE = 25
# How often room that others took in the meantime is looked for again.
_MAX_LOOKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to make; `shard` is where it begins to look for room, `user_id` 0 makes codes without owner."""

    caller: str
    request_id: str
    request_hash: bytes
    made_by: bytes
    origin: Origin
    batch: Batch
    user_id: int
    shard: int
    quantity: int


@dataclass(frozen=True, slots=True)
class _Lease:
    """Counters of one shard that the order may use."""

    shard: int
    first: int
    quantity: int


class _RoomTakenError(Exception):
    """Somebody took the codes that were seen free."""


class CouponMaker:
    """Makes the coupons of orders."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: JobStore,
        batches: BatchCache,
        mint: Mint,
        codes: CodeBook,
        ids: Ids,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._jobs = jobs
        self._batches = batches
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._clock = clock

    async def make(self, order: Order) -> bytes:
        """The ids of the coupons, separated by commas: made now, or when the order was given before.

        Raises:
            MeshError: CODE_SPACE_EXHAUSTED, ACCOUNT_FROZEN, IDEMPOTENCY_KEY_REUSED.
        """
        for shard in self.places(order):
            try:
                return await self._make_at(order, shard)
            except MeshError as error:
                if error.reason != "CODE_SPACE_EXHAUSTED":
                    raise
        raise MeshError("CODE_SPACE_EXHAUSTED", code_length=str(order.batch.code_length))

    async def void(self, order: Order) -> bytes:
        """Makes sure that an order is not carried out any more; gives the ids when it was, else nothing."""
        for shard in self.places(order):
            key = RequestKey(shard, order.caller, order.request_id)
            response = await run_once(self._store, key, order.request_hash, self._clock, _nothing)
            if response:
                return response
        return b""

    def places(self, order: Order) -> Sequence[int]:
        """The shards under which the order may be recorded: its own, then one of each other database."""
        own = self._store.database_of(order.shard)
        if order.user_id or order.batch.code_length != SHORT_CODE_LENGTH:
            return [order.shard]
        others = {self._store.database_of(shard): shard for shard in reversed(range(SHARDS))}
        return [order.shard, *(shard for name, shard in others.items() if name != own)]

    async def _make_at(self, order: Order, shard: int) -> bytes:
        key = RequestKey(shard, order.caller, order.request_id)
        for _ in range(_MAX_LOOKS):
            recorded = (await self._store.recorded([key])).get(key)
            if recorded is not None:
                return replay(recorded, key, order.request_hash)
            wanted = await self._look_for_room(order, shard)
            # Read before the transaction: it takes no second connection.
            terms = await self._batches.terms_of(order.batch)
            try:
                work = partial(self._work, order, terms, shard, wanted)
                return await run_once(self._store, key, order.request_hash, self._clock, work)
            except _RoomTakenError:
                continue
        raise MeshError("UNAVAILABLE", part="codes")

    async def _look_for_room(self, order: Order, shard: int) -> Mapping[int, int]:
        """How many codes to take from which shard."""
        length = order.batch.code_length
        if length != SHORT_CODE_LENGTH:
            return {shard: order.quantity}
        database = self._store.database_of(shard)
        neighbours = [each for each in range(SHARDS) if self._store.database_of(each) == database]
        room = await self._jobs.code_room(neighbours, length, SHORT_CODES_PER_SHARD)
        wanted = share_out(order.quantity, shard, room)
        if wanted is None:
            raise MeshError("CODE_SPACE_EXHAUSTED", code_length=str(length))
        return wanted

    async def _work(self, order: Order, terms: Terms, shard: int, wanted: Mapping[int, int], unit: Unit) -> bytes:
        await refuse_moved(unit, set(wanted))
        if order.user_id and await unit.frozen_accounts({(shard, order.user_id)}):
            raise MeshError("ACCOUNT_FROZEN", user_id=str(order.user_id))
        length = order.batch.code_length
        limit = SHORT_CODES_PER_SHARD if length == SHORT_CODE_LENGTH else LONG_CODES_PER_SHARD
        leases = []
        # In key order, as every lock is taken.
        for each, quantity in sorted(wanted.items()):
            first = await unit.lease_codes(each, length, quantity, limit)
            if first is None:
                raise _RoomTakenError
            leases.append(_Lease(each, first, quantity))
        return b",".join([coupon_id.encode() for coupon_id in await self._mint_all(unit, order, terms, shard, leases)])

    async def _mint_all(
        self, unit: Unit, order: Order, terms: Terms, shard: int, leases: Sequence[_Lease]
    ) -> list[str]:
        coupon_ids: list[str] = []
        pace = Pace()
        stored: list[StoredCoupon] = []
        journal: list[JournalRow] = []
        index: list[IndexedCode] = []
        for lease, counter in ((each, each.first + step) for each in leases for step in range(each.quantity)):
            code = self._codes.encode(lease.shard, counter, order.batch.code_length)
            home = shard if order.user_id else lease.shard
            coupon = self._mint.mint(
                coupon_id=f"{self._ids.next(home):019d}",
                shard=home,
                user_id=order.user_id,
                batch_id=order.batch.batch_id,
                terms_id=order.batch.terms_id,
                terms=terms,
                code=code,
                kind=JournalKind.ISSUED,
                origin=order.origin,
            )
            coupon_id = coupon.stored.coupon.coupon_id
            key_id, mac = self._codes.mac(self._codes.normalise(code))
            coupon_ids.append(coupon_id)
            stored.append(coupon.stored)
            journal.append(coupon.journal)
            index.append(IndexedCode(lease.shard, key_id, mac, coupon_id, order.batch.batch_id, order.made_by))
            await pace.breathe()
            if len(stored) == ROWS_AT_ONCE:
                await _write(unit, stored, index, journal)
                stored, journal, index = [], [], []
        if stored:
            await _write(unit, stored, index, journal)
        return coupon_ids


def share_out(quantity: int, first_shard: int, room: Mapping[int, int]) -> dict[int, int] | None:
    """From which shards to take codes, starting at `first_shard` and going round; None when there are too few."""
    shards = sorted(room)
    start = next((position for position, shard in enumerate(shards) if shard >= first_shard), 0)
    wanted: dict[int, int] = {}
    for shard in shards[start:] + shards[:start]:
        taken = min(quantity, room[shard])
        if taken:
            wanted[shard] = taken
            quantity -= taken
        if not quantity:
            return wanted
    return None


async def _write(
    unit: Unit, stored: Sequence[StoredCoupon], index: Sequence[IndexedCode], journal: Sequence[JournalRow]
) -> None:
    await unit.insert_coupons(stored)
    await unit.index_codes(index)
    await unit.append_journal(journal)


async def _nothing(_unit: Unit) -> bytes:
    return b""
