"""Cashiers at work: a steady stream of consumes at every coupon_svc, each repeated until it has a definite answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from couponmesh.coupon.v1 import batch_pb2, batch_service_pb2, coupon_service_pb2
from couponmesh.coupon.v1.batch_service_pb2_grpc import BatchServiceStub
from couponmesh.coupon.v1.coupon_service_pb2_grpc import CouponServiceStub
from couponmesh.type.v1 import client_context_pb2, money_pb2
from tests.harness.stack import PrivateStack

_log = logging.getLogger("chaos")

# What the contract lets a caller repeat under the same request_id.
RETRYABLE = frozenset({"UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
CARD_BALANCE_MINOR = 100_000_000
VOUCHER_FACE_MINOR = 3_000
# coupon_svc accepts up to 200.00 without risk control, and not a fen more.
SMALL_MAX_MINOR = 20_000
LARGE_MAX_MINOR = 40_000

_USERS = 48
_CARDS_PER_USER = 10
_VOUCHERS_PER_USER = 30
# Some cards are used so often that both replicas want them at once.
_HOT_CARDS = 24
_HOT_SHARE = 0.15
# Every fifth voucher is offered to two tills at once.
_RIVALS_EVERY = 5
_MERCHANTS = 500
_ADDRESSES = 5_000
_CASHIERS = 40
_PAUSE_S = 0.04
_ATTEMPT_TIMEOUT_S = 2.0
# A till with a bad line: its first call ends before the reply may come, and the retry must find what it did.
_HASTY_SHARE = 0.04
_HASTY_TIMEOUT_S = 0.02
HASTY = "DEADLINE_EXCEEDED/hasty"
# The second of two tills that were offered one voucher; a coupon that is locked by the other replica for long.
LATE_RIVAL = "FAILED_PRECONDITION/COUPON_USED"
BUSY = "ABORTED/COUPON_BUSY"
_ATTEMPTS_MAX = 60
_DEFAULT_RETRY_S = 0.1
_WIND_UP_S = 20.0
# A replica that drains says so in its health, and is left alone from then on; round_robin alone listens to that.
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "couponmesh.coupon.v1.CouponService"},
}
_CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # Two channels of one process to one address share a connection unless each has a pool of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
]


@dataclass(frozen=True, slots=True)
class Ware:
    """A coupon that was issued to a user."""

    coupon_id: str
    code: str
    user_id: int
    is_card: bool


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call as its caller saw it; times are monotonic seconds, `reason` is empty when no server gave one."""

    replica: int
    started_s: float
    ended_s: float
    status: str
    reason: str
    large: bool
    settlement_held: bool = False

    @property
    def succeeded(self) -> bool:
        return self.status == "OK"

    @property
    def name(self) -> str:
        return f"{self.status}/{self.reason}" if self.reason else self.status


@dataclass(slots=True)
class Purchase:
    """What one customer pays with one coupon, through all its attempts, to one definite answer."""

    till: str
    ware: Ware
    request: coupon_service_pb2.ConsumeCouponRequest
    attempts: list[Attempt] = field(default_factory=list)
    reply: coupon_service_pb2.ConsumeCouponResponse | None = None

    @property
    def amount_minor(self) -> int:
        return int(self.request.amount.amount_minor)

    @property
    def large(self) -> bool:
        return self.amount_minor > SMALL_MAX_MINOR


class Shop:
    """The coupons of one stack, and everything that was bought with them."""

    def __init__(self, mesh: PrivateStack) -> None:
        self.mesh = mesh
        self.cards: list[Ware] = []
        self.vouchers: deque[Ware] = deque()
        self.purchases: list[Purchase] = []

    async def stock(self) -> None:
        """Has an operator issue cards and vouchers to each of many users, who live in both databases."""
        card_terms = batch_pb2.BatchTerms(gift_card=batch_pb2.GiftCardTerms(balance=_cny(CARD_BALANCE_MINOR)))
        voucher_terms = batch_pb2.BatchTerms(
            cash_voucher=batch_pb2.CashVoucherTerms(face_value=_cny(VOUCHER_FACE_MINOR))
        )
        async with self.mesh.coupon_channel() as channel:
            card, voucher = await asyncio.gather(
                self._make_batch(channel, card_terms),
                self._make_batch(channel, voucher_terms),
            )
            users = range(7_001, 7_001 + _USERS * 3, 3)
            issued = await asyncio.gather(
                *(self._issue(channel, card, user, _CARDS_PER_USER, is_card=True) for user in users)
            )
            self.cards = _in_turn(issued)
            issued = await asyncio.gather(
                *(self._issue(channel, voucher, user, _VOUCHERS_PER_USER, is_card=False) for user in users)
            )
        for number, ware in enumerate(_in_turn(issued)):
            self.vouchers.extend([ware, ware] if number % _RIVALS_EVERY == 0 else [ware])

    async def _make_batch(self, channel: grpc.aio.Channel, terms: batch_pb2.BatchTerms) -> str:
        terms.expires_at.CopyFrom(_in_a_year())
        request = batch_service_pb2.CreateBatchRequest(request_id=uuid.uuid4().hex, name="chaos", terms=terms)
        reply = await BatchServiceStub(channel).CreateBatch(
            request, timeout=10, metadata=self.mesh.identity("operator", client="office")
        )
        return str(reply.batch.batch_id)

    async def _issue(
        self, channel: grpc.aio.Channel, batch_id: str, user_id: int, quantity: int, *, is_card: bool
    ) -> list[Ware]:
        request = coupon_service_pb2.IssueCouponsRequest(
            request_id=uuid.uuid4().hex, batch_id=batch_id, user_id=user_id, quantity=quantity
        )
        reply = await CouponServiceStub(channel).IssueCoupons(
            request, timeout=20, metadata=self.mesh.identity("operator", client="office")
        )
        return [Ware(coupon.coupon_id, coupon.code, user_id, is_card) for coupon in reply.coupons]


