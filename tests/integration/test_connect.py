"""CONNECT out of the mesh (RFC 9110 §9.3.6), on real sockets; names and DNS are in e2e/test_calls_out.py."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from mesh.http.headers import Headers
from mesh.model.name import Name
from mesh.model.service import Endpoint
from proxy.config import Address
from proxy.dataplane import EGRESS
from proxy.http1.limits import ConnectionLimits
from proxy.http2 import hpack, octets
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM
from proxy.listener import OutboundListener
from proxy.own_listeners import is_own
from proxy.upstream import endpoint
from tests.support.http2 import PREFACE, frame, frames, settings
from tests.support.mesh import Client, Mesh, inbound_listener, mesh, name, serve
from tests.support.process import until

OUTSIDE = Name(EGRESS, "outside.example:443")
HEAD = b"CONNECT outside.example:443 HTTP/1.1\r\nhost: outside.example:443\r\n\r\n"
SMUGGLED = b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything again, and ends when its client has."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"that was all")
    writer.close()


async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Breaks off with a reset at its client's first byte."""
    await reader.read(1)
    reset(writer)


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def outside(talk: Talk = echo, limits: ConnectionLimits | None = None) -> AsyncIterator[Mesh]:
    """A mesh with the service ``pay`` that lets CONNECT out to port 443, where ``talk`` answers."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with mesh().connect_to(443).limits(limits or ConnectionLimits()).service("pay").start() as m, server:
        port = server.sockets[0].getsockname()[1]
        m.plane.apply_endpoints(OUTSIDE, (Endpoint("127.0.0.1", "127.0.0.1", port),))
        yield m


async def opened(m: Mesh, more: bytes = b"") -> tuple[Client, bytes]:
    """A tunnel, ``more`` being sent before it is known to be one; gives the head of the answer, too."""
    client = await m.connect()
    client.send(HEAD + more)
    async with asyncio.timeout(5):
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return client, head.lower()


async def over(m: Mesh) -> None:
    await until(lambda: not m.plane.exchanges, what="the exchange to end")
    usage = m.plane.services[OUTSIDE].usage
    await until(lambda: not (usage.connections or usage.requests), what="the connection to close")


async def test_bytes_pass_both_ways_and_each_side_ends_its_own() -> None:
    async with outside() as m:
        client, head = await opened(m, b"sent before it knew")
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
        assert b"connection:" not in head
        assert await client.reader.readexactly(19) == b"sent before it knew"
        for number in range(100):
            client.send(b"%d\r\n\r\nGET / HTTP/1.1\r\n\r\n" % number)
        client.writer.write_eof()
        async with asyncio.timeout(5):
            rest = await client.reader.read()
        assert rest == b"".join(b"%d\r\n\r\nGET / HTTP/1.1\r\n\r\n" % n for n in range(100)) + b"that was all"
        await over(m)
        assert m.cells() == {(str(OUTSIDE), 200, ""): 1}
        assert m.programs["pay"][0].requests == []


async def test_the_other_end_may_speak_first_and_end_first() -> None:
    heard: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        writer.write_eof()
        heard.append(await reader.read())
        writer.close()

    async with outside(greet) as m:
        client, _ = await opened(m)
        assert await client.reader.read() == b"220 welcome\r\n"
        client.send(b"QUIT\r\n")
        client.writer.write_eof()
        await over(m)
        assert heard == [b"QUIT\r\n"]


async def test_much_passes_with_backpressure() -> None:
    may_read = asyncio.Event()

    async def echo_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        await echo(reader, writer)

    async with outside(echo_later) as m:
        client, _ = await opened(m)
        large = bytes(range(256)) * 192 * 1024  # 48 MiB
        client.send(large)
        client.writer.write_eof()
        (exchange,) = m.plane.exchanges
        assert exchange.body is not None
        body, before = exchange.body, -1
        while before < body.received:  # nobody reads: it comes to a stop in the kernel's buffers and a few of ours
            before = body.received
            await asyncio.sleep(0.1)
        assert body.received < 24_000_000
        may_read.set()
        async with asyncio.timeout(20):
            assert await client.reader.read() == large + b"that was all"
        await over(m)


async def test_an_end_that_breaks_off_ends_the_other() -> None:
    async with outside(drop) as m:
        client, _ = await opened(m)
        client.send(b"x")
        assert await client.ended()
        await over(m)
    async with outside() as m:
        client, _ = await opened(m)
        reset(client.writer)
        await over(m)
        assert m.cells() == {(str(OUTSIDE), 200, "DC"): 1}


async def test_a_tunnel_in_which_nothing_moves_is_closed() -> None:
    async with outside(limits=ConnectionLimits(tunnel_idle_s=1.0)) as m:
        client, _ = await opened(m)
        assert await client.ended()
        await over(m)
        assert m.cells() == {(str(OUTSIDE), 200, "SI"): 1}


REFUSED = [
    ("another port", b"outside.example:8443", 403, "NR", "to port 8443 is not allowed, only to 443"),
    ("a service", b"pay:443", 403, "NR", "pay is a service of the mesh"),
    ("a service under Consul's domain", b"pay.service.consul.:443", 403, "NR", "call http://pay through"),
    ("a host that DNS does not know", b"nowhere.example:443", 404, "NR", "no service"),
]


@pytest.mark.parametrize(("target", "status", "flag", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
async def test_a_refusal_says_why_and_serves_nothing_that_was_sent_behind_it(
    target: bytes, status: int, flag: str, said: str
) -> None:
    """A client that did not wait for the answer has sent bytes for somebody else."""
    async with outside() as m:
        client = await m.connect()
        client.send(b"CONNECT %b HTTP/1.1\r\nhost: x\r\n\r\n" % target + SMUGGLED)
        answer = await client.receive("CONNECT")
        assert (answer.status, answer.flag, answer.get("connection")) == (status, flag, "close")
        assert said in answer.body.decode()
        assert await client.ended()
        assert m.programs["pay"][0].requests == []


async def test_no_connection_is_an_error_like_any_other() -> None:
    async with outside() as m:
        m.plane.apply_endpoints(OUTSIDE, (Endpoint("127.0.0.1", "127.0.0.1", 1),))
        client = await m.connect()
        client.send(HEAD + SMUGGLED)
        answer = await client.receive("CONNECT")
        assert (answer.status, answer.flag) == (503, "UF")
        assert answer.get("proxy-status") is not None
        assert await client.ended()


async def test_an_address_that_takes_no_connection_is_passed_over() -> None:
    async with outside() as m:
        (endpoint,) = m.plane.services[OUTSIDE].endpoints.values()
        m.plane.apply_endpoints(OUTSIDE, (endpoint.model, Endpoint("127.0.0.2", "127.0.0.2", 1)))
        for _ in range(10):
            client, _ = await opened(m, b"x")
            assert await client.reader.readexactly(1) == b"x"
            client.close()


async def test_a_connection_that_carried_a_request_is_never_a_tunnels(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is given back while the tunnel waits for its own: what passes there would follow upon a request."""
    asked, may_answer, may_connect = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(seen)
        seen.append(b"")
        with contextlib.closing(writer):
            while data := await reader.read(4096):
                seen[number] += data
                if data.startswith(b"GET "):
                    asked.set()
                    await may_answer.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    connect, made = endpoint.connect, 0

    async def second_waits(*args: Any) -> Any:
        nonlocal made
        made += 1
        if made > 1:
            await may_connect.wait()
        return await connect(*args)

    monkeypatch.setattr(endpoint, "connect", second_waits)
    async with outside(talk) as m:
        first = await m.connect()
        first.send(b"GET / HTTP/1.1\r\nhost: outside.example:443\r\n\r\n")
        await asyncio.wait_for(asked.wait(), 5)
        tunnel = await m.connect()
        tunnel.send(HEAD + b"within")
        usage = m.plane.services[OUTSIDE].usage
        await until(lambda: usage.pending == 1 and made == 2, what="the tunnel to wait for its connection")
        may_answer.set()
        assert (await first.receive()).status == 200  # its connection has been given back
        may_connect.set()
        assert (await tunnel.receive_head()).status == 200
        await until(lambda: len(seen) == 2 and seen[1] == b"within", what="the bytes on a connection of their own")
        assert b"within" not in seen[0]


