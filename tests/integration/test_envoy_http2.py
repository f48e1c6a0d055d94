"""Another vendor's HTTP/2 at the other end of a connection: a real Envoy, as the sidecar's client and as its server."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from mesh.model.name import Name
from mesh.model.policy import AppProtocol, Limits, ServicePolicy, TlsPolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2.codec import CONCURRENT
from proxy.listener import Listener
from proxy.tls import KeyPair, ServerSettings, ServerTls
from tests.support.certificates import Authority
from tests.support.envoy import HTTP2, Certificates, Envoy, envoy
from tests.support.mesh import TIMEOUT_S, Mesh, Program, Reply, Request, inbound_listener, mesh, name, read_body, serve
from tests.support.process import until

pytestmark = pytest.mark.peer

LARGE = bytes(range(256)) * 4096
WAYS = ("inbound", "outbound", "inbound, TLS", "to Envoy", "to Envoy, TLS")


class Way:
    """A path of one sidecar and one Envoy that speak HTTP/2 with each other. ``port`` is where its clients call."""

    def __init__(self, m: Mesh, program: Program, peer: Envoy, port: int, listener: Listener) -> None:
        self.mesh, self.program, self.peer, self.port, self.listener = m, program, peer, port, listener

    async def connections(self) -> int:
        """How many HTTP/2 connections Envoy has had, with the sidecar."""
        ours = self.port == self.peer.port
        return await self.peer.count(
            "cluster.upstream.upstream_cx_http2_total" if ours else "http.web.downstream_cx_http2_total"
        )

    async def parallel(self, count: int) -> list[int]:
        """The statuses of so many requests at a time, each on a connection of its own."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> int:
                async with session.get(f"http://127.0.0.1:{self.port}/", headers={"host": "pay"}) as answer:
                    await answer.read()
                    return answer.status

            async with asyncio.timeout(TIMEOUT_S):
                return await asyncio.gather(*(one() for _ in range(count)))


@asynccontextmanager
async def way(
    kind: str,
    directory: Path,
    authority: Authority,
    *replies: Reply,
    limits: Limits | None = None,
    streams: int = 100,
    retry_on: str = "",
) -> AsyncIterator[Way]:
    """One of WAYS: client → Envoy → that listener → program, or client → sidecar → Envoy → program."""
    secure = kind.endswith("TLS")
    program = Program(replies or (200,))
    async with mesh().start() as m, AsyncExitStack() as stack:
        await program.start()
        stack.push_async_callback(program.stop)
        if kind.startswith("to Envoy"):
            shows = Certificates(authority.issue("pay")) if secure else None
            peer = await stack.enter_async_context(
                envoy(directory / "envoy", program.port, max_streams=streams, shows=shows)
            )
            send_to(m, peer.port, tls=TlsPolicy(ca_file=str(authority.certificate)) if secure else None, limits=limits)
            yield Way(m, program, peer, m.port, m.outbound)
            return
        listener: Listener = m.outbound
        port, trusts = m.port, None
        if kind.startswith("inbound"):
            listener = inbound_listener(m.plane, "pay-0", program.port, ConnectionLimits())
            of = m.plane.services[Name("(local)", "pay-0")]
            if secure:
                listener.tls = ServerTls(ServerSettings((KeyPair(*authority.issue("pay")),)))
                trusts = Certificates(authority=authority.certificate, name="pay")
            port = await serve(stack, listener)
        else:
            m.plane.apply_endpoints(name("pay"), (Endpoint("p", "127.0.0.1", program.port),))
            of = m.plane.services[name("pay")]
        of.set_policy(replace(of.policy, app_protocol=AppProtocol.HTTP, limits=limits or Limits()))
        peer = await stack.enter_async_context(
            envoy(directory / "envoy", port, speaks=HTTP2, trusts=trusts, retry_on=retry_on)
        )
        yield Way(m, program, peer, peer.port, listener)


def send_to(m: Mesh, *ports: int, tls: TlsPolicy | None = None, limits: Limits | None = None) -> None:
    """Endpoints of ``pay`` that speak HTTP/2."""
    m.plane.apply_endpoints(name("pay"), tuple(Endpoint(f"e{port}", "127.0.0.1", port) for port in ports))
    policy = ServicePolicy(name("pay"), app_protocol=AppProtocol.HTTP2, tls=tls, limits=limits or Limits())
    m.plane.services[name("pay")].set_policy(policy)


# --- requests and answers -------------------------------------------------------------------------------------------


