"""Owns the asyncio face of ZooKeeper: kazoo's threads stay behind it, and every wait has a bound."""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from kazoo.client import KazooClient
from kazoo.exceptions import (
    BadVersionError,
    KazooException,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
)
from kazoo.protocol.states import KazooState
from kazoo.retry import KazooRetry

_log = logging.getLogger(__name__)

_RECONNECT_FIRST_S: Final = 0.05
_RECONNECT_MAX_S: Final = 0.4
_WATCH_RETRY_S: Final = 0.2
# Watches fire by themselves; reading again now and then bounds what one lost notification could cost.
_WATCH_REREAD_S: Final = 30.0


class ZooKeeperError(Exception):
    """Base of what this module raises."""


class ZooKeeperUnavailable(ZooKeeperError):
    """No answer in time. What was to be written may have been written, or may be soon."""


class NodeMissing(ZooKeeperError):
    """The node, or the parent of a node to be created, does not exist."""


class NodeAlreadyExists(ZooKeeperError):
    """The node to be created exists."""


class NodeNotEmpty(ZooKeeperError):
    """The node to be deleted has children."""


class VersionConflict(ZooKeeperError):
    """The node's version is not the expected one: someone else wrote it."""


class ZooKeeperState(enum.Enum):
    """What a client knows of its session."""

    CONNECTED = "connected"
    SUSPENDED = "suspended"
    """The connection is lost and the session may be: a leader stops writing now."""
    LOST = "lost"
    """The session is over and its ephemeral nodes are gone; a new one is being opened."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node as read.

    Attributes:
        data: Its bytes.
        version: Counts writes of the data; a compare-and-set names it.
        created_zxid: Transaction that created it; differs when it was deleted and created again.
        modified_zxid: Transaction of the last write of the data.
        owner_session: Session id of an ephemeral node's owner, else 0.
    """

    data: bytes
    version: int
    created_zxid: int
    modified_zxid: int
    owner_session: int


WatchCallback = Callable[[Node | None], None]
StateCallback = Callable[[ZooKeeperState], None]

_ERRORS: Final[tuple[tuple[type[Exception], type[ZooKeeperError]], ...]] = (
    (NoNodeError, NodeMissing),
    (NodeExistsError, NodeAlreadyExists),
    (NotEmptyError, NodeNotEmpty),
    (BadVersionError, VersionConflict),
)
_STATES: Final = {
    KazooState.CONNECTED: ZooKeeperState.CONNECTED,
    KazooState.SUSPENDED: ZooKeeperState.SUSPENDED,
    KazooState.LOST: ZooKeeperState.LOST,
}


