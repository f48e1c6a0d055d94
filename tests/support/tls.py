"""Both ends of TLS for tests: contexts, an inbound listener, and servers behind a sidecar."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from mesh.model.policy import AppProtocol, ServicePolicy, TlsPolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from proxy.listener import InboundListener, OutboundListener
from proxy.tls import KeyPair, ServerSettings, ServerTls
from tests.support.certificates import Authority
from tests.support.mesh import Mesh, Reply, inbound_listener, mesh, name, serve
from tests.support.needs import require
from tests.support.ports import free_port, is_open
from tests.support.process import Process


def trusting(authority: Authority, *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def server_context(
    authority: Authority, *alpn: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """For a server named ``web``, which agrees to these protocols and takes no TLS beyond ``version``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("web"))
    context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def pair(files: tuple[Path, Path], *names: str) -> KeyPair:
    return KeyPair(files[0], files[1], names)


@asynccontextmanager
async def inbound(
    settings: ServerSettings, limits: ConnectionLimits | None = None, replies: Sequence[Reply] = (200,)
) -> AsyncIterator[tuple[Mesh, InboundListener, int]]:
    async with mesh().service("pay", replies=replies).start() as m, AsyncExitStack() as stack:
        (program,) = m.programs["pay"]
        listener = inbound_listener(m.plane, "pay-0", program.port, limits or ConnectionLimits())
        listener.tls = ServerTls(settings)
        yield m, listener, await serve(stack, listener)


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


def declare(m: Mesh, port: int, tls: TlsPolicy | None, protocol: AppProtocol | None = None) -> None:
    m.plane.apply_endpoints(name("web"), (Endpoint("w", "127.0.0.1", port),))
    m.plane.services[name("web")].set_policy(ServicePolicy(name("web"), app_protocol=protocol, tls=tls))


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

    context = server_context(authority, version=version)
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
