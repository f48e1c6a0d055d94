"""Spans, metrics and log lines of real sidecars, on real sockets, read by a real OTLP backend."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mesh.model.name import Name
from mesh.telemetry.names import ISTIO_LABELS, LOG_FIELDS, METRICS
from tests.support.grpc_echo import GRPC, echo_server
from tests.support.mesh import Program
from tests.support.ports import free_port
from tests.support.process import until
from tests.support.telemetry import Backend, Running, endpoints, log_lines, otlp_backend, sidecar

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with otlp_backend() as running:
        yield running


def to(backend: Backend, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.http, **SOON, **more}


class Pair:
    """A caller's sidecar, and pay behind its own."""

    def __init__(self, caller: Running, pay: Running, program: Program) -> None:
        self.caller, self.pay, self.program = caller, pay, program


@pytest.fixture
async def pair(backend: Backend, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    replies = getattr(request, "param", [200])
    program = Program(replies)
    await program.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(program.stop)
        pay = await stack.enter_async_context(sidecar("pay", port=program.port, version="v1", env=to(backend)))
        caller = await stack.enter_async_context(
            sidecar("shop", services={"pay": endpoints(pay.inbound)}, env=to(backend))
        )
        yield Pair(caller, pay, program)


# ------------------------------------------------------------------------------------------------------------ spans


async def test_a_call_makes_a_client_span_and_a_server_span_below_the_callers(pair: Pair, backend: Backend) -> None:
    status, _, _ = await pair.caller.call("pay", "/a/b?c=d", headers={**SAMPLED, "user-agent": "test/1"})
    assert status == 200
    spans = {s.kind: s for s in await backend.until(2)}
    client, server = spans["CLIENT"], spans["SERVER"]
    assert {client.trace_id, server.trace_id} == {TRACE}
    assert client.parent_id == CALLER
    assert server.parent_id == client.span_id
    assert pair.program.requests[0].fields("traceparent") == [f"00-{TRACE}-{server.span_id}-01"]
    assert client.start_ns <= server.start_ns <= server.end_ns <= client.end_ns
    peer_port = server.attributes.pop("network.peer.port")
    assert isinstance(peer_port, int)
    assert client.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.full": "http://pay/a/b?c=d",
        "server.address": "pay",
        "server.port": 80,
        "network.peer.address": "127.0.0.1",
        "network.peer.port": pair.pay.inbound,
        "network.protocol.version": "1.1",
        "user_agent.original": "test/1",
        "mesh.cluster": "pay",
        "mesh.route": "passthrough",
        "mesh.endpoint": "e0",
    }
    assert server.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.path": "/a/b",
        "url.query": "c=d",
        "url.scheme": "http",
        "server.address": "pay",
        "network.peer.address": "127.0.0.1",
        "client.address": "127.0.0.1",
        "network.protocol.version": "1.1",
        "user_agent.original": "test/1",
    }
    assert client.name == server.name == "GET"
    assert not client.is_error


async def test_each_attempt_is_a_span_and_says_why_another_followed(backend: Backend) -> None:
    programs = [Program([503]) for _ in range(4)]
    async with AsyncExitStack() as stack:
        for program in programs:
            await program.start()
            stack.push_async_callback(program.stop)
        services = {"pay": endpoints(*(p.port for p in programs))}
        caller = await stack.enter_async_context(sidecar("shop", services=services, env=to(backend)))
        status, _, _ = await caller.call("pay", headers=SAMPLED)
        assert status == 503
        tried = sum(len(p.requests) for p in programs)
        assert tried == 3
        spans = sorted(await backend.until(tried), key=lambda s: s.start_ns)
    assert [s.attributes.get("http.request.resend_count") for s in spans] == [None, *range(1, tried)]
    assert [bool(s.attributes.get("mesh.retry_reason")) for s in spans] == [True] * (tried - 1) + [False]
    assert all(s.is_error and s.attributes["error.type"] == "503" for s in spans)
    assert {s.parent_id for s in spans} == {CALLER}
    sent = {r.fields("traceparent")[0].split("-")[2] for p in programs for r in p.requests}
    assert sent == {s.span_id for s in spans}
    assert spans[-1].attributes["mesh.response_flags"] == "URX"


