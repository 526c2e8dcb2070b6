"""MariaDB, Redis, ZooKeeper and risk_svc are killed or frozen while cashiers work, and come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.chaos.books import assert_books_balance
from tests.chaos.cashiers import Cashiers, Shop
from tests.harness.stack import PrivateStack

DATABASE_AWAY = "UNAVAILABLE/UNAVAILABLE"
RISK_AWAY = "UNAVAILABLE/RISK_UNAVAILABLE"
RECOVERY_MAX_S = 10.0
# The longest time in which nobody was served while a part is away that consumes can do without.
SILENCE_MAX_S = 2.0
FROZEN_S = 2.0


async def _eventually(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that no call tells."""
    try:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - another process writes it, no event does
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what) from None


async def _until_risk_is_missed(cashiers: Cashiers, since_s: float) -> None:
    """Small amounts go on, with settlement held; large ones are refused for now."""
    await cashiers.until(
        lambda: sum(each.succeeded and each.settlement_held for each in cashiers.since(since_s)) >= 100,
        "100 small amounts without risk control",
    )
    await cashiers.until(lambda: cashiers.seen(since_s=since_s)[RISK_AWAY] >= 5, "large amounts refused")


async def _until_risk_answers(cashiers: Cashiers) -> float:
    """Large amounts succeed and nothing is held any more; returns how long the first large one took."""
    now_s = time.monotonic()
    await cashiers.until(
        lambda: sum(each.succeeded and each.large and each.started_s >= now_s for each in cashiers.since(now_s)) >= 5,
        "large amounts served",
    )
    large_s = min(each.ended_s for each in cashiers.since(now_s) if each.succeeded and each.large) - now_s
    free_s = time.monotonic()
    await cashiers.until(
        lambda: sum(each.succeeded and not each.settlement_held for each in cashiers.since(free_s)) >= 100,
        "100 amounts not held",
    )
    return large_s


def _assert_policy_without_risk_control(cashiers: Cashiers, since_s: float, until_s: float) -> None:
    """Nothing that was first asked in the period got through as if risk control had agreed."""
    asked = [each.attempts[0] for each in cashiers.purchases if since_s <= each.attempts[0].started_s]
    within = [each for each in asked if each.ended_s <= until_s and each.succeeded]
    assert all(each.settlement_held and not each.large for each in within)


