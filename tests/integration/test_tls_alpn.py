"""What ALPN (RFC 7301) chooses, and who uses the connection on which it has chosen."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.model.policy import AppProtocol, TlsPolicy
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS
from tests.support.certificates import Authority
from tests.support.control import background
from tests.support.hang_up import until_hung_up
from tests.support.http2 import PREFACE, frame, head, settings
from tests.support.mesh import mesh, name
from tests.support.needs import require
from tests.support.ports import free_port, is_open
from tests.support.process import Process, until
from tests.support.tls import VERSIONS, declare, one_answer_each, secured_nginx, server_context


@pytest.mark.parametrize(("http2", "protocol"), [(True, AppProtocol.HTTP2), (True, None), (False, None)])
async def test_alpn_says_which_http_is_spoken(
    authority: Authority,
    tmp_path: Path,
    http2: bool,  # noqa: FBT001 - a row
    protocol: AppProtocol | None,
) -> None:
    """A service that leaves it open: ALPN decides, whatever its callers speak."""
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web"), http2=http2) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), protocol)
        version = "HTTP/2.0" if http2 else "HTTP/1.1"
        command = [
            require("curl"), "-sS", "--http2-prior-knowledge", "-H", "host: web", f"http://127.0.0.1:{m.port}/",
        ]  # fmt: skip
        for _ in range(2):
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=10, check=True
            )
            assert done.stdout.split()[:2] == [version, "https"]
        assert (await m.get("web")).body.decode().split()[:2] == [version, "https"]


async def test_an_endpoint_that_takes_only_http2_over_tls_is_agreed_on_for_http1_callers_too(
    authority: Authority, tmp_path: Path
) -> None:
    more = "ssl_protocols TLSv1.3; if ($server_protocol != HTTP/2.0) { return 505; }"
    async with (
        mesh().start() as m,
        secured_nginx(tmp_path / "n", authority.issue("web"), http2=True, more=more) as port,
    ):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        for _ in range(2):  # nginx closes after three
            assert (await m.get("web")).body.startswith(b"HTTP/2.0 https")
        (endpoint,) = m.plane.services[name("web")].endpoints.values()
        assert (endpoint.http2_pool.count, len(endpoint.connections)) == (1, 0)


async def test_an_endpoint_that_does_not_agree_to_http2_is_refused(authority: Authority, tmp_path: Path) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.GRPC)
        answer = await m.get("web")
        assert answer.status == 503
        assert b"no protocol in common: see appProtocol" in answer.body
        assert m.plane.services[name("web")].usage.pending == 0
        await until(lambda: m.plane.services[name("web")].usage.connections == 0, what="the connection to close")


async def test_a_connection_that_agrees_to_http1_where_http2_was_offered_serves_those_who_waited_for_it(
    authority: Authority,
) -> None:
    async with mesh().start() as m, one_answer_each(authority, ssl.TLSVersion.TLSv1_3) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        answers = await asyncio.gather(*(m.get("web") for _ in range(3)))
        assert [answer.status for answer in answers] == [200] * 3
        assert len(resumed) == 3
        assert m.plane.services[name("web")].usage.pending == 0
        await until(lambda: m.plane.services[name("web")].usage.connections == 0, what="the connections to close")


async def test_all_who_waited_for_a_connection_that_agrees_to_http1_get_one_of_their_own(authority: Authority) -> None:
    arrived, everybody = 0, asyncio.Event()

    async def long_poll(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        async with until_hung_up(writer):
            await reader.readuntil(b"\r\n\r\n")
            arrived += 1
            if arrived == 8:
                everybody.set()
            await everybody.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    context = server_context(authority, "http/1.1")
    async with mesh().start() as m, await asyncio.start_server(long_poll, "127.0.0.1", 0, ssl=context) as server:
        declare(m, server.sockets[0].getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)))
        try:
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*(m.get("web") for _ in range(8)))
        finally:
            everybody.set()
        assert [answer.status for answer in answers] == [200] * 8


@VERSIONS
@pytest.mark.parametrize("ends", ["close", "abort"])
async def test_an_endpoint_that_hangs_up_behind_its_handshake_leaves_nobody_waiting(
    authority: Authority, version: ssl.TLSVersion, ends: str
) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        getattr(writer.transport, ends)()

    context = server_context(authority, version=version)
    async with mesh().start() as m, await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context) as server:
        declare(m, server.sockets[0].getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)))
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(m.get("web") for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        usage = m.plane.services[name("web")].usage
        await until(lambda: (usage.connections, usage.pending, usage.requests) == (0, 0, 0), what="nothing to be left")


async def test_what_alpn_told_is_not_asked_again_at_each_word_of_discovery(
    authority: Authority, tmp_path: Path
) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        assert (await m.get("web")).status == 200
        service = m.plane.services[name("web")]
        (endpoint,) = service.endpoints.values()
        assert endpoint.speaks_http2 is False
        service.apply([endpoint.model])
        assert endpoint.speaks_http2 is False
        declare(m, port, TlsPolicy("web", str(authority.certificate)))  # it is met otherwise from now on
        assert endpoint.speaks_http2 is None
        assert (await m.get("web")).status == 200


async def test_what_alpn_told_is_forgotten_by_an_endpoint_that_speaks_it_no_more(
    authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("web")
    port = free_port()
    command = ("s_server", "-quiet", "-alpn", "h2", "-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key)
    async with mesh().start() as m, Process.start(require("openssl"), *command, log=tmp_path / "log") as server:
        await server.until(lambda: is_open(port), what="openssl")
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        (endpoint,) = m.plane.services[name("web")].endpoints.values()
        endpoint.speaks_http2 = False  # as another server told that was here before
        assert (await m.get("web")).status == 503  # openssl agrees to HTTP/2 then, and speaks none
        assert endpoint.speaks_http2 is None


async def test_a_handshake_that_fails_leaves_the_connections_there_are_in_use(
    authority: Authority, stranger: Authority
) -> None:
    """The endpoint's certificate was replaced by one that does not hold: what stands on the one before goes on."""
    arrived, go_on = asyncio.Event(), asyncio.Event()
    contexts = [server_context(authority, "http/1.1"), server_context(stranger, "http/1.1")]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            await writer.start_tls(contexts[0] if not arrived.is_set() else contexts[1])
            while True:
                await reader.readuntil(b"\r\n\r\n")
                if not arrived.is_set():
                    arrived.set()
                    await go_on.wait()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with mesh().start() as m, await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        declare(m, server.sockets[0].getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)))
        first = background(m.get("web"))
        await arrived.wait()
        refused = await m.get("web")
        go_on.set()
        assert (refused.status, (await first).status) == (503, 200)
        assert [(await m.get("web")).status for _ in range(3)] == [200] * 3


