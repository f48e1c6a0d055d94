"""Where spans go: an OTLP backend over HTTP and gRPC that counts them and keeps none. A process of its own.

    python -m tests.bench.sink HTTP_PORT GRPC_PORT

``GET /count`` answers ``{service.name: spans}``, so that a run can check that tracing really was on.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
from collections import Counter
from typing import Any

import grpc.aio
import uvloop
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_ANSWER = ExportTraceServiceResponse().SerializeToString()


async def run(http_port: int, grpc_port: int) -> None:
    """Count until the process is ended."""
    counts: Counter[str] = Counter()

    def take(body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            name = next((a.value.string_value for a in resource.resource.attributes if a.key == "service.name"), "?")
            counts[name] += sum(len(scope.spans) for scope in resource.scope_spans)

    async def over_http(request: web.Request) -> web.Response:
        body = await request.read()
        take(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        return web.Response(body=_ANSWER, content_type="application/x-protobuf")

    async def over_grpc(request: bytes, _: Any) -> bytes:
        take(request)
        return _ANSWER

    async def count(_: web.Request) -> web.Response:
        return web.json_response(counts)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", over_http)
    app.router.add_get("/count", count)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
    handler: Any = grpc.unary_unary_rpc_method_handler(over_grpc)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": handler}),))
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(run(int(sys.argv[1]), int(sys.argv[2])))
