"""TLS that ends at an inbound listener, with real clients: openssl, grpcio, aiohttp."""

import asyncio
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest

from proxy.http1.limits import ConnectionLimits
from proxy.tls import ServerSettings, ServerTls
from tests.support.certificates import Authority
from tests.support.grpc_echo import echo_server
from tests.support.mesh import inbound_listener, mesh, serve
from tests.support.needs import require
from tests.support.process import until
from tests.support.tls import (
    inbound,
    pair,
    trusting,
)


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
