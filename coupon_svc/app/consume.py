"""Consumes coupons in groups: locks, risk control, one transaction, then the answers.

Requests that arrive while a group is under way wait and form the next one, so that a group of N costs one pipeline of
locks, one call to risk control, one transaction and one release. Each request fails or succeeds alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.caps import MAX_REFILLS, CapKeeper, SliceShort, Tally
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.holds import without_stale_holds
from coupon_svc.app.ports import (
    Call,
    Clock,
    Consumption,
    CouponFacts,
    Ids,
    Recorded,
    RequestKey,
    RiskAbsentError,
    RiskAnswer,
    RiskGate,
    RiskQuestion,
    Store,
    TransactionRow,
    Unit,
    VersionedUpdate,
    operation_id,
)
from coupon_svc.app.requests import MAX_RUNS, replay
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.checks import Use
from coupon_svc.domain.coupon import Coupon
from coupon_svc.domain.journal import JournalKind, JournalRow, Sign, sealed
from coupon_svc.domain.order import Order
from coupon_svc.domain.order_lines import Line
from coupon_svc.domain.spending import spend_use
from coupon_svc.domain.terms import GiftCard, Terms
from coupon_svc.domain.times import transaction_id
from meshkit.errors import MeshError
from meshkit.group_commit import Entry, GroupCommit
from meshkit.locks import LocksUnavailable, RedisLocks, Token
from meshkit.mysql_errors import CommitOutcomeUnknown, DatabaseUnavailable, Deadlock, DuplicateKey

# A contended coupon is waited for this long at the most, in steps of about BUSY_RETRY_S.
BUSY_LIMIT_S = 0.5
BUSY_RETRY_S = 0.02
LOCK_PREFIX = "LOCK_COUPON:"


@dataclass(frozen=True, slots=True)
class ConsumeCommand:
    """What a caller asks for; `encode` makes the reply that is recorded. The amount is fen."""

    call: Call
    merchant_id: str
    order_id: str
    amount_minor: int
    by_code: bool
    encode: Callable[[Consumption], bytes]
    lines: tuple[Line, ...] = ()


@dataclass(slots=True)
class _Pending:
    """A command on its way through the groups."""

    command: ConsumeCommand
    facts: CouponFacts
    key: RequestKey
    contended_since: float | None = None
    settlement_held: bool = False


_Entry = Entry[_Pending, bytes]


@dataclass(frozen=True, slots=True)
class ConsumeLimits:
    """How groups are formed, and what is still accepted while risk control is away."""

    max_group: int = 128
    max_in_flight: int = 1
    max_waiting: int = 4096
    accept_without_risk_minor: int = 20_000


@dataclass(slots=True)
class _Effects:
    """What one run of a group writes, and what each of its requests will be answered."""

    tally: Tally | None
    updates: dict[str, VersionedUpdate] = field(default_factory=dict)
    journal: list[JournalRow] = field(default_factory=list)
    transactions: list[TransactionRow] = field(default_factory=list)
    records: list[tuple[RequestKey, Recorded]] = field(default_factory=list)
    answers: list[tuple[_Entry, bytes | MeshError]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Knowledge:
    """What a group reads before its transaction: blocks at most half a second old, and immutable terms."""

    batches: Mapping[str, Batch]
    terms: Mapping[str, Terms]
    fences: Mapping[str, int]


class ConsumeCoupon:
    """The hot path."""

    def __init__(
        self,
        *,
        store: Store,
        batches: BatchCache,
        caps: CapKeeper,
        locks: RedisLocks,
        risk: RiskGate,
        ids: Ids,
        sign: Sign,
        clock: Clock,
        limits: ConsumeLimits,
        observe_group: Callable[[int], None],
    ) -> None:
        """All adapters arrive here; `observe_group` is told the size of each group."""
        self._store = store
        self._batches = batches
        self._caps = caps
        self._locks = locks
        self._risk = risk
        self._ids = ids
        self._sign = sign
        self._clock = clock
        self._limits = limits
        self._groups: dict[str, GroupCommit[_Pending, bytes]] = {
            name: GroupCommit(
                self._run,
                max_group=limits.max_group,
                max_in_flight=limits.max_in_flight,
                max_waiting=limits.max_waiting,
                observe_size=observe_group,
            )
            for name in store.databases
        }

    async def __call__(self, command: ConsumeCommand, facts: CouponFacts, *, deadline: float) -> bytes:
        """Consumes the coupon and gives the encoded reply; `deadline` is of the monotonic clock, in seconds.

        Raises:
            MeshError: the reasons that ConsumeCoupon lists in the contract.
        """
        if facts.user_id == 0:
            raise MeshError("COUPON_UNACTIVATED", coupon_id=facts.coupon_id)
        pending = _Pending(command, facts, command.call.key(facts.shard))
        return await self._groups[self._store.database_of(facts.shard)].submit(pending, deadline=deadline)

    async def close(self) -> None:
        """Lets the groups under way finish."""
        await asyncio.gather(*(group.close() for group in self._groups.values()))

    async def _run(self, entries: Sequence[_Entry]) -> None:
        try:
            fresh = await self._answer_recorded(entries)
            tokens = await self._lock(fresh)
            held = _without_contended(fresh, tokens)
            try:
                await self._assess(held)
                await self._commit([entry for entry in held if not entry.done], tokens)
            finally:
                await self._locks.release({key: token for key, token in tokens.items() if token is not None})
        except (DatabaseUnavailable, CommitOutcomeUnknown, SliceShort) as error:
            _fail(entries, MeshError("UNAVAILABLE", part="mysql"), error)

    async def _answer_recorded(self, entries: Sequence[_Entry]) -> list[_Entry]:
        """Answers what was answered before; a replay takes neither a lock nor a risk decision."""
        recorded = await self._store.recorded(list({entry.item.key for entry in entries}))
        fresh = []
        for entry in entries:
            if (earlier := recorded.get(entry.item.key)) is None:
                fresh.append(entry)
            else:
                _answer(entry, _replayed(earlier, entry.item))
        return fresh

    async def _lock(self, entries: Sequence[_Entry]) -> dict[str, Token | None]:
        """Locks the coupons, one token each; None where another process holds the lock. Empty when Redis is away."""
        keys = {LOCK_PREFIX + entry.item.facts.coupon_id for entry in entries}
        if not keys:
            return {}
        try:
            return await self._locks.acquire(sorted(keys))
        except LocksUnavailable:
            # The lock only saves work: the row guard decides.
            return {}

    async def _assess(self, entries: Sequence[_Entry]) -> None:
        """Asks risk control once for the group; twins share a question."""
        if not entries:
            return
        questions = {entry.item.key: _question(entry.item) for entry in entries}
        try:
            answers = dict(zip(questions, await self._risk.assess(list(questions.values())), strict=True))
        except RiskAbsentError:
            self._decide_without_risk(entries)
            return
        for entry in entries:
            answer: RiskAnswer = answers[entry.item.key]
            if not answer.allowed:
                entry.fail(MeshError("RISK_REJECTED", rules=",".join(answer.rules)))

    def _decide_without_risk(self, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            if entry.item.command.amount_minor > self._limits.accept_without_risk_minor:
                entry.fail(MeshError("RISK_UNAVAILABLE"))
            else:
                entry.item.settlement_held = True

    async def _commit(self, entries: Sequence[_Entry], tokens: Mapping[str, Token | None]) -> None:
        """Applies the group in one transaction; a rerun starts from the locked rows again, so nothing doubles."""
        if not entries:
            return
        fences = {key: token.fence for key, token in tokens.items() if token is not None}
        knowledge = _Knowledge(
            await self._batches.batches(entry.item.facts.batch_id for entry in entries),
            await self._batches.terms(entry.item.facts.terms_id for entry in entries),
            fences,
        )
        careful: frozenset[str] = frozenset()
        runs = refills = 0
        while True:
            try:
                async with self._store.unit(entries[0].item.facts.shard) as unit:
                    effects = await self._apply(unit, entries, knowledge, careful)
            except SliceShort as short:
                refills += 1
                if refills == MAX_REFILLS:
                    raise
                careful |= await self._caps.refill(short, knowledge.batches)
                continue
            except (DuplicateKey, Deadlock, CommitOutcomeUnknown):
                runs += 1
                if runs == MAX_RUNS:
                    raise
                continue
            for entry, answer in effects.answers:
                _answer(entry, answer)
            return

    async def _apply(
        self, unit: Unit, entries: Sequence[_Entry], knowledge: _Knowledge, careful: frozenset[str]
    ) -> _Effects:
        shards = {entry.item.facts.shard for entry in entries}
        moved = await unit.fence(shards | self._caps.holders(shards, knowledge.batches.values()))
        frozen = await unit.frozen_accounts({(entry.item.facts.shard, entry.item.facts.user_id) for entry in entries})
        locked = await unit.lock_coupons({(entry.item.facts.shard, entry.item.facts.coupon_id) for entry in entries})
        # The second look, under the row locks: whoever committed this request before is visible now.
        recorded = dict(await unit.recorded(list({entry.item.key for entry in entries})))
        tally = await self._caps.begin(unit, [_use(entry.item, knowledge) for entry in entries], careful)
        effects = _Effects(tally)
        now_ms = self._clock()
        coupons = await without_stale_holds(unit, locked, now_ms)
        for entry in entries:
            pending = entry.item
            earlier = recorded.get(pending.key)
            if earlier is not None:
                effects.answers.append((entry, _replayed(earlier, pending)))
                continue
            coupon = coupons[pending.facts.coupon_id]
            try:
                self._refuse_held(pending.facts, knowledge, moved, frozen)
                after = self._consume_one(pending, coupon, knowledge, now_ms, effects)
            except MeshError as refusal:
                effects.answers.append((entry, refusal))
                continue
            coupons[coupon.coupon_id] = after
            first = effects.updates.get(coupon.coupon_id)
            effects.updates[coupon.coupon_id] = VersionedUpdate(first.before if first else coupon, after)
            key, record = effects.records[-1]
            recorded[key] = record
            effects.answers.append((entry, record.response))
        if effects.records:
            await self._caps.settle(unit, tally)
            await unit.update_coupons(list(effects.updates.values()))
            await unit.append_journal(effects.journal)
            await unit.insert_transactions(effects.transactions)
            await unit.record(effects.records, now_ms)
        return effects

    def _refuse_held(
        self, facts: CouponFacts, knowledge: _Knowledge, moved: set[int], frozen: set[tuple[int, int]]
    ) -> None:
        if moved:
            written = {facts.shard} | self._caps.holders([facts.shard], [knowledge.batches[facts.batch_id]])
            for shard in written & moved:
                raise MeshError("SHARD_MOVED", shard=str(shard))
        if (facts.shard, facts.user_id) in frozen:
            raise MeshError("ACCOUNT_FROZEN", user_id=str(facts.user_id))

    def _consume_one(
        self,
        pending: _Pending,
        coupon: Coupon,
        knowledge: _Knowledge,
        now_ms: int,
        effects: _Effects,
    ) -> Coupon:
        command = pending.command
        terms = knowledge.terms[coupon.terms_id]
        batch, use = _use(pending, knowledge)
        order = Order(command.merchant_id, command.amount_minor, command.lines)
        spent = spend_use(Use(coupon, terms, order, now_ms, batch=batch))
        row = TransactionRow(
            shard=coupon.shard,
            transaction_id=transaction_id(now_ms, terms.time_zone, self._ids.next(coupon.shard)),
            coupon_id=coupon.coupon_id,
            user_id=coupon.user_id,
            merchant_id=command.merchant_id,
            order_id=command.order_id,
            amount_minor=command.amount_minor,
            deduction_minor=spent.deduction_minor,
            balance_after_minor=spent.balance_after_minor,
            settlement_held=pending.settlement_held,
            caller=command.call.caller,
            request_id=command.call.request_id,
            consume_time_ms=now_ms,
        )
        if effects.tally is not None:
            effects.tally.take(batch, use, deduction_minor=row.deduction_minor, transaction_id=row.transaction_id)
        journal = sealed(
            JournalRow(
                shard=coupon.shard,
                coupon_id=coupon.coupon_id,
                seq=coupon.version + 1,
                kind=JournalKind.CONSUMED,
                status_before=coupon.status,
                status_after=spent.coupon.status,
                user_id=coupon.user_id,
                origin=command.call.origin(now_ms),
                amount_minor=-spent.deduction_minor if isinstance(terms.kind, GiftCard) else 0,
                order_amount_minor=command.amount_minor,
                deduction_minor=spent.deduction_minor,
                balance_after_minor=spent.balance_after_minor,
                merchant_id=command.merchant_id,
                order_id=command.order_id,
                transaction_id=row.transaction_id,
                settlement_held=pending.settlement_held,
                lock_fence=knowledge.fences.get(LOCK_PREFIX + coupon.coupon_id),
                prev_hash=coupon.last_hash,
            ),
            self._sign,
        )
        after = replace(spent.coupon, version=journal.seq, last_hash=journal.hash)
        response = command.encode(Consumption(row, after.status, spent.lines))
        effects.transactions.append(row)
        effects.journal.append(journal)
        effects.records.append((pending.key, Recorded(command.call.request_hash, response)))
        return after


def _without_contended(entries: Sequence[_Entry], tokens: Mapping[str, Token | None]) -> list[_Entry]:
    """The entries whose coupons are locked, or all when Redis is away; the others leave the group and come back."""
    held = []
    now = time.monotonic()
    for entry in entries:
        coupon_id = entry.item.facts.coupon_id
        if not tokens or tokens[LOCK_PREFIX + coupon_id] is not None:
            held.append(entry)
            continue
        if entry.item.contended_since is None:
            entry.item.contended_since = now
        # Jitter that spreads retries needs no cryptographic randomness.
        delay_s = BUSY_RETRY_S * (0.5 + random.random())  # noqa: S311
        if now - entry.item.contended_since >= BUSY_LIMIT_S or not entry.retry_later(delay_s):
            entry.fail(MeshError("COUPON_BUSY", coupon_id=coupon_id))
    return held


def _use(pending: _Pending, knowledge: _Knowledge) -> tuple[Batch, UseKey]:
    facts = pending.facts
    return knowledge.batches[facts.batch_id], UseKey(facts.shard, facts.user_id, facts.batch_id)


def _question(pending: _Pending) -> RiskQuestion:
    command, facts = pending.command, pending.facts
    return RiskQuestion(
        operation_id=operation_id("CONSUME", command.call.caller, command.call.request_id),
        kind="CONSUME",
        caller=command.call.caller,
        client=command.call.client,
        by_code=command.by_code,
        user_id=facts.user_id,
        merchant_id=command.merchant_id,
        batch_id=facts.batch_id,
        coupon_id=facts.coupon_id,
        amount_minor=command.amount_minor,
    )


def _replayed(recorded: Recorded, pending: _Pending) -> bytes | MeshError:
    try:
        return replay(recorded, pending.key, pending.command.call.request_hash)
    except MeshError as reused:
        return reused


def _answer(entry: _Entry, answer: bytes | MeshError) -> None:
    if isinstance(answer, MeshError):
        entry.fail(answer)
    else:
        entry.resolve(answer)


def _fail(entries: Sequence[_Entry], error: MeshError, cause: Exception) -> None:
    error.__cause__ = cause
    for entry in entries:
        entry.fail(error)
