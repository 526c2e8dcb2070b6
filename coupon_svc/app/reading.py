"""What can be looked at: coupons, what consuming one would take, and transactions."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.caps import CapKeeper
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.holds import without_stale_holds
from coupon_svc.app.ports import (
    Call,
    Clock,
    CodeBook,
    CouponFacts,
    Store,
    StoredCoupon,
    TransactionRow,
)
from coupon_svc.domain.checks import Use
from coupon_svc.domain.coupon import CouponStatus
from coupon_svc.domain.order import Order
from coupon_svc.domain.routing import user_shard
from coupon_svc.domain.spending import spend_use
from coupon_svc.domain.terms import Terms
from meshkit.errors import MeshError

_VISIBLE_TAIL = 4


@dataclass(frozen=True, slots=True)
class CouponView:
    """A coupon as it is shown: status with expiry and account taken into account, live holds counted, code masked."""

    stored: StoredCoupon
    terms: Terms
    status: CouponStatus
    masked_code: str


@dataclass(frozen=True, slots=True)
class Validation:
    """Whether a coupon could be consumed now; `refusal` is the reason why not. Amounts are fen."""

    view: CouponView
    refusal: str
    deduction_minor: int
    payable_minor: int


@dataclass(frozen=True, slots=True)
class Page:
    """Which page is asked for."""

    size: int
    token: str


def cursor_of(token: str, *query: object) -> str | None:
    """The cursor inside a page token of this query; None for the first page.

    Raises:
        MeshError: PAGE_TOKEN_INVALID for a token of another query, or of nobody's making.
    """
    if not token:
        return None
    try:
        digest, _, cursor = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
    except (binascii.Error, UnicodeError) as exc:
        raise MeshError("PAGE_TOKEN_INVALID") from exc
    if not cursor.isdigit() or digest != _digest(query, cursor):
        raise MeshError("PAGE_TOKEN_INVALID")
    return cursor


def token_of(cursor: str, *query: object) -> str:
    """A page token that continues this query after `cursor`."""
    return base64.urlsafe_b64encode(f"{_digest(query, cursor)}:{cursor}".encode()).decode()


def _digest(query: tuple[object, ...], cursor: str) -> str:
    return hashlib.sha256(repr((query, cursor)).encode()).hexdigest()[:16]


def mask(code: str) -> str:
    """The code with all but its last four characters hidden: "****-****-B2T4"."""
    hidden = "".join("-" if letter == "-" else "*" for letter in code[:-_VISIBLE_TAIL])
    return hidden + code[-_VISIBLE_TAIL:]


class Reading:
    """The reading use cases."""

    def __init__(
        self,
        *,
        store: Store,
        directory: CouponDirectory,
        batches: BatchCache,
        caps: CapKeeper,
        codes: CodeBook,
        clock: Clock,
    ) -> None:
        """All adapters arrive here."""
        self._store = store
        self._directory = directory
        self._batches = batches
        self._caps = caps
        self._codes = codes
        self._clock = clock

    async def coupon(self, coupon_id: str, *, only_user: int | None) -> CouponView:
        """One coupon; with `only_user`, another user's does not exist.

        Raises:
            MeshError: COUPON_NOT_FOUND.
        """
        facts = await self._directory.by_id(coupon_id)
        if only_user is not None and facts.user_id != only_user:
            raise MeshError("COUPON_NOT_FOUND")
        return await self._view_of(facts)

    async def coupons(self, user_id: int, *, status: int | None, page: Page) -> tuple[Sequence[CouponView], str]:
        """A page of a user's coupons, newest first, and the token of the next page.

        Raises:
            MeshError: PAGE_TOKEN_INVALID.
        """
        below = cursor_of(page.token, "coupons", user_id, status)
        found = await self._store.list_coupons(user_id, status=status, below=below, limit=page.size + 1)
        shown = await self._counted(found[: page.size])
        frozen = await self._store.account_frozen(user_shard(user_id), user_id)
        terms = await self._batches.terms(stored.coupon.terms_id for stored in shown)
        views = [self._view(stored, terms[stored.coupon.terms_id], frozen=frozen) for stored in shown]
        more = len(found) > page.size
        return views, token_of(shown[-1].coupon.coupon_id, "coupons", user_id, status) if more else ""

    async def validate(self, call: Call, *, coupon_id: str, code: str, order: Order) -> Validation:
        """What consuming would take now; changes nothing.

        Raises:
            MeshError: CODE_MISTYPED, COUPON_NOT_FOUND, RISK_REJECTED.
        """
        if code:
            await self._directory.refuse_guesser(call)
        facts = await (self._directory.by_code(code, call) if code else self._directory.by_id(coupon_id))
        view = await self._view_of(facts)
        coupon, batch = view.stored.coupon, await self._batches.batch(facts.batch_id)
        account_frozen = view.status is CouponStatus.FROZEN and coupon.status is not CouponStatus.FROZEN
        try:
            spent = spend_use(Use(coupon, view.terms, order, self._clock(), batch=batch, account_frozen=account_frozen))
            key = UseKey(facts.shard, facts.user_id, facts.batch_id)
            await self._caps.preview(batch, key, spent.deduction_minor)
        except MeshError as refusal:
            return Validation(view, refusal.reason, 0, order.amount_minor)
        return Validation(view, "", spent.deduction_minor, spent.payable_minor)

    async def transaction(
        self, *, transaction_id: str, caller: str, request_id: str, order: tuple[str, str] | None, only_merchant: str
    ) -> TransactionRow:
        """One consumption, by the first key given; with `only_merchant`, another merchant's does not exist.

        Raises:
            MeshError: TRANSACTION_NOT_FOUND.
        """
        if transaction_id:
            row = await self._store.get_transaction(transaction_id)
        elif request_id:
            row = await self._store.transaction_of_request(caller, request_id)
        else:
            row = await self._store.transaction_of_order(*order) if order else None
        if row is None or (only_merchant and row.merchant_id != only_merchant):
            raise MeshError("TRANSACTION_NOT_FOUND")
        return row

    async def _view_of(self, facts: CouponFacts) -> CouponView:
        stored = await self._store.get_coupon(facts.coupon_id)
        if stored is None:
            raise MeshError("COUPON_NOT_FOUND")
        (stored,) = await self._counted([stored])
        terms = await self._batches.terms([facts.terms_id])
        frozen = facts.user_id != 0 and await self._store.account_frozen(facts.shard, facts.user_id)
        return self._view(stored, terms[facts.terms_id], frozen=frozen)

    async def _counted(self, found: Sequence[StoredCoupon]) -> list[StoredCoupon]:
        """The coupons, all of one shard, with live holds only."""
        coupons = {stored.coupon.coupon_id: stored.coupon for stored in found}
        counted = await without_stale_holds(self._store, coupons, self._clock())
        return [replace(stored, coupon=counted[stored.coupon.coupon_id]) for stored in found]

    def _view(self, stored: StoredCoupon, terms: Terms, *, frozen: bool) -> CouponView:
        status = stored.coupon.status_at(self._clock())
        if frozen and status is CouponStatus.ACTIVATED:
            status = CouponStatus.FROZEN
        code = self._codes.open(stored.code_sealed, stored.coupon.coupon_id)
        return CouponView(stored, terms, status, mask(code))
