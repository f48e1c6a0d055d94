"""How a connection over TLS ends (RFC 8446 §6.1): one direction at a time, and never before what came is read."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from mesh.model.policy import AppProtocol, TlsPolicy
from proxy.http1.limits import ConnectionLimits
from proxy.http2.frames import DATA, END_HEADERS, GOAWAY, HEADERS
from proxy.listener import OutboundListener
from proxy.tls import ClientSettings, ClientTls, ServerSettings, ServerTls
from tests.support.certificates import Authority
from tests.support.control import background
from tests.support.hang_up import until_hung_up
from tests.support.http2 import PREFACE, frame, head, settings
from tests.support.mesh import inbound_listener, mesh, name, serve
from tests.support.process import until
from tests.support.tls import (
    VERSIONS,
    declare,
    pair,
    server_context,
    trusting,
)


def answer_at_the_end(listening: socket.socket, context: ssl.SSLContext, first: bytes) -> None:
    """A server that says how much came once its client has said all, and a lot besides. Blocking: a thread's work."""
    accepted, _ = listening.accept()
    accepted.settimeout(10)
    with context.wrap_socket(accepted, server_side=True) as connection:
        connection.sendall(first)
        size = 0
        while piece := connection.recv(1 << 16):
            size += len(piece)
        connection.sendall(b"%d bytes" % size + b"." * 300_000)
        with suppress(ssl.SSLError):
            connection.unwrap()


@VERSIONS
@pytest.mark.parametrize("first", [b"", b"-" * 5_000_000], ids=["it waits", "it speaks first and much"])
async def test_an_endpoint_hears_that_its_client_has_ended_and_answers(
    authority: Authority, version: ssl.TLSVersion, first: bytes
) -> None:
    """RFC 8446 §6.1: close_notify ends one direction, as FIN does in TCP, also while the other is held up."""
    context = server_context(authority, version=version)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        async with AsyncExitStack() as stack, asyncio.timeout(10):
            m = await stack.enter_async_context(mesh().start())
            declare(m, listening.getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
            port = await serve(
                stack, OutboundListener(m.plane, "sidemesh-out-tcp", ConnectionLimits(), service=name("web"))
            )
            answering = background(asyncio.to_thread(answer_at_the_end, listening, context, first))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"x" * (3000 if first else 3_000_000))
            writer.write_eof()
            if first:
                await asyncio.sleep(0.3)  # a slow reader: the endpoint is paused, with much of it under way
            expected = b"%d bytes" % (3000 if first else 3_000_000) + b"." * 300_000
            assert await reader.read() == first + expected
            writer.close()
            await answering
            await until(lambda: m.plane.services[name("web")].usage.connections == 0, what="the connection to close")
            assert not m.plane.exchanges


class HalfClosing:
    """A client over TLS that can end its direction, which Python's own do not offer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self._reader, self._writer = reader, writer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="web")

    async def _moved(self, do: Callable[[], Any]) -> Any:
        """Do it as soon as enough has come."""
        while True:
            try:
                return do()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._reader.read(1 << 16)
                self._incoming.write(data) if data else self._incoming.write_eof()
            finally:
                await self._flush()

    async def _flush(self) -> None:
        self._writer.write(self._outgoing.read())
        await self._writer.drain()

    async def begin(self) -> None:
        await self._moved(self._tls.do_handshake)

    async def send_and_end(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            self._tls.write(data[start : start + (1 << 16)])
            await self._flush()
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def receive(self) -> bytes:
        """To the other side's close_notify."""
        got = b""
        while True:
            try:
                data = await self._moved(lambda: self._tls.read(1 << 16))
            except ssl.SSLZeroReturnError:
                return got
            if not data:
                return got
            got += data


