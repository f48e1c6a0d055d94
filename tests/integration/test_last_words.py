"""What was answered, and not taken yet, when a sidecar ends: it is waited for, and delivered."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from proxy.http1.limits import ConnectionLimits
from proxy.http2.downstream import Http2Downstream
from proxy.http2.frames import DATA, END_STREAM
from proxy.listeners import Listeners
from proxy.recorder import LOCAL
from proxy.tls import KeyPair, ServerSettings
from tests.support.certificates import Authority
from tests.support.control import background
from tests.support.http2 import PREFACE, credit, frames, head, settings
from tests.support.mesh import Client, Mesh, mesh, speak
from tests.support.process import until
from tests.support.tls import inbound, trusting

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


def narrow(port: int) -> socket.socket:
    """A connection that takes little at a time."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    own.connect(("127.0.0.1", port))
    own.setblocking(False)
    return own


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_what_a_client_behind_tls_has_not_taken_is_known_and_delivered(
    authority: Authority, protocol: str
) -> None:
    """The transport of TLS shows nothing of what it holds."""
    size = 3_300_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    settings_ = ServerSettings((KeyPair(*authority.issue("web")),))
    async with inbound(settings_, replies=[answer]) as (m, listener, port), asyncio.timeout(20):
        local = Name(LOCAL, "pay-0")
        m.plane.services[local].set_policy(ServicePolicy(local, app_protocol=AppProtocol.HTTP))
        context = trusting(authority, protocol)
        reader, writer = await asyncio.open_connection(
            sock=narrow(port), limit=1 << 16, ssl=context, server_hostname="web"
        )
        listeners = Listeners(m.outbound, {}, listener)
        assert not listeners.unsent(inbound_only=True)
        if protocol == "h2":
            writer.write(PREFACE + settings((4, 1 << 24)) + credit(0, 1 << 30) + head(1))
        else:
            writer.write(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        (program,) = m.programs["pay"]
        await until(lambda: program.requests and not m.plane.exchanges, what="the answer to be whole here")
        for _ in range(20):
            assert listeners.unsent(inbound_only=True) == 1
            await asyncio.sleep(0.01)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = 0
        while got < size:
            got += (await reader.read(1 << 16)).count(b"x")
        await until(lambda: not listeners.unsent(inbound_only=True), what="it to be known that it was taken")
        writer.transport.abort()


class SlowTransport(asyncio.Transport):
    """One whose client takes what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent, self.is_closed = 0, False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: object) -> None: ...

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    abort = close


@pytest.mark.parametrize("quiet_s", [10, 400])
async def test_a_connection_that_goes_away_waits_until_its_last_bytes_are_taken(quiet_s: int) -> None:
    """A drain bounds that; elsewhere as long as the client takes nothing for ``stall_s``."""
    async with mesh().service("pay").start() as m:
        transport, connection = SlowTransport(), Http2Downstream(m.outbound, "", 0)
        connection.connection_made(transport)
        connection.data_received(PREFACE + settings())
        connection.codec.goaway(0)
        transport.unsent = 1000
        now = m.plane.clock()
        connection.check_time(now + quiet_s)
        assert transport.is_closed is (quiet_s > connection.limits.stall_s)
        transport.unsent = 0
        connection.check_time(now + quiet_s)
        assert transport.is_closed


async def test_an_answer_over_http1_that_is_being_taken_outlives_the_request_behind_it() -> None:
    """That one is not served any more, as the first answer said; to close at once would reset what is on its way."""
    size = 600_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
    limits = ConnectionLimits(linger_s=0.2)
    async with mesh().service("pay", replies=[answer]).limits(limits).start() as m, asyncio.timeout(20):
        loop = asyncio.get_running_loop()
        own = narrow(m.port)
        await until(lambda: m.outbound.connections, what="the connection")
        (connection,) = m.outbound.connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        m.outbound.is_draining = True
        await loop.sock_sendall(own, b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n" * 2)
        got = 0
        while not got or m.plane.exchanges:
            got += len(await loop.sock_recv(own, 4096))
            await asyncio.sleep(0.001)
        assert got < size
        await asyncio.sleep(2.5)  # two looks, a second apart
        with contextlib.suppress(ConnectionError):
            while piece := await loop.sock_recv(own, 1 << 16):
                got += len(piece)
        own.close()
        assert got > size
        assert len(m.programs["pay"][0].requests) == 1


async def test_who_takes_nothing_holds_up_the_end_for_a_moment_only() -> None:
    async with answered(settings(), reads=True) as (m, _, listeners):
        async with asyncio.timeout(10):
            await listeners.close_connections()
        await until(lambda: not m.outbound.connections, what="the connection to be cut off")
