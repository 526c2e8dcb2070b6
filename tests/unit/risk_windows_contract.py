"""What every implementation of the port Windows must do; each one's test class inherits these tests."""

import asyncio
import itertools

from risk_svc.app.ports import Windows
from risk_svc.domain.operations import Decision
from risk_svc.domain.windows import Check, Effect, Step, WindowLimit
from tests.unit.risk_fakes import HandClock

SPENDING = WindowLimit("spending", limit=5, window_ms=60_000, bucket_ms=2_000)
GUESSING = WindowLimit("guessing", limit=3, window_ms=30_000, bucket_ms=1_000)
TIMEOUT_S = 5.0

ALLOWED = Decision()
REFUSED = Decision(("spending",))
GUESSED = Decision(("guessing",))

_numbers = itertools.count()


def spend(subject: str = "ann", *, operation: str = "", limit: WindowLimit = SPENDING) -> Check:
    return Check((operation or f"spend-{next(_numbers)}",), (Step(limit, (subject,), Effect.SPEND),))


def mark(subject: str = "pos") -> Check:
    return Check((f"mark-{next(_numbers)}",), (Step(GUESSING, (subject,), Effect.MARK),))


def watch(subject: str = "pos") -> Check:
    return Check((f"watch-{next(_numbers)}",), (Step(GUESSING, (subject,), Effect.WATCH),))


def spend_and_watch(user: str, caller: str) -> Check:
    steps = (Step(SPENDING, (user,), Effect.SPEND), Step(GUESSING, (caller,), Effect.WATCH))
    return Check((f"both-{next(_numbers)}",), steps)


async def one(windows: Windows, check: Check) -> Decision:
    (decision,) = await windows.assess([check], timeout_s=TIMEOUT_S)
    return decision


