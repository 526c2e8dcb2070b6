"""What the use cases need from the world: the store, risk control, locks, ids, codes and time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from coupon_svc.domain.batch import Batch, BlockScope
from coupon_svc.domain.coupon import Coupon, CouponStatus
from coupon_svc.domain.hold import Hold
from coupon_svc.domain.journal import ChainHead, JournalRow, Origin
from coupon_svc.domain.spending import LineShare
from coupon_svc.domain.terms import Terms

# Milliseconds since 1970 UTC.
Clock = Callable[[], int]


class RequestKey(NamedTuple):
    """Names a mutation; unique within its routing shard."""

    shard: int
    caller: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was answered to a request before."""

    request_hash: bytes
    response: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks for a mutation, with which request; `request_hash` is the SHA-256 of method and payload."""

    caller: str
    request_id: str
    request_hash: bytes
    trace_id: str
    client: Client

    def key(self, shard: int) -> RequestKey:
        """The request's name in `shard`."""
        return RequestKey(shard, self.caller, self.request_id)

    def origin(self, now_ms: int) -> Origin:
        """What the journal keeps of the call."""
        return Origin(caller=self.caller, request_id=self.request_id, trace_id=self.trace_id, time_ms=now_ms)


@dataclass(frozen=True, slots=True)
class Client:
    """The shopper's side of a call; empty where unknown."""

    ip: str = ""
    device_id: str = ""
    phone: str = ""
    channel: str = ""
    store_id: str = ""
    terminal_id: str = ""


@dataclass(frozen=True, slots=True)
class CouponFacts:
    """What never changes about a coupon once it has an owner."""

    coupon_id: str
    shard: int
    user_id: int
    batch_id: str
    terms_id: str
    bound_coupon_id: str | None


@dataclass(frozen=True, slots=True)
class Binding:
    """To whom an unactivated coupon was promised, and under which lasting id; `bound_by` names the request."""

    user_id: int
    coupon_id: str
    bound_by: bytes


@dataclass(frozen=True, slots=True)
class StoredCoupon:
    """A coupon row together with what only some use cases look at."""

    coupon: Coupon
    code_sealed: bytes
    binding: Binding | None
    create_time_ms: int


@dataclass(frozen=True, slots=True)
class TransactionRow:
    """One consumption; amounts are fen. `reservation_id` names the reservation whose confirmation it was."""

    shard: int
    transaction_id: str
    coupon_id: str
    user_id: int
    merchant_id: str
    order_id: str
    amount_minor: int
    deduction_minor: int
    balance_after_minor: int
    settlement_held: bool
    caller: str
    request_id: str
    consume_time_ms: int
    reservation_id: str = ""
    reverse_time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Consumption:
    """A consumption with the state it left the coupon in: what a reply says."""

    transaction: TransactionRow
    status: CouponStatus
    lines: tuple[LineShare, ...] = ()


@dataclass(frozen=True, slots=True)
class IndexedCode:
    """One entry of the code index."""

    shard: int
    key_id: str
    mac: bytes
    coupon_id: str
    batch_id: str
    made_by: bytes


class CodeKey(NamedTuple):
    """Where the index may hold a code."""

    shard: int
    key_id: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class VersionedUpdate:
    """A coupon as it shall be stored, guarded by the version it was read with."""

    before: Coupon
    after: Coupon

    @classmethod
    def follow(cls, before: Coupon, after: Coupon, row: JournalRow) -> VersionedUpdate:
        """The step from `before` to `after` that `row` records."""
        return cls(before, replace(after, version=row.seq, last_hash=row.hash))


