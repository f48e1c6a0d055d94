"""WebSocket and other upgrades through the request path, with aiohttp at both ends, over HTTP/1.1 and HTTP/2."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest

from mesh.http.headers import Headers
from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2 import hpack, octets
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM
from tests.support.chat import chat_mesh, chat_server, connect, text
from tests.support.http2 import PREFACE, frame, frames, settings
from tests.support.mesh import Request, inbound_listener, mesh, name, serve, speak
from tests.support.process import until


async def test_messages_both_ways_and_an_orderly_close() -> None:
    async with chat_mesh() as (m, chat, session):
        async with connect(session, m) as socket:
            assert socket.protocol == "chat"
            for number in range(100):
                await socket.send_str(str(number))
            assert [await socket.receive_str() for _ in range(100)] == [f"{number}!" for number in range(100)]
            assert chat.requests[0].headers["via"].startswith("1.1 sidemesh-out")
            await socket.send_str("close")
            message = await socket.receive()
            assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4000, "as told")
        await until(lambda: not m.plane.exchanges, what="the exchange to end")
        await until(lambda: m.plane.services[name("chat")].usage.connections == 0, what="the connection to close")
        assert m.cells() == {("chat", 101, ""): 1}
        assert m.plane.services[name("chat")].usage.requests == 0


async def test_a_large_message_passes_whole() -> None:
    async with chat_mesh() as (m, _, session), connect(session, m) as socket:
        large = bytes(range(256)) * 32 * 1024  # 8 MiB
        await socket.send_bytes(large)
        assert await socket.receive_bytes(timeout=20) == large


async def test_an_upgrade_that_is_refused_is_an_ordinary_answer_and_the_connection_serves_on() -> None:
    async with chat_mesh() as (m, _, session):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(session, m, x_user="mallory"):
                pass
        assert refused.value.status == 403
        client = await m.connect()
        for _ in range(2):
            client.send(
                b"GET /chat HTTP/1.1\r\nhost: chat\r\nx-user: mallory\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
                b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert (await client.receive()).status == 403


@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_end_that_breaks_off_ends_the_other(who: str) -> None:
    async with chat_mesh() as (m, chat, session):
        socket = await connect(session, m)
        await socket.send_str("x")
        assert await socket.receive_str() == "x!"
        if who == "client":
            assert socket._response.connection is not None
            socket._response.connection.transport.abort()  # type: ignore[union-attr]
            await until(lambda: chat.open == 0, what="the server to notice")
        else:
            await socket.send_str("drop")
            assert (await socket.receive(timeout=5)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await until(lambda: not m.plane.exchanges, what="the exchange to end")


async def test_a_tunnel_in_which_nothing_moves_is_closed() -> None:
    async with chat_mesh(ConnectionLimits(tunnel_idle_s=1.0)) as (m, chat, session):
        socket = await connect(session, m)
        assert (await socket.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await until(lambda: chat.open == 0, what="the server's end")
        assert m.cells() == {("chat", 101, "SI"): 1}


async def test_the_timeouts_of_a_route_are_for_the_handshake_only() -> None:
    async with (
        mesh().service("chat").rule("chat", request_s=0.5, try_s=0.5).start() as m,
        chat_server() as (_, port),
        aiohttp.ClientSession() as session,
    ):
        m.plane.apply_endpoints(name("chat"), (Endpoint("c", "127.0.0.1", port),))
        async with connect(session, m) as socket:
            await asyncio.sleep(0.8)
            await socket.send_str("still here")
            assert await socket.receive_str() == "still here!"


async def test_other_protocols_follow_only_where_a_policy_says_so() -> None:
    """RFC 9110 §7.8: who does not take up an Upgrade answers the request as if it were not there."""
    asked: list[list[str]] = []

    async def agree(request: Request, writer: asyncio.StreamWriter) -> None:
        asked.append(request.fields("upgrade"))
        if not asked[-1]:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            return
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Echo/1\r\n\r\nhello ")
        data = await request.reader.read(1 << 16)
        writer.write(data.upper())
        await writer.drain()
        writer.close()

    async with mesh().service("pay", replies=[agree, agree]).start() as m:
        head = b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: upgrade\r\nupgrade: echo/1\r\n\r\n"
        client = await m.connect()
        client.send(head)
        assert (await client.receive()).status == 200
        m.plane.services[name("pay")].set_policy(ServicePolicy(name("pay"), upgrades=("echo/1",)))
        client.send(head + b"more")  # sent before it knew
        async with asyncio.timeout(5):
            data = await client.reader.readuntil(b"\r\n\r\n")
            assert data.startswith(b"HTTP/1.1 101 ")
            assert b"upgrade: echo/1\r\n" in data
            assert await client.reader.read() == b"hello MORE"
        assert asked == [[], ["echo/1"]]


# --- HTTP/2 (RFC 8441) ----------------------------------------------------------------------------------------------


async def test_over_http2_between_two_sidecars() -> None:
    """HTTP/1.1 in, HTTP/2 between them, HTTP/1.1 to the server: key and accept are where they have to be."""
    async with chat_mesh() as (m, chat, session), AsyncExitStack() as stack:
        (endpoint,) = m.plane.services[name("chat")].endpoints.values()
        inbound = await serve(stack, inbound_listener(m.plane, "chat-0", endpoint.model.port, ConnectionLimits()))
        m.plane.apply_endpoints(name("chat"), (Endpoint("s", "127.0.0.1", inbound, {"http2": "true"}),))
        async with connect(session, m) as one, connect(session, m) as other:
            for socket in (one, other):
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello!"
            large = b"x" * 3_000_000
            await one.send_bytes(large)
            assert await one.receive_bytes(timeout=20) == large
            await one.send_str("close")
            assert (await one.receive()).data == 4000
            await other.send_str("still")
            assert await other.receive_str() == "still!"
        assert [hop.split()[0] for hop in chat.requests[0].headers["via"].split(",")] == ["1.1", "2.0"]
        (sidecar,) = m.plane.services[name("chat")].endpoints.values()
        assert sidecar.http2_pool.count == 1
        await until(lambda: not m.plane.exchanges, what="the exchanges to end")
        assert m.plane.services[name("chat")].usage.requests == 0


async def test_an_http2_client() -> None:
    async with chat_mesh() as (m, _, _):
        client = await m.connect()
        fields: Headers = [
            (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/chat"),
            (b":authority", b"chat"), (b"sec-websocket-version", b"13"), (b"sec-websocket-protocol", b"chat"),
        ]  # fmt: skip
        client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, octets.encode(fields)))
        client.send(frame(DATA, 0, 1, text(b"early")))
        data, decoder = b"", hpack.Decoder(1 << 16)

        async def read_until(wanted: bytes) -> None:
            nonlocal data
            async with asyncio.timeout(5):
                while wanted not in data:
                    data += await client.reader.read(1 << 16)

        await read_until(b"\x81\x06early!")
        assert frames(data)[0][3].find(b"\x00\x08\x00\x00\x00\x01") >= 0  # SETTINGS_ENABLE_CONNECT_PROTOCOL
        head = next(decoder.decode(payload) for kind, _, _, payload in frames(data) if kind == HEADERS)
        assert head[0] == (b":status", b"200")
        assert (b"sec-websocket-protocol", b"chat") in head
        assert not any(name == b"sec-websocket-accept" for name, _ in head)
        client.send(frame(DATA, 0, 1, text(b"more")))
        await read_until(b"\x81\x05more!")
        client.send(frame(DATA, END_STREAM, 1, text(b"close")))
        await read_until(b"as told")
        await until(lambda: not m.plane.exchanges, what="the exchange to end")
        assert not any(kind == RST_STREAM for kind, *_ in frames(data))
        client.writer.transport.abort()


async def test_an_http2_client_is_never_told_that_a_tunnel_is_open_which_is_not() -> None:
    """RFC 8441 §5: to a CONNECT any 2xx says that it is."""
    async with mesh().service("pay", replies=[200, 200, 403]).start() as m:
        for number, (protocol, status) in enumerate(((b"foo", b"501"), (b"websocket", b"502"), (b"websocket", b"502"))):
            client = await m.connect()
            fields: Headers = [
                (b":method", b"CONNECT"), (b":protocol", protocol), (b":scheme", b"http"), (b":path", b"/"),
                (b":authority", b"pay"), (b"sec-websocket-version", b"13"),
            ]  # fmt: skip
            client.send(PREFACE + settings() + frame(HEADERS, END_HEADERS, 1, octets.encode(fields)))
            data = b""
            async with asyncio.timeout(5):
                while not any(kind == HEADERS for kind, *_ in frames(data)):
                    data += await client.reader.read(1 << 16)
            answer = next(payload for kind, _, _, payload in frames(data) if kind == HEADERS)
            assert hpack.Decoder(1 << 16).decode(answer)[0] == (b":status", status), number
            client.writer.transport.abort()


async def test_an_endpoint_that_takes_no_tunnels_over_http2_is_not_asked() -> None:
    async def serve_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(settings())
        while await reader.read(1 << 16):
            pass
        writer.close()

    server = await asyncio.start_server(serve_http2, "127.0.0.1", 0)
    async with chat_mesh() as (m, _, session), server:
        m.plane.apply_endpoints(name("chat"), (Endpoint("s", "127.0.0.1", server.sockets[0].getsockname()[1]),))
        speak(m, "chat", AppProtocol.HTTP2)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(session, m):
                pass
        assert refused.value.status == 502
