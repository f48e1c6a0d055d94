"""A gRPC service on grpcio that echoes, and a channel to it through a mesh."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from mesh.model.service import Endpoint
from tests.support.mesh import Mesh, name

GRPC = "echo"
LARGE = 4 * 1024 * 1024
OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", GRPC),
    ("grpc.max_receive_message_length", LARGE * 2),
]
RETRIED = """
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo}
spec:
  parentRefs: [{group: "", kind: Service, name: echo}]
  rules:
  - backendRefs: [{name: echo}]
    retry: {codes: [UNAVAILABLE], attempts: 2, backoff: 1ms}
"""
"""A route by which UNAVAILABLE is tried again, twice."""


class Echo:
    """A gRPC service of bytes; ``calls`` counts, ``cancelled`` hears of calls that were given up."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = asyncio.Event()
        self.metadata: list[tuple[str, Any]] = []

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.calls += 1
        self.metadata = list(context.invocation_metadata())
        context.set_trailing_metadata((("sum", str(len(request))),))
        if request == b"fail":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no, caf\u00e9")
        if request == b"hang":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return request

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("hello", "first"),))
        async for request in requests:
            yield request * 2

    async def many(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def collect(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        return b"".join([request async for request in requests])


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[Echo, int]]:
    echo, server = Echo(), grpc.aio.server(options=[("grpc.max_receive_message_length", LARGE * 2)])
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "Both": grpc.stream_stream_rpc_method_handler(echo.both),
        "Many": grpc.unary_stream_rpc_method_handler(echo.many),
        "Collect": grpc.stream_unary_rpc_method_handler(echo.collect),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield echo, port
    finally:
        await server.stop(0)


@asynccontextmanager
async def through(m: Mesh, *ports: int) -> AsyncIterator[grpc.aio.Channel]:
    """A channel into the outbound listener, for a service at these ports."""
    m.plane.apply_endpoints(name(GRPC), tuple(Endpoint(f"e{port}", "127.0.0.1", port) for port in ports))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{m.port}", options=OPTIONS) as channel:
        yield channel