@VERSIONS
@pytest.mark.parametrize("size", [3, 3_000_000])
@pytest.mark.parametrize("how", ["tcp", "detect"])
async def test_a_client_over_tls_that_has_said_all_is_answered(
    authority: Authority, version: ssl.TLSVersion, size: int, how: str
) -> None:
    """Its program hears that it has ended, as it does of a client of plain TCP, and has all the time it wants."""

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        await asyncio.sleep(0.2)
        writer.write(b"%d bytes" % len(data) + b"." * 300_000)
        await writer.drain()
        writer.close()

    program = await asyncio.start_server(count, "127.0.0.1", 0)
    async with program, AsyncExitStack() as stack, asyncio.timeout(20):
        m = await stack.enter_async_context(mesh().start())
        where = program.sockets[0].getsockname()[1]
        listener = inbound_listener(
            m.plane, "web-0", where, ConnectionLimits(), is_tcp=how == "tcp", detects=how == "detect"
        )
        listener.tls = ServerTls(ServerSettings((pair(authority.issue("web")),)), ())
        port = await serve(stack, listener)
        context = trusting(authority)
        context.maximum_version = version
        client = HalfClosing(*await asyncio.open_connection("127.0.0.1", port), context)
        await client.begin()
        await client.send_and_end(b"\0" * size)
        assert await client.receive() == b"%d bytes" % size + b"." * 300_000
        client._writer.close()
        await until(lambda: not (m.plane.exchanges or listener.connections), what="the connection to be over")


async def test_a_client_over_tls_that_leaves_altogether_leaves_nothing(authority: Authority) -> None:
    """Most send close_notify and close the connection below at once, whatever is on its way to them."""
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"x" * 1000)
                await writer.drain()
                await reader.read(1)
        writer.close()
        gone.set()

    program = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with program, AsyncExitStack() as stack, asyncio.timeout(20):
        m = await stack.enter_async_context(mesh().start())
        where = program.sockets[0].getsockname()[1]
        listener = inbound_listener(m.plane, "web-0", where, ConnectionLimits(), is_tcp=True)
        listener.tls = ServerTls(ServerSettings((pair(authority.issue("web")),)), ())
        port = await serve(stack, listener)
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting(authority), server_hostname="web")
            writer.write(b"x")
            await writer.drain()
            if number % 2:
                writer.close()
            else:
                writer.transport.abort()
        await gone.wait()
        await until(lambda: not (m.plane.exchanges or listener.connections), what="all to be over")


class Below:
    """The connection that one over TLS is laid over: what is written to it."""

    def __init__(self) -> None:
        self.written = b""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += data


def test_an_end_that_waited_goes_out_though_nothing_but_tickets_was_left_to_read(authority: Authority) -> None:
    """RFC 8446 §4.6.1: they come behind the handshake, and a slow reader leaves them where they are."""
    context = server_context(authority)
    to_client, to_server, below = ssl.MemoryBIO(), ssl.MemoryBIO(), Below()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with ClientTls(ClientSettings("web", authority.certificate)).context_for("a", ()) as client_context:
        client: Any = client_context.wrap_bio(incoming, outgoing, server_hostname="web")
    client.below = below
    is_done = False
    while not is_done:
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        to_server.write(outgoing.read())
        with suppress(ssl.SSLWantReadError):
            server.do_handshake()
            is_done = True
        incoming.write(to_client.read())
    assert incoming.pending  # the tickets
    client.end()
    assert not below.written
    with pytest.raises(ssl.SSLWantReadError):
        client.read()
    to_server.write(below.written)
    assert server.read() == b""  # its close_notify


async def test_an_answer_of_many_frames_is_whole_though_its_endpoint_closes_behind_it(authority: Authority) -> None:
    """TLS tells of the end at once, while the frames before it still have their turns to wait for."""
    count, messages = 60, 60

    async def answer_all_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ids: list[int] = []
        async with until_hung_up(writer):
            await reader.readexactly(len(PREFACE))
            writer.write(settings())
            while len(ids) < count:
                start = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(start[:3], "big"))
                if start[3] == HEADERS:
                    ids.append(int.from_bytes(start[5:], "big"))
            data = b"".join(head(each, [(b":status", b"200")], END_HEADERS) for each in ids)
            data += b"".join(frame(DATA, 0, each, b"message!") for _ in range(messages) for each in ids)
            data += b"".join(head(each, [(b"grpc-status", b"0")]) for each in ids)
            writer.write(data + frame(GOAWAY, 0, 0, ids[-1].to_bytes(4, "big") + bytes(4)))

    context = server_context(authority, "h2")
    async with (
        mesh().start() as m,
        await asyncio.start_server(answer_all_and_go, "127.0.0.1", 0, ssl=context) as server,
    ):
        port = server.sockets[0].getsockname()[1]
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.HTTP2)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(m.get("web") for _ in range(count)))
        assert {(answer.status, len(answer.body)) for answer in answers} == {(200, messages * 8)}
