"""Clients that are slow, idle, greedy or mad: each costs itself, within limits, and nobody else."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from proxy.http1.downstream import Http1Downstream
from proxy.http1.limits import ConnectionLimits, HeadLimits
from tests.support.mesh import Client, Mesh, Request, mesh
from tests.support.process import until

GET = b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n"
LOCAL = b"GET / HTTP/1.1\r\nhost: not_a_label\r\n\r\n"  # answered by the sidecar itself
WELL_S = 1.0
"""Within this a normal request is answered, whatever the others do."""

HIGH_WATER = 64 * 1024 + 256 * 1024
"""What a connection may hold back for its client: asyncio's high-water mark, and what one read brings beyond it."""


async def well(m: Mesh) -> None:
    """A normal request is answered in time."""
    began = time.monotonic()
    assert (await m.get("pay")).status == 200
    assert time.monotonic() - began < WELL_S


def connections(m: Mesh) -> Iterator[Http1Downstream]:
    return iter(tuple(m.outbound.connections))


def held_bytes(m: Mesh) -> int:
    """What all client connections make the sidecar hold."""
    return sum(len(c._buffer) + c.transport.get_write_buffer_size() for c in connections(m))


async def flood(client: Client, data: bytes, times: int) -> int:
    """Send ``data`` that often, or until the sidecar has taken no more for half a second; gives how often."""
    for sent in range(times):
        client.send(data)
        try:
            async with asyncio.timeout(0.5):
                await client.writer.drain()
        except TimeoutError:
            return sent
        except ConnectionError:
            return sent
    return times


# --- slow and idle --------------------------------------------------------------------------------------------------


async def test_a_head_that_comes_too_slowly_gets_408() -> None:
    limits = ConnectionLimits(head_s=0.5, linger_s=0.5)
    async with mesh().service("pay").limits(limits).start() as m:
        slow = [await m.connect() for _ in range(50)]
        for client in slow:
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n")

        async def drip() -> None:
            while True:
                for client in slow:
                    client.send(b"a: b\r\n")
                await asyncio.sleep(0.1)

        async with dripping(drip):
            await well(m)
            for client in slow:
                assert (await client.receive()).status == 408
        await until(lambda: len(m.outbound.connections) == 0, what="the slow ones to be closed")
        await well(m)


@asynccontextmanager
async def dripping(drip) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(drip())
        yield
        task.cancel()


async def test_connections_that_ask_nothing_are_closed() -> None:
    limits = ConnectionLimits(first_byte_s=0.5, idle_s=0.5)
    async with mesh().service("pay").limits(limits).start() as m:
        silent = [await m.connect() for _ in range(50)]
        idle = await m.connect()
        idle.send(GET)
        assert (await idle.receive()).status == 200
        for client in (*silent, idle):
            assert await client.ended()
        assert not m.outbound.connections
        await well(m)


async def test_a_client_that_stops_in_the_middle_of_its_body_is_let_go() -> None:
    async def wait_for_all(request: Request, _: asyncio.StreamWriter) -> None:
        await request.reader.readexactly(100)

    limits = ConnectionLimits(stall_s=0.5)
    async with mesh().service("pay", replies=[wait_for_all, 200]).limits(limits).start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: 100\r\n\r\nhalf")
        assert await client.ended()
        assert not m.plane.exchanges
        await well(m)


async def test_a_head_byte_by_byte_costs_little() -> None:
    """Each byte must not cost a look at all bytes before it: 50 KB would be a billion of them."""
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        connection = next(connections(m))
        head = b"GET / HTTP/1.1\r\nhost: pay\r\n" + (b"x-" + b"a" * 100 + b": " + b"b" * 900 + b"\r\n") * 50
        began = time.process_time()
        for i in range(len(head)):
            connection.data_received(head[i : i + 1])
        assert time.process_time() - began < 1.0
        connection.data_received(b"\r\n")
        assert (await client.receive()).status == 200


# --- slow readers ---------------------------------------------------------------------------------------------------


