"""Reconciles the coupons with their journals and the batches with their draws, shard by shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from coupon_svc.app.books_ports import BookStore
from coupon_svc.domain.reconciliation import (
    NO_BATCH,
    BatchBooks,
    BookedCoupon,
    Disagreement,
    JournalSums,
    books_of,
    problems_of,
)
from coupon_svc.domain.routing import id_shard

COUPONS_PER_CHUNK = 2_000
BELOW_ALL = ""


class BooksKey(NamedTuple):
    """Whose books."""

    batch_id: str
    shard: int


@dataclass(slots=True)
class Reconciliation:
    """What was found: the books of each batch in each shard, and who disagrees.

    Attributes:
        coupons: How many coupons were looked at.
        books: By batch and shard.
        disagreements: Coupons and batches whose records do not agree.
        draws: For each batch what it says was drawn, and the sum of its draws.
    """

    coupons: int = 0
    books: dict[BooksKey, BatchBooks] = field(default_factory=lambda: defaultdict(BatchBooks))
    disagreements: list[Disagreement] = field(default_factory=list)
    draws: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether everything does."""
        return not self.disagreements and not any(
            each.coupons.difference or each.minor.difference for each in self.books.values()
        )

    def of_batches(self) -> Mapping[str, BatchBooks]:
        """The books of each batch over all shards."""
        found: dict[str, BatchBooks] = defaultdict(BatchBooks)
        for key, books in self.books.items():
            found[key.batch_id] = found[key.batch_id].plus(books)
        return found


class Reconcile:
    """The use case."""

    def __init__(self, store: BookStore) -> None:
        """`store` reads one moment of a range of coupons at a time."""
        self._store = store

    async def __call__(self, shards: Sequence[int], into: Reconciliation) -> AsyncIterator[int]:
        """Reconciles shards one after the other into a result; gives each shard once it is done.

        What spans shards (draws, activations under way) is compared at the end, so all shards must be given for it.
        """
        for shard in shards:
            into.draws.update(await self._store.draws(shard))
            above: str | None = BELOW_ALL
            while above is not None:
                chunk, above = await self._store.chunk(shard, above, COUPONS_PER_CHUNK)
                for coupon, journal in chunk:
                    self._add(shard, coupon, journal, into)
            yield shard
        self._compare_batches(into)

    def _add(self, shard: int, coupon: BookedCoupon | None, journal: JournalSums | None, into: Reconciliation) -> None:
        into.coupons += 1
        batch_id = coupon.batch_id if coupon is not None else NO_BATCH
        key = BooksKey(batch_id, shard)
        into.books[key] = into.books[key].plus(books_of(coupon, journal))
        named = coupon or journal
        assert named is not None
        into.disagreements += [
            Disagreement(shard, batch_id, named.coupon_id, problem) for problem in problems_of(coupon, journal)
        ]

    def _compare_batches(self, into: Reconciliation) -> None:
        for batch_id, books in into.of_batches().items():
            if batch_id == NO_BATCH:
                continue
            shard = id_shard(batch_id)
            moved_in, moved_out = books.coupons.moved_in, books.coupons.moved_out
            problems = []
            if moved_out > moved_in:
                problems.append(f"{moved_out} coupons moved to their owners, but {moved_in} arrived")
            if batch_id not in into.draws:
                problems.append("its coupons exist, but the batch does not")
            else:
                said, drawn = into.draws[batch_id]
                if said != drawn:
                    problems.append(f"issued_quantity is {said}, but its draws sum to {drawn}")
                if books.drawn > drawn:
                    problems.append(f"{books.drawn} coupons were issued, but only {drawn} drawn")
            into.disagreements += [Disagreement(shard, batch_id, "", problem) for problem in problems]
