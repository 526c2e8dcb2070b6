"""Issues coupons of a batch: to a user, or as unactivated codes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.minting import Mint, Minted
from coupon_svc.app.ports import Call, Clock, CodeBook, Ids, IndexedCode, Store, Unit
from coupon_svc.app.requests import refuse_moved, run_once
from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.routing import SHARDS, id_shard, spread_shard, user_shard
from meshkit.errors import MeshError

# At most 300,000 live codes of 8 characters per deployment, so that a guess hits one in 10^5; counted per shard.
SHORT_CODES_PER_SHARD = 300_000 // SHARDS
SHORT_CODE_LENGTH = 8
# A 48-bit body is never used up; the bound keeps counters inside it.
LONG_CODES_PER_SHARD = 1 << 48


@dataclass(frozen=True, slots=True)
class IssuedCoupon:
    """A new coupon and its code, a bearer secret."""

    coupon_id: str
    code: str


def request_digest(call: Call) -> bytes:
    """Names the request that made a thing, in 32 bytes."""
    return hashlib.sha256(f"{len(call.caller)}:{call.caller}{call.request_id}".encode()).digest()


async def draw_from_batch(store: Store, call: Call, batch: Batch, quantity: int, clock: Clock) -> None:
    """Takes `quantity` from the batch's total, once per request, before anything is issued: never oversold.

    Raises:
        MeshError: BATCH_BLOCKED, BATCH_RECALLED, BATCH_EXHAUSTED, IDEMPOTENCY_KEY_REUSED.
    """
    shard = id_shard(batch.batch_id)
    key = call.key(shard)
    async with store.unit(shard) as unit:
        await refuse_moved(unit, {shard})
        current = await unit.lock_batch(batch.batch_id)
        if current is None:
            raise MeshError("BATCH_NOT_FOUND", batch_id=batch.batch_id)
        earlier = await unit.drawn(batch.batch_id, key)
        if earlier is not None:
            if earlier[0] != call.request_hash:
                raise MeshError("IDEMPOTENCY_KEY_REUSED", request_id=call.request_id)
            return
        # The batch may have been blocked since it was read; whoever blocks it waits for this draw, or is seen here.
        current.refuse_when_blocked(BlockScope.CLAIM)
        if current.total_quantity is not None:
            left = current.total_quantity - current.issued_quantity
            if quantity > left:
                raise MeshError("BATCH_EXHAUSTED", batch_id=batch.batch_id, left=str(left))
        await unit.draw(batch.batch_id, key, call.request_hash, quantity, clock())


class IssueCoupons:
    """The use case."""

    def __init__(
        self, *, store: Store, batches: BatchCache, mint: Mint, codes: CodeBook, ids: Ids, clock: Clock
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._batches = batches
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._clock = clock

    async def __call__(
        self, call: Call, *, batch_id: str, user_id: int | None, quantity: int
    ) -> Sequence[IssuedCoupon]:
        """Issues `quantity` coupons: into the user's shard, or all codes into one shard picked by the request.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, CODE_SPACE_EXHAUSTED,
                ACCOUNT_FROZEN, IDEMPOTENCY_KEY_REUSED.
        """
        batch = await self._batches.batch(batch_id)
        shard = spread_shard(call.caller, call.request_id) if user_id is None else user_shard(user_id)
        key = call.key(shard)
        if not await self._store.recorded([key]):
            await self._admit(batch, shard, user_id)
            await draw_from_batch(self._store, call, batch, quantity, self._clock)

        async def work(unit: Unit) -> bytes:
            if user_id is not None and await unit.frozen_accounts({(shard, user_id)}):
                raise MeshError("ACCOUNT_FROZEN", user_id=str(user_id))
            minted = await self._mint_all(unit, call, batch, shard=shard, user_id=user_id or 0, quantity=quantity)
            return b",".join(coupon.stored.coupon.coupon_id.encode() for coupon in minted)

        ids = (await run_once(self._store, key, call.request_hash, self._clock, work)).decode().split(",")
        # The record keeps ids only: codes are rebuilt from their ciphertext, for the first reply as for a replay.
        stored = await self._store.get_coupons(shard, ids)
        return [IssuedCoupon(each, self._codes.open(stored[each].code_sealed, each)) for each in ids]

    async def _admit(self, batch: Batch, shard: int, user_id: int | None) -> None:
        batch.refuse_when_blocked(BlockScope.CLAIM)
        terms = await self._batches.terms_of(batch)
        now_ms = self._clock()
        terms.refuse_when_over(batch_id=batch.batch_id, now_ms=now_ms)
        if user_id is not None and await self._store.ensure_accounts({(shard, user_id)}, now_ms):
            raise MeshError("ACCOUNT_FROZEN", user_id=str(user_id))

    async def _mint_all(
        self, unit: Unit, call: Call, batch: Batch, *, shard: int, user_id: int, quantity: int
    ) -> list[Minted]:
        short = batch.code_length == SHORT_CODE_LENGTH
        limit = SHORT_CODES_PER_SHARD if short else LONG_CODES_PER_SHARD
        first = await unit.lease_codes(shard, batch.code_length, quantity, limit)
        if first is None:
            raise MeshError("CODE_SPACE_EXHAUSTED", code_length=str(batch.code_length))
        terms = await self._batches.terms_of(batch)
        origin = call.origin(self._clock())
        made_by = request_digest(call)
        minted, index = [], []
        for counter in range(first, first + quantity):
            code = self._codes.encode(shard, counter, batch.code_length)
            coupon = self._mint.mint(
                coupon_id=f"{self._ids.next(shard):019d}",
                shard=shard,
                user_id=user_id,
                batch_id=batch.batch_id,
                terms_id=batch.terms_id,
                terms=terms,
                code=code,
                kind=JournalKind.ISSUED,
                origin=origin,
            )
            key_id, mac = self._codes.mac(self._codes.normalise(code))
            minted.append(coupon)
            index.append(IndexedCode(shard, key_id, mac, coupon.stored.coupon.coupon_id, batch.batch_id, made_by))
        await unit.insert_coupons([coupon.stored for coupon in minted])
        await unit.index_codes(index)
        await unit.append_journal([coupon.journal for coupon in minted])
        return minted
