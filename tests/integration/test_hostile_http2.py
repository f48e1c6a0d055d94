"""HTTP/2 peers that flood, starve or lie, on real sockets: each ends itself, and a normal request is answered."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from mesh.http.headers import Headers
from mesh.model.policy import AppProtocol
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2 import hpack, octets
from proxy.http2.connection import MAX_UNTAKEN_BYTES
from proxy.http2.downstream import Http2Downstream
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM
from proxy.http2.sending import QUEUED_BYTES
from tests.support.control import background
from tests.support.http2 import BOMB, BOMB_FIELD, FLOODS, GET, PREFACE, START, credit, frame, frames, head, settings
from tests.support.mesh import Client, Mesh, Request, mesh, name, speak
from tests.support.process import until

WELL_S = 1.0
HELD_BYTES = 1 << 20
"""What one hostile connection may make the sidecar hold, codec, transport and answers together."""
SIZE = 1 << 20

Piece = Callable[[int], bytes]


async def large(_: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + b"x" * SIZE)


@asynccontextmanager
async def http1_service(limits: ConnectionLimits | None = None) -> AsyncIterator[Mesh]:
    """A service whose programs speak HTTP/1.1, whatever its clients speak."""
    builder = mesh().service("pay", replies=[large])
    async with (builder if limits is None else builder.limits(limits)).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        yield m


async def well(m: Mesh) -> None:
    """A normal request, of either version, is answered in time."""
    began = time.monotonic()
    assert (await m.get("pay")).status == 200
    client = await m.connect()
    client.send(START + head(1, [*GET[:2], (b":path", b"/"), (b":authority", b"not_a_label")]))
    async with asyncio.timeout(WELL_S):
        data = b""
        while not any(kind == HEADERS for kind, *_ in whole_frames(data)):
            data += await client.reader.read(65536)
    assert time.monotonic() - began < WELL_S
    client.writer.transport.abort()


def whole_frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Those that have come entirely."""
    found = []
    for kind, flags, stream, payload in frames(data):
        found.append((kind, flags, stream, payload))
    return found


async def read_to_end(client: Client) -> bytes:
    data = b""
    try:
        async with asyncio.timeout(10):
            while piece := await client.reader.read(1 << 16):
                data += piece
    except ConnectionError:
        pass
    return data


def unsent_bytes(m: Mesh) -> int:
    """What the HTTP/2 connections have let out, and their clients do not take."""
    connections = [connection for connection in m.outbound.connections if isinstance(connection, Http2Downstream)]
    return sum(sum(map(len, each.codec.out)) + each.transport.get_write_buffer_size() for each in connections)


def held_bytes(m: Mesh) -> int:
    """What the HTTP/2 connections make the sidecar hold."""
    connections = [connection for connection in m.outbound.connections if isinstance(connection, Http2Downstream)]
    waiting = sum(stream.pending_bytes for each in connections for stream in each.codec.streams.values())
    return waiting + unsent_bytes(m)


async def flood(m: Mesh, client: Client, piece: Piece, measure: Callable[[Mesh], int] = held_bytes) -> int:
    """Send pieces until the connection is closed, 20 000 at most; gives the most that was measured meanwhile."""
    most = 0
    for number in range(0, 20_000, 100):
        if client.writer.transport.is_closing():
            break
        client.send(b"".join(piece(n) for n in range(number, number + 100)))
        try:
            async with asyncio.timeout(5):
                await client.writer.drain()
        except (TimeoutError, ConnectionError):
            break
        await asyncio.sleep(0)
        most = max(most, measure(m))
    return most


@pytest.mark.parametrize(("piece", "start"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in FLOODS])
async def test_a_flood_is_cut_off_and_hurts_nobody(piece: Piece, start: bytes) -> None:
    async with http1_service() as m:
        client = await m.connect()
        client.send(start)
        most = await flood(m, client, piece)
        await well(m)
        codes = [
            int.from_bytes(payload[4:8], "big")
            for kind, _, _, payload in whole_frames(await read_to_end(client))
            if kind == GOAWAY
        ]
        assert codes[-1:] in ([ErrorCode.ENHANCE_YOUR_CALM], [])  # a reset may overtake it
        assert most < HELD_BYTES
        await until(lambda: not any(isinstance(c, Http2Downstream) for c in m.outbound.connections), what="its end")
        await until(lambda: not m.plane.exchanges, what="its exchanges to end")
        assert m.plane.services[name("pay")].usage.requests == 0


