"""The demo's tracing backend: takes OTLP over HTTP and shows one whole trace.

Decoded with OpenTelemetry's own protobuf definitions, so what the sidecars send is read as any backend reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import signal
from collections import OrderedDict
from typing import Any

import uvloop
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MAX_TRACES = 20_000


class Collector:
    """Keeps the newest traces by id; each is a list of spans as plain values."""

    def __init__(self) -> None:
        """Empty."""
        self._traces: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._spans = 0

    async def serve(self, port: int) -> None:
        """Listen on 127.0.0.1:``port`` until SIGTERM."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/traces", self._take)
        app.router.add_get("/traces/widest", self._widest)
        app.router.add_get("/healthz", self._health)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await stop.wait()
        await runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"traces": len(self._traces), "spans": self._spans})

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource_spans in message.resource_spans:
            resource = {a.key: a.value.string_value for a in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self._keep(span, resource)
        answer = trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    def _keep(self, span: Span, resource: dict[str, str]) -> None:
        self._spans += 1
        attributes = {a.key: _value(a.value) for a in span.attributes}
        self._traces.setdefault(span.trace_id.hex(), []).append(
            {
                "span_id": span.span_id.hex(),
                "parent_id": span.parent_span_id.hex(),
                "name": span.name,
                "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                "service": resource.get("service.name", "?"),
                "instance": resource.get("service.instance.id", "?"),
                "start_ns": span.start_time_unix_nano,
                "duration_ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
                "attributes": attributes,
            }
        )
        while len(self._traces) > MAX_TRACES:
            self._traces.popitem(last=False)

    async def _widest(self, _: web.Request) -> web.Response:
        """The trace over the most services; among those, one with a retry if there is any."""

        def width(spans: list[dict[str, Any]]) -> tuple[int, bool, int]:
            return len({s["service"] for s in spans}), _has_root(spans), min(len(spans), 9)

        best = max(self._traces.items(), key=lambda item: width(item[1]), default=("", []))
        return web.json_response(
            {"trace_id": best[0], "spans": best[1], "traces": len(self._traces), "all": self._spans}
        )


def _has_root(spans: list[dict[str, Any]]) -> bool:
    ids = {s["span_id"] for s in spans}
    return sum(s["parent_id"] not in ids for s in spans) == 1


def _value(value: Any) -> Any:  # noqa: ANN401 - an OTLP AnyValue
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


def main() -> None:
    """Entry point: ``python -m mesh.cli.demo.collector PORT``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    uvloop.run(Collector().serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
