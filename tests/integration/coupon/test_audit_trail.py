"""Whoever alters, removes, inserts, cuts off or recomputes rows in the database is found, and where."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from couponmesh.coupon.v1 import coupon_service_pb2
from couponmesh.coupon.v1.audit_pb2 import VerifyAuditTrailRequest
from tests.integration.coupon.audits import differences, recompute, spent_card, stream, verify
from tests.integration.coupon.world import OwnedCoupon, World, cash_voucher, eventually, refusal, request_id

ROW = "WHERE shard = %s AND coupon_id = %s AND seq = %s"


async def test_an_untouched_trail_of_every_kind_of_coupon_is_found_in_order(world: World) -> None:
    card = await spent_card(world)
    voucher = await world.coupon(cash_voucher("10.00"), shard=card.shard)
    await world.one.consume(voucher, "20.00", world.cashier())
    batch_id = await world.batch(cash_voucher("10.00"))
    (code,) = await world.codes(batch_id)
    user_id = world.user(card.shard)
    await world.one.call(
        coupon_service_pb2.ActivateCouponRequest(request_id=request_id(), code=code.code, user_id=user_id),
        world.operator(),
    )
    for scope in (
        {"coupon_id": card.coupon_id},
        {"coupon_id": voucher.coupon_id},
        {"coupon_id": code.coupon_id},
        {"user_id": user_id},
        {"user_id": card.user_id},
        {"shard": card.shard},
    ):
        verdict = await verify(world.one, **scope)
        assert verdict.of(card.coupon_id, voucher.coupon_id, code.coupon_id).findings == [], scope
        assert verdict.total("rows") > 0, scope
    assert (await verify(world.one, coupon_id=card.coupon_id)).total("rows") == 5


ALTERED: list[tuple[str, Any]] = [
    ("merchant_id", "elsewhere"),
    ("order_id", "another"),
    ("amount_minor", -1),
    ("order_amount_minor", 1),
    ("deduction_minor", 1),
    ("balance_after_minor", 9_999),
    ("user_id", 1),
    ("status_before", 2),
    ("status_after", 4),
    ("kind", 1),
    ("kind", 31),
    ("caller", "nobody"),
    ("request_id", "another"),
    ("transaction_id", "TX" + "0" * 27),
    ("original_transaction_id", "TX" + "0" * 27),
    ("settlement_held", 1),
    ("event_time", "2026-01-01 00:00:00.001"),
    ("prev_hash", b"\1" * 32),
    ("hash", b"\1" * 32),
    ("key_id", "k9"),
]


@pytest.mark.parametrize("seq", [3, 5], ids=["in the middle", "the last"])
@pytest.mark.parametrize(("field", "value"), ALTERED, ids=str)
async def test_an_altered_row_is_found_with_the_field_and_what_stood_there(
    world: World, seq: int, field: str, value: Any
) -> None:
    card = await spent_card(world)
    row = (card.shard, card.coupon_id, seq)
    ((was,),) = world.books.rows(card.shard, f"SELECT {field} FROM coupon_journal {ROW}", *row)
    world.books.change(card.shard, f"UPDATE coupon_journal SET {field} = %s {ROW}", value, *row)
    try:
        for scope in ({"coupon_id": card.coupon_id}, {"shard": card.shard}):
            verdict = (await verify(world.one, **scope)).of(card.coupon_id)
            altered = [
                each for each, kind in zip(verdict.findings, verdict.kinds, strict=True) if kind == "ROW_ALTERED"
            ]
            assert [(each.seq, set(differences(each))) for each in altered] == [(seq, {field})]
            stored, expected = differences(altered[0])[field]
            assert expected != stored
            if isinstance(was, int | str):
                assert (stored, expected) == (str(value), str(was))
            if isinstance(was, bytes):
                assert (stored, expected) == (value.hex(), was.hex())
    finally:
        world.books.change(card.shard, f"UPDATE coupon_journal SET {field} = %s {ROW}", was, *row)
    assert (await verify(world.one, coupon_id=card.coupon_id)).findings == []


@pytest.mark.parametrize(("field", "value"), [("lock_fence", 1 << 40), ("trace_id", "0" * 32)])
async def test_a_row_altered_where_no_other_record_knows_the_value_is_still_found(
    world: World, field: str, value: Any
) -> None:
    card = await spent_card(world)
    world.books.change(
        card.shard, f"UPDATE coupon_journal SET {field} = %s {ROW}", value, card.shard, card.coupon_id, 3
    )
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert (verdict.kinds, [each.seq for each in verdict.findings]) == (["ROW_ALTERED"], [3])


async def test_a_row_of_which_several_fields_were_altered_is_told_field_by_field(world: World) -> None:
    card = await spent_card(world)
    world.books.change(
        card.shard,
        f"UPDATE coupon_journal SET merchant_id = 'mine', amount_minor = -1, deduction_minor = 1, "
        f"balance_after_minor = balance_after_minor + 1 {ROW}",
        card.shard,
        card.coupon_id,
        4,
    )
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert finding.seq == 4
    assert differences(finding)["merchant_id"][0] == "mine"
    assert set(differences(finding)) == {"merchant_id", "amount_minor", "deduction_minor", "balance_after_minor"}


async def test_a_row_in_the_partition_of_another_month_is_found(world: World) -> None:
    card = await spent_card(world)
    world.books.change(card.shard, f"UPDATE coupon_journal SET month = 202912 {ROW}", card.shard, card.coupon_id, 2)
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert (finding.seq, set(differences(finding))) == (2, {"month"})


@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 3), (4, 4)])
async def test_removed_rows_are_found_with_their_numbers(world: World, first: int, last: int) -> None:
    card = await spent_card(world)
    for seq in range(first, last + 1):
        world.books.change(card.shard, f"DELETE FROM coupon_journal {ROW}", card.shard, card.coupon_id, seq)
    for scope in ({"coupon_id": card.coupon_id}, {"shard": card.shard}):
        verdict = (await verify(world.one, **scope)).of(card.coupon_id)
        assert verdict.kinds[0] == "ROW_REMOVED"
        assert (verdict.findings[0].seq, verdict.findings[0].last_seq) == (first, last)
    # In a shard, the transactions of the removed rows are left over as well.
    assert verdict.kinds[1:] == ["TRANSACTION_MISMATCH"] * (last - max(first, 2) + 1)


async def test_a_removed_row_is_found_when_those_behind_it_were_renumbered(world: World) -> None:
    card = await spent_card(world)
    row = (card.shard, card.coupon_id)
    world.books.change(card.shard, f"DELETE FROM coupon_journal {ROW}", *row, 3)
    for seq in (4, 5):
        world.books.change(card.shard, f"UPDATE coupon_journal SET seq = seq - 1 {ROW}", *row, seq)
    world.books.change(card.shard, "UPDATE coupon_info SET version = 4 WHERE shard = %s AND coupon_id = %s", *row)
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert verdict.kinds == ["ROW_REMOVED", "HEAD_MISMATCH"]
    assert (verdict.findings[0].seq, verdict.findings[0].last_seq) == (3, 3)
    assert differences(verdict.findings[1]) == {"version": ("4", "5")}


def insert_copy(world: World, card: OwnedCoupon, *, of: int, seq: int, month: str = "month") -> None:
    """A row like another one, with another number."""
    columns = [
        name
        for (name,) in world.books.rows(
            card.shard,
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() "
            "AND table_name = 'coupon_journal' ORDER BY ordinal_position",
        )
    ]
    values = ", ".join({"seq": str(seq), "month": month}.get(name, name) for name in columns)
    world.books.change(
        card.shard,
        f"INSERT INTO coupon_journal ({', '.join(columns)}) SELECT {values} FROM coupon_journal {ROW}",
        card.shard,
        card.coupon_id,
        of,
    )


async def test_a_row_inserted_behind_the_end_is_found(world: World) -> None:
    card = await spent_card(world)
    insert_copy(world, card, of=5, seq=6)
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert (verdict.kinds, [each.seq for each in verdict.findings]) == (["ROW_INSERTED"], [6])


async def test_a_row_inserted_behind_the_end_is_found_when_the_head_was_moved_to_it(world: World) -> None:
    card = await spent_card(world)
    insert_copy(world, card, of=5, seq=6)
    world.books.change(
        card.shard,
        "UPDATE coupon_info SET version = 6, balance = balance + 10 WHERE shard = %s AND coupon_id = %s",
        card.shard,
        card.coupon_id,
    )
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert (verdict.kinds, verdict.findings[0].seq) == (["ROW_INSERTED", "HEAD_MISMATCH"], 6)
    assert differences(verdict.findings[1]) == {"version": ("6", "5"), "balance": ("100.00", "90.00")}


async def test_a_row_inserted_twice_under_one_number_is_found(world: World) -> None:
    card = await spent_card(world)
    insert_copy(world, card, of=3, seq=3, month="202912")
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert finding.kind == 3
    assert (finding.seq, "202912" in finding.detail) == (3, True)


async def test_a_row_inserted_in_the_middle_is_found_when_those_behind_it_were_renumbered(world: World) -> None:
    card = await spent_card(world)
    row = (card.shard, card.coupon_id)
    for seq in (5, 4, 3):
        world.books.change(card.shard, f"UPDATE coupon_journal SET seq = seq + 1 {ROW}", *row, seq)
    insert_copy(world, card, of=2, seq=3)
    world.books.change(
        card.shard,
        f"UPDATE coupon_journal SET prev_hash = %s {ROW}",
        world.books.journal(card.coupon_id)[1].hash,
        *row,
        3,
    )
    world.books.change(card.shard, "UPDATE coupon_info SET version = 6 WHERE shard = %s AND coupon_id = %s", *row)
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert (verdict.kinds, verdict.findings[0].seq) == (["ROW_INSERTED", "HEAD_MISMATCH"], 3)
    assert differences(verdict.findings[1]) == {"version": ("6", "5")}


async def test_a_tail_that_was_cut_off_is_found_with_how_much_is_missing(world: World) -> None:
    card = await spent_card(world)
    for seq in (4, 5):
        world.books.change(card.shard, f"DELETE FROM coupon_journal {ROW}", card.shard, card.coupon_id, seq)
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert (finding.kind, finding.seq, finding.last_seq) == (4, 4, 5)


async def test_a_tail_that_was_cut_off_together_with_the_coupons_head_is_found_by_what_is_left_of_it(
    world: World,
) -> None:
    card = await spent_card(world)
    row = (card.shard, card.coupon_id)
    third = world.books.journal(card.coupon_id)[2]
    for seq in (4, 5):
        world.books.change(card.shard, f"DELETE FROM coupon_journal {ROW}", *row, seq)
    world.books.change(
        card.shard,
        "UPDATE coupon_info SET version = 3, last_hash = %s, balance = 97.00 WHERE shard = %s AND coupon_id = %s",
        third.hash,
        *row,
    )
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert (finding.kind, finding.seq, finding.last_seq) == (4, 4, 5)
    # With the outbox cleaned as well, the transactions are left.
    for seq in (4, 5):
        world.books.change(card.shard, f"DELETE FROM outbox {ROW}", *row, seq)
    assert (await verify(world.one, coupon_id=card.coupon_id)).findings == []
    verdict = (await verify(world.one, shard=card.shard)).of(card.coupon_id)
    assert verdict.kinds == ["TRANSACTION_MISMATCH"] * 2
    assert all(each.transaction_id.startswith("TX") for each in verdict.findings)


HEADS = [
    ("version", 6, "6", "5"),
    ("balance", "90.01", "90.01", "90.00"),
    ("status", 2, "2", "3"),
    ("last_hash", b"\1" * 32, "01" * 32, ""),
    ("user_id", 1, "1", ""),
]


@pytest.mark.parametrize(("field", "value", "stored", "expected"), HEADS, ids=[each[0] for each in HEADS])
async def test_a_coupon_that_is_not_what_its_chain_ends_with_is_found(
    world: World, field: str, value: Any, stored: str, expected: str
) -> None:
    card = await spent_card(world)
    world.books.change(
        card.shard,
        f"UPDATE coupon_info SET {field} = %s WHERE shard = %s AND coupon_id = %s",
        value,
        card.shard,
        card.coupon_id,
    )
    (finding,) = (await verify(world.one, shard=card.shard)).of(card.coupon_id).findings
    if field == "version":
        assert (finding.kind, finding.seq) == (4, 6)
        return
    assert finding.kind == 6
    assert list(differences(finding)) == [field]
    assert differences(finding)[field][0] == stored
    assert differences(finding)[field][1].endswith(expected)


async def test_a_coupon_that_was_altered_and_used_since_is_found_at_the_row_that_used_it(world: World) -> None:
    card = await spent_card(world)
    world.books.change(
        card.shard,
        "UPDATE coupon_info SET balance = 500.00 WHERE shard = %s AND coupon_id = %s",
        card.shard,
        card.coupon_id,
    )
    await world.one.consume(card, "400.00", world.cashier())
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert (finding.kind, finding.seq, differences(finding)) == (6, 6, {"balance": ("500.00", "90.00")})


async def test_a_coupon_without_its_journal_and_a_journal_without_its_coupon_are_found(world: World) -> None:
    bare, orphan = await world.cards(2, shard=77)
    world.books.change(77, "DELETE FROM coupon_journal WHERE shard = 77 AND coupon_id = %s", bare.coupon_id)
    world.books.change(77, "DELETE FROM coupon_info WHERE shard = 77 AND coupon_id = %s", orphan.coupon_id)
    verdict = await verify(world.one, shard=77)
    assert verdict.of(bare.coupon_id).kinds == ["CHAIN_UNMATCHED"]
    assert verdict.of(orphan.coupon_id).kinds == ["CHAIN_UNMATCHED"]
    assert "does not exist" in verdict.of(orphan.coupon_id).findings[0].detail


TRANSACTION = "coupon_transaction SET {} WHERE shard = %s AND coupon_id = %s AND deduction_minor = 200"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("merchant_id = 'mine'", "merchant_id"),
        ("amount_minor = 1", "amount_minor"),
        ("balance_after_minor = 1", "balance_after_minor"),
        ("settlement_held = 1", "settlement_held"),
        ("request_id = 'x'", "request_id"),
        ("consume_time = '2026-01-01 00:00:00'", "consume_time"),
    ],
)
async def test_a_transaction_that_differs_from_the_journal_is_found(world: World, change: str, field: str) -> None:
    card = await spent_card(world)
    world.books.change(card.shard, f"UPDATE {TRANSACTION.format(change)}", card.shard, card.coupon_id)
    (finding,) = (await verify(world.one, coupon_id=card.coupon_id)).findings
    assert (finding.kind, finding.seq, set(differences(finding))) == (
        8,
        3,
        {field},
    )
    assert finding.transaction_id == world.books.journal(card.coupon_id)[2].transaction_id


async def test_transactions_that_are_missing_or_made_up_are_found(world: World) -> None:
    card = await spent_card(world)
    ids = [row.transaction_id for row in world.books.journal(card.coupon_id)]
    world.books.change(
        card.shard,
        "UPDATE coupon_transaction SET transaction_id = 'TX777' WHERE shard = %s AND transaction_id = %s",
        card.shard,
        ids[2],
    )
    verdict = (await verify(world.one, shard=card.shard)).of(card.coupon_id)
    assert [(each.kind, each.seq, each.transaction_id) for each in verdict.findings] == [
        (8, 3, ids[2]),
        (8, 0, "TX777"),
    ]


@pytest.mark.parametrize(
    ("sql", "seq", "fields"),
    [
        ("UPDATE outbox SET month = 202912", 2, {"month"}),
        ("UPDATE outbox SET create_time = '2026-01-01 00:00:00'", 2, {"create_time"}),
        ("DELETE FROM outbox", 2, set()),
        ("UPDATE outbox SET seq = 9", 5, set()),
    ],
)
async def test_an_outbox_row_that_differs_is_missing_or_points_at_nothing_is_found(
    world: World, sql: str, seq: int, fields: set[str]
) -> None:
    card = await spent_card(world)
    world.books.change(card.shard, f"{sql} {ROW}", card.shard, card.coupon_id, seq)
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert set(verdict.kinds) == {"OUTBOX_MISMATCH"}
    assert verdict.findings[0].seq == seq
    assert set(differences(verdict.findings[0])) == fields
    assert [each.seq for each in verdict.findings[1:]] == ([9] if "seq = 9" in sql else [])


async def test_published_rows_that_left_the_outbox_are_no_finding(world: World) -> None:
    card = await spent_card(world)
    for seq in (1, 2):
        world.books.change(
            card.shard, f"UPDATE outbox SET publish_time = NOW(3) {ROW}", card.shard, card.coupon_id, seq
        )
    world.books.change(card.shard, f"DELETE FROM outbox {ROW}", card.shard, card.coupon_id, 1)
    assert (await verify(world.one, coupon_id=card.coupon_id)).findings == []


async def test_a_chain_recomputed_with_the_audit_key_holds_without_a_root(world: World) -> None:
    card = await spent_card(world)
    recompute(world.books, card.coupon_id, from_seq=3, merchant_id="mine")
    # Its transaction gives it away; rewritten too, nothing in the databases does: that is what roots are for.
    assert (await verify(world.one, coupon_id=card.coupon_id)).kinds == ["TRANSACTION_MISMATCH"]


async def test_a_last_row_recomputed_with_the_audit_key_is_found_when_its_successor_names_another(world: World) -> None:
    card = await spent_card(world)
    rows = world.books.journal(card.coupon_id)
    recompute(world.books, card.coupon_id, from_seq=3, merchant_id="mine")
    fourth = rows[3]
    world.books.change(
        card.shard,
        f"UPDATE coupon_journal SET prev_hash = %s, hash = %s {ROW}",
        fourth.prev_hash,
        fourth.hash,
        card.shard,
        card.coupon_id,
        4,
    )
    verdict = await verify(world.one, coupon_id=card.coupon_id)
    assert ("CHAIN_RECOMPUTED", 3) in [
        (kind, each.seq) for kind, each in zip(verdict.kinds, verdict.findings, strict=True)
    ]


# --- the call ---


async def test_an_unknown_coupon_and_a_foreign_resume_token_are_refused(world: World) -> None:
    unknown = await refusal(stream(world.one, VerifyAuditTrailRequest(coupon_id="9" * 19)))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "COUPON_NOT_FOUND")
    foreign = await refusal(stream(world.one, VerifyAuditTrailRequest(shard=1, resume_token="MTIz")))
    assert foreign.reason == "PAGE_TOKEN_INVALID"


async def test_an_empty_shard_or_user_is_complete_at_once(world: World) -> None:
    verdict = await verify(world.one, user_id=world.user())
    assert (verdict.findings, verdict.streams, verdict.total("rows")) == ([], 1, 0)


async def test_a_verification_that_nears_its_deadline_ends_by_itself_and_is_gone_on_with(world: World) -> None:
    shard = 99
    batch_id = await world.batch(cash_voucher("1.00"))
    users = [world.user(shard) for _ in range(4)]
    issued = await asyncio.gather(*(world.issue(batch_id, user, 250) for user in users))
    ids = [coupon.coupon_id for coupons in issued for coupon in coupons]
    whole = await verify(world.one, shard=shard)
    # Less than the margin: each stream does one chunk and then ends.
    parts = await verify(world.one, shard=shard, timeout_s=0.5)
    assert parts.streams > whole.streams == 1
    assert parts.of(*ids).findings == whole.of(*ids).findings == []
    assert parts.total("chains") == whole.total("chains") >= 1_000
    assert parts.total("rows") == whole.total("rows")


async def test_no_alarm_is_raised_while_coupons_are_consumed(world: World) -> None:
    shard = 101
    cards = await world.cards(8, shard=shard)
    ids = [card.coupon_id for card in cards]
    stop = asyncio.Event()
    consumed = 0

    async def spend(number: int) -> None:
        nonlocal consumed
        while not stop.is_set():
            await world.both[number % 2].consume(cards[number], "0.01", world.cashier())
            consumed += 1

    spending = [asyncio.ensure_future(spend(number)) for number in range(len(cards))]
    try:
        rows = 0
        for _ in range(20):
            before = consumed
            verdicts = await asyncio.gather(
                verify(world.one, shard=shard), verify(world.two, coupon_id=cards[0].coupon_id)
            )
            assert [each.of(*ids).findings for each in verdicts] == [[], []]
            assert verdicts[0].total("rows") >= rows
            rows = verdicts[0].total("rows")

            def went_on(before: int = before) -> bool:
                return consumed > before

            await eventually(went_on)
    finally:
        stop.set()
        await asyncio.gather(*spending)
    assert rows > len(cards)
    verdict = await verify(world.one, shard=shard)
    assert verdict.of(*ids).findings == []
    assert verdict.total("transactions") >= consumed > 100
