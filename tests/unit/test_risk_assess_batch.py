"""The use case AssessBatch over windows in memory."""

from dataclasses import dataclass

import pytest

from meshkit.errors import MeshError
from risk_svc.app.assess_batch import REPLY_MIN_S, AssessBatch
from risk_svc.domain.operations import Decision, Kind, Operation
from risk_svc.domain.rules import Rules
from risk_svc.domain.windows import WindowLimit
from tests.unit.risk_fakes import HandClock, MemoryWindows, NotingObserver


@dataclass
class Desk:
    """The use case with everything around it."""

    clock: HandClock
    windows: MemoryWindows
    observer: NotingObserver
    assess: AssessBatch


@pytest.fixture
def desk() -> Desk:
    clock = HandClock()
    windows = MemoryWindows(clock)
    observer = NotingObserver()
    rules = Rules(
        velocity=WindowLimit("user-merchant-velocity", 300, 60_000, 2_000),
        guesses=WindowLimit("guessed-codes", 10, 300_000, 10_000),
        guesses_without_ip=WindowLimit("guessed-codes", 100, 300_000, 10_000),
    )
    return Desk(clock, windows, observer, AssessBatch(rules, windows, observer, windows_timeout_s=0.2))


def consume(operation: str, *, by_code: bool = False, ip: str = "203.0.113.9") -> Operation:
    return Operation(operation, Kind.CONSUME, "pos-7", ip, user_id=42, merchant_id="10086", by_code=by_code)


def bad_code(operation: str, *, ip: str = "203.0.113.9") -> Operation:
    return Operation(operation, Kind.BAD_CODE, "pos-7", ip)


async def test_two_hundred_consumes_of_one_user_with_four_retries_each_are_all_allowed(desk: Desk) -> None:
    for round_ in range(5):
        for first in range(0, 200, 100):
            batch = [consume(f"op-{number}") for number in range(first, first + 100)]
            decisions = await desk.assess(batch, remaining_s=1.0)
            assert decisions == [Decision(replayed=round_ > 0)] * 100


async def test_the_eleventh_bad_code_shuts_codes_out_and_leaves_coupon_ids_alone(desk: Desk) -> None:
    decisions = await desk.assess([bad_code(f"bad-{number}") for number in range(11)], remaining_s=1.0)
    assert decisions == [Decision()] * 10 + [Decision(("guessed-codes",))]
    by_code, by_id, elsewhere, lookup = await desk.assess(
        [
            consume("by-code", by_code=True),
            consume("by-id"),
            consume("elsewhere", by_code=True, ip="198.51.100.1"),
            Operation("lookup", Kind.LOOKUP, "pos-7", "203.0.113.9"),
        ],
        remaining_s=1.0,
    )
    assert by_code == lookup == Decision(("guessed-codes",))
    assert by_id == elsewhere == Decision()


async def test_bad_codes_without_an_address_trip_only_beyond_the_higher_limit(desk: Desk) -> None:
    decisions = await desk.assess([bad_code(f"bad-{number}", ip="") for number in range(101)], remaining_s=1.0)
    assert decisions == [Decision()] * 100 + [Decision(("guessed-codes",))]
    known, unknown = await desk.assess(
        [consume("known", by_code=True), consume("unknown", by_code=True, ip="")], remaining_s=1.0
    )
    assert known == Decision()
    assert unknown == Decision(("guessed-codes",))


async def test_a_batch_with_a_duplicate_is_refused_before_anything_is_counted(desk: Desk) -> None:
    with pytest.raises(MeshError, match="OPERATION_DUPLICATED"):
        await desk.assess([consume("twin"), consume("twin")], remaining_s=1.0)
    assert desk.windows.timeouts_s == []


@pytest.mark.parametrize(("remaining_s", "timeout_s"), [(5.0, 0.2), (0.2, 0.16), (0.02, 0.016), (0.005, 0.003)])
async def test_the_windows_get_less_time_than_the_caller_has(desk: Desk, remaining_s: float, timeout_s: float) -> None:
    await desk.assess([consume("op")], remaining_s=remaining_s)
    assert desk.windows.timeouts_s == [pytest.approx(timeout_s)]


@pytest.mark.parametrize("remaining_s", [REPLY_MIN_S, 0.0, -1.0])
async def test_a_caller_out_of_time_costs_the_windows_nothing(desk: Desk, remaining_s: float) -> None:
    with pytest.raises(MeshError, match="WINDOWS_UNAVAILABLE"):
        await desk.assess([consume("op")], remaining_s=remaining_s)
    assert desk.windows.timeouts_s == []
    assert desk.observer.failures == ["timeout"]


async def test_windows_that_are_away_are_said_to_be(desk: Desk) -> None:
    desk.windows.away = True
    with pytest.raises(MeshError, match="WINDOWS_UNAVAILABLE"):
        await desk.assess([consume("op")], remaining_s=1.0)
    assert desk.observer.batches == []


async def test_the_observer_hears_sizes_and_decisions(desk: Desk) -> None:
    await desk.assess([consume("a"), bad_code("b")], remaining_s=1.0)
    await desk.assess([consume("a")], remaining_s=1.0)
    assert desk.observer.batches == [2, 1]
    assert desk.observer.decisions == [
        (Kind.CONSUME, Decision()),
        (Kind.BAD_CODE, Decision()),
        (Kind.CONSUME, Decision(replayed=True)),
    ]
