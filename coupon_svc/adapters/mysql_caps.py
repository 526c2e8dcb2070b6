"""Uses and slices of spend caps behind the `CapBook` port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from coupon_svc.adapters.mysql_unit import transaction_of
from coupon_svc.app.caps_ports import Slice, Use, UseKey
from coupon_svc.app.ports import Unit
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.routing import id_shard
from meshkit.mysql import Databases
from meshkit.queries import load_queries


class MysqlCaps:
    """Implements `CapBook`."""

    def __init__(self, databases: Databases, *, timeout_s: float) -> None:
        """`timeout_s` bounds each transaction and each read."""
        self._databases = databases
        self._queries = load_queries("coupon_svc", "sql/caps.sql")
        self._timeout_s = timeout_s

    def holder(self, shard: int) -> int:
        """See `CapBook.holder`."""
        return min(self._databases.of(shard).shards)

    async def uses(self, keys: Iterable[UseKey], unit: Unit | None = None) -> Mapping[UseKey, set[int]]:
        """See `CapBook.uses`."""
        wanted = sorted(keys)
        if unit is not None:
            rows = await transaction_of(unit).fetch_all(self._queries["lock_uses"], {"keys": wanted})
        else:
            async with self._databases.of(wanted[0].shard).snapshot(timeout_s=self._timeout_s) as tx:
                rows = await tx.fetch_all(self._queries["uses"], {"keys": wanted})
        taken: defaultdict[UseKey, set[int]] = defaultdict(set)
        for row in rows:
            taken[UseKey(*row[:3])].add(row[3])
        return taken

    async def add_uses(self, unit: Unit, uses: Sequence[Use]) -> None:
        """See `CapBook.add_uses`."""
        rows = [(*use.key, use.ordinal, use.transaction_id) for use in sorted(uses)]
        await transaction_of(unit).insert_many(self._queries["insert_uses"], rows)

    async def free_use(self, unit: Unit, key: UseKey, transaction_id: str) -> None:
        """See `CapBook.free_use`."""
        params = {**key._asdict(), "transaction_id": transaction_id}
        await transaction_of(unit).execute(self._queries["delete_use"], params)

    async def lock_left(self, unit: Unit, holder: int, batch_ids: Iterable[str]) -> Mapping[str, int]:
        """See `CapBook.lock_left`."""
        keys = sorted((holder, batch_id) for batch_id in batch_ids)
        rows = await transaction_of(unit).fetch_all(self._queries["lock_slices"], {"keys": keys})
        return {row[0]: int(row[1]) for row in rows}

    async def spend(self, unit: Unit, holder: int, amounts: Mapping[str, int]) -> bool:
        """See `CapBook.spend`."""
        rows = sorted((holder, batch_id, amount) for batch_id, amount in amounts.items())
        return await transaction_of(unit).execute_rows(self._queries["spend_slices"], rows) == len(rows)

    async def give_back(self, unit: Unit, holder: int, amounts: Mapping[str, int]) -> None:
        """See `CapBook.give_back`."""
        tx = transaction_of(unit)
        rows = sorted((holder, batch_id, amount) for batch_id, amount in amounts.items())
        for shard, batch_id, _ in rows:
            # The shard may have come here with its coupons from another database, whose slice paid for them.
            await tx.execute(self._queries["add_slice"], {"shard": shard, "batch_id": batch_id})
        if await tx.execute_rows(self._queries["return_to_slices"], rows) != len(rows):
            raise LookupError("spend_slice lacks the row of a batch that was spent from")

    async def slice_of(self, holder: int, batch_id: str) -> Slice:
        """See `CapBook.slice_of`."""
        key = {"shard": holder, "batch_id": batch_id}
        database = self._databases.of(holder)
        async with database.snapshot(timeout_s=self._timeout_s) as tx:
            row = await tx.fetch_one(self._queries["get_slice"], key)
        if row is not None:
            return Slice(row[0], row[1])
        async with database.transaction(timeout_s=self._timeout_s) as tx:
            await tx.execute(self._queries["add_slice"], key)
        return Slice()

    async def granted(self, unit: Unit, batch: Batch, holder: int) -> tuple[int, int]:
        """See `CapBook.granted`."""
        row = await transaction_of(unit).fetch_one(self._queries["granted"], {**_key(batch), "holder": holder})
        if row is None:
            raise LookupError(f"batch {batch.batch_id} was locked, but is not there")
        return int(row[0]), int(row[1])

    async def grant(self, unit: Unit, batch: Batch, holder: int, more_minor: int) -> None:
        """See `CapBook.grant`."""
        tx = transaction_of(unit)
        params = {**_key(batch), "holder": holder, "more_minor": more_minor}
        if await tx.execute(self._queries["count_grant"], params) != 1:
            raise RuntimeError(f"batch {batch.batch_id} would grant more than its cap")
        await tx.execute(self._queries["grant"], params)

    async def raise_slice(self, unit: Unit, holder: int, batch_id: str, leased_minor: int) -> None:
        """See `CapBook.raise_slice`."""
        params = {"shard": holder, "batch_id": batch_id, "leased_minor": leased_minor}
        await transaction_of(unit).execute(self._queries["raise_slice"], params)

    async def ungranted(self, batch: Batch) -> int:
        """See `CapBook.ungranted`."""
        async with self._databases.of(id_shard(batch.batch_id)).snapshot(timeout_s=self._timeout_s) as tx:
            row = await tx.fetch_one(self._queries["ungranted"], _key(batch))
        return 0 if row is None else int(row[0])


def _key(batch: Batch) -> dict[str, object]:
    return {"shard": id_shard(batch.batch_id), "batch_id": batch.batch_id}