class Unit(Protocol):
    """One write transaction in one database. Lock order: fences, accounts, coupons, then appends."""

    async def fence(self, shards: set[int]) -> set[int]:
        """Holds the shards where they are until commit; gives those that this process may not write."""

    async def frozen_accounts(self, users: set[tuple[int, int]]) -> set[tuple[int, int]]:
        """Of (shard, user_id) pairs those that are frozen; holds all of them as they are until commit."""

    async def lock_coupons(self, keys: set[tuple[int, str]]) -> Mapping[str, Coupon]:
        """Locks (shard, coupon_id) rows in key order; what does not exist is absent."""

    async def unreleased_holds(self, keys: set[tuple[int, str]]) -> Sequence[Hold]:
        """Holds of locked coupons, given as (shard, coupon_id), that did not end yet, whether expired or not."""

    async def lock_stored(self, shard: int, coupon_id: str) -> StoredCoupon | None:
        """Locks one coupon and gives it whole."""

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """Recorded requests among `keys`, as committed now."""

    async def record(self, records: Sequence[tuple[RequestKey, Recorded]], now_ms: int) -> None:
        """Records answers."""

    async def update_coupons(self, updates: Sequence[VersionedUpdate]) -> None:
        """Stores new states; raises when a row's version is not the one read."""

    async def insert_coupons(self, coupons: Sequence[StoredCoupon]) -> None:
        """Adds coupons."""

    async def bind_coupon(self, shard: int, coupon_id: str, binding: Binding) -> None:
        """Notes the promise on a locked unactivated coupon."""

    async def existing_coupons(self, keys: set[tuple[int, str]]) -> set[str]:
        """Which of the (shard, coupon_id) rows exist."""

    async def append_journal(self, rows: Sequence[JournalRow]) -> None:
        """Appends journal rows and the outbox rows that point at them."""

    async def insert_transactions(self, rows: Sequence[TransactionRow]) -> None:
        """Adds consumptions."""

    async def index_codes(self, codes: Sequence[IndexedCode]) -> None:
        """Adds entries to the code index; raises DuplicateKey."""

    async def note_imported_lengths(self, pairs: set[tuple[int, int]]) -> None:
        """Notes (shard, length) of imported codes."""

    async def insert_batch(self, batch: Batch, terms: Terms) -> None:
        """Adds a batch and its terms."""

    async def lock_batch(self, batch_id: str) -> Batch | None:
        """Locks one batch."""

    async def set_block_scope(self, batch_id: str, scope: BlockScope, head: ChainHead) -> None:
        """Changes what is blocked of a locked batch, and the head of its chain."""

    async def drawn(self, batch_id: str, key: RequestKey) -> tuple[bytes, int] | None:
        """(request_hash, quantity) that this request drew before."""

    async def draw(self, batch_id: str, key: RequestKey, request_hash: bytes, quantity: int, now_ms: int) -> None:
        """Takes a quantity from a locked batch and notes who did."""

    async def lease_codes(self, shard: int, code_length: int, quantity: int, limit: int) -> int | None:
        """First of `quantity` unused counters, or None when they would pass `limit`."""


