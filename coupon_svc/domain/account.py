"""A user's account as coupons know it: normal or frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from coupon_svc.domain.journal import ChainHead
from meshkit.errors import MeshError


class AccountStatus(IntEnum):
    """Whether the coupons of an account can be used; the numbers of account_state.status."""

    NORMAL = 1
    FROZEN = 2


@dataclass(frozen=True, slots=True)
class Account:
    """An account as its row holds it; `reason` says why it is frozen."""

    shard: int
    user_id: int
    status: AccountStatus
    reason: str
    head: ChainHead
    update_time_ms: int

    def refuse_status(self, status: AccountStatus) -> None:
        """Refuses a step to the status that the account has.

        Raises:
            MeshError: ACCOUNT_FROZEN or ACCOUNT_NOT_FROZEN.
        """
        if self.status is status:
            frozen = status is AccountStatus.FROZEN
            raise MeshError("ACCOUNT_FROZEN" if frozen else "ACCOUNT_NOT_FROZEN", user_id=str(self.user_id))
