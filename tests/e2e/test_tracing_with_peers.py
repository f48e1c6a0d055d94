"""One trace through our sidecars and another vendor's proxy: what each of them tells joins into one tree."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.mesh import Program
from tests.support.needs import require
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.telemetry import Backend, Seen, ask, endpoints, otlp_backend, sidecar

pytestmark = [pytest.mark.e2e, pytest.mark.peer]

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    async with otlp_backend() as running:
        yield running


def traefik(directory: Path, port: int, upstream: int, backend: Backend) -> list[str]:
    """The command of a Traefik before ``upstream`` that tells its spans to ``backend``."""
    servers = {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{upstream}"}], "passHostHeader": True}}
    dynamic = directory / "dynamic.yml"  # JSON is YAML
    dynamic.write_text(
        json.dumps({"http": {"routers": {"all": {"rule": "PathPrefix(`/`)", "service": "pay"}},
                             "services": {"pay": servers}}})
    )  # fmt: skip
    return [
        str(require("traefik")),
        f"--entryPoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={dynamic}",
        "--tracing=true",
        "--tracing.sampleRate=1.0",
        f"--tracing.otlp.http.endpoint={backend.http}/v1/traces",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ]


def envoy(directory: Path, port: int, upstream: int, backend: Backend) -> list[str]:
    """The same with Envoy."""

    def cluster(name: str, where: int, **more: object) -> dict[str, object]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": where}}
        hosts = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
        return {"name": name, "type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": hosts}, **more}

    v3 = "type.googleapis.com/envoy"
    options = f"{v3}.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {"typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": options, "explicit_http_config": {"http2_protocol_options": {}}}}}  # fmt: skip
    manager = {
        "@type": f"{v3}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "pay"}}]}]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{v3}.extensions.filters.http.router.v3.Router"}}],
        "tracing": {"spawn_upstream_span": True, "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
            "@type": f"{v3}.config.trace.v3.OpenTelemetryConfig", "service_name": "envoy",
            "grpc_service": {"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"}}}},
    }  # fmt: skip
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    otlp = urlsplit(backend.grpc).port or 0
    clusters = [cluster("pay", upstream), cluster("otlp", otlp, **http2)]
    flush = {"name": "static", "static_layer": {"tracing.opentelemetry.flush_interval_ms": 100}}
    config = directory / "envoy.json"
    config.write_text(
        json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters},
                    "layered_runtime": {"layers": [flush]}})
    )  # fmt: skip
    return [
        str(require("envoy")),
        "-c",
        str(config),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warn",
    ]


@pytest.mark.parametrize("peer", [traefik, envoy])
async def test_a_trace_through_a_real_proxy_is_one_connected_tree(
    peer: Callable[[Path, int, int, Backend], list[str]], backend: Backend, tmp_path: Path
) -> None:
    program, port = Program([200]), free_port()
    await program.start()
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.http, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(program.stop)
        pay = await stack.enter_async_context(sidecar("pay", port=program.port, env=env))
        shop = await stack.enter_async_context(sidecar("shop", services={"pay": endpoints(port)}, env=env))
        command = peer(tmp_path, port, pay.inbound, backend)
        proxy = await stack.enter_async_context(
            Process.start(*command, log=tmp_path / "peer.log", env={"OTEL_BSP_SCHEDULE_DELAY": "50"})
        )

        async def forwards() -> bool:
            try:
                return (await ask(f"http://127.0.0.1:{port}/ready", {"host": "pay"}))[0] == 200
            except OSError:
                return False

        await proxy.until(forwards, what="the peer to forward", timeout_s=30)
        status, _, _ = await shop.call("pay", "/a?b=c", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        assert status == 200
        await proxy.until(
            lambda: len(backend.of(TRACE)) >= 4, what=f"all spans of {TRACE}: {backend.of(TRACE)}", timeout_s=30
        )
    spans = backend.of(TRACE)
    chain = path_to(next(s for s in spans if s.service == "pay"), spans)
    assert chain[0].service == "shop"
    assert chain[0].kind == "CLIENT"
    assert chain[0].parent_id == CALLER, "the client's own span is above all of ours"
    assert [s.service for s in chain][-1] == "pay"
    assert {s.service for s in chain[1:-1]} == {peer.__name__}
    assert len(spans) == len(chain), "nothing hangs beside the path"
    assert program.requests[-1].fields("traceparent") == [f"00-{TRACE}-{chain[-1].span_id}-01"]


def path_to(span: Seen, spans: list[Seen]) -> list[Seen]:
    """From the topmost span that was told down to ``span``."""
    above = next((s for s in spans if s.span_id == span.parent_id), None)
    return [*path_to(above, spans), span] if above else [span]
