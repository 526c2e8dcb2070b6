import pytest

from meshkit.tracing import NO_SPAN, arrive, depart

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


def test_a_request_keeps_the_trace_it_arrived_with() -> None:
    hop = arrive(f"00-{TRACE_ID}-{SPAN_ID}-00", 0.0, trusted=True)
    assert (hop.trace_id, hop.parent_id, hop.sampled) == (TRACE_ID, SPAN_ID, False)


def test_a_caller_that_sampled_is_followed() -> None:
    assert arrive(f"00-{TRACE_ID}-{SPAN_ID}-01", 0.0, trusted=True).sampled
    assert arrive(f"00-{TRACE_ID}-{SPAN_ID}-03", 0.0, trusted=True).sampled


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "garbage",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f"00-{TRACE_ID}-{SPAN_ID}-01; DROP TABLE",
    ],
)
def test_a_missing_or_malformed_header_begins_a_new_trace(header: str | None) -> None:
    first, second = arrive(header, 0.0, trusted=True), arrive(header, 0.0, trusted=True)
    assert first.trace_id != second.trace_id
    assert len(first.trace_id) == 32
    assert (first.parent_id, first.sampled) == (NO_SPAN, False)


def test_a_header_of_a_later_version_is_understood() -> None:
    assert arrive(f"01-{TRACE_ID}-{SPAN_ID}-00-more", 0.0, trusted=True).trace_id == TRACE_ID


def test_a_client_does_not_choose_what_is_sampled() -> None:
    for header in (f"00-{TRACE_ID}-{SPAN_ID}-01", f"00-{TRACE_ID[:18]}{'0' * 14}-{SPAN_ID}-01"):
        assert 900 < sum(arrive(header, 0.1, trusted=False).sampled for _ in range(10_000)) < 1_100


def test_a_service_that_did_not_sample_is_followed_whatever_the_ratio() -> None:
    assert not arrive(f"00-{TRACE_ID}-{SPAN_ID}-00", 1.0, trusted=True).sampled


def test_the_ratio_bounds_are_never_and_always() -> None:
    assert not any(arrive(None, 0.0, trusted=True).sampled for _ in range(1_000))
    assert all(arrive(None, 1.0, trusted=True).sampled for _ in range(1_000))


@pytest.mark.parametrize("sampled", [True, False])
def test_what_departs_arrives(sampled: bool) -> None:
    hop = arrive(depart(TRACE_ID, SPAN_ID, sampled=sampled), 0.0, trusted=True)
    assert (hop.trace_id, hop.parent_id, hop.sampled) == (TRACE_ID, SPAN_ID, sampled)


def test_a_trace_crosses_a_hop_that_recorded_no_span() -> None:
    assert arrive(depart(TRACE_ID, NO_SPAN, sampled=False), 0.0, trusted=True).trace_id == TRACE_ID
