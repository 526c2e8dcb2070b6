"""What chains prove, on rows made and altered in memory."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_svc.domain.audit import Anchor, ChainAudit, Finding, FindingKind, Head, Link, OutboxEntry, is_intact
from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow, Origin, sealed
from coupon_svc.domain.times import month_of

CHAIN = "0000000000000000133"
SHARD = 5
KEYS = {"k2": b"2" * 32, "k1": b"1" * 32}
NOW_MS = 1_790_000_000_000


def macs(data: bytes) -> Sequence[tuple[str, bytes]]:
    return [(key_id, hmac.digest(key, data, hashlib.sha256)) for key_id, key in KEYS.items()]


def written(length: int) -> list[JournalRow]:
    """A gift card of 100.00 from which 1 fen was taken in each row but the first."""
    rows: list[JournalRow] = []
    for seq in range(1, length + 1):
        row = JournalRow(
            shard=SHARD,
            coupon_id=CHAIN,
            seq=seq,
            kind=JournalKind.ISSUED if seq == 1 else JournalKind.ACTIVATED,
            status_before=0 if seq == 1 else 3,
            status_after=3,
            user_id=133,
            origin=Origin(caller="till", request_id=f"r{seq}", trace_id="0" * 32, time_ms=NOW_MS + seq),
            amount_minor=10_000 if seq == 1 else -1,
            balance_after_minor=10_001 - seq,
            prev_hash=rows[-1].hash if rows else FIRST_HASH,
        )
        rows.append(sealed(row, lambda data: macs(data)[1]))
    return rows


def head(rows: Sequence[JournalRow], **changes: Any) -> Head:
    last = rows[-1]
    known = Head(SHARD, CHAIN, last.seq, last.hash, (133,), last.status_after, last.balance_after_minor)
    return replace(known, **changes)


def audited(
    rows: Sequence[JournalRow], at: Head | None, *, anchors: Sequence[Anchor] = (), outbox: bool = True
) -> list[Finding]:
    audit = ChainAudit(SHARD, CHAIN, at, anchors, macs)
    found: list[Finding] = []
    for row in rows:
        month = month_of(row.origin.time_ms)
        entry = OutboxEntry(month, row.origin.time_ms, published=False) if outbox else None
        found += audit.add(Link(row, month, is_intact(row, macs), (), entry))
    found += audit.finish()
    return found


@given(st.integers(1, 30))
def test_a_chain_as_it_was_written_holds(length: int) -> None:
    rows = written(length)
    assert audited(rows, head(rows)) == []
    assert audited(rows, head(rows), outbox=False) == []


@given(
    length=st.integers(1, 12),
    data=st.data(),
    field=st.sampled_from(
        ["amount_minor", "balance_after_minor", "user_id", "merchant_id", "status_after", "lock_fence"]
    ),
)
def test_any_altered_row_is_found_at_its_number(length: int, data: st.DataObject, field: str) -> None:
    rows = written(length)
    position = data.draw(st.integers(0, length - 1))
    value: Any = "x" if field == "merchant_id" else data.draw(st.integers(20_000, 30_000))
    altered = [*rows]
    altered[position] = replace(rows[position], **{field: value})
    found = audited(altered, head(rows))
    assert [(each.kind, each.seq) for each in found] == [(FindingKind.ROW_ALTERED, position + 1)]
    assert [each.field for each in found[0].differences] == [field]


@given(length=st.integers(3, 12), data=st.data())
def test_any_removed_rows_are_found_by_their_numbers(length: int, data: st.DataObject) -> None:
    rows = written(length)
    first = data.draw(st.integers(1, length - 1))
    last = data.draw(st.integers(first, length - 1))
    found = audited([row for row in rows if not first <= row.seq <= last], head(rows))
    assert [(each.kind, each.seq, each.last_seq) for each in found] == [(FindingKind.ROW_REMOVED, first, last)]


@given(length=st.integers(2, 12), data=st.data())
def test_any_tail_that_was_cut_off_is_found(length: int, data: st.DataObject) -> None:
    rows = written(length)
    left = data.draw(st.integers(1, length - 1))
    found = audited(rows[:left], head(rows))
    assert [(each.kind, each.seq, each.last_seq) for each in found] == [(FindingKind.TAIL_CUT, left + 1, length)]


@given(length=st.integers(1, 8), left=st.integers(1, 8))
def test_a_tail_that_was_cut_off_with_its_head_is_found_by_an_anchor(length: int, left: int) -> None:
    rows = written(length + left)
    anchors = [Anchor(rows[-1].seq, rows[-1].hash, 7)]
    (found,) = audited(rows[:left], head(rows[:left]), anchors=anchors, outbox=False)
    assert (found.kind, found.seq, found.last_seq, found.root_number) == (
        FindingKind.TAIL_CUT,
        left + 1,
        length + left,
        7,
    )


def test_a_chain_sealed_anew_holds_and_only_an_anchor_tells() -> None:
    rows = written(6)
    again: list[JournalRow] = rows[:2]
    for row in rows[2:]:
        again.append(sealed(replace(row, merchant_id="mine", prev_hash=again[-1].hash), lambda data: macs(data)[0]))
    assert audited(again, head(again)) == []
    anchors = [Anchor(row.seq, row.hash, row.seq) for row in rows[::2]]
    (found,) = audited(again, head(again), anchors=anchors)
    # Rows 1, 3 and 5 are anchored; 1 is as it was.
    assert (found.kind, found.seq, found.last_seq, found.root_number) == (FindingKind.CHAIN_RECOMPUTED, 2, 3, 3)


def test_rows_sealed_under_a_key_that_is_rotated_out_of_use_hold() -> None:
    rows = written(2)
    third = replace(rows[1], seq=3, balance_after_minor=rows[1].balance_after_minor - 1, prev_hash=rows[1].hash)
    follower = sealed(third, lambda data: macs(data)[0])
    assert {row.key_id for row in (*rows, follower)} == {"k1", "k2"}
    assert audited([*rows, follower], head([follower])) == []


@pytest.mark.parametrize("at", [None, Head(SHARD, CHAIN, None, None)], ids=["nothing", "a batch"])
def test_a_chain_whose_head_says_nothing_is_followed_all_the_same(at: Head | None) -> None:
    rows = written(3)
    kinds = [each.kind for each in audited(rows, at)]
    assert kinds == ([FindingKind.CHAIN_UNMATCHED] if at is None else [])
    altered = [rows[0], replace(rows[1], amount_minor=5), rows[2]]
    assert audited(altered, at)[0].kind is FindingKind.ROW_ALTERED


@pytest.mark.parametrize(
    ("changes", "field"), [({"balance_after_minor": 20_000}, "balance"), ({"status_before": 4}, "status")]
)
def test_a_row_that_begins_elsewhere_than_the_one_before_ended_tells_that_the_coupon_had_been_altered(
    changes: dict[str, int], field: str
) -> None:
    rows = written(2)
    third = replace(rows[1], seq=3, balance_after_minor=9_998, prev_hash=rows[1].hash)
    rows.append(sealed(replace(third, **changes), lambda data: macs(data)[1]))  # type: ignore[arg-type]  # By its name.
    (found,) = audited(rows, head(rows))
    assert (found.kind, found.seq, [each.field for each in found.differences]) == (
        FindingKind.HEAD_MISMATCH,
        3,
        [field],
    )
