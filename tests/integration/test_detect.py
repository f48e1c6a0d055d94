"""One port for whatever comes: HTTP/1.1, HTTP/2, TLS, a protocol of bytes, and clients that wait for their server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from mesh.model.name import Name
from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from mesh.model.snapshot import make_snapshot
from mesh.model.wire import encode_resource
from proxy.http1.limits import ConnectionLimits
from proxy.listener import InboundListener, OutboundListener
from proxy.recorder import LOCAL
from proxy.tls import KeyPair, ServerSettings, ServerTls
from proxy.upstream.service import UpstreamService
from tests.support.certificates import Authority
from tests.support.mesh import Client, Mesh, inbound_listener, mesh, name, serve, speak
from tests.support.needs import require
from tests.support.process import until
from tests.support.telemetry import Running, endpoints, sidecar
from tests.support.tls import server_context, trusting

SOON_S = 1.0
"""A server that speaks first is heard within this, through both sidecars."""

GET = b"GET /a HTTP/1.1\r\nhost: any\r\n\r\n"
BINARY = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL's SSLRequest
BANNER = b"SSH-2.0-test\r\n"


async def anything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program that speaks HTTP/1.1, and gives anything else back."""
    try:
        while data := await reader.read(1 << 16):
            if data.startswith((b"GET ", b"POST ")):
                via = b"yes" if b"\nvia: " in data.lower() else b"no"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nseen-via: %b\r\n\r\nok" % via)
            else:
                writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program that speaks first."""
    writer.write(BANNER)
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


class Both:
    """Two listeners that detect: the caller's port for the service, and the one before the program."""

    def __init__(self, m: Mesh, inbound: InboundListener, inbound_port: int, local_port: int) -> None:
        self.m, self.inbound, self.inbound_port, self.local_port = m, inbound, inbound_port, local_port

    async def connect(self, *, inbound: bool = False) -> Client:
        return await self.m.connect(self.inbound_port if inbound else self.local_port)

    @property
    def program(self) -> UpstreamService:
        """The program as its sidecar sees it."""
        return self.m.plane.services[Name(LOCAL, "db-0")]

    def declare(self, protocol: AppProtocol | None) -> None:
        """A table in which both sides' policies say what is spoken; here one data plane is both."""
        policies = [ServicePolicy(service, app_protocol=protocol) for service in (name("db"), name("caller"))]
        self.m.plane.apply_table(make_snapshot("test", 1, [encode_resource(policy) for policy in policies]))

    async def over(self) -> None:
        """Wait until nothing is under way any more."""
        await until(lambda: not self.m.plane.exchanges, what="the exchanges to end")
        assert all(s.usage.requests == 0 for s in self.m.plane.services.values())


@asynccontextmanager
async def both(
    handler=anything, *, limits: ConnectionLimits | None = None, tls: ServerTls | None = None, most: int = 20_000
) -> AsyncIterator[Both]:
    limits = limits or ConnectionLimits()
    async with AsyncExitStack() as stack:
        m = await stack.enter_async_context(mesh().start())
        program = await stack.enter_async_context(await asyncio.start_server(handler, "127.0.0.1", 0))
        port = program.sockets[0].getsockname()[1]
        inbound = inbound_listener(m.plane, "db-0", port, limits, detects=True)
        inbound.max_connections = most
        inbound.tls = tls
        inbound_port = await serve(stack, inbound)
        m.plane.apply_endpoints(name("db"), (Endpoint("e", "127.0.0.1", inbound_port),))
        outbound = OutboundListener(m.plane, "sidemesh-out-db", limits, service=name("db"))
        outbound.detects = True
        yield Both(m, inbound, inbound_port, await serve(stack, outbound))


# --- what is told by its first bytes --------------------------------------------------------------------------------


async def test_requests_are_requests() -> None:
    async with both() as b:
        client = await b.connect()
        for _ in range(3):
            client.send(GET)
            answer = await client.receive()
            assert (answer.status, answer.body, answer.get("seen-via")) == (200, b"ok", "yes")
        assert b.m.cells() == {("db", 200, ""): 3, ("(local)/db-0", 200, ""): 3}