async def test_pipelined_requests_whose_answers_nobody_reads_are_not_answered_without_end() -> None:
    async with mesh().service("pay").start() as m:
        for request in (LOCAL * 100, GET * 100):
            client = await m.connect()
            client.writer.transport.pause_reading()
            sent = await flood(client, request, 5000)
            assert sent < 5000, "all was taken, and its answers were kept"
            assert held_bytes(m) < 2 * HIGH_WATER
            await well(m)
            client.writer.transport.abort()
        await until(lambda: len(m.outbound.connections) == 0, what="the connections to end")
        assert not m.plane.exchanges


async def test_a_client_that_reads_again_gets_all_its_pipelined_answers() -> None:
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        count = 40_000
        client.send(LOCAL * count)
        await until(lambda: any(not c.is_writable for c in connections(m)), what="the sidecar to wait for the reader")
        for _ in range(count):
            assert (await client.receive()).status == 404


async def test_a_hundred_readers_that_never_read_hold_little() -> None:
    async def endless(_: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            if writer.transport.get_write_buffer_size() < 1 << 18:
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await asyncio.sleep(0.001)

    async with mesh().service("big", replies=[endless]).service("pay").start() as m:
        readers = [await m.connect() for _ in range(100)]
        for client in readers:
            client.send(b"GET / HTTP/1.1\r\nhost: big\r\n\r\n")
            client.writer.transport.pause_reading()
        await until(
            lambda: sum(not c.is_writable for c in connections(m)) == 100, what="all to be waited for", timeout_s=30
        )
        assert held_bytes(m) < 100 * 2 * HIGH_WATER
        await well(m)
        for client in readers:
            client.writer.transport.abort()
        await until(lambda: not m.plane.exchanges, what="the exchanges to end")


async def test_a_last_answer_that_is_never_read_is_not_kept_for_ever() -> None:
    big = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (8 << 20, b"x" * (8 << 20))
    limits = ConnectionLimits(stall_s=0.5, idle_s=0.5)
    for connection in ("close", "keep-alive"):
        async with mesh().service("big", replies=[big]).service("pay").limits(limits).start() as m:
            client = await m.connect()
            client.writer.transport.pause_reading()
            client.send(b"GET / HTTP/1.1\r\nhost: big\r\nconnection: %b\r\n\r\n" % connection.encode())
            await until(lambda: m.programs["big"][0].requests, what="the request")
            await until(lambda: not m.outbound.connections, what="the connection to be given up")
            await until(lambda: not m.plane.exchanges, what="the exchange to end")
            await well(m)


# --- floods ---------------------------------------------------------------------------------------------------------


async def test_too_many_connections_are_refused_and_the_rest_goes_on() -> None:
    async with mesh().service("pay").limits(ConnectionLimits(), max_connections=20).start() as m:
        kept = [await m.connect() for _ in range(20)]
        await until(lambda: len(m.outbound.connections) == 20, what="20 connections")
        surplus = [await m.connect() for _ in range(200)]
        for client in surplus:
            assert await client.ended()
        assert m.outbound.refused_connections == 200
        assert len(m.outbound.connections) == 20
        for client in kept:
            client.send(GET)
            assert (await client.receive()).status == 200
        kept[0].close()
        await until(lambda: len(m.outbound.connections) == 19, what="one to leave")
        await well(m)


@pytest.mark.parametrize("extension", [b"", b";" + b"e" * 200], ids=["plain", "with long extensions"])
async def test_tiny_chunks_hold_up_nobody(extension: bytes) -> None:
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        chunks = (b"1%b\r\nx\r\n" % extension) * 2000
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ntransfer-encoding: chunked\r\n\r\n")
        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(flood(client, chunks, 20))
            await well(m)
            assert await flooding == 20
            await well(m)
        client.send(b"0\r\n\r\n")
        assert (await client.receive()).status == 200
        assert len(m.programs["pay"][0].requests[-1].body) == 40_000


@pytest.mark.parametrize(
    "line",
    [b"1;" + b"e" * 300 + b"\r\nx\r\n", b"0" * 300 + b"1\r\nx\r\n", b"1;" + b"e" * 3000],
    ids=["extension", "zeros", "no end"],
)
async def test_a_chunk_line_beyond_its_limit_is_refused(line: bytes) -> None:
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ntransfer-encoding: chunked\r\n\r\n" + line)
        assert (await client.receive()).status == 400
        assert await client.ended()
        await well(m)


async def test_random_host_names_leave_no_trace() -> None:
    rng = random.Random(5)
    async with mesh().service("pay").start() as m:
        await well(m)
        table = m.plane.table
        assert table is not None

        def sizes() -> tuple[int, ...]:
            plane = m.plane
            return len(table.hosts), len(plane.services), len(plane._passthrough), len(m.recorder.series)

        before = sizes()
        client = await m.connect()
        for _ in range(20):
            names = [b"%x" % rng.getrandbits(64) for _ in range(250)]
            client.send(b"".join(b"GET / HTTP/1.1\r\nhost: n%b\r\n\r\n" % name for name in names))
            for _ in names:
                assert (await client.receive()).status == 404
        assert sum(sizes()) <= sum(before) + 1  # one series for all that was no service
        await well(m)


async def test_heads_of_many_fields_are_refused() -> None:
    async with mesh().service("pay").start() as m:
        for fields, status in ((b"x: y\r\n" * 101, 431), (b"x-" + b"a" * 62_000 + b": y\r\n", 431)):
            client = await m.connect()
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n" + fields + b"\r\n")
            assert (await client.receive()).status == status
            assert await client.ended()
        endless = await m.connect()
        await flood(endless, b"x-field: of many\r\n" * 1000, 200)
        await well(m)
        assert held_bytes(m) < HIGH_WATER


async def test_field_names_and_hosts_never_seen_before_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.http1 import codec, fields, splitter
    from proxy.http1.splitter import MAX_NAMES

    rng = random.Random(6)
    seen = splitter.PythonSplitter(fields.REQUEST_KINDS, fields.KNOWN, fields.HOST)
    monkeypatch.setattr(codec, "request_splitter", seen)  # the compiled one remembers nothing
    async with mesh().service("pay").start() as m:
        client = await m.connect()
        for _ in range(60):
            lines = b"".join(b"x-%x: y\r\n" % rng.getrandbits(64) for _ in range(90))
            client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n" + lines + b"\r\n")
            assert (await client.receive()).status == 200
        assert 1000 < len(seen.seen) <= MAX_NAMES
        assert len(codec._good_authorities) <= MAX_NAMES


async def test_small_limits_hold_where_they_are_set() -> None:
    limits = ConnectionLimits(HeadLimits(line_bytes=100, head_bytes=1000, count=5))
    async with mesh().service("pay").limits(limits).start() as m:
        for head, status in (
            (b"GET /" + b"a" * 100 + b" HTTP/1.1\r\nhost: pay\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nhost: pay\r\nx: " + b"a" * 1000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nhost: pay\r\n" + b"x: y\r\n" * 5 + b"\r\n", 431),
        ):
            client = await m.connect()
            client.send(head)
            assert (await client.receive()).status == status
        await well(m)


async def test_a_body_behind_too_much_that_was_read_ahead_still_comes_whole() -> None:
    async def slow(_: Request, writer: asyncio.StreamWriter) -> None:
        await may_answer.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    may_answer = asyncio.Event()
    async with mesh().service("slow", replies=[slow]).service("pay").start() as m:
        client = await m.connect()
        body = b"x" * 2_000_000
        client.send(b"GET / HTTP/1.1\r\nhost: slow\r\n\r\n")
        client.send(b"POST / HTTP/1.1\r\nhost: pay\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await until(lambda: any(c._reading_paused for c in connections(m)), what="the reading ahead to stop")
        may_answer.set()
        assert [(await client.receive()).status for _ in range(2)] == [200, 200]
        assert m.programs["pay"][0].requests[-1].body == body
