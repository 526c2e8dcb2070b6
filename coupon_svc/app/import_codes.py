"""Takes over codes that another system made: all lines of a request or none.

The lines of one request may belong to several databases, so it runs in steps that a retry finds and completes: draw
from the batch, claim the codes in the index (which decides who owns a code), add the coupons, record the answer. A code
whose coupon was not added yet answers as unknown.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.issue import draw_from_batch, request_digest
from coupon_svc.app.minting import Mint
from coupon_svc.app.ports import Call, Clock, CodeBook, CodeKey, Ids, IndexedCode, Store, Unit
from coupon_svc.app.requests import refuse_moved, replay, run_once
from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.routing import home_shard, id_shard, mac_shard, user_shard
from meshkit.errors import MeshError
from meshkit.mysql_errors import DuplicateKey


@dataclass(frozen=True, slots=True)
class ImportLine:
    """One code of another system; without a user it stays unactivated."""

    code: str
    user_id: int | None


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with what was decided about it; `number` counts from 1."""

    number: int
    code: str
    normal: str
    user_id: int
    index: IndexedCode


Encode = Callable[[Sequence[str]], bytes]
_Item = TypeVar("_Item")


class ImportCodes:
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
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._directory = directory
        self._batches = batches
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._clock = clock

    async def __call__(self, call: Call, *, batch_id: str, lines: Sequence[ImportLine], encode: Encode) -> bytes:
        """Imports all lines and gives the encoded reply.

        Raises:
            MeshError: BATCH_NOT_FOUND, BATCH_BLOCKED, BATCH_EXHAUSTED, COUPON_EXPIRED, CODE_ALREADY_EXISTS,
                CODE_DUPLICATED, ACCOUNT_FROZEN, IDEMPOTENCY_KEY_REUSED.
        """
        key = call.key(home_shard(call.caller))
        earlier = (await self._store.recorded([key])).get(key)
        if earlier is not None:
            return replay(earlier, key, call.request_hash)
        batch = await self._batches.batch(batch_id)
        planned = self._plan(call, batch, lines)
        await self._admit(batch, planned)
        await self._refuse_known(planned)
        await draw_from_batch(self._store, call, batch, len(planned), self._clock)
        claimed = await self._claim(planned)
        await self._add_coupons(call, batch, claimed)
        self._directory.learn_imported_lengths({len(line.normal) for line in claimed})

        async def answer(_unit: Unit) -> bytes:
            return encode([line.index.coupon_id for line in claimed])

        return await run_once(self._store, key, call.request_hash, self._clock, answer)

    def _plan(self, call: Call, batch: Batch, lines: Sequence[ImportLine]) -> list[_Line]:
        made_by = request_digest(call)
        planned: list[_Line] = []
        seen: set[str] = set()
        for number, line in enumerate(lines, start=1):
            normal = self._codes.normalise(line.code)
            if normal in seen:
                raise MeshError("CODE_DUPLICATED", line=str(number))
            seen.add(normal)
            key_id, mac = self._codes.mac(normal)
            shard = mac_shard(mac)
            coupon_shard = shard if line.user_id is None else user_shard(line.user_id)
            coupon_id = f"{self._ids.next(coupon_shard):019d}"
            index = IndexedCode(shard, key_id, mac, coupon_id, batch.batch_id, made_by)
            planned.append(_Line(number, line.code, normal, line.user_id or 0, index))
        return planned

    async def _admit(self, batch: Batch, lines: Sequence[_Line]) -> None:
        batch.refuse_when_blocked(BlockScope.CLAIM)
        terms = await self._batches.terms_of(batch)
        now_ms = self._clock()
        terms.refuse_when_over(batch_id=batch.batch_id, now_ms=now_ms)
        users = {(user_shard(line.user_id), line.user_id) for line in lines if line.user_id}
        for group in self._by_database(users, lambda user: user[0]):
            for _, user_id in await self._store.ensure_accounts(set(group), now_ms):
                raise MeshError("ACCOUNT_FROZEN", user_id=str(user_id))

    async def _refuse_known(self, lines: Sequence[_Line]) -> None:
        """Refuses a code that any live key, or our own code space, already knows."""
        places: dict[CodeKey, _Line] = {}
        for line in lines:
            native_shard = self._codes.native_shard(line.normal)
            for key_id, mac in self._codes.macs(line.normal):
                places[CodeKey(mac_shard(mac), key_id, mac)] = line
                if native_shard is not None:
                    places[CodeKey(native_shard, key_id, mac)] = line
        known = [
            places[key].number
            for group in self._by_database(places, lambda key: key.shard)
            for key, entry in (await self._store.code_makers(group)).items()
            if entry.made_by != places[key].index.made_by
        ]
        if known:
            raise MeshError("CODE_ALREADY_EXISTS", line=str(min(known)))

    async def _claim(self, lines: Sequence[_Line]) -> list[_Line]:
        """Claims every code for this request, or none. Lines that an earlier try claimed keep their coupon id."""
        by_key = {CodeKey(line.index.shard, line.index.key_id, line.index.mac): line for line in lines}
        groups = self._by_database(by_key, lambda key: key.shard)
        claimed: dict[CodeKey, _Line] = {}
        for group in groups:
            for key, entry in (await self._claim_in_database(group, by_key)).items():
                line = by_key[key]
                if entry.made_by != line.index.made_by:
                    await asyncio.gather(*(self._store.drop_codes(each, line.index.made_by) for each in groups))
                    raise MeshError("CODE_ALREADY_EXISTS", line=str(line.number))
                claimed[key] = replace(line, index=entry)
        return [claimed[key] for key in by_key]

    async def _claim_in_database(
        self, keys: Sequence[CodeKey], lines: dict[CodeKey, _Line]
    ) -> dict[CodeKey, IndexedCode]:
        known = dict(await self._store.code_makers(keys))
        fresh = [lines[key].index for key in keys if key not in known]
        if fresh:
            try:
                async with self._store.unit(keys[0].shard) as unit:
                    await refuse_moved(unit, {key.shard for key in keys})
                    await unit.index_codes(fresh)
                    await unit.note_imported_lengths({(key.shard, len(lines[key].normal)) for key in keys})
            except DuplicateKey:
                pass  # Somebody claimed one in between; the index says who.
            known = dict(await self._store.code_makers(keys))
        return known

    async def _add_coupons(self, call: Call, batch: Batch, lines: Sequence[_Line]) -> None:
        terms = await self._batches.terms_of(batch)
        origin = call.origin(self._clock())
        for group in self._by_database(lines, lambda line: id_shard(line.index.coupon_id)):
            shards = {id_shard(line.index.coupon_id) for line in group}
            try:
                async with self._store.unit(min(shards)) as unit:
                    await refuse_moved(unit, shards)
                    # Their owners were let in; whoever freezes one meanwhile waits, and finds the coupon there.
                    await unit.frozen_accounts(
                        {(user_shard(line.user_id), line.user_id) for line in group if line.user_id}
                    )
                    keys = {(id_shard(line.index.coupon_id), line.index.coupon_id) for line in group}
                    present = await unit.existing_coupons(keys)
                    minted = [
                        self._mint.mint(
                            coupon_id=line.index.coupon_id,
                            shard=id_shard(line.index.coupon_id),
                            user_id=line.user_id,
                            batch_id=batch.batch_id,
                            terms_id=batch.terms_id,
                            terms=terms,
                            code=line.code,
                            kind=JournalKind.IMPORTED,
                            origin=origin,
                        )
                        for line in group
                        if line.index.coupon_id not in present
                    ]
                    if minted:
                        await unit.insert_coupons([coupon.stored for coupon in minted])
                        await unit.append_journal([coupon.journal for coupon in minted])
            except DuplicateKey:
                continue  # A twin of this request added them in the meantime.

    def _by_database(self, items: Iterable[_Item], shard_of: Callable[[_Item], int]) -> list[list[_Item]]:
        groups: dict[str, list[_Item]] = defaultdict(list)
        for item in items:
            groups[self._store.database_of(shard_of(item))].append(item)
        return list(groups.values())