async def test_where_it_is_not_carried_it_is_not_implemented() -> None:
    async with outside() as m, AsyncExitStack() as stack:
        limits = ConnectionLimits()
        of_service = await serve(stack, OutboundListener(m.plane, "x", limits, service=name("pay")))
        inbound = await serve(stack, inbound_listener(m.plane, "pay", m.programs["pay"][0].port, limits))
        for port in (of_service, inbound):
            client = await m.connect(port)
            client.send(HEAD + SMUGGLED)
            assert (await client.receive("CONNECT")).status == 501
            assert await client.ended()
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        client.send(HEAD + SMUGGLED)
        answer = await client.receive("CONNECT")
        assert (answer.status, answer.flag) == (501, "DPE")
        assert b"--egress-connect" in answer.body
        assert await client.ended()


async def test_a_request_that_came_before_it_on_its_connection_is_served() -> None:
    async with outside() as m:
        client = await m.connect()
        client.send(SMUGGLED + HEAD + b"hello")
        assert (await client.receive()).status == 200
        assert (await client.receive_head()).status == 200
        assert await client.reader.readexactly(5) == b"hello"


@pytest.mark.parametrize(
    ("address", "port", "listener", "is_it"),
    [
        ("127.0.0.1", 15001, "127.0.0.1:15001", True),
        ("::ffff:127.0.0.1", 15001, "127.0.0.1:15001", True),
        ("127.0.0.1", 15002, "127.0.0.1:15001", False),
        ("192.0.2.1", 15001, "127.0.0.1:15001", False),
        ("127.0.0.1", 15006, "0.0.0.0:15006", True),
        ("127.0.0.1", 15006, "[::]:15006", True),
        ("127.0.0.1", 15006, "localhost:15006", True),
        ("192.0.2.1", 15006, "0.0.0.0:15006", False),  # TEST-NET-1 (RFC 5737): nobody's
        ("2001:db8::1", 15006, "[::]:15006", False),
    ],
)
def test_which_addresses_are_the_sidecars_own(address: str, port: int, listener: str, *, is_it: bool) -> None:
    assert is_own(address, port, [Address("127.0.0.1", 1), Address.parse(listener)]) is is_it


