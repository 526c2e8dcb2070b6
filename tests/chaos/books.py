"""The audit after a fault: what callers were told, against every row that the databases hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC
from typing import Any

from coupon_svc.adapters import mysql_rows
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import FIRST_HASH, JournalKind, JournalRow
from meshkit.crypto import Keyring
from tests.chaos.cashiers import CARD_BALANCE_MINOR, LATE_RIVAL, VOUCHER_FACE_MINOR, Purchase, Shop

_EVENT_TIME = 20


async def assert_books_balance(shop: Shop) -> int:
    """Compares everything that was ever bought in a shop with the databases; returns how many consumes there are.

    No acknowledged consume may be lost, none doubled, nothing taken without an acknowledgement, and each coupon's
    journal must be whole.
    """
    bought = _acknowledged(shop)
    _assert_transactions(bought, await _transactions(shop))
    journal = await _journal(shop)
    coupons = {
        row[0]: row[1:]
        for row in await shop.mesh.fetch_all(
            "coupon", "SELECT coupon_id, CAST(balance * 100 AS SIGNED), status, version, last_hash FROM coupon_info"
        )
    }
    # Batches have chains of their own.
    assert coupons.keys() == {name for name, rows in journal.items() if rows[0].kind != JournalKind.BATCH_CREATED}
    keyring = _audit_keyring(shop)
    cards = {card.coupon_id for card in shop.cards}
    by_coupon: dict[str, list[Purchase]] = defaultdict(list)
    for purchase in bought:
        by_coupon[purchase.ware.coupon_id].append(purchase)
    for coupon_id, (balance_minor, status, version, last_hash) in coupons.items():
        rows = journal[coupon_id]
        _assert_chain(rows, keyring)
        assert (version, last_hash) == (rows[-1].seq, rows[-1].hash)
        assert status == rows[-1].status_after
        _assert_consumes(rows, by_coupon[coupon_id])
        spent_minor = sum(each.amount_minor for each in by_coupon[coupon_id])
        if coupon_id in cards:
            assert CARD_BALANCE_MINOR - balance_minor == spent_minor
            assert CARD_BALANCE_MINOR - balance_minor == -sum(row.amount_minor for row in rows[1:])
        else:
            assert len(by_coupon[coupon_id]) == (status == CouponStatus.USED)
    await _assert_outbox(shop, journal)
    return len(bought)


def _acknowledged(shop: Shop) -> list[Purchase]:
    """All purchases have a definite answer: success, or a refusal that is true."""
    winners = Counter(
        each.ware.coupon_id for each in shop.purchases if each.reply is not None and not each.ware.is_card
    )
    for purchase in shop.purchases:
        assert purchase.attempts, "a purchase was never tried"
        if purchase.reply is None:
            # Only the loser of two tills that were offered the same voucher may be refused.
            assert purchase.attempts[-1].name == LATE_RIVAL, purchase
            assert not purchase.ware.is_card
            assert winners[purchase.ware.coupon_id] == 1, purchase
    assert set(winners.values()) <= {1}, "a voucher was sold twice"
    return [each for each in shop.purchases if each.reply is not None]


async def _transactions(shop: Shop) -> list[tuple[Any, ...]]:
    return await shop.mesh.fetch_all(
        "coupon",
        "SELECT transaction_id, coupon_id, merchant_id, amount_minor, deduction_minor, settlement_held, caller,"
        " request_id FROM coupon_transaction",
    )


def _assert_transactions(bought: list[Purchase], stored: list[tuple[Any, ...]]) -> None:
    """Each acknowledged consume is stored as it was acknowledged, once, and nothing else is stored."""
    told = []
    for purchase in bought:
        assert purchase.reply is not None
        of = purchase.reply.transaction
        deduction_minor = purchase.amount_minor if purchase.ware.is_card else VOUCHER_FACE_MINOR
        assert of.deduction.amount_minor == deduction_minor
        told.append(
            (
                of.transaction_id,
                purchase.ware.coupon_id,
                purchase.request.merchant_id,
                purchase.amount_minor,
                deduction_minor,
                int(of.settlement_held),
                purchase.till,
                purchase.request.request_id,
            )
        )
    assert len({row[0] for row in told}) == len(told), "two purchases were told one transaction"
    assert sorted(told) == sorted(stored)


async def _journal(shop: Shop) -> dict[str, list[JournalRow]]:
    rows = await shop.mesh.fetch_all(
        "coupon",
        "SELECT shard, coupon_id, seq, kind, status_before, status_after, user_id, merchant_id, order_id, amount_minor,"
        " order_amount_minor, deduction_minor, balance_after_minor, transaction_id, original_transaction_id,"
        " settlement_held, lock_fence, caller, request_id, trace_id, event_time, key_id, prev_hash, hash, reason"
        " FROM coupon_journal ORDER BY shard, coupon_id, seq",
    )
    journal: dict[str, list[JournalRow]] = defaultdict(list)
    for row in rows:
        moment = row[_EVENT_TIME].replace(tzinfo=UTC)
        journal[row[1]].append(mysql_rows.journal((*row[:_EVENT_TIME], moment, *row[_EVENT_TIME + 1 :])))
    return journal


def _audit_keyring(shop: Shop) -> Keyring:
    return Keyring.parse(shop.mesh.local.replicas_of("coupon")[0].environment()["COUPON_AUDIT_KEYRING"])


def _assert_chain(rows: list[JournalRow], keyring: Keyring) -> None:
    """No gap, no fork, every row as it was signed, every balance the one before it plus the change."""
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0].kind == JournalKind.ISSUED
    previous_hash, balance_minor = FIRST_HASH, rows[0].balance_after_minor - rows[0].amount_minor
    for row in rows:
        assert row.prev_hash == previous_hash
        assert (row.key_id, row.hash) == keyring.mac("coupon-journal", row.chained_bytes())
        assert row.balance_after_minor == balance_minor + row.amount_minor
        previous_hash, balance_minor = row.hash, row.balance_after_minor


def _assert_consumes(rows: list[JournalRow], bought: list[Purchase]) -> None:
    journaled = Counter(
        (row.transaction_id, row.origin.caller, row.origin.request_id, row.order_amount_minor, row.settlement_held)
        for row in rows
        if row.kind == JournalKind.CONSUMED
    )
    told = Counter(
        (
            purchase.reply.transaction.transaction_id,
            purchase.till,
            purchase.request.request_id,
            purchase.amount_minor,
            purchase.reply.transaction.settlement_held,
        )
        for purchase in bought
        if purchase.reply is not None
    )
    assert journaled == told


async def _assert_outbox(shop: Shop, journal: dict[str, list[JournalRow]]) -> None:
    outbox = await shop.mesh.fetch_all("coupon", "SELECT shard, coupon_id, seq FROM outbox")
    assert len(outbox) == len(set(outbox))
    assert set(outbox) == {(row.shard, row.coupon_id, row.seq) for rows in journal.values() for row in rows}
