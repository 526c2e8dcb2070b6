"""Which windows an operation touches, by the rules alone."""

from dataclasses import replace

import pytest

from meshkit.errors import MeshError
from risk_svc.domain.operations import Decision, Kind, Operation, Verdict, ensure_distinct
from risk_svc.domain.rules import Rules, address_site
from risk_svc.domain.windows import Effect, Step, WindowLimit

VELOCITY = WindowLimit("user-merchant-velocity", 300, 60_000, 2_000)
GUESSES = WindowLimit("guessed-codes", 10, 300_000, 10_000)
GUESSES_WITHOUT_IP = WindowLimit("guessed-codes", 100, 300_000, 10_000)
RULES = Rules(VELOCITY, GUESSES, GUESSES_WITHOUT_IP)

CONSUME = Operation("op", Kind.CONSUME, "pos-7", ip="203.0.113.9", user_id=42, merchant_id="10086", coupon_id="1")


def test_a_consume_spends_from_the_window_of_its_user_and_merchant() -> None:
    assert RULES.check(CONSUME).steps == (Step(VELOCITY, ("42", "10086"), Effect.SPEND),)


@pytest.mark.parametrize("unknown", [{"user_id": 0}, {"merchant_id": ""}])
def test_velocity_leaves_a_consume_alone_whose_user_or_merchant_is_unknown(unknown: dict[str, object]) -> None:
    assert RULES.check(replace(CONSUME, **unknown)).steps == ()  # type: ignore[arg-type]  # the names are the fields'


def test_a_consume_by_code_also_watches_for_guesses_of_its_caller_and_address() -> None:
    assert RULES.check(replace(CONSUME, by_code=True)).steps == (
        Step(VELOCITY, ("42", "10086"), Effect.SPEND),
        Step(GUESSES, ("pos-7", "203.0.113.9"), Effect.WATCH),
    )


def test_a_bad_code_marks_the_window_of_its_caller_and_address_and_no_other() -> None:
    bad = replace(CONSUME, kind=Kind.BAD_CODE, by_code=True)
    assert RULES.check(bad).steps == (Step(GUESSES, ("pos-7", "203.0.113.9"), Effect.MARK),)


@pytest.mark.parametrize("by_code", [False, True])
def test_a_lookup_watches_for_guesses(by_code: bool) -> None:
    lookup = Operation("op", Kind.LOOKUP, "pos-7", ip="203.0.113.9", by_code=by_code)
    assert RULES.check(lookup).steps == (Step(GUESSES, ("pos-7", "203.0.113.9"), Effect.WATCH),)


@pytest.mark.parametrize(("kind", "effect"), [(Kind.BAD_CODE, Effect.MARK), (Kind.LOOKUP, Effect.WATCH)])
def test_without_an_address_guesses_fall_to_the_caller_alone(kind: Kind, effect: Effect) -> None:
    assert RULES.check(Operation("op", kind, "pos-7")).steps == (Step(GUESSES_WITHOUT_IP, ("pos-7",), effect),)


@pytest.mark.parametrize(
    ("ip", "site"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::FFFF", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("nowhere", ""),
    ],
)
def test_an_address_is_what_one_subscriber_has(ip: str, site: str) -> None:
    assert address_site(ip) == site


@pytest.mark.parametrize(
    "other",
    [
        {"operation_id": "other"},
        {"kind": Kind.LOOKUP},
        {"caller": "pos-8"},
        {"user_id": 43},
        {"merchant_id": "10087"},
        {"coupon_id": "2"},
        {"by_code": True},
    ],
)
def test_an_id_that_comes_again_for_something_else_is_another_operation(other: dict[str, object]) -> None:
    changed = replace(CONSUME, **other)  # type: ignore[arg-type]  # the names are the fields'
    assert RULES.check(changed).identity != RULES.check(CONSUME).identity


def test_a_retry_from_another_address_is_the_same_operation() -> None:
    assert RULES.check(replace(CONSUME, ip="198.51.100.1")).identity == RULES.check(CONSUME).identity


def test_a_batch_that_names_one_operation_twice_is_refused() -> None:
    with pytest.raises(MeshError) as refused:
        ensure_distinct([CONSUME, replace(CONSUME, operation_id="b"), replace(CONSUME, kind=Kind.LOOKUP)])
    assert refused.value.reason == "OPERATION_DUPLICATED"
    assert refused.value.metadata == {"operation_id": "op"}


def test_a_decision_rejects_when_any_rule_refused() -> None:
    assert Decision().verdict is Verdict.ALLOW
    assert Decision(("guessed-codes",)).verdict is Verdict.REJECT


@pytest.mark.parametrize(("limit", "bucket_ms"), [(0, 1_000), (1, 0), (1, 60_001)])
def test_a_window_without_room_or_with_odd_buckets_is_refused(limit: int, bucket_ms: int) -> None:
    with pytest.raises(ValueError, match="not a window"):
        WindowLimit("any", limit, 60_000, bucket_ms)
