"""The whole local stack: which parts it has, in which order they start and stop, and how each is doing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock

from meshctl.stack import databases, ports, services, state
from meshctl.stack.component import Component
from meshctl.stack.databases import Migrated
from meshctl.stack.envoy import Envoy
from meshctl.stack.failures import NotReady, StackError, StartAborted
from meshctl.stack.layout import Layout
from meshctl.stack.mariadb import MariaDB, MariaDBSizes
from meshctl.stack.packages import Programs, find_programs
from meshctl.stack.process import ProcessId, identify
from meshctl.stack.redis import LOCKS_DATABASE, RISK_DATABASE, Redis
from meshctl.stack.secret_files import Secrets
from meshctl.stack.services import Service, Surroundings
from meshctl.stack.state import StackState
from meshctl.stack.zookeeper import ROOT, ZooKeeperServer
from meshkit.shard_map import ShardMap

HTTPS_PORT = 8443
REPLICAS_MAX = 8
_LAST_LINE_MAX = 200
DATABASES_STEP = "databases"
"""The name under which the observer hears of shard maps and migrations."""

Observer = Callable[[str, str, str], None]
"""Hears (component, step, detail); called from several threads. Steps: starting, ready, failed, stopping, stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """What a stack may be told at its start.

    Attributes:
        replicas: processes of a service, by service; one where it is not named.
        ports: ports that must be taken, by listener: "https", "mariadb", "redis", "zookeeper", or a service process
            such as "coupon" or "coupon-2", and its metrics as "coupon.metrics".
        https_port: what the HTTPS listener takes when it is free and none was asked for; None prefers none.
        mariadb: sizes of MariaDB.
        service_settings: environment variables for the services (COUPON_…, RISK_…), which win over the stack's own.
    """

    replicas: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    https_port: int | None = HTTPS_PORT
    mariadb: MariaDBSizes = field(default_factory=MariaDBSizes)
    service_settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Health:
    """How one component is doing.

    Attributes:
        component: its name.
        state: "ok"; "not ready" (the process is there and doesn't serve); "ended".
        detail: what it answered instead.
        pid: its process, None when it ended.
        endpoint: where it listens.
        log: its output.
        last_line: the end of that, cut short; only when it ended.
    """

    component: str
    state: str
    detail: str
    pid: int | None
    endpoint: str
    log: Path
    last_line: str = ""