class ZooKeeper:
    """One session, kept alive and opened again by itself for as long as the client runs.

    Nothing is retried here: a write whose answer was lost raises ZooKeeperUnavailable, and the caller, who knows
    what a second write would mean, decides. An operation waits for a connection within its timeout and is sent only
    while there is one, so no write lies in a queue to be sent long after its caller gave up.

    All methods belong to the event loop that start() ran on; all callbacks run on it.
    """

    def __init__(self, hosts: str, *, session_timeout_s: float = 6.0, timeout_s: float = 2.0) -> None:
        """Prepares a client; start() connects it.

        Args:
            hosts: `host:port`, comma-separated.
            session_timeout_s: How long the servers keep ephemeral nodes of a client they do not hear from.
            timeout_s: Bound of each operation.
        """
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._session_timeout_s = session_timeout_s
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = ZooKeeperState.LOST
        self._connected = asyncio.Event()
        self._state_callbacks: list[StateCallback] = []
        self._watches: set[Watch] = set()

    async def start(self, *, timeout_s: float = 5.0) -> None:
        """Connects.

        Raises:
            ZooKeeperUnavailable: No server answered within timeout_s; nothing is left running.
        """
        if self._client is not None:
            raise RuntimeError("the client was started before")
        self._loop = asyncio.get_running_loop()
        retry = KazooRetry(
            max_tries=-1, delay=_RECONNECT_FIRST_S, backoff=2, max_jitter=0.2, max_delay=_RECONNECT_MAX_S
        )
        # Kazoo warns at every attempt to reconnect; changes of state are logged here, once.
        logger = logging.getLogger(f"{__name__}.kazoo")
        logger.setLevel(logging.ERROR)
        self._client = KazooClient(
            hosts=self._hosts, timeout=self._session_timeout_s, connection_retry=retry, logger=logger
        )
        self._client.add_listener(self._on_kazoo_state)
        self._client.start_async()
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError as error:
            await self.stop()
            raise ZooKeeperUnavailable(f"no ZooKeeper answered at {self._hosts} within {timeout_s} s") from error
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Closes session, watches and threads; repeatable. Ephemeral nodes go at once if the server is there."""
        for watch in list(self._watches):
            await watch.close()
        client, self._client = self._client, None
        if client is None:
            return
        self._connected.clear()
        # Kazoo's stop joins its threads; it is bounded by ten seconds or the session timeout.
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(_close, client)))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def state(self) -> ZooKeeperState:
        """The session's state as last reported."""
        return self._state

    @property
    def session_id(self) -> int:
        """Id of the current session, 0 before the first one."""
        client_id = self._client.client_id if self._client is not None else None
        return int(client_id[0] or 0) if client_id else 0

    def on_state(self, callback: StateCallback) -> Callable[[], None]:
        """Calls back on the loop at every change of state, in order.

        Returns:
            A function that ends it.
        """
        self._state_callbacks.append(callback)

        def end() -> None:
            with suppress(ValueError):
                self._state_callbacks.remove(callback)

        return end

    async def get(self, path: str, *, timeout_s: float | None = None) -> Node:
        """Reads a node.

        Raises:
            NodeMissing: There is none.
            ZooKeeperUnavailable: No answer in time.
        """
        return _node(*await self._call("get_async", path, timeout_s=timeout_s))

    async def find(self, path: str, *, timeout_s: float | None = None) -> Node | None:
        """Reads a node that need not exist; None if it doesn't."""
        try:
            return await self.get(path, timeout_s=timeout_s)
        except NodeMissing:
            return None

    async def create(
        self, path: str, data: bytes = b"", *, ephemeral: bool = False, timeout_s: float | None = None
    ) -> None:
        """Creates a node under an existing parent.

        Raises:
            NodeAlreadyExists: It exists.
            NodeMissing: The parent doesn't.
            ZooKeeperUnavailable: No answer in time; it may have been created.
        """
        await self._call("create_async", path, data, ephemeral=ephemeral, timeout_s=timeout_s)

    async def ensure_path(self, path: str, *, timeout_s: float | None = None) -> None:
        """Creates a node and its ancestors, empty, where they are missing."""
        parts = [part for part in path.split("/") if part]
        for depth in range(1, len(parts) + 1):
            with suppress(NodeAlreadyExists):
                await self.create("/" + "/".join(parts[:depth]), timeout_s=timeout_s)

    async def set(self, path: str, data: bytes, *, version: int, timeout_s: float | None = None) -> int:
        """Writes a node's data if its version is the expected one.

        Args:
            path: The node.
            data: The new data.
            version: What Node.version was; -1 writes over any version.
            timeout_s: Bound of the call.

        Returns:
            The new version.

        Raises:
            VersionConflict: Someone else wrote it.
            NodeMissing: It does not exist.
            ZooKeeperUnavailable: No answer in time; it may have been written.
        """
        stat = await self._call("set_async", path, data, version, timeout_s=timeout_s)
        return int(stat.version)

    async def delete(self, path: str, *, version: int = -1, timeout_s: float | None = None) -> None:
        """Deletes a node without children.

        Raises:
            NodeMissing: It does not exist.
            NodeNotEmpty: It has children.
            VersionConflict: Someone else wrote it.
            ZooKeeperUnavailable: No answer in time; it may have been deleted.
        """
        await self._call("delete_async", path, version, timeout_s=timeout_s)

    async def children(self, path: str, *, timeout_s: float | None = None) -> list[str]:
        """Names of a node's children, sorted.

        Raises:
            NodeMissing: The node does not exist.
            ZooKeeperUnavailable: No answer in time.
        """
        return sorted(await self._call("get_children_async", path, timeout_s=timeout_s))

    async def watch_data(self, path: str, callback: WatchCallback) -> Watch:
        """Follows a node: the callback gets its present state before this returns, then each later one.

        States that follow each other quickly may be skipped; the latest never is. It goes on through lost connections
        and sessions. The callback is synchronous and short; what it raises is logged and ends nothing.

        Args:
            path: The node, which need not exist.
            callback: Gets the node, or None while there is none.

        Returns:
            The watch, to be closed by the caller or by stop().

        Raises:
            ZooKeeperUnavailable: The first read got no answer in time.
        """
        watch = Watch(self, path, callback)
        await watch.open()
        self._watches.add(watch)
        return watch

    def forget(self, watch: Watch) -> None:
        """Drops a watch that was closed."""
        self._watches.discard(watch)

    async def read_watched(self, path: str, on_event: Callable[[object], None]) -> Node | None:
        """Reads a node and leaves a watch for its next change or a lost connection.

        Args:
            path: The node.
            on_event: Called from another thread. Kazoo keeps a set of these, so one and the same is passed each time.
        """
        try:
            return _node(*await self._call("get_async", path, on_event))
        except NodeMissing:
            # The node may appear between the two calls; then exists() tells so and the reader comes again.
            if await self._call("exists_async", path, on_event) is not None:
                on_event(None)
            return None

    async def wait_connected(self, timeout_s: float) -> bool:
        """Waits for a connection; False if there was none in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            return False
        return True

    async def _call(self, method: str, *args: object, timeout_s: float | None = None, **options: object) -> Any:
        """Runs one of kazoo's *_async methods and brings its outcome to the loop."""
        bound_s = self._timeout_s if timeout_s is None else timeout_s
        path = str(args[0])
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(bound_s):
                if self._client is None:
                    raise ZooKeeperUnavailable("the client is stopped")
                await self._connected.wait()
                if self._client is None:
                    raise ZooKeeperUnavailable("the client is stopped")
                future: asyncio.Future[Any] = loop.create_future()
                pending = getattr(self._client, method)(*args, **options)
                pending.rawlink(lambda result: self.hop(_settle, future, result))
                return await future
        except TimeoutError as error:
            raise ZooKeeperUnavailable(f"no answer for {path} within {bound_s} s") from error
        except KazooException as error:
            for theirs, ours in _ERRORS:
                if isinstance(error, theirs):
                    raise ours(path) from error
            raise ZooKeeperUnavailable(f"{type(error).__name__} for {path}") from error

    def hop(self, function: Callable[..., None], *args: object) -> None:
        """Runs a function on the loop, from any thread; without a loop, nobody waits for it any more."""
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)

    def _on_kazoo_state(self, state: str) -> None:
        """Runs on kazoo's connection thread."""
        self.hop(self._change_state, _STATES[state])

    def _change_state(self, state: ZooKeeperState) -> None:
        self._state = state
        if self._client is not None:
            level = logging.INFO if state is ZooKeeperState.CONNECTED else logging.WARNING
            _log.log(level, "zookeeper_state", extra={"state": state.value})
        if state is ZooKeeperState.CONNECTED and self._client is not None:
            self._connected.set()
        else:
            self._connected.clear()
        for callback in list(self._state_callbacks):
            try:
                callback(state)
            except Exception:  # noqa: BLE001 - a listener's defect must not keep the others from hearing
                _log.exception("zookeeper_state_callback_failed")


