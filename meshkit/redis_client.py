"""Owns how this code base connects to Redis: bounded in time and number, and never sending a command twice."""

from __future__ import annotations

from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

MAX_CONNECTIONS: Final = 16


def open_redis(url: str, *, timeout_s: float = 0.25, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """Makes a client; it connects at its first command.

    A command whose reply is lost is not sent again (redis-py's own default is ten retries, which would run a script up
    to eleven times): the caller gets redis.exceptions.RedisError and decides. A broken connection is closed, and the
    next command opens a new one.

    Args:
        url: `redis://[user:password@]host:port/database`, `rediss://` or `unix://`.
        timeout_s: Bound of connecting, of each read and write, and of waiting for a free connection.
        max_connections: Bound of the pool.

    Returns:
        A client that replies with bytes; close it with aclose().
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        # RESP2 and no client announcements keep connecting to one round trip. Maintenance notifications would also
        # switch off redis-py's check for unread data on a pooled connection.
        protocol=2,
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)
