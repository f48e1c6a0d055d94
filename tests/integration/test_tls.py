"""TLS at both edges of a sidecar, with real certificates and real peers: clients, nginx, grpcio, openssl."""

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from mesh.model.policy import AppProtocol, ServicePolicy, TlsPolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.http2.frames import DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS
from proxy.listener import InboundListener, OutboundListener
from proxy.tls import ClientSettings, ClientTls, KeyPair, ServerSettings, ServerTls, TlsError
from tests.support.certificates import Authority
from tests.support.control import background
from tests.support.grpc_echo import echo_server
from tests.support.hang_up import until_hung_up
from tests.support.http2 import PREFACE, frame, head, settings
from tests.support.mesh import Mesh, inbound_listener, mesh, name, serve
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import Process, until


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "a stranger")


def trusting(authority: Authority, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


# --- downstream: TLS ends at the inbound listener -------------------------------------------------------------------


@asynccontextmanager
async def inbound(
    settings: ServerSettings, limits: ConnectionLimits | None = None
) -> AsyncIterator[tuple[Mesh, InboundListener, int]]:
    async with mesh().service("pay").start() as m, AsyncExitStack() as stack:
        (program,) = m.programs["pay"]
        listener = inbound_listener(m.plane, "pay-0", program.port, limits or ConnectionLimits())
        listener.tls = ServerTls(settings)
        yield m, listener, await serve(stack, listener)


def pair(files: tuple[Path, Path], *names: str) -> KeyPair:
    return KeyPair(files[0], files[1], names)


async def fetch(port: int, context: ssl.SSLContext, host: str = "pay") -> tuple[int, ssl.SSLObject]:
    """The status of a request over TLS, and what was agreed on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
    writer.write(b"GET / HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % host.encode())
    async with asyncio.timeout(5):
        data = await reader.read()
    secured = writer.get_extra_info("ssl_object")
    writer.close()
    return int(data.split()[1]), secured


async def test_one_port_takes_tls_and_clear_text_http1_and_http2(authority: Authority) -> None:
    settings = ServerSettings((pair(authority.issue("pay")),))
    async with inbound(settings) as (m, listener, port):
        assert (await fetch(port, trusting(authority)))[0] == 200
        assert m.programs["pay"][0].requests[-1].fields("x-forwarded-proto") == ["https"]
        client = await m.connect(port)
        client.send(b"GET / HTTP/1.1\r\nhost: pay\r\n\r\n")
        assert (await client.receive()).status == 200
        assert m.programs["pay"][0].requests[-1].fields("x-forwarded-proto") == ["http"]
        done = await asyncio.to_thread(
            subprocess.run,
            [
                require("curl"), "-sSi", "--http1.1", "--cacert", authority.certificate,
                "--resolve", f"pay:{port}:127.0.0.1", f"https://pay:{port}/",
            ],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("HTTP/1.1 200")
        assert listener.failed_handshakes == 0


async def test_only_modern_tls_is_spoken(authority: Authority) -> None:
    async with inbound(ServerSettings((pair(authority.issue("pay")),))) as (_, listener, port):
        old = trusting(authority)
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await fetch(port, old)
        weak = trusting(authority)
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("AES128-SHA256:AES256-SHA256")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await fetch(port, weak)
        await until(lambda: listener.failed_handshakes == 2, what="both to be counted")
        status, secured = await fetch(port, trusting(authority))
        assert (status, secured.version()) == (200, "TLSv1.3")


async def test_the_certificate_follows_the_name_that_was_asked_for(authority: Authority) -> None:
    settings = ServerSettings(
        (
            pair(authority.issue("pay")),
            pair(authority.issue("shop.example"), "shop.example"),
            pair(authority.issue("*.cdn.example"), "*.cdn.example"),
        )
    )
    async with inbound(settings) as (_, _, port):
        for host, shown in (("pay", "pay"), ("shop.example", "shop.example"), ("a.cdn.example", "*.cdn.example")):
            _, secured = await fetch(port, trusting(authority), host)
            assert dict(secured.getpeercert()["subject"][0])["commonName"] == shown  # type: ignore[index,arg-type]
        with pytest.raises(ssl.SSLCertVerificationError):
            await fetch(port, trusting(authority), "nobody.example")


async def test_a_client_certificate_may_be_demanded(authority: Authority, stranger: Authority) -> None:
    settings = ServerSettings((pair(authority.issue("pay")),), authority.certificate)
    async with inbound(settings) as (_, _, port):
        mine = trusting(authority)
        mine.load_cert_chain(*authority.issue("client"))
        assert (await fetch(port, mine))[0] == 200
        theirs = trusting(authority)
        theirs.load_cert_chain(*stranger.issue("client"))
        for refused in (trusting(authority), theirs):
            with pytest.raises((ssl.SSLError, ConnectionError, IndexError)):
                await fetch(port, refused)


async def test_certificates_are_loaded_anew_without_losing_a_connection(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue("pay", label="changing")
    async with inbound(ServerSettings((pair(files),))) as (_, listener, port):
        assert listener.tls is not None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(authority), server_hostname="pay"
        )
        first = writer.get_extra_info("ssl_object").getpeercert()["serialNumber"]
        authority.issue("pay", label="changing")
        listener.tls.refresh()
        _, secured = await fetch(port, trusting(authority))
        second = secured.getpeercert()["serialNumber"]  # type: ignore[index]
        assert second != first
        writer.write(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        files[0].write_text("no certificate")
        listener.tls.refresh()
        _, secured = await fetch(port, trusting(authority))
        assert secured.getpeercert()["serialNumber"] == second  # type: ignore[index]
        authority.issue("pay", label="changing")
        listener.tls.refresh()
        _, secured = await fetch(port, trusting(authority))
        assert secured.getpeercert()["serialNumber"] != second  # type: ignore[index]


async def test_a_second_handshake_resumes_the_first(authority: Authority) -> None:
    async with inbound(ServerSettings((pair(authority.issue("pay")),))) as (_, _, port):
        context = trusting(authority)
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # whose session a client of Python can ask for at once

        def handshakes() -> list[bool]:
            reused, session = [], None
            for _ in range(2):
                with (
                    socket.create_connection(("127.0.0.1", port)) as raw,
                    context.wrap_socket(raw, server_hostname="pay", session=session) as secured,
                ):
                    session = secured.session
                    reused.append(bool(secured.session_reused))
            return reused

        assert await asyncio.to_thread(handshakes) == [False, True]


async def test_clients_that_say_nothing_or_no_tls_cost_little(authority: Authority) -> None:
    limits = ConnectionLimits(first_byte_s=0.5, linger_s=0.3)
    async with inbound(ServerSettings((pair(authority.issue("pay")),)), limits) as (m, listener, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        garbage = await m.connect(port)
        garbage.send(b"\x16\x03\x01\x00\x05hello, I am no ClientHello")
        assert await garbage.ended()
        assert (await fetch(port, trusting(authority)))[0] == 200
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert listener.failed_handshakes == 1


async def test_handshakes_that_never_end_are_bounded_too(authority: Authority) -> None:
    async with inbound(ServerSettings((pair(authority.issue("pay")),))) as (m, listener, port):
        listener.max_connections = 6
        stalled = [await m.connect(port) for _ in range(6)]
        for client in stalled[:3]:
            client.send(b"\x16\x03\x01\x02\x00")  # a ClientHello that never comes
        await asyncio.sleep(0.1)
        seventh = await m.connect(port)
        assert await seventh.ended()
        assert listener.refused_connections == 1
        for client in stalled:
            client.writer.transport.abort()
        await until(lambda: not listener.plane.exchanges, what="nothing to be left")

        async def is_served() -> bool:
            try:
                return (await fetch(port, trusting(authority)))[0] == 200
            except (OSError, IndexError):
                return False

        await until(is_served, what="room again")


async def test_grpc_over_tls(authority: Authority) -> None:
    async with mesh().start() as m, echo_server() as (_, port), AsyncExitStack() as stack:
        listener = inbound_listener(m.plane, "echo-0", port, ConnectionLimits())
        listener.tls = ServerTls(ServerSettings((pair(authority.issue("pay")),)))
        local = await serve(stack, listener)
        credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        options = [("grpc.ssl_target_name_override", "pay"), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{local}", credentials, options) as channel:
            calls = (channel.unary_unary("/test.Echo/Unary")(b"%d" % n) for n in range(50))
            assert await asyncio.gather(*calls) == [b"%d" % n for n in range(50)]


# --- upstream: TLS to a service's endpoints -------------------------------------------------------------------------

NGINX = """
daemon off; pid {dir}/pid; error_log {dir}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
  uwsgi_temp_path {dir}; scgi_temp_path {dir};
  server {{
    listen 127.0.0.1:{port} ssl{http2}; ssl_certificate {cert}; ssl_certificate_key {key}; {more}
    keepalive_requests 3;
    location / {{ return 200 "$server_protocol $scheme $ssl_session_reused $ssl_client_verify\\n"; }}
  }}
}}
"""


@asynccontextmanager
async def secured_nginx(
    directory: Path, files: tuple[Path, Path], *, http2: bool = False, more: str = ""
) -> AsyncIterator[int]:
    port = free_port()
    text = NGINX.format(
        dir=directory, port=port, cert=files[0], key=files[1], more=more, http2=" http2" if http2 else ""
    )
    write_configuration(directory, text)
    async with Process.start(
        require("nginx"), "-p", directory, "-c", directory / "nginx.conf", log=directory / "log"
    ) as nginx:
        await nginx.until(lambda: is_open(port), what="nginx")
        yield port


def write_configuration(directory: Path, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "nginx.conf").write_text(text)


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def declare(m: Mesh, port: int, tls: TlsPolicy | None, protocol: AppProtocol | None = None) -> None:
    m.plane.apply_endpoints(name("web"), (Endpoint("w", "127.0.0.1", port),))
    m.plane.services[name("web")].set_policy(ServicePolicy(name("web"), app_protocol=protocol, tls=tls))


async def test_an_endpoint_is_verified_and_sessions_are_resumed(authority: Authority, tmp_path: Path) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        said = [(await m.get("web")).body.decode().split() for _ in range(10)]
        assert {words[:2] == ["HTTP/1.1", "https"] for words in said} == {True}
        # nginx closes after three requests; what follows is a handshake cut short.
        assert said[0][2] == "."
        assert "r" in [words[2] for words in said]


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@asynccontextmanager
async def one_answer_each(
    authority: Authority, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> AsyncIterator[tuple[int, list[bool]]]:
    """A server that closes every connection after its answer, and notes which handshakes resumed a session."""
    resumed: list[bool] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resumed.append(bool(writer.get_extra_info("ssl_object").session_reused))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.maximum_version = version
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], resumed


@asynccontextmanager
async def tcp_to_web(m: Mesh) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with AsyncExitStack() as stack, asyncio.timeout(5):
        port = await serve(
            stack, OutboundListener(m.plane, "sidemesh-out-tcp", ConnectionLimits(), service=name("web"))
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        yield reader, writer
        writer.write(b"a question\r\n\r\n")
        assert (await reader.read()).endswith(b"ok")
        writer.close()


@VERSIONS
async def test_tcp_resumes_sessions(authority: Authority, version: ssl.TLSVersion) -> None:
    async with mesh().start() as m, one_answer_each(authority, version) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
        for _ in range(3):
            async with tcp_to_web(m):
                pass
        assert resumed == [False, True, True]


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
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.maximum_version = version
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

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.set_alpn_protocols(["http/1.1"])
    async with mesh().start() as m, await asyncio.start_server(long_poll, "127.0.0.1", 0, ssl=context) as server:
        declare(m, server.sockets[0].getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)))
        try:
            async with asyncio.timeout(5):
                answers = await asyncio.gather(*(m.get("web") for _ in range(8)))
        finally:
            everybody.set()
        assert [answer.status for answer in answers] == [200] * 8


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

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.set_alpn_protocols(["h2"])
    async with (
        mesh().start() as m,
        await asyncio.start_server(answer_all_and_go, "127.0.0.1", 0, ssl=context) as server,
    ):
        port = server.sockets[0].getsockname()[1]
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.HTTP2)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(m.get("web") for _ in range(count)))
        assert {(answer.status, len(answer.body)) for answer in answers} == {(200, messages * 8)}


async def test_what_an_older_handshake_agreed_on_says_nothing_after_the_policy_changed(authority: Authority) -> None:
    """The first connection is held back, and ends at a server of HTTP/1.1; those after it at one of HTTP/2."""
    held, ports = asyncio.Event(), list[int]()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = ports.pop(0) if len(ports) > 1 else ports[0]
        if len(ports) == 1 and not held.is_set():
            await held.wait()
        there, to_there = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            async with until_hung_up(sink):
                while piece := await source.read(1 << 16):
                    sink.write(piece)

        await asyncio.gather(pump(reader, to_there), pump(there, writer))

    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            await reader.read()

    async def http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with until_hung_up(writer):
            await reader.readexactly(len(PREFACE))
            writer.write(settings())
            while (start := await reader.readexactly(9))[3] != HEADERS:
                await reader.readexactly(int.from_bytes(start[:3], "big"))
            stream = int.from_bytes(start[5:], "big")
            writer.write(head(stream, [(b":status", b"200")], END_HEADERS) + frame(DATA, END_STREAM, stream, b"new"))
            await reader.read()

    async with AsyncExitStack() as stack, asyncio.timeout(10):
        for answer, protocol in ((http1, "http/1.1"), (http2, "h2")):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.issue("web"))
            context.set_alpn_protocols([protocol])
            server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
            ports.append((await stack.enter_async_context(server)).sockets[0].getsockname()[1])
        front = await stack.enter_async_context(await asyncio.start_server(relay, "127.0.0.1", 0))
        m = await stack.enter_async_context(mesh().start())
        port = front.sockets[0].getsockname()[1]
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        first = background(m.get("web"))
        await until(lambda: len(ports) == 1, what="the first handshake to begin")
        declare(m, port, TlsPolicy("web", str(authority.certificate)))
        held.set()
        assert (await first).body == b"new"
        (endpoint,) = m.plane.services[name("web")].endpoints.values()
        assert endpoint.speaks_http2 is None


async def test_what_alpn_told_is_forgotten_when_a_handshake_fails(authority: Authority, stranger: Authority) -> None:
    async with mesh().start() as m, one_answer_each(stranger) as (port, _):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        (endpoint,) = m.plane.services[name("web")].endpoints.values()
        endpoint.speaks_http2 = False
        assert (await m.get("web")).status == 503
        assert endpoint.speaks_http2 is None


@VERSIONS
@pytest.mark.parametrize("ends", ["close", "abort"])
async def test_an_endpoint_that_hangs_up_behind_its_handshake_leaves_nobody_waiting(
    authority: Authority, version: ssl.TLSVersion, ends: str
) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        getattr(writer.transport, ends)()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.maximum_version = version
    async with mesh().start() as m, await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context) as server:
        declare(m, server.sockets[0].getsockname()[1], TlsPolicy(ca_file=str(authority.certificate)))
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(m.get("web") for _ in range(20)))
        assert {answer.status for answer in answers} == {503}
        usage = m.plane.services[name("web")].usage
        await until(lambda: (usage.connections, usage.pending, usage.requests) == (0, 0, 0), what="nothing to be left")


@VERSIONS
@pytest.mark.parametrize("protocol", [AppProtocol.HTTP, None])
async def test_http1_that_closes_after_each_answer_resumes_sessions(
    authority: Authority, version: ssl.TLSVersion, protocol: AppProtocol | None
) -> None:
    async with mesh().start() as m, one_answer_each(authority, version) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), protocol)
        assert [(await m.get("web")).status for _ in range(3)] == [200] * 3
        assert resumed == [False, True, True]


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


@VERSIONS
async def test_http2_that_begins_with_two_streams_resumes_sessions(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    settings = ServerSettings((pair(authority.issue("web")),))
    async with inbound(settings) as (_, listener, port), mesh().start() as m:
        assert listener.tls is not None
        listener.tls.context.maximum_version = version
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.HTTP2)
        web = m.plane.services[name("web")]
        clients = [await m.connect() for _ in range(2)]
        for _ in range(3):
            for client in clients:  # both are there before the connection is
                client.send(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")
            assert [(await client.receive()).status for client in clients] == [200] * 2
            web.endpoints["w"].http2_pool.close()
            await until(lambda: web.usage.connections == 0, what="the connection to close")
        stats = listener.tls.context.session_stats()
        assert (stats["accept_good"], stats["hits"]) == (3, 2)


async def test_a_session_made_under_another_policy_is_not_kept(authority: Authority) -> None:
    async with mesh().start() as m, one_answer_each(authority) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
        async with tcp_to_web(m):
            await until(lambda: len(resumed) == 1, what="the handshake")
            declare(m, port, TlsPolicy("web", str(authority.certificate)), AppProtocol.TCP)
        for _ in range(2):
            async with tcp_to_web(m):
                pass
        assert resumed == [False, False, True]


async def test_a_handshake_that_never_began_leaves_its_session_to_nobody(authority: Authority) -> None:
    async with mesh().start() as m, one_answer_each(authority) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
        tls = m.plane.services[name("web")].tls
        assert tls is not None
        with tls.context_for("192.0.2.1:1", ()):
            pass  # a connection that was closed before it could begin
        for _ in range(2):
            async with tcp_to_web(m):
                pass
        assert resumed == [False, True]


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


async def test_an_endpoint_that_does_not_agree_to_http2_is_refused(authority: Authority, tmp_path: Path) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.GRPC)
        answer = await m.get("web")
        assert answer.status == 503
        assert b"no protocol in common: see appProtocol" in answer.body
        assert m.plane.services[name("web")].usage.pending == 0
        await until(lambda: m.plane.services[name("web")].usage.connections == 0, what="the connection to close")


async def test_a_client_certificate_is_shown(authority: Authority, tmp_path: Path) -> None:
    more = f"ssl_verify_client on; ssl_client_certificate {authority.certificate};"
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web"), more=more) as port:
        certificate, key = authority.issue("caller")
        declare(m, port, TlsPolicy("web", str(authority.certificate), str(certificate), str(key)))
        assert (await m.get("web")).body.split()[3] == b"SUCCESS"
        declare(m, port, TlsPolicy("web", str(authority.certificate)))
        assert (await m.get("web")).status == 400  # nginx's word for it


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (lambda a, s: TlsPolicy(ca_file=str(s.certificate)), "unable to get local issuer certificate"),
        (lambda a, s: TlsPolicy("other.example", str(a.certificate)), "Hostname mismatch"),
        (lambda a, s: TlsPolicy(), "unable to get local issuer certificate"),
        (lambda a, s: TlsPolicy(ca_file="/no/such/ca.pem"), "/no/such/ca.pem is not there"),
        (lambda a, s: TlsPolicy("web", str(a.certificate), "/no/c.pem", "/no/k.pem"), "/no/c.pem is not there"),
    ],
    ids=["another authority", "another name", "the system's authorities", "no such file", "no such pair"],
)
async def test_what_does_not_hold_is_said(
    authority: Authority, stranger: Authority, tmp_path: Path, policy: Callable[..., TlsPolicy], said: str
) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, policy(authority, stranger))
        answer = await m.get("web")
        assert answer.status == 503
        assert said.lower() in answer.body.decode().lower()
        assert b"UF" in answer.body
        assert "tls_certificate_error" in (answer.get("proxy-status") or "")
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        assert (await m.get("web")).status == 200  # the same endpoint, once the policy is right


async def test_an_expired_certificate_and_clear_text_are_told_apart(authority: Authority, tmp_path: Path) -> None:
    async with mesh().service("web").start() as m:
        (program,) = m.programs["web"]
        declare(m, program.port, TlsPolicy(ca_file=str(authority.certificate)))
        answer = await m.get("web")
        assert answer.status == 503
        assert b"does it speak TLS on that port?" in answer.body
    expired = authority.issue("web", label="expired", days=-1)
    async with mesh().start() as m, secured_nginx(tmp_path / "n", expired) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        assert b"certificate has expired" in (await m.get("web")).body


async def test_websocket_and_tcp_over_tls_at_both_edges(authority: Authority) -> None:
    """An echo server behind an inbound listener with TLS, called through an outbound one that verifies it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with mesh().start() as m, AsyncExitStack() as stack, server:
        listener = inbound_listener(
            m.plane, "db-0", server.sockets[0].getsockname()[1], ConnectionLimits(), is_tcp=True
        )
        listener.tls = ServerTls(ServerSettings((pair(authority.issue("web")),)), ())
        local = await serve(stack, listener)
        declare(m, local, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
        outbound = OutboundListener(m.plane, "sidemesh-out-tcp", ConnectionLimits(), service=name("web"))
        port = await serve(stack, outbound)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        large = bytes(range(256)) * 16 * 1024

        async def send() -> None:
            writer.write(large)
            await writer.drain()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(send())
            assert await reader.readexactly(len(large)) == large
        writer.close()
        await until(lambda: not m.plane.exchanges, what="the exchanges to end")


async def test_a_server_that_speaks_first_is_heard_in_clear_text_too(authority: Authority) -> None:
    """As other sidecars speak, whatever certificate there is for those outside."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with mesh().start() as m, AsyncExitStack() as stack, server:
        port = server.sockets[0].getsockname()[1]
        listener = inbound_listener(m.plane, "mail-0", port, ConnectionLimits(), is_tcp=True)
        listener.tls = ServerTls(ServerSettings((pair(authority.issue("web")),)), ())
        local = await serve(stack, listener)
        async with asyncio.timeout(10):  # the limit for a first byte is a minute
            reader, writer = await asyncio.open_connection("127.0.0.1", local)
            assert await reader.read() == b"220 hello\r\n"
            writer.close()
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", local, ssl=trusting(authority), server_hostname="web"
            )
            assert await reader.read() == b"220 hello\r\n"
            writer.close()
            await writer.wait_closed()
        await until(lambda: not m.plane.exchanges, what="the exchanges to end")


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_loaded_are_named(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("pay")
    _, other = stranger.issue("pay")
    (tmp_path / "garbage.pem").write_text("garbage")
    for files, said in (
        ((tmp_path / "none.pem", key), "none.pem is not there"),
        ((certificate, tmp_path / "none.key"), "none.key is not there"),
        ((tmp_path / "garbage.pem", key), "garbage.pem with"),
        ((certificate, other), "key values mismatch"),
    ):
        with pytest.raises(TlsError) as wrong:
            ServerTls(ServerSettings((pair(files),)))
        assert said in str(wrong.value)


def test_a_clients_files_are_looked_at_again_when_they_change(authority: Authority, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    client = ClientTls(ClientSettings("web", ca))

    def context() -> ssl.SSLContext:
        with client.context_for("a", ("h2",)) as found:
            return found

    with pytest.raises(TlsError):
        context()
    ca.write_bytes(authority.certificate.read_bytes())
    client.refresh()
    first = context()
    assert context() is first
    os.utime(ca, (1, 1))
    client.refresh()
    assert context() is not first


async def test_a_client_certificate_that_is_half_replaced_leaves_the_one_before(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate is written a moment before its key, as most tools do."""
    shown: list[str] = []

    async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown.append(writer.get_extra_info("peercert")["serialNumber"])
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    certificate, key = tmp_path / "caller.pem", tmp_path / "caller-key.pem"
    old, new = ([file.read_bytes() for file in authority.issue("caller", label=label)] for label in ("old", "new"))
    certificate.write_bytes(old[0])
    key.write_bytes(old[1])
    async with mesh().start() as m, await asyncio.start_server(note, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        declare(m, port, TlsPolicy("web", str(authority.certificate), str(certificate), str(key)))
        tls = m.plane.services[name("web")].tls
        assert tls is not None

        async def serial() -> str:
            before = len(shown)
            tls.refresh()
            await m.get("web")  # it hangs up, which is retried
            return shown[before]

        first = await serial()
        certificate.write_bytes(new[0])
        assert [await serial(), await serial()] == [first, first]
        with tls.context_for("192.0.2.1:1", ("h2",)):
            pass  # other protocols than before need no other files
        (told,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
        assert told.startswith(f"TLS to web: the certificates from before stay: {certificate} with {key}")
        key.write_bytes(new[1])
        assert await serial() != first


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
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(*authority.issue("web"))
    to_client, to_server, below = ssl.MemoryBIO(), ssl.MemoryBIO(), Below()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with ClientTls(ClientSettings("web", authority.certificate)).context_for("a", ()) as context:
        client: Any = context.wrap_bio(incoming, outgoing, server_hostname="web")
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


async def test_a_browser_of_today_gets_through(authority: Authority) -> None:
    """Aiohttp as a client over TLS, keep-alive and large bodies: what a program does."""
    async with (
        inbound(ServerSettings((pair(authority.issue("pay", "localhost")),))) as (m, _, port),
        aiohttp.ClientSession() as session,
    ):
        for _ in range(3):
            async with session.get(f"https://localhost:{port}/", ssl=trusting(authority)) as answer:
                assert answer.status == 200
        assert m.programs["pay"][0].requests[-1].fields("x-forwarded-proto") == ["https"]
