"""The journal: rows chained by a keyed hash, one chain per coupon, batch and account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

_CHAIN_DIGITS = 19
# What the first row of a chain is chained to.
FIRST_HASH = bytes(32)


class JournalKind(IntEnum):
    """What a journal row records; the numbers of coupon_journal.kind."""

    ISSUED = 1
    IMPORTED = 2
    ACTIVATION_MARKED = 3
    ACTIVATED = 4
    CONSUMED = 5
    HELD = 6
    HOLD_RELEASED = 7
    REVERSED = 8
    REFUNDED = 9
    REACTIVATED = 10
    FROZEN = 11
    UNFROZEN = 12
    EXPIRED = 13
    RECALLED = 14
    EXTENDED = 15
    BATCH_CREATED = 20
    BATCH_BLOCKED = 21
    BATCH_RECALLED = 22
    ACCOUNT_FROZEN = 30
    ACCOUNT_UNFROZEN = 31


# Rows of these kinds are chained by batch_id, and their status is the batch's block scope.
BATCH_KINDS = frozenset({JournalKind.BATCH_CREATED, JournalKind.BATCH_BLOCKED, JournalKind.BATCH_RECALLED})
# Rows of these kinds are chained by `account_chain`, and their status is the account's.
ACCOUNT_KINDS = frozenset({JournalKind.ACCOUNT_FROZEN, JournalKind.ACCOUNT_UNFROZEN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who changed a coupon, with which request, and when."""

    caller: str
    request_id: str
    trace_id: str
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """One state change; amounts are fen.

    `seq` counts the rows of a chain from 1; a coupon's version follows it. `coupon_id` names the chain: a coupon, or
    what the kind says (ADR 12).

    `amount_minor` is the change of the balance. A contra row (REVERSED, REFUNDED) names the transaction it undoes in
    `original_transaction_id`; its deduction and order amount are negative, so that the rows sum to what stands.
    """

    shard: int
    coupon_id: str
    seq: int
    kind: JournalKind
    status_before: int
    status_after: int
    user_id: int
    origin: Origin
    balance_after_minor: int
    amount_minor: int = 0
    order_amount_minor: int = 0
    deduction_minor: int = 0
    merchant_id: str = ""
    order_id: str = ""
    transaction_id: str | None = None
    original_transaction_id: str | None = None
    settlement_held: bool = False
    lock_fence: int | None = None
    reason: str = ""
    prev_hash: bytes
    key_id: str = ""
    hash: bytes = b""

    def chained_bytes(self) -> bytes:
        """What the hash covers: all fields but the hash and its key, each with its length, in a fixed order.

        A reason stands last and only where there is one, so that rows from before there were any keep their hash.
        """
        fields = (
            self.shard,
            self.coupon_id,
            self.seq,
            int(self.kind),
            self.status_before,
            self.status_after,
            self.user_id,
            self.amount_minor,
            self.order_amount_minor,
            self.deduction_minor,
            self.balance_after_minor,
            self.merchant_id,
            self.order_id,
            self.transaction_id or "",
            self.original_transaction_id or "",
            int(self.settlement_held),
            "" if self.lock_fence is None else self.lock_fence,
            self.origin.caller,
            self.origin.request_id,
            self.origin.trace_id,
            self.origin.time_ms,
            self.prev_hash.hex(),
            *([self.reason] if self.reason else []),
        )
        return "".join(f"{len(text)}:{text}" for text in map(str, fields)).encode()


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The end of a chain: the number and the hash of its last row."""

    seq: int = 0
    hash: bytes = FIRST_HASH

    @classmethod
    def of(cls, row: JournalRow) -> ChainHead:
        """The head once `row` is the last."""
        return cls(row.seq, row.hash)


NEW_CHAIN = ChainHead()


def account_chain(user_id: int) -> str:
    """Names an account's chain: "U" and 19 digits, so that it routes itself as an id does."""
    return f"U{user_id:019d}"


def below_chain(chain_id: str) -> str:
    """The highest name that sorts before a chain's, so that what is above it begins with the chain."""
    prefix = chain_id[:-_CHAIN_DIGITS]
    return f"{prefix}{int(chain_id[len(prefix) :]) - 1:019d}"


def account_of(chain_id: str) -> int | None:
    """The user whose account's chain has this name; None when it is the chain of something else."""
    digits = chain_id.removeprefix("U")
    return int(digits) if digits != chain_id and digits.isdigit() else None


# Given bytes, answers the id of the audit key and the 32-byte HMAC under it.
Sign = Callable[[bytes], tuple[str, bytes]]


def sealed(row: JournalRow, sign: Sign) -> JournalRow:
    """The row with its hash, and the id of the key that made it."""
    key_id, mac = sign(row.chained_bytes())
    return replace(row, key_id=key_id, hash=mac)