def together(count: int) -> Reply:
    """Answers when so many requests are there at the same time."""
    barrier = asyncio.Barrier(count)

    async def reply(_: Request, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(TIMEOUT_S / 2):
            await barrier.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    return reply


@pytest.mark.parametrize("kind", WAYS)
async def test_many_streams_are_under_way_on_one_connection(kind: str, authority: Authority, tmp_path: Path) -> None:
    async with way(kind, tmp_path, authority, together(50)) as path:
        assert await path.parallel(50) == [200] * 50
        assert await path.connections() == 1
        assert await path.peer.count("http2.protocol_error", "http2.rx_messaging_error") == 0


async def echo_with_trailers(request: Request, writer: asyncio.StreamWriter) -> None:
    """The body back, in chunks, with trailers."""
    body = await read_body(request.fields("content-length"), request.fields("transfer-encoding"), request.reader)
    request.body = body
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n")
    for begin in range(0, len(body), 10_000):
        piece = body[begin : begin + 10_000]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\nx-sum: %d\r\n\r\n" % sum(body))
    await writer.drain()


@pytest.mark.parametrize("kind", WAYS)
async def test_a_mebibyte_each_way_arrives_as_it_was_sent_with_its_trailers(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    async with way(kind, tmp_path, authority, echo_with_trailers) as path:

        async def post() -> None:
            client = await path.mesh.connect(path.port)
            client.send(b"POST /a HTTP/1.1\r\nhost: pay\r\ncontent-length: %d\r\n\r\n" % len(LARGE))

            async def send() -> None:
                for begin in range(0, len(LARGE), 1 << 16):
                    client.send(LARGE[begin : begin + (1 << 16)])
                    await client.writer.drain()

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                answer = await client.receive()
            assert answer.status == 200
            assert answer.body == LARGE
            assert ("x-sum", str(sum(LARGE))) in answer.trailers

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(post())
        await until(lambda: not path.mesh.plane.exchanges, what="the exchanges to end")


async def tells_trailers(request: Request, writer: asyncio.StreamWriter) -> None:
    """What came after the last chunk, as the answer's body."""
    await request.reader.readuntil(b"\r\n0\r\n")
    lines = b""
    while (line := await request.reader.readuntil(b"\r\n")) != b"\r\n":
        lines += line
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(lines), lines))


@pytest.mark.parametrize("kind", WAYS)
async def test_trailers_of_a_request_pass(kind: str, authority: Authority, tmp_path: Path) -> None:
    async with way(kind, tmp_path, authority, tells_trailers) as path:
        client = await path.mesh.connect(path.port)
        client.send(
            b"POST / HTTP/1.1\r\nhost: pay\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
            b"3\r\nabc\r\n0\r\nx-sum: 294\r\n\r\n"
        )
        answer = await client.receive()
        assert answer.body == b"x-sum: 294\r\n"


@pytest.mark.parametrize("kind", WAYS)
async def test_head_no_content_and_an_error_keep_their_framing(kind: str, authority: Authority, tmp_path: Path) -> None:
    replies = (200, b"HTTP/1.1 204 No Content\r\n\r\n", 404, 200)
    async with way(kind, tmp_path, authority, *replies) as path:
        client = await path.mesh.connect(path.port)
        for method, status, body in (
            ("HEAD", 200, b""),
            ("GET", 204, b""),
            ("GET", 404, b"hello"),
            ("GET", 200, b"hello"),
        ):
            client.send(f"{method} / HTTP/1.1\r\nhost: pay\r\n\r\n".encode())
            answer = await client.receive(method)
            assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize("kind", ["inbound", "to Envoy"])
async def test_a_client_that_gives_up_costs_nothing_but_its_stream(
    kind: str, authority: Authority, tmp_path: Path
) -> None:
    async def never(request: Request, _: asyncio.StreamWriter) -> None:
        await request.reader.read()

    async with way(kind, tmp_path, authority, never, 200) as path:
        client = await path.mesh.connect(path.port)
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        await path.program.wait_for_requests(1)
        client.writer.transport.abort()
        await until(lambda: not path.mesh.plane.exchanges, what="the exchange to end")
        assert await path.parallel(3) == [200] * 3
        assert await path.connections() == 1


# --- WebSocket over HTTP/2 (RFC 8441) -------------------------------------------------------------------------------


async def upper(request: Request, writer: asyncio.StreamWriter) -> None:
    """Take the upgrade, echo bytes in capitals, and close after "bye"."""
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    while data := await request.reader.read(1 << 16):
        writer.write(data.upper())
        await writer.drain()
        if data.endswith(b"bye"):
            break
    writer.close()


