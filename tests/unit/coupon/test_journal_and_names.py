"""The journal's chain, transaction ids and the masking of codes."""

import hashlib
import hmac
from dataclasses import fields, replace

import pytest

from coupon_svc.app.reading import cursor_of, mask, token_of
from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow, Origin, sealed
from coupon_svc.domain.routing import id_shard, mac_shard, user_shard
from coupon_svc.domain.times import format_utc, month_of, transaction_id
from couponmesh.coupon.v1 import coupon_pb2
from meshkit.errors import MeshError

ROW = JournalRow(
    shard=7,
    coupon_id="0000000000000000007",
    seq=2,
    kind=JournalKind.CONSUMED,
    status_before=3,
    status_after=2,
    user_id=7,
    origin=Origin(caller="till", request_id="r", trace_id="0" * 32, time_ms=1_800_000_000_123),
    balance_after_minor=5,
    amount_minor=-5,
    order_amount_minor=10,
    deduction_minor=4,
    merchant_id="m",
    order_id="o",
    transaction_id="TX1",
    original_transaction_id="TX0",
    settlement_held=True,
    lock_fence=9,
    prev_hash=FIRST_HASH,
)
NOT_COVERED = {"hash", "key_id"}


def sign(data: bytes) -> tuple[str, bytes]:
    return "k1", hmac.digest(b"key", data, hashlib.sha256)


def changed(name: str) -> JournalRow:
    value = getattr(ROW, name)
    if name == "origin":
        return replace(ROW, origin=replace(value, caller="another"))
    if name == "kind":
        return replace(ROW, kind=JournalKind.ISSUED)
    if isinstance(value, bool):
        return replace(ROW, **{name: not value})  # type: ignore[arg-type]  # of the field's own type
    if isinstance(value, int):
        return replace(ROW, **{name: value + 1})  # type: ignore[arg-type]  # of the field's own type
    other: str | bytes = value + "x" if isinstance(value, str) else b"\1" * 32
    return replace(ROW, **{name: other})  # type: ignore[arg-type]  # of the field's own type


@pytest.mark.parametrize("name", [field.name for field in fields(JournalRow) if field.name not in NOT_COVERED])
def test_changing_any_field_breaks_the_hash(name: str) -> None:
    assert sealed(changed(name), sign).hash != sealed(ROW, sign).hash


@pytest.mark.parametrize("name", ["caller", "request_id", "trace_id", "time_ms"])
def test_changing_the_origin_breaks_the_hash(name: str) -> None:
    value = getattr(ROW.origin, name)
    other = replace(ROW.origin, **{name: value + (1 if isinstance(value, int) else "x")})
    assert sealed(replace(ROW, origin=other), sign).hash != sealed(ROW, sign).hash


def test_moving_a_letter_from_one_field_to_the_next_breaks_the_hash() -> None:
    left, right = replace(ROW, merchant_id="ab", order_id="c"), replace(ROW, merchant_id="a", order_id="bc")
    assert sealed(left, sign).hash != sealed(right, sign).hash


def test_a_transaction_id_has_the_date_of_the_batchs_zone_and_carries_the_shard() -> None:
    just_before_midnight_utc = 1_798_761_600_000 - 1
    identifier = transaction_id(just_before_midnight_utc, "Asia/Shanghai", 128 * 5 + 42)
    assert identifier == "TX20270101" + "682".zfill(19)
    assert transaction_id(just_before_midnight_utc, "UTC", 1).startswith("TX20261231")
    assert id_shard(identifier) == 42


def test_times_are_written_in_utc_and_months_are_utc_months() -> None:
    assert format_utc(1_798_761_600_000) == "2027-01-01T00:00:00Z"
    assert format_utc(1_798_761_600_001) == "2027-01-01T00:00:00.001Z"
    assert (month_of(1_798_761_600_000 - 1), month_of(1_798_761_600_000)) == (202612, 202701)


def test_shards_follow_the_user_and_the_hash() -> None:
    assert user_shard(128 * 3 + 5) == 5
    assert mac_shard(bytes(31) + b"\xff") == 127


def test_all_but_the_last_group_of_a_code_is_hidden() -> None:
    assert mask("7XK9-B2T4") == "****-B2T4"
    assert mask("J0FP-MKAE-CFZN") == "****-****-CFZN"


def test_a_page_token_belongs_to_its_query() -> None:
    token = token_of("12", "coupons", 7, None)
    assert cursor_of(token, "coupons", 7, None) == "12"
    assert cursor_of("", "coupons", 7, None) is None
    for wrong in (token[:-4], "x", "é", token_of("12", "coupons", 8, None)):
        with pytest.raises(MeshError) as refused:
            cursor_of(wrong, "coupons", 7, None)
        assert refused.value.reason == "PAGE_TOKEN_INVALID"


def test_the_contract_and_the_domain_have_the_same_journal_kinds() -> None:
    names = {name.removeprefix("AUDIT_KIND_"): number for name, number in coupon_pb2.AuditKind.items() if number}
    assert names == {kind.name: int(kind) for kind in JournalKind}