async def test_a_refused_connection_is_a_span_with_its_error(backend: Backend) -> None:
    async with sidecar("shop", services={"pay": endpoints(1)}, env=to(backend)) as caller:
        status, _, _ = await caller.call("pay", headers=SAMPLED)
        assert status == 503
        spans = await backend.until(1)
    assert spans[0].attributes["error.type"] == "connection_refused"
    assert spans[0].attributes["mesh.response_flags"] == "UF"
    assert "http.response.status_code" not in spans[0].attributes, "nobody answered the attempt"
    assert spans[0].is_error


async def test_a_call_refused_before_it_had_an_endpoint_is_one_client_span(backend: Backend) -> None:
    async with sidecar("shop", env=to(backend)) as caller:
        status, _, _ = await caller.call("nobody", headers=SAMPLED)
        assert status == 404
        (span,) = await backend.until(1)
    assert span.kind == "CLIENT"
    assert span.attributes["error.type"] == "destination_not_found"
    assert span.attributes["http.response.status_code"] == 404
    assert "mesh.cluster" not in span.attributes


async def test_an_unsampled_call_makes_no_span_and_passes_the_callers_id_on(pair: Pair, backend: Backend) -> None:
    await pair.caller.call("pay", headers={"traceparent": f"00-{TRACE}-{CALLER}-00", "tracestate": "a=b"})
    await pair.caller.call("pay", headers=SAMPLED)
    spans = await backend.until(2)
    assert len(spans) == 2, "both of the second call"
    assert pair.program.requests[0].fields("traceparent") == [f"00-{TRACE}-{CALLER}-00"]
    assert pair.program.requests[0].fields("tracestate") == ["a=b"]


async def test_without_a_backend_context_passes_through_and_nothing_is_recorded() -> None:
    program = Program([200])
    await program.start()
    async with sidecar("shop", services={"pay": endpoints(program.port)}) as caller:
        await caller.call("pay", headers={**SAMPLED, "tracestate": "a=b,c=d", "baggage": "k=v"})
        assert caller.sidecar.telemetry.exporter is None
    await program.stop()
    request = program.requests[0]
    assert request.fields("traceparent") == [f"00-{TRACE}-{CALLER}-01"]
    assert request.fields("tracestate") == ["a=b,c=d"]
    assert request.fields("baggage") == ["k=v"]


@pytest.mark.parametrize("formats", ["b3", "b3multi", "tracecontext,b3"])
async def test_b3_is_read_and_written_where_it_is_asked_for(formats: str, backend: Backend) -> None:
    program = Program([200])
    await program.start()
    given = {
        "b3": {"b3": f"{TRACE}-{CALLER}-1"},
        "b3multi": {"X-B3-TraceId": TRACE, "X-B3-SpanId": CALLER, "X-B3-Sampled": "1"},
        "tracecontext,b3": {"b3": f"{TRACE}-{CALLER}-1"},
    }[formats]
    env = to(backend, OTEL_PROPAGATORS=f"{formats},baggage")
    async with sidecar("shop", services={"pay": endpoints(program.port)}, env=env) as caller:
        await caller.call("pay", headers=given)
        (span,) = await backend.until(1)
    await program.stop()
    assert (span.trace_id, span.parent_id) == (TRACE, CALLER)
    request = program.requests[0]
    if "b3multi" in formats:
        assert request.fields("x-b3-traceid") == [TRACE]
        assert request.fields("x-b3-spanid") == [span.span_id]
        assert request.fields("x-b3-sampled") == ["1"]
    else:
        assert request.fields("b3") == [f"{TRACE}-{span.span_id}-1"]
    assert bool(request.fields("traceparent")) == ("tracecontext" in formats)


async def test_headers_of_a_format_not_spoken_pass_untouched() -> None:
    program = Program([200])
    await program.start()
    async with sidecar("shop", services={"pay": endpoints(program.port)}) as caller:
        await caller.call("pay", headers={"b3": "0", "x-b3-flags": "1"})
    await program.stop()
    assert program.requests[0].fields("b3") == ["0"]
    assert program.requests[0].fields("x-b3-flags") == ["1"]


