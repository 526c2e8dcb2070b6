"""Freezes and unfreezes coupons and accounts.

A frozen account is one row: every write to a coupon holds its owner's row in share mode until it commits, and freezing
changes that row. So freezing waits for the writes under way, and whoever comes later sees it (CONSISTENCY, "Fences").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from coupon_svc.app.account_ports import AccountBook
from coupon_svc.app.batches import BatchCache
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.ports import Call, Clock, CodeBook, Store, StoredCoupon, Unit
from coupon_svc.app.reading import CouponView, mask
from coupon_svc.app.requests import run_once
from coupon_svc.app.steps import step
from coupon_svc.domain.account import Account, AccountStatus
from coupon_svc.domain.coupon import CouponStatus, freeze, unfreeze
from coupon_svc.domain.journal import ChainHead, JournalKind, JournalRow, Sign, account_chain, sealed
from coupon_svc.domain.routing import user_shard
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError

EncodeCoupon = Callable[[CouponView], bytes]
EncodeAccount = Callable[[Account], bytes]


class Freezing:
    """The four use cases."""

    def __init__(
        self,
        *,
        store: Store,
        accounts: AccountBook,
        directory: CouponDirectory,
        batches: BatchCache,
        codes: CodeBook,
        sign: Sign,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._accounts = accounts
        self._directory = directory
        self._batches = batches
        self._codes = codes
        self._sign = sign
        self._clock = clock

    async def coupon(self, call: Call, *, coupon_id: str, frozen: bool, reason: str, encode: EncodeCoupon) -> bytes:
        """Freezes or unfreezes a coupon and gives the encoded reply.

        Raises:
            MeshError: COUPON_NOT_FOUND, STATUS_TRANSITION_REFUSED, IDEMPOTENCY_KEY_REUSED.
        """
        facts = await self._directory.by_id(coupon_id)
        terms = (await self._batches.terms([facts.terms_id]))[facts.terms_id]

        async def work(unit: Unit) -> bytes:
            owner = {(facts.shard, facts.user_id)} if facts.user_id else set()
            account_frozen = bool(await unit.frozen_accounts(owner))
            stored = await unit.lock_stored(facts.shard, facts.coupon_id)
            if stored is None:
                raise MeshError("COUPON_NOT_FOUND")
            now_ms = self._clock()
            coupon = stored.coupon
            after = (freeze if frozen else unfreeze)(coupon, now_ms=now_ms)
            kind = JournalKind.FROZEN if frozen else JournalKind.UNFROZEN
            update, row = step(coupon, after, kind, call.origin(now_ms), self._sign, reason=reason)
            await unit.update_coupons([update])
            await unit.append_journal([row])
            return encode(self._view(replace(stored, coupon=update.after), terms, account_frozen=account_frozen))

        return await run_once(self._store, call.key(facts.shard), call.request_hash, self._clock, work)

    async def account(
        self, call: Call, *, user_id: int, status: AccountStatus, reason: str, encode: EncodeAccount
    ) -> bytes:
        """Freezes or unfreezes an account and gives the encoded reply.

        Raises:
            MeshError: ACCOUNT_FROZEN, ACCOUNT_NOT_FROZEN, IDEMPOTENCY_KEY_REUSED.
        """
        shard = user_shard(user_id)
        key = call.key(shard)
        if status is AccountStatus.FROZEN:
            # Somebody without a coupon can be frozen too: the row decides about the first one.
            await self._store.ensure_accounts({(shard, user_id)}, self._clock())
        elif not await self._store.account_frozen(shard, user_id) and not await self._store.recorded([key]):
            raise MeshError("ACCOUNT_NOT_FROZEN", user_id=str(user_id))

        async def work(unit: Unit) -> bytes:
            account = await self._accounts.lock(unit, shard, user_id)
            account.refuse_status(status)
            row = self._account_row(account, call, status, reason)
            after = replace(
                account,
                status=status,
                reason=reason if status is AccountStatus.FROZEN else "",
                head=ChainHead.of(row),
                update_time_ms=row.origin.time_ms,
            )
            await self._accounts.store(unit, after)
            await unit.append_journal([row])
            return encode(after)

        return await run_once(self._store, key, call.request_hash, self._clock, work)

    def _account_row(self, account: Account, call: Call, status: AccountStatus, reason: str) -> JournalRow:
        frozen = status is AccountStatus.FROZEN
        return sealed(
            JournalRow(
                shard=account.shard,
                coupon_id=account_chain(account.user_id),
                seq=account.head.seq + 1,
                kind=JournalKind.ACCOUNT_FROZEN if frozen else JournalKind.ACCOUNT_UNFROZEN,
                status_before=account.status,
                status_after=status,
                user_id=account.user_id,
                origin=call.origin(self._clock()),
                balance_after_minor=0,
                reason=reason,
                prev_hash=account.head.hash,
            ),
            self._sign,
        )

    def _view(self, stored: StoredCoupon, terms: Terms, *, account_frozen: bool) -> CouponView:
        status = CouponStatus.FROZEN if account_frozen else stored.coupon.status
        return CouponView(stored, terms, status, mask(self._codes.open(stored.code_sealed, stored.coupon.coupon_id)))
