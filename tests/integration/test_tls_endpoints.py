"""TLS to a service's endpoints: what is verified and shown, and files that change; nginx behind it."""

import asyncio
import os
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mesh.model.policy import AppProtocol, TlsPolicy
from proxy.http1.limits import ConnectionLimits
from proxy.listener import OutboundListener
from proxy.tls import ClientSettings, ClientTls, ServerSettings, ServerTls, TlsError
from tests.support.certificates import Authority
from tests.support.mesh import inbound_listener, mesh, name, serve
from tests.support.process import until
from tests.support.tls import (
    declare,
    pair,
    secured_nginx,
    server_context,
)


async def test_an_endpoint_is_verified_and_sessions_are_resumed(authority: Authority, tmp_path: Path) -> None:
    async with mesh().start() as m, secured_nginx(tmp_path / "n", authority.issue("web")) as port:
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)))
        said = [(await m.get("web")).body.decode().split() for _ in range(10)]
        assert {words[:2] == ["HTTP/1.1", "https"] for words in said} == {True}
        # nginx closes after three requests; what follows is a handshake cut short.
        assert said[0][2] == "."
        assert "r" in [words[2] for words in said]


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

    context = server_context(authority)
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
