"""How a job is cut into chunks, where codes are taken from, and how a long calculation gives way."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.app.issuing import share_out
from coupon_svc.app.jobs import all_or_first_error
from coupon_svc.app.pace import Pace
from coupon_svc.domain.job import CHUNK, Job, JobKind, JobPhase


def job(total: int) -> Job:
    return Job(
        job_id="0" * 19,
        kind=JobKind.ISSUE,
        phase=JobPhase.FILL,
        direct=False,
        batch_id="0" * 19,
        caller="c",
        request_id="r",
        request_hash=bytes(32),
        trace_id="0" * 32,
        total_count=total,
        create_time_ms=0,
    )


@given(st.integers(1, 100_000))
def test_the_chunks_of_a_job_are_all_of_it(total: int) -> None:
    sizes = [job(total).chunk_size(chunk) for chunk in range(job(total).chunks)]
    assert sum(sizes) == total
    assert set(sizes[:-1]) <= {CHUNK}
    assert 0 < sizes[-1] <= CHUNK


@given(
    st.integers(1, 500),
    st.integers(0, 127),
    st.dictionaries(st.integers(0, 127), st.integers(0, 50), min_size=1),
)
def test_codes_are_shared_out_exactly_or_not_at_all(quantity: int, first: int, room: dict[int, int]) -> None:
    wanted = share_out(quantity, first, room)
    if sum(room.values()) < quantity:
        assert wanted is None
        return
    assert wanted is not None
    assert sum(wanted.values()) == quantity
    assert all(0 < taken <= room[shard] for shard, taken in wanted.items())


def test_codes_come_from_the_own_shard_first_and_then_from_the_next_ones_going_round() -> None:
    room = {1: 5, 3: 5, 7: 5}
    assert share_out(4, 3, room) == {3: 4}
    assert share_out(12, 3, room) == {3: 5, 7: 5, 1: 2}
    assert share_out(6, 100, room) == {1: 5, 3: 1}


async def test_others_run_after_each_slice_of_a_long_calculation() -> None:
    ran = 0

    async def other() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    pace = Pace(slice_s=0.001)
    for _ in range(20):
        busy_until = time.monotonic() + 0.0015
        while time.monotonic() < busy_until:
            pass
        await pace.breathe()
    beside.cancel()
    assert ran >= 19


async def test_when_one_work_fails_the_others_are_stopped_and_its_own_error_is_raised() -> None:
    stopped = asyncio.Event()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def go_on() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            raise

    with pytest.raises(LookupError):
        await all_or_first_error([go_on(), fail()])
    assert stopped.is_set()
