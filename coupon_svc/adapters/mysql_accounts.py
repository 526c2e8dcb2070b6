"""Account rows behind the `AccountBook` port."""

from __future__ import annotations

from coupon_svc.adapters.mysql_rows import instant_ms
from coupon_svc.adapters.mysql_unit import transaction_of
from coupon_svc.app.ports import Unit
from coupon_svc.domain.account import Account, AccountStatus
from coupon_svc.domain.journal import ChainHead
from coupon_svc.domain.times import utc_datetime
from meshkit.queries import load_queries


class MysqlAccounts:
    """Implements `AccountBook` inside units of `MysqlStore`."""

    def __init__(self) -> None:
        """Loads its statements."""
        self._queries = load_queries("coupon_svc", "sql/accounts.sql")

    async def lock(self, unit: Unit, shard: int, user_id: int) -> Account:
        """See `AccountBook.lock`."""
        row = await transaction_of(unit).fetch_one(self._queries["lock_account"], {"shard": shard, "user_id": user_id})
        if row is None:
            raise LookupError("account_state lacks the row of an account that is to be changed")
        return Account(
            shard=row[0],
            user_id=row[1],
            status=AccountStatus(row[2]),
            reason=row[3],
            head=ChainHead(row[4], row[5]),
            update_time_ms=instant_ms(row[6]),
        )

    async def store(self, unit: Unit, account: Account) -> None:
        """See `AccountBook.store`."""
        await transaction_of(unit).execute(
            self._queries["store_account"],
            {
                "shard": account.shard,
                "user_id": account.user_id,
                "status": int(account.status),
                "reason": account.reason,
                "last_seq": account.head.seq,
                "last_hash": account.head.hash,
                "update_time": utc_datetime(account.update_time_ms),
            },
        )
