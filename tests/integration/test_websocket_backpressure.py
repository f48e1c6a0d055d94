"""Whoever reads a WebSocket slowly stops its sender, wherever HTTP/1.1 and HTTP/2 meet on the way; nothing is lost."""

import asyncio
import hashlib
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.http.headers import Headers
from mesh.model.policy import AppProtocol
from proxy.http2.frames import DATA, END_HEADERS, GOAWAY, RST_STREAM, SETTINGS, WINDOW_UPDATE
from tests.support.http2 import PREFACE, credit, frame, head, settings
from tests.support.mesh import Mesh, Request, mesh, speak

PIECE = bytes(range(256)) * 256
PIECES = 1600  # 100 MiB: more than all the kernel's buffers on the way
HELD_BYTES = 4 << 20
"""More than this the sidecars never hold for one connection."""
SETTINGS_INITIAL_WINDOW_SIZE = 4
MOST = (1 << 31) - 1
UPGRADE = (
    b"GET /chat HTTP/1.1\r\nhost: chat\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CONNECT: Headers = [
    (b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http"), (b":path", b"/chat"),
    (b":authority", b"chat"), (b"sec-websocket-version", b"13"),
]  # fmt: skip


def switched(request: Request) -> bytes:
    """A server's half of the handshake (RFC 6455 §4.2.2)."""
    (key,) = request.fields("sec-websocket-key")
    accept = b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())  # noqa: S324
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: %b\r\n\r\n" % accept
    )


class Sender:
    """Sends all of it as fast as it is let."""

    def __init__(self) -> None:
        self.pieces = 0

    async def send(self, writer: asyncio.StreamWriter, frame_of: Callable[[bytes], bytes] = bytes) -> None:
        for _ in range(PIECES):
            writer.write(frame_of(PIECE))
            await writer.drain()
            self.pieces += 1

    async def until_stalled(self) -> None:
        """Wait until it sends no more, or has sent all."""
        before = -1
        while before != self.pieces < PIECES:
            before = self.pieces
            await asyncio.sleep(0.5)


async def read_all(reader: asyncio.StreamReader) -> bool:
    """Tell whether all of it came, in order."""
    for _ in range(PIECES):
        if await reader.readexactly(len(PIECE)) != PIECE:
            return False
    return True


async def read_frames(client: "Slow", *, gives_credit: bool) -> bool:
    """The same of an HTTP/2 stream; it may have given all the credit there is before."""
    data, total = b"", 0
    while total < PIECES * len(PIECE):
        header = await client.reader.readexactly(9)
        payload = await client.reader.readexactly(int.from_bytes(header[:3], "big"))
        assert header[3] not in (RST_STREAM, GOAWAY), payload
        if header[3] == DATA:
            data += payload
            total += len(payload)
            if payload and gives_credit:
                client.writer.write(credit(0, len(payload)) + credit(1, len(payload)))
            while len(data) >= len(PIECE):
                if not data.startswith(PIECE):
                    return False
                data = data[len(PIECE) :]
    return not data


