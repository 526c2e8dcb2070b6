"""Binds an unactivated coupon to a user, in three steps that anyone who comes by can complete.

The coupon was issued into the shard of its code; its owner's coupons live in the owner's shard. So activation marks the
coupon with its future owner and its lasting id (which decides), inserts the coupon under that id in the owner's shard,
and closes the old row. A process that dies in between leaves a mark; whoever sees it next finishes the work for the
owner that the mark names, so that there are never two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.issue import request_digest
from coupon_svc.app.minting import Mint, journal_step
from coupon_svc.app.ports import (
    Binding,
    Call,
    Clock,
    CodeBook,
    Ids,
    Store,
    StoredCoupon,
    Unit,
    VersionedUpdate,
)
from coupon_svc.app.requests import MAX_RUNS, refuse_moved, replay, run_once
from coupon_svc.domain.batch import BlockScope
from coupon_svc.domain.coupon import CouponStatus, move
from coupon_svc.domain.journal import JournalKind, Origin, Sign
from coupon_svc.domain.routing import id_shard, user_shard
from coupon_svc.domain.terms import Terms
from coupon_svc.domain.times import format_utc
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, Deadlock, DuplicateKey

Encode = Callable[[StoredCoupon, Terms], bytes]


@dataclass(frozen=True, slots=True)
class ActivateCommand:
    """What a caller asks for; `encode` makes the reply that is recorded."""

    call: Call
    code: str
    user_id: int
    encode: Encode


class ActivateCoupon:
    """The use case."""

    def __init__(
        self,
        *,
        store: Store,
        directory: CouponDirectory,
        batches: BatchCache,
        mint: Mint,
        codes: CodeBook,
        ids: Ids,
        sign: Sign,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._directory = directory
        self._batches = batches
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._sign = sign
        self._clock = clock

    async def __call__(self, command: ActivateCommand) -> bytes:
        """Gives the coupon to the user and answers with the encoded reply.

        Raises:
            MeshError: CODE_MISTYPED, COUPON_NOT_FOUND, COUPON_ALREADY_ACTIVATED, COUPON_EXPIRED, BATCH_BLOCKED,
                ACCOUNT_FROZEN, RISK_REJECTED, IDEMPOTENCY_KEY_REUSED.
        """
        call = command.call
        await self._directory.refuse_guesser(call)
        await self._directory.by_code(command.code, call)
        origin_id = await self._directory.coupon_id_of(command.code)
        key = call.key(user_shard(command.user_id))
        earlier = (await self._store.recorded([key])).get(key)
        answer = None if earlier is None else replay(earlier, key, call.request_hash)
        stored = await self._marked(command, origin_id, may_mark=answer is None)
        binding = stored.binding
        if binding is None:
            raise LookupError(f"coupon {origin_id} was marked without a binding")
        mine = binding.bound_by == request_digest(call)
        inserted = await self._insert(stored, binding, command if mine else None)
        await self._close(stored, binding)
        if answer is None:
            answer = inserted
        if answer is None:
            raise MeshError("COUPON_ALREADY_ACTIVATED", coupon_id=binding.coupon_id)
        return answer

    async def _marked(self, command: ActivateCommand, coupon_id: str, *, may_mark: bool) -> StoredCoupon:
        """The unactivated coupon with a mark on it: the one found there, or a new one for this command."""
        shard = id_shard(coupon_id)
        for _ in range(MAX_RUNS):
            found = await self._store.get_coupon(coupon_id)
            if found is None:
                raise MeshError("COUPON_NOT_FOUND")
            if found.binding is not None:
                return found
            if found.coupon.user_id or not may_mark:
                raise MeshError("COUPON_ALREADY_ACTIVATED", coupon_id=coupon_id)
            await self._admit(command, found)
            try:
                async with self._store.unit(shard) as unit:
                    await refuse_moved(unit, {shard})
                    await self._mark(unit, command, coupon_id)
            except (Deadlock, CommitOutcomeUnknown):
                continue
        raise MeshError("UNAVAILABLE", part="mysql")

    async def _admit(self, command: ActivateCommand, found: StoredCoupon) -> None:
        batch = await self._batches.batch(found.coupon.batch_id)
        batch.refuse_when_blocked(BlockScope.CLAIM)
        user = (user_shard(command.user_id), command.user_id)
        if await self._store.ensure_accounts({user}, self._clock()):
            raise MeshError("ACCOUNT_FROZEN", user_id=str(command.user_id))

    async def _mark(self, unit: Unit, command: ActivateCommand, coupon_id: str) -> None:
        stored = await unit.lock_stored(id_shard(coupon_id), coupon_id)
        if stored is None:
            raise MeshError("COUPON_NOT_FOUND")
        if stored.binding is not None:
            return
        now_ms = self._clock()
        coupon = stored.coupon
        if coupon.status_at(now_ms) is CouponStatus.EXPIRED:
            raise MeshError("COUPON_EXPIRED", coupon_id=coupon_id, expires_at=format_utc(coupon.expires_at_ms))
        lasting_id = f"{self._ids.next(user_shard(command.user_id)):019d}"
        binding = Binding(command.user_id, lasting_id, request_digest(command.call))
        row = journal_step(
            stored,
            JournalKind.ACTIVATION_MARKED,
            coupon.status,
            command.call.origin(now_ms),
            self._sign,
            binding=binding,
        )
        await unit.bind_coupon(coupon.shard, coupon_id, binding)
        await unit.update_coupons([VersionedUpdate.follow(coupon, coupon, row)])
        await unit.append_journal([row])

    async def _insert(self, stored: StoredCoupon, binding: Binding, command: ActivateCommand | None) -> bytes | None:
        """Adds the coupon under its lasting id unless it is there; `command` is given when the mark is its own."""
        origin = await self._origin_of_mark(stored)
        batch = await self._batches.batch(stored.coupon.batch_id)
        terms = (await self._batches.terms([stored.coupon.terms_id]))[stored.coupon.terms_id]
        shard = user_shard(binding.user_id)
        minted = self._mint.mint(
            coupon_id=binding.coupon_id,
            shard=shard,
            user_id=binding.user_id,
            batch_id=batch.batch_id,
            terms_id=stored.coupon.terms_id,
            terms=terms,
            code=self._codes.open(stored.code_sealed, stored.coupon.coupon_id),
            kind=JournalKind.ACTIVATED,
            origin=origin,
        )

        async def work(unit: Unit) -> bytes:
            # The mark let its owner in; whoever freezes the account meanwhile waits, and finds the coupon there.
            await unit.frozen_accounts({(shard, binding.user_id)})
            if not await unit.existing_coupons({(shard, binding.coupon_id)}):
                await unit.insert_coupons([minted.stored])
                await unit.append_journal([minted.journal])
            return b"" if command is None else command.encode(minted.stored, terms)

        if command is not None:
            call = command.call
            return await run_once(self._store, call.key(shard), call.request_hash, self._clock, work)
        try:
            async with self._store.unit(shard) as unit:
                await refuse_moved(unit, {shard})
                await work(unit)
        except DuplicateKey:
            pass  # Its own process finished it in the meantime.
        return None

    async def _close(self, stored: StoredCoupon, binding: Binding) -> None:
        """Moves the old row on to ACTIVATED, once."""
        if stored.coupon.status is not CouponStatus.UNACTIVATED:
            return
        shard = stored.coupon.shard
        # Read before the row is locked: those who wait for the lock may hold every other connection.
        origin = await self._origin_of_mark(stored)
        async with self._store.unit(shard) as unit:
            await refuse_moved(unit, {shard})
            current = await unit.lock_stored(shard, stored.coupon.coupon_id)
            if current is None or current.coupon.status is not CouponStatus.UNACTIVATED:
                return
            row = journal_step(
                current, JournalKind.ACTIVATED, CouponStatus.ACTIVATED, origin, self._sign, binding=binding
            )
            after = move(current.coupon, CouponStatus.ACTIVATED)
            await unit.update_coupons([VersionedUpdate.follow(current.coupon, after, row)])
            await unit.append_journal([row])

    async def _origin_of_mark(self, stored: StoredCoupon) -> Origin:
        """The request that marked the coupon, whose doing every later step is, whoever completes it."""
        for row in await self._store.journal(stored.coupon.coupon_id, above_seq=1, limit=2):
            if row.kind is JournalKind.ACTIVATION_MARKED:
                return row.origin
        raise LookupError(f"coupon {stored.coupon.coupon_id} is bound, but its journal has no mark")
