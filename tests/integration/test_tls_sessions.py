"""Sessions that are resumed (RFC 8446 §2.2) towards endpoints."""

import ssl

import pytest

from mesh.model.policy import AppProtocol, TlsPolicy
from proxy.tls import ServerSettings
from tests.support.certificates import Authority
from tests.support.mesh import mesh, name
from tests.support.process import until
from tests.support.tls import VERSIONS, declare, inbound, one_answer_each, pair, tcp_to_web


@VERSIONS
async def test_tcp_resumes_sessions(authority: Authority, version: ssl.TLSVersion) -> None:
    async with mesh().start() as m, one_answer_each(authority, version) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), AppProtocol.TCP)
        for _ in range(3):
            async with tcp_to_web(m):
                pass
        assert resumed == [False, True, True]


@VERSIONS
@pytest.mark.parametrize("protocol", [AppProtocol.HTTP, None])
async def test_http1_that_closes_after_each_answer_resumes_sessions(
    authority: Authority, version: ssl.TLSVersion, protocol: AppProtocol | None
) -> None:
    async with mesh().start() as m, one_answer_each(authority, version) as (port, resumed):
        declare(m, port, TlsPolicy(ca_file=str(authority.certificate)), protocol)
        assert [(await m.get("web")).status for _ in range(3)] == [200] * 3
        assert resumed == [False, True, True]


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
