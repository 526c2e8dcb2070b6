"""What tests of the coupon service act with: its processes, callers, users, batches and coupons of a test's own."""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from couponmesh.coupon.v1 import (
    batch_pb2,
    batch_service_pb2,
    cashier_service_pb2,
    coupon_service_pb2,
)
from couponmesh.type.v1 import money_pb2
from meshctl.stack import ports
from meshctl.stack.services import Service
from meshkit.channel import OPTIONS
from tests.harness.stack import PrivateStack
from tests.integration.coupon.books import Books

SHARDS = 128
Found = TypeVar("Found")

_RPCS: dict[type[Message], tuple[str, type[Message]]] = {
    GetMessageClass(method.input_type): (f"/{service.full_name}/{method.name}", GetMessageClass(method.output_type))
    for file in (batch_service_pb2, coupon_service_pb2, cashier_service_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def yuan(amount: str) -> money_pb2.Money:
    """Money of exactly this many yuan: "1.00"."""
    return money_pb2.Money(currency_code="CNY", amount_minor=int(Decimal(amount) * 100))


def request_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Caller:
    """Who calls, as the edge would put it."""

    client_id: str
    roles: tuple[str, ...]
    merchant_id: str = ""
    subject: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return PrivateStack.identity(
            ",".join(self.roles), merchant=self.merchant_id, user=self.subject, client=self.client_id
        )


@dataclass(frozen=True)
class Refusal:
    """What a caller is told when a call is refused; messages are by locale."""

    code: grpc.StatusCode
    reason: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None
    fields: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Refusal:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError has what it reads of a call
        found = cls(error.code(), "")
        for detail in status.details if status is not None else ():
            for kind in (
                error_details_pb2.ErrorInfo,
                error_details_pb2.LocalizedMessage,
                error_details_pb2.RetryInfo,
                error_details_pb2.BadRequest,
            ):
                if detail.Is(kind.DESCRIPTOR):
                    message = kind()
                    detail.Unpack(message)
                    found = found._with(message)
        return found

    def _with(self, detail: Any) -> Refusal:
        match detail:
            case error_details_pb2.ErrorInfo():
                assert detail.domain == "couponmesh"
                return replace(self, reason=detail.reason, metadata=dict(detail.metadata))
            case error_details_pb2.LocalizedMessage():
                return replace(self, messages={**self.messages, detail.locale: detail.message})
            case error_details_pb2.RetryInfo():
                return replace(self, retry_after_ms=detail.retry_delay.ToMilliseconds())
            case _:
                return replace(self, fields=tuple(violation.field for violation in detail.field_violations))


async def refusal(call: Awaitable[object]) -> Refusal:
    """How a call was refused; fails when it was answered."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError(f"the call was not refused: {reply}")


async def outcomes(calls: Iterable[Awaitable[object]]) -> list[object]:
    """What each of several concurrent calls came to, in order: its reply or its Refusal."""
    return [
        Refusal.of(result) if isinstance(result, grpc.aio.AioRpcError) else _no_defect(result)
        for result in await asyncio.gather(*calls, return_exceptions=True)
    ]


def tally(results: Iterable[object]) -> Counter[str]:
    """How often each reason was given; replies count as "OK"."""
    return Counter(result.reason if isinstance(result, Refusal) else "OK" for result in results)


def _no_defect(result: object) -> object:
    if isinstance(result, BaseException):
        raise result
    return result


async def eventually(look: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
    """What `look` gives, or what it gives to await, as soon as that is true; fails when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        found = await seen if isinstance(seen, Awaitable) else seen
        if found:
            return found
        assert time.monotonic() < deadline, "what was waited for did not happen"
        await asyncio.sleep(0.01)


async def until_answered(call: Callable[[], Awaitable[Found]], *, tries: int = 100) -> Found:
    """The reply of a call that is made again, by the same request_id, while it is ABORTED."""
    for _ in range(tries):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED:
                raise
            # What the reply asks for, 100 ms, is enough for a person; a test need not be that polite.
            await asyncio.sleep(0.01)
    raise AssertionError(f"still ABORTED after {tries} tries")


@dataclass(frozen=True)
class OwnedCoupon:
    """A coupon that was issued for a test."""

    coupon_id: str
    code: str
    user_id: int
    batch_id: str

    @property
    def shard(self) -> int:
        return int(self.coupon_id) % SHARDS


class CouponProcess:
    """One coupon_svc as its callers see it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        # A pool of its own: two channels to one address would share a connection.
        self.channel: Any = grpc.aio.insecure_channel(
            service.endpoint, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        )

    async def call(
        self, request: Message, by: Caller, *, timeout_s: float = 15.0, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        """The reply to a request; the request's type says which RPC it is for."""
        reply_type = _RPCS[type(request)][1]
        return reply_type.FromString(await self.call_bytes(request, by, timeout_s=timeout_s, metadata=metadata))

    async def call_bytes(
        self, request: Message, by: Caller, *, timeout_s: float = 15.0, metadata: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        """The reply as it came over the wire."""
        raw = request.SerializeToString()
        return await self.call_raw(type(request), raw, (*by.metadata, *metadata), timeout_s=timeout_s)

    async def call_raw(
        self, request_type: type[Message], raw: bytes, metadata: tuple[tuple[str, str], ...], *, timeout_s: float = 15.0
    ) -> bytes:
        """Sends bytes as they are."""
        rpc = self.channel.unary_unary(_RPCS[request_type][0])
        reply: bytes = await rpc(raw, metadata=metadata, timeout=timeout_s)
        return reply

    async def consume(
        self, coupon: OwnedCoupon | str, amount: str, by: Caller, request: str = "", **fields: Any
    ) -> coupon_service_pb2.ConsumeCouponResponse:
        """ConsumeCoupon by the coupon's id, at the caller's own merchant."""
        reply: coupon_service_pb2.ConsumeCouponResponse = await self.call(
            consume_request(coupon, amount, by, request, **fields), by
        )
        return reply

    async def metrics(self) -> Mapping[str, float]:
        """Samples by name; those that have labels as `name{label=value,…}` as well, summed under the bare name."""
        text = await asyncio.to_thread(_read, self.service.metrics_url)
        found: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] += sample.value
                if sample.labels:
                    labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                    found[f"{sample.name}{{{labels}}}"] += sample.value
        return found

    async def until_in_flight(self, calls: int) -> None:
        """Waits until this many calls are being served."""

        async def reached() -> bool:
            return (await self.metrics())["mesh_rpc_in_flight"] == calls

        await eventually(reached)

    @asynccontextmanager
    async def observed(self) -> AsyncIterator[Mapping[str, float]]:
        """By how much each metric rose within the block; the mapping is filled when the block ends."""
        before = await self.metrics()
        rise: defaultdict[str, float] = defaultdict(float)
        yield rise
        after = await self.metrics()
        rise.update({name: after[name] - before[name] for name in after})

    async def close(self) -> None:
        await self.channel.close()


def consume_request(
    coupon: OwnedCoupon | str, amount: str, by: Caller, request: str = "", **fields: Any
) -> coupon_service_pb2.ConsumeCouponRequest:
    return coupon_service_pb2.ConsumeCouponRequest(
        request_id=request or request_id(),
        coupon_id=coupon if isinstance(coupon, str) else coupon.coupon_id,
        merchant_id=by.merchant_id,
        amount=yuan(amount),
        **fields,
    )


GROUPS, GROUPED = "coupon_consume_group_size_count", "coupon_consume_group_size_sum"
CONTENDED = "coupon_lock_keys_total{event=contended}"


class World:
    """Two coupon_svc over two databases, and fresh names for everything a test makes.

    Attributes:
        stack: All real parts.
        one, two: The coupon processes.
        books: What the databases hold.
    """

    def __init__(self, stack: PrivateStack) -> None:
        self.stack = stack
        self.books = Books(stack)
        self.one, self.two = (CouponProcess(service) for service in stack.local.replicas_of("coupon"))
        self._numbers = itertools.count(1)

    @property
    def both(self) -> tuple[CouponProcess, CouponProcess]:
        return self.one, self.two

    async def close(self) -> None:
        await asyncio.gather(self.one.close(), self.two.close())
        self.books.close()

    # --- who ---

    def operator(self, client_id: str = "") -> Caller:
        return Caller(client_id or f"operator-{next(self._numbers)}", ("operator",))

    def cashier(self, merchant_id: str = "") -> Caller:
        number = next(self._numbers)
        return Caller(f"till-{number}", ("cashier",), merchant_id=merchant_id or f"merchant-{number}")

    def user(self, shard: int | None = None) -> int:
        """A user nobody knows yet; without a shard, users spread over all of them."""
        number = next(self._numbers)
        return SHARDS * number + (number * 37 % SHARDS if shard is None else shard)

    # --- what ---

    async def batch(self, terms: batch_pb2.BatchTerms, **fields: Any) -> str:
        reply = await self.one.call(
            batch_service_pb2.CreateBatchRequest(request_id=request_id(), name="a batch", terms=terms, **fields),
            self.operator(),
        )
        return str(reply.batch.batch_id)

    async def issue(self, batch_id: str, user_id: int, quantity: int = 1) -> list[OwnedCoupon]:
        reply = await self.one.call(
            coupon_service_pb2.IssueCouponsRequest(
                request_id=request_id(), batch_id=batch_id, user_id=user_id, quantity=quantity
            ),
            self.operator(),
        )
        return [OwnedCoupon(coupon.coupon_id, coupon.code, user_id, batch_id) for coupon in reply.coupons]

    async def codes(self, batch_id: str, quantity: int = 1) -> list[coupon_service_pb2.IssuedCoupon]:
        """Unactivated codes; all of one call lie in one shard."""
        reply = await self.one.call(
            coupon_service_pb2.IssueCouponsRequest(request_id=request_id(), batch_id=batch_id, quantity=quantity),
            self.operator(),
        )
        return list(reply.coupons)

    async def coupon(self, terms: batch_pb2.BatchTerms, *, shard: int | None = None) -> OwnedCoupon:
        """A coupon of a batch and a user of its own."""
        (coupon,) = await self.issue(await self.batch(terms), self.user(shard))
        return coupon

    async def cards(self, count: int, *, shard: int | None = None, balance: str = "100.00") -> list[OwnedCoupon]:
        """Gift cards of one batch, each with a user of its own."""
        batch_id = await self.batch(gift_card(balance))
        issued = await asyncio.gather(*(self.issue(batch_id, self.user(shard)) for _ in range(count)))
        return [coupon for (coupon,) in issued]

    async def card(self, *, shard: int | None = None, balance: str = "100.00") -> OwnedCoupon:
        (card,) = await self.cards(1, shard=shard, balance=balance)
        return card

    async def block(self, batch_id: str, scope: batch_pb2.BlockScope.ValueType) -> None:
        await self.one.call(
            batch_service_pb2.BlockBatchRequest(request_id=request_id(), batch_id=batch_id, block_scope=scope),
            self.operator(),
        )

    # --- processes ---

    async def known_to(self, process: CouponProcess, coupons: Iterable[OwnedCoupon]) -> None:
        """Lets a process look coupons up, so that a consume of one joins a group without any query before it."""
        by = self.operator()
        await asyncio.gather(
            *(process.call(coupon_service_pb2.GetCouponRequest(coupon_id=coupon.coupon_id), by) for coupon in coupons)
        )

    @asynccontextmanager
    async def group_at_work(
        self, process: CouponProcess, shard: int, *, card: OwnedCoupon | None = None
    ) -> AsyncIterator[None]:
        """Keeps a group of one database at work, one consume strong: what arrives in the block makes up the next.

        The consume is of a card of its own, or of one that was made before.
        """
        card = card or await self.card(shard=shard)
        with self.books.coupon_held(card.coupon_id):
            alone = asyncio.ensure_future(process.consume(card, "1.00", self.cashier()))
            await self.books.until_waiting(card.coupon_id)
            yield
        await alone

    @asynccontextmanager
    async def further_process(self, **settings: str) -> AsyncIterator[CouponProcess]:
        """A third coupon_svc with settings of its own, for as long as the block runs."""
        template = self.stack.local.replicas_of("coupon")[0]
        chosen = ports.choose(["grpc", "metrics"], asked={}, preferred={}, last={})
        service = Service(
            self.stack.local.layout,
            "coupon",
            next(self._numbers) + 100,
            port=chosen["grpc"],
            metrics_port=chosen["metrics"],
            surroundings=template._surroundings,
            settings={**template.settings, **settings},
        )
        process = CouponProcess(service)
        try:
            await asyncio.to_thread(_start, service)
            yield process
        finally:
            await process.close()
            service.kill()


def _start(service: Service) -> None:
    service.launch()
    service.wait_ready()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as reply:
        return str(reply.read().decode())


# --- terms ---


def gift_card(balance: str = "100.00", **period: Any) -> batch_pb2.BatchTerms:
    return _terms(batch_pb2.BatchTerms(gift_card=batch_pb2.GiftCardTerms(balance=yuan(balance))), **period)


def discount(rate: str, *, cap: str = "", minimum: str = "", **period: Any) -> batch_pb2.BatchTerms:
    kind = batch_pb2.DiscountTerms(discount_rate=rate)
    if cap:
        kind.max_deduction.CopyFrom(yuan(cap))
    if minimum:
        kind.min_amount.CopyFrom(yuan(minimum))
    return _terms(batch_pb2.BatchTerms(discount=kind), **period)


def threshold(minimum: str, reduce: str, **period: Any) -> batch_pb2.BatchTerms:
    kind = batch_pb2.ThresholdTerms(min_amount=yuan(minimum), reduce=yuan(reduce))
    return _terms(batch_pb2.BatchTerms(threshold=kind), **period)


def cash_voucher(face_value: str, *, minimum: str = "", **period: Any) -> batch_pb2.BatchTerms:
    kind = batch_pb2.CashVoucherTerms(face_value=yuan(face_value))
    if minimum:
        kind.min_amount.CopyFrom(yuan(minimum))
    return _terms(batch_pb2.BatchTerms(cash_voucher=kind), **period)


def _terms(terms: batch_pb2.BatchTerms, *, valid_from: str = "", merchants: Sequence[str] = ()) -> batch_pb2.BatchTerms:
    terms.expires_at.FromJsonString("2099-01-01T00:00:00Z")
    if valid_from:
        terms.valid_from.FromJsonString(valid_from)
    terms.merchant_ids.extend(merchants)
    return terms
