"""Use cases that look ahead: the best combination of coupons for an order, and why a coupon can't be used for one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coupon_svc.app.batches import BatchCache
from coupon_svc.app.caps import CapKeeper
from coupon_svc.app.caps_ports import UseKey
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.holds import without_stale_holds
from coupon_svc.app.ports import Call, Clock, Store, StoredCoupon
from coupon_svc.domain.checks import Use, failures
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.order import Order
from coupon_svc.domain.quote import Offer, Quote, Unused, admit, choose, offer_of, quote
from coupon_svc.domain.routing import user_shard
from meshkit.errors import MeshError

# Of a user who names no coupons, this many of the newest activated ones are looked at.
MAX_LISTED = 200


@dataclass(frozen=True, slots=True)
class Named:
    """A coupon as a caller names it: by its id, or else by its code."""

    coupon_id: str
    code: str


@dataclass(frozen=True, slots=True)
class OrderQuote:
    """The best combination for an order, and the coupons that fail a check, each with the first one."""

    order: Order
    quote: Quote
    refused: Sequence[tuple[str, MeshError]]
    more_coupons: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every check that a use fails, in the order of consuming."""

    coupon_id: str
    failures: Sequence[MeshError]


class Quoting:
    """The use cases."""

    def __init__(
        self, *, store: Store, directory: CouponDirectory, batches: BatchCache, caps: CapKeeper, clock: Clock
    ) -> None:
        """All adapters arrive here."""
        self._caps = caps
        self._store = store
        self._directory = directory
        self._batches = batches
        self._clock = clock

    async def quote(
        self, call: Call, *, order: Order, user_id: int, named: Sequence[Named], only_user: int | None
    ) -> OrderQuote:
        """The best combination of the named coupons, or of the user's; with `only_user`, others' do not exist.

        Raises:
            MeshError: COUPONS_REQUIRED, CODE_MISTYPED, COUPON_NOT_FOUND, RISK_REJECTED.
        """
        if not named and not user_id:
            raise MeshError("COUPONS_REQUIRED")
        more = False
        if named:
            coupons = await self._named(call, named, only_user=only_user)
        else:
            listed = await self._store.list_coupons(
                user_id, status=CouponStatus.ACTIVATED, below=None, limit=MAX_LISTED + 1
            )
            coupons = await self._counted([stored.coupon for stored in listed[:MAX_LISTED]])
            more = len(listed) > MAX_LISTED
        owner = user_id or next((coupon.user_id for coupon in coupons if coupon.user_id), 0)
        offers, refused = await self._offers(coupons, order, owner)
        weighed, passed_over = choose(offers, order)
        # A thread, since a hard choice may take long; the loop goes on meanwhile.
        found = await asyncio.to_thread(quote, weighed, order)
        left_out = (Unused(offer.coupon_id, "NOT_CONSIDERED") for offer in passed_over)
        whole = replace(found, unused=(*found.unused, *left_out))
        return OrderQuote(order, whole, refused, more or bool(passed_over))

    async def explain(
        self, call: Call, *, named: Named, user_id: int, order: Order, only_user: int | None
    ) -> Explanation:
        """Every check that using the coupon for the order fails; with `only_user`, others' do not exist.

        Raises:
            MeshError: CODE_MISTYPED, COUPON_NOT_FOUND, RISK_REJECTED.
        """
        (coupon,) = await self._named(call, [named], only_user=only_user)
        (use,) = await self._uses([coupon], order, user_id or coupon.user_id)
        found = [*failures(use)]
        if use.batch is not None and coupon.user_id:
            found += await self._caps.shortfalls(use.batch, _key(coupon), offer_of(use).alone_minor(order))
        return Explanation(coupon.coupon_id, found)

    async def _named(self, call: Call, named: Sequence[Named], *, only_user: int | None) -> list[Coupon]:
        if any(each.code for each in named):
            await self._directory.refuse_guesser(call)
        found = await asyncio.gather(
            *(
                self._directory.by_code(each.code, call) if each.code else self._directory.by_id(each.coupon_id)
                for each in named
            )
        )
        if only_user is not None and any(facts.user_id != only_user for facts in found):
            raise MeshError("COUPON_NOT_FOUND")
        # Two names of one coupon are one coupon.
        facts = {each.coupon_id: each for each in found}
        by_shard: defaultdict[int, list[str]] = defaultdict(list)
        for each_facts in facts.values():
            by_shard[each_facts.shard].append(each_facts.coupon_id)
        stored: dict[str, StoredCoupon] = {}
        for shard, coupon_ids in by_shard.items():
            stored.update(await self._store.get_coupons(shard, coupon_ids))
        if len(stored) < len(facts):
            raise MeshError("COUPON_NOT_FOUND")
        return await self._counted([stored[coupon_id].coupon for coupon_id in facts])

    async def _counted(self, coupons: Sequence[Coupon]) -> list[Coupon]:
        """The coupons with live holds only."""
        by_shard: defaultdict[int, dict[str, Coupon]] = defaultdict(dict)
        for coupon in coupons:
            by_shard[coupon.shard][coupon.coupon_id] = coupon
        counted: dict[str, Coupon] = {}
        for each in by_shard.values():
            counted.update(await without_stale_holds(self._store, each, self._clock()))
        return [counted[coupon.coupon_id] for coupon in coupons]

    async def _uses(self, coupons: Sequence[Coupon], order: Order, user_id: int) -> list[Use]:
        terms, batches, frozen = await asyncio.gather(
            self._batches.terms(coupon.terms_id for coupon in coupons),
            self._batches.batches(coupon.batch_id for coupon in coupons),
            self._frozen_users({coupon.user_id for coupon in coupons if coupon.user_id}),
        )
        now_ms = self._clock()
        return [
            Use(
                coupon,
                terms[coupon.terms_id],
                order,
                now_ms,
                batch=batches[coupon.batch_id],
                account_frozen=coupon.user_id in frozen,
                user_id=user_id,
            )
            for coupon in coupons
        ]

    async def _frozen_users(self, users: set[int]) -> set[int]:
        return {user_id for user_id in users if await self._store.account_frozen(user_shard(user_id), user_id)}

    async def _offers(
        self, coupons: Sequence[Coupon], order: Order, owner: int
    ) -> tuple[list[Offer], list[tuple[str, MeshError]]]:
        """Coupons that pass every check, and those that don't, with the first failure."""
        offers: list[Offer] = []
        refused: list[tuple[str, MeshError]] = []
        for use in await self._uses(coupons, order, owner):
            try:
                offer = admit(use)
                if use.batch is not None:
                    await self._caps.preview(use.batch, _key(use.coupon), offer.alone_minor(order))
            except MeshError as failure:
                refused.append((use.coupon.coupon_id, failure))
            else:
                offers.append(offer)
        return offers, refused


def _key(coupon: Coupon) -> UseKey:
    return UseKey(coupon.shard, coupon.user_id, coupon.batch_id)