class LocalStack:
    """All components of one stack.

    Attributes:
        layout: its files.
        mariadb, redis, zookeeper, envoy: the parts.
        services: all service processes, coupon first.
    """

    def __init__(
        self,
        layout: Layout,
        known: StackState,
        *,
        settings: StackSettings | None = None,
        programs: Programs | None = None,
        secrets: Secrets | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Describes a stack and starts nothing; see `plan` and `running`.

        Args:
            layout: its files.
            known: its ports and replicas, and the processes to adopt.
            settings: None for a stack that is only looked at or stopped.
            programs: likewise.
            secrets: likewise.
            observe: hears of each step.
        """
        chosen = settings or StackSettings()
        self.layout = layout
        self._state = known
        self._state_lock = Lock()
        self._observe: Observer = observe or (lambda _component, _step, _detail: None)
        self.mariadb = MariaDB(layout, known.ports["mariadb"], programs, secrets, chosen.mariadb)
        self.redis = Redis(layout, known.ports["redis"], programs)
        self.zookeeper = ZooKeeperServer(layout, known.ports["zookeeper"], programs)
        names = _replicas(known.replicas)
        surroundings = self._surroundings(layout, known.ports, secrets) if secrets is not None else None
        self.services = [
            Service(
                layout,
                service,
                number,
                port=known.ports[name],
                metrics_port=known.ports[f"{name}.metrics"],
                surroundings=surroundings,
                settings=chosen.service_settings,
            )
            for name, (service, number) in names.items()
        ]
        self.envoy = Envoy(
            layout,
            known.ports["https"],
            programs,
            coupon=[service.endpoint for service in self.replicas_of("coupon")],
            risk=[service.endpoint for service in self.replicas_of("risk")],
        )
        for name, process in known.processes.items():
            self.component(name).adopt(process)

    @classmethod
    def plan(cls, mesh: Path, settings: StackSettings, *, observe: Observer | None = None) -> LocalStack:
        """A stack that is ready to be started: folder made, programs found, ports chosen, keys made.

        Raises:
            StackError: packages are missing, a port is in use, or the folder cannot be used.
        """
        programs = find_programs()
        layout = Layout.of(mesh)
        layout.make()
        last = state.read(layout)
        strangers = services.unknown_settings(settings.service_settings)
        if strangers:
            raise StackError(f"no service reads {', '.join(strangers)}; names begin with COUPON_, RISK_ and so on")
        replicas = {name: count for name, count in settings.replicas.items() if count != 1}
        names = [
            "https", "mariadb", "redis", "zookeeper",
            *(name for replica in _replicas(replicas) for name in (replica, f"{replica}.metrics")),
        ]  # fmt: skip
        unknown = sorted(set(settings.ports) - set(names))
        if unknown:
            raise StackError(f"no listener is called {', '.join(unknown)}; there are {', '.join(names)}")
        chosen = ports.choose(
            names,
            asked=settings.ports,
            preferred={} if settings.https_port is None else {"https": settings.https_port},
            last=last.ports,
        )
        return cls(
            layout,
            StackState(replicas=replicas, ports=chosen),
            settings=settings,
            programs=programs,
            secrets=Secrets.ensure(layout),
            observe=observe,
        )

    @classmethod
    def running(cls, mesh: Path, *, observe: Observer | None = None) -> LocalStack | None:
        """The stack that some `meshctl` started here, to be looked at and stopped; None when there is none."""
        layout = Layout.of(mesh)
        known = state.read(layout)
        if known.phase == "down":
            return None
        return cls(layout, known, secrets=Secrets.read(layout), observe=observe)

    @property
    def components(self) -> list[Component]:
        """All parts, stores first, the edge last."""
        return [self.mariadb, self.redis, self.zookeeper, *self.services, self.envoy]

    @property
    def stores(self) -> list[Component]:
        """The parts that keep data."""
        return [self.mariadb, self.redis, self.zookeeper]

    def component(self, name: str) -> Component:
        """The component of this name.

        Raises:
            StackError: there is none.
        """
        for component in self.components:
            if component.name == name:
                return component
        raise StackError(f"no component is called {name}; there are {', '.join(c.name for c in self.components)}")

    def replicas_of(self, service: str) -> list[Service]:
        """The processes of one service, in order."""
        return [process for process in self.services if process.service == service]

    def start(self, *, abort: Event | None = None, owner: ProcessId | None = None) -> None:
        """Starts everything and waits until it serves; whatever goes wrong, nothing is left running.

        Args:
            abort: calls the start off when set.
            owner: the process that stays in front of the stack, so that `meshctl down` can tell it.

        Raises:
            StackError: a part did not start; names it and its log.
            StartAborted: `abort` was set.
        """
        self._change(phase="starting", owner=identify(os.getpid()))
        try:
            self.start_together(self.stores, abort=abort)
            self.set_up_databases()
            self.start_together(self.services, abort=abort)
            self.start_together([self.envoy], abort=abort)
        except BaseException:
            self.stop()
            raise
        self._change(phase="up", owner=owner)

    def start_together(self, components: Sequence[Component], *, abort: Event | None = None) -> None:
        """Starts several at once and waits until all serve.

        Raises:
            StackError: the first fault; the others are no longer waited for, and those that run go on.
            StartAborted: `abort` was set.
        """
        failed = Event()

        def aborted() -> bool:
            return failed.is_set() or (abort is not None and abort.is_set())

        def start(component: Component) -> StackError | None:
            try:
                self.start_one(component, aborted=aborted)
            except StackError as error:
                failed.set()
                return error
            return None

        with ThreadPoolExecutor(max_workers=max(1, len(components)), thread_name_prefix="start") as pool:
            try:
                errors = [error for error in pool.map(start, components) if error is not None]
            except BaseException:
                # A Ctrl-C here must not wait for parts that are still coming up.
                failed.set()
                raise
        # A part whose wait was called off since another failed is not what a person must read about.
        errors.sort(key=lambda error: isinstance(error, StartAborted))
        if errors:
            raise errors[0]

    def start_one(self, component: Component, *, aborted: Callable[[], bool] = lambda: False) -> None:
        """Starts one component and waits until it serves.

        Raises:
            StackError: it doesn't, or runs already.
            StartAborted: `aborted` said so.
        """
        if aborted():
            raise StartAborted("the start was called off")
        self._observe(component.name, "starting", component.endpoint)
        try:
            process = component.launch()
            with self._state_lock:
                self._state = self._state.with_process(component.name, process)
                if self._state.phase == "down":
                    # Parts that are started one by one are something to stop as well.
                    self._state = replace(self._state, phase="starting")
                state.write(self.layout, self._state)
            component.wait_ready(aborted=aborted)
        except StartAborted:
            raise
        except StackError as error:
            self._observe(component.name, "failed", str(error).partition(";")[0])
            raise
        self._observe(component.name, "ready", component.endpoint)

    def set_up_databases(self) -> list[Migrated]:
        """Publishes the shard maps and migrates every database; MariaDB and ZooKeeper serve.

        Raises:
            StackError: it failed.
        """
        self._observe(DATABASES_STEP, "starting", "shard maps and migrations")

        async def set_up() -> list[Migrated]:
            maps = await databases.publish(self.layout, self.mariadb, self.zookeeper.endpoint)
            return await databases.migrate_all(maps)

        # In a thread of its own, since the caller may have an event loop.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="databases") as pool:
            try:
                done = pool.submit(asyncio.run, set_up()).result()
            except StackError as error:
                self._observe(DATABASES_STEP, "failed", str(error))
                raise
        applied = sum(len(entry.applied) for entry in done)
        self._observe(DATABASES_STEP, "ready", f"{len(done)} databases, {applied or 'no'} new migrations")
        return done

    def shard_maps(self) -> dict[str, ShardMap]:
        """The shard map of each service.

        Raises:
            StackError: they were not written yet.
        """
        return databases.read_maps(self.layout)

    def stop(self, *, hurry: Event | None = None) -> None:
        """Stops everything in order: services, Envoy, stores; parts that ended already are no fault.

        Args:
            hurry: when set, what still runs is killed.
        """
        self._change(phase="stopping")
        for group in (self.services, [self.envoy], self.stores):
            running = [component for component in group if component.is_running]
            if running:
                with ThreadPoolExecutor(max_workers=len(running), thread_name_prefix="stop") as pool:
                    list(pool.map(lambda component: self._stop_one(component, hurry), running))
        self._change(phase="down", owner=None, processes={}, ended={})

    def _stop_one(self, component: Component, hurry: Event | None) -> None:
        self._observe(component.name, "stopping", "")
        gently = component.stop(hurry=hurry)
        self._observe(component.name, "stopped", "" if gently else "killed, since it took too long")

    def health(self) -> list[Health]:
        """How each component is doing, asked all at once; takes about a second at most."""
        components = self.components
        with ThreadPoolExecutor(max_workers=len(components), thread_name_prefix="health") as pool:
            return list(pool.map(lambda component: _health(component, self._state.ended), components))

    def endpoints(self) -> dict[str, str]:
        """Where to reach what, for people and programs; holds no secret."""
        return {
            "https": self.envoy.endpoint,
            **{service.name: service.endpoint for service in self.services},
            **{f"{service.name} metrics": service.metrics_url for service in self.services},
            "mariadb": self.mariadb.endpoint,
            "redis": self.redis.endpoint,
            "zookeeper": self.zookeeper.endpoint,
        }

    def note_end(self, component: Component) -> None:
        """Keeps how a component ended, for `meshctl status`, which is no parent of it."""
        self._change(ended={**self._state.ended, component.name: component.exit_description()})

    def _change(self, **changes: object) -> None:
        with self._state_lock:
            self._state = replace(self._state, **changes)  # type: ignore[arg-type]  # each by its field's name
            state.write(self.layout, self._state)

    @staticmethod
    def _surroundings(layout: Layout, chosen: Mapping[str, int], secrets: Secrets) -> Surroundings:
        redis = f"redis://127.0.0.1:{chosen['redis']}"
        return Surroundings(
            zookeeper=f"127.0.0.1:{chosen['zookeeper']}",
            zookeeper_root=ROOT,
            risk_target=f"127.0.0.1:{chosen['risk']}",
            redis_locks_url=f"{redis}/{LOCKS_DATABASE}",
            redis_windows_url=f"{redis}/{RISK_DATABASE}",
            code_key=secrets.code_key,
            code_keyring=secrets.code_keyring,
            audit_keyring=secrets.audit_keyring,
            audit_signing_keys=secrets.audit_signing_keys,
            audit_roots=layout.audit_roots,
            risk_keyring=secrets.risk_keyring,
        )


def _replicas(counts: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Component name of each service process → (service, number from 1).

    Raises:
        StackError: an unknown service, or a count out of range.
    """
    unknown = sorted(set(counts) - set(services.NAMES))
    if unknown:
        raise StackError(f"no service is called {', '.join(unknown)}; there are {', '.join(services.NAMES)}")
    for service, count in counts.items():
        if not 1 <= count <= REPLICAS_MAX:
            raise StackError(f"{service}: from 1 to {REPLICAS_MAX} replicas, not {count}")
    return {
        services.replica_name(service, number): (service, number)
        for service in services.NAMES
        for number in range(1, counts.get(service, 1) + 1)
    }


def _health(component: Component, ended: Mapping[str, str]) -> Health:
    process = component.process
    if process is None or not component.is_running:
        how = ended.get(component.name) or component.exit_description()
        last_line = "".join(component.last_lines(1))[:_LAST_LINE_MAX]
        return Health(component.name, "ended", how, None, component.endpoint, component.log, last_line)
    condition, detail = "ok", ""
    try:
        component.check()
    except NotReady as reason:
        condition, detail = "not ready", str(reason)
    return Health(component.name, condition, detail, process.pid, component.endpoint, component.log)