@asynccontextmanager
async def held_back(authority: Authority) -> AsyncIterator[tuple[int, asyncio.Event, asyncio.Event, list[int]]]:
    """A port whose first connection is held back, and goes to a server over TLS that agrees to HTTP/1.1 then.

    Gives the port, what is set when that connection has come, what lets it go, and a list of where those after it go.
    """
    came, go_on, later = asyncio.Event(), asyncio.Event(), list[int]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            await reader.read()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_first = not came.is_set()
        if is_first:
            came.set()
            await go_on.wait()
        there, to_there = await asyncio.open_connection("127.0.0.1", first if is_first else later[0])

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            async with until_hung_up(sink):
                while piece := await source.read(1 << 16):
                    sink.write(piece)

        await asyncio.gather(pump(reader, to_there), pump(there, writer))

    async with (
        await asyncio.start_server(silent, "127.0.0.1", 0, ssl=server_context(authority, "http/1.1")) as server,
        await asyncio.start_server(relay, "127.0.0.1", 0) as front,
    ):
        first = server.sockets[0].getsockname()[1]
        yield front.sockets[0].getsockname()[1], came, go_on, later


async def test_who_waited_for_alpn_is_spoken_as_the_new_policy_says(authority: Authority) -> None:
    """TLS is taken away during the first handshake: nothing says HTTP/2 any more, and it is not tried."""

    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            while (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with (
        mesh().start() as m,
        held_back(authority) as (port, came, go_on, later),
        await asyncio.start_server(http1, "127.0.0.1", 0) as server,
        asyncio.timeout(10),
    ):
        later.append(server.sockets[0].getsockname()[1])
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        waiting = [background(m.get("web", "/", "POST", body=b"")) for _ in range(3)]
        await came.wait()
        declare(m, port, None)
        go_on.set()
        assert [(await each).status for each in waiting] == [200] * 3


async def test_what_an_older_handshake_agreed_on_says_nothing_after_the_policy_changed(authority: Authority) -> None:
    """Those after it reach a server of HTTP/2."""

    async def http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            await reader.readexactly(len(PREFACE))
            writer.write(settings())
            while (start := await reader.readexactly(9))[3] != HEADERS:
                await reader.readexactly(int.from_bytes(start[:3], "big"))
            stream = int.from_bytes(start[5:], "big")
            writer.write(head(stream, [(b":status", b"200")], END_HEADERS) + frame(DATA, END_STREAM, stream, b"new"))
            await reader.read()

    async with (
        mesh().start() as m,
        held_back(authority) as (port, came, go_on, later),
        await asyncio.start_server(http2, "127.0.0.1", 0, ssl=server_context(authority, "h2")) as server,
        asyncio.timeout(10),
    ):
        later.append(server.sockets[0].getsockname()[1])
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        first = background(m.get("web"))
        await came.wait()
        declare(m, port, TlsPolicy("web", str(authority.certificate)))
        go_on.set()
        assert (await first).body == b"new"
        (endpoint,) = m.plane.services[name("web")].endpoints.values()
        assert endpoint.speaks_http2 is None