class Store(Protocol):
    """The coupon databases, read and written by shard."""

    def database_of(self, shard: int) -> str:
        """Name of the database that holds a shard; a group never spans two."""

    @property
    def databases(self) -> Sequence[str]:
        """Names of all databases."""

    def unit(self, shard: int) -> AbstractAsyncContextManager[Unit]:
        """A write transaction in the database of `shard`; commits at the end, rolls back on any exception."""

    async def recorded(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, Recorded]:
        """Recorded requests among `keys`, all of one database, without locks."""

    async def purge_records(self, database: str, now_ms: int, limit: int) -> int:
        """Removes at most `limit` records whose retention is over, and gives how many."""

    async def ensure_accounts(self, users: set[tuple[int, int]], now_ms: int) -> set[tuple[int, int]]:
        """Makes sure each (shard, user_id) has an account row; gives the frozen ones."""

    async def find_codes(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, str]:
        """Coupon ids of indexed codes, all of one database."""

    async def code_makers(self, keys: Sequence[CodeKey]) -> Mapping[CodeKey, IndexedCode]:
        """Whole index entries, all of one database."""

    async def drop_codes(self, keys: Sequence[CodeKey], made_by: bytes) -> None:
        """Takes back index entries that `made_by` made, all of one database."""

    async def imported_lengths(self) -> set[int]:
        """Lengths in which codes were imported, over all databases."""

    async def facts(self, keys: Sequence[tuple[int, str]]) -> Mapping[str, CouponFacts]:
        """Facts of (shard, coupon_id), all of one database."""

    async def get_coupon(self, coupon_id: str) -> StoredCoupon | None:
        """One coupon."""

    async def get_coupons(self, shard: int, coupon_ids: Sequence[str]) -> Mapping[str, StoredCoupon]:
        """Coupons of one shard."""

    async def unreleased_holds(self, keys: set[tuple[int, str]]) -> Sequence[Hold]:
        """Holds of (shard, coupon_id), all of one database, that did not end yet, whether expired or not."""

    async def list_coupons(
        self, user_id: int, *, status: int | None, below: str | None, limit: int
    ) -> Sequence[StoredCoupon]:
        """A user's coupons, newest first."""

    async def account_frozen(self, shard: int, user_id: int) -> bool:
        """Whether an account is frozen."""

    async def get_batch(self, batch_id: str) -> Batch | None:
        """One batch."""

    async def get_terms(self, terms_id: str) -> Terms | None:
        """Terms by id."""

    async def get_transaction(self, transaction_id: str) -> TransactionRow | None:
        """One consumption by its id."""

    async def transaction_of_request(self, caller: str, request_id: str) -> TransactionRow | None:
        """The consumption that a caller's request made, over all databases."""

    async def transaction_of_order(self, merchant_id: str, order_id: str) -> TransactionRow | None:
        """The latest consumption of an order, over all databases."""

    async def journal(self, coupon_id: str, *, above_seq: int, limit: int) -> Sequence[JournalRow]:
        """A coupon's journal, oldest first."""


@dataclass(frozen=True, slots=True)
class RiskQuestion:
    """One operation that risk control shall decide on; a retry carries the same operation_id."""

    operation_id: str
    kind: str
    caller: str
    client: Client
    by_code: bool
    user_id: int = 0
    merchant_id: str = ""
    batch_id: str = ""
    coupon_id: str = ""
    amount_minor: int = 0


def operation_id(*parts: str) -> str:
    """Names an operation to risk control: the same parts give the same 64 digits, other parts never do."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RiskAnswer:
    """Allowed, or the names of the rules that refused."""

    allowed: bool
    rules: tuple[str, ...] = ()


class RiskAbsentError(Exception):
    """Risk control did not answer in time."""


class RiskGate(Protocol):
    """Risk control, asked before anything is committed."""

    async def assess(self, questions: Sequence[RiskQuestion]) -> Sequence[RiskAnswer]:
        """One answer per question, in order; raises RiskAbsentError."""


class CodeBook(Protocol):
    """Codes: how they are made, read, looked up and sealed."""

    def encode(self, shard: int, counter: int, length: int) -> str:
        """The code of a counter, in groups of four."""

    def normalise(self, text: str) -> str:
        """What counts of a typed code; raises MeshError CODE_MISTYPED for foreign characters."""

    def native_shard(self, normal: str) -> int | None:
        """The shard a code of ours carries; None when its checksum does not hold."""

    def mac(self, normal: str) -> tuple[str, bytes]:
        """(key id, HMAC) under the primary key."""

    def macs(self, normal: str) -> Sequence[tuple[str, bytes]]:
        """(key id, HMAC) under every live key."""

    def seal(self, code: str, coupon_id: str) -> bytes:
        """Ciphertext of a code, bound to its coupon."""

    def open(self, sealed: bytes, coupon_id: str) -> str:
        """The code."""


class Ids(Protocol):
    """Unique ids."""

    def next(self, shard: int) -> int:
        """A new id that carries the shard."""
