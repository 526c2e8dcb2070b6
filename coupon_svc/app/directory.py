"""Finds the coupon that a caller names, by id or by code, and counts guessed codes against who gives them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Hashable, Sequence, Set
from typing import Generic, TypeVar

from coupon_svc.app.ports import (
    Call,
    Clock,
    CodeBook,
    CodeKey,
    CouponFacts,
    RiskAbsentError,
    RiskGate,
    RiskQuestion,
    Store,
    operation_id,
)
from coupon_svc.domain.routing import id_shard, mac_shard
from meshkit.errors import MeshError
from meshkit.group_commit import Entry, GroupCommit

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")

MAX_CACHED = 200_000
IMPORTED_LENGTHS_TTL_MS = 1_000
LOOKUP_TIMEOUT_S = 2.0


class _Recent(Generic[_Key, _Value]):
    """A bounded map that forgets what was not used for longest."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._kept: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        value = self._kept.get(key)
        if value is not None:
            self._kept.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        self._kept[key] = value
        self._kept.move_to_end(key)
        if len(self._kept) > self._bound:
            self._kept.popitem(last=False)


class CouponDirectory:
    """Resolves ids and codes to coupons. Only what can never change is kept in process."""

    def __init__(self, store: Store, codes: CodeBook, risk: RiskGate, clock: Clock) -> None:
        """Concurrent look-ups of one database share a query."""
        self._store = store
        self._codes = codes
        self._risk = risk
        self._clock = clock
        self._by_mac: _Recent[bytes, str] = _Recent(MAX_CACHED)
        self._facts: _Recent[str, CouponFacts] = _Recent(MAX_CACHED)
        self._imported_lengths: set[int] = set()
        self._imported_lengths_read_ms = -IMPORTED_LENGTHS_TTL_MS
        self._code_lookups = {name: GroupCommit(self._find_codes) for name in store.databases}
        self._fact_lookups = {name: GroupCommit(self._find_facts) for name in store.databases}

    async def close(self) -> None:
        """Lets running look-ups finish."""
        await asyncio.gather(
            *(lookup.close() for lookup in self._code_lookups.values()),
            *(lookup.close() for lookup in self._fact_lookups.values()),
        )

    async def by_id(self, coupon_id: str) -> CouponFacts:
        """The coupon with this id; an unactivated coupon that got its lasting id since answers with that one.

        Raises:
            MeshError: COUPON_NOT_FOUND.
        """
        facts = await self._read_facts(coupon_id)
        if facts is not None and facts.bound_coupon_id is not None:
            facts = await self._read_facts(facts.bound_coupon_id) or facts
        if facts is None:
            raise MeshError("COUPON_NOT_FOUND")
        return facts

    async def by_code(self, text: str, call: Call) -> CouponFacts:
        """The coupon with this code. A code that leads nowhere is counted against the caller and the address.

        Raises:
            MeshError: CODE_MISTYPED, COUPON_NOT_FOUND, or RISK_REJECTED for who gave too many bad codes.
        """
        try:
            return await self.by_id(await self.coupon_id_of(text))
        except MeshError as error:
            if error.reason in {"CODE_MISTYPED", "COUPON_NOT_FOUND"}:
                # Another code is another guess, whatever the client calls its request; the same code tells nothing new.
                mac = self._codes.mac(text)[1].hex()
                await self._ask_about_codes(call, "BAD_CODE", (call.caller, call.client.ip, call.request_id, mac))
            raise

    async def refuse_guesser(self, call: Call) -> None:
        """Asks risk control before a code is looked up for another purpose than consuming, which asks by itself.

        Raises:
            MeshError: RISK_REJECTED for who gave too many bad codes.
        """
        await self._ask_about_codes(call, "LOOKUP", (uuid.uuid4().hex,))

    async def coupon_id_of(self, text: str) -> str:
        """The id that the index holds for a code: the lasting id, or that of an unactivated coupon.

        Raises:
            MeshError: CODE_MISTYPED, COUPON_NOT_FOUND.
        """
        normal = self._codes.normalise(text)
        _, mac = self._codes.mac(normal)
        known = self._by_mac.get(mac)
        if known is not None:
            return known
        native_shard = self._codes.native_shard(normal)
        imported = len(normal) in await self._read_imported_lengths()
        if native_shard is None and not imported:
            raise MeshError("CODE_MISTYPED")
        keys = []
        for key_id, live_mac in self._codes.macs(normal):
            if native_shard is not None:
                keys.append(CodeKey(native_shard, key_id, live_mac))
            if imported:
                keys.append(CodeKey(mac_shard(live_mac), key_id, live_mac))
        for coupon_id in await asyncio.gather(*map(self._find_code, keys)):
            if coupon_id is not None:
                self._by_mac.put(mac, coupon_id)
                return coupon_id
        raise MeshError("COUPON_NOT_FOUND")

    def learn_imported_lengths(self, lengths: Set[int]) -> None:
        """Takes note of lengths that this process imported; others learn of them within IMPORTED_LENGTHS_TTL_MS."""
        self._imported_lengths = self._imported_lengths | lengths

    async def _read_facts(self, coupon_id: str) -> CouponFacts | None:
        facts = self._facts.get(coupon_id)
        if facts is not None:
            return facts
        shard = id_shard(coupon_id)
        lookup = self._fact_lookups[self._store.database_of(shard)]
        facts = await lookup.submit((shard, coupon_id), deadline=time.monotonic() + LOOKUP_TIMEOUT_S)
        if facts is not None and (facts.user_id or facts.bound_coupon_id is not None):
            self._facts.put(coupon_id, facts)
        return facts

    async def _read_imported_lengths(self) -> set[int]:
        now_ms = self._clock()
        if not 0 <= now_ms - self._imported_lengths_read_ms < IMPORTED_LENGTHS_TTL_MS:
            self._imported_lengths = await self._store.imported_lengths() | self._imported_lengths
            self._imported_lengths_read_ms = now_ms
        return self._imported_lengths

    async def _ask_about_codes(self, call: Call, kind: str, operation: tuple[str, ...]) -> None:
        question = RiskQuestion(
            operation_id=operation_id(kind, *operation),
            kind=kind,
            caller=call.caller,
            client=call.client,
            by_code=True,
        )
        try:
            (answer,) = await self._risk.assess([question])
        except RiskAbsentError:
            return
        if not answer.allowed:
            raise MeshError("RISK_REJECTED", rules=",".join(answer.rules))

    async def _find_code(self, key: CodeKey) -> str | None:
        lookup = self._code_lookups[self._store.database_of(key.shard)]
        return await lookup.submit(key, deadline=time.monotonic() + LOOKUP_TIMEOUT_S)

    async def _find_codes(self, group: Sequence[Entry[CodeKey, str | None]]) -> None:
        found = await self._store.find_codes([entry.item for entry in group])
        for entry in group:
            entry.resolve(found.get(entry.item))

    async def _find_facts(self, group: Sequence[Entry[tuple[int, str], CouponFacts | None]]) -> None:
        found = await self._store.facts([entry.item for entry in group])
        for entry in group:
            entry.resolve(found.get(entry.item[1]))