class Cashiers:
    """The stream itself, with what its callers saw.

    Attributes:
        attempts: every call that came back, in order.
        purchases: what was bought or tried.
    """

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._stubs: list[CouponServiceStub] = []
        self._open: Counter[int] = Counter()
        self._closing = False
        self._changed = asyncio.Event()
        self.attempts: list[Attempt] = []
        self.purchases: list[Purchase] = []

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They work while the block runs; in the end each purchase is brought to a definite answer."""
        async with AsyncExitStack() as channels:
            for target in self._shop.mesh.coupon_targets:
                channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
                self._stubs.append(CouponServiceStub(await channels.enter_async_context(channel)))
            async with asyncio.timeout(None) as wind_up, asyncio.TaskGroup() as cashiers:
                for number in range(_CASHIERS):
                    cashiers.create_task(self._serve_customers(f"till-{number}"))
                try:
                    yield
                finally:
                    self._closing = True
                    wind_up.reschedule(asyncio.get_running_loop().time() + _WIND_UP_S)

    # --- looking on ---

    async def until(self, condition: Callable[[], bool], what: str, *, within_s: float = 10.0) -> float:
        """Waits for a condition that a returning call may fulfil; returns how long it took, in seconds."""
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            seen = self.seen(since_s=started_s)
            raise AssertionError(f"{what}: not within {within_s:g} s; meanwhile callers saw {dict(seen)}") from None
        return time.monotonic() - started_s

    async def until_flowing(self, count: int = 100, *, within_s: float = 10.0) -> float:
        """Waits until this many more calls succeeded, begun from now on; returns how long the first one took."""
        now_s = time.monotonic()
        await self.until(
            lambda: (
                sum(each.succeeded and each.started_s >= now_s for each in reversed(self.attempts[-4 * count :]))
                >= count
            ),
            f"{count} successes",
            within_s=within_s,
        )
        return self.first_success_s(since_s=now_s) - now_s

    def since(self, since_s: float, until_s: float = float("inf")) -> Iterator[Attempt]:
        """What was answered in a period."""
        return (each for each in self.attempts if since_s <= each.ended_s <= until_s)

    def seen(self, *, since_s: float = 0.0, until_s: float = float("inf")) -> Counter[str]:
        """How often callers saw each status in a period, as "STATUS/REASON"."""
        return Counter(each.name for each in self.since(since_s, until_s))

    def first_success_s(self, *, since_s: float) -> float:
        """When the first call succeeded from a moment on; infinite when none did."""
        return min((each.ended_s for each in self.since(since_s) if each.succeeded), default=float("inf"))

    def longest_silence_s(self, since_s: float, until_s: float, *, replica: int | None = None) -> float:
        """The longest time without any success within a period, at all replicas or at one (from 0)."""
        successes = (each for each in self.since(since_s, until_s) if each.succeeded)
        moments = [since_s, *(each.ended_s for each in successes if replica in (None, each.replica)), until_s]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))

    def in_flight(self, replica: int | None = None) -> int:
        """Calls that have no answer yet, of all replicas or of one (from 0)."""
        return self._open.total() if replica is None else self._open[replica]

    # --- in the end ---

    def found_by_a_retry(self) -> int:
        """Purchases whose success was done before the attempt that told of it began: a replay, not a second effect."""
        wall_s = time.time() - time.monotonic()
        return sum(
            each.reply.transaction.consume_time.ToMilliseconds() / 1000 < wall_s + each.attempts[-1].started_s
            for each in self.purchases
            if each.reply is not None and len(each.attempts) > 1
        )

    def assert_saw_only(self, *faults: str) -> None:
        """Callers saw nothing but success, these faults, and what happens on the best of days."""
        usual = {"OK", HASTY, LATE_RIVAL, BUSY}
        assert set(self.seen()) <= usual | set(faults), f"callers saw {dict(self.seen())}"

    def report(self, title: str, **seconds: float) -> None:
        """Logs what was measured."""
        repeated = sum(len(purchase.attempts) > 1 for purchase in self.purchases)
        times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        _log.info(
            "%s: %s; %d purchases, %d of them repeated, %d of those found done; %s",
            title,
            times,
            len(self.purchases),
            repeated,
            self.found_by_a_retry(),
            dict(self.seen()),
        )

    # --- working ---

    async def _serve_customers(self, till: str) -> None:
        while not self._closing:
            purchase = self._next_purchase(till)
            self.purchases.append(purchase)
            self._shop.purchases.append(purchase)
            await self._bring_to_an_answer(purchase)
            # The customers' pace, not a wait for something to happen.
            await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))

    def _next_purchase(self, till: str) -> Purchase:
        draw = random.random()
        if draw < 0.25 and self._shop.vouchers:
            ware, amount_minor = (
                self._shop.vouchers.popleft(),
                random.randint(VOUCHER_FACE_MINOR, 2 * VOUCHER_FACE_MINOR),
            )
        else:
            cards = self._shop.cards
            ware = random.choice(cards[:_HOT_CARDS] if random.random() < _HOT_SHARE else cards)
            low, high = (1, SMALL_MAX_MINOR // 4) if draw < 0.92 else (SMALL_MAX_MINOR + 1, LARGE_MAX_MINOR)
            amount_minor = random.randint(low, high)
        address = random.randrange(_ADDRESSES)
        request = coupon_service_pb2.ConsumeCouponRequest(
            request_id=uuid.uuid4().hex,
            merchant_id=str(10_000 + random.randrange(_MERCHANTS)),
            order_id=uuid.uuid4().hex,
            amount=_cny(amount_minor),
            client=client_context_pb2.ClientContext(ip=f"10.1.{address // 250}.{address % 250 + 1}", channel="APP"),
        )
        if random.random() < 0.3:
            request.code = ware.code
        else:
            request.coupon_id = ware.coupon_id
        return Purchase(till, ware, request)

    async def _bring_to_an_answer(self, purchase: Purchase) -> None:
        """Calls the till's own replica, then each in turn as long as the status says that this may help."""
        home = int(purchase.till.partition("-")[2]) % len(self._stubs)
        hasty = random.random() < _HASTY_SHARE
        for number in range(_ATTEMPTS_MAX):
            retry_s = await self._attempt(purchase, (home + number) % len(self._stubs), hasty=hasty and number == 0)
            if purchase.attempts[-1].status not in RETRYABLE:
                return
            await asyncio.sleep(retry_s * random.uniform(0.5, 1.0))
        raise AssertionError(f"no definite answer after {_ATTEMPTS_MAX} attempts: {purchase.attempts[-5:]}")

    async def _attempt(self, purchase: Purchase, replica: int, *, hasty: bool) -> float:
        """Calls once and notes what came; returns after how many seconds the server wants to see it again."""
        started_s = time.monotonic()
        self._open[replica] += 1
        status, reason, retry_s, held = "OK", "", _DEFAULT_RETRY_S, False
        try:
            reply = await self._stubs[replica].ConsumeCoupon(
                purchase.request,
                timeout=_HASTY_TIMEOUT_S if hasty else _ATTEMPT_TIMEOUT_S,
                metadata=self._shop.mesh.identity(
                    "cashier", merchant=purchase.request.merchant_id, client=purchase.till
                ),
            )
        except grpc.aio.AioRpcError as error:
            status, reason, retry_s = _read(error)
            if hasty and status == "DEADLINE_EXCEEDED":
                reason = "hasty"
        else:
            purchase.reply, held = reply, reply.transaction.settlement_held
        finally:
            self._open[replica] -= 1
        attempt = Attempt(replica, started_s, time.monotonic(), status, reason, purchase.large, held)
        self.attempts.append(attempt)
        purchase.attempts.append(attempt)
        self._changed.set()
        return retry_s


def _read(error: grpc.aio.AioRpcError) -> tuple[str, str, float]:
    """Status, reason and retry delay of an error; a client library's own errors have no reason."""
    reason, retry_s = "", _DEFAULT_RETRY_S
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    trailers: Any = error.trailing_metadata() or ()
    for key, value in trailers:
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(retry):
                retry_s = retry.retry_delay.ToMilliseconds() / 1000
    return error.code().name, reason, retry_s


def _in_turn(issued: Sequence[Sequence[Ware]]) -> list[Ware]:
    """One coupon of each user, then the next one of each."""
    return [*itertools.chain.from_iterable(zip(*issued, strict=True))]


def _cny(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(currency_code="CNY", amount_minor=amount_minor)


def _in_a_year() -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC).replace(microsecond=0) + timedelta(days=365))
    return moment