async def test_the_otel_sampler_wins_over_the_ratio_of_the_settings(backend: Backend) -> None:
    program = Program([200])
    await program.start()
    services = {"pay": endpoints(program.port)}
    env = to(backend, OTEL_TRACES_SAMPLER="always_on")
    async with sidecar("shop", services=services, env=env, trace_ratio=0.0) as caller:
        await caller.call("pay")
        await caller.call("pay", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        spans = await backend.until(2)
        assert len(backend.of(TRACE)) == 1, "always_on does not follow the parent"
        assert {s.parent_id for s in spans} == {"", CALLER}
    await program.stop()


async def test_spans_say_whose_they_are(backend: Backend) -> None:
    env = to(
        backend,
        OTEL_SERVICE_NAME="shop-frontend",
        OTEL_RESOURCE_ATTRIBUTES="team=red,service.namespace=mine",
        POD_NAME="shop-7",
        NODE_NAME="node-1",
    )
    async with sidecar("shop", version="v3", instance_id="shop-a", env=env) as caller:
        await caller.call("nobody", headers=SAMPLED)
        (span,) = await backend.until(1)
    told = {k: v for k, v in span.resource.items() if not k.startswith("telemetry.sdk.")}
    assert told == {
        "service.name": "shop-frontend",
        "service.namespace": "mine",
        "service.instance.id": "shop-a",
        "service.version": "v3",
        "team": "red",
        "k8s.pod.name": "shop-7",
        "k8s.node.name": "node-1",
    }


async def test_spans_go_over_grpc_where_it_is_asked_for(backend: Backend) -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": backend.grpc,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret%20one",
        **SOON,
    }
    async with sidecar("shop", env=env) as caller:
        await caller.call("nobody", headers=SAMPLED)
        await backend.until(1)
    assert backend.headers[0]["api-key"] == "secret one"


async def test_spans_are_gzipped_with_headers_and_past_any_http_proxy(backend: Backend) -> None:
    env = to(
        backend,
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_HEADERS="api-key=secret",
        http_proxy="http://127.0.0.1:1",
        HTTP_PROXY="http://127.0.0.1:1",
    )
    async with sidecar("shop", env=env) as caller:
        await caller.call("nobody", headers=SAMPLED)
        await backend.until(1)
    assert backend.headers[0]["Content-Encoding"] == "gzip"
    assert backend.headers[0]["api-key"] == "secret"


async def test_a_hanging_backend_costs_no_request_and_lost_spans_are_counted(pair: Pair, backend: Backend) -> None:
    backend.hangs = True
    program = pair.program
    env = to(backend, OTEL_BSP_MAX_QUEUE_SIZE="4", OTEL_EXPORTER_OTLP_TIMEOUT="50")
    async with sidecar("late", services={"pay": endpoints(program.port)}, env=env) as caller:
        for _ in range(30):
            status, _, _ = await caller.call("pay", headers=SAMPLED)
            assert status == 200
        exporter = caller.sidecar.telemetry.exporter
        assert exporter is not None
        await until(lambda: exporter.dropped + exporter.queued == 30, what="all spans to be dropped or queued")
        assert exporter.dropped >= 30 - 8
        assert exporter.exported == 0
        assert "mesh_spans_dropped_total " in await caller.metrics()


async def test_what_a_backend_rejects_counts_as_dropped(backend: Backend) -> None:
    backend.rejected = 1
    async with sidecar("shop", env=to(backend)) as caller:
        await caller.call("nobody", headers=SAMPLED)
        exporter = caller.sidecar.telemetry.exporter
        assert exporter is not None
        await until(lambda: exporter.dropped == 1, what="the span to be counted")
        assert exporter.exported == 0


async def test_spans_still_queued_at_the_end_are_sent(backend: Backend) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.http, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    async with sidecar("shop", env=env) as caller:
        for _ in range(3):
            await caller.call("nobody", headers=SAMPLED)
    assert len(backend.spans) == 3


