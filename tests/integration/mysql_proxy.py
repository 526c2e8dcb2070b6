"""A TCP proxy in front of a MySQL server that can lose, spoil, hold or rewrite what passes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class MysqlProxy:
    """What the tests steer. A statement travels in one packet, as does the reply to one that returns no rows.

    Attributes:
        port: Where clients connect to.
        lose_request: Statement prefix whose request is not passed on; the connection is cut instead.
        lose_reply: Statement prefix that is passed on, but whose reply is thrown away and the connection cut.
        hold_reply: Statement prefix that is passed on, but whose reply waits until `release` is set.
        spoil_reply: Statement prefix whose reply gets a wrong packet number.
        rewrite: Changes the text of each statement on its way.
        replies_lost: How many replies were thrown away or held, as proof that the server had answered.
    """

    port: int = 0
    lose_request: bytes | None = None
    lose_reply: bytes | None = None
    hold_reply: bytes | None = None
    spoil_reply: bytes | None = None
    rewrite: Callable[[bytes], bytes] = lambda text: text
    replies_lost: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0


class _Cut(Exception):
    """The proxy cuts the connection on purpose."""


class _Link:
    """One client's connection."""

    def __init__(self, proxy: MysqlProxy, server_port: int) -> None:
        self.proxy = proxy
        self.server_port = server_port
        self.statement = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy.connections += 1
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        pumps = [
            asyncio.create_task(self.pump(reader, server_writer, self.request)),
            asyncio.create_task(self.pump(server_reader, writer, self.reply)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in (writer, server_writer):
                side.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], object]
    ) -> None:
        with contextlib.suppress(_Cut, OSError):
            while data := await reader.read(1 << 20):
                changed = change(data)
                if isinstance(changed, bytes):
                    writer.write(changed)
                else:
                    self.proxy.replies_lost += 1
                    await self.proxy.release.wait()
                    writer.write(data)
                await writer.drain()

    def request(self, data: bytes) -> bytes:
        # A statement's packet: three bytes of length, number 0, command 3.
        if data[3:5] != b"\x00\x03":
            return data
        text = self.proxy.rewrite(data[5:])
        self.statement = text
        if self.matches(self.proxy.lose_request):
            raise _Cut
        return (len(text) + 1).to_bytes(3, "little") + b"\x00\x03" + text

    def reply(self, data: bytes) -> bytes | None:
        if self.matches(self.proxy.lose_reply):
            self.proxy.replies_lost += 1
            raise _Cut
        if self.matches(self.proxy.hold_reply):
            return None
        if self.matches(self.proxy.spoil_reply):
            return data[:3] + bytes([data[3] + 5]) + data[4:]
        return data

    def matches(self, prefix: bytes | None) -> bool:
        return prefix is not None and self.statement.startswith(prefix)


@asynccontextmanager
async def mysql_proxy(server_port: int) -> AsyncIterator[MysqlProxy]:
    proxy = MysqlProxy()
    links: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Link(proxy, server_port).serve(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(serve(reader, writer))
        links.add(task)
        task.add_done_callback(links.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
        for link in list(links):
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)
