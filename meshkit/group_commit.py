"""Coalesces concurrent calls into groups: while one group is at work, arrivals wait and make up the next."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from meshkit.errors import MeshError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(Generic[Item, Result]):
    """One waiting call.

    Attributes:
        item: What was submitted.
        deadline: When the caller stops waiting, in time.monotonic() seconds.
        attempts: How many groups the entry was in before.
    """

    __slots__ = ("_future", "_retry_in_s", "attempts", "deadline", "item")

    def __init__(self, item: Item, deadline: float, future: asyncio.Future[Result]) -> None:
        self.item = item
        self.deadline = deadline
        self.attempts = 0
        self._future = future
        self._retry_in_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether the entry has its answer or its caller has gone."""
        return self._future.done()

    def resolve(self, result: Result) -> None:
        """Answers the caller; does nothing when the entry is done, since setting a cancelled future's result raises."""
        if not self._future.done():
            self._future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Raises `error` at the caller; does nothing when the entry is done."""
        if not self._future.done():
            self._future.set_exception(error)

    def retry_later(self, delay_s: float) -> bool:
        """Takes the entry out of its group, to be submitted again after a delay.

        Returns:
            False, and nothing was done, when the delay would outlast the deadline: give the entry its answer then.
        """
        if time.monotonic() + delay_s >= self.deadline:
            return False
        self._retry_in_s = delay_s
        return True

    def take_retry(self) -> float | None:
        """The delay that `retry_later` asked for, once; None when it didn't."""
        delay_s, self._retry_in_s = self._retry_in_s, None
        return delay_s


class GroupCommit(Generic[Item, Result]):
    """Runs submitted items in groups of up to `max_group`; at low load an item is a group of its own at once.

    Entries whose callers left or whose deadlines passed are dropped before a group starts. An error out of `run` fails
    the entries that have no answer yet. A caller's cancellation never cancels a group.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Entry[Item, Result]]], Awaitable[None]],
        *,
        max_group: int = 128,
        max_in_flight: int = 2,
        max_waiting: int = 4096,
        observe_size: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Starts nothing yet.

        Args:
            run: Answers each entry of a group, in arrival order, by resolve, fail or retry_later; bounds its own time.
            max_group: Most entries in a group.
            max_in_flight: Most groups at work at a time.
            max_waiting: Most entries that wait, retries included; beyond it submit refuses at once.
            observe_size: Told the size of each group that starts.
        """
        self._run = run
        self._max_group = max_group
        self._max_in_flight = max_in_flight
        self._max_waiting = max_waiting
        self._observe_size = observe_size
        self._waiting: deque[Entry[Item, Result]] = deque()
        # Entries back from a delay; they arrived before all that wait, and keep their order among themselves.
        self._returned: deque[Entry[Item, Result]] = deque()
        self._delayed: dict[Entry[Item, Result], asyncio.TimerHandle] = {}
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False
        self._closing = False
        self._drained = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Entries that are in no group at the moment."""
        return len(self._waiting) + len(self._returned) + len(self._delayed)

    async def submit(self, item: Item, *, deadline: float) -> Result:
        """Puts an item into one of the next groups and returns its result.

        Args:
            item: What the group shall do.
            deadline: In time.monotonic() seconds; an item that waits longer is dropped unseen.

        Raises:
            MeshError: OVERLOADED at once when too many wait, UNAVAILABLE when closing, DEADLINE_EXCEEDED when dropped.
        """
        if self._closing:
            raise MeshError("UNAVAILABLE", part="group_commit")
        if self.waiting >= self._max_waiting:
            raise MeshError("OVERLOADED")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(Entry(item, deadline, future))
        self._schedule_pump()
        return await future

    async def close(self, *, timeout_s: float = 10.0) -> None:
        """Refuses new items and returns when all groups are done.

        Entries that have no answer after `timeout_s` fail with UNAVAILABLE, and their groups are cancelled.
        """
        self._closing = True
        self._note_drained()
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            await self._abandon()

    def _schedule_pump(self) -> None:
        # One turn of the loop later, so that calls which arrived together form one group; nothing waits for time.
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        while (self._waiting or self._returned) and len(self._in_flight) < self._max_in_flight:
            group = self._take_group()
            if group:
                self._observe_size(len(group))
                task = asyncio.get_running_loop().create_task(self._work(group))
                self._in_flight.add(task)
                task.add_done_callback(self._finished)
        self._note_drained()

    def _take_group(self) -> list[Entry[Item, Result]]:
        group: list[Entry[Item, Result]] = []
        now = time.monotonic()
        while (self._waiting or self._returned) and len(group) < self._max_group:
            entry = (self._returned or self._waiting).popleft()
            if entry.deadline <= now:
                entry.fail(MeshError("DEADLINE_EXCEEDED"))
            if not entry.done:
                group.append(entry)
        return group

    async def _work(self, group: list[Entry[Item, Result]]) -> None:
        error: Exception
        try:
            await self._run(group)
            error = RuntimeError("the group ended without an answer for the entry")
        except asyncio.CancelledError:
            self._fail_open(group, MeshError("UNAVAILABLE", part="group_commit"))
            raise
        except Exception as raised:  # noqa: BLE001 - a task boundary: the error goes to each caller without an answer
            error = raised
        for entry in group:
            delay_s = entry.take_retry()
            if delay_s is not None and not entry.done:
                self._delay(entry, delay_s)
            else:
                entry.fail(error)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._pump()

    def _delay(self, entry: Entry[Item, Result], delay_s: float) -> None:
        entry.attempts += 1
        self._delayed[entry] = asyncio.get_running_loop().call_later(delay_s, self._resubmit, entry)

    def _resubmit(self, entry: Entry[Item, Result]) -> None:
        del self._delayed[entry]
        self._returned.append(entry)
        self._schedule_pump()

    def _note_drained(self) -> None:
        if self._closing and not (self.waiting or self._in_flight):
            self._drained.set()

    async def _abandon(self) -> None:
        for timer in self._delayed.values():
            timer.cancel()
        left = [*self._returned, *self._waiting, *self._delayed]
        self._returned.clear()
        self._waiting.clear()
        self._delayed.clear()
        self._fail_open(left, MeshError("UNAVAILABLE", part="group_commit"))
        tasks = tuple(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _fail_open(entries: Sequence[Entry[Item, Result]], error: Exception) -> None:
        for entry in entries:
            entry.fail(error)