CRUMBS: dict[str, Piece] = {
    "of the connection": lambda _: credit(1, 1) + credit(0, 1) * 19,
    "of every stream": lambda _: b"".join(credit(2 * n + 1, 1) for n in range(100)),
    "of the initial window": lambda n: settings((4, n + 1)),
}


@pytest.mark.parametrize("piece", CRUMBS.values(), ids=CRUMBS)
@pytest.mark.parametrize("answers", ["read", "not read"])
async def test_credit_in_crumbs_for_a_hundred_answers_leaves_others_served(piece: Piece, answers: str) -> None:
    """CVE-2019-9511, 9517: each crumb lets a byte out in a frame of its own, and asks for a look at all that waits."""
    async with http1_service() as m:
        client = await m.connect()
        client.send(PREFACE + settings((4, 0)) + credit(0, 1 << 30) + b"".join(head(2 * n + 1) for n in range(100)))
        await until(lambda: held_bytes(m) > 100 * QUEUED_BYTES, what="all answers to wait")
        if answers == "not read":
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        flooding = background(flood(m, client, piece))
        for _ in range(5):
            await well(m)
        most = await flooding
        await well(m)
        assert most < 100 * 512 * 1024
        client.writer.transport.abort()


async def test_credit_in_crumbs_for_answers_that_are_not_taken_is_cut_off() -> None:
    """CVE-2019-9511: what lies before the transport already holds the rest back, so that credit achieves nothing."""
    async with http1_service() as m:
        client = await m.connect()
        client.send(PREFACE + settings((4, 0)) + credit(0, 1 << 30) + b"".join(head(2 * n + 1) for n in range(100)))
        await until(lambda: held_bytes(m) > 100 * QUEUED_BYTES, what="all answers to wait")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        most = 0
        for _ in range(5):  # the kernel takes several MB first
            most = max(most, await flood(m, client, CRUMBS["of every stream"], unsent_bytes))
        assert client.writer.transport.is_closing()
        assert most < HELD_BYTES
        await well(m)


async def test_credit_for_everything_at_once_fills_the_transport_no_more_than_it_takes() -> None:
    async with http1_service() as m:
        client = await m.connect()
        client.send(PREFACE + settings((4, 0)) + b"".join(head(2 * n + 1) for n in range(100)))
        await until(lambda: held_bytes(m) > 100 * QUEUED_BYTES, what="all answers to wait")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(settings((4, 1 << 24)) + credit(0, 1 << 30))
        await until(lambda: unsent_bytes(m) > 0, what="the kernel to be full")
        assert unsent_bytes(m) < HELD_BYTES
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(20):
            taken = 0
            while taken < 100 * SIZE:
                taken += (await client.reader.read(1 << 20)).count(b"x")
        client.writer.transport.abort()


def is_answered(m: Mesh, count: int) -> bool:
    return not m.plane.exchanges and (len(m.programs["pay"][0].requests) == count or not m.outbound.connections)


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
async def test_answers_without_bodies_that_nobody_takes_are_bounded(method: bytes) -> None:
    """Each stream is over at once, so that neither their number nor a window ends it."""
    large = b"HTTP/1.1 204 No Content\r\nx-large: " + b"y" * 8000 + b"\r\n\r\n"
    async with mesh().service("pay", replies=[large]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(START)
        most = number = 0
        while not client.writer.transport.is_closing() and number < 5000:
            client.send(b"".join(head(2 * n + 1, [(b":method", method), *GET[1:]]) for n in range(number, number + 50)))
            number += 50
            await until(partial(is_answered, m, number), what="them to be answered, or cut off")
            most = max(most, unsent_bytes(m))
        assert client.writer.transport.is_closing()
        assert most < MAX_UNTAKEN_BYTES + HELD_BYTES
        assert (await m.get("pay")).status == 204


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(b"x-%d" % n, b"") for n in range(101)], (RST_STREAM, ErrorCode.ENHANCE_YOUR_CALM)),
        ([(b"x-large", b"v" * 65_500)], (HEADERS, b"431")),
        ([(b"x-%d" % n, b"v" * 60_000) for n in range(5)], (GOAWAY, ErrorCode.ENHANCE_YOUR_CALM)),
    ],
    ids=["too many fields", "a head too large", "a head too large to be read"],
)
async def test_heads_have_limits(fields: Headers, expected: tuple[int, object]) -> None:
    async with http1_service() as m:
        client = await m.connect()
        block = octets.encode([*GET, *fields])
        pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
        client.send(START + frame(HEADERS, END_STREAM | (END_HEADERS if len(pieces) == 1 else 0), 1, pieces[0]))
        for number, piece in enumerate(pieces[1:], 2):
            client.send(frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, 1, piece))
        kind, what = expected
        data, sent = b"", dict[int, bytes]()
        async with asyncio.timeout(10):
            while kind not in sent:
                data += await client.reader.read(1 << 16)
                sent = {each: payload for each, _, _, payload in whole_frames(data)}
        if kind == HEADERS:
            assert hpack.Decoder(1 << 16).decode(sent[kind])[0] == (b":status", what)
        else:
            assert int.from_bytes(sent[kind][-4:] if kind == RST_STREAM else sent[kind][4:8], "big") == what
        await well(m)