async def test_a_client_that_leaves_is_told_as_such(backend: Backend) -> None:
    program = Program([_never])
    await program.start()
    async with sidecar("shop", services={"pay": endpoints(program.port)}, env=to(backend)) as caller:
        _, writer = await asyncio.open_connection("127.0.0.1", caller.outbound)
        writer.write(f"GET / HTTP/1.1\r\nhost: pay\r\ntraceparent: {SAMPLED['traceparent']}\r\n\r\n".encode())
        await program.wait_for_requests(1)
        writer.close()
        (span,) = await backend.until(1)
    await program.stop()
    assert span.attributes["error.type"] == "connection_terminated"
    assert span.attributes["mesh.response_flags"] == "DC"
    assert "http.response.status_code" not in span.attributes


async def _never(request: Any, writer: asyncio.StreamWriter) -> None:
    await request.reader.read()


# --------------------------------------------------------------------------------------------- spans of connections


DB = Name("default", "db")
ALL = {"trace_tcp": True, "trace_ratio": 1.0}


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data * 2)
    writer.close()


@asynccontextmanager
async def database(backend: Backend, **settings: Any) -> AsyncIterator[tuple[Running, Running]]:
    """A caller's sidecar with a local port for db, and db behind its own."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(await asyncio.start_server(echo, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]
        db = await stack.enter_async_context(sidecar("db", port=port, protocol="tcp", env=to(backend), **settings))
        services = {"db": endpoints(db.inbound)}
        upstreams = {"upstreams": {DB: 0}, "tcp_upstreams": frozenset({DB})}
        app = await stack.enter_async_context(
            sidecar("app", services=services, env=to(backend), **upstreams, **settings)
        )
        yield app, db


async def say(app: Running, data: bytes) -> bytes:
    """A whole connection, in order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.sidecar.addresses["upstream db"].port)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_connection_is_a_span_at_both_sidecars_where_that_is_asked_for(backend: Backend) -> None:
    async with database(backend, **ALL) as (app, db):
        assert await say(app, b"x" * 100) == b"x" * 200
        spans = {s.kind: s for s in await backend.until(2)}
        client, server = spans["CLIENT"], spans["SERVER"]
        local = app.sidecar.addresses["upstream db"].port
        assert client.attributes == {
            "network.transport": "tcp",
            "server.address": "db",
            "server.port": local,
            "network.peer.address": "127.0.0.1",
            "network.peer.port": db.inbound,
            "mesh.cluster": "db",
            "mesh.route": "passthrough",
            "mesh.endpoint": "e0",
            "mesh.bytes_received": 100,
            "mesh.bytes_sent": 200,
        }
        assert isinstance(server.attributes.pop("network.peer.port"), int)
        assert server.attributes == {
            "network.transport": "tcp",
            "server.address": "db",
            "server.port": db.inbound,
            "client.address": "127.0.0.1",
            "network.peer.address": "127.0.0.1",
            "mesh.bytes_received": 100,
            "mesh.bytes_sent": 200,
        }
        assert (client.name, client.service, server.service) == ("TCP", "app", "db")
        assert [(s.parent_id, s.is_error) for s in (client, server)] == [("", False)] * 2
        assert 0 < client.start_ns <= server.start_ns <= server.end_ns
        assert len(backend.spans) == 2


async def test_a_connection_that_fails_is_one_span_however_often_it_was_tried(backend: Backend) -> None:
    upstreams = {"upstreams": {DB: 0}, "tcp_upstreams": frozenset({DB})}
    async with sidecar("app", services={"db": endpoints(1, 2, 3)}, env=to(backend), **upstreams, **ALL) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.sidecar.addresses["upstream db"].port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        (span,) = await backend.until(1)
    (span,) = backend.spans
    assert span.is_error
    assert span.attributes["error.type"] == "connection_refused"
    assert span.attributes["mesh.cluster"] == "db"
    assert "http.request.method" not in span.attributes


