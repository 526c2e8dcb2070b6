"""The loader of named SQL statements."""

import pytest

from meshkit.queries import QueryFileError, load_queries, parse_queries

TWO = """
-- What this file holds.

-- name: lock_coupons
-- Locks coupons
-- in key order.
SELECT balance
FROM coupon_info
WHERE name LIKE 'a%%' AND shard = %(shard)s; -- a trailing remark stays

-- name: ping
-- Proves life.
SELECT 1;
"""


def test_a_block_gives_its_statement_without_description_and_semicolon() -> None:
    queries = parse_queries(TWO.replace(" -- a trailing remark stays", ""), source="x.sql")
    assert queries == {
        "lock_coupons": "SELECT balance\nFROM coupon_info\nWHERE name LIKE 'a%%' AND shard = %(shard)s",
        "ping": "SELECT 1",
    }


def test_a_package_file_is_found_and_cannot_be_changed_by_a_caller() -> None:
    queries = load_queries("meshkit", "sql/session.sql")
    assert queries["commit"] == "COMMIT"
    with pytest.raises(TypeError):
        queries["commit"] = "ROLLBACK"  # type: ignore[index]  # that it can't be assigned is what is tested


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-- name: a\n-- d\nSELECT 1;\n-- name: a\n-- d\nSELECT 2;", "x.sql:4: query 'a' is defined twice"),
        ("-- name: a\nSELECT 1;", "'a' has no description"),
        ("-- name: a\n--\nSELECT 1;", "'a' has no description"),
        ("-- name: a\n-- d\n", "'a' has no statement"),
        ("-- name: a b\n-- d\nSELECT 1", "SQL stands before"),
        ("-- name: A-b\n-- d\nSELECT 1", "is no query name"),
        ("-- name:\n-- d\nSELECT 1", "is no query name"),
        ("SELECT 1;", "x.sql:1: SQL stands before"),
        ("-- name: a\n-- d\nSELECT 'x%'", "neither %(name)s nor %%"),
        ("-- name: a\n-- d\nSELECT %s", "neither %(name)s nor %%"),
        ("-- name: a\n-- d\nSELECT %(Name)s", "neither %(name)s nor %%"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_the_place_and_the_rule(text: str, problem: str) -> None:
    with pytest.raises(QueryFileError) as refused:
        parse_queries(text, source="x.sql")
    assert problem in str(refused.value)
    assert "x.sql" in str(refused.value)