async def test_a_header_bomb_is_not_unpacked() -> None:
    """CVE-2016-6581."""
    async with http1_service() as m:
        client = await m.connect()
        client.send(START + frame(HEADERS, END_HEADERS | END_STREAM, 1, BOMB + BOMB_FIELD * 5000))
        last = whole_frames(await read_to_end(client))[-1]
        assert (last[0], int.from_bytes(last[3][4:8], "big")) == (GOAWAY, ErrorCode.ENHANCE_YOUR_CALM)
        await well(m)


async def test_a_client_that_gives_no_window_holds_little_and_is_let_go() -> None:
    """CVE-2019-9511, 9517: a hundred answers of a MiB, none taken, and pings to look alive."""
    async with http1_service(ConnectionLimits(stall_s=1.0)) as m:
        client = await m.connect()
        client.send(PREFACE + settings((4, 0)) + b"".join(head(2 * n + 1) for n in range(100)))
        service = m.plane.services[name("pay")]
        await until(lambda: service.usage.requests == 100, what="all to be under way")
        most = 0
        began = time.monotonic()
        while service.usage.requests and time.monotonic() - began < 20:
            client.send(frame(PING, 0, 0, b"12345678"))
            most = max(most, held_bytes(m))
            await asyncio.sleep(0.05)
        assert not service.usage.requests
        assert most < 100 * 512 * 1024
        await well(m)
        client.writer.transport.abort()


async def test_what_waited_for_a_client_goes_with_it_and_not_when_cycles_are_collected() -> None:
    """Who connects again and again would fill the memory in between."""
    async with http1_service() as m:
        client = await m.connect()
        client.send(PREFACE + settings((4, 0)) + b"".join(head(2 * n + 1) for n in range(20)))
        await until(lambda: held_bytes(m) > 1 << 19, what="answers to wait")
        (connection,) = (c for c in m.outbound.connections if isinstance(c, Http2Downstream))
        codec, streams = connection.codec, list(connection.codec.streams.values())
        client.writer.transport.abort()
        await until(lambda: not m.plane.exchanges and not m.outbound.connections, what="its end")
        assert [codec.streams, codec._blocked, [s for s in streams if s.pending]] == [{}, {}, []]


async def test_a_client_that_reads_nothing_is_let_go_however_much_it_pings() -> None:
    async with http1_service(ConnectionLimits(stall_s=1.0)) as m:
        client = await m.connect()
        client.writer.transport.pause_reading()
        window = frame(8, 0, 0, b"\x3f\xff\xff\xff")
        client.send(PREFACE + settings((4, 2**31 - 1)) + window + b"".join(head(2 * n + 1) for n in range(100)))
        await until(lambda: held_bytes(m) > 1 << 16, what="the sidecar to be held up")
        most, began = 0, time.monotonic()
        while any(isinstance(c, Http2Downstream) for c in m.outbound.connections) and time.monotonic() - began < 20:
            client.send(frame(PING, 0, 0, b"12345678"))
            most = max(most, held_bytes(m))
            await asyncio.sleep(0.05)
        assert not m.plane.exchanges
        assert most < 100 * 512 * 1024
        await well(m)


