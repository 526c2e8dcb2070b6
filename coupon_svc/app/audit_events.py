"""Lists journal rows of a coupon, a user, a transaction or a shard, narrowed down by filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coupon_svc.app.audit_ports import ABOVE_ALL, BELOW_ALL, AuditStore, RowKey
from coupon_svc.app.ports import Store
from coupon_svc.app.reading import Page, cursor_of, token_of
from coupon_svc.domain.journal import JournalRow, account_chain, below_chain
from coupon_svc.domain.routing import id_shard, user_shard
from meshkit.errors import MeshError

# What one page may read to find its rows, so that a filter that fits nothing costs no more than one that fits all.
ROWS_READ_PER_PAGE = 5_000
COUPONS_READ_PER_PAGE = 200
_ROWS_PER_READ = 500
_SEQ_DIGITS, _MONTH_DIGITS = 20, 6


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What rows must be; empty members let all through. Times are [from_ms, to_ms), in milliseconds since 1970 UTC."""

    kinds: frozenset[int] = frozenset()
    from_ms: int | None = None
    to_ms: int | None = None
    caller: str = ""
    request_id: str = ""
    transaction_id: str = ""

    def lets_through(self, row: JournalRow) -> bool:
        """Whether a row is wanted."""
        return (
            (not self.kinds or row.kind in self.kinds)
            and (self.from_ms is None or row.origin.time_ms >= self.from_ms)
            and (self.to_ms is None or row.origin.time_ms < self.to_ms)
            and self.caller in {"", row.origin.caller}
            and self.request_id in {"", row.origin.request_id}
            and self.transaction_id in {"", row.transaction_id, row.original_transaction_id}
        )


@dataclass(frozen=True, slots=True)
class EventScope:
    """Whose rows; exactly one member is given."""

    coupon_id: str = ""
    user_id: int = 0
    transaction_id: str = ""
    shard: int | None = None


class AuditEvents:
    """The use case."""

    def __init__(self, store: Store, audits: AuditStore) -> None:
        """`store` finds the coupon of a transaction."""
        self._store = store
        self._audits = audits

    async def __call__(self, scope: EventScope, wanted: EventFilter, page: Page) -> tuple[Sequence[JournalRow], str]:
        """A page of rows and the token of the next page; a page may be short, or empty, and not be the last.

        Raises:
            MeshError: COUPON_NOT_FOUND, TRANSACTION_NOT_FOUND, PAGE_TOKEN_INVALID.
        """
        query = ("events", scope, sorted(wanted.kinds), wanted.from_ms, wanted.to_ms, wanted.caller, wanted.request_id)
        after = _key_of(cursor_of(page.token, *query))
        if scope.user_id:
            rows, last = await self._of_user(scope.user_id, after, wanted, page.size)
        else:
            coupon_id = scope.coupon_id
            if scope.transaction_id:
                transaction = await self._store.get_transaction(scope.transaction_id)
                if transaction is None:
                    raise MeshError("TRANSACTION_NOT_FOUND")
                coupon_id = transaction.coupon_id
            shard = id_shard(coupon_id) if coupon_id else scope.shard or 0
            rows, last = await self._of_range(
                shard, after or _start(coupon_id), coupon_id or ABOVE_ALL, wanted, page.size
            )
            if coupon_id and after is None and last is None and not rows and not await self._exists(shard, coupon_id):
                raise MeshError("COUPON_NOT_FOUND")
        return rows, "" if last is None else token_of(_cursor(last), *query)

    async def _exists(self, shard: int, coupon_id: str) -> bool:
        async with self._audits.moment(shard) as moment:
            return bool(await moment.rows(_start(coupon_id), coupon_id, 1))

    async def _of_range(
        self, shard: int, after: RowKey, upto: str, wanted: EventFilter, size: int
    ) -> tuple[list[JournalRow], RowKey | None]:
        """Wanted rows behind one, and behind which row to go on; None at the end."""
        found: list[JournalRow] = []
        for _ in range(ROWS_READ_PER_PAGE // _ROWS_PER_READ):
            async with self._audits.moment(shard) as moment:
                stored = await moment.rows(after, upto, _ROWS_PER_READ)
            for each in stored:
                if wanted.lets_through(each.row):
                    if len(found) == size:
                        return found, after
                    found.append(each.row)
                after = each.key
            if len(stored) < _ROWS_PER_READ:
                return found, None
        return found, after

    async def _of_user(
        self, user_id: int, after: RowKey | None, wanted: EventFilter, size: int
    ) -> tuple[list[JournalRow], RowKey | None]:
        shard = user_shard(user_id)
        found: list[JournalRow] = []
        # The coupon in which the page before ended may have more rows.
        above = BELOW_ALL if after is None else _start(after.coupon_id).coupon_id
        ids = list(await self._audits.coupons_of_user(user_id, above, COUPONS_READ_PER_PAGE))
        is_last = len(ids) < COUPONS_READ_PER_PAGE
        if is_last:
            ids.append(account_chain(user_id))
        for coupon_id in ids:
            behind = after if after is not None and after.coupon_id == coupon_id else _start(coupon_id)
            rows, last = await self._of_range(shard, behind, coupon_id, wanted, size - len(found))
            found += rows
            if last is not None:
                return found, last
        return found, None if is_last else RowKey(ids[-1], (1 << 63) - 1, 0)


def _start(chain_id: str) -> RowKey:
    """Below the first row of a chain; without an id below all."""
    return RowKey(below_chain(chain_id) if chain_id else BELOW_ALL, (1 << 63) - 1, 0)


def _cursor(key: RowKey) -> str:
    chain = int.from_bytes(key.coupon_id.encode(), "big")
    return f"{key.seq:0{_SEQ_DIGITS}d}{key.month:0{_MONTH_DIGITS}d}{chain}"


def _key_of(cursor: str | None) -> RowKey | None:
    if cursor is None:
        return None
    seq, rest = cursor[:_SEQ_DIGITS], cursor[_SEQ_DIGITS:]
    chain = int(rest[_MONTH_DIGITS:])
    chain_id = chain.to_bytes((chain.bit_length() + 7) // 8, "big").decode()
    return RowKey(chain_id, int(seq), int(rest[:_MONTH_DIGITS]))