class Slow:
    """A connection that takes little at a time and reads only when it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Slow":
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=own, limit=65_536))


def held_bytes(m: Mesh) -> int:
    """The most that a sidecar holds for one connection, whichever end of it."""
    listeners = [m.outbound, *(inbound for each in m.inbounds.values() for inbound in each)]
    ends = [connection.transport for listener in listeners for connection in listener.connections]
    for service in m.plane.services.values():
        for endpoint in service.endpoints.values():
            ends += [connection.transport for connection in endpoint.connections]
            ends += [shared.transport for shared in endpoint.http2_pool._connections]
    return max(end.get_write_buffer_size() for end in ends if end is not None)


class LateServer:
    """Reads when it may, and tells whether all of it came."""

    def __init__(self) -> None:
        self.may_read, self.was_right = asyncio.Event(), asyncio.Event()

    async def serve(self, request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(switched(request))
        await self.may_read.wait()
        if await read_all(request.reader):
            self.was_right.set()


@asynccontextmanager
async def at_last(event: asyncio.Event) -> AsyncIterator[None]:
    """Whoever waits for it goes on in any case."""
    try:
        yield
    finally:
        event.set()


@asynccontextmanager
async def chat(reply: Callable[[Request, asyncio.StreamWriter], Awaitable[None]], between: str) -> AsyncIterator[Mesh]:
    """``between``: what two sidecars speak, or "" for one sidecar alone."""
    async with mesh().service("chat", replies=[reply], sidecar=bool(between)).start() as m:
        if between == "http2":
            speak(m, "chat", AppProtocol.HTTP2)
        yield m


@pytest.mark.parametrize("between", ["", "http1", "http2"])
@pytest.mark.parametrize("client", ["http1", "http2", "http2 without credit"])
async def test_a_client_that_reads_slowly_stops_its_server(client: str, between: str) -> None:
    sender = Sender()

    async def server(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(switched(request))
        await sender.send(writer)
        await request.reader.read()

    async with chat(server, between) as m, asyncio.timeout(50):
        slow = await Slow.connect(m.port)
        if client == "http1":
            slow.writer.write(UPGRADE)
        elif client == "http2":
            wide = settings((SETTINGS_INITIAL_WINDOW_SIZE, MOST)) + credit(0, MOST - 65_535)
            slow.writer.write(PREFACE + wide + head(1, CONNECT, END_HEADERS))
        else:
            slow.writer.write(PREFACE + settings() + head(1, CONNECT, END_HEADERS))
        await sender.until_stalled()
        assert held_bytes(m) < HELD_BYTES
        assert 0 < sender.pieces < PIECES
        if client == "http1":
            assert (await slow.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await read_all(slow.reader)
        else:
            assert await read_frames(slow, gives_credit=client == "http2 without credit")
        slow.writer.transport.abort()


@pytest.mark.parametrize("between", ["", "http1", "http2"])
async def test_a_server_that_reads_slowly_stops_its_client(between: str) -> None:
    late = LateServer()
    sender = Sender()
    async with (
        chat(late.serve, between) as m,
        asyncio.timeout(50),
        asyncio.TaskGroup() as group,
        at_last(late.may_read),
    ):
        client = await m.connect()
        client.send(UPGRADE)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        group.create_task(sender.send(client.writer))
        await sender.until_stalled()
        assert held_bytes(m) < HELD_BYTES
        assert 0 < sender.pieces < PIECES
        late.may_read.set()
        await late.was_right.wait()


@pytest.mark.parametrize("between", ["", "http1", "http2"])
async def test_an_http2_client_has_no_more_credit_than_its_server_takes(between: str) -> None:
    """Frames beyond the window would be a fault of the client, so it counts."""
    late = LateServer()
    async with (
        chat(late.serve, between) as m,
        asyncio.timeout(50),
        asyncio.TaskGroup() as group,
        at_last(late.may_read),
    ):
        client = await m.connect()
        client.send(PREFACE + settings() + head(1, CONNECT, END_HEADERS))
        windows, sender = {0: 65_535, 1: 65_535}, Sender()
        has_credit = asyncio.Event()

        async def hear() -> None:
            while True:
                header = await client.reader.readexactly(9)
                payload = await client.reader.readexactly(int.from_bytes(header[:3], "big"))
                stream = int.from_bytes(header[5:9], "big")
                if header[3] == WINDOW_UPDATE:
                    windows[stream] += int.from_bytes(payload, "big")
                elif header[3] == SETTINGS and payload:
                    told = {
                        payload[i + 1]: int.from_bytes(payload[i + 2 : i + 6], "big") for i in range(0, len(payload), 6)
                    }
                    windows[1] += told.get(SETTINGS_INITIAL_WINDOW_SIZE, 65_535) - 65_535
                assert header[3] not in (RST_STREAM, GOAWAY), payload
                has_credit.set()

        async def send() -> None:
            left = b""
            while sender.pieces < PIECES:
                left = left or PIECE
                size = min(len(left), 16_384, *windows.values())
                if not size:
                    has_credit.clear()
                    await has_credit.wait()
                    continue
                for window in windows:
                    windows[window] -= size
                client.send(frame(DATA, 0, 1, left[:size]))
                left = left[size:]
                sender.pieces += not left
                await client.writer.drain()

        hearing = group.create_task(hear())
        group.create_task(send())
        await sender.until_stalled()
        assert held_bytes(m) < HELD_BYTES
        assert 0 < sender.pieces < PIECES
        late.may_read.set()
        await late.was_right.wait()
        hearing.cancel()
