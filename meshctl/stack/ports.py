"""Chooses loopback ports: those asked for, else those of the last start, else free ones."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping

from meshctl.stack.failures import StackError

# Below the range from which Linux takes the source ports of outgoing connections (32768 and up): such a connection
# could otherwise sit on a component's port while that component is being restarted.
_FIRST_PORT = 20_000
_LAST_PORT = 31_999
_ATTEMPTS = 2_000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # Connections of an earlier server that linger in TIME_WAIT are no obstacle; a listener still is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(
    names: list[str],
    *,
    asked: Mapping[str, int],
    preferred: Mapping[str, int],
    last: Mapping[str, int],
) -> dict[str, int]:
    """One port for each name, no port twice.

    Args:
        names: what needs a port.
        asked: ports that must be taken.
        preferred: ports to take when they are free.
        last: ports of the last start, taken again when they are free, so that addresses stay the same.

    Raises:
        StackError: a port that was asked for is not free.
    """
    chosen: dict[str, int] = {}
    for name, port in asked.items():
        if not 0 < port < 65_536:
            raise StackError(f"{port}, asked for {name}, is no port")
        if port in chosen.values() or not is_free(port):
            raise StackError(f"port {port}, asked for {name}, is in use; choose another or leave it out")
        chosen[name] = port
    for name in names:
        if name not in chosen:
            chosen[name] = _first_free((preferred.get(name), last.get(name)), taken=set(chosen.values()))
    return chosen


def _first_free(wishes: tuple[int | None, ...], *, taken: set[int]) -> int:
    for port in wishes:
        if port is not None and port not in taken and is_free(port):
            return port
    # Random, so that two stacks that start at the same moment choose different ones.
    chooser = random.SystemRandom()
    for _ in range(_ATTEMPTS):
        port = chooser.randint(_FIRST_PORT, _LAST_PORT)
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port between {_FIRST_PORT} and {_LAST_PORT}")
