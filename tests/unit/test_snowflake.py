"""Snowflake ids: layout, order, and that no clock makes two alike."""

import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import MeshError
from meshkit.snowflake import (
    EPOCH_MS,
    SnowflakeIds,
    format_id,
    shard_of,
    timestamp_ms_of,
    wall_clock_ms,
    worker_of,
)

FAR_MS = 1 << 40


class HandClock:
    """A clock that the test sets."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def issuing(clock: HandClock, *, worker: int = 7, floor_ms: int = 0, reserved_until_ms: int = FAR_MS) -> SnowflakeIds:
    return SnowflakeIds(worker, floor_ms=floor_ms, reserved_until_ms=reserved_until_ms, clock=clock)


def test_an_id_holds_its_millisecond_worker_sequence_and_shard() -> None:
    ids = issuing(HandClock(123_456), worker=1023)
    first, second = ids.next(127), ids.next(127)
    assert first == 123_456 << 22 | 1023 << 12 | 0 << 7 | 127
    assert second == 123_456 << 22 | 1023 << 12 | 1 << 7 | 127
    assert (timestamp_ms_of(second), worker_of(second), shard_of(second)) == (123_456, 1023, 127)
    assert ids.shard_of(second) == 127


def test_milliseconds_count_from_the_start_of_2025() -> None:
    assert datetime.fromtimestamp(EPOCH_MS / 1000, UTC) == datetime(2025, 1, 1, tzinfo=UTC)
    before = datetime.now(UTC).timestamp() * 1000 - 1
    assert before <= wall_clock_ms() + EPOCH_MS <= datetime.now(UTC).timestamp() * 1000


def test_text_order_is_number_order_up_to_the_last_id_there_can_be() -> None:
    last = (1 << 63) - 1
    assert format_id(last) == str(last)
    assert format_id(5) == "0000000000000000005"
    assert len(format_id(last)) == 19


def test_the_33rd_id_of_a_millisecond_takes_the_next_one_without_waiting() -> None:
    ids = issuing(HandClock(1000))
    issued = [ids.next(3) for _ in range(70)]
    assert [timestamp_ms_of(number) for number in issued] == [1000] * 32 + [1001] * 32 + [1002] * 6
    assert issued == sorted(set(issued))


def test_each_shard_has_a_sequence_of_its_own() -> None:
    ids = issuing(HandClock(1000))
    for _ in range(33):
        ids.next(3)
    assert timestamp_ms_of(ids.next(4)) == 1000


def test_a_clock_that_steps_back_repeats_nothing() -> None:
    clock = HandClock(5000)
    ids = issuing(clock)
    before = [ids.next(0) for _ in range(10)]
    clock.now_ms = 4000
    after = [ids.next(0) for _ in range(100)]
    assert before + after == sorted(set(before + after))
    clock.now_ms = 9000
    assert timestamp_ms_of(ids.next(0)) == 9000


def test_nothing_is_issued_below_the_floor_or_at_the_reservation() -> None:
    clock = HandClock(100)
    ids = issuing(clock, floor_ms=2000, reserved_until_ms=2001)
    assert [timestamp_ms_of(ids.next(1)) for _ in range(32)] == [2000] * 32
    with pytest.raises(MeshError) as refusal:
        ids.next(1)
    assert (refusal.value.reason, refusal.value.metadata) == ("UNAVAILABLE", {"part": "ids"})
    ids.extend(2002)
    assert timestamp_ms_of(ids.next(1)) == 2001


def test_a_clock_past_the_reservation_gets_nothing_until_it_is_extended() -> None:
    ids = issuing(HandClock(3000), reserved_until_ms=3000)
    with pytest.raises(MeshError):
        ids.next(1)
    ids.extend(3001)
    assert timestamp_ms_of(ids.next(1)) == 3000


def test_an_earlier_end_does_not_shorten_the_reservation() -> None:
    ids = issuing(HandClock(10), reserved_until_ms=50)
    ids.extend(20)
    assert ids.reserved_until_ms == 50


def test_stopping_gives_back_all_but_the_milliseconds_in_use() -> None:
    clock = HandClock(1000)
    ids = issuing(clock)
    for _ in range(40):
        ids.next(9)
    assert ids.stop() == 1002
    with pytest.raises(MeshError):
        ids.next(9)


def test_stopping_without_an_id_gives_back_down_to_the_floor() -> None:
    assert issuing(HandClock(1000), floor_ms=777).stop() == 777


def test_the_layouts_last_millisecond_is_refused_rather_than_overflown() -> None:
    clock = HandClock((1 << 41) - 1)
    ids = issuing(clock, worker=1023, reserved_until_ms=1 << 60)
    last = [ids.next(127) for _ in range(32)][-1]
    assert last == (1 << 63) - 1
    with pytest.raises(MeshError):
        ids.next(127)


@pytest.mark.parametrize("shard", [-1, 128])
def test_a_shard_that_does_not_exist_is_refused(shard: int) -> None:
    with pytest.raises(ValueError, match="shard"):
        issuing(HandClock(1)).next(shard)


@pytest.mark.parametrize("worker", [-1, 1024])
def test_a_worker_id_that_does_not_fit_is_refused(worker: int) -> None:
    with pytest.raises(ValueError, match="worker"):
        issuing(HandClock(1), worker=worker)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 3), st.integers(1, 80)), max_size=60))
def test_whatever_the_clock_does_each_shards_ids_rise(steps: list[tuple[int, int, int]]) -> None:
    clock = HandClock(1000)
    ids = issuing(clock)
    last: dict[int, int] = {}
    for step_ms, shard, count in steps:
        clock.now_ms += step_ms
        for _ in range(count):
            number = ids.next(shard)
            assert number > last.get(shard, -1)
            assert shard_of(number) == shard
            last[shard] = number


def test_50000_ids_drawn_by_several_threads_are_distinct() -> None:
    ids = SnowflakeIds(1, floor_ms=0, reserved_until_ms=FAR_MS)
    drawn: list[list[int]] = [[] for _ in range(10)]
    start = threading.Barrier(10)

    def draw(into: list[int]) -> None:
        start.wait(timeout=10)
        into.extend(ids.next(turn % 3) for turn in range(5000))

    threads = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    together = [number for into in drawn for number in into]
    assert len(together) == 50_000
    assert len(set(together)) == 50_000
