"""Jobs in the coupon databases, behind the `JobStore` port."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.adapters.mysql_unit import MysqlUnit
from coupon_svc.app.job_ports import Lease
from coupon_svc.app.ports import CodeKey, IndexedCode, RequestKey, Unit
from coupon_svc.domain.import_lines import LineError
from coupon_svc.domain.job import Job, JobError, JobKind, JobPhase, JobState
from coupon_svc.domain.routing import id_shard
from coupon_svc.domain.times import utc_datetime
from meshkit.errors import MeshError
from meshkit.mysql import Databases, Transaction
from meshkit.queries import load_queries

# Rows in one statement: sealed lines are some 20 KiB each.
_LINE_CHUNKS_AT_ONCE = 10
_ROWS_AT_ONCE = 500
_NOBODY = bytes(16)
_FILLING = 1
_FROZEN = 2
_FREE = -1


class MysqlJobs:
    """Implements `JobStore` on meshkit's databases."""

    def __init__(self, store: MysqlStore, databases: Databases, *, timeout_s: float) -> None:
        """`store` opens the write transactions; `timeout_s` bounds each read."""
        self._store = store
        self._databases = databases
        self._queries = {**load_queries("coupon_svc"), **load_queries("coupon_svc", "sql/jobs.sql")}
        self._timeout_s = timeout_s
        self._by_name = {database.name: database for database in databases.all}

    # --- a job's life ---

    async def insert_job(self, unit: Unit, job: Job, lines: Sequence[bytes], lease: Lease | None) -> None:
        """See `JobStore.insert_job`."""
        tx = _transaction(unit)
        key = _key(job.job_id)
        await tx.execute(
            self._queries["insert_job"],
            {
                **key,
                "kind": int(job.kind),
                "phase": int(job.phase),
                "direct": job.direct,
                "batch_id": job.batch_id,
                "user_id": job.user_id,
                "caller": job.caller,
                "request_id": job.request_id,
                "request_hash": job.request_hash,
                "trace_id": job.trace_id,
                "total_count": job.total_count,
                "lease_holder": _NOBODY if lease is None else lease.holder,
                "lease_ms": _FREE if lease is None else lease.lease_ms,
                "create_time": utc_datetime(job.create_time_ms),
            },
        )
        for first in range(0, len(lines), _LINE_CHUNKS_AT_ONCE):
            rows = [
                (*key.values(), chunk, sealed)
                for chunk, sealed in enumerate(lines[first : first + _LINE_CHUNKS_AT_ONCE], start=first)
            ]
            await tx.insert_many(self._queries["insert_job_lines"], rows)

    async def open_jobs(self, caller: str, shard: int, limit: int) -> int:
        """See `JobStore.open_jobs`."""
        rows = await self._read(shard, "count_open_jobs", {"caller": caller, "shard": shard, "limit": limit})
        return int(rows[0][0])

    async def get_job(self, job_id: str) -> Job | None:
        """See `JobStore.get_job`."""
        rows = await self._read(id_shard(job_id), "get_job", _key(job_id))
        return _job(rows[0]) if rows else None

    async def due_jobs(self, database: str, limit: int, *, direct_only: bool) -> Sequence[tuple[str, bool]]:
        """See `JobStore.due_jobs`."""
        params = {"direct": int(direct_only), "limit": limit}
        async with self._by_name[database].snapshot(timeout_s=self._timeout_s) as tx:
            return [(job_id, bool(direct)) for job_id, direct in await tx.fetch_all(self._queries["due_jobs"], params)]

    async def take_job(self, job_id: str, lease: Lease) -> Job | None:
        """See `JobStore.take_job`."""
        async with self._write(id_shard(job_id)) as tx:
            if not await tx.execute(self._queries["take_job"], _held(job_id, lease)):
                return None
            row = await tx.fetch_one(self._queries["get_job"], _key(job_id))
        return None if row is None else _job(row)

    async def advance(self, job_id: str, lease: Lease, phase: JobPhase, done_count: int) -> bool:
        """See `JobStore.advance`."""
        async with self._write(id_shard(job_id)) as tx:
            params = {**_held(job_id, lease), "phase": int(phase), "done_count": done_count}
            return await tx.execute(self._queries["advance_job"], params) == 1

    async def note_chunk(self, job_id: str, lease: Lease, chunk: int, coupon_ids: Sequence[str], done: int) -> bool:
        """See `JobStore.note_chunk`."""
        async with self._write(id_shard(job_id)) as tx:
            if not await tx.execute(self._queries["note_chunk_done"], {**_held(job_id, lease), "done_count": done}):
                return False
            packed = struct.pack(f">{len(coupon_ids)}Q", *map(int, coupon_ids))
            params = {**_key(job_id), "chunk": chunk, "coupon_ids": packed}
            await tx.insert_many(self._queries["insert_job_coupons"], [params])
        return True

    async def let_go(self, job_id: str, lease: Lease, retry_in_ms: int) -> None:
        """See `JobStore.let_go`."""
        async with self._write(id_shard(job_id)) as tx:
            await tx.execute(self._queries["let_job_go"], {**_held(job_id, lease), "retry_in_ms": retry_in_ms})

    async def begin_undo(self, job_id: str, lease: Lease, error: JobError, lines: Sequence[LineError]) -> bool:
        """See `JobStore.begin_undo`."""
        shard, key = id_shard(job_id), _key(job_id)
        for first in range(0, len(lines), _ROWS_AT_ONCE):
            async with self._write(shard) as tx:
                await tx.insert_many(
                    self._queries["insert_line_errors"],
                    [
                        (*key.values(), each.line, each.field, each.reason, each.problem)
                        for each in lines[first : first + _ROWS_AT_ONCE]
                    ],
                )
        written = json.dumps({"reason": error.reason, "metadata": dict(error.metadata)}, ensure_ascii=False)
        async with self._write(shard) as tx:
            params = {**_held(job_id, lease), "error": written, "line_error_count": len(lines)}
            return await tx.execute(self._queries["begin_undo"], params) == 1

    async def finish(
        self,
        job_id: str,
        lease: Lease,
        state: JobState,
        done_count: int,
        now_ms: int,
        *,
        forget: RequestKey | None = None,
    ) -> bool:
        """See `JobStore.finish`."""
        async with self._write(id_shard(job_id)) as tx:
            params = {
                **_held(job_id, lease),
                "state": int(state),
                "done_count": done_count,
                "finish_time": utc_datetime(now_ms),
            }
            if not await tx.execute(self._queries["finish_job"], params):
                return False
            await tx.execute(self._queries["drop_job_lines"], _key(job_id))
            if forget is not None:
                await tx.execute(self._queries["forget_request"], forget._asdict())
        return True

    # --- what belongs to it ---

    async def job_lines(self, job_id: str, chunk: int) -> bytes:
        """See `JobStore.job_lines`."""
        rows = await self._read(id_shard(job_id), "job_lines", {**_key(job_id), "chunk": chunk})
        if not rows:
            raise LookupError(f"job {job_id} has no lines of chunk {chunk}")
        sealed: bytes = rows[0][0]
        return sealed

    async def done_chunks(self, job_id: str) -> set[int]:
        """See `JobStore.done_chunks`."""
        return {chunk for (chunk,) in await self._read(id_shard(job_id), "done_chunks", _key(job_id))}

    async def job_coupons(self, job_id: str, first_chunk: int, limit: int) -> Sequence[tuple[int, Sequence[str]]]:
        """See `JobStore.job_coupons`."""
        params = {**_key(job_id), "first_chunk": first_chunk, "limit": limit}
        return [
            (chunk, [f"{number:019d}" for (number,) in struct.iter_unpack(">Q", packed)])
            for chunk, packed in await self._read(id_shard(job_id), "job_coupons", params)
        ]

    async def line_errors(self, job_id: str, above_line: int, limit: int) -> Sequence[LineError]:
        """See `JobStore.line_errors`."""
        params = {**_key(job_id), "above_line": above_line, "limit": limit}
        return [LineError(*row) for row in await self._read(id_shard(job_id), "line_errors", params)]

    # --- imports ---

    async def hold_gates(self, unit: Unit, made_by: bytes, shards: set[int], now_ms: int) -> bool:
        """See `JobStore.hold_gates`."""
        tx = _transaction(unit)
        rows = [(shard, made_by, utc_datetime(now_ms)) for shard in sorted(shards)]
        await tx.insert_many(self._queries["ensure_gates"], rows)
        keys = [(shard, made_by) for shard in sorted(shards)]
        states = await tx.fetch_all(self._queries["hold_gates"], {"keys": keys})
        return all(state == _FILLING for (state,) in states)

    async def set_gates(self, unit: Unit, made_by: bytes, shards: set[int], state: int, now_ms: int) -> None:
        """See `JobStore.set_gates`."""
        rows = [(shard, made_by, state, utc_datetime(now_ms)) for shard in sorted(shards)]
        await _transaction(unit).insert_many(self._queries["set_gates"], rows)

    async def purge_gates(self, database: str, before_ms: int, limit: int) -> int:
        """See `JobStore.purge_gates`."""
        async with self._by_name[database].transaction(timeout_s=self._timeout_s) as tx:
            params = {"before": utc_datetime(before_ms), "limit": limit}
            return await tx.execute(self._queries["purge_gates"], params)

    async def claimed(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, IndexedCode]:
        """See `JobStore.claimed`."""
        rows = await self._read(keys[0].shard, "find_codes", {"keys": sorted(map(tuple, keys))})
        return {CodeKey(*row[:3]): mysql_rows.indexed_code(row) for row in rows}

    async def drop_claims(self, unit: Unit, keys: Sequence[CodeKey], made_by: bytes) -> None:
        """See `JobStore.drop_claims`."""
        rows = [(*key, made_by) for key in sorted(keys)]
        await _transaction(unit).execute_rows(self._queries["drop_claims"], rows)

    async def frozen_users(self, users: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """See `JobStore.frozen_users`."""
        rows = await self._read(min(users)[0], "account_statuses", {"users": sorted(users)})
        return {(shard, user_id) for shard, user_id, status in rows if status == _FROZEN}

    # --- the draw of a job ---

    async def lower_draw(self, unit: Unit, batch_id: str, key: RequestKey, drawn: int, kept: int) -> None:
        """See `JobStore.lower_draw`."""
        tx = _transaction(unit)
        await tx.execute(self._queries["lower_draw"], {**key._asdict(), "batch_id": batch_id, "kept": kept})
        params = {"shard": key.shard, "batch_id": batch_id, "quantity": kept - drawn}
        await tx.execute(self._queries["count_draw"], params)

    # --- short codes ---

    async def code_room(self, shards: Sequence[int], code_length: int, limit: int) -> Mapping[int, int]:
        """See `JobStore.code_room`."""
        params = {"shards": list(shards), "code_length": code_length}
        used = dict(await self._read(shards[0], "code_counters", params))
        return {shard: max(0, limit - used.get(shard, 0)) for shard in shards}

    @asynccontextmanager
    async def _write(self, shard: int) -> AsyncIterator[Transaction]:
        """A transaction that holds the shard where it is."""
        async with self._store.unit(shard) as unit:
            if await unit.fence({shard}):
                raise MeshError("SHARD_MOVED", shard=str(shard))
            yield unit.transaction

    async def _read(self, shard: int, query: str, params: Mapping[str, object]) -> list[tuple[Any, ...]]:
        async with self._databases.of(shard).snapshot(timeout_s=self._timeout_s) as tx:
            return await tx.fetch_all(self._queries[query], params)


def _transaction(unit: Unit) -> Transaction:
    if not isinstance(unit, MysqlUnit):
        raise TypeError("a job is written in a transaction of the same databases")
    return unit.transaction


def _job(row: Sequence[Any]) -> Job:
    error = json.loads(row[13]) if row[13] else None
    return Job(
        job_id=row[0],
        kind=JobKind(row[1]),
        state=JobState(row[2]),
        phase=JobPhase(row[3]),
        direct=bool(row[4]),
        batch_id=row[5],
        user_id=row[6],
        caller=row[7],
        request_id=row[8],
        request_hash=row[9],
        trace_id=row[10],
        total_count=row[11],
        done_count=row[12],
        error=None if error is None else JobError(error["reason"], error["metadata"]),
        line_error_count=row[14],
        attempts=row[15],
        create_time_ms=mysql_rows.instant_ms(row[16]),
        finish_time_ms=None if row[17] is None else mysql_rows.instant_ms(row[17]),
    )


def _key(job_id: str) -> dict[str, object]:
    return {"shard": id_shard(job_id), "job_id": job_id}


def _held(job_id: str, lease: Lease) -> dict[str, object]:
    return {**_key(job_id), "holder": lease.holder, "lease_ms": lease.lease_ms}
