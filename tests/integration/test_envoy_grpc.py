"""gRPC between a real Envoy and a sidecar, either way round: grpcio at both ends, unary calls, streams, giving up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from mesh.model.policy import AppProtocol, ServicePolicy
from mesh.model.service import Endpoint
from proxy.http1.limits import ConnectionLimits
from tests.support.envoy import HTTP2, Envoy, envoy
from tests.support.grpc_echo import GRPC, LARGE, OPTIONS, Echo, echo_server
from tests.support.mesh import Mesh, inbound_listener, mesh, name, serve
from tests.support.process import until

pytestmark = pytest.mark.peer

WAYS = ("inbound", "outbound", "to Envoy")


@asynccontextmanager
async def channel(kind: str, directory: Path) -> AsyncIterator[tuple[grpc.aio.Channel, Echo, Mesh, Envoy]]:
    """Client → Envoy → that listener → server, or client → sidecar → Envoy → server."""
    async with mesh().start() as m, echo_server() as (echo, server), AsyncExitStack() as stack:
        endpoint, upstream = server, m.port
        if kind == "inbound":
            upstream = await serve(stack, inbound_listener(m.plane, "echo-0", server, ConnectionLimits()))
        elif kind == "to Envoy":
            upstream = server
        peer = await stack.enter_async_context(envoy(directory, upstream, speaks=HTTP2, retry_on="refused-stream"))
        if kind == "to Envoy":
            endpoint = peer.port
        m.plane.apply_endpoints(name(GRPC), (Endpoint("e", "127.0.0.1", endpoint),))
        m.plane.services[name(GRPC)].set_policy(ServicePolicy(name(GRPC), app_protocol=AppProtocol.GRPC))
        port = m.port if kind == "to Envoy" else peer.port
        yield (
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS)),
            echo,
            m,
            peer,
        )


async def nothing_is_left(m: Mesh, peer: Envoy) -> None:
    """Neither of the two has anything under way, and no connection broke."""
    await until(lambda: not m.plane.exchanges, what="our exchanges to end")

    async def is_idle() -> bool:
        return await peer.count("http.web.downstream_rq_active", "cluster.upstream.upstream_rq_active") == 0

    await until(is_idle, what="Envoy's requests to end")
    broken = ("cluster.upstream.upstream_cx_protocol_error", "http.web.downstream_cx_protocol_error")
    assert await peer.count(*broken) == 0
    assert await peer.count("cluster.upstream.upstream_cx_http2_total", "http.web.downstream_cx_http2_total") >= 2


@pytest.mark.parametrize("kind", WAYS)
async def test_unary_calls_with_their_metadata_and_status(kind: str, tmp_path: Path) -> None:
    async with channel(kind, tmp_path) as (called, echo, m, peer):
        unary = called.unary_unary("/test.Echo/Unary")
        requests = [b"%d" % number for number in range(200)]
        assert await asyncio.gather(*map(unary, requests)) == requests
        call = unary(b"x" * 300_000, metadata=(("user", "ada"), ("blob-bin", b"\0\xff")))
        assert await call == b"x" * 300_000
        assert ("sum", "300000") in list(await call.trailing_metadata())
        assert ("user", "ada") in echo.metadata
        assert ("blob-bin", b"\0\xff") in echo.metadata
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"fail")
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert failed.value.details() == "no, café"
        await nothing_is_left(m, peer)


@pytest.mark.parametrize("kind", WAYS)
async def test_streams_of_each_kind(kind: str, tmp_path: Path) -> None:
    async with channel(kind, tmp_path) as (called, _, m, peer):
        many = called.unary_stream("/test.Echo/Many")(b"1000")
        assert [message async for message in many] == [b"%d" % number for number in range(1000)]
        both = called.stream_stream("/test.Echo/Both")()
        for number in range(50):
            await both.write(b"%d" % number)
            assert await both.read() == b"%d" % number * 2
        await both.done_writing()
        assert await both.read() is grpc.aio.EOF
        parts = [bytes((number,)) * (LARGE // 16) for number in range(16)]
        assert await called.stream_unary("/test.Echo/Collect")(iter(parts)) == b"".join(parts)
        await nothing_is_left(m, peer)


@pytest.mark.parametrize("kind", WAYS)
async def test_a_cancelled_call_is_cancelled_at_the_server_and_its_siblings_go_on(kind: str, tmp_path: Path) -> None:
    async with channel(kind, tmp_path) as (called, echo, m, peer):
        both = called.stream_stream("/test.Echo/Both")()
        await both.write(b"1")
        assert await both.read() == b"11"
        hanging = called.unary_unary("/test.Echo/Unary")(b"hang")
        await until(lambda: echo.calls == 1, what="the call to arrive")
        hanging.cancel()
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        await both.write(b"2")
        assert await both.read() == b"22"
        both.cancel()
        await nothing_is_left(m, peer)


@pytest.mark.parametrize("kind", WAYS)
async def test_a_deadline_ends_the_call_everywhere(kind: str, tmp_path: Path) -> None:
    async with channel(kind, tmp_path) as (called, echo, m, peer):
        unary = called.unary_unary("/test.Echo/Unary")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await unary(b"hang", timeout=0.4)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(echo.cancelled.wait(), 5)
        assert await unary(b"x", timeout=30) == b"x"
        await nothing_is_left(m, peer)
