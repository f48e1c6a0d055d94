"""Thousands of connections that are half-closed, reset and closed by either side.

``python -m tests.support.churn N http|tcp``.

A program of its own, because what it looks for ends the process: uvloop's write_eof() dies with a double free.
"""

import asyncio
import sys
from contextlib import AsyncExitStack

import uvloop

from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.listener import OutboundListener
from tests.support.faults import half_close
from tests.support.mesh import Client, Mesh, mesh, name, serve

AT_ONCE = 50

KINDS = (
    b"GARBAGE\r\n\r\n",  # 400, then our half-close
    b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: nobody\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 300_000,  # more than is discarded
    b"GET / HTTP/1.1\r\nhost: pay\r\n",  # never whole
    b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 100\r\n\r\nhalf",
)


async def one(m: Mesh, number: int) -> None:
    client = Client(*await asyncio.open_connection("127.0.0.1", m.port))
    kind, ending = number % len(KINDS), number // len(KINDS) % 3
    client.send(KINDS[kind])
    try:
        if ending == 0 and kind < 4:
            await client.reader.readline()  # then a proper close
        elif ending == 1:
            half_close(client.writer)
            await client.reader.read()
        else:
            client.writer.transport.abort()
    except ConnectionError:
        pass
    client.close()


async def one_of_tcp(port: int, number: int) -> None:
    """Either side ends first, in order or by a reset, with bytes under way or without."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ending = number % 4
    writer.write((b"stop" if ending == 3 else b"go on") + b"x" * (number % 3 * 50_000))
    try:
        if ending == 0:
            writer.transport.abort()
        elif ending in (1, 2):
            half_close(writer)
            if ending == 2:
                await reader.read()
        else:
            await reader.read()  # the server ends
    except ConnectionError:
        pass
    writer.close()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            if data.startswith(b"stop"):
                break
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def churn_tcp(count: int) -> None:
    """Through a TCP listener."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with mesh().start() as m, AsyncExitStack() as stack, server:
        m.plane.apply_endpoints(name("db"), (Endpoint("db", "127.0.0.1", server.sockets[0].getsockname()[1]),))
        listener = OutboundListener(m.plane, "sidemesh-out-tcp", ConnectionLimits(), service=name("db"), is_tcp=True)
        port = await serve(stack, listener)
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(one_of_tcp(port, number) for number in range(start, start + AT_ONCE)))
        async with asyncio.timeout(10):
            while listener.connections or m.plane.exchanges or m.plane.services[name("db")].usage.connections:
                await asyncio.sleep(0.05)
    print(f"{count} TCP connections, none left")


async def main(count: int, kind: str) -> None:
    """``kind``: ``tcp`` or ``http``."""
    if kind == "tcp":
        await churn_tcp(count)
        return
    async with mesh().service("pay").start() as m:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(one(m, number) for number in range(start, start + AT_ONCE)))
        assert (await m.get("pay")).status == 200
        async with asyncio.timeout(10):
            while m.outbound.connections or m.plane.exchanges:
                await asyncio.sleep(0.05)
    print(f"{count} connections, none left")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