async def test_answers_1xx_to_a_client_that_reads_nothing_are_bounded() -> None:
    """Each is a head, which waits for no credit; and there is no end to them."""

    async def hints(request: Request, writer: asyncio.StreamWriter) -> None:
        fields = b"".join(b"link: <%b>; rel=preload\r\n" % (b"y" * 8000) for _ in range(7))
        for _ in range(60):
            writer.write(b"HTTP/1.1 103 Early Hints\r\n" + fields + b"\r\n")
            await writer.drain()
        await request.reader.read()

    async with mesh().service("pay", replies=[hints]).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.writer.transport.pause_reading()
        client.send(START + b"".join(head(2 * n + 1) for n in range(100)))
        most, is_there = 0, False
        async with asyncio.timeout(20):
            while not is_there or m.outbound.connections:
                is_there = is_there or bool(m.plane.exchanges)
                most = max(most, unsent_bytes(m))
                await asyncio.sleep(0.01)
        assert most < MAX_UNTAKEN_BYTES * 2
        client.writer.transport.abort()


async def test_a_stream_that_never_ends_its_request_is_reset_and_its_siblings_go_on() -> None:
    async with http1_service(ConnectionLimits(stall_s=1.0)) as m:
        client = await m.connect()
        post: Headers = [(b":method", b"POST"), *GET[1:]]
        client.send(START + head(1, post, END_HEADERS))
        data, number = b"", 3
        async with asyncio.timeout(15):
            while not any(kind == RST_STREAM and stream == 1 for kind, _, stream, _ in whole_frames(data)):
                client.send(head(number, [*GET[:3], (b":authority", b"not_a_label")]))
                data += await client.reader.read(1 << 16)
                number += 2
                await asyncio.sleep(0.2)
        assert sum(kind == HEADERS for kind, *_ in whole_frames(data)) >= number // 2 - 2  # all but the last one or two
        assert not any(kind == GOAWAY for kind, *_ in whole_frames(data))
        client.writer.transport.abort()


async def test_pings_between_data_that_nobody_reads_the_answers_of_are_cut_off() -> None:
    """CVE-2019-9512, with a byte of a body between them, which looks like traffic."""
    async with http1_service() as m:
        client = await m.connect()
        client.writer.transport.pause_reading()
        post: Headers = [(b":method", b"POST"), *GET[1:]]
        client.send(START + head(1, post, END_HEADERS))
        unit = frame(DATA, 0, 1, b"x") + frame(PING, 0, 0, b"12345678") * 4
        most = await flood(m, client, lambda _: unit)
        assert most < HELD_BYTES
        await well(m)
        client.writer.transport.abort()


async def test_malformed_trailers_are_counted_like_any_reset_we_are_made_to_send() -> None:
    """CVE-2025-8671: each stream begins a request at the program before it is found to be wrong."""
    async with http1_service() as m:
        client = await m.connect()
        client.send(START)
        post: Headers = [(b":method", b"POST"), *GET[1:]]

        def piece(n: int) -> bytes:
            number = 2 * n + 1
            return head(number, post, END_HEADERS) + head(number, [(b"connection", b"close")])

        await flood(m, client, piece)
        await until(lambda: not any(isinstance(c, Http2Downstream) for c in m.outbound.connections), what="its end")
        await until(lambda: not m.plane.exchanges, what="its exchanges to end")
        assert len(m.programs["pay"][0].requests) < 2000
        client.writer.transport.abort()


@pytest.mark.parametrize(
    "piece",
    [frame(PING, 0, 0, b"12345678"), settings(), frame(8, 0, 0, b"\0\0\0\1"), frame(0xBB, 0, 0, b"")],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE", "unknown"],
)
async def test_an_endpoint_that_floods_costs_its_own_requests(piece: bytes) -> None:
    closed = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(settings())
        try:
            for _ in range(1000):
                writer.write(piece * 100)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with http1_service() as m, server:
        m.plane.apply_endpoints(name("flooding"), (Endpoint("f", "127.0.0.1", port),))
        speak(m, "flooding", AppProtocol.HTTP2)
        assert (await m.get("flooding")).status in (502, 503)
        await well(m)
        async with asyncio.timeout(5):
            await closed.wait()
        await until(lambda: m.plane.services[name("flooding")].usage.connections == 0, what="the connection to end")
        assert m.plane.services[name("flooding")].usage.requests == 0
