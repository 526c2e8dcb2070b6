"""A batch of coupons: how many there are, what is blocked, its caps and its recall."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from coupon_svc.domain.journal import NEW_CHAIN, ChainHead
from coupon_svc.domain.money import format_yuan
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError


class BlockScope(IntEnum):
    """Which uses of a batch are blocked; the numbers of batch.block_scope."""

    NONE = 0
    CLAIM = 1
    CONSUME = 2
    BOTH = 3


class RecallState(IntEnum):
    """How far a recall is; the numbers of batch.recall_state."""

    NONE = 0
    RUNNING = 1
    DONE = 2


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits over all coupons of a batch; None means none."""

    uses_per_user: int | None = None
    spend_cap_minor: int | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.uses_per_user is not None or self.spend_cap_minor is not None


@dataclass(frozen=True, slots=True)
class Stake:
    """Unused coupons and the most, in fen, that they could still take; unbounded for discounts without a cap."""

    coupons: int = 0
    money_minor: int = 0
    unbounded: bool = False

    def is_within(self, other: Stake) -> bool:
        """Whether it is no more than the other, by every figure."""
        return (
            self.coupons <= other.coupons
            and self.money_minor <= other.money_minor
            and (other.unbounded or not self.unbounded)
        )


NO_CAPS = Caps()
NO_STAKE = Stake()


def stake_of(terms: Terms, *, coupons: int, balance_minor: int) -> Stake:
    """What `coupons` unused coupons of these terms could take; `balance_minor` is the sum of their balances."""
    most = terms.most_minor
    if most is None:
        return Stake(coupons, 0, unbounded=coupons > 0)
    return Stake(coupons, balance_minor + most * coupons)


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as its row holds it; `total_quantity` None means no limit."""

    batch_id: str
    terms_id: str
    name: str
    total_quantity: int | None
    issued_quantity: int
    code_length: int
    block_scope: BlockScope
    create_time_ms: int
    caps: Caps = NO_CAPS
    recall: RecallState = RecallState.NONE
    head: ChainHead = NEW_CHAIN

    def refuse_when_recalled(self) -> None:
        """Refuses what can't be done any more.

        Raises:
            MeshError: BATCH_RECALLED.
        """
        if self.recall is not RecallState.NONE:
            raise MeshError("BATCH_RECALLED", batch_id=self.batch_id)

    def refuse_when_blocked(self, use: BlockScope) -> None:
        """Refuses a use that is blocked.

        Raises:
            MeshError: BATCH_RECALLED, BATCH_BLOCKED.
        """
        self.refuse_when_recalled()
        if self.block_scope & use:
            raise MeshError("BATCH_BLOCKED", batch_id=self.batch_id, scope=use.name)

    def refuse_unconfirmed(self, current: Stake, confirmed: Stake) -> None:
        """Refuses to recall more than was confirmed; less is what is consumed while somebody looks at the figures.

        Raises:
            MeshError: RECALL_STAKE_CHANGED.
        """
        if not current.is_within(confirmed):
            raise MeshError(
                "RECALL_STAKE_CHANGED",
                batch_id=self.batch_id,
                coupons=str(current.coupons),
                money=format_yuan(current.money_minor),
            )