async def test_consumes_come_back_by_themselves_after_mariadb_was_killed(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    async with cashiers.at_work():
        await cashiers.until_flowing()
        assert cashiers.in_flight() > 0
        mesh.mariadb.kill()
        killed_s = time.monotonic()
        await cashiers.until(lambda: cashiers.seen(since_s=killed_s)[DATABASE_AWAY] >= 120, "UNAVAILABLE")
        assert mesh.mariadb.is_running is False
        await mesh.mariadb.start()
        serving_s = time.monotonic()
        await cashiers.until_flowing()
    recovered_s = cashiers.first_success_s(since_s=serving_s) - serving_s
    cashiers.report("MariaDB killed", away=serving_s - killed_s, recovered=recovered_s)
    assert recovered_s <= RECOVERY_MAX_S
    cashiers.assert_saw_only(DATABASE_AWAY)
    await assert_books_balance(shop)


async def test_consumes_go_on_under_row_locks_alone_while_redis_is_away(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    async def without_locks() -> float:
        return await mesh.metric("coupon_lock_keys_total", event="unavailable")

    before = await without_locks()
    async with cashiers.at_work():
        await cashiers.until_flowing()
        assert cashiers.in_flight() > 0
        mesh.redis.kill()
        killed_s = time.monotonic()
        # Risk control keeps its windows there.
        await _until_risk_is_missed(cashiers, killed_s)
        assert await without_locks() > before
        started_s = time.monotonic()
        await mesh.redis.start()
        locked = await mesh.metric("coupon_lock_keys_total", event="acquired")
        recovered_s = await _until_risk_answers(cashiers)
        assert await mesh.metric("coupon_lock_keys_total", event="acquired") > locked
    silence_s = cashiers.longest_silence_s(killed_s, started_s)
    cashiers.report("Redis killed", away=started_s - killed_s, silence=silence_s, recovered=recovered_s)
    assert silence_s <= SILENCE_MAX_S
    _assert_policy_without_risk_control(cashiers, killed_s, started_s)
    cashiers.assert_saw_only(RISK_AWAY)
    await assert_books_balance(shop)


async def test_consumes_go_on_while_redis_answers_nothing(mesh: PrivateStack, shop: Shop, cashiers: Cashiers) -> None:
    before = await mesh.metric("coupon_lock_keys_total", event="unavailable")
    async with cashiers.at_work():
        await cashiers.until_flowing()
        assert cashiers.in_flight() > 0
        with mesh.redis.frozen():
            frozen_s = time.monotonic()
            await asyncio.sleep(FROZEN_S)
            await _until_risk_is_missed(cashiers, frozen_s)
            thawed_s = time.monotonic()
        recovered_s = await _until_risk_answers(cashiers)
        assert await mesh.metric("coupon_lock_keys_total", event="unavailable") > before
    silence_s = cashiers.longest_silence_s(frozen_s, thawed_s)
    cashiers.report("Redis frozen", away=thawed_s - frozen_s, silence=silence_s, recovered=recovered_s)
    assert silence_s <= SILENCE_MAX_S
    _assert_policy_without_risk_control(cashiers, frozen_s, thawed_s)
    cashiers.assert_saw_only(RISK_AWAY)
    await assert_books_balance(shop)


async def test_consumes_do_not_notice_that_zookeeper_is_away(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    logs = [mesh.coupon(number).log for number in (1, 2)]

    def told(state: str, after: list[int]) -> bool:
        """Both coupon_svc logged the state behind these positions of their logs."""
        texts = [log.read_bytes()[start:].decode() for log, start in zip(logs, after, strict=True)]
        return all(f'"state": "{state}"' in text for text in texts)

    async with cashiers.at_work():
        await cashiers.until_flowing()
        before = [log.stat().st_size for log in logs]
        assert cashiers.in_flight() > 0
        mesh.zookeeper.kill()
        killed_s = time.monotonic()
        await _eventually(lambda: told("suspended", before), "both coupon_svc missed ZooKeeper")
        await cashiers.until_flowing(300)
        started_s = time.monotonic()
        await mesh.zookeeper.start()
        await _eventually(lambda: told("connected", before), "both coupon_svc found ZooKeeper again")
        await cashiers.until_flowing()
    silence_s = cashiers.longest_silence_s(killed_s, started_s)
    cashiers.report("ZooKeeper killed", away=started_s - killed_s, silence=silence_s)
    assert silence_s <= SILENCE_MAX_S
    cashiers.assert_saw_only()
    await assert_books_balance(shop)


async def test_small_amounts_are_held_and_large_ones_refused_while_risk_control_is_away(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    before = await mesh.metric("coupon_risk_absent_total")
    async with cashiers.at_work():
        await cashiers.until_flowing()
        assert cashiers.in_flight() > 0
        mesh.risk.kill()
        killed_s = time.monotonic()
        await _until_risk_is_missed(cashiers, killed_s)
        assert await mesh.metric("coupon_risk_absent_total") > before
        started_s = time.monotonic()
        await mesh.risk.start()
        recovered_s = await _until_risk_answers(cashiers)
    silence_s = cashiers.longest_silence_s(killed_s, started_s)
    cashiers.report("risk_svc killed", away=started_s - killed_s, silence=silence_s, recovered=recovered_s)
    assert silence_s <= SILENCE_MAX_S
    assert recovered_s <= RECOVERY_MAX_S
    _assert_policy_without_risk_control(cashiers, killed_s, started_s)
    cashiers.assert_saw_only(RISK_AWAY)
    await assert_books_balance(shop)


async def test_risk_control_that_answers_nothing_is_waited_for_no_longer_than_its_deadline(
    mesh: PrivateStack, shop: Shop, cashiers: Cashiers
) -> None:
    before = await mesh.metric("coupon_risk_absent_total")
    async with cashiers.at_work():
        await cashiers.until_flowing()
        assert cashiers.in_flight() > 0
        with mesh.risk.frozen():
            frozen_s = time.monotonic()
            await asyncio.sleep(FROZEN_S)
            await _until_risk_is_missed(cashiers, frozen_s)
            thawed_s = time.monotonic()
        recovered_s = await _until_risk_answers(cashiers)
        assert await mesh.metric("coupon_risk_absent_total") > before
    silence_s = cashiers.longest_silence_s(frozen_s, thawed_s)
    cashiers.report("risk_svc frozen", away=thawed_s - frozen_s, silence=silence_s, recovered=recovered_s)
    assert silence_s <= SILENCE_MAX_S
    assert recovered_s <= RECOVERY_MAX_S
    _assert_policy_without_risk_control(cashiers, frozen_s, thawed_s)
    cashiers.assert_saw_only(RISK_AWAY)
    await assert_books_balance(shop)