async def test_bytes_are_bytes_both_ways_and_to_their_end() -> None:
    large = bytes(range(256)) * 16 * 1024
    async with both() as b:
        client = await b.connect()

        async def send() -> None:
            client.send(BINARY)
            client.send(large)
            await client.writer.drain()
            client.writer.write_eof()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(send())
            assert await client.reader.read() == BINARY + large
        await b.over()
        assert b.m.cells() == {(s, n, ""): 1 for s in ("db", "(local)/db-0") for n in (-1, 0)}


async def test_curl_speaks_http2_to_it() -> None:
    async with both() as b:
        done = await asyncio.to_thread(
            subprocess.run,
            [require("curl"), "-s", "-m", "10", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version} %{http_code}",
             f"http://127.0.0.1:{b.local_port}/"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        # The program knows HTTP/1.1 only, which nobody has said: it gives the preface back.
        assert done.stdout.startswith("2 5"), done
        speak(b.m, "db", AppProtocol.HTTP)
        done = await asyncio.to_thread(
            subprocess.run,
            [require("curl"), "-s", "-m", "10", "--http2-prior-knowledge", "-w", "%{http_version} %{http_code}",
             f"http://127.0.0.1:{b.local_port}/"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "ok2 200", done


@pytest.mark.parametrize("data", [GET, BINARY])
async def test_byte_by_byte_it_is_the_same(data: bytes) -> None:
    async with both(limits=ConnectionLimits(peek_s=0.5)) as b:
        client = await b.connect()
        for byte in data:
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0.005)
        if data == GET:
            assert (await client.receive()).get("seen-via") == "yes"
        else:
            assert await client.reader.readexactly(len(data)) == data


async def test_one_that_drips_is_decided_on_all_the_same() -> None:
    """Each byte comes in time, and still nobody waits for a method for ever."""
    async with both(limits=ConnectionLimits(head_s=1.0)) as b:
        client = await b.connect(inbound=True)
        client.send(b"GET /")

        answers: list[int] = []

        async def hear() -> None:
            answers.append((await client.receive()).status)

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(hear())
            while not answers:
                client.send(b"x")
                await asyncio.sleep(0.05)
        assert answers == [408]


async def test_a_beginning_that_tells_nothing_passes_once_its_client_waits() -> None:
    async with both() as b:
        client = await b.connect()
        client.send(b"P")
        async with asyncio.timeout(SOON_S):
            assert await client.reader.read(1) == b"P"
        client.send(b"ING\r\n")
        assert await client.reader.readline() == b"ING\r\n"


# --- clients that wait ----------------------------------------------------------------------------------------------


async def test_a_server_that_speaks_first_is_heard_at_once_through_both() -> None:
    async with both(greets) as b:
        began = time.monotonic()
        clients = [await b.connect() for _ in range(20)]
        for client in clients:
            async with asyncio.timeout(SOON_S):
                assert await client.reader.readline() == BANNER
        assert time.monotonic() - began < SOON_S
        for client in clients:
            client.send(b"quit\r\n")
            assert await client.reader.read() == b"QUIT\r\n"
            client.close()
        await b.over()


async def test_a_client_that_only_listens_hears_the_server_too() -> None:
    async with both(greets) as b:
        client = await b.connect()
        client.writer.write_eof()
        async with asyncio.timeout(SOON_S):
            assert await client.reader.read() == BANNER


async def test_a_request_after_silence_is_carried_as_bytes() -> None:
    async with both(limits=ConnectionLimits(peek_s=0.05)) as b:
        client = await b.connect()
        await until(lambda: len(b.m.plane.exchanges) == 2, what="both tunnels")
        client.send(GET)
        assert (await client.receive()).get("seen-via") == "no"


async def test_a_client_that_leaves_while_it_is_looked_at_leaves_nothing() -> None:
    async with both(limits=ConnectionLimits(peek_s=0.2)) as b:
        for _ in range(20):
            client = await b.connect(inbound=True)
            client.writer.transport.abort()
        await until(lambda: not b.inbound.connections, what="them to be forgotten")
        await asyncio.sleep(0.3)  # beyond their time
        assert not b.m.plane.exchanges


async def test_a_flood_of_silent_clients_is_bounded_and_others_are_served() -> None:
    limits = ConnectionLimits(tunnel_idle_s=1.0)
    async with both(limits=limits, most=100) as b:
        program = b.program
        program.usage.max_requests = 30
        kept = await b.connect(inbound=True)
        kept.send(GET)
        assert (await kept.receive()).status == 200
        silent = [await b.connect(inbound=True) for _ in range(300)]
        await until(lambda: b.inbound.refused_connections >= 200, what="those over the limit to be turned away")
        assert len(b.inbound.connections) <= 100
        await until(lambda: b.m.cells().get(("(local)/db-0", 0, "UO"), 0) >= 60, what="those over the limits")
        assert program.usage.requests <= 30
        await until(lambda: len(b.inbound.connections) <= 1, what="the idle ones to be closed")
        began = time.monotonic()
        kept.send(GET)
        assert (await kept.receive()).status == 200
        assert time.monotonic() - began < SOON_S
        for client in silent:
            client.close()


# --- what is told otherwise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["detect", "caller"])
async def test_a_policy_that_says_what_is_spoken_spares_the_wait_on_both_sides(protocol: str) -> None:
    async with both(greets, limits=ConnectionLimits(peek_s=60.0)) as b:
        b.inbound.detects = protocol == "detect"
        b.declare(AppProtocol.TCP)
        client = await b.connect()
        async with asyncio.timeout(SOON_S):
            assert await client.reader.readline() == BANNER


async def test_where_a_policy_says_http_silence_is_nobody_waiting_for_the_server() -> None:
    """A pool may connect long before its first request, which is one all the same."""
    async with both(limits=ConnectionLimits(peek_s=0.05)) as b:
        b.declare(AppProtocol.HTTP)
        for inbound in (False, True):
            client = await b.connect(inbound=inbound)
            await asyncio.sleep(0.2)
            client.send(GET)
            assert (await client.receive()).get("seen-via") == "yes"
        assert not [cell for cell in b.m.cells() if cell[1] <= 0]


async def test_a_policy_is_followed_at_once_and_only_as_long_as_it_stands() -> None:
    async with both(limits=ConnectionLimits(peek_s=60.0)) as b:
        for protocol in (AppProtocol.TCP, None, AppProtocol.TCP, AppProtocol.HTTP):
            b.declare(protocol)
            client = await b.connect(inbound=True)
            client.send(GET)
            is_request = (await client.receive()).get("seen-via") == "yes"
            assert is_request is (protocol is not AppProtocol.TCP)
            client.close()


async def test_what_a_sidecar_is_told_of_its_program_goes_before_the_policy() -> None:
    async with both(greets) as b:
        plane = b.m.plane
        b.declare(AppProtocol.TCP)
        for told in (AppProtocol.HTTP, AppProtocol.HTTP2):
            listener = InboundListener(plane, "in", ConnectionLimits(), b.inbound._rule, protocol=told)
            assert not listener.takes_connections
        b.declare(AppProtocol.HTTP)
        listener = InboundListener(plane, "in", ConnectionLimits(), b.inbound._rule, protocol=AppProtocol.TCP)
        assert listener.takes_connections


async def test_requests_and_bytes_share_an_endpoint_and_never_a_connection() -> None:
    """A TCP connection has one to the program that nothing was sent on before, however many are idle."""
    async with both() as b:
        (endpoint,) = b.program.endpoints.values()
        for _ in range(20):
            requests = [await b.connect(inbound=True) for _ in range(5)]
            others = [await b.connect(inbound=True) for _ in range(5)]
            for request, other in zip(requests, others, strict=True):
                request.send(GET)
                other.send(BINARY)
            for request, other in zip(requests, others, strict=True):
                assert (await request.receive()).status == 200
                assert await other.reader.readexactly(len(BINARY)) == BINARY
                request.close()
                other.close()
        await b.over()
        assert all(connection.served > 0 for connection in endpoint._idle)


# --- TLS ------------------------------------------------------------------------------------------------------------


def certificate(authority: Authority) -> ServerTls:
    return ServerTls(ServerSettings((KeyPair(*authority.issue("web")),)))


async def test_tls_ends_here_and_what_is_within_is_told_in_the_same_way(authority: Authority) -> None:
    async with both(tls=certificate(authority)) as b:
        for protocols in ((), ("http/1.1",)):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", b.inbound_port, ssl=trusting(authority, *protocols), server_hostname="web"
            )
            client = Client(reader, writer)
            client.send(GET)
            assert (await client.receive()).get("seen-via") == "yes"
            client.close()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", b.inbound_port, ssl=trusting(authority), server_hostname="web"
        )
        writer.write(BINARY)
        assert await reader.readexactly(len(BINARY)) == BINARY
        writer.close()
        plain = await b.connect(inbound=True)
        plain.send(BINARY)
        assert await plain.reader.readexactly(len(BINARY)) == BINARY
        request = await b.connect(inbound=True)
        request.send(GET)
        assert (await request.receive()).get("seen-via") == "yes"


