"""A real OTLP backend for tests, over HTTP and gRPC, and sidecars built from one file's worth of settings.

What it receives is decoded with OpenTelemetry's own protobuf definitions, so it is read as any backend reads it.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mesh.model.name import Name
from proxy.admin import AdminServer
from proxy.config import Address, SidecarConfig
from proxy.sidecar import Sidecar
from tests.support.process import until

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
FREE = Address("127.0.0.1", 0)


@dataclass
class Seen:
    """One span as the backend reads it."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    is_error: bool
    state: str = ""

    @property
    def service(self) -> str:
        return str(self.resource.get("service.name", "?"))


@dataclass
class Backend:
    """Spans received so far. ``answer`` is the status of every answer; ``hangs``: none is given at all."""

    http: str = ""
    grpc: str = ""
    spans: list[Seen] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    answer: int = 200
    rejected: int = 0
    hangs: bool = False
    asked: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, count: int) -> list[Seen]:
        """Wait until that many spans have come."""
        await until(lambda: len(self.spans) >= count, what=f"{count} spans, not {len(self.spans)}")
        return self.spans

    def of(self, trace_id: str) -> list[Seen]:
        return [s for s in self.spans if s.trace_id == trace_id]

    def take(self, message: ExportTraceServiceRequest) -> None:
        for resource_spans in message.resource_spans:
            resource = attributes(resource_spans.resource.attributes)
            for scope in resource_spans.scope_spans:
                self.spans += [seen(span, resource) for span in scope.spans]


def attributes(pairs: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in pairs}


def seen(span: Any, resource: dict[str, Any]) -> Seen:
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        attributes(span.attributes),
        resource,
        span.status.code == 2,
        span.trace_state,
    )


@asynccontextmanager
async def otlp_backend() -> AsyncIterator[Backend]:
    """Runs both protocols on free ports; ``http`` and ``grpc`` are what OTEL_EXPORTER_OTLP_ENDPOINT wants."""
    backend = Backend()

    async def over_http(request: web.Request) -> web.Response:
        backend.asked += 1
        if backend.hangs:
            await backend.is_over.wait()
        backend.headers.append(dict(request.headers))
        body = await request.read()  # aiohttp undoes gzip
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        if backend.answer == 200:
            backend.take(ExportTraceServiceRequest.FromString(body))
        answer = ExportTraceServiceResponse()
        if backend.rejected:
            answer.partial_success.rejected_spans = backend.rejected
        return web.Response(
            status=backend.answer, body=answer.SerializeToString(), content_type="application/x-protobuf"
        )

    async def over_grpc(request: bytes, context: Any) -> bytes:
        backend.asked += 1
        backend.headers.append(dict(context.invocation_metadata()))
        backend.take(ExportTraceServiceRequest.FromString(request))
        return ExportTraceServiceResponse().SerializeToString()

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/v1/traces", over_http)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend.http = f"http://127.0.0.1:{runner.addresses[0][1]}"
    server = grpc.aio.server()
    service, method = EXPORT.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(over_grpc)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    backend.grpc = f"http://127.0.0.1:{port}"
    try:
        yield backend
    finally:
        backend.is_over.set()
        await server.stop(None)
        await runner.cleanup()


# ------------------------------------------------------------------------------------------------------- sidecars


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables for as long as a sidecar is built."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in variables.items():
            patch.setenv(key, value)
        yield


@dataclass
class Running:
    """A sidecar of this process with its admin pages."""

    sidecar: Sidecar
    outbound: int
    inbound: int
    admin: str

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/metrics") as answer:
            return await answer.text()

    async def call(
        self,
        service: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> tuple[int, dict[str, str], str]:
        """A call through the outbound listener, as the local program makes it."""
        return await ask(
            f"http://127.0.0.1:{self.outbound}{path}", {"host": service, **(headers or {})}, method, **more
        )


async def ask(
    url: str, headers: Mapping[str, str], method: str = "GET", **more: Any
) -> tuple[int, dict[str, str], str]:
    """One request on a connection of its own."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, **more) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.text()


@asynccontextmanager
async def sidecar(
    service: str,
    *,
    services: Mapping[str, Any] | None = None,
    routes: tuple[Mapping[str, Any], ...] = (),
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A whole sidecar from one file's worth of settings: no control server, no Consul."""
    config = SidecarConfig(
        Name("default", service), port=port, inbound=FREE, outbound=FREE, admin=FREE, services=services or {},
        routes=routes, **{"check_interval_s": 60.0, **settings},
    )  # fmt: skip
    with environment(env or {}):
        built = Sidecar(config)
    admin = AdminServer(built)
    try:
        await built.start()
        await admin.start()
        await built.ready()
        where = built.addresses
        inbound = where["inbound"].port if port is not None else 0
        yield Running(built, where["outbound"].port, inbound, f"http://{where['admin']}")
    finally:
        await built.close()
        await admin.close()


def endpoints(*ports: int, **more: Any) -> list[dict[str, Any]]:
    """A service's endpoints as a file gives them."""
    return [{"id": f"e{n}", "address": "127.0.0.1", "port": port, **more} for n, port in enumerate(ports)]


def log_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
