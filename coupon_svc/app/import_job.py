"""Runs an import: all lines of it or none, whoever runs it and however often.

Its phases: CHECK looks at every line and writes nothing; then the quantity is drawn from the batch. CLAIM adds the
codes to the index, which decides who owns a code, behind gates that keep them out of sight. When all are claimed, the
import can't fail any more: FILL adds the coupons, and in the end the gates are opened. When a code turns out to be
somebody else's, UNDO shuts the gates for good, so that a slow process can claim nothing more, and takes the claims and
the draw back. A coupon with an owner shows in the owner's list from FILL on; no code can be used before the end.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.issue import draw_from_batch, refuse_closed
from coupon_svc.app.issue_job import ReturnDraw, job_call, job_digest, job_origin
from coupon_svc.app.issuing import ROWS_AT_ONCE
from coupon_svc.app.job_ports import JobStore, Lease, LineSeal
from coupon_svc.app.jobs import CHUNKS_AT_ONCE, PASSING, LeaseLostError, all_or_first_error, held
from coupon_svc.app.line_check import CODE_EXISTS, LineCheck, by_database
from coupon_svc.app.minting import Mint, Minted
from coupon_svc.app.pace import Pace
from coupon_svc.app.ports import Clock, CodeBook, CodeKey, Ids, IndexedCode, RequestKey, Store, Unit
from coupon_svc.app.requests import MAX_RUNS, refuse_moved
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.import_lines import ImportLine, LineError
from coupon_svc.domain.job import CHUNK, Job, JobError, JobPhase, JobState
from coupon_svc.domain.journal import JournalKind
from coupon_svc.domain.routing import SHARDS, home_shard, id_shard, mac_shard, user_shard
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, Deadlock, DuplicateKey

_OPEN, _UNDONE = 2, 3


def pack_lines(lines: Sequence[ImportLine]) -> bytes:
    """A chunk of lines as it is sealed."""
    return json.dumps([[line.code, line.user] for line in lines], separators=(",", ":")).encode()


def unpack_lines(packed: bytes) -> list[ImportLine]:
    """What `pack_lines` wrote."""
    return [ImportLine(code, user) for code, user in json.loads(packed)]


@dataclass(frozen=True, slots=True)
class _Claim:
    """A line and where its code belongs in the index."""

    number: int
    line: ImportLine
    length: int
    key: CodeKey


class _LinesTakenError(Exception):
    """Codes that somebody else claimed since they were checked."""

    def __init__(self, lines: Sequence[LineError]) -> None:
        super().__init__(len(lines))
        self.lines = lines


class ImportJob:
    """Handles jobs of the kind IMPORT."""

    def __init__(
        self,
        *,
        store: Store,
        jobs: JobStore,
        seal: LineSeal,
        batches: BatchCache,
        mint: Mint,
        codes: CodeBook,
        ids: Ids,
        return_draw: ReturnDraw,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._jobs = jobs
        self._seal = seal
        self._batches = batches
        self._mint = mint
        self._codes = codes
        self._ids = ids
        self._return_draw = return_draw
        self._clock = clock

    async def run(self, job: Job, lease: Lease) -> None:
        """See `Handler.run`."""
        if job.phase is JobPhase.UNDO:
            await self._undo(job, lease)
            return
        try:
            if job.phase is JobPhase.CHECK:
                await self._check(job, lease)
            if job.phase in {JobPhase.CHECK, JobPhase.CLAIM}:
                await self._claim(job, lease)
        except _LinesTakenError as taken:
            first = taken.lines[0]
            await self._fail(job, lease, JobError(first.reason, {"line": str(first.line)}), taken.lines)
            return
        except MeshError as refusal:
            if refusal.reason in PASSING:
                raise
            await self._fail(job, lease, JobError(refusal.reason, refusal.metadata), ())
            return
        await self._fill(job, lease)

    async def fail(self, job: Job, lease: Lease, error: JobError) -> None:
        """See `Handler.fail`; what was decided is completed."""
        if job.phase is JobPhase.FILL:
            await self._fill(job, lease)
        elif job.phase is JobPhase.UNDO:
            await self._undo(job, lease)
        else:
            await self._fail(job, lease, error, ())

    async def _fail(self, job: Job, lease: Lease, error: JobError, lines: Sequence[LineError]) -> None:
        await held(self._jobs.begin_undo(job.job_id, lease, error, lines))
        await self._undo(job, lease)

    # --- CHECK ---

    async def _check(self, job: Job, lease: Lease) -> None:
        batch = await self._batches.batch(job.batch_id)
        await refuse_closed(self._batches, batch, self._clock())
        check = LineCheck(self._store, self._jobs, self._codes, job_digest(job))
        errors: list[LineError] = []
        async for chunk, lines in self._chunks(job):
            errors += await check.check(lines)
            await self._renew(job, lease, JobPhase.CHECK, chunk)
        if errors:
            raise _LinesTakenError(errors)
        if await draw_from_batch(self._store, job_call(job), batch, job.total_count, self._clock) < job.total_count:
            raise LeaseLostError
        await held(self._jobs.advance(job.job_id, lease, JobPhase.CLAIM, 0))

    # --- CLAIM ---

    async def _claim(self, job: Job, lease: Lease) -> None:
        taken: list[LineError] = []
        async for chunk, lines in self._chunks(job):
            claims = await self._claims(chunk, lines)
            for group in by_database(self._store, claims, lambda claim: claim.key.shard):
                taken += await self._claim_in_database(job, group)
            if taken:
                raise _LinesTakenError(sorted(taken, key=lambda each: each.line))
            await self._renew(job, lease, JobPhase.CLAIM, chunk)
        await held(self._jobs.advance(job.job_id, lease, JobPhase.FILL, 0))

    async def _claim_in_database(self, job: Job, claims: Sequence[_Claim]) -> list[LineError]:
        """Claims codes, or says which are somebody else's; those that an earlier run claimed stay as they are."""
        made_by = job_digest(job)
        keys = [claim.key for claim in claims]
        for _ in range(MAX_RUNS):
            known = await self._jobs.claimed(keys)
            taken = [
                LineError(claim.number, "code", "CODE_ALREADY_EXISTS", CODE_EXISTS)
                for claim in claims
                if claim.key in known and known[claim.key].made_by != made_by
            ]
            fresh = [claim for claim in claims if claim.key not in known]
            if taken or not fresh:
                return taken
            try:
                async with self._store.unit(keys[0].shard) as unit:
                    await self._add_claims(unit, job, fresh, made_by)
            except (DuplicateKey, Deadlock, CommitOutcomeUnknown):
                continue  # Somebody claimed one in between; the index says who.
        raise MeshError("UNAVAILABLE", part="mysql")

    async def _add_claims(self, unit: Unit, job: Job, claims: Sequence[_Claim], made_by: bytes) -> None:
        shards = {claim.key.shard for claim in claims}
        await refuse_moved(unit, shards)
        if not await self._jobs.hold_gates(unit, made_by, shards, self._clock()):
            raise LeaseLostError
        await unit.index_codes([self._entry(job, claim, made_by) for claim in claims])
        await unit.note_imported_lengths({(claim.key.shard, claim.length) for claim in claims})

    def _entry(self, job: Job, claim: _Claim, made_by: bytes) -> IndexedCode:
        shard = user_shard(claim.line.user_id) if claim.line.user else claim.key.shard
        return IndexedCode(*claim.key, f"{self._ids.next(shard):019d}", job.batch_id, made_by)

    # --- FILL ---

    async def _fill(self, job: Job, lease: Lease) -> None:
        made = await self._jobs.done_chunks(job.job_id)
        done = sum(map(job.chunk_size, made))
        waiting = iter([chunk for chunk in range(job.chunks) if chunk not in made])

        async def work() -> None:
            nonlocal done
            for chunk in waiting:
                ids = await self._add_coupons(job, await self._claims(chunk, await self._lines(job, chunk)))
                done += len(ids)
                await held(self._jobs.note_chunk(job.job_id, lease, chunk, ids, done))

        await all_or_first_error([work() for _ in range(CHUNKS_AT_ONCE)])
        await self._set_gates(job, await self._gated(job), _OPEN)
        await held(self._jobs.finish(job.job_id, lease, JobState.SUCCEEDED, job.total_count, self._clock()))

    async def _add_coupons(self, job: Job, claims: Sequence[_Claim]) -> list[str]:
        """Adds the coupons of claimed lines that are not there yet; gives the ids of all, in order."""
        entries: dict[CodeKey, IndexedCode] = {}
        for keys in by_database(self._store, [claim.key for claim in claims], lambda key: key.shard):
            entries.update(await self._jobs.claimed(keys))
        owned = [(claim, entries[claim.key].coupon_id) for claim in claims]
        for group in by_database(self._store, owned, lambda pair: id_shard(pair[1])):
            await self._add_in_database(job, group)
        return [coupon_id for _, coupon_id in owned]

    async def _add_in_database(self, job: Job, owned: Sequence[tuple[_Claim, str]]) -> None:
        users = {(user_shard(claim.line.user_id), claim.line.user_id) for claim, _ in owned if claim.line.user}
        # Their owners were let in when the lines were checked; one who was frozen since finds the coupon frozen.
        await self._store.ensure_accounts(users, self._clock())
        keys = {(id_shard(coupon_id), coupon_id) for _, coupon_id in owned}
        batch = await self._batches.batch(job.batch_id)
        terms = await self._batches.terms_of(batch)
        for _ in range(MAX_RUNS):
            try:
                async with self._store.unit(min(keys)[0]) as unit:
                    await refuse_moved(unit, {shard for shard, _ in keys})
                    await unit.frozen_accounts(users)
                    present = await unit.existing_coupons(keys)
                    await self._mint_all(unit, job, batch, terms, [pair for pair in owned if pair[1] not in present])
            except (DuplicateKey, Deadlock, CommitOutcomeUnknown):
                continue  # Another process may be at the same chunk.
            return
        raise MeshError("UNAVAILABLE", part="mysql")

    async def _mint_all(
        self, unit: Unit, job: Job, batch: Batch, terms: Terms, owned: Sequence[tuple[_Claim, str]]
    ) -> None:
        origin = job_origin(job, self._clock())
        pace = Pace()
        minted: list[Minted] = []
        for position, (claim, coupon_id) in enumerate(owned, start=1):
            minted.append(
                self._mint.mint(
                    coupon_id=coupon_id,
                    shard=id_shard(coupon_id),
                    user_id=claim.line.user_id,
                    batch_id=batch.batch_id,
                    terms_id=batch.terms_id,
                    terms=terms,
                    code=claim.line.code,
                    kind=JournalKind.IMPORTED,
                    origin=origin,
                )
            )
            await pace.breathe()
            if len(minted) == ROWS_AT_ONCE or position == len(owned):
                await unit.insert_coupons([each.stored for each in minted])
                await unit.append_journal([each.journal for each in minted])
                minted.clear()

    # --- UNDO ---

    async def _undo(self, job: Job, lease: Lease) -> None:
        if await self._return_draw.drew(job):
            await self._set_gates(job, await self._gated(job), _UNDONE)
            async for chunk, lines in self._chunks(job):
                claims = await self._claims(chunk, lines)
                for group in by_database(self._store, claims, lambda claim: claim.key.shard):
                    keys = [claim.key for claim in group]
                    async with self._store.unit(keys[0].shard) as unit:
                        await refuse_moved(unit, {key.shard for key in keys})
                        await self._jobs.drop_claims(unit, keys, job_digest(job))
                await self._renew(job, lease, JobPhase.UNDO, chunk)
            await self._return_draw.keep(job, 0)
        # A call that waited is refused, and a refusal is not recorded: it may be made again.
        forget = RequestKey(home_shard(job.caller), job.caller, job.request_id) if job.direct else None
        await held(self._jobs.finish(job.job_id, lease, JobState.FAILED, 0, self._clock(), forget=forget))

    # --- lines and gates ---

    async def _renew(self, job: Job, lease: Lease, phase: JobPhase, chunk: int) -> None:
        """Renews the lease after a chunk, unless it is the last one: the step that follows does."""
        if chunk + 1 < job.chunks:
            await held(self._jobs.advance(job.job_id, lease, phase, 0))

    async def _chunks(self, job: Job) -> AsyncIterator[tuple[int, list[ImportLine]]]:
        for chunk in range(job.chunks):
            yield chunk, await self._lines(job, chunk)

    async def _lines(self, job: Job, chunk: int) -> list[ImportLine]:
        sealed = await self._jobs.job_lines(job.job_id, chunk)
        return unpack_lines(self._seal.open_lines(sealed, job.job_id, chunk))

    async def _claims(self, chunk: int, lines: Sequence[ImportLine]) -> list[_Claim]:
        pace = Pace()
        claims = []
        for number, line in enumerate(lines, start=chunk * CHUNK + 1):
            normal = self._codes.normalise(line.code)
            key_id, mac = self._codes.mac(normal)
            claims.append(_Claim(number, line, len(normal), CodeKey(mac_shard(mac), key_id, mac)))
            await pace.breathe()
        return claims

    async def _gated(self, job: Job) -> set[int]:
        """The shards of the index that the import may have touched."""
        if job.chunks > 1:
            return set(range(SHARDS))
        return {claim.key.shard for claim in await self._claims(0, await self._lines(job, 0))}

    async def _set_gates(self, job: Job, shards: set[int], state: int) -> None:
        for group in by_database(self._store, shards, lambda shard: shard):
            async with self._store.unit(group[0]) as unit:
                await refuse_moved(unit, set(group))
                await self._jobs.set_gates(unit, job_digest(job), set(group), state, self._clock())
