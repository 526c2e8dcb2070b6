"""The books of a batch, on coupons and journals made up in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coupon_svc.domain.reconciliation import BookedCoupon, JournalSums, books_of, problems_of

CARD = BookedCoupon("c", "b", 3, 9_000, 3, moved_on=False)
JOURNAL = JournalSums(
    "c", rows=3, last_seq=3, issued=1, drawn=1, opened_minor=10_000, consumed_minor=1_000, refunded_minor=0, used=0,
    returned=0, expired=0, recalled=0, status=3, balance_minor=9_000,
)  # fmt: skip


def facts(coupon: dict[str, Any], journal: dict[str, Any]) -> tuple[BookedCoupon, JournalSums]:
    return replace(CARD, **coupon), replace(JOURNAL, **journal)


AGREEING = {
    "spent in part": ({}, {}),
    "frozen": ({"status": 4}, {"status": 4}),
    "emptied": (
        {"status": 2, "balance_minor": 0},
        {"status": 2, "balance_minor": 0, "consumed_minor": 10_000, "used": 1},
    ),
    "emptied and refunded": (
        {"balance_minor": 4_000},
        {"balance_minor": 4_000, "consumed_minor": 10_000, "refunded_minor": 4_000, "used": 1, "returned": 1},
    ),
    "expired": ({"status": 5}, {"status": 5, "expired": 1}),
    "voided": ({"status": 5}, {"status": 5, "recalled": 1}),
    "held in part": ({"held_minor": 500, "holds": 1, "hold_rows_minor": 500, "hold_rows": 1}, {}),
    "unactivated": (
        {"status": 1, "balance_minor": 10_000},
        {"status": 1, "balance_minor": 10_000, "consumed_minor": 0},
    ),
    "moved on to its owner": (
        {"moved_on": True, "balance_minor": 10_000},
        {"balance_minor": 10_000, "consumed_minor": 0},
    ),
    "come to its owner": ({}, {"issued": 0, "drawn": 0}),
    "a voucher that was used": (
        {"status": 2, "balance_minor": 0},
        {"status": 2, "balance_minor": 0, "opened_minor": 0, "consumed_minor": 0, "used": 1},
    ),
    "a voucher that was refunded": (
        {"status": 6, "balance_minor": 0},
        {"status": 6, "balance_minor": 0, "opened_minor": 0, "consumed_minor": 0, "used": 1},
    ),
}


@pytest.mark.parametrize("name", AGREEING)
def test_the_books_of_a_coupon_agree_in_every_state(name: str) -> None:
    coupon, journal = facts(*AGREEING[name])
    books = books_of(coupon, journal)
    assert (books.coupons.difference, books.minor.difference) == (0, 0)
    assert problems_of(coupon, journal) == []


DISAGREEING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "more balance": ({"balance_minor": 9_001}, {}, "balance is 90.01 in coupon_info, 90.00 by its journal"),
    "another status": ({"status": 2}, {}, "status is USED in coupon_info, ACTIVATED by its journal"),
    "another version": ({"version": 4}, {}, "version is 4 in coupon_info, 3 by its journal"),
    "amounts that do not add up": ({}, {"consumed_minor": 999}, "its journal's amounts sum to 90.01"),
    "a missing row": ({}, {"rows": 2}, "its journal has 2 rows"),
    "a hold that nobody knows": ({"held_minor": 1, "holds": 1}, {}, "1 holds of 0.01 in coupon_info, 0 of 0.00"),
    "a status without steps": ({"status": 2}, {"status": 2}, "its journal's steps do not lead to its status"),
    "a status nobody knows": ({"status": 9}, {}, "status is 9 in coupon_info"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_a_difference_is_told(name: str) -> None:
    coupon_changes, journal_changes, problem = DISAGREEING[name]
    coupon, journal = facts(coupon_changes, journal_changes)
    assert any(each.startswith(problem) for each in problems_of(coupon, journal)), problems_of(coupon, journal)


def test_a_coupon_or_a_journal_alone_breaks_the_books() -> None:
    for coupon, journal in ((CARD, None), (None, JOURNAL)):
        assert problems_of(coupon, journal)
        assert books_of(coupon, journal).minor.difference != 0


def test_books_add_up() -> None:
    books = books_of(CARD, JOURNAL)
    both = books.plus(books)
    assert (both.minor.issued, both.minor.available, both.minor.consumed, both.drawn) == (20_000, 18_000, 2_000, 2)
