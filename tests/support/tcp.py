"""A mesh with a TCP service ``db`` on a local port, and plain servers behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from mesh.model.policy import AppProtocol
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.listener import OutboundListener
from tests.support.mesh import Mesh, mesh, name, serve, speak
from tests.support.process import until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LARGE = bytes(range(256)) * 64 * 1024  # 16 MiB


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As MySQL and SMTP do: it speaks first."""
    writer.write(b"220 hello\r\n")
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


def says(text: bytes) -> Handler:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()
        writer.close()

    return say


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the end, be that an end in order or a reset."""
    data = bytearray()
    async with asyncio.timeout(10):
        try:
            while piece := await reader.read(1 << 16):
                data += piece
        except ConnectionError:
            pass
    return bytes(data)


class Tcp:
    """A mesh whose service ``db`` has a local port, and servers that are its endpoints."""

    def __init__(self, m: Mesh, port: int, stack: AsyncExitStack) -> None:
        self.m, self.port, self._stack = m, port, stack

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def all_of(self) -> bytes:
        """What a connection says that is asked nothing."""
        reader, writer = await self.connect()
        data = await rest(reader)
        writer.close()
        return data

    async def over(self) -> None:
        """Wait until nothing is under way any more."""
        await until(lambda: not self.m.plane.exchanges, what="the exchanges to end")
        await until(lambda: all(s.usage.connections == 0 for s in self.m.plane.services.values()), what="connections")
        assert all(s.usage.requests == 0 for s in self.m.plane.services.values())


@asynccontextmanager
async def tcp(
    *handlers: Handler, routes: str = "", limits: ConnectionLimits | None = None, is_declared: bool = True
) -> AsyncIterator[Tcp]:
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh().routes(routes).start() if routes else mesh().start())
        ports = []
        for handler in handlers:
            server = await asyncio.start_server(handler, "127.0.0.1", 0)
            await stack.enter_async_context(server)
            ports.append(server.sockets[0].getsockname()[1])
        m.plane.apply_endpoints(name("db"), tuple(Endpoint(f"e{n}", "127.0.0.1", p) for n, p in enumerate(ports)))
        if is_declared:
            speak(m, "db", AppProtocol.TCP)
        listener = OutboundListener(m.plane, "sidemesh-out-tcp", limits or ConnectionLimits(), service=name("db"))
        yield Tcp(m, await serve(stack, listener), stack)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
