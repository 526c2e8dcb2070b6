"""What recalling batches needs of the store beyond `ports`: counts, recalls, and how far each shard is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coupon_svc.app.ports import Unit
from coupon_svc.domain.batch import NO_STAKE, Batch, Stake
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.journal import ChainHead, Origin


class StatusCount(NamedTuple):
    """How many coupons stand somewhere, and the sum of their balances in fen."""

    coupons: int = 0
    balance_minor: int = 0


@dataclass(frozen=True, slots=True)
class Recall:
    """A recall as it was asked for, and what it has voided in all shards."""

    batch_id: str
    reason: str
    stake: Stake
    origin: Origin
    finish_time_ms: int | None = None
    voided: Stake = NO_STAKE


@dataclass(frozen=True, slots=True)
class RecallPart:
    """How far a recall is in one shard.

    `after_coupon_id` is where the scan under way stands, which began at `begin_ms`; `complete_ms` is when the last scan
    that reached the end began.
    """

    shard: int
    batch_id: str
    after_coupon_id: str = ""
    voided_coupons: int = 0
    voided_minor: int = 0
    begin_ms: int | None = None
    complete_ms: int | None = None


class Unused(NamedTuple):
    """A coupon that a recall may have to void."""

    coupon_id: str
    user_id: int


class RecallBook(Protocol):
    """Recalls and the coupons they concern."""

    async def counts(self, shard: int, batch_id: str, *, now_ms: int) -> Mapping[CouponStatus, StatusCount]:
        """Coupons of a batch in one shard; a coupon that lives on under another id is not counted twice."""

    async def begin(self, unit: Unit, batch: Batch, recall: Recall, head: ChainHead) -> None:
        """Blocks a locked batch for every use and notes that its coupons are to be voided."""

    async def get(self, batch_id: str) -> Recall | None:
        """A recall with what it has voided so far."""

    async def running(self, database: str) -> Sequence[str]:
        """Batches that live in a database and whose recall goes on."""

    async def parts(self, batch_id: str) -> Sequence[RecallPart]:
        """How far a recall is, in all shards that it has begun."""

    async def add_part(self, part: RecallPart) -> None:
        """Adds a row where there is none."""

    async def unused(self, shard: int, batch_id: str, *, after: str, now_ms: int, limit: int) -> Sequence[Unused]:
        """Unused, unexpired coupons behind a coupon id, in the order of ids, without locks."""

    async def lock_part(self, unit: Unit, shard: int, batch_id: str) -> RecallPart:
        """Locks one row; it stands before coupons in the lock order."""

    async def still_unused(self, unit: Unit, keys: set[tuple[int, str]], *, now_ms: int) -> set[str]:
        """Which of the locked (shard, coupon_id) are unused and unexpired."""

    async def store_part(self, unit: Unit, part: RecallPart) -> None:
        """Stores a locked row."""

    async def finish(self, unit: Unit, batch_id: str, now_ms: int) -> None:
        """Notes that every unused coupon is voided."""
