"""Envoy with what a sidecar of a mesh has on.

Ten prefix routes, weighted clusters 90/10, least request of two choices over ten endpoints, timeout, retries, request
id, x-forwarded-for, via, stats, OTLP tracing, and the access log where it is asked for.
"""

from __future__ import annotations

import json
from typing import Any

from tests.bench.peers import HELD_REQUESTS, RETRIES, SPANS_EVERY_MS, SPANS_PER_BATCH, TIMEOUT_S, WEIGHTS, Command, Site
from tests.bench.traffic import ROUTES, SERVICE
from tests.support.needs import TOOLS

_V3 = "type.googleapis.com/envoy"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_LOG_FIELDS = {  # what a line of Sidemesh's own log says
    "start_time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "response_code": "%RESPONSE_CODE%",
    "response_flags": "%RESPONSE_FLAGS%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "duration": "%DURATION%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
    "user_agent": "%REQ(USER-AGENT)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "authority": "%REQ(:AUTHORITY)%",
    "upstream_host": "%UPSTREAM_HOST%",
    "downstream_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "trace_id": "%TRACE_ID%",
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "retries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "grpc_status": "%GRPC_STATUS_NUMBER%",
}


def command(site: Site) -> Command:
    """Write its configuration; one worker thread."""
    path = site.directory / "envoy.json"
    path.write_text(json.dumps(_bootstrap(site)))
    program = TOOLS["envoy"].find() or "envoy"
    options = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    return Command([program, "-c", path, *options])


def _bootstrap(site: Site) -> dict[str, Any]:
    http2 = {"@type": f"{_V3}.extensions.upstreams.http.v3.HttpProtocolOptions",
             "explicit_http_config": {"http2_protocol_options": {}}}  # fmt: skip
    spoken: dict[str, Any] = {"typed_extension_protocol_options": {_HTTP_OPTIONS: http2}}
    behind = dict(spoken) if site.behind in ("http2", "grpc") else {}
    if site.certificate is not None:
        trusted = {"validation_context": {"trusted_ca": {"filename": str(site.certificate.authority)}}}
        behind["transport_socket"] = _tls("Upstream", trusted, sni=SERVICE)
    if site.holds_streams:
        limits = {"max_requests": HELD_REQUESTS, "max_pending_requests": HELD_REQUESTS}
        behind["circuit_breakers"] = {"thresholds": [limits]}
    clusters = [
        _cluster(version, ports, lb_policy="LEAST_REQUEST", **behind) for version, ports in site.versions.items()
    ]
    clusters.append(_cluster("otlp", (site.otlp_grpc,), **spoken))
    batches = {
        "tracing.opentelemetry.min_flush_spans": SPANS_PER_BATCH,
        "tracing.opentelemetry.flush_interval_ms": SPANS_EVERY_MS,
    }
    return {
        "admin": {"address": _address(site.admin_port)},
        "static_resources": {"listeners": [_listener(site)], "clusters": clusters},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": batches}]},
    }


def _tcp_listener(site: Site) -> dict[str, Any]:
    proxy = {
        "@type": f"{_V3}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "bench",
        "max_connect_attempts": RETRIES + 1,
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    return {"name": "bench", "address": _address(site.port), "filter_chains": [chain]}


def _listener(site: Site) -> dict[str, Any]:
    if site.behind == "tcp":
        return _tcp_listener(site)
    manager = {
        "@type": f"{_V3}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "AUTO" if site.behind == "grpc" else "HTTP1",  # AUTO: the first request, by which it is
        # seen to forward, is HTTP/1.1
        "generate_request_id": True,
        "use_remote_address": True,
        "via": "envoy",
        "route_config": {"name": "bench", "virtual_hosts": [{"name": "shop", "domains": ["*"], "routes": _routes(site)}]},
        "http_filters": [{"name": "envoy.filters.http.router",
                          "typed_config": {"@type": f"{_V3}.extensions.filters.http.router.v3.Router"}}],
        "tracing": {"random_sampling": {"value": site.trace_ratio * 100},
                    "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": {
                        "@type": f"{_V3}.config.trace.v3.OpenTelemetryConfig", "service_name": site.name,
                        "grpc_service": {"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "10s"}}}},
    }  # fmt: skip
    if site.behind == "websocket":
        manager["upgrade_configs"] = [{"upgrade_type": "websocket"}]
    if site.holds_streams:
        manager["stream_idle_timeout"] = "0s"
    if site.access_log is not None:
        log = {"@type": f"{_V3}.extensions.access_loggers.file.v3.FileAccessLog", "path": str(site.access_log),
               "log_format": {"json_format": _LOG_FIELDS}}  # fmt: skip
        manager["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": log}]
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if site.certificate is not None:
        chain_file, key = ({"filename": str(path)} for path in (site.certificate.chain, site.certificate.key))
        shown = {"tls_certificates": [{"certificate_chain": chain_file, "private_key": key}]}
        chain["transport_socket"] = _tls("Downstream", shown)
    return {"name": "bench", "address": _address(site.port), "filter_chains": [chain]}


def _tls(side: str, common: dict[str, Any], **more: str) -> dict[str, Any]:
    context = f"{_V3}.extensions.transport_sockets.tls.v3.{side}TlsContext"
    common = {**common, "alpn_protocols": ["http/1.1"]}
    return {"name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": context, "common_tls_context": common, **more}}  # fmt: skip


def _routes(site: Site) -> list[dict[str, Any]]:
    action = {
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]},
        "timeout": "0s" if site.holds_streams else f"{TIMEOUT_S}s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream,retriable-status-codes", "num_retries": RETRIES,
                         "retriable_status_codes": [502, 503, 504]},
    }  # fmt: skip
    return [{"name": f"r{i}", "match": {"prefix": f"/r{i}/"}, "route": action} for i in range(ROUTES)]


def _cluster(name: str, ports: tuple[int, ...], **more: Any) -> dict[str, Any]:
    hosts = [{"lb_endpoints": [{"endpoint": {"address": _address(port)}} for port in ports]}]
    assignment = {"cluster_name": name, "endpoints": hosts}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment, **more}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
