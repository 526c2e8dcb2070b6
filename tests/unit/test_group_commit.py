"""Group commit: who is answered, with what, and when."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshkit.errors import MeshError
from meshkit.group_commit import Entry, GroupCommit

Group = Sequence[Entry[int, str]]


def soon(after_s: float = 30.0) -> float:
    return time.monotonic() + after_s


@dataclass
class Counter:
    """Work whose groups stop at a gate, and which notes what it was given."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    groups: list[list[int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    at_work: int = 0
    most_at_work: int = 0
    act: Callable[[Entry[int, str]], object] = lambda entry: entry.resolve(f"r{entry.item}")

    async def run(self, group: Group) -> None:
        self.groups.append([entry.item for entry in group])
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await self.gate.wait()
            for entry in group:
                self.act(entry)
        finally:
            self.at_work -= 1


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
async def grouped(counter: Counter) -> AsyncIterator[GroupCommit[int, str]]:
    commit = GroupCommit(
        counter.run, max_group=128, max_in_flight=1, max_waiting=300, observe_size=counter.sizes.append
    )
    yield commit
    counter.gate.set()
    await commit.close(timeout_s=5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the conditions are plain state, looked at in each turn of the loop
            await asyncio.sleep(0)


def submit_all(
    commit: GroupCommit[int, str], items: Sequence[int], deadline: float | None = None
) -> list[asyncio.Task[str]]:
    return [asyncio.create_task(commit.submit(item, deadline=deadline or soon())) for item in items]


async def occupied(commit: GroupCommit[int, str], counter: Counter) -> asyncio.Task[str]:
    """Has one group at work, so that what comes next has to wait."""
    (task,) = submit_all(commit, [-1])
    await until(lambda: counter.at_work == 1)
    return task


async def test_a_lone_item_is_at_work_before_any_time_passes(grouped: GroupCommit[int, str], counter: Counter) -> None:
    (task,) = submit_all(grouped, [7])
    for _ in range(4):
        await asyncio.sleep(0)
    assert counter.groups == [[7]]
    counter.gate.set()
    assert await task == "r7"


async def test_calls_that_arrive_together_share_the_first_group(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    counter.gate.set()
    assert await asyncio.gather(*submit_all(grouped, range(20))) == [f"r{n}" for n in range(20)]
    assert counter.groups == [list(range(20))]


async def test_arrivals_during_a_group_make_up_the_next_ones_in_arrival_order(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    first = await occupied(grouped, counter)
    tasks = submit_all(grouped, range(200))
    await until(lambda: grouped.waiting == 200)
    counter.gate.set()
    await asyncio.gather(first, *tasks)
    assert counter.groups == [[-1], list(range(128)), list(range(128, 200))]
    assert counter.sizes == [1, 128, 72]


async def test_one_of_128_cancelled_before_the_group_starts_is_dropped_and_127_answer(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    first = await occupied(grouped, counter)
    tasks = submit_all(grouped, range(128))
    await until(lambda: grouped.waiting == 128)
    tasks[5].cancel()
    counter.gate.set()
    results = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert len([result for result in results[1:] if isinstance(result, str)]) == 127
    assert isinstance(results[6], asyncio.CancelledError)
    assert 5 not in counter.groups[1]


async def test_one_of_128_cancelled_in_mid_group_leaves_the_group_and_127_answers(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    tasks = submit_all(grouped, range(128))
    await until(lambda: counter.at_work == 1)
    tasks[5].cancel()
    await asyncio.wait([tasks[5]])
    assert counter.at_work == 1, "the caller's cancellation reached the group"
    counter.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert len([result for result in results if isinstance(result, str)]) == 127
    assert counter.groups == [list(range(128))]


async def test_entries_past_their_deadline_are_dropped_unseen(grouped: GroupCommit[int, str], counter: Counter) -> None:
    first = await occupied(grouped, counter)
    late = submit_all(grouped, [1], deadline=soon(0.02))
    good = submit_all(grouped, [2])
    expired = soon(0.02)
    await until(lambda: time.monotonic() > expired)
    counter.gate.set()
    with pytest.raises(MeshError) as dropped:
        await late[0]
    assert dropped.value.reason == "DEADLINE_EXCEEDED"
    assert await asyncio.gather(first, *good) == ["r-1", "r2"]
    assert counter.groups == [[-1], [2]]


async def test_a_group_that_raises_fails_only_entries_without_an_answer() -> None:
    async def answer_one_then_break(group: Group) -> None:
        group[0].resolve("ok")
        group[1].fail(MeshError("COUPON_EXPIRED"))
        raise OSError("lost")

    commit = GroupCommit(answer_one_then_break)
    results = await asyncio.gather(*submit_all(commit, range(4)), return_exceptions=True)
    assert results[0] == "ok"
    assert isinstance(results[1], MeshError)
    assert [str(result) for result in results[2:]] == ["lost", "lost"]
    await commit.close()


async def test_an_entry_that_a_group_forgets_fails_rather_than_hangs() -> None:
    async def forget(group: Group) -> None:
        group[0].resolve("ok")

    commit = GroupCommit(forget)
    results = await asyncio.gather(*submit_all(commit, range(2)), return_exceptions=True)
    assert results[0] == "ok"
    assert "without an answer" in str(results[1])
    await commit.close()


async def test_a_second_answer_changes_nothing(grouped: GroupCommit[int, str], counter: Counter) -> None:
    def twice(entry: Entry[int, str]) -> None:
        entry.resolve("first")
        entry.resolve("second")
        entry.fail(OSError())

    counter.act = twice
    counter.gate.set()
    assert await asyncio.gather(*submit_all(grouped, [1])) == ["first"]


async def test_an_entry_that_retries_later_holds_nobody_up_and_counts_its_attempts(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    attempts: list[int] = []

    def busy_twice(entry: Entry[int, str]) -> None:
        if entry.item == 1:
            attempts.append(entry.attempts)
        if entry.item == 1 and entry.attempts < 2:
            assert entry.retry_later(0.01)
        else:
            entry.resolve(f"r{entry.item}")

    counter.act = busy_twice
    counter.gate.set()
    tasks = submit_all(grouped, range(3))
    await asyncio.gather(tasks[0], tasks[2])
    assert not tasks[1].done()
    assert await tasks[1] == "r1"
    assert attempts == [0, 1, 2]
    assert counter.groups == [[0, 1, 2], [1], [1]]


async def test_entries_back_from_a_delay_go_before_later_arrivals_in_their_own_order(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    def busy_once(entry: Entry[int, str]) -> None:
        if entry.attempts == 0 and entry.item in {1, 2}:
            assert entry.retry_later(0.001)
        else:
            entry.resolve(f"r{entry.item}")

        if entry.item == 2 and entry.attempts == 0:
            counter.gate.clear()

    counter.act = busy_once
    early = submit_all(grouped, [0, 1, 2])
    await until(lambda: counter.at_work == 1)
    (blocker,) = submit_all(grouped, [-1])
    await until(lambda: grouped.waiting == 1)
    counter.gate.set()
    await until(lambda: len(counter.groups) == 2)
    late = submit_all(grouped, [3, 4])
    await until(lambda: len(grouped._returned) == 2 and len(grouped._waiting) == 2)
    counter.gate.set()
    await asyncio.gather(blocker, *early, *late)
    assert counter.groups == [[0, 1, 2], [-1], [1, 2, 3, 4]]


async def test_a_retry_that_would_outlast_the_deadline_is_refused_to_the_group() -> None:
    async def busy(group: Group) -> None:
        for entry in group:
            if not entry.retry_later(60):
                entry.fail(MeshError("COUPON_BUSY"))

    commit = GroupCommit(busy)
    with pytest.raises(MeshError) as refused:
        await commit.submit(1, deadline=soon(1))
    assert refused.value.reason == "COUPON_BUSY"
    await commit.close()


async def test_a_caller_that_leaves_during_the_delay_is_not_retried(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    counter.act = lambda entry: entry.retry_later(0.01)
    counter.gate.set()
    (task,) = submit_all(grouped, [1])
    await until(lambda: grouped.waiting == 1 and counter.groups == [[1]])
    task.cancel()
    await until(lambda: grouped.waiting == 0)
    assert counter.groups == [[1]]


async def test_a_full_queue_refuses_at_once_and_retries_count(grouped: GroupCommit[int, str], counter: Counter) -> None:
    first = await occupied(grouped, counter)
    tasks = submit_all(grouped, range(300))
    await until(lambda: grouped.waiting == 300)
    with pytest.raises(MeshError) as refused:
        await grouped.submit(301, deadline=soon())
    assert refused.value.reason == "OVERLOADED"
    counter.gate.set()
    assert len(await asyncio.gather(first, *tasks)) == 301
    assert await grouped.submit(302, deadline=soon()) == "r302"


async def test_no_more_groups_are_at_work_than_allowed(counter: Counter) -> None:
    commit = GroupCommit(counter.run, max_group=10, max_in_flight=2)
    tasks = submit_all(commit, range(100))
    await until(lambda: commit.waiting == 80)
    for _ in range(10):
        await asyncio.sleep(0)
    assert counter.at_work == 2
    counter.gate.set()
    await asyncio.gather(*tasks)
    assert counter.most_at_work == 2
    await commit.close()


async def test_close_answers_all_that_waited_and_refuses_newcomers(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    tasks = submit_all(grouped, range(200))
    await until(lambda: counter.at_work == 1 and grouped.waiting == 72)
    closing = asyncio.create_task(grouped.close(timeout_s=5))
    await asyncio.sleep(0)
    with pytest.raises(MeshError) as refused:
        await grouped.submit(1, deadline=soon())
    assert refused.value.reason == "UNAVAILABLE"
    assert not closing.done()
    counter.gate.set()
    await closing
    assert [task.result() for task in tasks] == [f"r{n}" for n in range(200)]


async def test_close_of_an_idle_one_returns_at_once(grouped: GroupCommit[int, str]) -> None:
    await grouped.close(timeout_s=0.5)


async def test_close_gives_up_on_a_group_that_hangs_and_fails_everyone_it_held(
    grouped: GroupCommit[int, str], counter: Counter
) -> None:
    tasks = submit_all(grouped, range(200))
    await until(lambda: counter.at_work == 1)
    await grouped.close(timeout_s=0.05)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {result.reason for result in results if isinstance(result, MeshError)} == {"UNAVAILABLE"}
    assert len(results) == 200
    assert counter.at_work == 0


EXPECTED: dict[str, Callable[[int, bool], object]] = {
    "resolve": lambda item, _: f"r{item}",
    "retry": lambda item, _: f"r{item}",
    "fail": lambda _, __: MeshError,
    "cancel before": lambda _, __: asyncio.CancelledError,
    "cancel during": lambda _, __: asyncio.CancelledError,
    "forget": lambda _, breaks: OSError if breaks else RuntimeError,
}


@dataclass
class Play:
    """A group's work in which each item does what its act says."""

    acts: list[str]
    breaks: bool
    tasks: list[asyncio.Task[str]] = field(default_factory=list)

    async def run(self, group: Group) -> None:
        await asyncio.sleep(0)
        for entry in group:
            await self.act(entry)
        if self.breaks:
            raise OSError("lost")

    async def act(self, entry: Entry[int, str]) -> None:
        act = self.acts[entry.item]
        if act == "cancel during":
            self.tasks[entry.item].cancel()
            await asyncio.sleep(0)
        if act == "fail":
            entry.fail(MeshError("COUPON_EXPIRED"))
        elif act == "retry" and entry.attempts == 0:
            entry.retry_later(0.0)
        elif act != "forget":
            entry.resolve(f"r{entry.item}")

    async def results(self, max_group: int, max_in_flight: int) -> list[object]:
        commit: GroupCommit[int, str] = GroupCommit(self.run, max_group=max_group, max_in_flight=max_in_flight)
        self.tasks = submit_all(commit, range(len(self.acts)))
        await asyncio.sleep(0)
        for task, act in zip(self.tasks, self.acts, strict=True):
            if act == "cancel before":
                task.cancel()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*self.tasks, return_exceptions=True)
            await commit.close()
        return [type(result) if isinstance(result, BaseException) else result for result in results]


@settings(max_examples=60, deadline=None)
@given(
    acts=st.lists(st.sampled_from(sorted(EXPECTED)), min_size=1, max_size=40),
    max_group=st.integers(1, 8),
    max_in_flight=st.integers(1, 3),
    breaks=st.booleans(),
)
def test_whatever_happens_everyone_gets_exactly_the_answer_meant_for_it(
    acts: list[str], max_group: int, max_in_flight: int, breaks: bool
) -> None:
    results = asyncio.run(Play(acts, breaks).results(max_group, max_in_flight))
    assert results == [EXPECTED[act](item, breaks) for item, act in enumerate(acts)]
