"""HTTP/2 endpoints that are slow and well: nothing of what they were sent is lost, and they are not taken for dead."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http2.frames import ACK, DATA, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS
from proxy.http2.upstream import TAIL_S, Http2Upstream
from tests.support.hang_up import until_hung_up
from tests.support.http2 import credit, frame, settings
from tests.support.http2_server import OK, head
from tests.support.mesh import Mesh, mesh, name
from tests.support.process import until

WIDE = settings((3, 1000), (4, 1 << 24)) + credit(0, 1 << 30)
UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n\r\n"
)
Frames = list[tuple[int, int, int, bytes]]
Handler = Callable[[asyncio.StreamWriter, tuple[int, int, int, bytes]], None]


@asynccontextmanager
async def calling(handle: Handler, first: bytes = WIDE, after_s: float = 0.0) -> AsyncIterator[tuple[Mesh, Frames]]:
    """A mesh whose service ``pay`` says ``first`` after a while, and then does with each frame what ``handle`` does."""
    came: Frames = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            await asyncio.sleep(after_s)
            writer.write(first)
            while True:
                start = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(start[:3], "big"))
                each = (start[3], start[4], int.from_bytes(start[5:9], "big"), payload)
                came.append(each)
                if each[0] == SETTINGS and not each[1] & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                handle(writer, each)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with mesh().start() as m, server:
        m.plane.apply_endpoints(name("pay"), (Endpoint("raw", "127.0.0.1", server.sockets[0].getsockname()[1]),))
        m.plane.services[name("pay")].set_policy(ServicePolicy(name("pay"), app_protocol=AppProtocol.HTTP2))
        yield m, came


def connection_of(m: Mesh) -> Http2Upstream:
    (endpoint,) = m.plane.services[name("pay")].endpoints.values()
    (connection,) = endpoint.http2_pool._connections
    return connection


async def test_uploads_that_waited_for_one_connection_all_arrive() -> None:
    """A hundred at once fill its transport for a moment; that is no fault of the endpoint, which reads."""

    def reads(writer: asyncio.StreamWriter, each: tuple[int, int, int, bytes]) -> None:
        kind, flags, stream, payload = each
        if kind == DATA:
            if payload:
                writer.write(credit(0, len(payload)) + credit(stream, len(payload)))
            if flags & END_STREAM:
                writer.write(head(stream, OK, ended=True))

    async with calling(reads, after_s=0.5) as (m, came), asyncio.timeout(30):
        said = await asyncio.gather(*(m.get("pay", "/", "POST", body=b"x" * 200_000) for _ in range(100)))
        assert Counter(each.status for each in said) == {200: 100}
        assert sum(len(payload) for kind, _, _, payload in came if kind == DATA) == 100 * 200_000


async def test_one_that_says_something_is_not_dead_though_it_answers_no_ping_yet() -> None:
    """The PING has to wait behind all that is being sent to it."""
    asked = asyncio.Event()

    def hears(writer: asyncio.StreamWriter, each: tuple[int, int, int, bytes]) -> None:
        if each[0] == HEADERS:
            asked.set()
            if each[2] == 3:
                writer.write(head(3, OK, ended=True))

    async with calling(hears) as (m, _), asyncio.timeout(10):
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        await asked.wait()
        connection = connection_of(m)
        connection.last_read_s = 0.0  # nothing has come since the request
        client.writer.transport.abort()
        await until(lambda: connection._suspect_since_s, what="the suspicion")
        connection._suspect_since_s -= 1.0
        assert (await m.get("pay")).status == 200
        connection.check_time(m.plane.clock() + 60)
        assert not connection.transport.is_closing()
        assert not connection._suspect_since_s
        connection.suspect()
        connection.check_time(m.plane.clock() + 120)
        assert connection.transport.is_closing()  # now it has said nothing


async def test_last_bytes_of_a_tunnel_that_get_no_credit_do_not_keep_their_stream() -> None:
    """The endpoint has ended its side, the client has ended its own, and nobody waits any more."""

    def ends(writer: asyncio.StreamWriter, each: tuple[int, int, int, bytes]) -> None:
        if each[0] == HEADERS:
            writer.write(head(each[2], OK) + frame(DATA, END_STREAM, each[2], b"\x88\x02\x03\xe8"))

    async with calling(ends, settings((8, 1), (4, 1000))) as (m, came), asyncio.timeout(10):
        client = await m.connect()
        client.send(UPGRADE)
        assert (await client.receive_head()).status == 101
        client.send(b"\x82\xfe\x13\x88aaaa" + b"x" * 5000)
        client.writer.write_eof()
        await client.reader.read()
        await until(lambda: not m.plane.exchanges, what="the tunnel to be over")
        connection = connection_of(m)
        assert list(connection.codec.streams) == [1]
        now = m.plane.clock()
        connection.check_time(now)
        connection.check_time(now + TAIL_S - 1)
        assert connection.codec.streams
        connection.check_time(now + TAIL_S + 1)
        assert not connection.codec.streams
        m.plane.trampoline.drain()
        await until(lambda: (RST_STREAM, 0, 1, b"\0\0\0\x08") in came, what="the reset")
