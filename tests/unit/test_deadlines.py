import asyncio
import time
from collections.abc import Awaitable

import pytest

from meshkit.deadlines import Deadlines


async def limited(deadlines: Deadlines, work: Awaitable[object]) -> str:
    """How the work ended under a limit."""
    ticket = deadlines.enter()
    try:
        await work
    except asyncio.CancelledError:
        if ticket.owns_cancellation():
            return "expired"
        raise
    finally:
        deadlines.leave(ticket)
    return "done"


async def test_work_that_outlasts_the_limit_is_cancelled_at_it() -> None:
    began = time.monotonic()
    assert await limited(Deadlines(0.05), asyncio.Event().wait()) == "expired"
    assert 0.04 < time.monotonic() - began < 2


async def test_work_that_ends_in_time_is_left_alone_and_the_task_goes_on() -> None:
    deadlines = Deadlines(0.05)
    assert await limited(deadlines, asyncio.sleep(0)) == "done"
    # Longer than the limit: a clock that was not stopped would cancel this.
    await asyncio.sleep(0.1)


async def test_each_of_many_expires_though_they_began_apart() -> None:
    deadlines = Deadlines(0.05)
    tasks = []
    for _ in range(5):
        tasks.append(asyncio.create_task(limited(deadlines, asyncio.Event().wait())))
        await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*tasks) == ["expired"] * 5


async def test_a_clock_runs_again_after_all_calls_ended() -> None:
    deadlines = Deadlines(0.03)
    assert await limited(deadlines, asyncio.sleep(0)) == "done"
    assert await limited(deadlines, asyncio.Event().wait()) == "expired"
    assert await limited(deadlines, asyncio.Event().wait()) == "expired"


async def test_a_cancellation_from_outside_is_not_taken_for_the_deadline() -> None:
    task = asyncio.create_task(limited(Deadlines(60.0), asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_from_outside_counts_even_when_the_deadline_passes_as_well() -> None:
    deadlines = Deadlines(0.02)
    task = asyncio.create_task(limited(deadlines, asyncio.Event().wait()))
    await asyncio.sleep(0)
    # Both happen before the task runs again.
    time.sleep(0.03)  # noqa: ASYNC251 - the loop must not run meanwhile.
    deadlines._expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