async def test_a_sampled_connection_is_a_line_of_the_sampled_log(backend: Backend, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with database(backend, access_log="sampled", access_log_path=str(log), **ALL) as (app, _):
        await say(app, b"x")
        lines = [json.loads(line) for line in await logged(log, 2)]
        spans = {s.trace_id for s in await backend.until(2)}
    assert {line["trace_id"] for line in lines} == spans


async def test_the_line_of_a_connection(backend: Backend, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with database(backend, access_log="all", access_log_path=str(log)) as (app, db):
        assert await say(app, b"x" * 100) == b"x" * 200
        lines = {line["listener"]: line for line in map(json.loads, await logged(log, 2))}
        told = {
            "method": "-", "path": "-", "protocol": "-", "response_code": 0, "response_flags": "-", "authority": "",
            "bytes_received": 100, "bytes_sent": 200, "downstream_address": "127.0.0.1", "retries": 0,
            "request_id": None, "user_agent": None, "x_forwarded_for": None, "grpc_status": None, "error": None,
        }  # fmt: skip
        assert {key: value for key, value in lines["outbound"].items() if key in told} == told
        assert {key: value for key, value in lines["inbound"].items() if key in told} == told
        where = ("upstream_host", "cluster", "route")
        assert [lines["outbound"][key] for key in where] == [f"127.0.0.1:{db.inbound}", "db", "passthrough"]
        assert lines["inbound"]["cluster"] == "(local)/db"
        assert lines["outbound"]["duration"] >= lines["outbound"]["upstream_service_time"] > 0


@pytest.mark.parametrize(
    ("format_", "begins"), [("json", '"response_code":0,"response_flags":"URX"'), ("text", '"- - -" 0 URX 0 0 ')]
)
async def test_the_line_of_a_connection_that_fails(tmp_path: Path, format_: str, begins: str) -> None:
    log = tmp_path / "access.log"
    settings = {"access_log": "sampled", "access_log_path": str(log), "access_log_format": format_, "trace_ratio": 0.0}
    upstreams = {"upstreams": {DB: 0}, "tcp_upstreams": frozenset({DB})}
    async with sidecar("app", services={"db": endpoints(1)}, **upstreams, **settings) as app:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.sidecar.addresses["upstream db"].port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        (line,) = await logged(log, 1)
    assert begins in line
    assert "Connection refused" in line


async def test_a_connection_still_open_at_the_end_is_told_then(backend: Backend) -> None:
    async with database(backend, **ALL) as (app, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.sidecar.addresses["upstream db"].port)
        writer.write(b"x")
        assert await reader.readexactly(2) == b"xx"
        assert not backend.spans
    assert sorted(s.kind for s in backend.spans) == ["CLIENT", "SERVER"]
    writer.close()


@pytest.mark.parametrize("settings", [{"trace_ratio": 1.0}, {"trace_tcp": True, "trace_ratio": 0.0}])
async def test_without_the_wish_or_the_ratio_connections_make_no_spans(
    backend: Backend, settings: dict[str, Any]
) -> None:
    async with database(backend, **settings) as (app, _):
        for _ in range(3):
            await say(app, b"x")
        await until(lambda: not app.sidecar.plane.exchanges, what="them to be over")
    assert not backend.spans, "all that were queued have been sent"


# ---------------------------------------------------------------------------------------------------------- metrics


def parsed(text: str) -> dict[str, Any]:
    return {f.name: f for f in text_string_to_metric_families(text)}


async def test_the_exposition_is_what_prometheus_reads_and_counts_what_happened(pair: Pair) -> None:
    for _ in range(3):
        await pair.caller.call("pay", method="POST", data=b"x" * 300)
    await pair.caller.call("nobody")
    families = parsed(await pair.caller.metrics())
    requests = {
        (s.labels["destination_service_name"], s.labels["response_code"], s.labels["response_flags"]): s
        for s in families["istio_requests"].samples
    }
    assert requests["pay", "200", "-"].value == 3
    assert requests["unknown", "404", "NR"].value == 1
    labels = requests["pay", "200", "-"].labels
    assert set(labels) == set(ISTIO_LABELS)
    assert labels["reporter"] == "source"
    assert labels["source_workload"] == "shop"
    sums = {s.name: s.value for f in families.values() for s in f.samples if s.labels.get("response_code") == "200"}
    assert sums["istio_request_bytes_sum"] == 900
    assert sums["istio_response_bytes_sum"] == 15
    assert sums["istio_request_duration_milliseconds_count"] == 3
    assert sums["istio_request_bytes_count"] == 3
    inbound = parsed(await pair.pay.metrics())["istio_requests"].samples[0]
    assert inbound.labels["reporter"] == "destination"
    assert inbound.labels["destination_workload"] == "pay-v1"
    assert inbound.labels["destination_service"] == "pay.default"


async def test_every_family_shown_is_one_that_names_lists(pair: Pair) -> None:
    await pair.caller.call("pay")
    text = await pair.caller.metrics()
    shown = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE")}
    known = {metric.name: metric.kind for metric in METRICS}
    assert shown.items() <= known.items()
    assert {"mesh_endpoints", "mesh_listener_connections", "process_open_fds", "mesh_build_info"} <= set(shown)
    families = parsed(text)
    assert families["process_resident_memory_bytes"].samples[0].value > 10e6
    assert {(s.labels["service"], s.labels["state"]): s.value for s in families["mesh_endpoints"].samples}[
        "pay", "usable"
    ] == 1


async def test_scraping_many_series_does_not_hold_the_loop(pair: Pair) -> None:
    series = pair.caller.sidecar.recorder.series_for(None, None)
    for status in range(100, 600):
        series.record(status, "", 1.0, 0, 10)
    loop = asyncio.get_running_loop()
    longest, running = 0.0, True

    async def watch() -> None:
        nonlocal longest
        last = loop.time()
        while running:
            await asyncio.sleep(0)
            longest, last = max(longest, loop.time() - last), loop.time()

    watcher = asyncio.ensure_future(watch())  # noqa: TID251 - ends below
    async with aiohttp.ClientSession() as session, session.get(f"{pair.caller.admin}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        size = 0
        async for piece in answer.content.iter_any():
            size += len(piece)
    running = False
    await watcher
    assert size > 5_000_000
    # The client reads in the same loop, and the machine is shared: 5 ms hold for the sidecar alone.
    assert longest < 0.05


async def test_health_checks_are_no_requests(pair: Pair) -> None:
    async with aiohttp.ClientSession() as session:
        await session.get(f"http://127.0.0.1:{pair.pay.inbound}/.well-known/sidemesh/health")
    families = parsed(await pair.pay.metrics())
    assert not families["istio_requests"].samples
    assert families["mesh_health_answers"].samples[0].value == 1


# ------------------------------------------------------------------------------------------------------- access log


async def logged(path: Path, count: int) -> list[str]:
    await until(lambda: len(log_lines(path)) >= count, what=f"{count} log lines")
    return log_lines(path)


async def test_a_line_says_what_status_a_grpc_caller_got(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with echo_server() as (_, port):
        services = {GRPC: endpoints(port), "gone": endpoints(free_port())}
        async with sidecar("shop", services=services, access_log="all", access_log_path=str(log)) as caller:
            for authority in (GRPC, "gone"):
                options = [("grpc.default_authority", authority), ("grpc.enable_http_proxy", 0)]
                async with grpc.aio.insecure_channel(f"127.0.0.1:{caller.outbound}", options=options) as channel:
                    with suppress(grpc.aio.AioRpcError):
                        await channel.unary_unary("/test.Echo/Unary")(b"x")
                        await channel.unary_unary("/test.Echo/Nothing")(b"x")
            lines = [json.loads(line) for line in await logged(log, 3)]
    unavailable, unimplemented = grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.UNIMPLEMENTED.value[0]
    assert [line["grpc_status"] for line in lines] == [0, unimplemented, unavailable]
    assert [line["response_code"] for line in lines] == [200] * 3


async def test_every_request_is_one_line_of_json(tmp_path: Path) -> None:
    program = Program([200])
    await program.start()
    log = tmp_path / "access.log"
    services = {"pay": endpoints(program.port)}
    async with sidecar("shop", services=services, access_log="all", access_log_path=str(log)) as caller:
        await caller.call("pay", "/x?y=1", method="POST", data=b"12345", headers={"user-agent": "me", **SAMPLED})
        (line,) = await logged(log, 1)
    await program.stop()
    entry = json.loads(line)
    assert list(entry) == list(LOG_FIELDS)
    expected = {
        "method": "POST", "path": "/x?y=1", "protocol": "HTTP/1.1", "response_code": 200, "response_flags": "-",
        "bytes_received": 5, "bytes_sent": 5, "user_agent": "me", "authority": "pay", "cluster": "pay",
        "upstream_host": f"127.0.0.1:{program.port}", "trace_id": TRACE, "route": "passthrough", "retries": 0,
        "listener": "outbound", "error": None, "x_forwarded_for": None,
    }  # fmt: skip
    assert {key: entry[key] for key in expected} == expected
    assert 0 < entry["upstream_service_time"] <= entry["duration"] < 10_000
    assert entry["request_id"] == program.requests[0].fields("x-request-id")[0]


async def test_hostile_bytes_never_make_a_second_line(tmp_path: Path) -> None:
    program = Program([200])
    await program.start()
    services = {"pay": endpoints(program.port)}
    for format_ in ("json", "text"):
        log = tmp_path / format_
        settings = {"access_log": "all", "access_log_path": str(log), "access_log_format": format_}
        async with sidecar("shop", services=services, **settings) as caller:
            reader, writer = await asyncio.open_connection("127.0.0.1", caller.outbound)
            agent = 'a"b\\c\t\u2028\u0085\x80'.encode() + b"\xff\xfe"
            writer.write(b'GET /%0a" HTTP/1.1\r\nhost: pay\r\nuser-agent: ' + agent + b"\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET / HTTP/1.1\nhost: pay\r\n\r\n")
            await reader.read()
            writer.close()
            text = "\n".join(await logged(log, 2))
        assert text.isascii()
        assert len(text.splitlines()) == 2
        assert all(f"\\x{byte}" in text for byte in ("e2", "c2", "85", "ff", "fe"))
    await program.stop()


async def test_sampled_logs_sampled_traces_and_errors_only(tmp_path: Path) -> None:
    program = Program([200])
    await program.start()
    log = tmp_path / "access.log"
    settings = {"access_log": "sampled", "access_log_path": str(log), "trace_ratio": 0.0}
    async with sidecar("shop", services={"pay": endpoints(program.port)}, **settings) as caller:
        await caller.call("pay", "/quiet")
        await caller.call("pay", "/sampled", headers=SAMPLED)
        await caller.call("nobody", "/error")
        lines = await logged(log, 2)
    await program.stop()
    assert [json.loads(line)["path"] for line in lines] == ["/sampled", "/error"]


async def test_a_rotated_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    async with sidecar("shop", access_log="all", access_log_path=str(log)) as caller:
        await caller.call("nobody", "/1")
        await logged(log, 1)
        log.rename(old)
        await caller.call("nobody", "/2")
        (line,) = await logged(log, 1)
        assert json.loads(line)["path"] == "/2"
        assert len(log_lines(old)) == 1


async def test_a_log_that_cannot_be_written_costs_lines_and_no_request(tmp_path: Path) -> None:
    async with sidecar("shop", access_log="all", access_log_path=str(tmp_path / "no" / "such")) as caller:
        status, _, _ = await caller.call("nobody")
        assert status == 404
        log = caller.sidecar.telemetry.log
        assert log is not None
        await until(lambda: log.dropped == 1, what="the lost line to be counted")
        assert "mesh_access_log_dropped_total 1" in await caller.metrics()


async def test_a_stalled_reader_of_the_log_costs_lines_and_no_request(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with sidecar("shop", access_log="all", access_log_path=str(pipe)) as caller:
            log = caller.sidecar.telemetry.log
            assert log is not None
            log._max_unwritten_bytes = 100_000
            async with aiohttp.ClientSession() as session:
                for _ in range(400):
                    answer = await session.get(
                        f"http://127.0.0.1:{caller.outbound}/{'x' * 2000}", headers={"host": "nobody"}
                    )
                    assert answer.status == 404
            assert log.lines < 400
            await until(lambda: log.dropped > 0, what="lines to be dropped")
            os.close(reader)
            reader = -1
    finally:
        if reader >= 0:
            os.close(reader)
