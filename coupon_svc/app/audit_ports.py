"""What audits need from the world: the journal at one moment, signed roots, and the place they are exported to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from coupon_svc.domain.audit import Anchor, Head, OutboxEntry, RecordedSpend
from coupon_svc.domain.journal import JournalRow
from coupon_svc.domain.roots import Leaf, SignedRoot

# Given bytes, answers the id of the signing key and its signature; and whether a signature holds.
SignRoot = Callable[[bytes], tuple[str, bytes]]
VerifyRoot = Callable[[bytes, str, bytes], bool]

# Above and below every 19-digit id.
BELOW_ALL = ""
ABOVE_ALL = "~"


class RowKey(NamedTuple):
    """Where a journal row stands in its shard."""

    coupon_id: str
    seq: int
    month: int


class StoredRow(NamedTuple):
    """A journal row as it is stored, whatever was done to it, and the month of its partition."""

    row: JournalRow
    month: int

    @property
    def key(self) -> RowKey:
        """Where it stands."""
        return RowKey(self.row.coupon_id, self.row.seq, self.month)


class AuditMoment(Protocol):
    """One shard as it was at one moment; every read sees the same."""

    async def coupon_heads(self, above: str, upto: str, limit: int) -> Sequence[Head]:
        """Heads of coupons with ids above one and up to another, by id."""

    async def batch_heads(self, above: str, upto: str) -> Sequence[Head]:
        """Heads of batches, likewise."""

    async def account_heads(self, user_ids: Sequence[int]) -> Sequence[Head]:
        """Heads of accounts."""

    async def rows(self, after: RowKey, upto: str, limit: int) -> Sequence[StoredRow]:
        """Journal rows behind one, of chains with ids up to another, in the order of chains."""

    async def outbox(self, first: RowKey, last: RowKey) -> Mapping[tuple[str, int], OutboxEntry]:
        """Outbox entries of the rows from one to another, by (coupon_id, seq)."""

    async def spends(self, transaction_ids: Sequence[str]) -> Sequence[RecordedSpend]:
        """Transactions by id."""

    async def spends_of_requests(self, request_ids: Sequence[str]) -> Sequence[RecordedSpend]:
        """Transactions by the request that made them, a bounded number."""

    async def anchors(self, above: str, upto: str) -> Mapping[str, Sequence[Anchor]]:
        """Anchored rows of a range of chains, by chain."""

    async def unjournaled(self, above: str, limit: int) -> tuple[Sequence[tuple[str, str]], int, str]:
        """Of the next transactions those that no journal knows, how many were looked at, and the last one's id.

        Those that are not known come as (transaction_id, coupon_id); the id is empty behind the end.
        """

    async def roots(self, above: int, limit: int) -> Sequence[SignedRoot]:
        """Roots above a number, in order."""

    async def root_leaves(self, number: int) -> Sequence[Leaf]:
        """What a root was signed over, as the database says."""

    async def row_hash(self, coupon_id: str, seq: int) -> bytes | None:
        """The hash that a journal row has now."""


class AuditStore(Protocol):
    """The databases, as audits read them."""

    def moment(self, shard: int) -> AbstractAsyncContextManager[AuditMoment]:
        """A shard at this moment; to be left soon."""

    async def coupons_of_user(self, user_id: int, above: str, limit: int) -> Sequence[str]:
        """Ids of a user's coupons above one, by id."""


class RootStore(Protocol):
    """Where roots are made."""

    @property
    def shards(self) -> Sequence[int]:
        """All shards."""

    async def root_times_ms(self) -> Mapping[int, int]:
        """When each shard's newest root was made; shards without one are absent."""

    async def last_root(self, shard: int) -> SignedRoot | None:
        """The newest root of a shard."""

    async def roots(self, shard: int, above: int, limit: int) -> Sequence[SignedRoot]:
        """Roots above a number, in order."""

    async def leaves(self, shard: int, number: int) -> Sequence[Leaf]:
        """What a root was signed over."""

    async def unanchored(self, shard: int, above: str, limit: int) -> tuple[Sequence[Leaf], str]:
        """Of the next coupons by id the heads over which no root was signed; and the last id, empty behind the end."""

    async def add_root(self, signed: SignedRoot, leaves: Sequence[Leaf]) -> bool:
        """Stores a root and its leaves together; False when its number is taken or the shard has moved."""


class RootArchive(Protocol):
    """Exported roots, outside the databases. Calls block."""

    def write(self, signed: SignedRoot, leaves: Sequence[Leaf]) -> None:
        """Adds a root; one that is there stays as it is."""

    def read(self, shard: int, number: int) -> tuple[SignedRoot, Sequence[Leaf]] | None:
        """A root as it was exported; None when it never was.

        Raises:
            ValueError: What is there cannot be understood.
        """

    def last_number(self, shard: int) -> int:
        """The highest exported number of a shard, 0 when there is none."""
