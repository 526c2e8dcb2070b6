"""What caps need of the store beyond `ports`: uses that users took, and slices of spend caps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from coupon_svc.app.ports import Unit
from coupon_svc.domain.batch import Batch


class UseKey(NamedTuple):
    """Whose uses of what are counted."""

    shard: int
    user_id: int
    batch_id: str


class Use(NamedTuple):
    """One use: the number it takes, from 1, and the transaction it belongs to."""

    key: UseKey
    ordinal: int
    transaction_id: str


@dataclass(frozen=True, slots=True)
class Slice:
    """What a database may spend of a batch's cap in fen, all leases together, and what it has spent."""

    leased_minor: int = 0
    spent_minor: int = 0

    @property
    def left_minor(self) -> int:
        """What it may still spend."""
        return self.leased_minor - self.spent_minor


class CapBook(Protocol):
    """Uses and slices. `holder` is the lowest shard of a database, under which its slices are stored.

    Slices stand behind coupons in the lock order, and before every append.
    """

    def holder(self, shard: int) -> int:
        """The holder of the slices of the database that holds `shard`."""

    async def uses(self, keys: Iterable[UseKey], unit: Unit | None = None) -> Mapping[UseKey, set[int]]:
        """Numbers that are taken, as committed now; all keys of one database. With a unit, they stay locked."""

    async def add_uses(self, unit: Unit, uses: Sequence[Use]) -> None:
        """Takes numbers; raises DuplicateKey where another transaction was faster."""

    async def free_use(self, unit: Unit, key: UseKey, transaction_id: str) -> None:
        """Gives back the number of a transaction that was undone."""

    async def lock_left(self, unit: Unit, holder: int, batch_ids: Iterable[str]) -> Mapping[str, int]:
        """Locks existing slices and gives what is left of each, in fen."""

    async def spend(self, unit: Unit, holder: int, amounts: Mapping[str, int]) -> bool:
        """Spends fen per batch from slices, by one statement; False, to be rolled back, when one is too small."""

    async def give_back(self, unit: Unit, holder: int, amounts: Mapping[str, int]) -> None:
        """Returns fen per batch to slices, for consumptions that were undone; adds a slice where there is none."""

    async def slice_of(self, holder: int, batch_id: str) -> Slice:
        """A slice without locks; adds an empty one where there is none."""

    async def granted(self, unit: Unit, batch: Batch, holder: int) -> tuple[int, int]:
        """Under the lock of the batch: fen granted to this holder, and to all holders."""

    async def grant(self, unit: Unit, batch: Batch, holder: int, more_minor: int) -> None:
        """Grants a holder more of a locked batch's cap."""

    async def raise_slice(self, unit: Unit, holder: int, batch_id: str, leased_minor: int) -> None:
        """Raises a slice to what was granted; one that is there already stays as it is."""

    async def ungranted(self, batch: Batch) -> int:
        """What of the cap no database has leased, without locks."""
