"""The composition of coupon_svc: the only place that builds its real adapters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from coupon_svc.adapters.code_book import KeyedCodeBook
from coupon_svc.adapters.mysql_accounts import MysqlAccounts
from coupon_svc.adapters.mysql_audit import MysqlAuditStore
from coupon_svc.adapters.mysql_caps import MysqlCaps
from coupon_svc.adapters.mysql_expiry import MysqlDueCoupons
from coupon_svc.adapters.mysql_recall import MysqlRecalls
from coupon_svc.adapters.mysql_refunds import MysqlRefunds
from coupon_svc.adapters.mysql_reservations import MysqlReservations
from coupon_svc.adapters.mysql_store import MysqlStore
from coupon_svc.adapters.risk_client import GrpcRiskGate
from coupon_svc.adapters.root_files import RootFiles
from coupon_svc.app.activate import ActivateCoupon
from coupon_svc.app.anchor_roots import JOB as ROOTS_JOB
from coupon_svc.app.anchor_roots import AnchorRoots
from coupon_svc.app.audit_events import AuditEvents
from coupon_svc.app.batches import BatchCache, Batches
from coupon_svc.app.cancel import CancelReservation
from coupon_svc.app.caps import CapKeeper
from coupon_svc.app.confirm import ConfirmReservation
from coupon_svc.app.consume import ConsumeCoupon, ConsumeLimits
from coupon_svc.app.directory import CouponDirectory
from coupon_svc.app.expiry import ExpirySweep
from coupon_svc.app.freezing import Freezing
from coupon_svc.app.giving_back import GiveBack
from coupon_svc.app.hold_sweep import JOB as HOLD_SWEEP
from coupon_svc.app.hold_sweep import HoldSweep
from coupon_svc.app.import_codes import ImportCodes
from coupon_svc.app.issue import IssueCoupons
from coupon_svc.app.minting import Mint
from coupon_svc.app.purge import PurgeRecords
from coupon_svc.app.quoting import Quoting
from coupon_svc.app.reading import Reading
from coupon_svc.app.recall import RecallBatch, RecallSweep
from coupon_svc.app.refunds import Refunds
from coupon_svc.app.reserve import ReserveCoupons
from coupon_svc.app.reverse import ReverseTransaction
from coupon_svc.app.sweeping import Sweeping
from coupon_svc.app.verify_audit import VerifyAuditTrail
from coupon_svc.config import CouponConfig
from coupon_svc.servicer.batch_service import BatchServicer
from coupon_svc.servicer.cashier_service import CashierServicer
from coupon_svc.servicer.coupon_service import CouponServicer, CouponUseCases
from coupon_svc.servicer.requests import CallReader
from coupon_svc.servicer.reservations import ReservationUseCases
from couponmesh.coupon.v1.batch_service_pb2_grpc import add_BatchServiceServicer_to_server
from couponmesh.coupon.v1.cashier_service_pb2_grpc import add_CashierServiceServicer_to_server
from couponmesh.coupon.v1.coupon_service_pb2_grpc import add_CouponServiceServicer_to_server
from meshkit.channel import open_channel
from meshkit.codes import CodeFormat
from meshkit.crypto import Keyring
from meshkit.leader import Election
from meshkit.locks import RedisLocks
from meshkit.mysql import Databases
from meshkit.placement import open_migrated, read_shard_map
from meshkit.redis_client import open_redis
from meshkit.server import ServiceBinding
from meshkit.signing import SigningKeys
from meshkit.telemetry import Telemetry
from meshkit.worker_lease import WorkerLease
from meshkit.zk import ZooKeeper

GROUP_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


@asynccontextmanager
async def build(config: CouponConfig, telemetry: Telemetry) -> AsyncIterator[Sequence[ServiceBinding]]:
    """Builds the service and closes what it opened, last opened first."""
    async with AsyncExitStack() as stack:
        zookeeper = await stack.enter_async_context(ZooKeeper(config.zookeeper))
        lease = await stack.enter_async_context(await WorkerLease.open(zookeeper, config.zookeeper_root))
        shard_map = await read_shard_map(zookeeper, config.zookeeper_root, "coupon", config.shard_map_file)
        databases = await stack.enter_async_context(
            open_migrated(shard_map, "coupon_svc", pool_size=config.mysql_pool_size)
        )
        redis = open_redis(config.redis_locks_url.get_secret_value(), timeout_s=config.lock_timeout_ms / 1000)
        stack.push_async_callback(redis.aclose)
        lock_events = telemetry.counter("coupon_lock_keys_total", "Coupon locks by what happened.", ["event"])
        locks = await stack.enter_async_context(
            RedisLocks(
                redis,
                lease_ms=config.lock_lease_ms,
                timeout_s=config.lock_timeout_ms / 1000,
                on_event=lambda event, keys: lock_events.labels(event.value).inc(keys),
            )
        )
        channel = await stack.enter_async_context(open_channel(config.risk_target, config.service_name, telemetry))
        absences = telemetry.counter("coupon_risk_absent_total", "Calls to risk_svc that were not answered in time.")
        risk = GrpcRiskGate(channel, deadline_s=config.risk_deadline_ms / 1000, observe_absence=absences.inc)

        store = MysqlStore(
            databases,
            timeout_s=config.mysql_timeout_ms / 1000,
            record_retention_days=config.record_retention_days,
        )
        await store.learn_epochs()
        codes = KeyedCodeBook(
            CodeFormat(bytes.fromhex(config.code_key.get_secret_value())),
            Keyring.parse(config.code_keyring.get_secret_value()),
        )
        audit = Keyring.parse(config.audit_keyring.get_secret_value())
        groups = telemetry.histogram(
            "coupon_consume_group_size", "Consumes that shared a transaction.", buckets=GROUP_SIZE_BUCKETS
        )

        def sign(data: bytes) -> tuple[str, bytes]:
            return audit.mac("coupon-journal", data)

        clock, ids = _now_ms, lease.ids
        mint = Mint(codes, sign)
        batches = BatchCache(store, clock)
        directory = CouponDirectory(store, codes, risk, clock)
        stack.push_async_callback(directory.close)
        timeout_s = config.mysql_timeout_ms / 1000
        caps = CapKeeper(store, MysqlCaps(databases, timeout_s=timeout_s), clock)
        consume = ConsumeCoupon(
            store=store,
            batches=batches,
            caps=caps,
            locks=locks,
            risk=risk,
            ids=ids,
            sign=sign,
            clock=clock,
            limits=ConsumeLimits(
                max_group=config.max_group,
                max_in_flight=config.groups_in_flight,
                max_waiting=config.max_waiting,
                accept_without_risk_minor=config.accept_without_risk_minor,
            ),
            observe_group=groups.observe,
        )
        stack.push_async_callback(consume.close)
        purged = telemetry.counter("coupon_records_purged_total", "Request records removed after their retention.")
        purge = PurgeRecords(store, clock, every_s=config.purge_every_s, observe=purged.inc)
        await stack.enter_async_context(_background(purge.run(), name="purge-records"))
        reservations = MysqlReservations(store, timeout_s=config.mysql_timeout_ms / 1000)
        released = telemetry.counter("coupon_holds_released_total", "Holds released after their time was over.")
        hold_sweep = HoldSweep(
            store=reservations, sign=sign, clock=clock, every_s=config.hold_sweep_every_s, observe=released.inc
        )
        election = Election(zookeeper, config.zookeeper_root, HOLD_SWEEP, identity=config.listen)
        await stack.enter_async_context(_background(election.run(hold_sweep.run), name=HOLD_SWEEP))
        recalls = MysqlRecalls(databases, timeout_s=timeout_s)
        recall = RecallBatch(store=store, recalls=recalls, batches=batches, sign=sign, clock=clock)
        swept = telemetry.counter("coupon_swept_total", "Coupons that a sweep ended, by sweep.", ["sweep"])
        expiry_sweep = ExpirySweep(
            store,
            MysqlDueCoupons(databases, timeout_s=timeout_s),
            sign,
            clock,
            observe=lambda coupons: swept.labels("expiry").inc(coupons),
        )
        recall_sweep = RecallSweep(
            store=store,
            recalls=recalls,
            batches=batches,
            sign=sign,
            clock=clock,
            settle_ms=round(config.recall_settle_s * 1000),
            observe=lambda coupons: swept.labels("recall").inc(coupons),
        )
        for name, run_once, every_s in (
            ("expiry", expiry_sweep.run_once, config.expiry_every_s),
            ("recall", recall_sweep.run_once, config.recall_every_s),
        ):
            sweeping = Sweeping(store.databases, run_once, every_s=every_s)
            election = Election(zookeeper, config.zookeeper_root, f"coupon-{name}", identity=config.listen)
            await stack.enter_async_context(_background(election.run(sweeping.run), name=f"sweep-{name}"))
        refund_book = MysqlRefunds(databases, timeout_s=config.mysql_timeout_ms / 1000)
        audits = await stack.enter_async_context(_auditing(config, telemetry, databases, zookeeper))
        calls = CallReader(config.trusted_context_clients)
        use_cases = CouponUseCases(
            directory=directory,
            issue=IssueCoupons(store=store, batches=batches, mint=mint, codes=codes, ids=ids, clock=clock),
            import_codes=ImportCodes(
                store=store, directory=directory, batches=batches, mint=mint, codes=codes, ids=ids, clock=clock
            ),
            activate=ActivateCoupon(
                store=store,
                directory=directory,
                batches=batches,
                mint=mint,
                codes=codes,
                ids=ids,
                sign=sign,
                clock=clock,
            ),
            consume=consume,
            reservations=ReservationUseCases(
                reserve=ReserveCoupons(
                    store=reservations,
                    coupons=store,
                    batches=batches,
                    caps=caps,
                    risk=risk,
                    sign=sign,
                    clock=clock,
                    accept_without_risk_minor=config.accept_without_risk_minor,
                ),
                confirm=ConfirmReservation(
                    store=reservations, batches=batches, caps=caps, ids=ids, sign=sign, clock=clock
                ),
                cancel=CancelReservation(store=reservations, sign=sign, clock=clock),
                reverse=ReverseTransaction(store=reservations, batches=batches, caps=caps, sign=sign, clock=clock),
            ),
            reading=Reading(store=store, directory=directory, batches=batches, caps=caps, codes=codes, clock=clock),
            freezing=Freezing(
                store=store,
                accounts=MysqlAccounts(),
                directory=directory,
                batches=batches,
                codes=codes,
                sign=sign,
                clock=clock,
            ),
            quoting=Quoting(store=store, directory=directory, batches=batches, caps=caps, clock=clock),
            refunds=Refunds(
                store=store,
                book=refund_book,
                directory=directory,
                batches=batches,
                give_back=GiveBack(
                    book=refund_book, caps=caps, mint=mint, codes=codes, ids=ids, sign=sign, clock=clock
                ),
                clock=clock,
            ),
            audit_events=AuditEvents(store, audits.store),
            verify_audit=audits.verify,
        )
        yield [
            ServiceBinding(
                full_name="couponmesh.coupon.v1.BatchService",
                register=add_BatchServiceServicer_to_server,
                servicer=BatchServicer(Batches(store, batches, ids, sign, clock), recall, calls),
            ),
            ServiceBinding(
                full_name="couponmesh.coupon.v1.CouponService",
                register=add_CouponServiceServicer_to_server,
                servicer=CouponServicer(use_cases, calls),
            ),
            ServiceBinding(
                full_name="couponmesh.coupon.v1.CashierService",
                register=add_CashierServiceServicer_to_server,
                servicer=CashierServicer(directory, consume, calls),
            ),
        ]


class _Audits(NamedTuple):
    """What reads and verifies the journal."""

    store: MysqlAuditStore
    verify: VerifyAuditTrail


@asynccontextmanager
async def _auditing(
    config: CouponConfig, telemetry: Telemetry, databases: Databases, zookeeper: ZooKeeper
) -> AsyncIterator[_Audits]:
    """Audits; within the block, one process of all signs roots, unless there is no key to sign with."""
    store = MysqlAuditStore(databases, timeout_s=config.audit_timeout_ms / 1000)
    journal_keys = Keyring.parse(config.audit_keyring.get_secret_value())

    def macs(data: bytes) -> Sequence[tuple[str, bytes]]:
        return journal_keys.macs("coupon-journal", data)

    if config.audit_signing_keys is None:
        yield _Audits(store, VerifyAuditTrail(store, macs))
        return
    keys = SigningKeys.parse(config.audit_signing_keys.get_secret_value())
    folder = config.audit_roots_dir
    archive = None if folder is None else RootFiles(folder, keys.public_bytes)
    anchored = telemetry.counter("coupon_roots_leaves_total", "Heads of chains over which roots were signed.")
    anchor = AnchorRoots(
        store, keys.sign, _now_ms, archive=archive, every_s=config.audit_root_every_s, observe=anchored.inc
    )
    election = Election(zookeeper, config.zookeeper_root, ROOTS_JOB, identity=config.listen)
    async with _background(election.run(anchor.run), name=ROOTS_JOB):
        yield _Audits(store, VerifyAuditTrail(store, macs, verify_root=keys.verify, archive=archive))


@asynccontextmanager
async def _background(work: Coroutine[None, None, None], *, name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
