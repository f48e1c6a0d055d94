"""Connections in which nothing comes: which end, when, and how; and which have every right to be silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from proxy.http1.limits import ConnectionLimits
from proxy.http2.errors import ErrorCode
from proxy.http2.frames import CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM
from tests.support.http2 import POST, START, frame, frames, head, settings
from tests.support.http2_peer import Peer
from tests.support.mesh import Client, Mesh, Request, mesh, read_body, speak

LONG = 60.0
HTTP1_GET = b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n"


async def told(client: Client) -> tuple[ErrorCode | None, bytes, list[int]]:
    """Read to the end of the connection; gives what the last GOAWAY says, and the kinds of all frames."""
    data = b""
    async with asyncio.timeout(10):
        while piece := await client.reader.read(1 << 16):
            data += piece
    found = frames(data)
    last = next((payload for kind, _, _, payload in reversed(found) if kind == GOAWAY), b"")
    return ErrorCode(int.from_bytes(last[4:8], "big")) if last else None, last[8:], [kind for kind, *_ in found]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(PREFACE, id="the preface alone"),
        pytest.param(PREFACE + settings()[:5], id="a part of SETTINGS"),
        pytest.param(START, id="no request"),
        pytest.param(START + frame(HEADERS, END_STREAM, 1, b"\x82"), id="HEADERS without END_HEADERS"),
        pytest.param(START + head(1)[:12], id="a part of HEADERS"),
    ],
)
async def test_who_asks_nothing_is_told_to_go(sent: bytes) -> None:
    limits = ConnectionLimits(first_byte_s=0.5, idle_s=LONG, head_s=LONG, stall_s=LONG)
    async with mesh().service("pay").limits(limits).start() as m:
        client = await m.connect()
        client.send(sent)
        code, _, _ = await told(client)
        assert code is ErrorCode.NO_ERROR
        assert not m.outbound.connections


async def test_who_asks_nothing_more_is_told_to_go() -> None:
    limits = ConnectionLimits(first_byte_s=LONG, idle_s=0.5, head_s=LONG, stall_s=LONG)
    async with mesh().service("pay").limits(limits).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.send(START + head(1))
        code, _, kinds = await told(client)
        assert code is ErrorCode.NO_ERROR
        assert HEADERS in kinds
        assert not m.outbound.connections


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(START + b"\x00\x40\x00\x01\x05\x00\x00\x00\x01", b"\x82", id="HEADERS"),
        pytest.param(START + frame(HEADERS, END_STREAM, 1, b""), frame(CONTINUATION, 0, 1, b"\x82"), id="CONTINUATION"),
        pytest.param(START + b"\x00\x40\x00\xbb\x00\x00\x00\x00\x00", b"x", id="a frame of an unknown kind"),
        pytest.param(START + b"\x00\x40\x00\x00\x00\x00\x00\x00\x01", b"x", id="DATA of no stream"),
    ],
)
async def test_who_drips_gets_no_longer_than_a_head_may_take(start: bytes, piece: bytes) -> None:
    """Slowloris: each byte comes in time, and the head never ends."""
    limits = ConnectionLimits(first_byte_s=LONG, idle_s=LONG, head_s=0.5, stall_s=LONG)
    async with mesh().service("pay").limits(limits).start() as m:
        client = await m.connect()
        client.send(start)
        answers: list[tuple[ErrorCode | None, bytes]] = []

        async def hear() -> None:
            answers.append((await told(client))[:2])

        async with asyncio.TaskGroup() as group:
            group.create_task(hear())
            while not answers:
                client.send(piece)
                await asyncio.sleep(0.1)
        assert answers == [
            (ErrorCode.ENHANCE_YOUR_CALM, b"a request head, or another frame, was not complete within 0.5 s")
        ]
        assert not m.outbound.connections


async def test_a_body_may_drip() -> None:
    async def counts(request: Request, writer: asyncio.StreamWriter) -> None:
        body = await read_body(request.fields("content-length"), request.fields("transfer-encoding"), request.reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n%02d" % len(body))

    limits = ConnectionLimits(first_byte_s=LONG, idle_s=LONG, head_s=0.5, stall_s=LONG)
    async with mesh().service("pay", replies=[counts]).limits(limits).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.send(START + head(1, POST, END_HEADERS) + frame(DATA, END_STREAM, 1, b"", length=30))
        for _ in range(30):
            await asyncio.sleep(0.1)
            client.send(b"x")
        data = b""
        async with asyncio.timeout(10):
            while not any(payload == b"30" for _, _, _, payload in frames(data)):
                data += await client.reader.read(1 << 16)
        client.writer.transport.abort()


async def test_a_body_that_nobody_wants_any_more_may_come_slowly_too() -> None:
    """The answer came early, and what the client had sent by then is still on its way: each frame in time for itself."""

    async def refuses(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")

    limits = ConnectionLimits(first_byte_s=LONG, idle_s=LONG, head_s=0.5, stall_s=LONG)
    async with mesh().service("pay", replies=[refuses]).limits(limits).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.send(START + head(1, POST, END_HEADERS))
        data, piece = b"", frame(DATA, 0, 1, b"x" * 1000)
        async with asyncio.timeout(20):
            while not any(kind == RST_STREAM for kind, *_ in frames(data)):
                data += await client.reader.read(1 << 16)
            client.send(piece[:500])
            for _ in range(12):
                await asyncio.sleep(0.3)
                client.send(piece[500:] + piece[:500])
            client.send(piece[500:] + frame(PING, 0, 0, b"the last"))
            while b"the last" not in data:
                more = await client.reader.read(1 << 16)
                assert more, frames(data)
                data += more
        assert not any(kind == GOAWAY for kind, *_ in frames(data))
        client.writer.transport.abort()


@pytest.mark.parametrize("size", range(9))
def test_a_frame_of_a_body_is_one_from_its_first_byte(size: int) -> None:
    peer = Peer().feed(START + head(1, POST, END_HEADERS) + frame(DATA, 0, 1, b"x" * 100)[:size])
    assert not peer.connection.unfinished


async def test_heads_that_come_one_after_the_other_are_each_in_time() -> None:
    """On a busy connection something is always unfinished."""
    limits = ConnectionLimits(first_byte_s=LONG, idle_s=LONG, head_s=0.5, stall_s=LONG)
    async with mesh().service("pay").limits(limits).start() as m:
        speak(m, "pay", AppProtocol.HTTP)
        client = await m.connect()
        client.send(START)
        for number in range(1, 60, 2):
            client.send(head(number)[:15])
            await asyncio.sleep(0.1)
            client.send(head(number)[15:])
        client.send(frame(PING, 0, 0, b"the last"))
        data = b""
        async with asyncio.timeout(10):
            while b"the last" not in data:
                data += await client.reader.read(1 << 16)
        assert sum(kind == HEADERS for kind, *_ in frames(data)) >= 29
        assert not any(kind == GOAWAY for kind, *_ in frames(data))
        client.writer.transport.abort()


# --- who may be silent ----------------------------------------------------------------------------------------------


async def waits(_: Request, writer: asyncio.StreamWriter) -> None:
    """A program that thinks for long, sends an event, is silent for long, and sends another."""
    await asyncio.sleep(2.5)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: one\n\n")
    await writer.drain()
    await asyncio.sleep(2.5)
    writer.write(b"data: two\n\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def waiting_mesh(between: AppProtocol) -> AsyncIterator[Mesh]:
    limits = ConnectionLimits(first_byte_s=0.5, idle_s=0.5, head_s=0.5, stall_s=0.5, tunnel_idle_s=0.5)
    async with mesh().service("pay", replies=[waits], sidecar=True).limits(limits).start() as m:
        speak(m, "pay", between)
        local = Name("(local)", "pay-0")
        m.plane.services[local].set_policy(ServicePolicy(local, app_protocol=AppProtocol.HTTP))
        yield m


@pytest.mark.parametrize("client", ["http1", "http2"])
@pytest.mark.parametrize("between", [AppProtocol.HTTP, AppProtocol.HTTP2])
async def test_an_answer_may_be_silent_for_long(client: str, between: AppProtocol) -> None:
    """It is the program's turn on every connection along the way, and ``stall_s`` is for clients."""
    async with waiting_mesh(between) as m:
        caller = await m.connect()
        caller.send(HTTP1_GET if client == "http1" else START + head(1))
        data = b""
        async with asyncio.timeout(15):
            while b"data: two" not in data:
                piece = await caller.reader.read(1 << 16)
                assert piece, data
                data += piece
        assert b"data: one" in data
        caller.writer.transport.abort()