async def test_a_server_that_speaks_first_is_heard_with_and_without_tls(authority: Authority) -> None:
    async with both(greets, tls=certificate(authority)) as b:
        for context in (None, trusting(authority)):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", b.inbound_port, ssl=context, server_hostname="web" if context else None
            )
            async with asyncio.timeout(SOON_S):
                assert await reader.readline() == BANNER
            writer.close()
        listens = await b.connect(inbound=True)
        listens.writer.write_eof()
        async with asyncio.timeout(SOON_S):
            assert await listens.reader.read() == BANNER


async def test_tls_passes_to_a_program_that_ends_it_itself(authority: Authority) -> None:
    context = server_context(authority)
    async with both() as b, await asyncio.start_server(anything, "127.0.0.1", 0, ssl=context) as secured:
        b.program.apply([Endpoint("secured", "127.0.0.1", secured.sockets[0].getsockname()[1])])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", b.local_port, ssl=trusting(authority), server_hostname="web"
        )
        writer.write(BINARY)
        async with asyncio.timeout(5):
            assert await reader.readexactly(len(BINARY)) == BINARY
        writer.close()


# --- whole sidecars -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
async def test_whole_sidecars_count_requests_and_connections_of_one_port(workers: int) -> None:
    db_name = Name("default", "db")
    program = await asyncio.start_server(anything, "127.0.0.1", 0)
    port = program.sockets[0].getsockname()[1]
    async with (
        program,
        sidecar("db", port=port, protocol="detect", workers=workers) as db,
        sidecar(
            "app", services={"db": endpoints(db.inbound)}, workers=workers,
            upstreams={db_name: 0}, detected_upstreams=frozenset({db_name}),
        ) as app,
    ):  # fmt: skip
        local = app.sidecar.addresses["upstream db"].port
        for data in (GET, BINARY) * 3:
            client = Client(*await asyncio.open_connection("127.0.0.1", local))
            client.send(data)
            if data == GET:
                assert (await client.receive()).get("seen-via") == "yes"
            else:
                assert await client.reader.readexactly(len(data)) == data
            client.close()

        async def counted(running: Running) -> bool:
            text = await running.metrics()
            return (total(text, "istio_requests_total"), total(text, "istio_tcp_connections_closed_total")) == (3, 3)

        for running in (app, db):
            await until(lambda running=running: counted(running), what="3 requests and 3 connections")


def total(text: str, family: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{family}{{"))


# --- where nothing is detected --------------------------------------------------------------------------------------


async def test_the_shared_port_refuses_what_is_no_http_and_says_where_it_would_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh().service("pay").start() as m:
        with caplog.at_level(logging.WARNING, logger="proxy.listener"):
            for _ in range(3):
                client = await m.connect()
                client.send(BINARY + b"\r\n\r\n")
                assert (await client.receive()).status == 400
        (told,) = [r.getMessage() for r in caplog.records if r.name == "proxy.listener"]
        assert "speaks no HTTP" in told
        assert "--upstream NAME=PORT/tcp" in told
        caplog.clear()
        client = await m.connect()
        client.send(b"GET / HTTP/1.1\r\nbad header\r\n\r\n")
        assert (await client.receive()).status == 400
        assert not [r for r in caplog.records if r.name == "proxy.listener"]
