"""Keeps the caps of batches: uses per user, and the sum that all coupons of a batch may take.

A user's uses lie in the user's shard, so one transaction sees them all. The sum spans databases: each leases slices of
it from the batch's row and spends from its own, which costs one statement per group (ADR 14). A group that finds its
slice too small is rolled back, leases more, and runs again; what does not fit then is refused by itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coupon_svc.app.caps_ports import CapBook, Slice, Use, UseKey
from coupon_svc.app.ports import Clock, Store, Unit
from coupon_svc.app.requests import MAX_RUNS, refuse_moved
from coupon_svc.domain.batch import Batch
from coupon_svc.domain.caps import lease_minor, slice_minor
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.routing import id_shard
from meshkit.errors import MeshError
from meshkit.mysql_errors import CommitOutcomeUnknown, DatabaseError, Deadlock, DuplicateKey

# A slice that could not be refilled is asked about again after this long: refunds may have given something back.
DRY_MS = 1_000
MAX_REMEMBERED = 10_000
# Others may spend what was just leased; near the end of a cap, slices are small and many want them.
MAX_REFILLS = 32


class SliceShort(Exception):
    """A group wants more than its database's slices hold; `wanted` is fen per batch. Refill, then run it again."""

    def __init__(self, holder: int, wanted: Mapping[str, int]) -> None:
        super().__init__(f"slices of {len(wanted)} batches are too small")
        self.holder = holder
        self.wanted = wanted


@dataclass(slots=True)
class Tally:
    """What one run of a group takes from caps.

    `left` holds what is left of the locked slices, those where refusing may be needed; `dry` the batches whose cap had
    nothing more to lease, `cut_off` those of them whose cap could not be asked.
    """

    holder: int
    uses: dict[UseKey, set[int]]
    left: dict[str, int]
    dry: frozenset[str]
    cut_off: frozenset[str]
    spent: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    taken: list[Use] = field(default_factory=list)

    def take(self, batch: Batch, key: UseKey, *, deduction_minor: int, transaction_id: str) -> None:
        """Takes one use and its deduction, or nothing.

        Raises:
            MeshError: USES_LIMIT_REACHED, SPEND_CAP_REACHED, or UNAVAILABLE when another database holds what is left.
        """
        caps = batch.caps
        if caps.uses_per_user is not None:
            used = self.uses.setdefault(key, set())
            ordinal = next((number for number in range(1, caps.uses_per_user + 1) if number not in used), None)
            if ordinal is None:
                raise uses_limit_reached(batch)
            self._spend(batch, deduction_minor)
            used.add(ordinal)
            self.taken.append(Use(key, ordinal, transaction_id))
        else:
            self._spend(batch, deduction_minor)

    def _spend(self, batch: Batch, deduction_minor: int) -> None:
        if batch.caps.spend_cap_minor is None:
            return
        total = self.spent[batch.batch_id] + deduction_minor
        # Where the batch may have more to lease, nothing is refused: `settle` finds out whether the slice suffices.
        if batch.batch_id in self.dry and total > self.left.get(batch.batch_id, total):
            if batch.batch_id in self.cut_off:
                raise MeshError("UNAVAILABLE", part="mysql")
            raise spend_cap_reached(batch, deduction_minor)
        self.spent[batch.batch_id] = total


@dataclass(frozen=True, slots=True)
class Undone:
    """What is given back of a consumption: a part of its deduction in fen, and its use when it is undone whole."""

    batch: Batch
    key: UseKey
    transaction_id: str
    deduction_minor: int
    whole: bool


