"""Thousands of connections that are half-closed, reset and closed by either side: ``python -m tests.support.churn N``.

A program of its own, because what it looks for ends the process: uvloop's write_eof() dies with a double free.
"""

import asyncio
import sys

import uvloop

from tests.support.faults import half_close
from tests.support.mesh import Client, Mesh, mesh

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


async def main(count: int) -> None:
    async with mesh().service("pay").start() as m:
        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(one(m, number) for number in range(start, start + AT_ONCE)))
        assert (await m.get("pay")).status == 200
        async with asyncio.timeout(10):
            while m.outbound.connections or m.plane.exchanges:
                await asyncio.sleep(0.05)
    print(f"{count} connections, none left")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