@pytest.mark.parametrize("kind", WAYS)
async def test_a_websocket_passes_as_an_extended_connect(kind: str, authority: Authority, tmp_path: Path) -> None:
    """Closed by the program: Envoy passes no half-close on to an HTTP/1.1 upgrade.

    A client that leaves without a word is END_STREAM to it (RFC 8441 §5), and held until its stream_idle_timeout.
    """
    async with way(kind, tmp_path, authority, upper) as path:
        client = await path.mesh.connect(path.port)
        client.send(
            b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        head = await client.receive_head()
        assert head.status == 101
        assert head.get("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        async with asyncio.timeout(10):
            for piece in (b"hello", b"x" * 100_000):
                client.send(piece)
                assert await client.reader.readexactly(len(piece)) == piece.upper()
        client.send(b"bye")
        await client.reader.readexactly(3)
        assert await client.ended()
        await until(lambda: not path.mesh.plane.exchanges, what="the exchange to end")


# --- limits of streams ----------------------------------------------------------------------------------------------


class Slow:
    """Answers after a moment; ``most`` is how many requests were there at a time."""

    def __init__(self, delay_s: float = 0.05) -> None:
        self.here = self.most = 0
        self._delay_s = delay_s

    async def __call__(self, _: Request, writer: asyncio.StreamWriter) -> None:
        self.here += 1
        self.most = max(self.most, self.here)
        await asyncio.sleep(self._delay_s)
        self.here -= 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


async def test_where_envoy_takes_four_streams_a_connection_there_are_more_connections(
    authority: Authority, tmp_path: Path
) -> None:
    async with way("to Envoy", tmp_path, authority, together(20), streams=4) as path:
        assert await path.parallel(20) == [200] * 20
        assert await path.peer.count("http.web.downstream_cx_http2_active") == 5
        assert await path.peer.count("http.web.downstream_rq_rx_reset", "http.web.downstream_rq_tx_reset") == 0


async def test_where_there_may_be_one_connection_requests_wait_for_its_streams(
    authority: Authority, tmp_path: Path
) -> None:
    slow = Slow()
    async with way("to Envoy", tmp_path, authority, slow, streams=4, limits=Limits(max_connections=1)) as path:
        assert await path.parallel(40) == [200] * 40
        assert slow.most == 4
        assert await path.connections() == 1
        assert await path.peer.count("http.web.downstream_rq_rx_reset", "http.web.downstream_rq_tx_reset") == 0
        usage = path.mesh.plane.services[name("pay")].usage
        assert (usage.requests, usage.pending, usage.connections) == (0, 0, 1)


@pytest.mark.parametrize("is_cold", [False, True])
async def test_envoy_keeps_to_the_streams_that_we_take(
    is_cold: bool,  # noqa: FBT001 - a row
    authority: Authority,
    tmp_path: Path,
) -> None:
    """Once it knows how many that are. Cold, it sends all at once: what is refused was not processed (§8.7)."""
    count = CONCURRENT + 50
    replies = [Slow(0.3)] if is_cold else [200, Slow(0.3)]
    limits = Limits(max_connections=50)  # of the program, whose backlog is short
    async with way("inbound", tmp_path, authority, *replies, limits=limits, retry_on="refused-stream") as path:
        if not is_cold:
            assert await path.parallel(1) == [200]
        assert await path.parallel(count) == [200] * count
        assert await path.connections() >= 2
        refused = await path.peer.count("cluster.upstream.upstream_rq_retry")
        assert (refused > 0) is is_cold


# --- GOAWAY ---------------------------------------------------------------------------------------------------------


class Load:
    """Idempotent requests one after the other from several clients, until told; ``statuses`` of all."""

    def __init__(self, port: int, clients: int = 8) -> None:
        self.statuses: list[int] = []
        self._port = port
        self._clients = clients
        self._is_over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(session, number))
            yield self
            self._is_over = True

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        for turn in itertools.count():
            if self._is_over:
                return
            url = f"http://127.0.0.1:{self._port}/{number}/{turn}"
            async with session.get(url, headers={"host": "pay"}) as answer:
                await answer.read()
                self.statuses.append(answer.status)

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.statuses) + count
        await until(lambda: len(self.statuses) >= wanted, what=f"{count} more answers", timeout_s=30)


@pytest.mark.parametrize("how", ["drain", "SIGTERM"])
async def test_an_envoy_that_leaves_costs_no_request(how: str, tmp_path: Path) -> None:
    """Two of them; the first goes away under load: by GOAWAY and then for good, or at once."""
    slow = Slow(0.005)
    program = Program([slow])
    async with mesh().start() as m, AsyncExitStack() as stack:
        await program.start()
        stack.push_async_callback(program.stop)
        first, second = [
            await stack.enter_async_context(envoy(tmp_path / each, program.port)) for each in ("first", "second")
        ]
        send_to(m, first.port, second.port)
        async with Load(m.port).running() as load:
            await load.more(100)
            assert await first.count("http.web.downstream_cx_http2_active") > 0
            if how == "drain":
                await first.ask("/drain_listeners?graceful", "POST")

                async def is_left() -> bool:
                    return await first.count("http.web.downstream_cx_http2_active") == 0

                await until(is_left, what="its last connection to close", timeout_s=20)
                assert await first.count("http.web.downstream_cx_drain_close") > 0
            await first.process.stop()
            await load.more(200)
        assert set(load.statuses) == {200}
        assert await second.count("http.web.downstream_rq_total") > 0


@pytest.mark.parametrize("kind", ["inbound", "inbound, TLS"])
async def test_our_own_drain_costs_envoy_no_request(kind: str, authority: Authority, tmp_path: Path) -> None:
    """GOAWAY in two steps; Envoy goes on with a new connection, which is told the same, and so on."""
    async with way(kind, tmp_path, authority, Slow(0.005)) as path:
        async with Load(path.port).running() as load:
            await load.more(100)
            assert await path.connections() == 1
            path.listener.is_draining = True

            async def has_moved() -> bool:
                return await path.connections() > 1

            await until(has_moved, what="Envoy to connect anew", timeout_s=20)
            await load.more(200)
        assert set(load.statuses) == {200}
        assert await path.peer.count("cluster.upstream.upstream_cx_close_notify") > 0