class CapKeeper:
    """Lets transactions take from caps and give back to them.

    A transaction that takes calls `begin` once its coupons are locked, `Tally.take` for each consumption, and `settle`
    before its appends. On SliceShort the whole transaction is rolled back, `refill` is called, and it runs again. One
    that undoes consumptions calls `give_back` once its coupons are locked.
    """

    def __init__(self, store: Store, book: CapBook, clock: Clock) -> None:
        """All adapters arrive here."""
        self._store = store
        self._book = book
        self._clock = clock
        # Slices that could not be refilled: until when nobody tries again, and whether that is since nobody answered.
        self._dry: dict[tuple[int, str], tuple[int, bool]] = {}

    def holders(self, shards: Iterable[int], batches: Iterable[Batch]) -> set[int]:
        """Shards to be fenced besides those of the coupons: where their databases keep the slices."""
        if all(batch.caps.spend_cap_minor is None for batch in batches):
            return set()
        return {self._book.holder(shard) for shard in shards}

    def holder(self, shard: int) -> int:
        """The shard to be fenced besides a coupon's, where it is not known yet whether its batch has a spend cap."""
        return self._book.holder(shard)

    async def begin(self, unit: Unit, wanted: Iterable[tuple[Batch, UseKey]], careful: frozenset[str]) -> Tally | None:
        """Reads what the group needs to know; nothing, and None, when no batch of it has caps.

        Args:
            unit: The group's transaction.
            wanted: Each consumption's batch and user, all of one database.
            careful: Batches that `refill` was called for: their slices are locked now, so that each take is decided.
        """
        capped = [(batch, key) for batch, key in wanted if batch.caps]
        if not capped:
            return None
        holder = self._book.holder(capped[0][1].shard)
        keys = {key for batch, key in capped if batch.caps.uses_per_user is not None}
        uses = dict(await self._book.uses(keys, unit)) if keys else {}
        capped_ids = {batch.batch_id for batch, _ in capped if batch.caps.spend_cap_minor is not None}
        dry = {each: cut_off for each in capped_ids if (cut_off := self._dryness(holder, each)) is not None}
        locked = capped_ids & (careful | dry.keys())
        left = dict(await self._book.lock_left(unit, holder, locked)) if locked else {}
        return Tally(holder, uses, left, frozenset(dry), frozenset(each for each, cut_off in dry.items() if cut_off))

    async def settle(self, unit: Unit, tally: Tally | None) -> None:
        """Writes what was taken.

        Raises:
            SliceShort: A slice is too small.
            DuplicateKey: A user's use was taken by another group; run the whole group again.
        """
        if tally is None:
            return
        spent = {batch_id: amount for batch_id, amount in tally.spent.items() if amount}
        if spent and not await self._book.spend(unit, tally.holder, spent):
            raise SliceShort(tally.holder, spent)
        if tally.taken:
            await self._book.add_uses(unit, tally.taken)

    async def refill(self, short: SliceShort, batches: Mapping[str, Batch]) -> frozenset[str]:
        """Leases what a group lacked, as far as there is something; gives the batches to be careful with."""
        for batch_id, wanted_minor in short.wanted.items():
            try:
                enough = await self._lease(batches[batch_id], short.holder, wanted_minor)
                cut_off = False
            except (DatabaseError, MeshError):
                # The batch lives in another database than the group, whose other requests shall not fail with it.
                enough, cut_off = False, True
            if not enough:
                if len(self._dry) >= MAX_REMEMBERED:
                    self._dry.clear()
                self._dry[short.holder, batch_id] = (self._clock() + DRY_MS, cut_off)
        return frozenset(short.wanted)

    async def give_back(self, unit: Unit, undone: Sequence[Undone]) -> None:
        """Gives back what consumptions of one database took, which the unit undoes under the locks of their coupons."""
        amounts: defaultdict[str, int] = defaultdict(int)
        for each in sorted(undone, key=lambda each: (each.key, each.transaction_id)):
            if each.whole and each.batch.caps.uses_per_user is not None:
                await self._book.free_use(unit, each.key, each.transaction_id)
            if each.deduction_minor and each.batch.caps.spend_cap_minor is not None:
                amounts[each.batch.batch_id] += each.deduction_minor
        if amounts:
            await self._book.give_back(unit, self._book.holder(undone[0].key.shard), amounts)

    async def preview(self, batch: Batch, key: UseKey, deduction_minor: int, *, uses: int = 1) -> None:
        """Refuses what so many consumptions of this sum would be refused for as things are now; changes nothing.

        Raises:
            MeshError: USES_LIMIT_REACHED, SPEND_CAP_REACHED.
        """
        for refusal in await self.shortfalls(batch, key, deduction_minor, uses=uses):
            raise refusal

    async def shortfalls(self, batch: Batch, key: UseKey, deduction_minor: int, *, uses: int = 1) -> list[MeshError]:
        """All that `preview` would refuse for."""
        caps, found = batch.caps, []
        if caps.uses_per_user is not None:
            used = (await self._book.uses([key])).get(key, set())
            if len(used) + uses > caps.uses_per_user:
                found.append(uses_limit_reached(batch))
        if caps.spend_cap_minor is not None:
            held = await self._book.slice_of(self._book.holder(key.shard), batch.batch_id)
            short_minor = deduction_minor - held.left_minor
            if short_minor > 0 and short_minor > await self._book.ungranted(batch):
                found.append(spend_cap_reached(batch, deduction_minor))
        return found

    async def _lease(self, batch: Batch, holder: int, wanted_minor: int) -> bool:
        """Makes the slice hold what is wanted, for a moment; False when the cap has no more to lease."""
        for _ in range(MAX_RUNS):
            held = await self._book.slice_of(holder, batch.batch_id)
            if held.left_minor >= wanted_minor:
                return True
            granted = await self._grant(batch, holder, held, wanted_minor)
            if granted == held.leased_minor:
                return False
            # An earlier grant may have come first, and not be enough: look again.
            await self._raise(batch, holder, granted)
        # Others spend it as fast as it is leased; that does not make the cap dry.
        return True

    async def _grant(self, batch: Batch, holder: int, held: Slice, wanted_minor: int) -> int:
        """What is granted to the holder in all afterwards; a grant that did not reach its slice yet comes first."""
        shard = id_shard(batch.batch_id)
        for _ in range(MAX_RUNS):
            try:
                async with self._store.unit(shard) as unit:
                    await refuse_moved(unit, {shard})
                    locked = await unit.lock_batch(batch.batch_id)
                    if locked is None or locked.caps.spend_cap_minor is None:
                        raise LookupError(f"batch {batch.batch_id} has no spend cap")
                    own, total = await self._book.granted(unit, locked, holder)
                    if own > held.leased_minor:
                        return own
                    more = lease_minor(
                        wanted_minor=wanted_minor - held.left_minor,
                        slice_minor=slice_minor(locked.caps.spend_cap_minor, len(self._store.databases)),
                        ungranted_minor=locked.caps.spend_cap_minor - total,
                    )
                    if more:
                        await self._book.grant(unit, locked, holder, more)
            except (Deadlock, DuplicateKey, CommitOutcomeUnknown):
                continue
            return own + more
        raise Deadlock("a slice could not be granted")

    async def _raise(self, batch: Batch, holder: int, leased_minor: int) -> None:
        async with self._store.unit(holder) as unit:
            await refuse_moved(unit, {holder})
            await self._book.raise_slice(unit, holder, batch.batch_id, leased_minor)

    def _dryness(self, holder: int, batch_id: str) -> bool | None:
        """Whether a slice is known to be dry since nobody answered; None when it is not known to be dry."""
        until_ms, cut_off = self._dry.get((holder, batch_id), (0, False))
        return cut_off if self._clock() < until_ms else None


def uses_limit_reached(batch: Batch) -> MeshError:
    """The refusal of a user who took every use."""
    return MeshError("USES_LIMIT_REACHED", batch_id=batch.batch_id, uses_per_user=str(batch.caps.uses_per_user))


def spend_cap_reached(batch: Batch, deduction_minor: int) -> MeshError:
    """The refusal of a deduction that does not fit."""
    return MeshError("SPEND_CAP_REACHED", batch_id=batch.batch_id, deduction=format_yuan(deduction_minor))