class WindowsContract:
    """Inherit, and provide the fixtures `windows` (empty at first, reading `clock`) and `clock`."""

    async def test_the_limit_is_reached_and_the_next_one_is_refused(self, windows: Windows) -> None:
        decisions = [await one(windows, spend()) for _ in range(SPENDING.limit + 2)]
        assert decisions == [ALLOWED] * SPENDING.limit + [REFUSED] * 2

    async def test_operations_of_one_batch_see_each_other_in_order(self, windows: Windows) -> None:
        batch = [spend("ann") for _ in range(SPENDING.limit + 1)] + [spend("bob"), spend("ann")]
        assert await windows.assess(batch, timeout_s=TIMEOUT_S) == [ALLOWED] * SPENDING.limit + [
            REFUSED,
            ALLOWED,
            REFUSED,
        ]

    async def test_each_subject_and_each_rule_has_a_window_of_its_own(self, windows: Windows) -> None:
        other = WindowLimit("other", limit=5, window_ms=60_000, bucket_ms=2_000)
        await windows.assess([spend("ann") for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
        assert await one(windows, spend("ann")) == REFUSED
        assert await one(windows, spend("bob")) == ALLOWED
        assert await one(windows, spend("ann", limit=other)) == ALLOWED

    async def test_an_event_counts_for_the_whole_window_wherever_in_its_bucket_it_fell(
        self, windows: Windows, clock: HandClock
    ) -> None:
        start_ms = SPENDING.bucket_start_ms(clock.now_ms)
        for subject, offset_ms in (("first", 0), ("last", SPENDING.bucket_ms - 1)):
            clock.now_ms = start_ms + offset_ms
            await windows.assess([spend(subject) for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
            clock.advance(SPENDING.window_ms - 1)
            assert await one(windows, spend(subject)) == REFUSED

    async def test_an_event_is_forgotten_within_one_bucket_after_the_window(
        self, windows: Windows, clock: HandClock
    ) -> None:
        start_ms = SPENDING.bucket_start_ms(clock.now_ms)
        # The longest stay is that of an event at the start of its bucket, the shortest that of one at its end.
        for subject, offset_ms, stay_ms in (
            ("first", 0, SPENDING.window_ms + SPENDING.bucket_ms - 1),
            ("last", SPENDING.bucket_ms - 1, SPENDING.window_ms),
        ):
            clock.now_ms = start_ms + offset_ms
            await windows.assess([spend(subject) for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
            clock.advance(stay_ms - 1)
            assert await one(windows, spend(subject)) == REFUSED
            clock.advance(1)
            assert await one(windows, spend(subject)) == ALLOWED

    async def test_a_window_slides_bucket_by_bucket(self, windows: Windows, clock: HandClock) -> None:
        clock.now_ms = SPENDING.bucket_start_ms(clock.now_ms)
        early = [spend() for _ in range(2)]
        await windows.assess(early, timeout_s=TIMEOUT_S)
        clock.advance(30_000)
        await windows.assess([spend() for _ in range(SPENDING.limit - 2)], timeout_s=TIMEOUT_S)
        clock.advance(30_000 + SPENDING.bucket_ms)
        decisions = await windows.assess([spend() for _ in range(3)], timeout_s=TIMEOUT_S)
        assert decisions == [ALLOWED, ALLOWED, REFUSED]

    async def test_a_refused_spend_is_not_counted(self, windows: Windows, clock: HandClock) -> None:
        clock.now_ms = SPENDING.bucket_start_ms(clock.now_ms)
        await windows.assess([spend() for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
        clock.advance(SPENDING.window_ms - 1)
        assert await windows.assess([spend() for _ in range(20)], timeout_s=TIMEOUT_S) == [REFUSED] * 20
        clock.advance(SPENDING.bucket_ms)
        assert await one(windows, spend()) == ALLOWED

    async def test_a_repeated_operation_gets_its_first_decision_and_counts_nothing(self, windows: Windows) -> None:
        for _ in range(SPENDING.limit * 2):
            again = await one(windows, spend(operation="same"))
        assert again == Decision(replayed=True)
        rest = [spend() for _ in range(SPENDING.limit)]
        assert await windows.assess(rest, timeout_s=TIMEOUT_S) == [ALLOWED] * (SPENDING.limit - 1) + [REFUSED]

    async def test_a_refusal_is_repeated_even_when_the_window_has_emptied(
        self, windows: Windows, clock: HandClock
    ) -> None:
        await windows.assess([spend() for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
        assert await one(windows, spend(operation="late")) == REFUSED
        clock.advance(SPENDING.ttl_ms)
        assert await one(windows, spend(operation="late")) == Decision(("spending",), replayed=True)
        assert await one(windows, spend()) == ALLOWED

    async def test_a_repeat_is_told_apart_within_a_batch_of_new_ones(self, windows: Windows) -> None:
        first = spend()
        await one(windows, first)
        decisions = await windows.assess([spend(), first, spend()], timeout_s=TIMEOUT_S)
        assert [decision.replayed for decision in decisions] == [False, True, False]

    async def test_of_four_times_too_many_at_once_exactly_the_limit_is_allowed(self, windows: Windows) -> None:
        decisions = await asyncio.gather(*(one(windows, spend()) for _ in range(SPENDING.limit * 4)))
        assert decisions.count(ALLOWED) == SPENDING.limit
        assert decisions.count(REFUSED) == SPENDING.limit * 3

    async def test_one_operation_sent_by_many_at_once_counts_once(self, windows: Windows) -> None:
        decisions = await asyncio.gather(*(one(windows, spend(operation="twin")) for _ in range(20)))
        assert decisions.count(ALLOWED) == 1
        assert decisions.count(Decision(replayed=True)) == 19
        rest = await windows.assess([spend() for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
        assert rest.count(ALLOWED) == SPENDING.limit - 1

    async def test_the_mark_beyond_the_limit_trips_the_window(self, windows: Windows) -> None:
        marks = [await one(windows, mark()) for _ in range(GUESSING.limit)]
        assert marks == [ALLOWED] * GUESSING.limit
        assert await one(windows, watch()) == ALLOWED
        assert await one(windows, mark()) == GUESSED
        assert await one(windows, watch()) == GUESSED
        assert await one(windows, watch("another")) == ALLOWED

    async def test_watching_counts_nothing(self, windows: Windows) -> None:
        await windows.assess([mark() for _ in range(GUESSING.limit)], timeout_s=TIMEOUT_S)
        assert await windows.assess([watch() for _ in range(50)], timeout_s=TIMEOUT_S) == [ALLOWED] * 50

    async def test_a_tripped_window_refuses_until_it_has_emptied(self, windows: Windows, clock: HandClock) -> None:
        clock.now_ms = GUESSING.bucket_start_ms(clock.now_ms)
        await windows.assess([mark() for _ in range(GUESSING.limit)], timeout_s=TIMEOUT_S)
        clock.advance(20_000)
        assert await one(windows, mark()) == GUESSED
        clock.advance(GUESSING.window_ms - 1)
        # Only the last mark is left, far below the limit.
        assert await one(windows, watch()) == GUESSED
        clock.advance(GUESSING.bucket_ms)
        assert await one(windows, watch()) == ALLOWED
        # And it starts again from nothing.
        marks = await windows.assess([mark() for _ in range(GUESSING.limit + 1)], timeout_s=TIMEOUT_S)
        assert marks == [ALLOWED] * GUESSING.limit + [GUESSED]

    async def test_marks_count_in_a_tripped_window_too(self, windows: Windows, clock: HandClock) -> None:
        clock.now_ms = GUESSING.bucket_start_ms(clock.now_ms)
        await windows.assess([mark() for _ in range(GUESSING.limit + 1)], timeout_s=TIMEOUT_S)
        clock.advance(20_000)
        assert await one(windows, mark()) == GUESSED
        clock.advance(20_000)
        assert await one(windows, watch()) == GUESSED

    async def test_a_batch_sees_its_own_marks(self, windows: Windows) -> None:
        batch = [watch(), *(mark() for _ in range(GUESSING.limit + 1)), watch()]
        assert (await windows.assess(batch, timeout_s=TIMEOUT_S))[-1] == GUESSED

    async def test_what_one_rule_refuses_another_does_not_count(self, windows: Windows) -> None:
        await windows.assess([mark() for _ in range(GUESSING.limit + 1)], timeout_s=TIMEOUT_S)
        for _ in range(SPENDING.limit):
            assert await one(windows, spend_and_watch("ann", "pos")) == GUESSED
        assert await windows.assess([spend("ann") for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S) == (
            [ALLOWED] * SPENDING.limit
        )
        assert await one(windows, spend_and_watch("ann", "pos")) == Decision(("spending", "guessing"))

    async def test_a_check_without_steps_is_allowed_and_remembered(self, windows: Windows) -> None:
        free = Check(("free",), ())
        assert await one(windows, free) == ALLOWED
        assert await one(windows, free) == Decision(replayed=True)

    async def test_a_clock_that_steps_back_loses_no_event(self, windows: Windows, clock: HandClock) -> None:
        await windows.assess([spend() for _ in range(SPENDING.limit)], timeout_s=TIMEOUT_S)
        clock.advance(-3_600_000)
        assert await one(windows, spend()) == REFUSED