class Watch:
    """One followed node; see ZooKeeper.watch_data."""

    def __init__(self, zookeeper: ZooKeeper, path: str, callback: WatchCallback) -> None:
        """Prepares a watch; open() starts it."""
        self._zookeeper = zookeeper
        self._path = path
        self._callback = callback
        self._changed = asyncio.Event()
        self._seen: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Delivers the present state and goes on in the background."""
        node = await self._zookeeper.read_watched(self._path, self._on_event)
        self._deliver(node)
        self._task = asyncio.create_task(self._follow(), name=f"zookeeper-watch:{self._path}")

    async def close(self) -> None:
        """Ends it; the callback isn't called any more. Repeatable."""
        self._zookeeper.forget(self)
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait([task])

    def _on_event(self, _event: object) -> None:
        self._zookeeper.hop(self._changed.set)

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_REREAD_S):
                    await self._changed.wait()
            # Cleared before the read, so that a change during it is seen by the next round.
            self._changed.clear()
            try:
                node = await self._zookeeper.read_watched(self._path, self._on_event)
            except ZooKeeperError:
                self._changed.set()
                await asyncio.sleep(_WATCH_RETRY_S)
                continue
            seen = None if node is None else (node.created_zxid, node.modified_zxid)
            if seen != self._seen:
                self._deliver(node)

    def _deliver(self, node: Node | None) -> None:
        self._seen = None if node is None else (node.created_zxid, node.modified_zxid)
        try:
            result: object = self._callback(node)
        except Exception:  # noqa: BLE001 - the task's boundary: a bad value must not end the watch
            _log.exception("zookeeper_watch_callback_failed", extra={"path": self._path})
            return
        assert not inspect.iscoroutine(result), "a watch's callback is synchronous"


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if result.exception is None:
        future.set_result(result.value)
    else:
        future.set_exception(result.exception)


def _node(data: bytes, stat: Any) -> Node:
    return Node(
        data=data,
        version=int(stat.version),
        created_zxid=int(stat.czxid),
        modified_zxid=int(stat.mzxid),
        owner_session=int(stat.ephemeralOwner),
    )


def _close(client: Any) -> None:
    """Stops a client and its threads, on a thread of its own."""
    try:
        client.stop()
        client.close()
    except KazooException:
        _log.warning("zookeeper_close_incomplete")
