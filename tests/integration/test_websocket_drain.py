"""A draining sidecar tells both sides of its WebSockets to go elsewhere (RFC 6455 §7.4.1), over HTTP/1.1 and HTTP/2."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest

from mesh.http.headers import Headers
from mesh.model.policy import ServicePolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2 import octets
from proxy.http2.frames import DATA, END_HEADERS, HEADERS
from proxy.websocket_relay import tell_websockets
from tests.support.chat import Chat, chat_mesh, connect, text
from tests.support.http2 import PREFACE, frame, frames, settings
from tests.support.mesh import Client, Mesh, Request, inbound_listener, mesh, name, serve
from tests.support.process import until

GOING_AWAY = 1001
HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nhost: chat\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def told(m: Mesh, socket: aiohttp.ClientWebSocketResponse, chat: Chat) -> None:
    """Both sides have seen the code, and nothing is left."""
    message = await socket.receive(timeout=5)
    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, GOING_AWAY)
    assert "drains" in message.extra
    assert socket.close_code == GOING_AWAY
    await until(lambda: chat.closed == [GOING_AWAY], what="the server to be told")
    await until(lambda: not m.plane.exchanges, what="the exchange to end")
    assert {flag for _, _, flag in m.cells()} == {""}


async def test_both_sides_see_that_it_goes_away() -> None:
    async with chat_mesh() as (m, chat, session), connect(session, m) as socket:
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello!"
        tell_websockets(m.plane, [m.outbound])
        await told(m, socket, chat)
        await until(lambda: m.plane.services[name("chat")].usage.connections == 0, what="the connection to close")


async def test_one_that_is_opened_afterwards_is_told_at_once() -> None:
    async with chat_mesh() as (m, chat, session):
        tell_websockets(m.plane, [m.outbound])
        async with connect(session, m) as socket:
            await told(m, socket, chat)


async def test_only_those_of_the_listener_that_leaves() -> None:
    async with chat_mesh() as (m, _, session), connect(session, m) as socket:
        tell_websockets(m.plane, [])
        await socket.send_str("hello")
        assert await socket.receive_str() == "hello!"


@pytest.mark.parametrize("metadata", [{}, {"http2": "true"}], ids=["http1", "bridged to http2"])
async def test_through_the_sidecar_of_another_program(metadata: dict[str, str]) -> None:
    """Client, its sidecar, the sidecar that drains, server."""
    async with chat_mesh() as (m, chat, session), AsyncExitStack() as stack:
        (endpoint,) = m.plane.services[name("chat")].endpoints.values()
        listener = inbound_listener(m.plane, "chat-0", endpoint.model.port, ConnectionLimits())
        inbound = await serve(stack, listener)
        m.plane.apply_endpoints(name("chat"), (Endpoint("s", "127.0.0.1", inbound, metadata),))
        async with connect(session, m) as socket:
            await socket.send_bytes(b"x" * 300_000)
            assert len(await socket.receive_bytes(timeout=5)) == 300_000
            tell_websockets(m.plane, [listener])
            await told(m, socket, chat)


async def test_an_http2_client() -> None:
    async with chat_mesh() as (m, chat, _):
        client = await m.connect()
        fields: Headers = [
            (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/chat"),
            (b":authority", b"chat"), (b"sec-websocket-version", b"13"),
        ]  # fmt: skip
        client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, octets.encode(fields)))
        client.send(frame(DATA, 0, 1, text(b"early")))
        data = b""

        async def read_until(wanted: bytes) -> None:
            nonlocal data
            async with asyncio.timeout(5):
                while wanted not in data:
                    data += await client.reader.read(1 << 16)

        await read_until(b"\x81\x06early!")
        tell_websockets(m.plane, [m.outbound])
        await read_until((1001).to_bytes(2, "big") + b"the sidecar drains")
        assert [payload[0] for kind, _, _, payload in frames(data) if kind == DATA and payload] == [0x81, 0x88]
        await until(lambda: chat.closed == [GOING_AWAY], what="the server to be told")
        client.writer.transport.abort()


# --- in the middle of a frame ---------------------------------------------------------------------------------------


class Peer:
    """A server that agrees and then does as the test says."""

    def __init__(self) -> None:
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self.may_end = asyncio.Event()

    async def agree(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(AGREED)
        self.reader, self.writer = request.reader, writer
        await self.may_end.wait()
        writer.close()


@asynccontextmanager
async def by_hand() -> AsyncIterator[tuple[Mesh, Client, Client]]:
    """Client and server, each as a connection that shows what comes."""
    peer = Peer()
    async with mesh().service("chat", replies=[peer.agree]).start() as m:
        client = await m.connect()
        client.send(HANDSHAKE)
        await until(lambda: peer.writer is not None, what="the server")
        assert peer.reader is not None
        assert peer.writer is not None
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\n")
        yield m, client, Client(peer.reader, peer.writer)
        peer.may_end.set()


async def exactly(client: Client, count: int) -> bytes:
    async with asyncio.timeout(5):
        return await client.reader.readexactly(count)


async def a_close(client: Client, *, masked: bool) -> None:
    head = await exactly(client, 2)
    assert head[0] == 0x88
    assert bool(head[1] & 0x80) == masked
    key = await exactly(client, 4) if masked else bytes(4)
    payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(await exactly(client, head[1] & 127)))
    assert int.from_bytes(payload[:2], "big") == GOING_AWAY


LARGE = b"\x02\x7f" + (200_000).to_bytes(8, "big") + b"x" * 200_000  # the first of a message's fragments
MASKED = b"\x01\xfe" + (1000).to_bytes(2, "big") + b"abcd" + b"y" * 1000
MORE = b"\x80\x05never"


async def test_the_close_comes_behind_the_frame_that_is_under_way() -> None:
    """And in the middle of a fragmented message, which has no end then (§5.4: control frames may stand there)."""
    async with by_hand() as (m, client, server):
        for cut in (1, 7, 100_000):
            server.send(LARGE[:cut] if cut == 1 else LARGE[1:7] if cut == 7 else LARGE[7:100_000])
            await exactly(client, {1: 1, 7: 6, 100_000: 99_993}[cut])
        client.send(MASKED[:3])
        assert await exactly(server, 3) == MASKED[:3]
        tell_websockets(m.plane, [m.outbound])
        server.send(LARGE[100_000:150_000])
        assert await exactly(client, 50_000) == LARGE[100_000:150_000]
        server.send(LARGE[150_000:] + MORE + MORE)
        assert await exactly(client, 50_010) == LARGE[150_000:]
        await a_close(client, masked=False)
        client.send(MASKED[3:] + MASKED)
        assert await exactly(server, len(MASKED) - 3) == MASKED[3:]
        await a_close(server, masked=True)

        # Whatever either side still sends, its answer to the Close too, is for nobody.
        client.send(b"\x88\x80abcd")
        server.send(MORE + b"\x88\x00")
        server.writer.write_eof()
        assert await client.ended()
        client.writer.write_eof()
        assert await server.ended()
        await until(lambda: not m.plane.exchanges, what="the exchange to end")
        assert m.cells() == {("chat", 101, ""): 1}


async def test_who_ignores_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.websocket_relay.CLOSE_S", 0.3)
    async with by_hand() as (m, client, server):
        tell_websockets(m.plane, [m.outbound])
        await a_close(client, masked=False)
        await a_close(server, masked=True)
        server.send(MORE)
        client.send(MASKED)
        assert await client.ended()
        assert await server.ended()
        assert m.cells() == {("chat", 101, "DRAIN"): 1}


async def test_who_has_ended_its_direction_is_told_in_the_other() -> None:
    async with by_hand() as (m, client, server):
        client.writer.write_eof()
        assert await exactly_end(server)
        tell_websockets(m.plane, [m.outbound])
        await a_close(client, masked=False)
        server.writer.write_eof()
        await until(lambda: not m.plane.exchanges, what="the exchange to end")
        assert m.cells() == {("chat", 101, ""): 1}


async def exactly_end(client: Client) -> bool:
    async with asyncio.timeout(5):
        return await client.reader.read() == b""


async def test_other_protocols_are_left_alone() -> None:
    """Nobody knows where their messages end."""

    async def agree(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(AGREED.replace(b"upgrade: websocket", b"upgrade: echo"))
        writer.write(await request.reader.readexactly(5))
        writer.close()

    async with mesh().service("pay", replies=[agree]).start() as m:
        m.plane.services[name("pay")].set_policy(ServicePolicy(name("pay"), upgrades=("echo",)))
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\n")
        tell_websockets(m.plane, [m.outbound])
        client.send(b"hello")
        async with asyncio.timeout(5):
            assert await client.reader.read() == b"hello"


async def test_two_sidecars_that_leave_at_once_say_it_once() -> None:
    """Both sidecars drain at once: each Close is sent by whoever comes first, and answered once."""
    async with chat_mesh() as (m, chat, session), AsyncExitStack() as stack:
        (endpoint,) = m.plane.services[name("chat")].endpoints.values()
        listener = inbound_listener(m.plane, "chat-0", endpoint.model.port, ConnectionLimits())
        inbound = await serve(stack, listener)
        m.plane.apply_endpoints(name("chat"), (Endpoint("s", "127.0.0.1", inbound),))
        async with connect(session, m) as socket:
            tell_websockets(m.plane, [listener, m.outbound])
            await told(m, socket, chat)
