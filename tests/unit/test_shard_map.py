"""Shard maps and DSNs."""

import json

import pytest

from meshkit.mysql import Databases, PoolSettings
from meshkit.shard_map import Dsn, ShardMap, ShardMapError, ShardRange

LOW = "mysql://app:se%40cret@127.0.0.1:3307/coupon_0"
HIGH = "mysql://app:se%40cret@localhost/coupon_1?unix_socket=/run/my.sock"


def map_text(*ranges: tuple[int, int, str], version: int = 1) -> str:
    entries = [{"from": first, "to": last, "dsn": dsn} for first, last, dsn in ranges]
    return json.dumps({"version": version, "ranges": entries})


def test_a_map_survives_writing_and_reading_in_any_order() -> None:
    parsed = ShardMap.parse(map_text((64, 127, HIGH), (0, 63, LOW)))
    assert [(r.first, r.last) for r in parsed.ranges] == [(0, 63), (64, 127)]
    assert ShardMap.parse(parsed.to_json()) == parsed


def test_each_shard_finds_its_database_and_one_dsn_in_two_ranges_is_one_database() -> None:
    databases = Databases(ShardMap.parse(map_text((0, 9, LOW), (10, 99, HIGH), (100, 127, LOW))), PoolSettings())
    assert len(databases.all) == 2
    assert databases.of(9) is databases.of(100)
    assert databases.of(9) is not databases.of(10)
    assert databases.of(9).shards == {*range(10), *range(100, 128)}
    with pytest.raises(KeyError):
        databases.of(128)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "version 1"),
        (map_text((0, 127, LOW), version=2), "version 1"),
        ('{"version": 1}', "no list of ranges"),
        (map_text(), "end at shard -1"),
        (map_text((0, 62, LOW), (64, 127, HIGH)), "leave a gap at shard 63"),
        (map_text((0, 64, LOW), (64, 127, HIGH)), "overlap at shard 64"),
        (map_text((1, 127, LOW)), "leave a gap at shard 0"),
        (map_text((0, 126, LOW)), "end at shard 126"),
        (map_text((0, 128, LOW)), "end at shard 128"),
        (map_text((0, 127, "postgres://a:b@c/d")), "must look like"),
        (map_text((0, 127, "mysql://a:geheim@c/")), "must look like"),
        (map_text((0, 127, "mysql://a:geheim@c:x/d")), "malformed"),
        (map_text((0, 127, "mysql://a:geheim@c/d?tls=no")), "unknown options ['tls']"),
        ('{"version": 1, "ranges": [{"from": 0, "to": "127", "dsn": ""}]}', "wants exactly"),
        ('{"version": 1, "ranges": [{"from": 0, "to": 127, "dsn": "", "weight": 1}]}', "wants exactly"),
    ],
)
def test_a_map_that_is_not_exactly_all_shards_once_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ShardMapError) as refused:
        ShardMap.parse(text)
    assert problem in str(refused.value)
    assert "geheim" not in str(refused.value)


def test_the_password_shows_neither_in_a_repr_nor_in_a_name() -> None:
    shown = [
        repr(Dsn.parse(LOW)),
        Dsn.parse(LOW).name,
        repr(ShardMap.of([ShardRange(0, 127, LOW)])),
        Dsn.parse(HIGH).name,
    ]
    assert Dsn.parse(LOW).password == "se@cret"
    assert not [text for text in shown if "cret" in text]
    assert shown[1] == "127.0.0.1:3307/coupon_0"
    assert shown[3] == "/run/my.sock/coupon_1"