# --- HTTP/2 (RFC 9113 §8.5) -----------------------------------------------------------------------------------------


class Http2Client:
    """One connection, and what came of it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.data = b""

    async def until(self, is_there: Callable[[list[tuple[int, int, int, bytes]]], bool]) -> None:
        async with asyncio.timeout(5):
            while not is_there(frames(self.data)):
                more = await self.client.reader.read(1 << 16)
                assert more, "closed"
                self.data += more

    def status(self) -> bytes:
        payload = next(payload for kind, _, _, payload in frames(self.data) if kind == HEADERS)
        fields = hpack.Decoder(1 << 16).decode(payload)
        assert not any(key in (b"content-length", b"transfer-encoding") for key, _ in fields if fields[0][1] == b"200")
        return fields[0][1]


async def connect_http2(m: Mesh, authority: bytes = b"outside.example:443", flags: int = 0) -> Http2Client:
    client = await m.connect()
    fields: Headers = [(b":method", b"CONNECT"), (b":authority", authority)]
    client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS | flags, 1, octets.encode(fields)))
    return Http2Client(client)


async def test_over_http2_a_stream_is_the_tunnel() -> None:
    async with outside() as m:
        h2 = await connect_http2(m)
        h2.client.send(frame(DATA, 0, 1, b"early "))
        await h2.until(lambda all_: any(kind == HEADERS for kind, *_ in all_))
        assert h2.status() == b"200"
        h2.client.send(frame(DATA, END_STREAM, 1, b"late"))
        await h2.until(lambda all_: any(kind == DATA and flags & END_STREAM for kind, flags, *_ in all_))
        said = b"".join(payload for kind, _, _, payload in frames(h2.data) if kind == DATA)
        assert said == b"early latethat was all"
        await over(m)
        assert m.cells() == {(str(OUTSIDE), 200, ""): 1}
        h2.client.writer.transport.abort()


async def test_over_http2_a_client_may_have_ended_with_its_head() -> None:
    async with outside() as m:
        h2 = await connect_http2(m, flags=END_STREAM)
        await h2.until(lambda all_: any(kind == DATA and flags & END_STREAM for kind, flags, *_ in all_))
        assert any(payload == b"that was all" for kind, _, _, payload in frames(h2.data) if kind == DATA)
        await over(m)
        h2.client.writer.transport.abort()


async def test_over_http2_a_broken_connection_is_told_as_such() -> None:
    async with outside(drop) as m:
        h2 = await connect_http2(m)
        h2.client.send(frame(DATA, 0, 1, b"x"))
        await h2.until(lambda all_: any(kind == RST_STREAM for kind, *_ in all_))
        code = next(payload for kind, _, _, payload in frames(h2.data) if kind == RST_STREAM)
        assert int.from_bytes(code, "big") == ErrorCode.CONNECT_ERROR
        await over(m)
        h2.client.writer.transport.abort()


async def test_over_http2_a_refusal_ends_its_stream_only() -> None:
    async with outside() as m:
        h2 = await connect_http2(m, b"pay:443")
        await h2.until(lambda all_: any(kind == HEADERS for kind, *_ in all_))
        assert h2.status() == b"403"
        get: Headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"pay")]
        h2.client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, octets.encode(get)))
        await h2.until(lambda all_: any(kind == DATA and number == 3 for kind, _, number, _ in all_))
        h2.client.writer.transport.abort()
