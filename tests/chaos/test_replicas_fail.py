"""One of two coupon_svc is killed, drained or frozen while cashiers work at both."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from redis.asyncio import Redis

from tests.chaos.books import assert_books_balance
from tests.chaos.cashiers import Attempt, Cashiers, Shop
from tests.harness.stack import Handle, PrivateStack

# The replica that suffers, as the stack and as the cashiers number it.
VICTIM = 2
AT_VICTIM = 1
OTHER = 0
# What a client library says by itself when nobody listens, a connection breaks, or nobody answers in time.
NOBODY = "UNAVAILABLE"
NO_ANSWER = "DEADLINE_EXCEEDED"
DATABASE_AWAY = "UNAVAILABLE/UNAVAILABLE"
SILENCE_MAX_S = 2.0
LOCK_LEASE_S = 3.0

_TRIES_MAX = 60
_TURNS_TO_SEND = 5
# InnoDB shows transactions as they were up to 0.1 s ago.
_TRX_VIEW_AGE_S = 0.11
_WAITING_TRANSACTIONS = (
    "SELECT p.HOST FROM information_schema.INNODB_TRX t"
    " JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id"
    " WHERE t.trx_rows_modified > 0 AND p.COMMAND = 'Sleep'"
)


def _local_ports(pid: int) -> set[int]:
    """The local ports of a process's IPv4 connections, as proc(5) shows them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
        if target.startswith("socket:["):
            sockets.add(target.removeprefix("socket:[").removesuffix("]"))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in sockets}


async def _freeze_inside_a_transaction(mesh: PrivateStack, cashiers: Cashiers, victim: Handle) -> None:
    """Freezes the replica after it has written and before it commits."""
    for _ in range(_TRIES_MAX):
        await cashiers.until(lambda: cashiers.in_flight(AT_VICTIM) > 0, "a call at the victim")
        victim.freeze()
        ports = _local_ports(victim.pid)
        # What it had sent before is done by then, and MariaDB waits for its next statement.
        await asyncio.sleep(_TRX_VIEW_AGE_S)
        hosts = await asyncio.to_thread(mesh.mariadb.administer, _WAITING_TRANSACTIONS)
        if any(int(host.rpartition(":")[2]) in ports for (host,) in hosts):
            return
        victim.thaw()
        await cashiers.until_flowing(5)
    raise AssertionError(f"the replica was never caught inside a transaction, {_TRIES_MAX} times")


async def _held_locks(mesh: PrivateStack) -> dict[str, str]:
    """Every coupon lock with its token."""
    async with Redis.from_url(mesh.redis_url(), decode_responses=True) as redis:
        keys = [key async for key in redis.scan_iter("LOCK_COUPON:*", count=1000)]
        values = await redis.mget(keys) if keys else []
    return {str(key): str(value) for key, value in zip(keys, values, strict=True) if value is not None}


async def _first_lease_end_s(mesh: PrivateStack) -> float:
    """When the first of the coupon locks runs out, by the monotonic clock."""
    async with Redis.from_url(mesh.redis_url(), decode_responses=True) as redis:
        left_ms = [await redis.pttl(key) async for key in redis.scan_iter("LOCK_COUPON:*", count=1000)]
    return time.monotonic() + min((each for each in left_ms if each > 0), default=0) / 1000


def _cut_off(cashiers: Cashiers, at_s: float) -> list[Attempt]:
    """Calls that were under way at the victim at a moment."""
    return [each for each in cashiers.attempts if each.replica == AT_VICTIM and each.started_s < at_s <= each.ended_s]


async def _until_victim_serves(cashiers: Cashiers) -> float:
    """Returns how long the first success at the victim took from now on."""
    now_s = time.monotonic()

    def successes() -> list[float]:
        return [each.ended_s for each in cashiers.since(now_s) if each.replica == AT_VICTIM and each.succeeded]

    await cashiers.until(lambda: len(successes()) >= 50, "50 successes at the victim")
    return min(successes()) - now_s


async def test_what_a_killed_replica_left_undone_is_done_once_at_the_other(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    victim = mesh.coupon(VICTIM)
    async with cashiers.at_work():
        await cashiers.until_flowing()
        await _freeze_inside_a_transaction(mesh, cashiers, victim)
        victim.kill()
        killed_s = time.monotonic()
        left_locked = await _held_locks(mesh)
        await cashiers.until_flowing(200)
        started_s = time.monotonic()
        await victim.start()
        recovered_s = await _until_victim_serves(cashiers)
    cut_off = _cut_off(cashiers, killed_s)
    silence_s = cashiers.longest_silence_s(killed_s, started_s)
    cashiers.report("coupon_svc killed", away=started_s - killed_s, silence=silence_s, recovered=recovered_s)
    assert {each.status for each in cut_off} == {NOBODY}
    # Whoever insists on one of these coupons waits for the dead holder's lease.
    assert left_locked
    assert silence_s <= SILENCE_MAX_S
    cashiers.assert_saw_only(NOBODY)
    assert cashiers.found_by_a_retry() > 0
    await assert_books_balance(shop)


async def test_a_draining_replica_answers_what_it_began_and_takes_no_more(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    victim = mesh.coupon(VICTIM)
    async with cashiers.at_work():
        await cashiers.until_flowing()
        await cashiers.until(lambda: cashiers.in_flight(AT_VICTIM) >= 3, "calls under way at the victim")
        told_s = time.monotonic()
        # gRPC sends a call in the loop's next turns; those counted as begun are on their way before the signal is.
        for _ in range(_TURNS_TO_SEND):
            await asyncio.sleep(0)
        await victim.stop()
        gone_s = time.monotonic()
        await cashiers.until_flowing()
        assert not victim.is_running
        ended = mesh.local.replicas_of("coupon")[VICTIM - 1].exit_description()
        await victim.start()
        recovered_s = await _until_victim_serves(cashiers)
    begun = _cut_off(cashiers, told_s)
    silence_s = cashiers.longest_silence_s(told_s, gone_s)
    cashiers.report("coupon_svc drained", drain=gone_s - told_s, silence=silence_s, recovered=recovered_s)
    assert ended == "exit status 0"
    assert len(begun) >= 3
    assert not [each for each in begun if each.status == NOBODY]
    assert silence_s <= SILENCE_MAX_S
    cashiers.assert_saw_only(NOBODY)
    await assert_books_balance(shop)


async def test_a_replica_frozen_past_its_locks_doubles_nothing_when_it_goes_on(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    victim = mesh.coupon(VICTIM)
    async with cashiers.at_work():
        await cashiers.until_flowing()
        await _freeze_inside_a_transaction(mesh, cashiers, victim)
        frozen_s = time.monotonic()
        locked = await _held_locks(mesh)
        lease_end_s = await _first_lease_end_s(mesh)
        await asyncio.sleep(LOCK_LEASE_S + 0.5)
        still_locked = await _held_locks(mesh)
        thawed_s = time.monotonic()
        victim.thaw()
        recovered_s = await _until_victim_serves(cashiers)
        await cashiers.until_flowing()
    # As long as they last, the locks keep the other replica away from the rows that the frozen one holds.
    silence_s = cashiers.longest_silence_s(frozen_s, lease_end_s, replica=OTHER)
    cashiers.report("coupon_svc frozen", away=thawed_s - frozen_s, silence=silence_s, recovered=recovered_s)
    assert silence_s <= SILENCE_MAX_S
    assert locked
    assert not locked.items() & still_locked.items()
    assert _cut_off(cashiers, frozen_s)
    cashiers.assert_saw_only(NO_ANSWER, DATABASE_AWAY)
    await assert_books_balance(shop)
