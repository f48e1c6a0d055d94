"""What was answered, and not taken yet, when a sidecar ends: it is waited for, and delivered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.model.policy import AppProtocol
from proxy.http2.downstream import Http2Downstream
from proxy.http2.frames import DATA, END_STREAM
from proxy.listeners import Listeners
from tests.support.control import background
from tests.support.http2 import PREFACE, credit, frames, head, settings
from tests.support.mesh import Client, Mesh, mesh, speak
from tests.support.process import until

SIZE = 60_000
COUNT = 100


@asynccontextmanager
async def answered(*sent: bytes, reads: bool) -> AsyncIterator[tuple[Mesh, Client, Listeners]]:
    """A client whose hundred answers are whole and have not all gone out; it begins with ``sent``."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + b"x" * SIZE
    async with mesh().service("pay", replies=[answer]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        if not reads:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"".join((PREFACE, *sent, *(head(2 * n + 1) for n in range(COUNT)))))
        (program,) = m.programs["pay"]
        await until(lambda: len(program.requests) == COUNT and not m.plane.exchanges, what="all to be answered")
        yield m, client, Listeners(m.outbound, {}, None)
        client.writer.transport.abort()


async def whole_answers(client: Client) -> int:
    """Read to the end."""
    data = b""
    async with asyncio.timeout(10):
        while piece := await client.reader.read(1 << 16):
            data += piece
    return sum(kind == DATA and bool(flags & END_STREAM) for kind, flags, *_ in frames(data))


async def test_answers_that_wait_for_credit_are_delivered_before_the_connection_closes() -> None:
    async with answered(settings(), reads=True) as (m, client, listeners):
        assert listeners.unsent(inbound_only=False) == 1
        closing = background(listeners.close_connections())
        (connection,) = m.outbound.connections
        assert isinstance(connection, Http2Downstream)
        await until(lambda: connection.codec.goaway_sent is not None, what="the end to be announced")
        client.send(credit(0, 1 << 30))
        assert await whole_answers(client) == COUNT
        await closing


async def test_answers_that_wait_for_a_full_transport_are_delivered_before_the_connection_closes() -> None:
    window = settings((4, 1 << 24)) + credit(0, 1 << 30)
    async with answered(window, reads=False) as (m, client, listeners):
        (connection,) = m.outbound.connections
        assert isinstance(connection, Http2Downstream)
        assert connection.codec.is_held
        closing = background(listeners.close_connections())
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await whole_answers(client) == COUNT
        await closing


async def test_who_takes_nothing_holds_up_the_end_for_a_moment_only() -> None:
    async with answered(settings(), reads=True) as (m, _, listeners):
        async with asyncio.timeout(10):
            await listeners.close_connections()
        await until(lambda: not m.outbound.connections, what="the connection to be cut off")
